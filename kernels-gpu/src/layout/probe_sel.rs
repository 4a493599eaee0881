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

/// log2 of the query blocks in a strip of 256 groups.
#[inline(always)]
pub const fn strip_blocks_log2(query_pool_log2: i32) -> i32 {
    const SPARE: i32 = (GROUPS as usize / BLOCK).trailing_zeros() as i32;
    query_pool_log2 + SPARE
}

/// Most strips of a request with at most `max_qb` query blocks: its first may start anywhere in a strip.
pub const fn strips(max_qb: usize, query_pool_log2: u32) -> usize {
    let blocks = 1 << strip_blocks_log2(query_pool_log2 as i32);
    if max_qb == 0 { 0 } else { (max_qb - 1) / blocks + 2 }
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
        for (pool, first, len) in (0..4).flat_map(|p| (0..40).flat_map(move |f| (1..70).map(move |n| (p, f, n)))) {
            let shift = strip_blocks_log2(pool);
            let needed = ((first + len - 1) >> shift) - (first >> shift) + 1;
            assert!(needed as usize <= strips(len as usize, pool as u32), "pool {pool}: {len} from {first}");
        }
        assert_eq!((strip_blocks_log2(3), strip_blocks_log2(0)), (4, 1));
    }

    #[test]
    fn a_sub_block_is_visible_from_its_first_key() {
        assert_eq!([-1, 0, 7, 8, 127, 128, 5000].map(|limit| visible(limit, 0)), [0, 1, 1, 2, 16, 16, 16]);
        assert_eq!([383, 384, 400, -1].map(|limit| visible(limit, 3)), [0, 1, 3, 0]);
    }
}
