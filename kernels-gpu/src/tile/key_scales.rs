//! Scales of single keys, multiplied into the columns of a tile of scores.

use super::mma::Scores;
use crate::ptx::{SmemAddr, smem};
use crate::unroll;

/// Multiplies column c of the scores by f32 number c of the 128 at `scales`.
///
/// # Safety
/// The scales are complete in shared memory, 8-byte aligned.
#[inline(always)]
pub unsafe fn scale_columns(s: &mut Scores, scales: SmemAddr, lane: u32) {
    // Registers 4 I and 4 I + 2 are column 8 I + 2 (lane % 4) of the thread's two rows, the odd ones the column after it.
    let scales = scales.offset(lane % 4 * 8);
    unroll!(I < 16 {
        // SAFETY: two of the 128 scales.
        let [even, odd] = unsafe { smem::ld_v2_f32(scales.offset(32 * I as u32)) };
        s.0[4 * I] *= even;
        s.0[4 * I + 1] *= odd;
        s.0[4 * I + 2] *= even;
        s.0[4 * I + 3] *= odd;
    });
}
