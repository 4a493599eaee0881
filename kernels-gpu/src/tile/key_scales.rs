//! Scales of single keys, multiplied into the columns of half a tile of scores.

use super::mma::Scores;
use crate::ptx::cvt::{f16x2, f16x2_to_f32};
use crate::ptx::math::{fmax, fmin};
use crate::ptx::{SmemAddr, smem};
use crate::unroll;

/// What a logit is held to: finite in f16.
const LARGEST: f32 = 60_000.0;

/// Makes base-2 logits of scores: times `rows` of the thread's two rows, times f32 number c of the 64 at `scales` in column c.
///
/// # Safety
/// The scales are complete in shared memory, 8-byte aligned.
#[inline(always)]
pub unsafe fn scale_columns(s: &mut Scores, rows: [f32; 2], scales: SmemAddr, lane: u32) {
    // Registers 2 I and 2 I + 1 are columns 8 I + 2 (lane % 4) and the next of the thread's two rows.
    let scales = scales.offset(lane % 4 * 8);
    unroll!(I < 8 {
        // SAFETY: two of the 64 scales.
        let columns = unsafe { smem::ld_v2_f32(scales.offset(32 * I as u32)) };
        s.0[2 * I] = scaled(s.0[2 * I], rows[0], columns);
        s.0[2 * I + 1] = scaled(s.0[2 * I + 1], rows[1], columns);
    });
}

/// A pair of neighbouring columns of one row.
#[inline(always)]
fn scaled(pair: u32, row: f32, columns: [f32; 2]) -> u32 {
    let (even, odd) = f16x2_to_f32(pair);
    let held = |x: f32| fmax(fmin(x, LARGEST), -LARGEST);
    f16x2(held(even * (row * columns[0])), held(odd * (row * columns[1])))
}
