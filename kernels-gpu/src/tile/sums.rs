//! Group sums: eight tokens of a group added up in a fixed order, and stored as bf16.
//!
//! The order and the roundings (product, then sum, no fused operation) are the CPU reference's, so that both give the
//! same bits. A token that does not exist takes part as zero, which leaves the sum's bits alone.

use crate::ptx::{cvt, global};
use crate::unroll;

/// Sixteen dimensions of one group.
#[derive(Clone, Copy)]
pub struct GroupSum([f32; 16]);

impl GroupSum {
    /// The sum of no token.
    #[inline(always)]
    pub fn zero() -> Self {
        Self([0.0; 16])
    }

    /// Adds one token: 16 e4m3 codes times `scale`.
    #[inline(always)]
    pub fn add(&mut self, codes: [u32; 4], scale: f32) {
        unroll!(W < 4 {
            let x = cvt::e4m3x4_to_f32(codes[W]);
            self.0[4 * W] += scale * x[0];
            self.0[4 * W + 1] += scale * x[1];
            self.0[4 * W + 2] += scale * x[2];
            self.0[4 * W + 3] += scale * x[3];
        });
    }

    /// The sum.
    #[inline(always)]
    pub fn values(&self) -> [f32; 16] {
        self.0
    }

    /// Stores the sum as 16 bf16 at `ptr`.
    ///
    /// # Safety
    /// 32 writable bytes at `ptr`, 16-byte aligned, which no other thread uses.
    #[inline(always)]
    pub unsafe fn store(&self, ptr: u64) {
        unroll!(H < 2 {
            let mut packed = [0; 4];
            unroll!(W < 4 { packed[W] = cvt::bf16x2(self.0[8 * H + 2 * W], self.0[8 * H + 2 * W + 1]); });
            // SAFETY: the caller's obligation.
            unsafe { global::st_v4(ptr + 16 * H as u64, packed) };
        });
    }
}

/// Sum of the squares of 16 e4m3 codes.
#[inline(always)]
pub fn square_sum(codes: [u32; 4]) -> f32 {
    let mut parts = [0.0; 4];
    unroll!(W < 4 {
        let x = cvt::e4m3x4_to_f32(codes[W]);
        parts[W] = (x[0] * x[0] + x[1] * x[1]) + (x[2] * x[2] + x[3] * x[3]);
    });
    (parts[0] + parts[1]) + (parts[2] + parts[3])
}
