//! Sums of a group of queries in packed f16, the way `select` adds them.

use crate::fp8;
use float8::F8E4M3;
use half::{bf16, f16};
use stem_attn_kernels::config::{GROUP_TOKENS, GROUPS, HEAD_DIM};

/// Sum of group `g` of a block: tokens g, g + 16, ... in order, `scale * code` added to the sum with one rounding to f16, the last sum
/// rounded to bf16. Scales are rounded to f16 after a power of two takes the group's largest to 2^3 .. 2^4; the sum is multiplied by its
/// inverse. `rows[t]` is token t of the block; one without data counts as zeros.
pub(super) fn group_sum(rows: &[Option<&[F8E4M3; HEAD_DIM]>], g: usize, scale: impl Fn(usize) -> f32, sum: &mut [bf16]) {
    let tokens = (0..GROUP_TOKENS).map(|r| g + GROUPS * r);
    let present = || tokens.clone().filter_map(|t| Some((scale(t), (*rows.get(t)?)?)));
    let largest = present().map(|(scale, _)| scale.to_bits() & 0x7fff_ffff).max().unwrap_or(0);
    // Below 4 the inverse would leave the normal numbers.
    let exponent = (largest >> 23).max(4);
    let factor = f32::from_bits((257 - exponent) << 23);
    let mut acc = [0f64; HEAD_DIM];
    for (scale, codes) in present() {
        let weight = f16::from_f32(scale * factor).to_f64();
        for (acc, &code) in acc.iter_mut().zip(codes) {
            // Exact before it is rounded: 15 bits and 11, at most 2^-33 .. 2^16.
            *acc = to_f16(weight * f64::from(fp8::decode(code)) + *acc);
        }
    }
    let undo = f32::from_bits((exponent - 3) << 23);
    for (sum, acc) in sum.iter_mut().zip(acc) {
        *sum = bf16::from_f32(bf16::from_f32(acc as f32).to_f32() * undo);
    }
}

/// The nearest f16, ties to even. The range is the caller's business; what is not finite stays that.
fn to_f16(x: f64) -> f64 {
    // Added and subtracted, a number 2^42 times as large leaves ten bits behind the first, or multiples of 2^-24.
    let size = f64::from_bits(x.to_bits() & 0x7ff0_0000_0000_0000).max(f64::from(f16::MIN_POSITIVE));
    let large = size * 1.5 * (1u64 << 42) as f64;
    if x.is_finite() { (x + large) - large } else { x }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every f16, what lies halfway to the next, and what lies beside that by as little as f64 can tell.
    #[test]
    fn rounds_to_the_nearest_f16() {
        for bits in 0..f16::MAX.to_bits() {
            let (x, next) = (f16::from_bits(bits), f16::from_bits(bits + 1));
            let (low, high) = (x.to_f64(), next.to_f64());
            let half = (low + high) / 2.0;
            let even = if bits % 2 == 0 { low } else { high };
            for sign in [1.0, -1.0] {
                assert_eq!(to_f16(sign * low), sign * low);
                assert_eq!(to_f16(sign * half), sign * even, "{half:e}");
                assert_eq!(to_f16(sign * half.next_up()), sign * high, "above {half:e}");
                assert_eq!(to_f16(sign * half.next_down()), sign * low, "below {half:e}");
            }
        }
        assert!(to_f16(f64::NAN).is_nan());
        assert_eq!(to_f16(f64::NEG_INFINITY), f64::NEG_INFINITY);
    }

    /// Against the true sum: eight roundings to f16 of scales and eight of sums, each half a unit of 2^-10 of at most the terms' magnitudes, then
    /// one to bf16.
    #[test]
    fn is_near_the_true_sum() {
        let code = |i: usize| fp8::encode(((i * 37 + 11) % 97) as f32 - 48.0);
        let rows: Vec<[F8E4M3; HEAD_DIM]> = (0..128).map(|t| std::array::from_fn(|d| code(t * 131 + d * 7))).collect();
        let scale = |t: usize| ((t * 29 % 31) as f32 - 9.0) * 0.0123;
        let given: Vec<_> = rows.iter().enumerate().map(|(t, row)| (t % 5 != 3).then_some(row)).collect();
        for g in 0..GROUPS {
            let mut sum = [bf16::ZERO; HEAD_DIM];
            group_sum(&given, g, scale, &mut sum);
            for (d, sum) in sum.into_iter().enumerate() {
                let terms =
                    (0..128).filter(|t| t % GROUPS == g && t % 5 != 3).map(|t| f64::from(scale(t)) * f64::from(fp8::decode(rows[t][d])));
                let (want, all) = terms.fold((0.0, 0.0), |(sum, all): (f64, f64), x| (sum + x, all + x.abs()));
                let before = all * 9.0 / 2048.0;
                let bound = before + (want.abs() + before) / 256.0;
                assert!((sum.to_f64() - want).abs() <= bound, "group {g}, dimension {d}: {sum} instead of {want}");
            }
        }
    }

    #[test]
    fn large_and_small_scales_keep_their_bits() {
        let row = [fp8::encode(3.0); HEAD_DIM];
        let rows: Vec<_> = (0..128).map(|t| (t == 5).then_some(&row)).collect();
        for scale in [1.0f32, 2f32.powi(-149), 2f32.powi(-126), 1.5 * 2f32.powi(100), -0.75] {
            let mut sum = [bf16::ZERO; HEAD_DIM];
            group_sum(&rows, 5, |_| scale, &mut sum);
            assert!(sum.iter().all(|&x| x == bf16::from_f32(3.0 * scale)), "{scale:e}: {}", sum[0]);
        }
    }
}
