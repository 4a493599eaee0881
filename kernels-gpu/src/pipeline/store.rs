//! From the products of a span to its scores: scaled, with the value terms, rounded where the preset says so, in shared memory.

use super::shared::Shared;
use crate::abi::SelectParams;
use crate::config::select::{CONSUMERS, PAIRED_PITCH, PITCH, TILE, WIDE_PITCH};
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

/// Products of one tile of each chunk of a span with the query blocks of two heads, those of the own one first.
pub type WideProducts = [[f32; 32]; 2];

/// As [`store`], from the products of `select_stem_wide`: the scores of the other block's rows go to its shared memory.
///
/// # Safety
/// As [`store`], for both blocks of the cluster; all threads of the warpgroup call it.
#[inline(always)]
pub unsafe fn store_wide<const TILES: usize>(p: &SelectParams, shared: Shared, warpgroup: u32, acc: &WideProducts) {
    let thread = (special::tid_x_again() % 128) as usize;
    let rank = cluster::rank_again();
    // Every second tile is the other block's.
    let first = (warpgroup * WIDE_PITCH + rank * TILE + accumulator_row(thread, 0) as u32) * 4;
    let row = accumulator_col(thread, 0) as u32;
    let mut bias = [[0.0; 2]; 2];
    unroll!(C < 2 {
        if C < TILES {
            // SAFETY: two of the span's 1,024 places.
            unroll!(H < 2 { bias[C][H] = unsafe { smem::ld_f32(shared.bias().offset(first + C as u32 * (CONSUMERS * WIDE_PITCH * 4) + H as u32 * 32)) }; });
        }
    });
    let own = shared.paired::<true>(row).0.offset(first);
    let other = cluster::place(own, rank ^ 1);
    unroll!(H < 2 {
        unroll!(G < 8 {
            unroll!(E < 2 {
                let low = p.qk_scale * acc[0][4 * G + 2 * H + E] + bias[0][H];
                let high = if TILES > 1 { p.qk_scale * acc[1][4 * G + 2 * H + E] + bias[1][H] } else { 0.0 };
                let offset = (8 * (G % 4) + E) as u32 * (PAIRED_PITCH * 4) + H as u32 * 32;
                let score = cvt::bf16x2(low, high);
                // SAFETY: of two of 512 words of a row, in two of the 32 rows of each head.
                unsafe {
                    if G < 4 {
                        smem::st_u32(own.offset(offset), score);
                    } else {
                        cluster::st_u32(other.offset(offset), score);
                    }
                }
            });
        });
    });
}

const _: () = assert!(CONSUMERS * WIDE_PITCH == 512, "the two tiles of a warpgroup are the scores of a word");
