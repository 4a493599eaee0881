//! How the work of `select` is cut, and onto how many thread blocks it goes.

use super::int;
use crate::config::{Guards, StemConfig};
use crate::error::Result;
use crate::geometry::Geometry;
use stem_attn_kernels::config::select::{OCTET, ROWS};
use stem_attn_kernels::layout::select::{Row, Rule};
use stem_attn_kernels::layout::windows::Windows;

/// What the GPU holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Multiprocessors.
    pub sm_count: usize,
    /// Blocks of the kernel that run at a time in clusters of 1 and 2; 0 where that is not known.
    pub resident: [usize; 2],
}

/// How the work of a batch is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Windows of query blocks.
    pub windows: Windows,
    /// Thread blocks of a cluster: heads that share their copies of the key sums.
    pub cluster: usize,
    /// Thread blocks of the grid.
    pub blocks: usize,
}

/// Most thread blocks of a grid whose rows go through scratch memory: a multiple of every cluster, and about as many as the
/// largest Hopper GPU runs at a time (132).
pub(super) const SCRATCH_BLOCKS: usize = 128;
/// Clocks of a strip in which nothing but latency counts: statistics, look-ups, first queries, top-k.
const STRIP_CLOCKS: usize = 27_000;
/// Clocks of an octet of query blocks in the warps that sum.
const OCTET_CLOCKS: usize = 6_400;
/// Clocks of the products of a strip with a key block, whatever its rows.
const KEY_CLOCKS: usize = 80;
/// Key blocks from which on the heads of a cluster share their products: no faster at 512, 4 % at 768, 6 % at 1,024.
const WIDE_BLOCKS: usize = 768;
/// Rows of the shortest windows there are.
pub(super) const LEAST_ROWS: usize = OCTET as usize;

/// Windows of the query blocks. Short ones are sooner done with their queries and more for the multiprocessors to share, but read the key
/// sums more often. Where there are two rounds of them the second is of shorter ones, if that makes them come out even. `chooses` tells
/// which rows are scored, in order; nothing where there are so many that long windows are best.
fn cut(geometry: &Geometry, hq: usize, room: &Room, chooses: &[bool]) -> Result<Windows> {
    let blocks = int("query blocks", geometry.total_qb())?;
    let all = |rows| Windows::of(blocks, rows);
    if chooses.is_empty() || hq == 0 || room.sm_count == 0 {
        return Ok(all(ROWS as i32));
    }
    let round = (room.sm_count / hq) as i32;
    let lengths = || (1..=ROWS as i32 / OCTET as i32).rev().map(|octets| octets * OCTET as i32);
    let mixed =
        lengths().skip(1).map(|rows| Windows { long: round, ..all(rows) }).filter(|cut| 0 < round && round * (ROWS as i32) < cut.blocks);
    // The first of equals: the longest.
    let best = lengths().map(all).chain(mixed).min_by_key(|cut| clocks(*cut, hq, room.sm_count, chooses, geometry.max_kb));
    Ok(best.unwrap_or(all(ROWS as i32)))
}

/// Clocks of the busiest multiprocessor.
fn clocks(windows: Windows, hq: usize, sm_count: usize, chooses: &[bool], keys: usize) -> usize {
    // Of each multiprocessor what it has more to do than the one before: a window of all heads is a few additions.
    let mut more = vec![0usize; sm_count + 1];
    let mut item = 0;
    for n in 0..windows.count() {
        let [start, end] = windows.range(n).map(|block| block as usize);
        let scored = chooses.get(start..end).unwrap_or_default();
        // Octets between the first and the last that somebody asks for.
        let (first, last) = (scored.iter().position(|row| *row), scored.iter().rposition(|row| *row));
        let octets = first.zip(last).map_or(0, |(first, last)| last / LEAST_ROWS - first / LEAST_ROWS + 1);
        let strip = if octets == 0 { 0 } else { STRIP_CLOCKS + (octets * OCTET_CLOCKS).max(keys.saturating_mul(KEY_CLOCKS)) };
        let after = item + hq;
        while item < after {
            let (round, place) = (item / sm_count, item % sm_count);
            let heads = (after - item).min(sm_count - place);
            // Every second round goes backwards.
            let at = if round % 2 == 0 { place } else { sm_count - place - heads };
            more[at] = more[at].wrapping_add(strip);
            more[at + heads] = more[at + heads].wrapping_sub(strip);
            item += heads;
        }
    }
    let busy = more.iter().scan(0usize, |clocks, more| {
        *clocks = clocks.wrapping_add(*more);
        Some(*clocks)
    });
    busy.max().unwrap_or_default()
}

/// Which rows have to choose, where the batch is so small that it matters; else nothing.
pub(super) fn choosing(geometry: &Geometry, hq: usize, sm_count: usize, config: &StemConfig) -> Vec<bool> {
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
    /// Whether the two heads of a cluster share their products, which takes scores in bf16.
    pub(super) fn wide(&self, round_bf16: bool, max_kb: usize) -> bool {
        self.cluster == 2 && round_bf16 && max_kb >= WIDE_BLOCKS
    }

    pub(super) fn of(geometry: &Geometry, hq: usize, group: usize, room: &Room, scratch: bool, chooses: &[bool]) -> Result<Self> {
        let windows = cut(geometry, hq, room, chooses)?;
        // Sharing pays where key sums are most of the traffic; where they are not, waiting for each other costs more.
        // Clusters of four share more, but only 120 of an H200's 132 multiprocessors take part in them (its groups of
        // multiprocessors are no multiples of four): 5 % slower at 128 K.
        let wanted = if geometry.max_kb < 256 { 1 } else { 2 };
        let cluster = if group.is_multiple_of(wanted) { wanted } else { 1 };
        let items = hq.saturating_mul(windows.count() as usize);
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
        Ok(Self { windows, cluster, blocks: items.min(most) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Preset;

    #[test]
    fn grids_are_multiples_of_their_clusters() {
        for tokens in [1, 128, 8192, 32_768, 65_536, 131_072, 1 << 20] {
            let geometry = Geometry::new(&[0, tokens], &[0, tokens], &[tokens], true, None).expect("a batch");
            for (hq, hkv) in [(1, 1), (2, 1), (3, 1), (6, 3), (8, 8), (12, 3), (32, 4), (40, 8)] {
                for (sm_count, resident) in [(78, [78, 78]), (114, [0; 2]), (132, [132, 132])] {
                    let scratch = geometry.max_kb > 1024;
                    let chooses = vec![true; if geometry.total_qb() > 400 { 0 } else { geometry.total_qb() }];
                    let room = Room { sm_count, resident };
                    let Shape { windows, cluster, blocks } = Shape::of(&geometry, hq, hq / hkv, &room, scratch, &chooses).expect("a shape");
                    assert!([8, 16, 24, 32].contains(&windows.rows) && windows.blocks == geometry.total_qb() as i32);
                    assert!(blocks > 0 && (hq / hkv) % cluster == 0, "{tokens}, {hq}/{hkv}");
                    // Items of a cluster are neighbouring heads of one window, also after a stride of the whole grid.
                    assert_eq!(hq % cluster, 0);
                    assert_eq!(blocks % cluster, 0, "{tokens}, {hq}/{hkv}: {blocks} in {cluster}");
                    assert!(blocks <= hq * windows.count() as usize);
                }
            }
        }
    }

    /// 32 heads on 132 multiprocessors: windows as short as makes them come out even, and long ones where short ones only read more keys.
    #[test]
    fn windows_are_as_short_as_pays() {
        let room = Room { sm_count: 132, resident: [132, 132] };
        let config = StemConfig { alpha: 0.7, ..StemConfig::preset(Preset::Hpc) };
        let windows = |tokens: i32, kv: i32| {
            let geometry = Geometry::new(&[0, tokens], &[0, kv], &[kv], true, Some(&config)).expect("a batch");
            let Windows { long, rows, .. } = cut(&geometry, 32, &room, &choosing(&geometry, 32, room.sm_count, &config)).expect("windows");
            (long, rows)
        };
        // 9 rows of 64 choose; 73 of 128: four windows of 24; 201 of 256: four of 32 and four of 24.
        assert_eq!([8192, 16_384, 32_768, 131_072].map(|n| windows(n, n)), [(0, 8), (0, 24), (4, 24), (0, 32)]);
        assert_eq!(windows(4096, 4096), (0, 32), "no row chooses");
        assert_eq!(windows(8192, 131_072), (0, 32), "products bind");
        // What the tests of the kernel count on: 112 rows of 64 heads here, 80 of two on four multiprocessors.
        let few = |blocks: usize, hq, sm_count| {
            let tokens = blocks as i32 * 128;
            let geometry = Geometry::new(&[0, tokens], &[0, tokens], &[tokens], true, None).expect("a batch");
            let Windows { long, rows, .. } =
                cut(&geometry, hq, &Room { sm_count, resident: [0; 2] }, &vec![true; blocks]).expect("windows");
            (long, rows)
        };
        assert_eq!([few(112, 64, 132), few(80, 2, 4)], [(2, 24), (2, 8)]);
    }

    /// The sums against items counted one by one.
    #[test]
    fn the_busiest_is_the_busiest() {
        for (blocks, hq, sm_count, rows) in
            [(64, 32, 132, 8), (256, 32, 132, 24), (90, 7, 5, 16), (33, 1, 4, 32), (40, 300, 132, 32), (0, 8, 4, 8)]
        {
            let chooses: Vec<bool> = (0..blocks).map(|block| block >= 55.min(blocks / 2) && block % 11 != 3).collect();
            for long in [0, 1, 2] {
                let windows = Windows { long: long.min(blocks / ROWS as i32), ..Windows::of(blocks, rows) };
                let mut busy = vec![0; sm_count];
                let items = (0..windows.count()).flat_map(|n| std::iter::repeat_n(n, hq));
                for (item, n) in items.enumerate() {
                    let (round, place) = (item / sm_count, item % sm_count);
                    let [start, end] = windows.range(n).map(|block| block as usize);
                    let octets: std::collections::BTreeSet<_> = (start..end).filter(|&b| chooses[b]).map(|b| (b - start) / 8).collect();
                    let octets = octets.last().zip(octets.first()).map_or(0, |(last, first)| last - first + 1);
                    busy[if round % 2 == 0 { place } else { sm_count - 1 - place }] +=
                        if octets == 0 { 0 } else { 27_000 + (octets * 6_400).max(100 * 80) };
                }
                assert_eq!(clocks(windows, hq, sm_count, &chooses, 100), busy.into_iter().max().unwrap_or(0), "{windows:?}, {hq}");
            }
        }
    }
}
