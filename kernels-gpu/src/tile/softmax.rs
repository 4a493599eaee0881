//! Online softmax in registers. Each thread holds two rows of a 64-row tile (lane/4 and lane/4 + 8 of its warp), each
//! row spread over the four lanes of a quad.

use super::mma::{Probabilities, Scores};
use crate::config::P_SCALE_LOG2;
use crate::ptx::{
    cvt::e4m3x4,
    math::{self, ex2, fma, fmax},
    warp::shfl_bfly_f32,
};
use crate::unroll;

/// Stands for "no maximum yet". Finite, so that a row whose keys are all masked gives P = 0 and not NaN.
const NO_MAXIMUM: f32 = -1.0e30;

/// Running maximum (of raw scores) and row sum (this thread's share of it) of two rows.
pub struct OnlineSoftmax {
    /// Largest raw score so far.
    pub max: [f32; 2],
    /// Sum of 2^8 * P over this thread's columns, the even and the odd ones of each row apart: with two warps a scheduler
    /// the latency of one 32-deep chain of adds would show.
    sum: [f32; 4],
    /// Raw score to base-2 logit: q_scale * k_scale * softmax scale * log2 e. Positive.
    pub scale: [f32; 2],
}

impl OnlineSoftmax {
    /// An empty row pair.
    #[inline(always)]
    pub fn new(scale: [f32; 2]) -> Self {
        Self { max: [NO_MAXIMUM; 2], sum: [0.0; 4], scale }
    }

    /// Turns raw scores into 2^8 * P against the new maximum; returns the factors that bring older sums and outputs to it.
    ///
    /// # Safety
    /// Called by whole warps, converged (shuffles).
    #[inline(always)]
    pub unsafe fn step(&mut self, s: &mut Scores) -> [f32; 2] {
        // SAFETY: forwarded from the caller.
        let new = unsafe { self.row_max(s) };
        let factor = [ex2((self.max[0] - new[0]) * self.scale[0]), ex2((self.max[1] - new[1]) * self.scale[1])];
        self.max = new;
        let (ka, kb) = (self.scale[0], self.scale[1]);
        let (na, nb) = (fma(-new[0], ka, P_SCALE_LOG2), fma(-new[1], kb, P_SCALE_LOG2));
        let old = self.sum;
        let sum = &mut self.sum;
        *sum = [old[0] * factor[0], old[1] * factor[0], old[2] * factor[1], old[3] * factor[1]];
        unroll!(I < 16 {
            s.0[4 * I] = ex2(fma(s.0[4 * I], ka, na));
            s.0[4 * I + 1] = ex2(fma(s.0[4 * I + 1], ka, na));
            s.0[4 * I + 2] = ex2(fma(s.0[4 * I + 2], kb, nb));
            s.0[4 * I + 3] = ex2(fma(s.0[4 * I + 3], kb, nb));
            sum[0] += s.0[4 * I];
            sum[1] += s.0[4 * I + 1];
            sum[2] += s.0[4 * I + 2];
            sum[3] += s.0[4 * I + 3];
        });
        factor
    }

    /// Has the last step finished here: see [`math::pin`].
    #[inline(always)]
    pub fn pin(&mut self) {
        unroll!(I < 4 { math::pin(&mut self.sum[I]); });
    }

    /// # Safety
    /// Called by whole warps, converged.
    #[inline(always)]
    unsafe fn row_max(&self, s: &Scores) -> [f32; 2] {
        let mut m = [self.max[0], s.0[1], self.max[1], s.0[3]];
        unroll!(I < 16 {
            m[0] = fmax(m[0], s.0[4 * I]);
            m[1] = fmax(m[1], s.0[4 * I + 1]);
            m[2] = fmax(m[2], s.0[4 * I + 2]);
            m[3] = fmax(m[3], s.0[4 * I + 3]);
        });
        // SAFETY: forwarded from the caller.
        unsafe { [quad_max(fmax(m[0], m[1])), quad_max(fmax(m[2], m[3]))] }
    }

    /// Row sums over the whole row.
    ///
    /// # Safety
    /// Called by whole warps, converged.
    #[inline(always)]
    pub unsafe fn total(&self) -> [f32; 2] {
        // SAFETY: forwarded from the caller.
        unsafe { [quad_sum(self.sum[0] + self.sum[1]), quad_sum(self.sum[2] + self.sum[3])] }
    }
}

/// The largest of the four lanes of a quad.
///
/// # Safety
/// Called by whole warps, converged.
#[inline(always)]
pub unsafe fn quad_max(x: f32) -> f32 {
    // SAFETY: forwarded from the caller.
    unsafe {
        let x = fmax(x, shfl_bfly_f32(x, 1));
        fmax(x, shfl_bfly_f32(x, 2))
    }
}

/// The sum over the four lanes of a quad.
///
/// # Safety
/// Called by whole warps, converged.
#[inline(always)]
pub unsafe fn quad_sum(x: f32) -> f32 {
    // SAFETY: forwarded from the caller.
    unsafe {
        let x = x + shfl_bfly_f32(x, 1);
        x + shfl_bfly_f32(x, 2)
    }
}

/// Minus infinity for every column past the row's last visible one (`limit`, relative to the tile; negative: none).
#[inline(always)]
pub fn mask_columns(s: &mut Scores, lane: u32, limit: [i32; 2]) {
    // Column of register 4 I + c is 8 I + 2 (lane % 4) + c: move the lane's share to the other side once.
    let first = (lane % 4 * 2) as i32;
    let (a, b) = (limit[0] - first, limit[1] - first);
    unroll!(I < 16 {
        const COL: i32 = 8 * I as i32;
        if COL > a { s.0[4 * I] = f32::NEG_INFINITY; }
        if COL + 1 > a { s.0[4 * I + 1] = f32::NEG_INFINITY; }
        if COL > b { s.0[4 * I + 2] = f32::NEG_INFINITY; }
        if COL + 1 > b { s.0[4 * I + 3] = f32::NEG_INFINITY; }
    });
}

/// Packs 2^8 * P to e4m3 A fragments; no shuffles, because V tiles hold their tokens in `layout::V_TOKEN_ORDER`.
#[inline(always)]
pub fn pack(s: &Scores, p: &mut Probabilities) {
    unroll!(C < 4 {
        p.0[C * 4] = e4m3x4(s.0[C * 16], s.0[C * 16 + 1], s.0[C * 16 + 4], s.0[C * 16 + 5]);
        p.0[C * 4 + 1] = e4m3x4(s.0[C * 16 + 2], s.0[C * 16 + 3], s.0[C * 16 + 6], s.0[C * 16 + 7]);
        p.0[C * 4 + 2] = e4m3x4(s.0[C * 16 + 8], s.0[C * 16 + 9], s.0[C * 16 + 12], s.0[C * 16 + 13]);
        p.0[C * 4 + 3] = e4m3x4(s.0[C * 16 + 10], s.0[C * 16 + 11], s.0[C * 16 + 14], s.0[C * 16 + 15]);
    });
}
