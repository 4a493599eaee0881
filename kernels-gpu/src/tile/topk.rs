//! Radix select and ranks of one score row, by a block of eight warps.
//!
//! Keys are read again in every pass (a row of 1,024 scores is 4 KiB: it stays in L1). Nothing here branches on a lane's
//! own data near a warp or block instruction: what a lane has no part in is blanked or predicated.

use crate::config::select::topk::{DIGIT_BITS, HISTOGRAM_BYTES, PASSES, THREADS, WARPS};
use crate::layout::pages::clamped;
use crate::layout::select::{Row, Threshold, bin_of_digit, find_bin, score_key};
use crate::ptx::{SmemAddr, barrier, global, smem, warp};
use crate::unroll;

/// A row of scores and who its candidates are.
#[derive(Clone, Copy)]
pub struct ScoreRow {
    /// Address of the first score.
    pub scores: u64,
    /// Candidates and guards; at least one candidate.
    pub row: Row,
}

impl ScoreRow {
    /// The key of candidate `j`; of some candidate when `j` is past the last.
    ///
    /// # Safety
    /// The row's candidates have scores, which nobody writes while the kernel runs.
    #[inline(always)]
    pub unsafe fn key(self, j: i32) -> u32 {
        // SAFETY: the index is held inside the candidates.
        score_key(unsafe { global::ld_nc_u32(self.scores.wrapping_add(clamped(j, self.row.count) as u64 * 4)) })
    }
}

/// Clears the histograms of all passes. A barrier must follow.
///
/// # Safety
/// Every thread of the block calls it; `histograms` is their place in shared memory.
#[inline(always)]
pub unsafe fn clear(histograms: SmemAddr, thread: u32) {
    // SAFETY: 16 bytes a thread; config asserts that this covers them exactly.
    unsafe { smem::st_v4(histograms.offset(thread * 16), [0; 4]) };
}

/// The threshold that keeps the `budget` best of the ranked blocks, ties by lower index.
///
/// # Safety
/// Every thread of the block calls it, converged, with the same row and budget; the histograms are cleared and a
/// barrier has followed; `1 <= budget <= ` the row's ranked blocks.
#[inline(always)]
pub unsafe fn radix_select(scores: ScoreRow, budget: u32, histograms: SmemAddr, thread: u32) -> Threshold {
    let lane = thread % 32;
    let (mut key, mut rank) = (0, budget);
    let mut pass = 0;
    while pass < PASSES {
        let shift = 32 - DIGIT_BITS - pass * DIGIT_BITS;
        let decided = !(u32::MAX >> (pass * DIGIT_BITS));
        let bins = histograms.offset(pass * HISTOGRAM_BYTES);
        // SAFETY: forwarded; the barrier orders the reads of the histogram after everyone's additions.
        unsafe {
            count_digits(scores, key, decided, shift, bins, thread);
            barrier::sync_all();
            let (digit, rest) = find_digit(bins, rank, lane);
            key |= digit << shift;
            rank = rest;
        }
        pass += 1;
    }
    Threshold { key, ties: rank }
}

/// Adds to `bins` the digits at `shift` of all ranked blocks whose key agrees with `prefix` in the `decided` bits.
///
/// # Safety
/// The row lies inside the scores; `bins` are 256 zeroed words since a block barrier.
#[inline(always)]
unsafe fn count_digits(scores: ScoreRow, prefix: u32, decided: u32, shift: u32, bins: SmemAddr, thread: u32) {
    let mut base = 0;
    while base < scores.row.count {
        let j = base + thread as i32;
        // SAFETY: forwarded.
        let key = unsafe { scores.key(j) };
        if (j < scores.row.count) & scores.row.ranks(j) & (key & decided == prefix) {
            // SAFETY: one of the 256 bins, which everyone only adds to until the barrier.
            unsafe { smem::atomic_add_u32(bins.offset(bin_of_digit(key >> shift) * 4), 1) };
        }
        base += THREADS as i32;
    }
}

/// The digit of the block at `rank` (from 1, best first) and its rank among the blocks with that digit. Every warp finds
/// it for itself: lane l looks through bins 8 l .. 8 l + 8.
///
/// # Safety
/// Called by whole warps, converged; `bins` are complete since a block barrier.
#[inline(always)]
unsafe fn find_digit(bins: SmemAddr, rank: u32, lane: u32) -> (u32, u32) {
    // SAFETY: whole warps, converged; 32 bytes a lane inside the histogram.
    unsafe {
        let [a, b, c, d] = smem::ld_v4(bins.offset(lane * 32));
        let [e, f, g, h] = smem::ld_v4(bins.offset(lane * 32 + 16));
        let own = (a + b) + (c + d) + ((e + f) + (g + h));
        let mut up_to = own;
        unroll!(D in [1 2 4 8 16] {
            let below = warp::shfl_up_u32(up_to, D as u32);
            up_to += if lane >= D as u32 { below } else { 0 };
        });
        let before = up_to - own;
        // Sums only grow with the lane: the last lane that starts below the rank holds it. Lane 0 starts at 0.
        let starts_below = warp::ballot((before < rank) as u32);
        let holder = 31 - starts_below.leading_zeros();
        let (bin, rest) = find_bin([a, b, c, d, e, f, g, h], before, rank);
        let bin = warp::shfl_idx_u32(lane * 8 + bin, holder);
        (bin_of_digit(bin), warp::shfl_idx_u32(rest, holder))
    }
}

/// The eighth of the candidates that a warp walks, 32 at a time.
#[derive(Clone, Copy)]
pub struct Share {
    /// The first of its candidates.
    pub start: i32,
    /// Steps of 32, the same for all warps.
    pub steps: i32,
}

impl Share {
    /// The share of warp `warp`.
    #[inline(always)]
    pub fn new(count: i32, warp: u32) -> Self {
        let steps = (count + THREADS as i32 - 1) / THREADS as i32;
        Self { start: warp as i32 * steps * 32, steps }
    }
}

/// The sum over the lanes of a warp, for every lane.
///
/// # Safety
/// Called by a whole warp, converged.
#[inline(always)]
pub unsafe fn warp_sum(mut count: u32) -> u32 {
    // SAFETY: forwarded.
    unroll!(B in [1 2 4 8 16] { count += unsafe { warp::shfl_bfly_u32(count, B as u32) }; });
    count
}

/// What lies before a warp, and the whole, of a count that every warp has.
///
/// # Safety
/// Every thread of the block calls it, converged, with its warp's count; `slots` is 4 bytes a warp of shared memory,
/// 16-byte aligned, that nothing else uses in this kernel.
#[inline(always)]
pub unsafe fn before_warp(count: u32, slots: SmemAddr, thread: u32) -> (u32, u32) {
    const _: () = assert!(WARPS == 8);
    let warp = thread / 32;
    // SAFETY: one slot a warp, written by its first lane; the barrier orders the reads after the writes.
    let counts = unsafe {
        smem::st_u32_if(slots.offset(warp * 4), count, thread.is_multiple_of(32) as u32);
        barrier::sync_all();
        let [a, b, c, d] = smem::ld_v4(slots);
        let [e, f, g, h] = smem::ld_v4(slots.offset(16));
        [a, b, c, d, e, f, g, h]
    };
    let (mut before, mut total) = (0, 0);
    unroll!(W < 8 {
        before += if (W as u32) < warp { counts[W] } else { 0 };
        total += counts[W];
    });
    (before, total)
}

/// Counts, over a warp's walk, the candidates that a predicate holds for; and tells each lane how many came before it.
#[derive(Clone, Copy)]
pub struct Tally(pub u32);

impl Tally {
    /// How many candidates of lower index in this walk hold, if the lane's own is at the walk's next place.
    ///
    /// # Safety
    /// Called by a whole warp, converged.
    #[inline(always)]
    pub unsafe fn next(&mut self, holds: bool, lane: u32) -> u32 {
        // SAFETY: forwarded.
        let mask = unsafe { warp::ballot(holds as u32) };
        let before = self.0 + (mask & ((1 << lane) - 1)).count_ones();
        self.0 += mask.count_ones();
        before
    }
}
