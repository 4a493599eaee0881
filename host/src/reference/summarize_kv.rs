//! `summarize_kv` on the CPU: what scoring and attention need of every key block.

use super::scale_at;
use crate::error::Result;
use crate::fp8;
use crate::geometry::Geometry;
use crate::kv::layout::{KvTensor, PagedKv};
use float8::F8E4M3;
use half::bf16;
use rayon::prelude::*;
use stem_attn_kernels::config::{BLOCK, GROUP_TOKENS, GROUPS, HEAD_DIM, NORM_EPS, RUN, RUNS, SUM_LEN, TILE_BYTES};
use stem_attn_kernels::layout::v_tile_offset;

/// Summaries of every key block.
#[derive(Clone, Debug)]
pub struct KvSummaries {
    /// `[hkv, total_kb, 16, 128]` sums of the keys of each group; group g is stored at 15 - g.
    pub k_sums: Vec<bf16>,
    /// `[hkv, total_kb, 8]` ln(largest value norm of the run + 1e-6).
    pub run_norms: Vec<f32>,
    /// `[total_kb, hkv, 16384]` transposed value tiles in operand order; tokens past the request's end are 0.
    pub v_tiles: Vec<F8E4M3>,
}

/// Key sums, run norms and transposed V tiles of every key block. A token without a page counts as zeros.
///
/// `k_scale`, `v_scale`: `[1]` or `[hkv]`. One pass over K and V.
///
/// # Errors
/// Those of [`PagedKv::validate`], [`crate::Error::Shape`] naming a scale, [`crate::Error::Value`] naming a table of the geometry.
pub fn summarize_kv(kv: &PagedKv<'_>, geometry: &Geometry, k_scale: &[f32], v_scale: &[f32]) -> Result<KvSummaries> {
    geometry.check()?;
    kv.validate(geometry)?;
    let (hkv, total_kb) = (kv.hkv, geometry.total_kb());
    for head in 0..hkv {
        scale_at("k_scale", k_scale, head, hkv)?;
        scale_at("v_scale", v_scale, head, hkv)?;
    }
    let mut summaries = KvSummaries {
        k_sums: vec![bf16::ZERO; hkv * total_kb * SUM_LEN],
        run_norms: vec![0.0; hkv * total_kb * RUNS],
        v_tiles: vec![F8E4M3::from_bits(0); total_kb * hkv * TILE_BYTES],
    };
    // Rows of one (block, head): the tokens of the block that exist, in order.
    let rows = |tensor, block: usize, head: usize| {
        let block = geometry.key_blocks[block];
        let request = block.request as usize;
        let first = block.block as usize * BLOCK;
        let end = geometry.requests[request].kv_len as usize;
        (first..end.min(first + BLOCK)).map(move |token| kv.row(tensor, request, head, token))
    };
    // Scale of token t of a block.
    let own = |block: usize, head: usize, t: usize| {
        let block = geometry.key_blocks[block];
        kv.token_scale(block.request as usize, head, block.block as usize * BLOCK + t)
    };
    summaries.k_sums.par_chunks_exact_mut(SUM_LEN).enumerate().try_for_each(|(i, sums)| {
        let (head, block) = (i / total_kb, i % total_kb);
        let scale = scale_at("k_scale", k_scale, head, hkv)?;
        let keys: Vec<_> = rows(KvTensor::K, block, head).collect();
        for (g, sum) in sums.chunks_exact_mut(HEAD_DIM).rev().enumerate() {
            group_sum(&keys, g, |t| scale * own(block, head, t), sum);
        }
        Result::Ok(())
    })?;
    summaries.run_norms.par_chunks_exact_mut(RUNS).enumerate().try_for_each(|(i, norms)| {
        let (head, block) = (i / total_kb, i % total_kb);
        let scale = scale_at("v_scale", v_scale, head, hkv)?;
        let mut largest = [0f32; RUNS];
        for (t, row) in rows(KvTensor::V, block, head).enumerate() {
            let squares: f32 = row.map_or(0.0, |row| row.iter().map(|&code| fp8::decode(code) * fp8::decode(code)).sum());
            largest[t / RUN] = largest[t / RUN].max(squares);
        }
        for (norm, squares) in norms.iter_mut().zip(largest) {
            *norm = (squares.sqrt() * scale + NORM_EPS).ln();
        }
        Result::Ok(())
    })?;
    summaries.v_tiles.par_chunks_exact_mut(TILE_BYTES).enumerate().for_each(|(i, tile)| {
        for (t, row) in rows(KvTensor::V, i / hkv, i % hkv).enumerate() {
            for (d, &code) in row.into_iter().flatten().enumerate() {
                tile[v_tile_offset(d, t)] = code;
            }
        }
    });
    Ok(summaries)
}

/// Sum of group `g` of a block: tokens g, g + 16, ... in order, `scale * code` added to the sum with one rounding, the
/// last sum rounded to bf16. `rows[t]` is token t of the block; tokens past the end or without data count as nothing.
fn group_sum(rows: &[Option<&[F8E4M3; HEAD_DIM]>], g: usize, scale: impl Fn(usize) -> f32, sum: &mut [bf16]) {
    let mut acc = [0f32; HEAD_DIM];
    for t in (0..GROUP_TOKENS).map(|r| g + GROUPS * r) {
        if let Some(Some(row)) = rows.get(t) {
            let scale = scale(t);
            add_token(&mut acc, scale, row);
        }
    }
    for (sum, acc) in sum.iter_mut().zip(acc) {
        *sum = bf16::from_f32(acc);
    }
}

/// Adds `scale * code` to each sum, with one rounding.
pub(super) fn add_token(acc: &mut [f32; HEAD_DIM], scale: f32, codes: &[F8E4M3; HEAD_DIM]) {
    // Compiled for any processor, `mul_add` is a call: five times the time of the whole sum.
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("fma") {
        #[target_feature(enable = "fma")]
        fn fused(acc: &mut [f32; HEAD_DIM], scale: f32, codes: &[F8E4M3; HEAD_DIM]) {
            add_each(acc, scale, codes);
        }
        // SAFETY: the processor has the instruction.
        return unsafe { fused(acc, scale, codes) };
    }
    add_each(acc, scale, codes);
}

#[inline(always)]
fn add_each(acc: &mut [f32; HEAD_DIM], scale: f32, codes: &[F8E4M3; HEAD_DIM]) {
    for (acc, &code) in acc.iter_mut().zip(codes) {
        *acc = scale.mul_add(fp8::decode(code), *acc);
    }
}
