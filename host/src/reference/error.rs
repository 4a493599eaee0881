//! How far an output is from a reference.

use crate::error::{Error, Result};
use crate::fp8;
use crate::tensor::PrefillInputs;
use rayon::prelude::*;
use stem_attn_kernels::config::HEAD_DIM;

/// `||out - reference|| / ||reference||` in f64 over all elements. NaN when the lengths differ or an element is NaN; of two
/// zero tensors 0.
pub fn relative<A: Copy + Into<f64>, B: Copy + Into<f64>>(out: &[A], reference: &[B]) -> f64 {
    if out.len() != reference.len() {
        return f64::NAN;
    }
    let (mut difference, mut norm) = (0f64, 0f64);
    for (&out, &reference) in out.iter().zip(reference) {
        let (out, reference): (f64, f64) = (out.into(), reference.into());
        difference += (out - reference).powi(2);
        norm += reference.powi(2);
    }
    if difference == 0.0 { 0.0 } else { (difference / norm).sqrt() }
}

/// Exact dense attention of some query rows, straight from the packed tensors: `[rows.len(), hq, 128]`. A query that sees
/// no key gives zeros. Parallel; time `rows * hq * KV length`.
///
/// # Errors
/// Those of [`PrefillInputs::validate`]; [`Error::Value`] naming `rows` for a row beyond `q`.
pub fn dense_rows(inputs: &PrefillInputs<'_>, causal: bool, rows: &[usize]) -> Result<Vec<f64>> {
    inputs.validate(causal)?;
    let total_q = inputs.cu_seqlens_q.last().map_or(0, |&n| n as usize);
    if let Some(row) = rows.iter().find(|row| **row >= total_q) {
        return Err(Error::value("rows", format!("query rows below {total_q}"), row));
    }
    let mut out = vec![0f64; rows.len() * inputs.hq * HEAD_DIM];
    out.par_chunks_exact_mut(HEAD_DIM).enumerate().for_each(|(i, out)| dense_row(inputs, causal, rows[i / inputs.hq], i % inputs.hq, out));
    Ok(out)
}

/// One row and head, in two passes: all logits, then their weighted values.
fn dense_row(inputs: &PrefillInputs<'_>, causal: bool, row: usize, head: usize, out: &mut [f64]) {
    // The request whose rows hold `row`: the last that starts at or before it (empty requests share a start).
    let b = inputs.cu_seqlens_q.partition_point(|&start| start as usize <= row) - 1;
    let (q_end, first) = (inputs.cu_seqlens_q[b + 1] as usize, inputs.cu_seqlens_kv[b] as usize);
    let end = inputs.cu_seqlens_kv[b + 1] as usize;
    // Bottom-right aligned: the last query sees the last key.
    let end = if causal { end - (q_end - 1 - row) } else { end };
    let kv_head = head / (inputs.hq / inputs.hkv);
    let scale = |scales: &[f32]| f64::from(if scales.len() == 1 { scales[0] } else { scales[kv_head] });
    let at = row * inputs.hq + head;
    let logit_scale = f64::from(inputs.q_scale[at]) * scale(inputs.k_head_scale()) / (HEAD_DIM as f64).sqrt();
    let own = inputs.k_token_scale();
    let q = &inputs.q[at * HEAD_DIM..(at + 1) * HEAD_DIM];
    let kv_row = |token: usize| (token * inputs.hkv + kv_head) * HEAD_DIM..(token * inputs.hkv + kv_head + 1) * HEAD_DIM;
    let logits: Vec<f64> = (first..end)
        .map(|token| {
            let k = &inputs.k[kv_row(token)];
            // A product of two e4m3 values is exact in f32.
            let own = own.map_or(1.0, |own| f64::from(own[token * inputs.hkv + kv_head]));
            q.iter().zip(k).map(|(&q, &k)| f64::from(fp8::decode(q) * fp8::decode(k))).sum::<f64>() * logit_scale * own
        })
        .collect();
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut sum = 0f64;
    for (token, logit) in (first..end).zip(logits) {
        let p = (logit - max).exp();
        sum += p;
        for (out, &v) in out.iter_mut().zip(&inputs.v[kv_row(token)]) {
            *out += p * f64::from(fp8::decode(v));
        }
    }
    if sum != 0.0 {
        let factor = scale(inputs.v_scale) / sum;
        out.iter_mut().for_each(|out| *out *= factor);
    }
}
