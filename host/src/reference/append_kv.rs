//! `append_kv` on the CPU: bf16 K and V of the new tokens into e4m3 pages.

use super::{check_len, scale_at};
use crate::error::Result;
use crate::fp8;
use crate::geometry::Geometry;
use crate::kv::layout::{KvTensor, PagedTensors};
use crate::kv::scales::TokenScaleLayout;
use half::bf16;
use stem_attn_kernels::config::HEAD_DIM;

/// Writes the new tokens' K and V (`[total_q, hkv, 128]`) to their pages, as `e4m3(x * (1 / scale))`. Where keys have a scale each,
/// that is written too: the largest magnitude of the key over `448 * k_scale`, by which its codes are divided as well.
///
/// New token t of a request stands at `kv_len - q_len + t`. A token whose table entry lies outside the pool is skipped.
///
/// # Errors
/// [`crate::Error::Shape`] or [`crate::Error::Value`] naming `k`, `v`, the scales (`[1]` or `[hkv]`) or a table of the geometry.
pub fn append_kv(k: &[bf16], v: &[bf16], geometry: &Geometry, k_scale: &[f32], v_scale: &[f32], pages: &mut PagedTensors) -> Result<()> {
    geometry.check()?;
    let hkv = pages.hkv;
    check_len("k", k.len(), &[geometry.total_q, hkv, HEAD_DIM])?;
    check_len("v", v.len(), &[geometry.total_q, hkv, HEAD_DIM])?;
    let mut codes = Vec::with_capacity(HEAD_DIM);
    for (b, request) in geometry.requests.iter().enumerate() {
        let history = (request.kv_len - request.q_len) as usize;
        for t in 0..request.q_len as usize {
            for head in 0..hkv {
                let at = ((request.q_start as usize + t) * hkv + head) * HEAD_DIM;
                let k_scale = scale_at("k_scale", k_scale, head, hkv)?;
                let v_scale = scale_at("v_scale", v_scale, head, hkv)?;
                let own = match pages.k_token_scales {
                    TokenScaleLayout::None => 1.0,
                    _ => fp8::own_scale(&k[at..at + HEAD_DIM], k_scale),
                };
                pages.set_token_scale(b, head, history + t, own);
                for (tensor, rows, scale, own) in [(KvTensor::K, k, k_scale, own), (KvTensor::V, v, v_scale, 1.0)] {
                    codes.clear();
                    fp8::append(&rows[at..at + HEAD_DIM], scale, own, &mut codes);
                    if let Some(row) = pages.row_mut(tensor, b, head, history + t) {
                        row.copy_from_slice(&codes);
                    }
                }
            }
        }
    }
    Ok(())
}
