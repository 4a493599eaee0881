//! The probe selector: key means, then scores and lists in one launch.

use super::{Blocks, Launcher, Lists, Paged, RowStrides, ScaleStrides, Scales, Span, int, product};
use crate::config::{Guards, ProbeConfig, StemConfig, TieRule};
use crate::driver::{Arg, Launch};
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::kv::TokenScaleLayout;
use float8::F8E4M3;
use stem_attn_kernels::abi::{ProbeMeansParams, SelectProbeParams};
use stem_attn_kernels::config::probe_sel::{KEY_TILE_BYTES, MAX_BLOCKS, SHORT_BLOCKS};
use stem_attn_kernels::layout::probe_sel::{strips, tiles};

/// Extents of the tiles of key means: `[hkv, tiles, 32768]` bytes, 128-byte aligned.
pub fn key_tiles(geometry: &Geometry, hkv: usize) -> [usize; 3] {
    [hkv, tiles(geometry.total_kb(), geometry.requests.len()), KEY_TILE_BYTES]
}

/// What [`probe`] has to do: the strips of all requests, for each of `hq` heads.
///
/// # Errors
/// [`Error::Value`] beyond 2,147,483,647 of them.
pub(crate) fn items(geometry: &Geometry, hq: usize, config: &ProbeConfig) -> Result<usize> {
    let pool = pool_log2(config) as i32;
    let strips = geometry.requests.iter().map(|r| strips(r.first_block, r.qb_len, pool) as usize).sum();
    let items = product("strips of query groups and heads", &[strips, hq])?;
    int("strips of query groups and heads", items)?;
    Ok(items)
}

/// Checks that the kernels compute a setting on a batch: see [`ProbeConfig::require_gpu`].
///
/// # Errors
/// [`Error::Unsupported`] for a setting, or a request with more than 2,048 key blocks.
pub(crate) fn require(geometry: &Geometry, config: &ProbeConfig) -> Result<()> {
    config.require_gpu()?;
    if geometry.max_kb > MAX_BLOCKS {
        let got = format!("{} key blocks of 128 tokens in a request, at most {MAX_BLOCKS}", geometry.max_kb);
        return Err(Error::Unsupported { what: "probe selector on the GPU", got });
    }
    Ok(())
}

fn pool_log2(config: &ProbeConfig) -> u32 {
    config.query_pool.trailing_zeros()
}

/// Buffers of [`probe_means`].
#[derive(Clone, Copy, Debug)]
pub struct ProbeMeans {
    /// Pages and page table.
    pub kv: Paged,
    /// Out: e4m3 codes, [`key_tiles`].
    pub k_tiles: Span<u8>,
    /// Which blocks to average.
    pub blocks: Blocks,
}

/// Means of every 8 keys of the batch. Room that a request has for the rest of its prompt stays as it is.
///
/// # Errors
/// [`Error::Shape`] or [`Error::Value`] naming the tensor, before anything is launched; [`Error::Unsupported`] for keys with
/// a scale each; [`Error::Driver`].
pub fn probe_means(at: &Launcher<'_>, args: &ProbeMeans) -> Result<()> {
    let geometry = at.geometry.host();
    let hkv = at.heads.hkv;
    args.kv.check(geometry.requests.len(), at.geometry.longest(), hkv)?;
    ProbeConfig::require_head_scales(args.kv.desc.k_token_scales != TokenScaleLayout::None)?;
    let extents = key_tiles(geometry, hkv);
    args.k_tiles.require_vectors("k_tiles", &extents)?;
    let (blocks, block_stride, count) = args.blocks.table(at);
    let params = ProbeMeansParams {
        k_pages: args.kv.k_pages.address(),
        page_table: args.kv.table.address(),
        requests: at.geometry.requests().address(),
        blocks,
        k_tiles: args.k_tiles.address(),
        k_strides: args.kv.desc.k_strides,
        page_size: int("page_size", args.kv.desc.page_size)?,
        table_stride: int("table_stride", args.kv.desc.table_stride)?,
        pages: int("pages", args.kv.desc.pages)?,
        tiles: int("k_tiles", extents[1])?,
        block_stride: int("block_stride", block_stride)?,
        reserved: 0,
    };
    let grid = Launch::grid(count, hkv, 1);
    // SAFETY: the kernel takes this one block; every extent it touches was checked above, the spans promise the memory, and
    // tokens of a page-table entry outside `0..pages` read as zeros.
    unsafe { at.kernels.probe_means.launch(at.stream, &grid, &[Arg::of(&params)]) }
}

/// Buffers of [`probe`].
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// `[total_q, hq, 128]`.
    pub q: Span<F8E4M3>,
    /// Strides of `q`.
    pub q_rows: RowStrides,
    /// `[total_q, hq]`.
    pub q_scale: Span<f32>,
    /// Strides of `q_scale`.
    pub q_scale_rows: ScaleStrides,
    /// Dequantisation scales; that of V is not read.
    pub scales: Scales,
    /// From [`probe_means`].
    pub k_tiles: Span<u8>,
    /// Out.
    pub lists: Lists,
    /// Out, for tests: `[hq, total_qb, stride]` scores and their stride; only columns that the row may see are written.
    pub scores: Option<(Span<f32>, usize)>,
    /// Multiplies the logits.
    pub softmax_scale: f32,
}

/// Scores of every block pair and the lists they lead to, with the geometry's budgets.
///
/// # Errors
/// As [`probe_means`], [`Error::Value`] for a softmax scale that is not positive and finite among them; [`Error::Unsupported`] for a
/// setting that is not built, or a request beyond 262,144 tokens.
pub fn probe(at: &Launcher<'_>, args: &Probe, probe: &ProbeConfig, config: &StemConfig) -> Result<()> {
    let geometry = at.geometry.host();
    require(geometry, probe)?;
    if !(args.softmax_scale.is_finite() && args.softmax_scale > 0.0) {
        return Err(Error::value("softmax_scale", "a positive finite number", args.softmax_scale));
    }
    let (hq, hkv, total_qb) = (at.heads.hq, at.heads.hkv, geometry.total_qb());
    args.lists.require_room(geometry)?;
    args.lists.check(at)?;
    let q_rows = args.q.require_rows("q", args.q_rows, geometry.total_q, hq)?;
    let q_scale_rows = args.q_scale.require_scales("q_scale", args.q_scale_rows, geometry.total_q, hq)?;
    let [k_scale_stride, _] = args.scales.strides(hkv)?;
    let extents = key_tiles(geometry, hkv);
    args.k_tiles.require_vectors("k_tiles", &extents)?;
    let score_stride = args.scores.as_ref().map_or(0, |(_, stride)| *stride);
    if let Some((scores, stride)) = &args.scores {
        if *stride < geometry.max_kb {
            return Err(Error::shape("scores", format!("at least {} columns", geometry.max_kb), stride));
        }
        scores.require("scores", &[hq, total_qb, *stride])?;
    }
    let params = SelectProbeParams {
        q: args.q.address(),
        q_scale: args.q_scale.address(),
        q_rows,
        q_scale_rows,
        k_scale: args.scales.k.address(),
        requests: at.geometry.requests().address(),
        query_blocks: at.geometry.query_blocks().address(),
        k_tiles: args.k_tiles.address(),
        lists: args.lists.lists.address(),
        counts: args.lists.counts.address(),
        scores: args.scores.as_ref().map_or(0, |(scores, _)| scores.address()),
        softmax_scale_log2: args.softmax_scale * std::f32::consts::LOG2_E,
        hq: int("hq", hq)?,
        group: int("group", at.heads.group())?,
        total_qb: int("total_qb", total_qb)?,
        tiles: int("k_tiles", extents[1])?,
        list_stride: int("list_stride", args.lists.stride)?,
        score_stride: int("score_stride", score_stride)?,
        query_pool_log2: pool_log2(probe) as i32,
        causal: geometry.causal.into(),
        sink: int("sink", config.sink as usize)?,
        window: int("window", config.window as usize)?,
        guards_on_top: matches!(config.guards, Guards::OnTop).into(),
        keep_all_ties: matches!(config.ties, TieRule::KeepAll).into(),
        k_scale_stride,
        batch: int("requests", geometry.requests.len())?,
        long_rows: (geometry.max_kb > SHORT_BLOCKS).into(),
    };
    // A persistent grid: one block a multiprocessor.
    let grid = Launch::grid(items(geometry, hq, probe)?.min(at.kernels.sm_count()), 1, 1);
    // SAFETY: the kernel takes this one block; every extent it touches was checked above, the spans promise the memory.
    unsafe { at.kernels.probe.launch(at.stream, &grid, &[Arg::of(&params)]) }
}
