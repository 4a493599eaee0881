//! Sums of an octet: eight tokens of each of eight query blocks, added up in packed f16 and rounded to bf16.
//!
//! Codes are exact in f16. Scales are rounded to it after a power of two that takes the largest of their group to 2^3 .. 2^4, so that no
//! sum leaves the range (8 x 448 x 16 < 65,504) and only scales below 2^-17 of the largest lose bits to it. Tokens are added in order, each
//! with one rounding. f16 has three bits more than bf16, to which the sum is rounded last: the roundings before that add 4 % to the noise
//! that this one makes, and cost half as many instructions as sums in f32 ([`crate::layout::octet`] says who adds what).

use crate::config::select::WEIGHTS_BYTES;
use crate::layout::octet::{BLOCKS, PARTS, block, code_of_token, code_offset};
use crate::ptx::{SmemAddr, cvt, half, math, smem, special, warp};
use crate::unroll;

/// Weights of an octet in shared memory: 16 bytes of packed f16 scales a block, in word t those of tokens t and t + 4; then a word a block,
/// the power of two that undoes their normalisation as bf16 twice. A lane reads its block's at once: shuffles of them all would stand
/// in the same queue, one by one.
#[derive(Clone, Copy)]
pub struct Weights(SmemAddr);

impl Weights {
    /// At `at`, from the scales of tokens t and t + 4 of block b in lane 4 b + t. A token that does not exist has scale 0.
    ///
    /// # Safety
    /// Called by a whole warp, converged, with its `lane`, that has read what lay at `at`: [`WEIGHTS_BYTES`] of its own,
    /// aligned to 16.
    #[inline(always)]
    pub unsafe fn new(at: SmemAddr, lane: u32, scales: [f32; 2]) -> Self {
        let [a, b] = scales.map(|x| x.to_bits() & 0x7fff_ffff);
        let mut largest = if a > b { a } else { b };
        unroll!(I < 2 {
            // SAFETY: forwarded.
            let other = unsafe { warp::shfl_bfly_u32(largest, 1 << I) };
            largest = if other > largest { other } else { largest };
        });
        // From 4 on the power and its inverse are normal numbers. Smaller scales, subnormals among them, keep all their bits in f16: what
        // is 2^-149 becomes 2^-23.
        let exponent = largest >> 23;
        let exponent = if exponent > 4 { exponent } else { 4 };
        let factor = f32::from_bits((257 - exponent) << 23);
        // SAFETY: forwarded; the lanes of a block have the same power, one of them stores it.
        unsafe {
            smem::st_u32(at.offset(lane * 4), cvt::f16x2(scales[0] * factor, scales[1] * factor));
            smem::st_u32_if(at.offset(POWERS + lane), (exponent - 3) * 0x0080_0080, lane.is_multiple_of(4) as u32);
            warp::sync();
        }
        Self(at)
    }

    /// Scales of the lane's block of part `part`, and the power.
    ///
    /// # Safety
    /// By a lane of the warp that made them.
    #[inline(always)]
    unsafe fn of_part(self, lane: u32, part: u32) -> ([u32; 4], u32) {
        let block = block(lane, part);
        // SAFETY: forwarded.
        unsafe { (smem::ld_v4(self.0.offset(block * SCALES_BYTES)), smem::ld_u32(self.0.offset(POWERS + block * 4))) }
    }
}

/// Sums an octet, part by part: asks `stage` where the part's codes are, and gives the sums to `store`, 16 dimensions of the lane's block,
/// the lower eight and the upper eight, as bf16. Then nobody reads the stage any more.
///
/// # Safety
/// - Called by a whole warp, converged, with its `lane`; `weights` are those of the octet.
/// - A stage is aligned to 1,024 bytes, and its [`crate::layout::octet::PART_BYTES`] are complete and visible.
#[inline(always)]
pub unsafe fn sum_octet(stage: impl Fn(u32) -> SmemAddr, weights: Weights, lane: u32, mut store: impl FnMut(u32, [[u32; 4]; 2])) {
    let mut part = 0;
    while part < PARTS {
        // Not unrolled: registers are short.
        part = special::no_unroll(part);
        let at = stage(part).0 + code_offset(lane);
        let mut sums = [0; 8];
        // SAFETY: forwarded.
        unsafe {
            let (scales, undo) = weights.of_part(lane, part);
            unroll!(T < 8 {
                let codes = smem::ld_v4(SmemAddr(code_of_token(at, T as u32)));
                let scale = if T < 4 { half::low2(scales[T % 4]) } else { half::high2(scales[T % 4]) };
                unroll!(W < 4 {
                    let [low, high] = cvt::e4m3x4_to_f16(codes[W]);
                    sums[2 * W] = half::fma2(low, scale, sums[2 * W]);
                    sums[2 * W + 1] = half::fma2(high, scale, sums[2 * W + 1]);
                });
                // LLVM would load all codes first, and has no registers for them.
                unroll!(W < 8 { math::pin_u32(&mut sums[W]); });
            });
            store(part, finish(&sums, undo));
        }
        part += 1;
    }
}

/// The sums as bf16, their scales no longer normalised. Rounding first is as good: a power of two moves no bit, unless it makes a
/// subnormal number.
#[inline(always)]
fn finish(sums: &[u32; 8], undo: u32) -> [[u32; 4]; 2] {
    let mut values = [[0; 4]; 2];
    unroll!(W < 8 {
        let (low, high) = cvt::f16x2_to_f32(sums[W]);
        values[W / 4][W % 4] = half::mul_bf16x2(cvt::bf16x2(low, high), undo);
    });
    values
}

/// Bytes of a block's scales among the weights.
const SCALES_BYTES: u32 = 16;
/// Where the powers lie, behind the scales of all blocks.
const POWERS: u32 = BLOCKS * SCALES_BYTES;

const _: () = assert!(POWERS + BLOCKS * 4 == WEIGHTS_BYTES, "a word a block behind the scales");
