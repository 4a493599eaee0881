//! The probe selector in registers: a tile of logits becomes one score a key block and warp.
//!
//! A thread holds two rows (query groups) of a warp's sixteen and, of each, four whole key blocks of the tile's sixteen
//! ([`crate::layout::probe_sel`]). All logarithms are base 2.

use crate::config::probe_sel::LEAST_SCALE;
use crate::layout::probe_sel::{block_of, visible};
use crate::ptx::half::max2;
use crate::ptx::math::{ex2, fma, fmax, fmin, lg2, rcp};
use crate::ptx::{cvt, warp};
use crate::unroll;

/// Stands for a group without a query in [`Groups::seen`], and with the opposite sign for the share of what is masked: far
/// below everything, and finite, so that differences stay numbers.
const NOTHING: f32 = 1e30;
/// Largest exponent of one share before it is normalised: 16 of them still fit f32.
const LARGEST: f32 = 120.0;
/// Bits of a score that hold which of the 16 groups is the strongest.
const GROUP_BITS: u32 = 15;
/// Two f16 minus infinities.
const MASKED: u32 = 0xFC00_FC00;

/// Largest logits: `[set][row]`, two key blocks packed as f16 in each.
pub type Maxima = [[u32; 2]; 2];

/// The thread's two query groups.
#[derive(Clone, Copy)]
pub struct Groups {
    /// Accumulator to logit. Positive.
    scale: [f32; 2],
    /// Log-sum-exp of the block maxima seen so far; [`NOTHING`] for a group without a query.
    seen: [f32; 2],
}

/// Largest logit of each key block.
#[inline(always)]
pub fn maxima(acc: &[u32; 64]) -> Maxima {
    let mut m = [[acc[0], acc[1]], [acc[32], acc[33]]];
    unroll!(J in [1 2 3 4 5 6 7 8 9 10 11 12 13 14 15] {
        m[0][0] = max2(m[0][0], acc[2 * J]);
        m[0][1] = max2(m[0][1], acc[2 * J + 1]);
        m[1][0] = max2(m[1][0], acc[32 + 2 * J]);
        m[1][1] = max2(m[1][1], acc[32 + 2 * J + 1]);
    });
    m
}

/// Largest logit of each key block among the sub-blocks that a row may see: row h sees keys up to `limits[h]`. The tile's
/// first key block is `first_block`. What lies behind the end of a request may be anything, NaN included.
#[inline(always)]
pub fn masked_maxima(acc: &[u32; 64], limits: [i32; 2], first_block: i32, lane: u32) -> Maxima {
    let mut m = [[MASKED; 2]; 2];
    unroll!(S < 2 {
        unroll!(H < 2 {
            let low = visible(limits[H], first_block + block_of(S as u32, 0, lane) as i32);
            let high = visible(limits[H], first_block + block_of(S as u32, 1, lane) as i32);
            unroll!(J < 16 {
                let keep = (if (J as i32) < low { 0xFFFF } else { 0 }) | (if (J as i32) < high { 0xFFFF_0000 } else { 0 });
                m[S][H] = max2(m[S][H], (acc[32 * S + 2 * J + H] & keep) | (MASKED & !keep));
            });
        });
    });
    m
}

impl Groups {
    /// Groups with the given scales (0: no query) times `to_log2`, before the first tile.
    #[inline(always)]
    pub fn new(scales: [f32; 2], to_log2: f32) -> Self {
        let mut groups = Self { scale: [0.0; 2], seen: [0.0; 2] };
        unroll!(H < 2 {
            groups.scale[H] = fmax(scales[H], LEAST_SCALE) * to_log2;
            groups.seen[H] = if scales[H] > 0.0 { 0.0 } else { NOTHING };
        });
        groups
    }

    /// What the groups have seen.
    #[inline(always)]
    pub fn seen(&self) -> [f32; 2] {
        self.seen
    }

    /// Takes in a tile, the first one where `FIRST`, and gives the lane's score: of the key block that [`Self::block`] names, over
    /// the warp's sixteen groups. It is the 3-norm of their shares of what has been seen up to here, plus all that the
    /// strongest group has seen; which group that is stands in the lowest four bits ([`corrected`] takes it off again).
    ///
    /// # Safety
    /// Called by whole warps, converged (shuffles).
    #[inline(always)]
    pub unsafe fn fold<const FIRST: bool>(&mut self, m: &Maxima, lane: u32) -> f32 {
        let (mut strongest, mut cubes) = ([[0.0; 2]; 2], [[0.0; 2]; 2]);
        unroll!(H < 2 {
            let ((a, b), (c, d)) = (cvt::f16x2_to_f32(m[0][H]), cvt::f16x2_to_f32(m[1][H]));
            let mut x = [[a, b], [c, d]];
            let scale = self.scale[H];
            let mut before = self.seen[H];
            let mut carry = 1.0;
            if FIRST {
                // SAFETY: forwarded.
                let largest = unsafe { quad_max(fmax(fmax(a, b), fmax(c, d))) } * scale;
                let some = before == 0.0;
                before = if some { largest } else { before };
                carry = if some { 0.0 } else { 1.0 };
            }
            let mut share = [[0.0; 2]; 2];
            unroll!(S < 2 { unroll!(E < 2 {
                x[S][E] = fma(x[S][E], scale, -before);
                share[S][E] = ex2(fmin(x[S][E], LARGEST));
            }); });
            // SAFETY: forwarded.
            let sum = carry + unsafe { quad_sum((share[0][0] + share[0][1]) + (share[1][0] + share[1][1])) };
            let (gain, inverse) = (lg2(sum), rcp(sum));
            self.seen[H] = before + gain;
            let group = lane / 4 + 8 * H as u32;
            unroll!(S < 2 { unroll!(E < 2 {
                // Finite, or the group's bits would make a NaN of an infinity.
                let log = if FIRST { fmax(x[S][E] - gain, -NOTHING) } else { x[S][E] - gain };
                let (log, normal) = (tagged(log, group), share[S][E] * inverse);
                strongest[S][E] = if H == 0 { log } else { fmax(strongest[S][E], log) };
                cubes[S][E] = if H == 0 { normal * normal * normal } else { fma(normal * normal, normal, cubes[S][E]) };
            }); });
        });
        // SAFETY: forwarded. Of its four key blocks a lane keeps one: which half of them its bits 4 and 3 say.
        unsafe {
            let (strongest, cubes) = (halve_max(strongest, lane), halve_sum(cubes, lane));
            let strongest = fmax(strongest, warp::shfl_bfly_f32(strongest, 4));
            let cubes = cubes + warp::shfl_bfly_f32(cubes, 4);
            let group = strongest.to_bits() & GROUP_BITS;
            let holder = group % 8 * 4;
            let low = warp::shfl_idx_u32(self.seen[0].to_bits(), holder);
            let high = warp::shfl_idx_u32(self.seen[1].to_bits(), holder);
            let seen = f32::from_bits(if group < 8 { low } else { high });
            // Cubes of shares below 2^-42 are 0; the strongest alone is what is left of them.
            tagged(fmax(strongest, lg2(cubes) * (1.0 / 3.0)) + seen, group)
        }
    }

    /// Key block of a tile (0..16) that the score of lane `lane` belongs to; lanes 4 apart have the same.
    #[inline(always)]
    pub fn block(lane: u32) -> u32 {
        block_of(lane / 16, lane / 8 % 2, lane)
    }
}

/// A score less what its strongest group has seen by the end: `seen` gives it for a group of the sixteen.
#[inline(always)]
pub fn corrected(score: f32, seen: impl Fn(u32) -> f32) -> f32 {
    score - seen(score.to_bits() & GROUP_BITS)
}

/// The largest of the four lanes of a quad.
///
/// # Safety
/// Called by whole warps, converged.
#[inline(always)]
unsafe fn quad_max(x: f32) -> f32 {
    // SAFETY: forwarded from the caller.
    unsafe {
        let x = fmax(x, warp::shfl_bfly_f32(x, 1));
        fmax(x, warp::shfl_bfly_f32(x, 2))
    }
}

/// The sum over the four lanes of a quad.
///
/// # Safety
/// Called by whole warps, converged.
#[inline(always)]
unsafe fn quad_sum(x: f32) -> f32 {
    // SAFETY: forwarded from the caller.
    unsafe {
        let x = x + warp::shfl_bfly_f32(x, 1);
        x + warp::shfl_bfly_f32(x, 2)
    }
}

#[inline(always)]
fn tagged(x: f32, group: u32) -> f32 {
    f32::from_bits((x.to_bits() & !GROUP_BITS) | group)
}

/// # Safety
/// Called by whole warps, converged.
#[inline(always)]
unsafe fn halve_max(x: [[f32; 2]; 2], lane: u32) -> f32 {
    let [upper, odd] = [lane & 16 != 0, lane & 8 != 0];
    // SAFETY: forwarded.
    unsafe {
        let mut y = [0.0; 2];
        unroll!(E < 2 { y[E] = fmax(kept(x[0][E], x[1][E], upper), warp::shfl_bfly_f32(kept(x[1][E], x[0][E], upper), 16)); });
        fmax(kept(y[0], y[1], odd), warp::shfl_bfly_f32(kept(y[1], y[0], odd), 8))
    }
}

/// # Safety
/// Called by whole warps, converged.
#[inline(always)]
unsafe fn halve_sum(x: [[f32; 2]; 2], lane: u32) -> f32 {
    let [upper, odd] = [lane & 16 != 0, lane & 8 != 0];
    // SAFETY: forwarded.
    unsafe {
        let mut y = [0.0; 2];
        unroll!(E < 2 { y[E] = kept(x[0][E], x[1][E], upper) + warp::shfl_bfly_f32(kept(x[1][E], x[0][E], upper), 16); });
        kept(y[0], y[1], odd) + warp::shfl_bfly_f32(kept(y[1], y[0], odd), 8)
    }
}

#[inline(always)]
fn kept(low: f32, high: f32, upper: bool) -> f32 {
    if upper { high } else { low }
}
