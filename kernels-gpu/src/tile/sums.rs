//! Group sums: eight tokens of a group added up in a fixed order, and stored as bf16.
//!
//! Order and roundings (one a token: the sum is fused with the product) are the CPU reference's, so that both give the same bits. A
//! token that does not exist takes part as zero, which leaves the sum alone.

use crate::ptx::{cvt, math};
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
            self.0[4 * W] = math::fma_rn(scale, x[0], self.0[4 * W]);
            self.0[4 * W + 1] = math::fma_rn(scale, x[1], self.0[4 * W + 1]);
            self.0[4 * W + 2] = math::fma_rn(scale, x[2], self.0[4 * W + 2]);
            self.0[4 * W + 3] = math::fma_rn(scale, x[3], self.0[4 * W + 3]);
        });
    }

    /// The sum.
    #[inline(always)]
    pub fn values(&self) -> [f32; 16] {
        self.0
    }
}
