//! Probe of the second half of the selectors: lists of rows whose scores the test makes up.

use super::probe::word;
use crate::abi_probe::{PROBE_ROWS, ProbeParams, REGIONS_AT, RowParams, THREADS};
use crate::layout::select::{Row, Rule};
use crate::ptx::{global, smem, special, warp};
use crate::tile::topk::{DeviceScores, IN_REGISTERS, List, SharedScores, select_row};

/// Lists of `count` rows, a row a warp. `a`: f32 rows of `x` scores; `b`: [`RowParams`] of each row; out: `b`'s lists of `y`
/// entries in `out`, their lengths in `c`. Rows of at most 1,024 scores are selected from shared memory if `z` is 1, all others
/// from device memory. Grid: [`PROBE_ROWS`] rows a block.
///
/// # Safety
/// Launched with [`THREADS`] threads and the probes' shared memory on buffers of these sizes.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_select_rows(p: ProbeParams) {
    let (thread, block) = (special::tid_x(), special::ctaid_x());
    let (lane, index) = (thread % 32, block * PROBE_ROWS + thread / 32);
    if index >= p.count as u32 {
        return;
    }
    // SAFETY: the row is one of `count`; whole warps take the same way.
    unsafe {
        let RowParams { count, first_free, end_free, guards_rank, budget, keep_all_ties, low_bit, .. } =
            *(p.b as *const RowParams).add(index as usize);
        let row = Row { count, first_free, end_free, guards_rank: guards_rank != 0 };
        let rule = Rule { budget, keep_all_ties: keep_all_ties != 0, low_bit: low_bit as u32 };
        let scores = p.a + index as u64 * p.x as u32 as u64 * 4;
        let list = List { at: p.out + index as u64 * p.y as u32 as u64 * 4, capacity: p.y as u32 };
        let kept = if p.z != 0 && count <= IN_REGISTERS {
            let shared = smem::base().offset(REGIONS_AT + thread / 32 * IN_REGISTERS as u32 * 4);
            let mut j = lane;
            while j < IN_REGISTERS as u32 {
                let at = if (j as i32) < count { j } else { 0 };
                let score = if count > 0 { global::ld_u32(scores + at as u64 * 4) } else { 0 };
                smem::st_u32(shared.offset(j * 4), score);
                j += 32;
            }
            warp::sync();
            select_row(SharedScores::<true>(shared), row, rule, list, lane)
        } else {
            select_row(DeviceScores(scores), row, rule, list, lane)
        };
        global::st_u32_if(word(p.c, index), kept, (lane == 0) as u32);
    }
}

const _: () = assert!(THREADS == 32 * PROBE_ROWS);
