//! e4m3 in f32: rounding that is bit for bit `cvt.rn.satfinite.e4m3x2.f32`, decoding, and quantisation with scales.
//!
//! The encoder is our own: float8's goes through f64 and gives a negative NaN a code of its own, the instruction does not.

use crate::error::{Error, Result};
use float8::F8E4M3;
use half::bf16;
use stem_attn_kernels::config::HEAD_DIM;
use stem_attn_kernels::layout::row_scale;

/// Largest finite value.
pub const MAX: f32 = 448.0;

/// Below this value (2^-6) e4m3 is subnormal, with steps of 2^-9.
const MIN_NORMAL: f32 = 0.015625;

/// 2^14: the f32 whose last bit is 2^-9, so adding it rounds to e4m3's subnormal steps, ties to even.
const SUBNORMAL_MAGIC: f32 = 16384.0;

/// The code of `x`: nearest e4m3, ties to even; beyond 448 (infinity included) the largest finite code; NaN is 0x7F.
pub fn encode(x: f32) -> F8E4M3 {
    if x.is_nan() {
        return F8E4M3::from_bits(0x7F);
    }
    let sign = (x.to_bits() >> 24) as u8 & 0x80;
    let magnitude = round_magnitude(x.abs());
    let code = if magnitude < MIN_NORMAL {
        (magnitude * 512.0) as u8
    } else {
        // Exponent bias 127 to 7, 23 mantissa bits to 3: what is left fits seven bits.
        ((magnitude.to_bits() >> 20) - (120 << 3)) as u8
    };
    F8E4M3::from_bits(sign | code)
}

/// The value of `x` after rounding to e4m3, for `x >= 0`; NaN becomes 448. Branch-free, for inner loops.
#[inline(always)]
pub fn round_magnitude(x: f32) -> f32 {
    let bits = x.to_bits();
    let normal = f32::from_bits(bits.wrapping_add(0x7_FFFF + ((bits >> 20) & 1)) & !0xF_FFFF);
    let subnormal = (x + SUBNORMAL_MAGIC) - SUBNORMAL_MAGIC;
    let rounded = if x < MIN_NORMAL { subnormal } else { normal };
    if x < MAX { rounded } else { MAX }
}

/// The value of each of the 256 codes; 0x7F and 0xFF are NaN.
pub static DECODE: [f32; 256] = {
    let mut table = [0f32; 256];
    let mut code = 0;
    while code < 256 {
        let (exponent, mantissa) = ((code >> 3) & 15, code & 7);
        let magnitude = if exponent == 15 && mantissa == 7 {
            f32::NAN
        } else if exponent == 0 {
            mantissa as f32 / 512.0
        } else {
            f32::from_bits(((exponent as u32 + 120) << 23) | ((mantissa as u32) << 20))
        };
        table[code] = if code >= 128 { -magnitude } else { magnitude };
        code += 1;
    }
    table
};

/// The value of a code.
#[inline(always)]
pub fn decode(code: F8E4M3) -> f32 {
    DECODE[code.to_bits() as usize]
}

/// Decodes one row of 128 codes.
pub fn decode_row(codes: &[F8E4M3; HEAD_DIM]) -> [f32; HEAD_DIM] {
    std::array::from_fn(|i| decode(codes[i]))
}

/// A float that quantisation reads.
pub trait ToF32: Copy + Sync {
    /// The value in f32.
    fn to_f32(self) -> f32;
}

impl ToF32 for f32 {
    fn to_f32(self) -> f32 {
        self
    }
}

impl ToF32 for bf16 {
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
}

impl ToF32 for half::f16 {
    fn to_f32(self) -> f32 {
        half::f16::to_f32(self)
    }
}

/// Quantises `x` (`[tokens, heads, 128]`) with one scale per token and head: `amax / 448` ([`row_scale`]), or 1 for a row of
/// zeros.
///
/// Returns the codes and the scales `[tokens, heads]`; real = code * scale.
///
/// # Errors
/// [`Error::Shape`] when the length is not a multiple of 128, [`Error::Value`] for a NaN or an infinity; both name `name`.
pub fn quantize_per_token_head<T: ToF32>(name: &'static str, x: &[T]) -> Result<(Vec<F8E4M3>, Vec<f32>)> {
    if !x.len().is_multiple_of(HEAD_DIM) {
        return Err(Error::shape(name, "rows of 128 elements", format!("{} elements", x.len())));
    }
    let mut codes = Vec::with_capacity(x.len());
    let mut scales = Vec::with_capacity(x.len() / HEAD_DIM);
    for row in x.chunks_exact(HEAD_DIM) {
        let scale = row_scale(amax(name, row)?);
        append(row, scale, 1.0, &mut codes);
        scales.push(scale);
    }
    Ok((codes, scales))
}

/// Quantises `x` with one scale: `amax / 448`, or 1 when everything is zero. Returns the codes and the scale.
///
/// # Errors
/// [`Error::Value`] for a NaN or an infinity, naming `name`.
pub fn quantize_per_tensor<T: ToF32>(name: &'static str, x: &[T]) -> Result<(Vec<F8E4M3>, f32)> {
    let scale = row_scale(amax(name, x)?);
    let mut codes = Vec::with_capacity(x.len());
    append(x, scale, 1.0, &mut codes);
    Ok((codes, scale))
}

/// Appends the codes of `x` to `codes`: `e4m3(x * (1 / scale) * (1 / own))`, the reciprocals and the products each rounded to f32,
/// as `append_kv` computes them. NaN stays NaN.
pub fn append<T: ToF32>(x: &[T], scale: f32, own: f32, codes: &mut Vec<F8E4M3>) {
    let (inverse, own) = (1.0 / scale, 1.0 / own);
    codes.extend(x.iter().map(|x| encode(x.to_f32() * inverse * own)));
}

/// The scale of a single key beside the `scale` of its tensor or head, as `append_kv` computes it: [`row_scale`] of the largest
/// magnitude of `x * (1 / scale)`, NaN left aside.
pub fn own_scale<T: ToF32>(x: &[T], scale: f32) -> f32 {
    let inverse = 1.0 / scale;
    row_scale(x.iter().fold(0f32, |largest, x| largest.max((x.to_f32() * inverse).abs())))
}

fn amax<T: ToF32>(name: &'static str, x: &[T]) -> Result<f32> {
    let mut amax = 0f32;
    for (i, x) in x.iter().enumerate() {
        let x = x.to_f32();
        if !x.is_finite() {
            return Err(Error::value(name, "finite elements", format!("{x} at {i}")));
        }
        amax = amax.max(x.abs());
    }
    Ok(amax)
}
