//! `select`: query sums, value term, scores, and the lists they lead to.

use super::{Launcher, RowStrides, Span, int};
use crate::config::{Guards, OamConfig, StemConfig, TieRule};
use crate::driver::{Arg, ElementType, Launch, Swizzle, TensorMap, TensorMapDesc};
use crate::error::{Error, Result};
use float8::F8E4M3;
use half::bf16;
use stem_attn_kernels::abi::{QuerySumsParams, ScoresParams, TopkParams, ValueBiasParams};
use stem_attn_kernels::config::select::scores::{STEP, TILE};
use stem_attn_kernels::config::{RUNS, SUM_LEN};

/// Block lists in device memory.
#[derive(Clone, Copy, Debug)]
pub struct Lists {
    /// `[hq, total_qb, stride]`, ascending.
    pub lists: Span<i32>,
    /// `[hq, total_qb]`.
    pub counts: Span<i32>,
    /// Capacity of one list.
    pub stride: usize,
}

impl Lists {
    pub(super) fn check(&self, at: &Launcher<'_>) -> Result<()> {
        let (hq, total_qb) = (at.heads.hq, at.geometry.host().total_qb());
        self.lists.require("lists", &[hq, total_qb, self.stride])?;
        self.counts.require("counts", &[hq, total_qb])
    }
}

/// Buffers of [`query_sums`].
#[derive(Clone, Copy, Debug)]
pub struct QuerySums {
    /// `[total_q, hq, 128]`.
    pub q: Span<F8E4M3>,
    /// Strides of `q`.
    pub q_rows: RowStrides,
    /// `[total_q, hq]`.
    pub q_scale: Span<f32>,
    /// Out: `[hq, total_qb, 16, 128]`, group g at g.
    pub q_sums: Span<bf16>,
}

/// Group sums of the queries.
///
/// # Errors
/// [`Error::Shape`] or [`Error::Value`] naming the tensor, before anything is launched; [`Error::Driver`].
pub fn query_sums(at: &Launcher<'_>, args: &QuerySums) -> Result<()> {
    let geometry = at.geometry.host();
    let (hq, total_qb) = (at.heads.hq, geometry.total_qb());
    let q_rows = args.q.require_rows("q", args.q_rows, geometry.total_q, hq)?;
    args.q_scale.require("q_scale", &[geometry.total_q, hq])?;
    args.q_sums.require_vectors("q_sums", &[hq, total_qb, SUM_LEN])?;
    let params = QuerySumsParams {
        q: args.q.address(),
        q_scale: args.q_scale.address(),
        q_rows,
        requests: at.geometry.requests().address(),
        query_blocks: at.geometry.query_blocks().address(),
        q_sums: args.q_sums.address(),
        hq: int("hq", hq)?,
        total_qb: int("total_qb", total_qb)?,
    };
    let grid = Launch::grid(total_qb, hq, 1);
    // SAFETY: the kernel takes this one block; every extent it touches was checked above, the spans promise the memory.
    unsafe { at.kernels.query_sums.launch(at.stream, &grid, &[Arg::of(&params)]) }
}

/// Buffers of [`value_bias`].
#[derive(Clone, Copy, Debug)]
pub struct ValueBias {
    /// `[hkv, total_kb, 8]`.
    pub run_norms: Span<f32>,
    /// Out: `[hkv, total_kb]`.
    pub v_bias: Span<f32>,
}

/// Value term of every key block.
///
/// # Errors
/// As [`query_sums`].
pub fn value_bias(at: &Launcher<'_>, args: &ValueBias, oam: &OamConfig) -> Result<()> {
    let geometry = at.geometry.host();
    let (hkv, total_kb) = (at.heads.hkv, geometry.total_kb());
    args.run_norms.require_vectors("run_norms", &[hkv, total_kb, RUNS])?;
    args.v_bias.require("v_bias", &[hkv, total_kb])?;
    let params = ValueBiasParams {
        run_norms: args.run_norms.address(),
        requests: at.geometry.requests().address(),
        v_bias: args.v_bias.address(),
        lambda: oam.lambda,
        count_empty_runs: oam.count_empty_runs.into(),
        total_kb: int("total_kb", total_kb)?,
        hkv: int("hkv", hkv)?,
    };
    let grid = Launch::grid(geometry.requests.len(), hkv, 1);
    // SAFETY: as in `query_sums`.
    unsafe { at.kernels.value_bias.launch(at.stream, &grid, &[Arg::of(&params)]) }
}

/// Buffers of [`scores`].
#[derive(Clone, Copy, Debug)]
pub struct Scores {
    /// `[hq, total_qb, 16, 128]`.
    pub q_sums: Span<bf16>,
    /// `[hkv, total_kb, 16, 128]`, group g at 15 - g.
    pub k_sums: Span<bf16>,
    /// `[hkv, total_kb]`.
    pub v_bias: Span<f32>,
    /// Out: `[hq, total_qb, stride]`; only columns that the row may see are written.
    pub scores: Span<f32>,
    /// Columns of a score row, at least the most key blocks of one request.
    pub stride: usize,
}

/// Scores of every (query block, key block) pair.
///
/// # Errors
/// As [`query_sums`].
pub fn scores(at: &Launcher<'_>, args: &Scores, oam: &OamConfig) -> Result<()> {
    let geometry = at.geometry.host();
    let (hq, hkv) = (at.heads.hq, at.heads.hkv);
    let (total_qb, total_kb) = (geometry.total_qb(), geometry.total_kb());
    if args.stride < geometry.max_kb {
        return Err(Error::shape("scores", format!("at least {} columns", geometry.max_kb), args.stride));
    }
    args.q_sums.require_vectors("q_sums", &[hq, total_qb, SUM_LEN])?;
    args.k_sums.require_vectors("k_sums", &[hkv, total_kb, SUM_LEN])?;
    args.v_bias.require("v_bias", &[hkv, total_kb])?;
    args.scores.require("scores", &[hq, total_qb, args.stride])?;
    let tile = TILE as usize;
    let grid = Launch::grid(geometry.max_kb.div_ceil(tile), geometry.max_qb.div_ceil(tile), geometry.requests.len().saturating_mul(hq));
    if grid.is_empty() {
        // An empty tensor has no map.
        return Ok(());
    }
    let params = ScoresParams {
        v_bias: args.v_bias.address(),
        requests: at.geometry.requests().address(),
        scores: args.scores.address(),
        qk_scale: oam.qk_scale,
        round_bf16: oam.round_bf16.into(),
        score_stride: int("score_stride", args.stride)?,
        hq: int("hq", hq)?,
        group: int("group", at.heads.group())?,
        total_qb: int("total_qb", total_qb)?,
        total_kb: int("total_kb", total_kb)?,
        causal: geometry.causal.into(),
    };
    let q_map = sums_map(at, "q_sums", &args.q_sums, total_qb, hq)?;
    let k_map = sums_map(at, "k_sums", &args.k_sums, total_kb, hkv)?;
    // SAFETY: the kernel takes this block and the two maps; every extent it touches was checked above, the spans promise
    // the memory.
    unsafe { at.kernels.scores.launch(at.stream, &grid, &[Arg::of(&params), Arg::of(&q_map), Arg::of(&k_map)]) }
}

/// Sums as `[2048, blocks, heads]` in boxes of 64 elements of 128 blocks of one head.
fn sums_map(at: &Launcher<'_>, name: &'static str, sums: &Span<bf16>, blocks: usize, heads: usize) -> Result<TensorMap> {
    let row = (SUM_LEN * size_of::<bf16>()) as u64;
    let desc = TensorMapDesc {
        name,
        element: ElementType::Bf16,
        address: sums.address(),
        bytes: sums.bytes(),
        dims: &[SUM_LEN as u64, blocks as u64, heads as u64],
        strides: &[row, row * blocks as u64],
        box_dims: &[STEP, TILE, 1],
        swizzle: Swizzle::B128,
    };
    TensorMap::encode(at.kernels.device(), &desc)
}

/// Buffers of [`topk`].
#[derive(Clone, Copy, Debug)]
pub struct Topk {
    /// `[hq, total_qb, score_stride]`.
    pub scores: Span<f32>,
    /// Columns of a score row.
    pub score_stride: usize,
    /// Out.
    pub lists: Lists,
}

/// Lists of every row, with the geometry's budgets.
///
/// # Errors
/// As [`query_sums`]; [`Error::Shape`] too when a list of the geometry would not fit.
pub fn topk(at: &Launcher<'_>, args: &Topk, config: &StemConfig) -> Result<()> {
    let geometry = at.geometry.host();
    let (hq, total_qb) = (at.heads.hq, geometry.total_qb());
    if args.score_stride < geometry.max_kb {
        return Err(Error::shape("scores", format!("at least {} columns", geometry.max_kb), args.score_stride));
    }
    if args.lists.stride < geometry.list_stride {
        return Err(Error::shape("lists", format!("room for {} blocks", geometry.list_stride), args.lists.stride));
    }
    args.scores.require("scores", &[hq, total_qb, args.score_stride])?;
    args.lists.check(at)?;
    let params = TopkParams {
        scores: args.scores.address(),
        query_blocks: at.geometry.query_blocks().address(),
        requests: at.geometry.requests().address(),
        lists: args.lists.lists.address(),
        counts: args.lists.counts.address(),
        score_stride: int("score_stride", args.score_stride)?,
        list_stride: int("list_stride", args.lists.stride)?,
        total_qb: int("total_qb", total_qb)?,
        causal: geometry.causal.into(),
        sink: int("sink", config.sink as usize)?,
        window: int("window", config.window as usize)?,
        guards_on_top: matches!(config.guards, Guards::OnTop).into(),
        keep_all_ties: matches!(config.ties, TieRule::KeepAll).into(),
    };
    let grid = Launch::grid(total_qb, hq, 1);
    // SAFETY: as in `query_sums`.
    unsafe { at.kernels.topk.launch(at.stream, &grid, &[Arg::of(&params)]) }
}
