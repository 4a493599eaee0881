//! `select_topk`: which key blocks each query block attends to, as an ascending list.
//!
//! One block takes one query block of one head. A radix select over order-preserving keys finds the score at the
//! budget's edge; then each warp walks an eighth of the row three times: counting ties, counting what stays, and writing
//! it at its place. Work per row is 4 + 3 readings of the row, whatever the budget.

use crate::abi::{QueryBlock, Request, TopkParams};
use crate::layout::select::{Row, Rule};
use crate::ptx::{global, special};
use crate::tile::topk::{DeviceScores, List, select_row};

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
    if thread >= 32 {
        return;
    }
    let index = special::ctaid_x() as i64;
    let place = special::ctaid_y() as i64 * p.total_qb as i64 + index;
    // SAFETY: the grid is as large as the arrays; the warp takes the same way through here.
    unsafe {
        let block = *(p.query_blocks as *const QueryBlock).offset(index as isize);
        let request = *(p.requests as *const Request).offset(block.request as isize);
        let row = Row::new(block.block, request.kb_len, p.causal != 0, p.sink, p.window, p.guards_on_top != 0);
        let scores = DeviceScores(p.scores + (place * p.score_stride as i64) as u64 * 4);
        let rule = Rule { budget: block.budget, keep_all_ties: p.keep_all_ties != 0, low_bit: 0 };
        let list = List { at: p.lists + (place * p.list_stride as i64) as u64 * 4, capacity: p.list_stride as u32 };
        let kept = select_row(scores, row, rule, list, thread);
        global::st_u32_if(p.counts + place as u64 * 4, kept, (thread == 0) as u32);
    }
}
