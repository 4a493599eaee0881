//! The probe selector: where key means lie, which strip of query groups a block of threads takes, and what a group may see.

use super::swizzle_128;
use crate::config::probe_sel::{GROUPS, KEY_POOL, SUB_BLOCKS, TILE_BLOCKS};
use crate::config::{BLOCK, HEAD_DIM};

/// Tiles of key means of one head, over `batch` requests with `total_kb` key blocks together. A request's tiles are cut at
/// multiples of 16 of its own blocks; each request gets room for one more than it shares with its neighbours.
pub const fn tiles(total_kb: usize, batch: usize) -> usize {
    total_kb / TILE_BLOCKS + batch
}

/// Index of the first tile of request `request`, whose key blocks start at `kb_start`.
#[inline(always)]
pub const fn first_tile(request: i32, kb_start: i32) -> i32 {
    kb_start / TILE_BLOCKS as i32 + request
}

/// Byte offset, in a tile of 256 rows of 128 bytes, of byte `byte` of the mean of sub-block `sub` (0..16) of key block `block`
/// (0..16). Row `128 (block / 8) + 8 sub + block % 8`: a thread of the accumulator then holds all sub-blocks of its key
/// blocks, two blocks to a register, and their maximum needs no exchange.
#[inline(always)]
pub const fn mean_offset(block: usize, sub: usize, byte: usize) -> usize {
    swizzle_128((block / 8 * 128 + 8 * sub + block % 8) * HEAD_DIM + byte)
}

/// Key block of a tile (0..16) that half `half` of register `2 j + h` belongs to, for `j / 16` = `set`, in lane `lane`.
#[inline(always)]
pub const fn block_of(set: u32, half: u32, lane: u32) -> u32 {
    8 * set + 2 * (lane % 4) + half
}

/// The scale of a query as it enters a mean: without its last four bits. Its product with an e4m3 code, which has four bits, is then
/// exact in f32, and a sum of products the same whether they are fused into it or not.
#[inline(always)]
pub const fn exact_scale(scale: f32) -> f32 {
    f32::from_bits(scale.to_bits() & !0xF)
}

/// log2 of the query blocks in a strip of 256 groups.
#[inline(always)]
pub const fn strip_blocks_log2(query_pool_log2: i32) -> i32 {
    const SPARE: i32 = (GROUPS as usize / BLOCK).trailing_zeros() as i32;
    query_pool_log2 + SPARE
}

/// Strips of a request whose `qb_len` query blocks start at block `first_block`. They are cut at absolute positions, so that the
/// last tile of keys that a strip sees is the only one with a diagonal in it.
#[inline(always)]
pub const fn strips(first_block: i32, qb_len: i32, query_pool_log2: i32) -> u32 {
    let shift = strip_blocks_log2(query_pool_log2);
    if qb_len > 0 { (((first_block + qb_len - 1) >> shift) - (first_block >> shift) + 1) as u32 } else { 0 }
}

/// Item that block `block` of a grid of `blocks` takes in round `round`. There and back again: in a round of falling lengths the
/// first block would always get the longest row.
#[inline(always)]
pub const fn item(round: u32, block: u32, blocks: u32) -> u32 {
    round * blocks + if round.is_multiple_of(2) { block } else { blocks - 1 - block }
}

/// A place in the batch, for items that are looked up in ascending order.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The request.
    pub request: i32,
    /// Items of the requests before it.
    before: u32,
}

impl Place {
    /// The first request.
    pub const START: Self = Self { request: 0, before: 0 };

    /// Goes on to the request of item `n`, whose number among the request's own is given back; `None` when there are not so many.
    /// `items` says how many a request has.
    #[inline(always)]
    pub fn seek(&mut self, n: u32, batch: i32, items: impl Fn(i32) -> u32) -> Option<u32> {
        while self.request < batch {
            let own = items(self.request);
            if n - self.before < own {
                return Some(n - self.before);
            }
            self.before += own;
            self.request += 1;
        }
        None
    }
}

/// Query block of a strip whose list consumer warp `warp` selects, where the groups of a query block are those of
/// `1 << parts_log2` warps: one warp of the block's own warpgroups, and as many on each of the four schedulers (`warp % 4`).
#[inline(always)]
pub const fn selected_block(warp: u32, parts_log2: u32) -> Option<u32> {
    let (warpgroup, slot) = (warp / 4, warp % 4);
    if parts_log2 == 3 {
        return if warpgroup.is_multiple_of(2) && slot == warpgroup { Some(warpgroup / 2) } else { None };
    }
    let blocks = 4 >> parts_log2;
    let index = slot.wrapping_sub(warpgroup * blocks) % 4;
    if index < blocks { Some(warpgroup * blocks + index) } else { None }
}

/// How many of the 16 sub-blocks of key block `block` a group may see whose last visible key is `limit`.
#[inline(always)]
pub const fn visible(limit: i32, block: i32) -> i32 {
    let keys = limit - block * BLOCK as i32;
    let seen = (keys >> KEY_POOL.trailing_zeros()) + 1;
    if seen < 0 {
        0
    } else if seen < SUB_BLOCKS as i32 {
        seen
    } else {
        SUB_BLOCKS as i32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::probe_sel::KEY_TILE_BYTES;
    use crate::layout::accumulator_col;

    #[test]
    fn means_fill_a_tile_once() {
        let mut seen = vec![false; KEY_TILE_BYTES];
        for (block, sub, byte) in (0..16).flat_map(|b| (0..16).flat_map(move |s| (0..128).map(move |d| (b, s, d)))) {
            let at = mean_offset(block, sub, byte);
            assert!(!seen[at]);
            seen[at] = true;
        }
        assert!(seen.into_iter().all(|s| s));
    }

    /// Columns of a thread's registers against the rows of the tile, through the accumulator's map of an f32 product.
    #[test]
    fn registers_hold_whole_key_blocks() {
        for lane in 0..32 {
            for j in 0..32 {
                for half in 0..2 {
                    let column = accumulator_col(lane, 4 * j + half);
                    let block = block_of(j as u32 / 16, half as u32, lane as u32) as usize;
                    assert_eq!(mean_offset(block, j % 16, 0), swizzle_128(column * 128), "lane {lane}, register {j}");
                }
            }
        }
    }

    #[test]
    fn tiles_of_requests_do_not_meet() {
        for lens in [vec![1, 1, 1, 1], vec![16, 16, 17, 1], vec![0, 15, 0, 33, 64, 1], vec![31, 31, 31]] {
            let (mut kb, mut end) = (0, 0);
            for (request, &len) in lens.iter().enumerate() {
                let first = first_tile(request as i32, kb);
                assert!(first >= end, "{lens:?}");
                end = first + (len + 15) / 16;
                kb += len;
            }
            assert!(end as usize <= tiles(kb as usize, lens.len()), "{lens:?}");
        }
    }

    #[test]
    fn strips_cover_every_block() {
        for (pool, first, len) in (0..4).flat_map(|p| (0..40).flat_map(move |f| (0..70).map(move |n| (p, f, n)))) {
            let mut of_blocks: Vec<i32> = (first..first + len).map(|block| block >> strip_blocks_log2(pool)).collect();
            of_blocks.dedup();
            assert_eq!(strips(first, len, pool) as usize, of_blocks.len(), "pool {pool}: {len} from {first}");
        }
        assert_eq!((strip_blocks_log2(3), strip_blocks_log2(0)), (4, 1));
    }

    #[test]
    fn every_item_is_taken_once_and_its_request_found() {
        for items in [vec![], vec![0], vec![5], vec![0, 3, 0, 0, 7, 1], vec![200, 1, 1, 300, 0]] {
            let (batch, total) = (items.len() as i32, items.iter().sum::<u32>());
            for blocks in [1, 2, 7, 132] {
                let mut taken: Vec<(i32, u32)> = vec![];
                for block in 0..blocks {
                    let (mut place, mut round) = (Place::START, 0);
                    while let Some(own) = place.seek(item(round, block, blocks), batch, |request| items[request as usize]) {
                        taken.push((place.request, own));
                        round += 1;
                        // Asked again, it gives the same.
                        assert_eq!(place.seek(item(round - 1, block, blocks), batch, |request| items[request as usize]), Some(own));
                    }
                    // A block that misses a round has no later one either.
                    assert!(item(round, block, blocks) >= total && item(round + 1, block, blocks) >= total);
                }
                taken.sort_unstable();
                let all = (0..batch).flat_map(|r| (0..items[r as usize]).map(move |own| (r, own)));
                assert!(taken.iter().copied().eq(all), "{items:?} over {blocks}");
            }
        }
    }

    #[test]
    fn every_query_block_is_selected_by_one_warp_of_its_own() {
        for parts_log2 in 0..4 {
            let parts = 1 << parts_log2;
            let selected: Vec<(u32, u32)> = (0..16).filter_map(|warp| Some((selected_block(warp, parts_log2)?, warp))).collect();
            let mut blocks: Vec<u32> = selected.iter().map(|s| s.0).collect();
            blocks.sort_unstable();
            assert_eq!(blocks, (0..16 / parts).collect::<Vec<_>>());
            let mut schedulers = [0; 4];
            for (block, warp) in selected {
                // Who shares a barrier with it: its warpgroup, or a pair of them.
                let team = if parts == 8 { 8 } else { 4 };
                assert!((block * parts..(block + 1) * parts).all(|part| part / team == warp / team), "block {block}, warp {warp}");
                schedulers[warp as usize % 4] += 1;
            }
            assert!(schedulers.iter().max() == Some(&(16 / parts).div_ceil(4)), "{schedulers:?}");
        }
    }

    #[test]
    fn a_sub_block_is_visible_from_its_first_key() {
        assert_eq!([-1, 0, 7, 8, 127, 128, 5000].map(|limit| visible(limit, 0)), [0, 1, 1, 2, 16, 16, 16]);
        assert_eq!([383, 384, 400, -1].map(|limit| visible(limit, 3)), [0, 1, 3, 0]);
    }
}
