//! Loads, stores, atomics, asynchronous copies and mbarriers.

use super::Op;
use super::decode::Cx;
use crate::fault::{Result, fault};
use crate::ptx::{D, Operand, W};

/// Where an address points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Device memory or parameters. Generic addresses of shared memory are not modelled.
    Global,
    /// Shared memory of the own block.
    Shared,
    /// Shared memory of any block of the cluster.
    Cluster,
}

/// The register of an address.
#[derive(Clone, Copy, Debug)]
pub enum Base {
    /// A shared address.
    Word(W),
    /// A global address.
    Double(D),
    /// None: the offset is the address.
    None,
}

/// An address: a register and an offset.
#[derive(Clone, Copy, Debug)]
pub struct Addr {
    /// The register.
    pub base: Base,
    /// Bytes to add.
    pub offset: i64,
}

/// Registers that a load fills or a store reads.
#[derive(Clone, Debug)]
pub enum Values {
    /// Words.
    Words(Vec<W>),
    /// Double words.
    Doubles(Vec<D>),
}

impl Values {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Self::Words(all) => all.len(),
            Self::Doubles(all) => all.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A load.
#[derive(Clone, Debug)]
pub struct Load {
    /// State space.
    pub space: Space,
    /// Where the elements go.
    pub to: Values,
    /// Bytes of an element.
    pub bytes: usize,
    /// Whether its sign is extended.
    pub signed: bool,
    /// Address of the first.
    pub at: Addr,
}

/// A store.
#[derive(Clone, Debug)]
pub struct Store {
    /// State space.
    pub space: Space,
    /// The elements.
    pub from: Values,
    /// Bytes of an element.
    pub bytes: usize,
    /// Address of the first.
    pub at: Addr,
}

/// A change of a word by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    /// Sum, with wrap-around.
    Add,
    /// Smaller unsigned number.
    MinU,
    /// Larger unsigned number.
    MaxU,
    /// Smaller signed number.
    MinS,
    /// Larger signed number.
    MaxS,
    /// Common bits.
    And,
    /// Bits of either.
    Or,
    /// Bits of one.
    Xor,
}

impl Reduce {
    /// By name and type.
    pub(super) fn of(name: &str, ty: &str) -> Result<Self> {
        Ok(match (name, ty) {
            ("add", "u32" | "s32") => Self::Add,
            ("min", "u32") => Self::MinU,
            ("max", "u32") => Self::MaxU,
            ("min", "s32") => Self::MinS,
            ("max", "s32") => Self::MaxS,
            ("and", "b32") => Self::And,
            ("or", "b32") => Self::Or,
            ("xor", "b32") => Self::Xor,
            _ => fault!("no {name} of {ty} is known"),
        })
    }

    /// The word after the change.
    pub fn apply(self, x: u32, y: u32) -> u32 {
        match self {
            Self::Add => x.wrapping_add(y),
            Self::MinU => x.min(y),
            Self::MaxU => x.max(y),
            Self::MinS => (x as i32).min(y as i32) as u32,
            Self::MaxS => (x as i32).max(y as i32) as u32,
            Self::And => x & y,
            Self::Or => x | y,
            Self::Xor => x ^ y,
        }
    }
}

/// A copy of a box of a tensor to shared memory.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Where the box goes.
    pub to: Addr,
    /// Address of the tensor map.
    pub map: D,
    /// Coordinates of the box, innermost first.
    pub at: Vec<W>,
    /// Mbarrier that counts the bytes.
    pub done: Addr,
    /// Blocks of the cluster that get a copy, if not only the one that is addressed.
    pub multicast: Option<W>,
}

/// A copy of bytes to shared memory.
#[derive(Clone, Copy, Debug)]
pub struct Bulk {
    /// Whether they come from device memory or from shared memory of the own block.
    pub source: Space,
    /// Where they go.
    pub to: Addr,
    /// Where they are.
    pub from: Addr,
    /// How many.
    pub bytes: W,
    /// Mbarrier that counts them.
    pub done: Addr,
}

/// Bytes of a type, and whether it is signed.
fn element(ty: &str) -> Option<(usize, bool)> {
    Some(match ty {
        "b8" | "u8" => (1, false),
        "s8" => (1, true),
        "b16" | "u16" | "f16" => (2, false),
        "s16" => (2, true),
        "b32" | "u32" | "f32" => (4, false),
        "s32" => (4, true),
        "b64" | "u64" | "s64" | "f64" => (8, false),
        _ => return None,
    })
}

fn space(cx: &Cx) -> Space {
    if cx.has("shared::cluster") {
        Space::Cluster
    } else if cx.has("shared") || cx.has("shared::cta") {
        Space::Shared
    } else {
        Space::Global
    }
}

const HINTS: [&str; 11] = ["global", "shared", "shared::cta", "shared::cluster", "volatile", "nc", "v2", "v4", "relaxed", "gpu", "cta"];

/// Whether the vector's length is the one that the modifiers say.
fn counted(cx: &Cx, count: usize) -> bool {
    count
        == if cx.has("v4") {
            4
        } else if cx.has("v2") {
            2
        } else {
            1
        }
}

/// `ld`.
pub(super) fn load(cx: &mut Cx) -> Result<Op> {
    let Some((bytes, signed)) = element(cx.last()) else { return cx.unknown() };
    let elements = cx.elements(0)?;
    if let Operand::Memory(base, add) = cx.arg(1)?
        && let Operand::Param(offset) = **base
    {
        let Ok(offset) = usize::try_from(offset as i64 + add) else { fault!("a parameter before the first") };
        let [to] = &elements[..] else { return cx.unknown() };
        return Ok(Op::LoadParam { to: values(cx, std::slice::from_ref(to), bytes)?, bytes, signed, offset });
    }
    cx.only(&HINTS)?;
    if !counted(cx, elements.len()) {
        fault!("{} elements", elements.len());
    }
    Ok(Op::Load(Load { space: space(cx), to: values(cx, &elements, bytes)?, bytes, signed, at: cx.address(1)? }))
}

/// Registers that elements go to: those of the operands, or new ones where nobody wants them.
fn values(cx: &mut Cx, elements: &[Operand], bytes: usize) -> Result<Values> {
    let wide = bytes == 8 || elements.iter().any(|o| matches!(o, Operand::Double(_)));
    Ok(if wide {
        Values::Doubles(elements.iter().map(|o| cx.destination(o)).collect::<Result<_>>()?)
    } else {
        Values::Words(elements.iter().map(|o| cx.destination(o)).collect::<Result<_>>()?)
    })
}

/// `st`.
pub(super) fn store(cx: &mut Cx) -> Result<Op> {
    let Some((bytes, _)) = element(cx.last()) else { return cx.unknown() };
    cx.only(&HINTS)?;
    let elements = cx.elements(1)?;
    if !counted(cx, elements.len()) {
        fault!("{} elements", elements.len());
    }
    let from = if bytes == 8 {
        Values::Doubles(elements.iter().map(|o| cx.source(o)).collect::<Result<_>>()?)
    } else {
        Values::Words(elements.iter().map(|o| cx.source(o)).collect::<Result<_>>()?)
    };
    Ok(Op::Store(Store { space: space(cx), from, bytes, at: cx.address(0)? }))
}

/// `atom` and `red`, of words.
pub(super) fn atomic(cx: &mut Cx) -> Result<Op> {
    let reduce = Reduce::of(cx.before_last(), cx.last())?;
    let space = space(cx);
    if cx.segment(0) == "red" {
        return Ok(Op::Atomic { space, reduce, old: None, at: cx.address(0)?, with: cx.word(1)? });
    }
    Ok(Op::Atomic { space, reduce, old: Some(cx.to(0)?), at: cx.address(1)?, with: cx.word(2)? })
}

/// `cp.async` in all its forms.
pub(super) fn copy(cx: &mut Cx) -> Result<Op> {
    let small = ["cp.async.ca.shared.global", "cp.async.cg.shared.global"];
    match cx.op {
        "cp.async.commit_group" => Ok(Op::CpCommit),
        "cp.async.wait_all" => Ok(Op::CpWait(None)),
        "cp.async.wait_group" => Ok(Op::CpWait(Some(cx.immediate(0)? as u32))),
        "cp.async.mbarrier.arrive.shared::cta.b64" | "cp.async.mbarrier.arrive.shared.b64" => {
            Ok(Op::CpArrive { at: cx.address(0)?, counted: false })
        }
        "cp.async.mbarrier.arrive.noinc.shared::cta.b64" | "cp.async.mbarrier.arrive.noinc.shared.b64" => {
            Ok(Op::CpArrive { at: cx.address(0)?, counted: true })
        }
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes" => bulk(cx, Space::Global),
        "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes" => bulk(cx, Space::Shared),
        op if op.starts_with("cp.async.bulk.tensor.") => tensor(cx),
        op if op.starts_with("cp.async.bulk.prefetch.") => Ok(Op::Nothing),
        op if small.contains(&op) => {
            let bytes = cx.immediate(2)?;
            if ![4, 8, 16].contains(&bytes) {
                fault!("copies of {bytes} bytes");
            }
            let used = if cx.args.len() > 3 { Some(cx.word(3)?) } else { None };
            Ok(Op::CpAsync { to: cx.address(0)?, from: cx.address(1)?, bytes: bytes as u32, used })
        }
        _ => cx.unknown(),
    }
}

fn bulk(cx: &mut Cx, source: Space) -> Result<Op> {
    Ok(Op::Bulk(Bulk { source, to: cx.address(0)?, from: cx.address(1)?, bytes: cx.word(2)?, done: cx.address(3)? }))
}

fn tensor(cx: &mut Cx) -> Result<Op> {
    let rank = cx.segment(4).strip_suffix('d').and_then(|n| n.parse::<usize>().ok());
    let multicast = cx.has("multicast::cluster");
    let kind = cx.segments.iter().skip(5).copied().filter(|m| !matches!(*m, "tile" | "multicast::cluster" | "L2::cache_hint"));
    if !kind.eq(["shared::cluster", "global", "mbarrier::complete_tx::bytes"]) {
        return cx.unknown();
    }
    let Operand::Tensor(map, coordinates) = cx.arg(1)?.clone() else { fault!("a tensor with coordinates is expected") };
    let at = coordinates.iter().map(|o| cx.source(o)).collect::<Result<Vec<W>>>()?;
    if Some(at.len()) != rank || at.len() > crate::machine::RANK {
        fault!("{} coordinates", at.len());
    }
    let multicast = if multicast { Some(cx.word(3)?) } else { None };
    Ok(Op::Tensor(Tensor { to: cx.address(0)?, map: cx.source(&map)?, at, done: cx.address(2)?, multicast }))
}

/// `mbarrier`.
pub(super) fn mbarrier(cx: &mut Cx) -> Result<Op> {
    let space = if cx.has("shared::cluster") { Space::Cluster } else { Space::Shared };
    // The default is an order within the block.
    let cluster = cx.has("cluster") && !cx.has("relaxed");
    match cx.segment(1) {
        "init" => Ok(Op::MbarInit(cx.address(0)?, cx.word(1)?)),
        "inval" => Ok(Op::Nothing),
        "expect_tx" => Ok(Op::MbarExpect(cx.address(0)?, cx.word(1)?)),
        "arrive" => {
            // The state that it returns is nothing that a kernel here reads.
            if *cx.arg(0)? != Operand::Sink {
                fault!("the state of an mbarrier is not modelled");
            }
            let count = if cx.args.len() > 2 && !cx.has("expect_tx") { cx.word(2)? } else { cx.constant(1) };
            let bytes = if cx.has("expect_tx") { Some(cx.word(2)?) } else { None };
            Ok(Op::MbarArrive { at: cx.address(1)?, count, bytes, space, cluster })
        }
        "try_wait" | "test_wait" if cx.has("parity") => {
            let wait = cx.segment(1) == "try_wait";
            Ok(Op::MbarTry { result: cx.to(0)?, at: cx.address(1)?, parity: cx.word(2)?, wait, cluster })
        }
        _ => cx.unknown(),
    }
}
