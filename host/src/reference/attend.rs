//! `attend` on the CPU: block-sparse and dense attention, as the kernel computes it and exactly.
//!
//! Both forms walk a row's blocks from the last to the first with a running maximum. [`attend_model`] rounds where the
//! kernel rounds (all but the tensor core's internal accumulator); [`attend_f64`] rounds nowhere.

use super::tile::{Real, Tile, load_k_transposed, load_v, multiply, scale_keys, zeros};
use super::{check_group, check_len, scale_at};
use crate::error::{Error, Result};
use crate::fp8;
use crate::geometry::Geometry;
use crate::kv::layout::PagedKv;
use crate::mask::BlockLists;
use float8::F8E4M3;
use half::bf16;
use rayon::prelude::*;
use stem_attn_kernels::abi::Request;
use stem_attn_kernels::config::{BLOCK, HEAD_DIM};

/// What attention reads.
#[derive(Clone, Copy, Debug)]
pub struct AttendInputs<'a> {
    /// `[total_q, hq, 128]`.
    pub q: &'a [F8E4M3],
    /// `[total_q, hq]`.
    pub q_scale: &'a [f32],
    /// K and V.
    pub kv: PagedKv<'a>,
    /// `[1]` or `[hkv]`; multiplies the scales of single keys that `kv` may have.
    pub k_scale: &'a [f32],
    /// `[1]` or `[hkv]`.
    pub v_scale: &'a [f32],
    /// Query heads, a multiple of the KV heads.
    pub hq: usize,
    /// Blocks, and whether keys after a query are masked.
    pub geometry: &'a Geometry,
    /// Blocks of each row, or every visible one.
    pub lists: Option<&'a BlockLists>,
    /// Multiplies the logits: `1 / sqrt(128)` unless the model says otherwise.
    pub softmax_scale: f64,
}

/// What attention gives back.
#[derive(Clone, Debug, PartialEq)]
pub struct AttendOutput<T> {
    /// `[total_q, hq, 128]`; zeros for a query that sees no key.
    pub out: Vec<T>,
    /// `[total_q, hq]` natural log-sum-exp; minus infinity for a query that sees no key.
    pub lse: Vec<f64>,
}

/// `1 / sqrt(128)`.
pub fn default_softmax_scale() -> f64 {
    (HEAD_DIM as f64).sqrt().recip()
}

/// Attention with the kernel's roundings: f32 logits, f32 maximum and row sum, P * 2^8 rounded to e4m3 under the maximum
/// of its time, one f32 accumulation per block, bf16 output.
///
/// # Errors
/// [`Error::Shape`] or [`Error::Value`] naming the tensor.
pub fn attend_model(inputs: &AttendInputs<'_>) -> Result<AttendOutput<bf16>> {
    attend::<f32>(inputs)
}

/// Attention over the selected blocks in f64, on the FP8 values.
///
/// # Errors
/// As [`attend_model`].
pub fn attend_f64(inputs: &AttendInputs<'_>) -> Result<AttendOutput<f64>> {
    attend::<f64>(inputs)
}

fn attend<T: Real>(inputs: &AttendInputs<'_>) -> Result<AttendOutput<T::Out>> {
    let &AttendInputs { hq, geometry, .. } = inputs;
    geometry.check()?;
    check_len("q", inputs.q.len(), &[geometry.total_q, hq, HEAD_DIM])?;
    check_len("q_scale", inputs.q_scale.len(), &[geometry.total_q, hq])?;
    let group = check_group(hq, inputs.kv.hkv)?;
    let heads: Vec<Head> = (0..hq).map(|head| Head::new(inputs, head, head / group)).collect::<Result<_>>()?;
    inputs.kv.validate(geometry)?;
    if let Some(lists) = inputs.lists {
        lists.validate(hq, geometry)?;
    }
    let mut output = AttendOutput {
        out: vec![T::Out::default(); geometry.total_q * hq * HEAD_DIM],
        lse: vec![f64::NEG_INFINITY; geometry.total_q * hq],
    };
    // The tokens of successive query blocks follow one another in the packed output, so each block owns a slice of it.
    let (mut out, mut lse) = (output.out.as_mut_slice(), output.lse.as_mut_slice());
    let mut work = Vec::with_capacity(geometry.total_qb());
    for row in 0..geometry.total_qb() {
        let n = geometry.tokens(row).len() * hq;
        let (Some(out), Some(lse)) = (out.split_off_mut(..n * HEAD_DIM), lse.split_off_mut(..n)) else {
            return Err(Error::shape("out", "query blocks of the packed tokens", format!("{} tokens", geometry.total_q)));
        };
        work.push((row, out, lse));
    }
    // Later blocks see more keys: start with them.
    work.into_par_iter().rev().for_each(|(row, out, lse)| {
        let states: Vec<_> = heads.par_iter().map(|head| RowState::<T>::run(inputs, row, head)).collect();
        for (h, state) in states.into_iter().enumerate() {
            let Some(state) = state else { continue };
            for (t, (out, lse)) in out.chunks_exact_mut(hq * HEAD_DIM).zip(lse.chunks_exact_mut(hq)).enumerate() {
                lse[h] = state.finish(t, heads[h].v_scale, &mut out[h * HEAD_DIM..(h + 1) * HEAD_DIM]);
            }
        }
    });
    Ok(output)
}

/// One query head: its KV head and the factors of its logits and output.
struct Head {
    head: usize,
    kv_head: usize,
    k_scale: f32,
    v_scale: f32,
}

impl Head {
    fn new(inputs: &AttendInputs<'_>, head: usize, kv_head: usize) -> Result<Self> {
        let hkv = inputs.kv.hkv;
        let k_scale = scale_at("k_scale", inputs.k_scale, kv_head, hkv)?;
        let v_scale = scale_at("v_scale", inputs.v_scale, kv_head, hkv)?;
        Ok(Self { head, kv_head, k_scale, v_scale })
    }
}

/// Softmax state of the query tokens of one block and head.
struct RowState<T> {
    /// Largest raw dot product so far.
    max: Vec<T>,
    /// Turns a raw dot product into a base-2 logit.
    scale: Vec<T>,
    /// Sum of exp2(logit - maximum + shift).
    sum: Vec<T>,
    /// Sum of the same times V.
    out: Tile<T>,
}

impl<T: Real> RowState<T> {
    /// Attention of query block `row`; `None` when there is no such block.
    fn run(inputs: &AttendInputs<'_>, row: usize, head: &Head) -> Option<Self> {
        let (block, request) = inputs.geometry.row(row)?;
        let tokens = inputs.geometry.tokens(row);
        let n = tokens.len();
        let log2_scale = T::from_f64(inputs.softmax_scale * std::f64::consts::LOG2_E);
        let mut state = Self { max: vec![T::NEG_INFINITY; n], scale: Vec::with_capacity(n), sum: vec![T::default(); n], out: zeros() };
        let mut q = zeros::<T>();
        for (q, t) in q.iter_mut().zip(tokens.clone()) {
            let at = (request.q_start as usize + t) * inputs.hq + head.head;
            let codes: &[F8E4M3; HEAD_DIM] = inputs.q.get(at * HEAD_DIM..)?.first_chunk()?;
            *q = fp8::decode_row(codes).map(T::from);
            // Scales whose product vanishes mean equal logits; 0 would turn "no maximum yet" into NaN.
            let scale = T::from(*inputs.q_scale.get(at)?) * T::from(head.k_scale) * log2_scale;
            state.scale.push(scale.max(T::from(f32::MIN_POSITIVE)));
        }
        let (mut k, mut v, mut s, mut pv) = (zeros(), zeros(), zeros(), zeros());
        let (id, end) = (block.request as usize, request.kv_len as usize);
        let mut visit = |key_block: usize| {
            let first = key_block * BLOCK;
            load_k_transposed(&inputs.kv, id, head.kv_head, first, end, &mut k);
            load_v(&inputs.kv, id, head.kv_head, first, end, &mut v);
            multiply(&q, &k, n, &mut s);
            scale_keys(&inputs.kv, id, head.kv_head, first, end, n, &mut s);
            for (i, t) in tokens.clone().enumerate() {
                let visible = visible_keys(request, t, inputs.geometry.causal).saturating_sub(first).min(BLOCK);
                let factor = state.softmax(i, &mut s[i], visible);
                for out in &mut state.out[i] {
                    *out = *out * factor;
                }
            }
            multiply(&s, &v, n, &mut pv);
            for (out, pv) in state.out.iter_mut().zip(&pv).take(n) {
                for (out, &pv) in out.iter_mut().zip(pv) {
                    *out = *out + pv;
                }
            }
        };
        match inputs.lists {
            Some(lists) => lists.row(head.head, row).iter().rev().for_each(|&block| visit(block as usize)),
            None => (0..inputs.geometry.candidates(row)).rev().for_each(visit),
        }
        Some(state)
    }

    /// Turns the dot products of row `i` into probabilities, the first `visible` of them, and returns what to multiply the
    /// output so far with.
    fn softmax(&mut self, i: usize, s: &mut [T; BLOCK], visible: usize) -> T {
        let (seen, masked) = s.split_at_mut(visible);
        masked.fill(T::default());
        if seen.is_empty() {
            return T::from(1.0);
        }
        let max = seen.iter().fold(self.max[i], |max, &s| max.max(s));
        let scale = self.scale[i];
        let factor = ((self.max[i] - max) * scale).exp2();
        let shift = max * scale - T::from(T::P_SHIFT);
        let mut sum = T::default();
        for s in seen {
            let p = (*s * scale - shift).exp2();
            sum = sum + p;
            *s = p.round_p();
        }
        self.sum[i] = self.sum[i] * factor + sum;
        self.max[i] = max;
        factor
    }

    /// Writes the output of row `i` and returns its log-sum-exp. A row that saw no key stays zero.
    fn finish(&self, i: usize, v_scale: f32, out: &mut [T::Out]) -> f64 {
        let sum: f64 = self.sum[i].into();
        if sum == 0.0 {
            return f64::NEG_INFINITY;
        }
        let factor = T::from_f64(f64::from(v_scale) / sum);
        for (out, &x) in out.iter_mut().zip(&self.out[i]) {
            *out = (x * factor).finish();
        }
        let max: f64 = (self.max[i] * self.scale[i]).into();
        (max + sum.log2() - f64::from(T::P_SHIFT)) * std::f64::consts::LN_2
    }
}

/// Keys that token `t` of a request's chunk sees: all, or those up to its own position.
fn visible_keys(request: &Request, t: usize, causal: bool) -> usize {
    let kv_len = request.kv_len as usize;
    if causal { kv_len.min((request.kv_len - request.q_len) as usize + t + 1) } else { kv_len }
}
