//! Online softmax in registers, on packed f16. Each thread holds two rows of a 64-row tile (lane/4 and lane/4 + 8 of its
//! warp), each row spread over the four lanes of a quad.
//!
//! P = 2^t with t = score * scale + bias, so that a row's largest P is 2^6 when the bias is set; e4m3 holds 448 = 2^8.8. While later
//! maxima stay inside that headroom the bias stays, and with it every older sum and output.

use super::mma::{Probabilities, Scores};
use crate::layout::visible_pairs;
use crate::ptx::{
    cvt::{f16x2, f16x2_to_f32},
    half::{any_gt2, e4m3x4, ex2_2, fma2, fma2_sat, high2, highs, low2, lows, max2, min2, mul2, select_gt2, sub2},
    int::prmt,
    math::ex2,
    smem,
    warp::{any, shfl_bfly_u32},
};
use crate::unroll;

/// A constant in both halves.
const fn both(bits: u32) -> u32 {
    bits | bits << 16
}
/// 2^6 is what a row's P is scaled to when its bias is set: 6. With 7 a third more steps have to move a bias; with 5 the error on
/// the captures is over the bound. A whole power, because e4m3 has those exactly, and with them the heaviest key of a row.
const TARGET: u32 = both(0x4600);
/// Logits up to 8.85 fit e4m3: what lies above 448 = 2^8.807 becomes 448, at most 3 % less, no worse than a rounding.
const HIGHEST: u32 = both(0x486d);
/// The lowest score that counts as a maximum, -60,000: 65,504 would be the f16 limit.
const LOWEST: u32 = both(0xfb53);
/// Bounds of the bias, +-60,000: finite, so that no infinity meets its opposite.
const BIAS_MAX: u32 = both(0x7b53);
/// Registers of a half tile whose exponentials are polynomials.
const POLYNOMIAL: u32 = 0b0101_0010_0101_0010;
/// Their argument is (logit + 11) / 32, so that the multiply-add that makes it can clamp it below: 1 / 32, 11 / 32 and 32.
const SCALE: u32 = both(0x2800);
const OFFSET: u32 = both(0x3580);
const SPAN: u32 = both(0x5000);
/// 11; a bias is rounded to what this can be added to without rounding.
const LOWER: u32 = both(0x4980);
/// 1536 - 11.
const SHIFT: u32 = both(0x65f5);
/// The parabola nearest to 2^f (relatively) for f from -1/2 to 1/2.
const C0: u32 = both(0x3c00);
const C1: u32 = both(0x39a1);
const C2: u32 = both(0x33a1);
const MINUS_INFINITY: u32 = 0xfc00;
const SIGNS: u32 = 0x8000_8000;

/// Scale and bias of two rows.
pub struct OnlineSoftmax {
    /// Score to base-2 logit, f16 of the first and the second row. Positive.
    scale: u32,
    /// Added to the base-2 logit, f16 of the first and the second row.
    bias: u32,
    /// Both of them, as [`polynomial`] wants its argument: (logit + 11) / 32.
    scale32: u32,
    bias32: u32,
}

impl OnlineSoftmax {
    /// An empty row pair. `scale` is clamped to what f16 holds: not 0, because 0 times the minus infinity of a masked column
    /// would be NaN.
    #[inline(always)]
    pub fn new(scale: [f32; 2]) -> Self {
        let scale = f16x2(scale[0], scale[1]);
        Self { scale, bias: 0, scale32: mul2(scale, SCALE), bias32: OFFSET }
    }

    /// Sets the bias by a row's first 128 scores. Nothing is summed yet that a new bias would have to rescale.
    ///
    /// # Safety
    /// Called by whole warps, converged.
    #[inline(always)]
    pub unsafe fn start(&mut self, first: &Scores, second: &Scores) {
        // SAFETY: forwarded from the caller.
        let highest = unsafe { quad_max(max2(lane_max(first), lane_max(second))) };
        self.set(self.bias_for(highest));
    }

    /// Sets the bias anew for rows whose maximum has outgrown the headroom. Returns the old bias, and whether any row of the
    /// warp has a new one.
    ///
    /// # Safety
    /// Called by whole warps, converged.
    #[inline(always)]
    pub unsafe fn advance(&mut self, s: &Scores) -> (u32, bool) {
        let old = self.bias;
        let own = lane_max(s);
        // SAFETY: forwarded from the caller.
        unsafe {
            // No exchange among the lanes as long as none has anything to say.
            let moved = any(any_gt2(fma2(own, self.scale, self.bias), HIGHEST));
            if moved {
                let highest = quad_max(own);
                let logit = fma2(highest, self.scale, self.bias);
                // All rows, not only those that must: what is largest so far then lies on a code of e4m3, which is worth more than
                // what a lower P loses, and the next warp that has to stop does so later.
                self.set(select_gt2(logit, TARGET, self.bias_for(highest), self.bias));
            }
            (old, moved)
        }
    }

    /// The bias that brings a row's largest P to 2^6.
    #[inline(always)]
    fn bias_for(&self, highest: u32) -> u32 {
        let bias = min2(max2(fma2(highest ^ SIGNS, self.scale, TARGET), BIAS_MAX ^ SIGNS), BIAS_MAX);
        sub2(sub2(bias, LOWER ^ SIGNS), LOWER)
    }

    #[inline(always)]
    fn set(&mut self, bias: u32) {
        self.bias = bias;
        self.bias32 = fma2(bias, SCALE, OFFSET);
    }

    /// Turns scores into P (not yet rounded to e4m3), in place. Three in eight of them by polynomial, in the issue slots that
    /// the other exponentials leave: those come out of their unit one in eight clocks.
    #[inline(always)]
    pub fn exponentiate(&self, s: &mut Scores) {
        let (ka, kb) = (low2(self.scale), high2(self.scale));
        let (na, nb) = (low2(self.bias), high2(self.bias));
        let (pa, pb) = (low2(self.scale32), high2(self.scale32));
        let (qa, qb) = (low2(self.bias32), high2(self.bias32));
        unroll!(I < 8 {
            if POLYNOMIAL >> (2 * I) & 1 != 0 {
                s.0[2 * I] = polynomial(fma2_sat(s.0[2 * I], pa, qa));
            } else {
                s.0[2 * I] = ex2_2(fma2(s.0[2 * I], ka, na));
            }
            if POLYNOMIAL >> (2 * I + 1) & 1 != 0 {
                s.0[2 * I + 1] = polynomial(fma2_sat(s.0[2 * I + 1], pb, qb));
            } else {
                s.0[2 * I + 1] = ex2_2(fma2(s.0[2 * I + 1], kb, nb));
            }
        });
    }

    /// Parts the products issued before this from the exponentials that follow: ptxas would spread both over each other, and
    /// the tensor core would wait for the last product. It cannot know that `never` is 0 and the scales stay what they are.
    ///
    /// # Safety
    /// `never` is 0, the same in all threads.
    #[inline(always)]
    pub unsafe fn part(&mut self, never: u32) {
        if never != 0 {
            // SAFETY: does not happen. A loop, because ptxas would make predicated instructions of anything shorter.
            unsafe {
                while smem::ld_volatile_u32(smem::base()) != never {}
                self.bias = smem::ld_volatile_u32(smem::base());
                self.bias32 = smem::ld_volatile_u32(smem::base());
            }
        }
    }

    /// Factors that bring sums and outputs made under the bias `old` to the present one.
    #[inline(always)]
    pub fn factors(&self, old: u32) -> [f32; 2] {
        let ((na, nb), (oa, ob)) = (f16x2_to_f32(self.bias), f16x2_to_f32(old));
        [ex2(na - oa), ex2(nb - ob)]
    }

    /// The bias as f32.
    #[inline(always)]
    pub fn bias(&self) -> [f32; 2] {
        let (a, b) = f16x2_to_f32(self.bias);
        [a, b]
    }
}

/// Has P computed before this point, in a block of its own: ptxas otherwise sinks the exponentials past the wait that they
/// should fill, next to their use. It cannot know that `never` is 0.
///
/// # Safety
/// `never` is 0, the same in all threads.
#[inline(always)]
pub unsafe fn settle(s: &Scores, never: u32) {
    if never != 0 {
        // SAFETY: does not happen.
        unsafe {
            unroll!(I < 4 {
                smem::st_v4(smem::base().offset(16 * I as u32), [s.0[4 * I], s.0[4 * I + 1], s.0[4 * I + 2], s.0[4 * I + 3]]);
            });
            while smem::ld_volatile_u32(smem::base()) != never {}
        }
    }
}

/// 2^(32 y - 11) of both halves for y from 0 to 1, relative error under 2^-8: of y's rounding and of a parabola for the
/// fraction. What lies below 2^-10 is 0 in e4m3.
#[inline(always)]
fn polynomial(y: u32) -> u32 {
    // n + 1536, where n is the nearest integer to the exponent: f16 has steps of 1 there.
    let shifted = fma2(y, SPAN, SHIFT);
    let fraction = fma2(y, SPAN, sub2(SHIFT, shifted));
    let power = fma2(fma2(fraction, C2, C1), fraction, C0);
    // n into the exponent field. Adding a negative n to the low half carries into the high half: one unit in its last place.
    (shifted & 0x003f_003f).wrapping_mul(1024).wrapping_add(power)
}

/// Largest score among the lane's own of each row: f16 of the first and the second.
#[inline(always)]
fn lane_max(s: &Scores) -> u32 {
    let mut m = [max2(s.0[0], s.0[2]), max2(s.0[1], s.0[3])];
    unroll!(I in [2 3 4 5 6 7] {
        m[0] = max2(m[0], s.0[2 * I]);
        m[1] = max2(m[1], s.0[2 * I + 1]);
    });
    max2(max2(lows(m[0], m[1]), highs(m[0], m[1])), LOWEST)
}

/// # Safety
/// Called by whole warps, converged.
#[inline(always)]
unsafe fn quad_max(x: u32) -> u32 {
    // SAFETY: forwarded from the caller.
    unsafe {
        let x = max2(x, shfl_bfly_u32(x, 1));
        max2(x, shfl_bfly_u32(x, 2))
    }
}

/// Minus infinity for every column past the row's last visible one (`limit`, relative to the half; negative: none). Costs
/// nothing but a vote where no row of the warp ends inside the half.
///
/// # Safety
/// Called by whole warps, converged.
#[inline(always)]
pub unsafe fn mask_columns(s: &mut Scores, lane: u32, limit: [i32; 2]) {
    const LAST: i32 = 63;
    // SAFETY: forwarded from the caller.
    if unsafe { any(((limit[0] < LAST) | (limit[1] < LAST)) as u32) } {
        let pairs = visible_pairs(lane, limit);
        unroll!(I < 8 {
            // Bit I of every byte becomes its sign, and a sign both bytes of a half.
            let signs = pairs << (7 - I);
            s.0[2 * I] = masked(s.0[2 * I], prmt(signs, 0, 0x9988));
            s.0[2 * I + 1] = masked(s.0[2 * I + 1], prmt(signs, 0, 0xbbaa));
        });
    }
}

/// `pair` where `visible` is ones, minus infinity where it is zeros.
#[inline(always)]
fn masked(pair: u32, visible: u32) -> u32 {
    (pair & visible) | (both(MINUS_INFINITY) & !visible)
}

/// Packs P to e4m3 A fragments; no shuffles, because V tiles hold their tokens in `layout::V_TOKEN_ORDER`.
#[inline(always)]
pub fn pack(s: &Scores, p: &mut Probabilities) {
    unroll!(C < 2 {
        p.0[C * 4] = e4m3x4(s.0[C * 8], s.0[C * 8 + 2]);
        p.0[C * 4 + 1] = e4m3x4(s.0[C * 8 + 1], s.0[C * 8 + 3]);
        p.0[C * 4 + 2] = e4m3x4(s.0[C * 8 + 4], s.0[C * 8 + 6]);
        p.0[C * 4 + 3] = e4m3x4(s.0[C * 8 + 5], s.0[C * 8 + 7]);
    });
}
