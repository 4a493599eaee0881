//! Host tensors of one attention layer.

use crate::error::{Error, Result};
use float8::F8E4M3;

/// Inputs of one prefill call in host memory, packed over the requests of a batch (request b owns rows
/// `cu_seqlens_q[b]..cu_seqlens_q[b + 1]` of the query tensors and `cu_seqlens_kv[b]..cu_seqlens_kv[b + 1]` of K and V).
///
/// Real values are code * scale; logits are `q.k * q_scale * k_scale / sqrt(128)`.
#[derive(Clone, Copy, Debug)]
pub struct PrefillInputs<'a> {
    /// `[total_q, hq, 128]` e4m3.
    pub q: &'a [F8E4M3],
    /// `[total_q, hq]`, positive and finite.
    pub q_scale: &'a [f32],
    /// `[total_kv, hkv, 128]` e4m3.
    pub k: &'a [F8E4M3],
    /// `[total_kv, hkv, 128]` e4m3.
    pub v: &'a [F8E4M3],
    /// `[1]`, `[hkv]` or `[total_kv, hkv]`, positive and finite.
    pub k_scale: &'a [f32],
    /// `[1]` or `[hkv]`, positive and finite.
    pub v_scale: &'a [f32],
    /// Query heads; a multiple of `hkv`.
    pub hq: usize,
    /// KV heads.
    pub hkv: usize,
    /// `[batch + 1]` offsets into the query rows, from 0 to `total_q`.
    pub cu_seqlens_q: &'a [i32],
    /// `[batch + 1]` offsets into the K/V rows, from 0 to `total_kv`.
    pub cu_seqlens_kv: &'a [i32],
    /// `[batch]` tokens of the whole prompt (decides the budgets); at least the request's KV length.
    pub prompt_lens: &'a [i32],
}

impl<'a> PrefillInputs<'a> {
    /// Requests of the batch.
    pub fn batch(&self) -> usize {
        self.cu_seqlens_q.len().saturating_sub(1)
    }

    /// Scales of single keys, `[total_kv, hkv]`, where `k_scale` is that.
    pub fn k_token_scale(&self) -> Option<&'a [f32]> {
        let per_head = self.k_scale.len() == 1 || self.k_scale.len() == self.hkv;
        (!per_head).then_some(self.k_scale)
    }

    /// `k_scale` where that is `[1]` or `[hkv]`, else a one.
    pub fn k_head_scale(&self) -> &'a [f32] {
        if self.k_token_scale().is_some() { &[1.0] } else { self.k_scale }
    }

    /// Checks every extent and scale.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::Value`], naming the tensor; nothing else happens.
    pub fn validate(&self, causal: bool) -> Result<()> {
        let d = stem_attn_kernels::config::HEAD_DIM;
        if self.hkv == 0 || self.hq == 0 || !self.hq.is_multiple_of(self.hkv) {
            return Err(Error::value("heads", "query heads a positive multiple of KV heads", format!("{} and {}", self.hq, self.hkv)));
        }
        let (total_q, total_kv) = (check_offsets("cu_seqlens_q", self.cu_seqlens_q)?, check_offsets("cu_seqlens_kv", self.cu_seqlens_kv)?);
        if self.cu_seqlens_q.len() != self.cu_seqlens_kv.len() {
            return Err(Error::shape(
                "cu_seqlens_kv",
                format!("{} entries, as in cu_seqlens_q", self.cu_seqlens_q.len()),
                self.cu_seqlens_kv.len(),
            ));
        }
        if self.prompt_lens.len() != self.batch() {
            return Err(Error::shape("prompt_lens", format!("{} entries, one per request", self.batch()), self.prompt_lens.len()));
        }
        let elements = |rows: usize, heads: usize, width: usize, name| {
            rows.checked_mul(heads)
                .and_then(|n| n.checked_mul(width))
                .ok_or_else(|| Error::shape(name, "a size that fits the address space", format!("{rows} x {heads} x {width}")))
        };
        for (name, got, want) in [
            ("q", self.q.len(), elements(total_q, self.hq, d, "q")?),
            ("q_scale", self.q_scale.len(), elements(total_q, self.hq, 1, "q_scale")?),
            ("k", self.k.len(), elements(total_kv, self.hkv, d, "k")?),
            ("v", self.v.len(), elements(total_kv, self.hkv, d, "v")?),
        ] {
            if got != want {
                return Err(Error::shape(name, format!("{want} elements"), got));
            }
        }
        check_scales("q_scale", self.q_scale)?;
        for (name, scales, per_token) in
            [("k_scale", self.k_scale, Some(elements(total_kv, self.hkv, 1, "k_scale")?)), ("v_scale", self.v_scale, None)]
        {
            let (one, hkv) = (scales.len() == 1, scales.len() == self.hkv);
            if !one && !hkv && Some(scales.len()) != per_token {
                let token = if per_token.is_some() { format!(" or [{total_kv}, {}]", self.hkv) } else { String::new() };
                return Err(Error::shape(name, format!("[1] or [{}]{token}", self.hkv), format!("[{}]", scales.len())));
            }
            check_scales(name, scales)?;
        }
        for b in 0..self.batch() {
            let (lq, lk) = (self.cu_seqlens_q[b + 1] - self.cu_seqlens_q[b], self.cu_seqlens_kv[b + 1] - self.cu_seqlens_kv[b]);
            if causal && lk < lq {
                return Err(Error::shape("k", format!("at least {lq} tokens in request {b} (causal: every query sees its own key)"), lk));
            }
            if self.prompt_lens[b] < lk {
                return Err(Error::value("prompt_lens", format!("at least {lk}, the KV length of request {b}"), self.prompt_lens[b]));
            }
        }
        Ok(())
    }
}

fn check_offsets(name: &'static str, offsets: &[i32]) -> Result<usize> {
    let rising = offsets.first() == Some(&0) && offsets.windows(2).all(|w| w[0] <= w[1]);
    if !rising {
        return Err(Error::value(name, "offsets that start at 0 and never fall", format!("{:?}", &offsets[..offsets.len().min(8)])));
    }
    Ok(*offsets.last().unwrap_or(&0) as usize)
}

fn check_scales(name: &'static str, scales: &[f32]) -> Result<()> {
    match scales.iter().position(|s| !(s.is_finite() && *s > 0.0)) {
        Some(i) => Err(Error::value(name, "positive finite scales", format!("{} at {i}", scales[i]))),
        None => Ok(()),
    }
}
