//! `select`: from queries and the summaries of the key blocks to block lists, in one launch.

use super::select_shape::{LEAST_ROWS, Room, SCRATCH_BLOCKS, Shape, choosing};
use super::{Launcher, RowStrides, ScaleStrides, Span, int, product, select_maps};
use crate::config::{Guards, StemConfig, TieRule};
use crate::driver::{Arg, Launch};
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use float8::F8E4M3;
use half::bf16;
use stem_attn_kernels::abi::SelectParams;
use stem_attn_kernels::config::select::{ROWS, SPAN};
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

    /// Checks that the longest list of a batch fits: for kernels that write lists.
    pub(super) fn require_room(&self, geometry: &Geometry) -> Result<()> {
        if self.stride < geometry.list_stride {
            return Err(Error::shape("lists", format!("room for {} blocks", geometry.list_stride), self.stride));
        }
        Ok(())
    }
}

/// Buffers of [`select`].
#[derive(Clone, Copy, Debug)]
pub struct Select {
    /// `[total_q, hq, 128]`.
    pub q: Span<F8E4M3>,
    /// Strides of `q`.
    pub q_rows: RowStrides,
    /// `[total_q, hq]`.
    pub q_scale: Span<f32>,
    /// Strides of `q_scale`.
    pub q_scale_rows: ScaleStrides,
    /// `[hkv, total_kb, 16, 128]`, group g at 15 - g, from [`super::summarize_kv`].
    pub k_sums: Span<bf16>,
    /// `[hkv, total_kb, 8]`, from [`super::summarize_kv`].
    pub run_norms: Span<f32>,
    /// Out.
    pub lists: Lists,
    /// Where scores go that shared memory does not hold.
    pub scores: ScoreSpace,
    /// Whether the kernel may start before the one queued before it has ended, which must be [`super::summarize_kv`] and must
    /// not have been allowed the same.
    pub overlap: bool,
}

/// Device memory for scores.
#[derive(Clone, Copy, Debug)]
pub enum ScoreSpace {
    /// None: enough for requests of up to 1,024 key blocks (131,072 tokens), whose scores stay in shared memory.
    None,
    /// [`scratch_len`] elements, for longer requests: rows of the strips in work.
    Scratch(Span<f32>),
    /// Out: every score, `[hq, total_qb, stride]`; columns that a row cannot see stay as they are. For tests and studies.
    All {
        /// The rows.
        scores: Span<f32>,
        /// Columns of a row, at least the most key blocks of one request.
        stride: usize,
    },
}

/// Elements of scratch memory that [`select`] needs for a batch: 0 where no request has more than 1,024 key blocks.
///
/// # Errors
/// [`Error::Shape`] when they do not fit the address space.
pub fn scratch_len(geometry: &Geometry) -> Result<usize> {
    if geometry.max_kb <= SPAN as usize {
        return Ok(0);
    }
    product("score scratch", &[SCRATCH_BLOCKS, ROWS as usize, geometry.max_kb])
}

/// Lists of every row, with the geometry's budgets.
///
/// # Errors
/// [`Error::Shape`] or [`Error::Value`] naming the tensor, before anything is launched; [`Error::Driver`].
pub fn select(at: &Launcher<'_>, args: &Select, config: &StemConfig) -> Result<()> {
    let geometry = at.geometry.host();
    let (hq, hkv) = (at.heads.hq, at.heads.hkv);
    let (total_qb, total_kb) = (geometry.total_qb(), geometry.total_kb());
    let q_rows = args.q.require_rows("q", args.q_rows, geometry.total_q, hq)?;
    let q_scale_rows = args.q_scale.require_scales("q_scale", args.q_scale_rows, geometry.total_q, hq)?;
    args.k_sums.require_vectors("k_sums", &[hkv, total_kb, SUM_LEN])?;
    args.run_norms.require_vectors("run_norms", &[hkv, total_kb, RUNS])?;
    args.lists.check(at)?;
    args.lists.require_room(geometry)?;
    let (scores, score_stride, scratch) = args.scores.check(geometry, hq)?;
    let room = Room { sm_count: at.kernels.sm_count(), resident: at.kernels.select_blocks() };
    let chooses = choosing(geometry, hq, room.sm_count, config);
    let shape = Shape::of(geometry, hq, at.heads.group(), &room, scratch, &chooses)?;
    if shape.blocks == 0 {
        // An empty tensor has no map.
        return Ok(());
    }
    let oam = &config.oam;
    let (q_map, q_mapped) = select_maps::queries(at, &args.q, q_rows)?;
    let params = SelectParams {
        q: args.q.address(),
        q_scale: args.q_scale.address(),
        q_rows,
        q_scale_rows,
        requests: at.geometry.requests().address(),
        query_blocks: at.geometry.query_blocks().address(),
        run_norms: args.run_norms.address(),
        lists: args.lists.lists.address(),
        counts: args.lists.counts.address(),
        scores,
        qk_scale: oam.qk_scale,
        lambda: oam.lambda,
        round_bf16: oam.round_bf16.into(),
        count_empty_runs: oam.count_empty_runs.into(),
        causal: geometry.causal.into(),
        sink: int("sink", config.sink as usize)?,
        window: int("window", config.window as usize)?,
        guards_on_top: matches!(config.guards, Guards::OnTop).into(),
        keep_all_ties: matches!(config.ties, TieRule::KeepAll).into(),
        windows: shape.windows.count(),
        long_windows: shape.windows.long,
        window_rows: shape.windows.rows,
        score_stride: int("score_stride", score_stride)?,
        scores_by_block: scratch.into(),
        list_stride: int("list_stride", args.lists.stride)?,
        hq: int("hq", hq)?,
        group: int("group", at.heads.group())?,
        total_qb: int("total_qb", total_qb)?,
        total_kb: int("total_kb", total_kb)?,
        q_mapped: int("q_mapped", q_mapped)?,
    };
    let grid = Launch::grid(shape.blocks, 1, 1).cluster([shape.cluster as u32, 1, 1]).overlap(args.overlap && at.kernels.overlaps());
    if shape.wide(config.oam.round_bf16, geometry.max_kb) {
        let [tile, tiles] = select_maps::every_second_tile(at, &args.k_sums)?;
        let args = [Arg::of(&params), Arg::of(&tile), Arg::of(&tiles), Arg::of(&q_map)];
        // SAFETY: as below.
        return unsafe { at.kernels.select_wide.launch(at.stream, &grid, &args) };
    }
    let [tile, tiles] = [select_maps::key_sums(at, &args.k_sums, 1)?, select_maps::key_sums(at, &args.k_sums, 2)?];
    // SAFETY: either kernel takes this block and the maps; every extent it touches was checked above, the spans promise the memory.
    // The grid is a multiple of the cluster, whose heads share a KV head: the cluster divides the group.
    unsafe { at.kernels.select.launch(at.stream, &grid, &[Arg::of(&params), Arg::of(&tile), Arg::of(&tiles), Arg::of(&q_map)]) }
}

impl ScoreSpace {
    /// Address and columns of the rows, and whether they are scratch.
    fn check(&self, geometry: &Geometry, hq: usize) -> Result<(u64, usize, bool)> {
        match self {
            Self::All { scores, stride } => {
                if *stride < geometry.max_kb {
                    return Err(Error::shape("scores", format!("at least {} columns", geometry.max_kb), stride));
                }
                scores.require("scores", &[hq, geometry.total_qb(), *stride])?;
                Ok((scores.address(), *stride, false))
            }
            Self::None if geometry.max_kb > SPAN as usize => {
                Err(Error::shape("scores", format!("scratch memory, for {} key blocks", geometry.max_kb), "none"))
            }
            Self::None => Ok((0, 0, false)),
            Self::Scratch(scratch) => {
                let len = scratch_len(geometry)?;
                scratch.require("scores", &[len])?;
                // Without a long request nothing is ever written there, and the grid need not be bounded by it.
                Ok(if len == 0 { (0, 0, false) } else { (scratch.address(), geometry.max_kb, true) })
            }
        }
    }
}

/// Checks the grids that [`select`] may launch for a batch, whatever the GPU.
pub(crate) fn check_grid(geometry: &Geometry, hq: usize) -> Result<()> {
    let windows = geometry.total_qb().div_ceil(LEAST_ROWS);
    Launch::grid(hq.saturating_mul(windows), 1, 1).validate("select")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(tokens: i32) -> Geometry {
        Geometry::new(&[0, tokens], &[0, tokens], &[tokens], true, None).expect("a batch")
    }

    #[test]
    fn only_long_requests_need_scratch() {
        assert_eq!(scratch_len(&geometry(131_072)).ok(), Some(0));
        assert_eq!(scratch_len(&geometry(131_073)).ok(), Some(128 * 32 * 1025));
        let span = |len| {
            // SAFETY: nothing is launched.
            ScoreSpace::Scratch(unsafe { Span::from_raw(256, len) })
        };
        assert_eq!(ScoreSpace::None.check(&geometry(131_072), 2).ok(), Some((0, 0, false)));
        assert!(matches!(ScoreSpace::None.check(&geometry(131_073), 2), Err(Error::Shape { tensor: "scores", .. })));
        assert_eq!(span(128 * 32 * 1025).check(&geometry(131_073), 2).ok(), Some((256, 1025, true)));
        assert!(span(128 * 32 * 1025 - 1).check(&geometry(131_073), 2).is_err());
        assert_eq!(span(0).check(&geometry(300), 2).ok(), Some((0, 0, false)));
    }
}
