//! Rows of Q brought to a size at which no score can leave f16.
//!
//! |q . k| <= 448 * sum |q_d|, so a row whose absolute codes sum to at most 146 keeps every score under 65,504. Rows are
//! multiplied by a power of two: exact, but for codes that become subnormal, 2^-13 of such a row's sum or less each.

use crate::config::HEAD_DIM;
use crate::ptx::cvt::{e4m3x2_to_f16x2, f16x2_to_f32};
use crate::ptx::half::{add_abs2, e4m3x4, mul2};
use crate::ptx::{SmemAddr, cvt::f16x2, math, smem};
use crate::unroll;

/// 65,504 / 448, less what adding 128 codes in f16 may lose.
const LARGEST_SUM: f32 = 137.0;
const EXPONENT: u32 = 0x7f80_0000;

/// Shrinks row `row` of the swizzled tile at `tile` in place; returns what its scores must be multiplied by to undo it.
///
/// # Safety
/// The row is complete in shared memory and nobody else uses it; a proxy fence and a barrier follow before wgmma does.
#[inline(always)]
pub unsafe fn shrink_row(tile: SmemAddr, row: u32) -> f32 {
    let at = tile.offset(row * HEAD_DIM as u32);
    let chunk = |c: u32| at.offset(((c ^ row) % 8) * 16);
    // SAFETY: forwarded from the caller; eight chunks of 16 bytes make the row.
    unsafe {
        let mut sum = 0;
        let mut c = 0;
        while c < 8 {
            let codes = smem::ld_v4(chunk(c));
            unroll!(I < 4 {
                sum = add_abs2(e4m3x2_to_f16x2(codes[I] & 0xffff), sum);
                sum = add_abs2(e4m3x2_to_f16x2(codes[I] >> 16), sum);
            });
            c += 1;
        }
        let (even, odd) = f16x2_to_f32(sum);
        // The power of two at or below the quotient; never more than 1 (also where the row is 0 or not a number).
        let factor = f32::from_bits((LARGEST_SUM * math::rcp(even + odd)).to_bits() & EXPONENT);
        let factor = if factor < 1.0 { factor } else { 1.0 };
        let both = f16x2(factor, factor);
        let mut c = 0;
        while c < 8 {
            let codes = smem::ld_v4(chunk(c));
            let mut small = [0; 4];
            unroll!(I < 4 {
                let (low, high) = (e4m3x2_to_f16x2(codes[I] & 0xffff), e4m3x2_to_f16x2(codes[I] >> 16));
                small[I] = e4m3x4(mul2(low, both), mul2(high, both));
            });
            smem::st_v4(chunk(c), small);
            c += 1;
        }
        // 1 / factor, exactly.
        f32::from_bits((254 << 23) - factor.to_bits())
    }
}
