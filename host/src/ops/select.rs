//! `select`: from queries and the summaries of the key blocks to block lists, in one launch.

use super::{Launcher, RowStrides, Span, int, product, select_maps};
use crate::config::{Guards, StemConfig, TieRule};
use crate::driver::{Arg, Launch};
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use float8::F8E4M3;
use half::bf16;
use stem_attn_kernels::abi::SelectParams;
use stem_attn_kernels::config::select::{ROWS, SPAN};
use stem_attn_kernels::config::{GROUPS, RUNS, SUM_LEN};
use stem_attn_kernels::layout::select::{Row, Rule};

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

/// Most thread blocks of a grid whose rows go through scratch memory: a multiple of every cluster, and about as many as the
/// largest Hopper GPU runs at a time (132).
const SCRATCH_BLOCKS: usize = 128;

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

/// What the GPU holds.
#[derive(Clone, Copy, Debug)]
struct Room {
    /// Multiprocessors.
    sm_count: usize,
    /// Blocks of the kernel that run at a time in clusters of 1 and 2; 0 where that is not known.
    resident: [usize; 2],
}

/// How the work of a batch is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    /// Query blocks of a strip.
    strip: usize,
    /// Thread blocks of a cluster: heads that share their copies of the key sums.
    cluster: usize,
    /// Thread blocks of the grid.
    blocks: usize,
}

/// Clocks of a strip in which nothing but latency counts: statistics, look-ups, first queries, top-k.
const STRIP_CLOCKS: usize = 27_000;
/// Clocks of a unit of queries in a warpgroup that sums, of which a strip of 32 rows has one a group, and shorter ones fewer.
const UNIT_CLOCKS: usize = 1_600;
/// Clocks of the products of a strip with a key block, whatever its rows.
const KEY_CLOCKS: usize = 80;

/// Query blocks of a strip. Shorter ones are sooner done with their queries and more for the multiprocessors to share, but read
/// the key sums more often. `chooses` tells which rows are scored, in order.
fn strip_len(geometry: &Geometry, hq: usize, room: &Room, chooses: &[bool]) -> usize {
    let clocks = |strip: usize| {
        let scored = chooses.chunks(strip).filter(|rows| rows.contains(&true)).count();
        let rounds = hq.saturating_mul(scored).div_ceil(room.sm_count.max(1));
        let units = GROUPS * strip / ROWS as usize;
        rounds.saturating_mul(STRIP_CLOCKS + (units * UNIT_CLOCKS).max(geometry.max_kb.saturating_mul(KEY_CLOCKS)))
    };
    // The first of equals: the longest.
    [ROWS as usize, ROWS as usize / 2, LEAST_STRIP].into_iter().min_by_key(|strip| clocks(*strip)).unwrap_or(ROWS as usize)
}

/// The shortest strips there are.
const LEAST_STRIP: usize = ROWS as usize / 4;

/// Which rows have to choose, where the batch is so small that it matters; else nothing.
fn choosing(geometry: &Geometry, hq: usize, sm_count: usize, config: &StemConfig) -> Vec<bool> {
    if hq.saturating_mul(geometry.total_qb().div_ceil(ROWS as usize)) >= sm_count.saturating_mul(2) {
        return Vec::new();
    }
    let (sink, window) = (config.sink.min(i32::MAX as u32) as i32, config.window.min(i32::MAX as u32) as i32);
    let rows = geometry.query_blocks.iter().map(|block| {
        let keys = geometry.requests.get(block.request as usize).map_or(0, |request| request.kb_len);
        let row = Row::new(block.block, keys, geometry.causal, sink, window, matches!(config.guards, Guards::OnTop));
        Rule { budget: block.budget, keep_all_ties: false, low_bit: 0 }.chooses(row)
    });
    rows.collect()
}

impl Shape {
    fn of(geometry: &Geometry, hq: usize, group: usize, room: &Room, scratch: bool, chooses: &[bool]) -> Self {
        let items = |strip: usize| hq.saturating_mul(geometry.total_qb().div_ceil(strip));
        let strip = strip_len(geometry, hq, room, chooses);
        // Sharing pays where key sums are most of the traffic; where they are not, waiting for each other costs more.
        // Clusters of four share more, but only 120 of an H200's 132 multiprocessors take part in them (its groups of
        // multiprocessors are no multiples of four): 5 % slower at 128 K.
        let wanted = if geometry.max_kb < 256 { 1 } else { 2 };
        let cluster = if group.is_multiple_of(wanted) { wanted } else { 1 };
        let items = items(strip);
        // Blocks that stay and take one item after another start the next while the last lists of the one before are written. All of
        // them have to run at a time, or the rest would come when the first have done everything.
        let resident = room.resident[cluster.ilog2() as usize];
        let most = match (scratch, resident) {
            (true, 0) => SCRATCH_BLOCKS,
            (true, n) => n.min(SCRATCH_BLOCKS),
            (false, 0) => items,
            (false, n) => n,
        };
        // Clusters are whole: items are a multiple of every cluster, and so is each of the limits.
        Self { strip, cluster, blocks: items.min(most) }
    }
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
    args.q_scale.require("q_scale", &[geometry.total_q, hq])?;
    args.k_sums.require_vectors("k_sums", &[hkv, total_kb, SUM_LEN])?;
    args.run_norms.require_vectors("run_norms", &[hkv, total_kb, RUNS])?;
    args.lists.check(at)?;
    args.lists.require_room(geometry)?;
    let (scores, score_stride, scratch) = args.scores.check(geometry, hq)?;
    let room = Room { sm_count: at.kernels.sm_count(), resident: at.kernels.select_blocks() };
    let chooses = choosing(geometry, hq, room.sm_count, config);
    let shape = Shape::of(geometry, hq, at.heads.group(), &room, scratch, &chooses);
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
        strip: int("strip", shape.strip)?,
        score_stride: int("score_stride", score_stride)?,
        scores_by_block: scratch.into(),
        list_stride: int("list_stride", args.lists.stride)?,
        hq: int("hq", hq)?,
        group: int("group", at.heads.group())?,
        total_qb: int("total_qb", total_qb)?,
        total_kb: int("total_kb", total_kb)?,
        q_mapped: int("q_mapped", q_mapped)?,
    };
    let [tile, tiles] = [select_maps::key_sums(at, &args.k_sums, 1)?, select_maps::key_sums(at, &args.k_sums, 2)?];
    let grid = Launch::grid(shape.blocks, 1, 1).cluster([shape.cluster as u32, 1, 1]).overlap(args.overlap && at.kernels.overlaps());
    // SAFETY: the kernel takes this block and the maps; every extent it touches was checked above, the spans promise the memory.
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
    let strips = geometry.total_qb().div_ceil(LEAST_STRIP);
    Launch::grid(hq.saturating_mul(strips), 1, 1).validate("select")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(tokens: i32) -> Geometry {
        Geometry::new(&[0, tokens], &[0, tokens], &[tokens], true, None).expect("a batch")
    }

    #[test]
    fn grids_are_multiples_of_their_clusters() {
        for tokens in [1, 128, 8192, 32_768, 65_536, 131_072, 1 << 20] {
            for (hq, hkv) in [(1, 1), (2, 1), (3, 1), (6, 3), (8, 8), (12, 3), (32, 4), (40, 8)] {
                for (sm_count, resident) in [(78, [78, 78]), (114, [0; 2]), (132, [132, 132])] {
                    let geometry = geometry(tokens);
                    let scratch = geometry.max_kb > 1024;
                    let chooses = vec![true; geometry.total_qb().min(400)];
                    let room = Room { sm_count, resident };
                    let Shape { strip, cluster, blocks } = Shape::of(&geometry, hq, hq / hkv, &room, scratch, &chooses);
                    assert!([8, 16, 32].contains(&strip));
                    assert!(blocks > 0 && (hq / hkv) % cluster == 0, "{tokens}, {hq}/{hkv}");
                    // Items of a cluster are neighbouring heads of one window, also after a stride of the whole grid.
                    assert_eq!(hq % cluster, 0);
                    assert_eq!(blocks % cluster, 0, "{tokens}, {hq}/{hkv}: {blocks} in {cluster}");
                    assert!(blocks <= hq * geometry.total_qb().div_ceil(strip));
                }
            }
        }
    }

    /// 32 heads on 132 multiprocessors: short strips where there are few rows, none where they only read more keys.
    #[test]
    fn strips_are_as_short_as_pays() {
        let room = Room { sm_count: 132, resident: [132, 132] };
        let config = StemConfig { alpha: 0.7, ..StemConfig::preset(crate::config::Preset::Hpc) };
        let strip = |tokens: i32, kv: i32| {
            let geometry = Geometry::new(&[0, tokens], &[0, kv], &[kv], true, Some(&config)).expect("a batch");
            strip_len(&geometry, 32, &room, &choosing(&geometry, 32, room.sm_count, &config))
        };
        assert_eq!([8192, 16_384, 32_768, 131_072].map(|n| strip(n, n)), [8, 32, 32, 32]);
        assert_eq!(strip(4096, 4096), 32, "no row chooses");
        assert_eq!(strip(8192, 131_072), 32, "products bind");
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
