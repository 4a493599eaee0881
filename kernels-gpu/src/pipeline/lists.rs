//! The last part of a strip of `select_stem`: its rows' block lists.

use crate::abi::SelectParams;
use crate::config::select::{CONSUMER_WARPS, ROWS, SPAN};
use crate::layout::select::Row;
use crate::pipeline::scores::Shared;
use crate::ptx::{global, math, special, warp};
use crate::tile::strip::{Strip, noted};
use crate::tile::topk::{DeviceScores, List, Task, select_row, select_rows};
use crate::unroll;

/// Address of the scores of row `r` in device memory, if they go there.
#[inline(always)]
pub fn scores_at(p: &SelectParams, strip: &Strip, r: u32) -> u64 {
    let row = if p.scores_by_block != 0 {
        special::ctaid_x() as u64 * ROWS as u64 + r as u64
    } else {
        strip.head as u32 as u64 * p.total_qb as u32 as u64 + (strip.first as u32 + r) as u64
    };
    p.scores + row * p.score_stride as u32 as u64 * 4
}

/// Decides what each row of the strip keeps: rows w and w + 16 of warp w, together where their scores lie in shared memory.
///
/// # Safety
/// All consumer threads call it, converged in warps; each warp has noted its rows, whose scores are complete.
#[inline(always)]
pub unsafe fn write_lists(p: &SelectParams, shared: Shared, strip: &Strip) {
    const { assert!(ROWS == 2 * CONSUMER_WARPS) };
    let thread = special::tid_x_again();
    let (mut r, lane) = (thread / 32, thread % 32);
    let rows = strip.rows as u32;
    if r >= rows {
        return;
    }
    // Multiplied again for every row rather than kept.
    let place = |r: u32| strip.head as u32 as u64 * math::here(p.total_qb) as u32 as u64 + (strip.first as u32 + r) as u64;
    let list = |r: u32| List { at: p.lists + place(r) * p.list_stride as u32 as u64 * 4, capacity: p.list_stride as u32 };
    // SAFETY: rows of the strip, whose lists and counts lie inside their arrays; of what is past it nothing is written. Scores in
    // device memory were stored by the same warp.
    unsafe {
        if strip.keys <= SPAN as i32 {
            let task = |i: u32| {
                let r = r + i * CONSUMER_WARPS;
                let (row, rule) = noted(p, shared.notes(), r);
                let row = if r < rows { row } else { Row { count: 0, first_free: 0, end_free: 0, ..row } };
                Task { scores: shared.scores(r), row, rule, list: list(r) }
            };
            let kept = select_rows::<_, 2>(task, lane);
            unroll!(I < 2 {
                let r = r + I as u32 * CONSUMER_WARPS;
                global::st_u32_if(p.counts + place(r) * 4, kept[I], ((lane == 0) & (r < rows)) as u32);
            });
            return;
        }
        while r < rows {
            let (row, rule) = noted(p, shared.notes(), r);
            warp::sync();
            let kept = select_row(DeviceScores(scores_at(p, strip, r)), row, rule, list(r), lane);
            global::st_u32_if(p.counts + place(r) * 4, kept, (lane == 0) as u32);
            r += CONSUMER_WARPS;
        }
    }
}
