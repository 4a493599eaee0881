//! `select_topk`: which key blocks each query block attends to, as an ascending list.
//!
//! One block takes one query block of one head. A radix select over order-preserving keys finds the score at the
//! budget's edge; then each warp walks an eighth of the row three times: counting ties, counting what stays, and writing
//! it at its place. Work per row is 4 + 3 readings of the row, whatever the budget.

use crate::abi::{QueryBlock, Request, TopkParams};
use crate::config::select::topk::{KEPT, TIES};
use crate::layout::select::{Row, Threshold};
use crate::ptx::{barrier, global, smem, special};
use crate::tile::topk::{ScoreRow, Share, Tally, before_warp, clear, radix_select, warp_sum};

/// Entry: see [`TopkParams`] for the grid and the tensors.
///
/// # Safety
/// Launched with the grid, block size and shared memory of [`crate::config::select::topk`], on buffers whose extents the
/// host has checked.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn select_topk(p: TopkParams) {
    // SAFETY: forwarded from the host.
    unsafe { topk(&p) }
}

/// The kernel's body.
///
/// # Safety
/// As the entry; called by all threads of the block.
#[inline(always)]
unsafe fn topk(p: &TopkParams) {
    let thread = special::tid_x();
    let index = special::ctaid_x() as i64;
    let place = special::ctaid_y() as i64 * p.total_qb as i64 + index;
    let count_at = p.counts + place as u64 * 4;
    // SAFETY: the grid is as large as the arrays; all threads take the same way through here.
    unsafe {
        let block = *(p.query_blocks as *const QueryBlock).offset(index as isize);
        let request = *(p.requests as *const Request).offset(block.request as isize);
        let row = Row::new(block.block, request.kb_len, p.causal != 0, p.sink, p.window, p.guards_on_top != 0);
        if row.count <= 0 {
            global::st_u32_if(count_at, 0, (thread == 0) as u32);
            return;
        }
        let scores = ScoreRow { scores: p.scores + (place * p.score_stride as i64) as u64 * 4, row };
        let threshold = threshold(scores, block.budget, p.keep_all_ties != 0, thread);
        let list = p.lists + (place * p.list_stride as i64) as u64 * 4;
        let kept = write_list(scores, threshold, list, p.list_stride as u32, thread);
        let fits = if kept < p.list_stride as u32 { kept } else { p.list_stride as u32 };
        global::st_u32_if(count_at, fits, (thread == 0) as u32);
    }
}

/// Which ranked blocks stay.
///
/// # Safety
/// All threads of the block call it with the same row and budget; the row lies inside the scores.
#[inline(always)]
unsafe fn threshold(scores: ScoreRow, budget: i32, keep_all_ties: bool, thread: u32) -> Threshold {
    if budget >= scores.row.ranked() {
        return Threshold::ALL;
    }
    if budget <= 0 {
        return Threshold::NONE;
    }
    let histograms = smem::base();
    // SAFETY: the budget is the same for all threads, so all are here together; it is below the number of ranked blocks.
    unsafe {
        clear(histograms, thread);
        barrier::sync_all();
        let exact = radix_select(scores, budget as u32, histograms, thread);
        if keep_all_ties { Threshold { ties: u32::MAX, ..exact } } else { exact }
    }
}

/// Writes the kept blocks in ascending order, as far as `capacity` goes; returns how many there are.
///
/// # Safety
/// All threads of the block call it with the same arguments; `list` holds `capacity` entries.
#[inline(always)]
unsafe fn write_list(scores: ScoreRow, threshold: Threshold, list: u64, capacity: u32, thread: u32) -> u32 {
    let lane = thread % 32;
    let share = Share::new(scores.row.count, thread / 32);
    let row = scores.row;
    // SAFETY: every warp takes the same number of steps, converged; a block is written only below the capacity.
    unsafe {
        let mut ties = 0;
        let mut step = 0;
        while step < share.steps {
            let j = share.start + step * 32 + lane as i32;
            ties += is_tie(row, threshold, j, scores.key(j)) as u32;
            step += 1;
        }
        let (ties_before, _) = before_warp(warp_sum(ties), smem::base().offset(TIES), thread);

        let (mut ties, mut kept) = (Tally(ties_before), Tally(0));
        step = 0;
        while step < share.steps {
            let j = share.start + step * 32 + lane as i32;
            let key = scores.key(j);
            let rank = ties.next(is_tie(row, threshold, j, key), lane);
            kept.next(stays(row, threshold, j, key, rank), lane);
            step += 1;
        }
        let (kept_before, total) = before_warp(kept.0, smem::base().offset(KEPT), thread);

        let (mut ties, mut kept) = (Tally(ties_before), Tally(kept_before));
        step = 0;
        while step < share.steps {
            let j = share.start + step * 32 + lane as i32;
            let key = scores.key(j);
            let rank = ties.next(is_tie(row, threshold, j, key), lane);
            let on = stays(row, threshold, j, key, rank);
            let at = kept.next(on, lane);
            global::st_u32_if(list + at as u64 * 4, j as u32, (on & (at < capacity)) as u32);
            step += 1;
        }
        total
    }
}

/// Whether place `j` is a ranked candidate with exactly the threshold's key.
#[inline(always)]
fn is_tie(row: Row, threshold: Threshold, j: i32, key: u32) -> bool {
    (j < row.count) & row.ranks(j) & (key == threshold.key)
}

/// Whether place `j` is a candidate that stays: a guard, or a ranked block above the threshold.
#[inline(always)]
fn stays(row: Row, threshold: Threshold, j: i32, key: u32, ties_before: u32) -> bool {
    (j < row.count) & (row.is_guard(j) | (row.ranks(j) & threshold.keeps(key, ties_before)))
}
