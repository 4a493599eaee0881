//! Attention of one row by its definition, in f64, and how far a kernel with P in e4m3 may be from it.
//!
//! Independent of the library's CPU backend, which walks blocks with a running maximum as the kernel does: here all logits
//! come first, then their exponentials, then the weighted values.

use float8::F8E4M3;
use stem_attn::fp8;

/// Head dimension.
const D: usize = 128;

/// One row's exact result and tolerances.
#[derive(Clone, Debug)]
pub struct Exact {
    /// Output; zeros where no key is visible.
    pub out: [f64; D],
    /// Natural log-sum-exp; minus infinity where no key is visible.
    pub lse: f64,
    /// How far an output may be, as the 2-norm of the difference.
    pub tolerance: f64,
    /// How far a log-sum-exp may be.
    pub lse_tolerance: f64,
}

/// Largest relative error of rounding to e4m3: half a step of three mantissa bits.
const E4M3: f64 = 1.0 / 16.0;
/// Half of e4m3's smallest step, 2^-10, as a share of a row's largest P, which is 2^6 or more.
const SUBNORMAL: f64 = 1.0 / (1 << 16) as f64;
/// Relative error of P before that rounding. The argument of the polynomial is rounded to f16 and multiplied by 32: 2^-7 in the
/// exponent, 2^-7.5 in P; the parabola adds 2^-9.2. What `ex2` and its argument cost is less: 2^-9.9 and 2^-8 ln 2.
const EXPONENTIAL: f64 = 1.0 / 128.0;
/// A logit's error as a share of the sums on its way. The f16 accumulator is cut after each of the four steps of a product of
/// 128 (2^-10 each at worst), its sums of 32 have about 14 bits (eight steps of 2^-13 bound what captures show), and the row's
/// scale is an f16 (2^-11).
const CUT: f64 = 4.0 / 1024.0 + 1.0 / 2048.0 + 8.0 / 8192.0;
/// The same for P V and the row sums: f32 accumulators that the tensor core cuts to about 14 bits, towards zero, in each of the
/// eight steps between flushes (`config::attend::FLUSH_TILES`: two blocks of four).
const PRODUCT_CUT: f64 = 8.0 / 8192.0;
/// What the absolute codes of a row of q may sum to before its rows are shrunk (`tile::shrink`), less what decides between
/// two powers of two.
const LARGEST_SUM: f32 = 0.98 * 137.0;

/// How far the log-sum-exp of a row may be from the exact one when P is off by the share `off` of its sum: -ln(1 - off), the
/// larger of the two sides, and what cut sums and f32 add. The kernel adds up the rounded P (numerator and denominator carry
/// the same rounding), so the log-sum-exp is that of the rounded P.
pub fn lse_tolerance(off: f64, lse: f64, largest: f64) -> f64 {
    -(1.0 - (off + PRODUCT_CUT).min(0.5)).ln() + 1e-3 + CUT * (largest + lse.abs())
}

/// What [`lse_tolerance`] allows where only the number of keys is known: every P off by half a step of e4m3 and by the
/// exponential's error, and as many subnormal ones as there are keys.
pub fn lse_tolerance_of_keys(keys: usize, lse: f64) -> f64 {
    lse_tolerance(E4M3 + EXPONENTIAL + keys as f64 * SUBNORMAL, lse, 0.0)
}

/// What shrinking changes of a row of q: codes that become subnormal are rounded.
fn shrunk_away(q: &[f32; D]) -> [f32; D] {
    let sum: f32 = q.iter().map(|x| x.abs()).sum();
    let factor = (LARGEST_SUM / sum).log2().floor().exp2().min(1.0);
    q.map(|x| if factor < 1.0 { fp8::decode(fp8::encode(x * factor)) / factor - x } else { 0.0 })
}

/// Attention of a row of codes `q` to the keys and values of `rows`: codes of the key, codes of the value, and the key's own
/// scale. `scale` takes a raw dot product times that to a logit; `v_scale` multiplies the result.
///
/// The tolerance follows from the kernel's roundings. P is off by e4m3's half step and by what a rounded logit does to it. An
/// error of P moves the output towards or away from the key's value; the errors of different keys are independent of each
/// other and of the values, so their squares add up (1.5: the norm of such a sum in 128 dimensions varies). The cuts of the
/// second product and bf16 come on top.
pub fn attend_row<'a, R>(q: &[F8E4M3], scale: f64, v_scale: f64, rows: R) -> Exact
where
    R: Iterator<Item = (&'a [F8E4M3], &'a [F8E4M3], f64)> + Clone,
{
    let q: [f32; D] = std::array::from_fn(|d| fp8::decode(q[d]));
    let lost = shrunk_away(&q);
    let (mut logits, mut errors) = (Vec::new(), Vec::new());
    for (k, _, own) in rows.clone() {
        let (mut sum, mut squares, mut shrunk) = ([0f64; 8], [0f64; 8], [0f64; 8]);
        for ((q, lost), k) in q.chunks_exact(8).zip(lost.chunks_exact(8)).zip(k.chunks_exact(8)) {
            for i in 0..8 {
                // A product of two e4m3 values is exact in f32.
                let k = fp8::decode(k[i]);
                let product = f64::from(q[i] * k);
                sum[i] += product;
                squares[i] += product * product;
                shrunk[i] += f64::from(lost[i] * k);
            }
        }
        let (logit, scale) = (sum.iter().sum::<f64>() * scale * own, scale * own);
        // How large sums along the way are: two standard deviations of a sum of such products.
        let size = 2.0 * squares.iter().sum::<f64>().sqrt() * scale.abs();
        logits.push(logit);
        errors.push(CUT * (logit.abs() + size) + (shrunk.iter().sum::<f64>() * scale).abs());
    }
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if logits.is_empty() {
        return Exact { out: [0.0; D], lse: f64::NEG_INFINITY, tolerance: 0.0, lse_tolerance: 0.0 };
    }
    let (mut out, mut sizes_of_out, mut sum) = ([0f64; D], [0f64; D], 0f64);
    for (logit, (_, v, _)) in logits.iter().zip(rows.clone()) {
        let p = (logit - max).exp();
        for d in 0..D {
            let v = f64::from(fp8::decode(v[d]));
            out[d] += p * v;
            sizes_of_out[d] += p * v.abs();
        }
        sum += p;
    }
    let mean = out.map(|x| x / sum);
    let (mut squares, mut off, mut largest) = (0f64, 0f64, 0f64);
    for ((logit, error), (_, v, _)) in logits.iter().zip(&errors).zip(rows) {
        let p = (logit - max).exp();
        let rounding = (p * E4M3).max(p.min(SUBNORMAL)) + p * EXPONENTIAL;
        let distance = (0..D).map(|d| (f64::from(fp8::decode(v[d])) - mean[d]).powi(2)).sum::<f64>();
        squares += (rounding + p * error).powi(2) * distance;
        off += rounding;
        largest = largest.max(error / CUT);
    }
    let factor = v_scale / sum;
    out.iter_mut().for_each(|out| *out *= factor);
    let lse = max + sum.ln();
    let tolerance =
        factor * (1.5 * squares.sqrt() + PRODUCT_CUT / 2.0 * norm(&sizes_of_out)) + norm(&out) * (1.0 / 256.0 + PRODUCT_CUT) + 1e-30;
    Exact { out, lse, tolerance, lse_tolerance: lse_tolerance(off / sum, lse, largest) }
}

/// 2-norm.
pub fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// 2-norm of a difference; NaN where an element is.
pub fn distance(got: impl Iterator<Item = f64>, want: &[f64]) -> f64 {
    got.zip(want).map(|(got, want)| (got - want).powi(2)).sum::<f64>().sqrt()
}

impl Exact {
    /// Compares a row. Gives the error as a share of its tolerance, or says what is wrong.
    ///
    /// # Errors
    /// What differs, and by how much.
    pub fn check(&self, out: &[half::bf16], lse: Option<f32>) -> Result<f64, String> {
        let error = distance(out.iter().map(|x| x.to_f64()), &self.out);
        if error.is_nan() || error > self.tolerance {
            return Err(format!("output off by {error:.3e} of {:.3e}, allowed {:.3e}", norm(&self.out), self.tolerance));
        }
        if let Some(lse) = lse.map(f64::from) {
            let close = lse == self.lse || (lse - self.lse).abs() <= self.lse_tolerance;
            if !close {
                return Err(format!("log-sum-exp {lse}, exactly {}, allowed {:.3e}", self.lse, self.lse_tolerance));
            }
        }
        Ok(if self.tolerance > 0.0 { error / self.tolerance } else { 0.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    fn codes(x: [f32; 2]) -> Vec<F8E4M3> {
        (0..D).map(|d| fp8::encode(if d < 2 { x[d] } else { 0.0 })).collect()
    }

    #[test]
    fn two_keys_by_hand() {
        let (q, k, v) = (codes([1.0, 0.0]), [codes([0.0, 1.0]), codes([2.0, 0.0])], [codes([1.0, 0.0]), codes([0.0, 4.0])]);
        let rows = (0..2).map(|i| (k[i].as_slice(), v[i].as_slice(), if i == 0 { 1.0 } else { 0.5 }));
        // Logits 0 and 2 * 0.5 * ln 3: weights 1/4 and 3/4.
        let exact = attend_row(&q, 3f64.ln(), 2.0, rows);
        assert!((exact.out[0] - 0.5).abs() < 1e-12 && (exact.out[1] - 6.0).abs() < 1e-12 && (exact.lse - 4f64.ln()).abs() < 1e-12);
        let mut got: Vec<bf16> = exact.out.iter().map(|&x| bf16::from_f64(x)).collect();
        assert!(exact.check(&got, Some(exact.lse as f32)).is_ok());
        assert!(exact.check(&got, Some(exact.lse as f32 + 0.2)).is_err());
        got[1] = bf16::from_f64(4.0);
        assert!(exact.check(&got, None).is_err());
        got[1] = bf16::NAN;
        assert!(exact.check(&got, None).is_err());
    }

    #[test]
    fn no_key_is_zero() {
        let exact = attend_row(&codes([1.0, 1.0]), 1.0, 1.0, std::iter::empty());
        assert!(exact.check(&[bf16::ZERO; D], Some(f32::NEG_INFINITY)).is_ok());
        assert!(exact.check(&[bf16::from_f32(1e-30); D], None).is_err());
        assert!(exact.check(&[bf16::ZERO; D], Some(-1e30)).is_err());
    }
}
