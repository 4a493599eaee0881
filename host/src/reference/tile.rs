//! Loading and multiplying 128 x 128 tiles, in f32 or f64, in loops the compiler turns into vector code.

use crate::fp8;
use crate::kv::layout::{KvTensor, PagedKv};
use crate::kv::scales::TokenScaleLayout;
use half::bf16;
use std::ops::{Add, Mul, Sub};
use stem_attn_kernels::config::{BLOCK, HEAD_DIM, P_SCALE_LOG2};

/// The arithmetic of attention: f32 with the kernel's roundings, or f64 without any.
pub trait Real:
    Copy + Default + Send + Sync + From<f32> + Into<f64> + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self>
{
    /// Type of the output.
    type Out: Copy + Default + Send;
    /// P is scaled by 2 to this power before it is rounded.
    const P_SHIFT: f32;
    /// Minus infinity.
    const NEG_INFINITY: Self;
    /// Nearest value of this type.
    fn from_f64(x: f64) -> Self;
    /// 2^self.
    fn exp2(self) -> Self;
    /// The larger of two; the number of a number and a NaN.
    fn max(self, other: Self) -> Self;
    /// P as the second product reads it.
    fn round_p(self) -> Self;
    /// The output element.
    fn finish(self) -> Self::Out;
}

impl Real for f32 {
    type Out = bf16;
    const P_SHIFT: f32 = P_SCALE_LOG2;
    const NEG_INFINITY: Self = f32::NEG_INFINITY;
    fn from_f64(x: f64) -> Self {
        x as f32
    }
    #[inline(always)]
    fn exp2(self) -> Self {
        self.exp2()
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.max(other)
    }
    #[inline(always)]
    fn round_p(self) -> Self {
        fp8::round_magnitude(self)
    }
    fn finish(self) -> bf16 {
        bf16::from_f32(self)
    }
}

impl Real for f64 {
    type Out = f64;
    const P_SHIFT: f32 = 0.0;
    const NEG_INFINITY: Self = f64::NEG_INFINITY;
    fn from_f64(x: f64) -> Self {
        x
    }
    #[inline(always)]
    fn exp2(self) -> Self {
        self.exp2()
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.max(other)
    }
    #[inline(always)]
    fn round_p(self) -> Self {
        self
    }
    fn finish(self) -> f64 {
        self
    }
}

/// A row-major 128 x 128 tile.
pub type Tile<T> = Vec<[T; BLOCK]>;

/// An empty tile.
pub fn zeros<T: Real>() -> Tile<T> {
    vec![[T::default(); BLOCK]; BLOCK]
}

/// Loads tokens `first..end` (at most 128) of K into `tile[dimension][token]`; what is missing is 0.
pub fn load_k_transposed<T: Real>(kv: &PagedKv<'_>, request: usize, head: usize, first: usize, end: usize, tile: &mut Tile<T>) {
    for t in 0..BLOCK {
        let row = if first + t < end { kv.row(KvTensor::K, request, head, first + t) } else { None };
        let row = row.map_or([0.0; HEAD_DIM], fp8::decode_row);
        for (out, x) in tile.iter_mut().zip(row) {
            out[t] = T::from(x);
        }
    }
}

/// Loads tokens `first..end` (at most 128) of V into `tile[token][dimension]`; what is missing is 0.
pub fn load_v<T: Real>(kv: &PagedKv<'_>, request: usize, head: usize, first: usize, end: usize, tile: &mut Tile<T>) {
    for (t, out) in tile.iter_mut().enumerate() {
        let row = if first + t < end { kv.row(KvTensor::V, request, head, first + t) } else { None };
        *out = row.map_or([0.0; HEAD_DIM], fp8::decode_row).map(T::from);
    }
}

/// Multiplies the scores of tokens `first..end` (at most 128), the first `rows` rows, by the scales of their keys, where keys
/// have any.
pub fn scale_keys<T: Real>(kv: &PagedKv<'_>, request: usize, head: usize, first: usize, end: usize, rows: usize, scores: &mut Tile<T>) {
    if kv.k_token_scales == TokenScaleLayout::None {
        return;
    }
    let scales: Vec<T> = (first..end.min(first + BLOCK)).map(|token| T::from(kv.token_scale(request, head, token))).collect();
    for row in scores.iter_mut().take(rows) {
        for (score, &scale) in row.iter_mut().zip(&scales) {
            *score = *score * scale;
        }
    }
}

/// Columns one step keeps in registers: with two rows, eight 128-bit accumulators in f32.
const COLUMNS: usize = 16;

/// `out = a b` for the first `rows` rows of `a`.
pub fn multiply<T: Real>(a: &Tile<T>, b: &Tile<T>, rows: usize, out: &mut Tile<T>) {
    for (a, out) in a.chunks(2).zip(out.chunks_mut(2)).take(rows.div_ceil(2)) {
        // Tiles have 128 rows, so every chunk is a pair.
        let ([a0, a1], [out0, out1]) = (a, out) else { return };
        for first in (0..BLOCK).step_by(COLUMNS) {
            let mut acc = [[T::default(); COLUMNS]; 2];
            for ((&x0, &x1), row) in a0.iter().zip(a1).zip(b) {
                let row = &row[first..first + COLUMNS];
                for c in 0..COLUMNS {
                    acc[0][c] = acc[0][c] + x0 * row[c];
                    acc[1][c] = acc[1][c] + x1 * row[c];
                }
            }
            out0[first..first + COLUMNS].copy_from_slice(&acc[0]);
            out1[first..first + COLUMNS].copy_from_slice(&acc[1]);
        }
    }
}
