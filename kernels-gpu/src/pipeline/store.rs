//! From the products of a span to its scores: scaled, with the value terms, rounded where the preset says so, in shared memory.

use super::shared::Shared;
use crate::abi::SelectParams;
use crate::config::select::{CONSUMERS, PAIRED_PITCH, PITCH, ROWS, TILE, WIDE_PAIRED_PITCH, WIDE_PITCH};
use crate::layout::wide::WARPGROUP_PITCH;
use crate::layout::{accumulator_col, accumulator_row};
use crate::ptx::{cluster, cvt, smem, special};
use crate::unroll;

/// Products of one tile of each chunk of a span.
pub type Products = [[f32; 16]; 4];

/// Key blocks of a chunk, the place of a score in one after its place in another.
const CHUNK_KEYS: u32 = CONSUMERS * TILE;

/// Stores the scores of the span's key blocks for all rows of a strip, from the products of the first `TILES` chunks of warpgroup
/// `warpgroup` (those of rows and blocks that are not there mean nothing).
///
/// # Safety
/// All threads of the warpgroup call it; the value terms are written, the stages of the ring that scores lie over are empty, and nobody uses
/// scores.
#[inline(always)]
pub unsafe fn store<const TILES: usize>(p: &SelectParams, shared: Shared, warpgroup: u32, acc: &Products) {
    // Read again: what hangs on it would otherwise be computed before the products and lack registers there.
    let thread = (special::tid_x_again() % 128) as usize;
    // A product has key blocks as rows and query blocks as columns: the thread has two of the ones a tile, eight apart, and two of every
    // eight of the others.
    let first = (warpgroup * TILE + accumulator_row(thread, 0) as u32) * 4;
    let row = accumulator_col(thread, 0) as u32;
    let mut bias = [[0.0; 2]; 4];
    unroll!(C < 4 {
        if C < TILES {
            // SAFETY: two of the span's 1,024 places.
            unroll!(H < 2 { bias[C][H] = unsafe { smem::ld_f32(shared.bias().offset(first + C as u32 * (CHUNK_KEYS * 4) + H as u32 * 32)) }; });
        }
    });
    if p.round_bf16 != 0 {
        let to = shared.paired::<false>(row).0.offset(first);
        // Two chunks lie as far apart as the two scores of a word.
        unroll!(P < 2 {
            if P < TILES {
                unroll!(H < 2 {
                    unroll!(G < 4 {
                        unroll!(E < 2 {
                            let low = p.qk_scale * acc[P][4 * G + 2 * H + E] + bias[P][H];
                            let high = if P + 2 < TILES { p.qk_scale * acc[P + 2][4 * G + 2 * H + E] + bias[P + 2][H] } else { 0.0 };
                            let at = to.offset((8 * G + E) as u32 * (PAIRED_PITCH * 4) + P as u32 * (CHUNK_KEYS * 4) + H as u32 * 32);
                            // SAFETY: of the same places, in two of the strip's 32 rows.
                            unsafe { smem::st_u32(at, cvt::bf16x2(low, high)) };
                        });
                    });
                });
            }
        });
        return;
    }
    let to = shared.scores(row).0.offset(first);
    unroll!(C < 4 {
        if C < TILES {
            unroll!(H < 2 {
                unroll!(G < 4 {
                    unroll!(E < 2 {
                        let at = to.offset((8 * G + E) as u32 * (PITCH * 4) + C as u32 * (CHUNK_KEYS * 4) + H as u32 * 32);
                        // SAFETY: as above.
                        unsafe { smem::st_f32(at, p.qk_scale * acc[C][4 * G + 2 * H + E] + bias[C][H]) };
                    });
                });
            });
        }
    });
}

/// Products of up to two tiles of a warpgroup of `select_stem_wide` with the query blocks of two heads, of which half of the warps have those of the
/// own one and the others those of the other.
pub type WideProducts = [[f32; 32]; 2];

/// As [`store`], from the products of `select_stem_wide`: the scores of the other block's rows go to its shared memory.
///
/// # Safety
/// As [`store`], for both blocks of the cluster; all threads of the warpgroup call it.
#[inline(always)]
pub unsafe fn store_wide<const TILES: usize>(p: &SelectParams, shared: Shared, warpgroup: u32, acc: &WideProducts) {
    let thread = (special::tid_x_again() % 128) as usize;
    let rank = cluster::rank_again();
    // The thread has two rows, eight apart, and of every eight key blocks of a tile two that lie side by side.
    let (row, key) = (accumulator_row(thread, 0) as u32, accumulator_col(thread, 0) as u32);
    // Every second tile is the other block's.
    let first = warpgroup * WARPGROUP_PITCH + rank * TILE + key;
    let bias = shared.bias().offset(first * 4);
    // Warpgroups' words follow each other, and a warpgroup's blocks' tiles.
    let to = shared.paired::<true>(row % ROWS).0.offset((first - warpgroup * (WARPGROUP_PITCH / 2)) * 4);
    let to = cluster::place(to, rank ^ (row / ROWS));
    unroll!(G < 8 {
        // SAFETY: of the span's 1,024 places; the terms of a tile that is not there mean nothing.
        let [low, high] = unsafe { [0, WIDE_PITCH].map(|tile| smem::ld_v2_f32(bias.offset((8 * G as u32 + tile) * 4))) };
        unroll!(H < 2 {
            let score = |e: usize| {
                let of = |tile: usize, bias: [f32; 2]| p.qk_scale * acc[tile][4 * G + 2 * H + e] + bias[e];
                cvt::bf16x2(of(0, low), if TILES > 1 { of(1, high) } else { 0.0 })
            };
            let at = to.offset(H as u32 * (8 * WIDE_PAIRED_PITCH * 4) + 8 * G as u32 * 4);
            // SAFETY: two of 512 words of a row, in one of the 32 rows of either head.
            unsafe { cluster::st_v2_u32(at, [score(0), score(1)]) };
        });
    });
}

const _: () = assert!(WIDE_PITCH == 128 && WARPGROUP_PITCH == 2 * WIDE_PITCH, "a word has the scores of the two tiles of a warpgroup");
