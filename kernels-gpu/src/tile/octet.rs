//! Sums of an octet: eight tokens of each of eight query blocks, added up on the tensor core and rounded to bf16.
//!
//! Which element lies where is in [`crate::layout::octet`]. The codes, exact in f16, are the left operand as they come; the right one
//! is the scales, each as the sum of two f16 of 11 bits, after a power of two that takes the block's largest to
//! 2^14 .. 2^15. Low parts are added first. A sum is then within 2^-19 of its terms' magnitudes (and within 2^-39 of the block's
//! largest scale for each unit of code, where a scale has no low part to speak of) of the true one, and rounded once.
//!
//! A block's sums do not depend on its place in the octet, nor on the other blocks: in its columns their products are zeros of
//! either sign, which neither move the sum nor the largest term that the others are aligned to; and every block has the same
//! tokens at the same places of a product, a product for itself. Only a NaN code times zero is no zero: it spoils the columns of all
//! four blocks that share accumulators. Where any sum is NaN, the blocks are summed once more one by one.

use crate::layout::octet::{BLOCK_BYTES, PARTS, code_offsets, is_block, place, scale_source, sum_source};
use crate::ptx::{SmemAddr, cvt, half, int, math, matrix, smem, special, warp};
use crate::unroll;

/// Scales of an octet: of the two tokens that the lane was given, with what undoes the normalisation of their block.
#[derive(Clone, Copy)]
pub struct Weights {
    /// High parts, packed f16.
    high: u32,
    /// Low parts, packed f16.
    low: u32,
    /// The power of two that undoes, bf16 twice.
    undo: u32,
}

/// What a lane multiplies by in one four of blocks.
#[derive(Clone, Copy)]
struct Four {
    /// High parts of its two tokens of one of the blocks, then low parts, each in the half of its column's parity.
    scales: [u32; 4],
    /// The power of two for the lane's sums, bf16 twice.
    undo: u32,
}

impl Weights {
    /// From the scales of tokens t and t + 4 of block b in lane 4 b + t. A token that does not exist has scale 0.
    ///
    /// # Safety
    /// Called by a whole warp, converged.
    #[inline(always)]
    pub unsafe fn new(scales: [f32; 2]) -> Self {
        let [a, b] = scales.map(|x| x.to_bits() & 0x7fff_ffff);
        let mut largest = if a > b { a } else { b };
        unroll!(I < 2 {
            // SAFETY: forwarded.
            let other = unsafe { warp::shfl_bfly_u32(largest, 1 << I) };
            largest = if other > largest { other } else { largest };
        });
        // From 15 on the power and its inverse are normal numbers. Smaller scales, subnormals among them, keep all their bits in f16:
        // what is 2^-149 becomes 2^-23.
        let exponent = largest >> 23;
        let exponent = if exponent > 15 { exponent } else { 15 };
        let factor = f32::from_bits((268 - exponent) << 23);
        let [a, b] = scales.map(|x| x * factor);
        let high = cvt::f16x2(a, b);
        let (high_a, high_b) = cvt::f16x2_to_f32(high);
        // NaN where the scale is not finite: so are all sums of its block, and no others.
        let low = cvt::f16x2(a - high_a, b - high_b);
        Self { high, low, undo: (exponent - 14) * 0x0080_0080 }
    }

    /// What the lane needs for blocks `4 * four ..`.
    ///
    /// # Safety
    /// Called by a whole warp, converged, with its `lane`.
    #[inline(always)]
    unsafe fn four(&self, lane: u32, four: u32) -> Four {
        let source = scale_source(lane, four);
        // SAFETY: forwarded.
        unsafe {
            let (high, low) = (warp::shfl_idx_u32(self.high, source), warp::shfl_idx_u32(self.low, source));
            let undo = warp::shfl_idx_u32(self.undo, sum_source(lane, four));
            // Multiplied, which leaves the pipe of the conversions alone.
            Four { scales: [high & 0xffff, high >> 16, low & 0xffff, low >> 16].map(|x| int::mad(x, place(lane), 0)), undo }
        }
    }
}

/// Sums of four blocks, a lane's eight dimensions of one of them.
type Sums = [[f32; 4]; 2];

/// The lane's half chunk of its two tokens of a block.
///
/// # Safety
/// As [`smem::ld_v2_u32`].
#[inline(always)]
unsafe fn load(at: [SmemAddr; 2], block: u32) -> [[u32; 2]; 2] {
    // SAFETY: forwarded.
    at.map(|at| unsafe { smem::ld_v2_u32(at.offset(block * BLOCK_BYTES)) })
}

/// Adds a block.
///
/// # Safety
/// Called by a whole warp, converged.
#[inline(always)]
unsafe fn add(sums: &mut Sums, codes: [[u32; 2]; 2], scales: [u32; 4], on: bool) {
    let [high, high_4, low, low_4] = scales.map(|x| if on { x } else { 0 });
    let mut a = [[0; 4]; 2];
    unroll!(J < 2 {
        let ([a0, a1], [a2, a3]) = (cvt::e4m3x4_to_f16(codes[0][J]), cvt::e4m3x4_to_f16(codes[1][J]));
        a[J] = [a0, a1, a2, a3];
    });
    // Two words at a time: a product that waits for another has one to wait behind.
    // SAFETY: forwarded.
    unsafe {
        unroll!(J < 2 { matrix::product_f16(&mut sums[J], a[J], [low, low_4]); });
        unroll!(J < 2 { matrix::product_f16(&mut sums[J], a[J], [high, high_4]); });
    }
}

/// The sums as bf16, their scales no longer normalised. Rounding first is as good: a power of two moves no bit, unless it makes a
/// subnormal number.
#[inline(always)]
fn finish(sums: &Sums, undo: u32) -> [u32; 4] {
    let mut values = [0; 4];
    unroll!(J < 2 {
        values[2 * J] = half::mul_bf16x2(cvt::bf16x2(sums[J][0], sums[J][1]), undo);
        values[2 * J + 1] = half::mul_bf16x2(cvt::bf16x2(sums[J][2], sums[J][3]), undo);
    });
    values
}

/// Sums the octet whose codes are at `stage` and gives them to `store`, once for each part 0..4: the sums of block
/// `4 * (part / 2) + lane % 4`, eight dimensions from [`crate::layout::octet::half_chunk`] of the part on. It may give all four
/// twice, of which the second holds. The codes of tokens that do not exist are zeros.
///
/// # Safety
/// - Called by a whole warp, converged, with its `lane`; `weights` are those of the octet.
/// - `stage`, asked for where it is needed, is aligned to 1,024 bytes, and its [`crate::layout::octet::BYTES`] are complete and visible.
#[inline(always)]
pub unsafe fn sum_octet(stage: impl Fn() -> SmemAddr, weights: &Weights, lane: u32, mut store: impl FnMut(u32, [u32; 4])) {
    let at = code_offsets(lane).map(|offset| stage().offset(offset));
    // NaN if any sum is: with a NaN code both columns of a block are, so that one of them tells.
    let mut check = 0f32;
    // SAFETY: forwarded. The vote is the same in all lanes.
    unsafe {
        let mut part = 0;
        // Not unrolled: ptxas would convert codes of the next part while it adds this one's, and has no registers for them.
        while part < PARTS {
            part = special::no_unroll(part);
            let at = part_of(at, part);
            let four = weights.four(lane, part / 2);
            let mut sums = Sums::default();
            let mut codes = load(at, 0);
            unroll!(S < 4 {
                // Ahead. After the last block the first once more, for nobody.
                let next = load(at, (S as u32 + 1) % 4);
                add(&mut sums, codes, four.scales, is_block(lane, S as u32));
                codes = next;
            });
            unroll!(J < 2 { check = math::fma(sums[J][0], sums[J][2], check); });
            store(part, finish(&sums, four.undo));
            part += 1;
        }
        if warp::any(check.is_nan() as u32) {
            one_by_one(stage(), weights, math::here(lane as i32) as u32, store);
        }
    }
}

/// Where the lane's codes of a part's first block are.
#[inline(always)]
fn part_of(at: [SmemAddr; 2], part: u32) -> [SmemAddr; 2] {
    at.map(|at| SmemAddr((at.0 ^ (part % 2 * 8)) + part / 2 * (4 * BLOCK_BYTES)))
}

/// The sums of [`sum_octet`] when no block may meet another one's codes: of its accumulators only the block's own columns are kept.
///
/// # Safety
/// As [`sum_octet`].
#[inline(always)]
unsafe fn one_by_one(stage: SmemAddr, weights: &Weights, lane: u32, mut store: impl FnMut(u32, [u32; 4])) {
    let at = code_offsets(lane).map(|offset| stage.offset(offset));
    let mut part = 0;
    while part < PARTS {
        part = special::no_unroll(part);
        let at = part_of(at, part);
        // SAFETY: forwarded.
        let four = unsafe { weights.four(lane, part / 2) };
        let mut kept = [0; 4];
        let mut step = 0;
        while step < 4 {
            step = special::no_unroll(step);
            let mut sums = Sums::default();
            // SAFETY: forwarded.
            unsafe { add(&mut sums, load(at, step), four.scales, is_block(lane, step)) };
            let values = finish(&sums, four.undo);
            // By a mask: a branch might take a product along.
            let mine = 0u32.wrapping_sub((lane % 4 == step) as u32);
            unroll!(W < 4 { kept[W] = int::merge(values[W], kept[W], mine); });
            step += 1;
        }
        store(part, kept);
        part += 1;
    }
}
