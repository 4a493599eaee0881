//! `attend`: block-sparse and dense attention.

use super::{Launcher, Lists, Paged, RowStrides, ScaleStrides, Scales, Span, int, product};
use crate::driver::{Arg, ElementType, Launch, Swizzle, TensorMap, TensorMapDesc};
use crate::error::{Error, Result};
use float8::F8E4M3;
use half::bf16;
use stem_attn_kernels::abi::{self, AttendParams};
use stem_attn_kernels::config::{BLOCK, HEAD_DIM, TILE_BYTES};

/// Buffers of [`attend`].
#[derive(Clone, Copy, Debug)]
pub struct Attend {
    /// `[total_q, hq, 128]`.
    pub q: Span<F8E4M3>,
    /// Strides of `q`.
    pub q_rows: RowStrides,
    /// `[total_q, hq]`, positive.
    pub q_scale: Span<f32>,
    /// Strides of `q_scale`.
    pub q_scale_rows: ScaleStrides,
    /// Pages of K and page table.
    pub kv: Paged,
    /// Dequantisation scales.
    pub scales: Scales,
    /// e4m3 codes `[total_kb, hkv, 16384]` from [`super::summarize_kv`].
    pub v_tiles: Span<u8>,
    /// Blocks of every row, or every visible one.
    pub lists: Option<Lists>,
    /// Out: `[total_q, hq, 128]`.
    pub out: Span<bf16>,
    /// Strides of `out`, which keep its rows apart.
    pub out_rows: RowStrides,
    /// Out, where asked for: `[total_q, hq]`, natural logarithm.
    pub lse: Option<Span<f32>>,
    /// Multiplies the logits.
    pub softmax_scale: f32,
    /// Whether the kernel may start before the one queued before it has ended, which must be another stage of the same run: only
    /// those wait for what came before them.
    pub overlap: bool,
}

impl Attend {
    /// Checks every extent and the softmax scale.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::Value`] naming the tensor.
    pub fn check(&self, at: &Launcher<'_>) -> Result<()> {
        let geometry = at.geometry.host();
        let (hq, hkv, total_q) = (at.heads.hq, at.heads.hkv, geometry.total_q);
        self.q.require_rows("q", self.q_rows, total_q, hq)?;
        self.q_scale.require_scales("q_scale", self.q_scale_rows, total_q, hq)?;
        self.kv.check(geometry.requests.len(), at.geometry.longest(), hkv)?;
        self.scales.strides(hkv)?;
        self.kv.token_scales(&self.scales, hkv)?;
        self.v_tiles.require_vectors("v_tiles", &[geometry.total_kb(), hkv, TILE_BYTES])?;
        self.out_rows(at)?;
        if let Some(lse) = &self.lse {
            lse.require("lse", &[total_q, hq])?;
        }
        if let Some(lists) = &self.lists {
            lists.check(at)?;
        }
        if !(self.softmax_scale.is_finite() && self.softmax_scale > 0.0) {
            return Err(Error::value("softmax_scale", "a positive finite number", self.softmax_scale));
        }
        Ok(())
    }

    /// Strides of `out` in bytes, checked.
    fn out_rows(&self, at: &Launcher<'_>) -> Result<abi::RowStrides> {
        let (tokens, heads) = (at.geometry.host().total_q, at.heads.hq);
        self.out_rows.apart("out", tokens, heads)?;
        self.out.require_rows("out", self.out_rows, tokens, heads)
    }
}

/// Attends to the listed blocks. Lists hold indices that ascend and that the row may see. The kernel keeps others inside the
/// buffers, but what such a row attends to is unspecified: only the last block of a list is masked.
///
/// # Errors
/// As [`Attend::check`], before anything is launched; [`Error::Driver`].
pub fn attend(at: &Launcher<'_>, args: &Attend) -> Result<()> {
    args.check(at)?;
    let geometry = at.geometry.host();
    let (hq, hkv) = (at.heads.hq, at.heads.hkv);
    let [k_scale_stride, v_scale_stride] = args.scales.strides(hkv)?;
    // A persistent grid: one block a multiprocessor, each with every sm_count-th item.
    let items = product("query blocks and heads", &[hq, geometry.total_qb()])?;
    int("query blocks and heads", items)?;
    let grid = Launch::grid(items.min(at.kernels.sm_count()), 1, 1).overlap(args.overlap && at.kernels.overlaps());
    if grid.is_empty() {
        // An empty tensor has no map.
        return Ok(());
    }
    let params = AttendParams {
        q_scale: args.q_scale.address(),
        k_scale: args.scales.k.address(),
        v_scale: args.scales.v.address(),
        page_table: args.kv.table.address(),
        v_tiles: args.v_tiles.address(),
        lists: args.lists.map_or(0, |l| l.lists.address()),
        counts: args.lists.map_or(0, |l| l.counts.address()),
        query_blocks: at.geometry.query_blocks().address(),
        requests: at.geometry.requests().address(),
        out: args.out.address(),
        lse: args.lse.map_or(0, |s| s.address()),
        out_rows: args.out_rows(at)?,
        q_scale_rows: args.q_scale_rows.bytes("q_scale")?,
        softmax_scale_log2: (f64::from(args.softmax_scale) * std::f64::consts::LOG2_E) as f32,
        hq: int("hq", hq)?,
        hkv: int("hkv", hkv)?,
        group: int("group", at.heads.group())?,
        total_qb: int("total_qb", geometry.total_qb())?,
        list_stride: int("list_stride", args.lists.map_or(0, |l| l.stride))?,
        table_stride: int("table_stride", args.kv.desc.table_stride)?,
        page_size_log2: args.kv.desc.page_size.trailing_zeros() as i32,
        causal: geometry.causal.into(),
        k_scale_stride,
        v_scale_stride,
        reserved: 0,
    };
    let (q_map, k_map) = (q_map(at, args)?, k_map(at, args)?);
    let keys = args.kv.token_scales(&args.scales, hkv)?;
    let common = [Arg::of(&params), Arg::of(&q_map), Arg::of(&k_map)];
    if keys.first != 0 {
        let [params, q_map, k_map] = common;
        // SAFETY: as below; this kernel takes the scales of single keys besides, whose extents were checked too.
        return unsafe { at.kernels.attend_token_scales.launch(at.stream, &grid, &[params, q_map, k_map, Arg::of(&keys)]) };
    }
    // SAFETY: the kernel takes this block and the two maps; every extent it touches was checked above and the spans promise
    // the memory. A page outside the pool lies outside its tensor map and reads as zeros.
    unsafe { at.kernels.attend.launch(at.stream, &grid, &common) }
}

/// Q as `[128, hq, total_q]` in boxes of 128 tokens of one head.
fn q_map(at: &Launcher<'_>, args: &Attend) -> Result<TensorMap> {
    let hq = at.heads.hq as u64;
    let rows = args.q_rows.bytes::<F8E4M3>("q")?;
    let map = TensorMapDesc {
        name: "q",
        element: ElementType::U8,
        address: args.q.address(),
        bytes: args.q.bytes(),
        dims: &[HEAD_DIM as u64, hq, at.geometry.host().total_q as u64],
        strides: &[rows.head.unsigned_abs(), rows.token.unsigned_abs()],
        box_dims: &[HEAD_DIM as u32, 1, BLOCK as u32],
        swizzle: Swizzle::B128,
    };
    TensorMap::encode(at.kernels.device(), &map)
}

/// The K pages as `[128, page_size, hkv, pages]` in boxes of one page, or half of a page of 256, of one head.
fn k_map(at: &Launcher<'_>, args: &Attend) -> Result<TensorMap> {
    let kv = &args.kv;
    let desc = &kv.desc;
    // `Paged::check` found the strides positive.
    let strides = [desc.k_strides.token, desc.k_strides.head, desc.k_strides.page].map(|s| s.unsigned_abs());
    let map = TensorMapDesc {
        name: "k_pages",
        element: ElementType::U8,
        address: kv.k_pages.address(),
        bytes: kv.k_pages.bytes(),
        dims: &[HEAD_DIM as u64, desc.page_size as u64, at.heads.hkv as u64, desc.pages as u64],
        strides: &strides,
        box_dims: &[HEAD_DIM as u32, desc.page_size.min(BLOCK) as u32, 1, 1],
        swizzle: Swizzle::B128,
    };
    TensorMap::encode(at.kernels.device(), &map)
}
