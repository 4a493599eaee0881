//! BF16, F16 and F32 data to e4m3 codes and scales.

use crate::error::{Error, Result};
use float8::F8E4M3;
use rayon::prelude::*;

/// Largest finite e4m3 value: the largest element of a scaled group lands on it.
const E4M3_MAX: f32 = 448.0;

/// Codes and scales of groups of `width` consecutive values: one scale per group.
pub fn per_group(name: &'static str, values: &[f32], width: usize) -> Result<(Vec<F8E4M3>, Vec<f32>)> {
    check_finite(name, values)?;
    let scales: Vec<f32> = values.par_chunks(width.max(1)).map(scale_of).collect();
    let mut codes = vec![F8E4M3::from_bits(0); values.len()];
    codes
        .par_chunks_mut(width.max(1))
        .zip(values.par_chunks(width.max(1)))
        .zip(&scales)
        .for_each(|((codes, values), &scale)| encode(codes, values, scale));
    Ok((codes, scales))
}

/// Codes and the one scale of a whole tensor.
pub fn per_tensor(name: &'static str, values: &[f32]) -> Result<(Vec<F8E4M3>, f32)> {
    check_finite(name, values)?;
    let scale = scale_for(values.par_iter().map(|x| x.abs()).reduce(|| 0.0, f32::max));
    let mut codes = vec![F8E4M3::from_bits(0); values.len()];
    codes.par_chunks_mut(4096).zip(values.par_chunks(4096)).for_each(|(codes, values)| encode(codes, values, scale));
    Ok((codes, scale))
}

/// A scale cannot be derived from NaN or infinity: refuse and say where.
fn check_finite(name: &'static str, values: &[f32]) -> Result<()> {
    match values.par_iter().position_first(|x| !x.is_finite()) {
        Some(i) => {
            let value = values.get(i).copied().unwrap_or(f32::NAN);
            Err(Error::value(name, "finite values (they are quantised to FP8)", format!("{value} at element {i}")))
        }
        None => Ok(()),
    }
}

fn scale_of(values: &[f32]) -> f32 {
    scale_for(values.iter().fold(0f32, |m, x| m.max(x.abs())))
}

/// Never 0 and with a finite inverse: zeros get scale 1, subnormal maxima the smallest normal scale.
fn scale_for(largest: f32) -> f32 {
    if largest == 0.0 { 1.0 } else { (largest / E4M3_MAX).max(f32::MIN_POSITIVE) }
}

/// The arithmetic of `append_kv`: times the f32 inverse of the scale, rounded to nearest even, saturating.
fn encode(codes: &mut [F8E4M3], values: &[f32], scale: f32) {
    let inverse = 1.0 / scale;
    for (code, &x) in codes.iter_mut().zip(values) {
        *code = F8E4M3::from_f32(x * inverse);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn largest_value_of_each_group_becomes_448() {
        let values: Vec<f32> = (0..256).map(|i| (i as f32 - 100.0) * 1e-3).collect();
        let (codes, scales) = per_group("q", &values, 128).unwrap();
        assert_eq!(scales.len(), 2);
        for (g, scale) in scales.iter().enumerate() {
            let largest = codes[g * 128..][..128].iter().map(|c| c.to_f32().abs()).fold(0.0, f32::max);
            assert_eq!(largest, 448.0);
            for i in g * 128..(g + 1) * 128 {
                assert!((codes[i].to_f32() * scale - values[i]).abs() <= values[i].abs() / 16.0 + scale / 512.0);
            }
        }
    }

    #[test]
    fn zeros_and_tiny_values_get_a_usable_scale() {
        let (codes, scale) = per_tensor("k", &[0.0; 8]).unwrap();
        assert_eq!((codes[0].to_bits(), scale), (0, 1.0));
        let (_, scale) = per_tensor("k", &[1e-44; 8]).unwrap();
        assert!(scale > 0.0 && (1.0 / scale).is_finite());
    }

    #[test]
    fn nan_and_infinity_are_refused_with_their_place() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut values = vec![1.0; 300];
            values[257] = bad;
            let message = per_group("q", &values, 128).unwrap_err().to_string();
            assert!(message.starts_with("q:") && message.contains("257"), "{message}");
            assert!(per_tensor("v", &values).is_err());
        }
    }
}
