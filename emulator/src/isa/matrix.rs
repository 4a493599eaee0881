//! Matrix products.

use super::decode::{Cx, Decoded};
use super::{Op, Together};
use crate::fault::{Result, fault};
use crate::ptx::{D, Operand, P, W};

/// Elements of a factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// f16
    F16,
    /// bf16
    Bf16,
    /// e4m3
    E4m3,
}

impl Element {
    /// Its bytes.
    pub fn bytes(self) -> usize {
        if self == Self::E4m3 { 1 } else { 2 }
    }

    /// Elements of a row of a factor: 32 bytes.
    pub fn depth(self) -> usize {
        32 / self.bytes()
    }
}

/// A product of a warpgroup: 64 rows, `columns` columns, 32 bytes of depth.
#[derive(Clone, Debug)]
pub struct Wgmma {
    /// Columns.
    pub columns: usize,
    /// Elements of both factors.
    pub element: Element,
    /// Whether sums are pairs of f16, else f32.
    pub half: bool,
    /// The sums.
    pub sums: Vec<W>,
    /// The left factor: registers, or a descriptor.
    pub left: Factor,
    /// Descriptor of the right factor.
    pub right: D,
    /// Whether the sums so far count.
    pub keep: P,
    /// Whether the product is subtracted.
    pub negate: bool,
}

/// A left factor.
#[derive(Clone, Copy, Debug)]
pub enum Factor {
    /// In registers.
    Registers([W; 4]),
    /// In shared memory.
    Shared(D),
}

/// A product of a warp, 16 x 8 x 16, with f32 sums.
#[derive(Clone, Debug)]
pub struct Mma {
    /// Elements of both factors.
    pub element: Element,
    /// The result.
    pub to: [W; 4],
    /// The left factor.
    pub left: [W; 4],
    /// The right factor.
    pub right: [W; 2],
    /// The sums so far.
    pub sums: [W; 4],
}

/// `wgmma`, `mma` and `ldmatrix`.
pub(super) fn decode(cx: &mut Cx) -> Result<Decoded> {
    let op = match cx.segment(0) {
        "mma" => mma(cx)?,
        "ldmatrix" => ldmatrix(cx)?,
        _ => match cx.op {
            "wgmma.fence.sync.aligned" => Op::Nothing,
            "wgmma.commit_group.sync.aligned" => Op::WgmmaCommit,
            "wgmma.wait_group.sync.aligned" => Op::WgmmaWait(cx.immediate(0)? as u32),
            _ => wgmma(cx)?,
        },
    };
    Ok((Some(Together::Warp), op))
}

fn wgmma(cx: &mut Cx) -> Result<Op> {
    let ["wgmma", "mma_async", "sync", "aligned", shape, sum, left, right] = *cx.segments else { return cx.unknown() };
    let (element, depth) = match (left, right) {
        ("e4m3", "e4m3") => (Element::E4m3, "32"),
        ("bf16", "bf16") => (Element::Bf16, "16"),
        ("f16", "f16") => (Element::F16, "16"),
        _ => return cx.unknown(),
    };
    let columns = match shape.strip_prefix("m64n").and_then(|s| s.split_once('k')) {
        Some((columns, k)) if k == depth => columns.parse::<usize>().ok().filter(|n| n % 8 == 0 && (8..=256).contains(n)),
        _ => None,
    };
    let Some(columns) = columns else { fault!("the shape {shape} is not known") };
    let half = match sum {
        "f32" => false,
        "f16" if element != Element::Bf16 => true,
        _ => return cx.unknown(),
    };
    let sums = cx.elements(0)?.iter().map(|o| cx.source(o)).collect::<Result<Vec<W>>>()?;
    if sums.len() != columns / if half { 4 } else { 2 } {
        fault!("{} registers of sums", sums.len());
    }
    let left = match cx.arg(1)? {
        Operand::Vector(_) => Factor::Registers(cx.words(1)?),
        _ => Factor::Shared(cx.double(1)?),
    };
    let sign = |i: usize| match cx.immediate(i)? as i64 {
        1 => Ok(false),
        -1 => Ok(true),
        other => fault!("a scale of {other}"),
    };
    let negate = sign(4)? != sign(5)?;
    // Transposed factors.
    for i in 6..cx.args.len() {
        if cx.immediate(i)? != 0 {
            fault!("transposed factors are not modelled");
        }
    }
    let (right, keep) = (cx.double(2)?, cx.pred(3)?);
    Ok(Op::Wgmma(Box::new(Wgmma { columns, element, half, sums, left, right, keep, negate })))
}

fn mma(cx: &mut Cx) -> Result<Op> {
    let element = match cx.op {
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32" => Element::F16,
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32" => Element::Bf16,
        _ => return cx.unknown(),
    };
    Ok(Op::Mma(Box::new(Mma { element, to: cx.words(0)?, left: cx.words(1)?, right: cx.words(2)?, sums: cx.words(3)? })))
}

fn ldmatrix(cx: &mut Cx) -> Result<Op> {
    let count = [("x1", 1), ("x2", 2), ("x4", 4)].into_iter().find(|(m, _)| cx.has(m)).map(|(_, n)| n);
    let elements = cx.elements(0)?;
    if !cx.has("m8n8") || cx.last() != "b16" || Some(elements.len()) != count {
        return cx.unknown();
    }
    let to = elements.iter().map(|o| cx.destination(o)).collect::<Result<Vec<W>>>()?;
    Ok(Op::Ldmatrix { to, transpose: cx.has("trans"), at: cx.address(1)? })
}
