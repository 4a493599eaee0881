//! Pooled keys and queries of the probe selector.

use super::{check_group, check_len};
use crate::config::{KeyModel, ProbeConfig};
use crate::error::Result;
use crate::fp8;
use crate::geometry::Geometry;
use crate::kv::layout::{KvTensor, PagedKv};
use crate::kv::scales::TokenScaleLayout;
use float8::F8E4M3;
use rayon::prelude::*;
use stem_attn_kernels::config::{BLOCK, HEAD_DIM};
use stem_attn_kernels::layout::probe_sel::exact_scale;

/// What stands for the keys of every sub-block, in units of the K codes (real values are these times `k_scale`).
#[derive(Clone, Debug)]
pub struct KeyMeans {
    /// `[hkv, total_kb, 128 / key_pool, 128]` means over the tokens that exist; 0 for a sub-block without one.
    pub means: Vec<f32>,
    /// The same shape, variances of every dimension; empty for [`KeyModel::Mean`].
    pub variances: Vec<f32>,
    /// KV heads.
    pub hkv: usize,
}

/// Means of every query group.
#[derive(Clone, Debug)]
pub struct QueryMeans {
    /// `[hq, total_qb, 128 / query_pool, 128]`; the real mean is this times the group's scale.
    pub means: Vec<f32>,
    /// `[hq, total_qb, 128 / query_pool]`; 0 for a group without a query. 1 where the means are not rounded.
    pub scales: Vec<f32>,
    /// Query heads.
    pub hq: usize,
}

/// Sub-block means (and variances) of the keys. A token without a page counts as zeros. One pass over K.
///
/// With `fp8` a mean is rounded to e4m3 in the units of the codes: the sum of eight codes is exact in f32, and e4m3 has
/// twelve binades below a typical key, so the K scale serves the means too.
///
/// # Errors
/// [`crate::Error::Unsupported`] for keys with a scale each; those of [`PagedKv::validate`] and [`ProbeConfig::validate`];
/// [`crate::Error::Value`] naming a table of the geometry.
pub fn key_means(kv: &PagedKv<'_>, geometry: &Geometry, config: &ProbeConfig) -> Result<KeyMeans> {
    config.validate()?;
    geometry.check()?;
    kv.validate(geometry)?;
    ProbeConfig::require_head_scales(kv.k_token_scales != TokenScaleLayout::None)?;
    let (pool, n, total_kb) = (config.key_pool as usize, config.sub_blocks(), geometry.total_kb());
    let block_len = n * HEAD_DIM;
    let gauss = config.keys == KeyModel::Gauss;
    let mut means = vec![0f32; kv.hkv * total_kb * block_len];
    let mut variances = vec![0f32; if gauss { means.len() } else { 0 }];
    let pooled = |i: usize, means: &mut [f32], mut variances: Option<&mut [f32]>| {
        let (head, block) = (i / total_kb, geometry.key_blocks[i % total_kb]);
        let (request, first) = (block.request as usize, block.block as usize * BLOCK);
        let end = geometry.requests[request].kv_len as usize;
        for (c, mean) in means.chunks_exact_mut(HEAD_DIM).enumerate() {
            let start = (first + c * pool).min(end);
            let tokens = start..(start + pool).min(end);
            let inverse = 1.0 / tokens.len().max(1) as f32;
            let mut squares = [0f32; HEAD_DIM];
            for row in tokens.filter_map(|token| kv.row(KvTensor::K, request, head, token)) {
                for ((sum, square), &code) in mean.iter_mut().zip(&mut squares).zip(row) {
                    let x = fp8::decode(code);
                    *sum += x;
                    *square += x * x;
                }
            }
            for (d, (mean, square)) in mean.iter_mut().zip(squares).enumerate() {
                *mean *= inverse;
                if let Some(variances) = variances.as_deref_mut() {
                    variances[c * HEAD_DIM + d] = (square * inverse - *mean * *mean).max(0.0);
                }
                if config.fp8 {
                    *mean = fp8::decode(fp8::encode(*mean));
                }
            }
        }
    };
    if gauss {
        let blocks = means.par_chunks_exact_mut(block_len).zip(variances.par_chunks_exact_mut(block_len));
        blocks.enumerate().for_each(|(i, (means, variances))| pooled(i, means, Some(variances)));
    } else {
        means.par_chunks_exact_mut(block_len).enumerate().for_each(|(i, means)| pooled(i, means, None));
    }
    Ok(KeyMeans { means, variances, hkv: kv.hkv })
}

/// Means of the query groups, from `q` `[total_q, hq, 128]` and `q_scale` `[total_q, hq]`. Groups are cut at absolute
/// positions; tokens of a group that are not new count as nothing, in the sum and in the number.
///
/// With `fp8` a mean is divided by its largest magnitude and rounded to e4m3: products with any keys then stay below
/// 128 * 448, which f16 accumulators hold. (The sum is, so that nothing is rounded twice; the mean's scale is the sum's over the
/// number of queries.) Scales enter without their last four bits: [`exact_scale`].
///
/// # Errors
/// [`crate::Error::Shape`] naming `q` or `q_scale`; [`ProbeConfig::validate`]'s; [`crate::Error::Value`] naming a table of the geometry.
pub fn query_means(q: &[F8E4M3], q_scale: &[f32], hq: usize, geometry: &Geometry, config: &ProbeConfig) -> Result<QueryMeans> {
    config.validate()?;
    geometry.check()?;
    check_group(hq, 1)?;
    check_len("q", q.len(), &[geometry.total_q, hq, HEAD_DIM])?;
    check_len("q_scale", q_scale.len(), &[geometry.total_q, hq])?;
    let (pool, groups, total_qb) = (config.query_pool as usize, config.query_groups(), geometry.total_qb());
    let mut means = vec![0f32; hq * total_qb * groups * HEAD_DIM];
    let mut scales = vec![0f32; hq * total_qb * groups];
    means.par_chunks_exact_mut(groups * HEAD_DIM).zip(scales.par_chunks_exact_mut(groups)).enumerate().for_each(|(i, (means, scales))| {
        let (head, row) = (i / total_qb, i % total_qb);
        let Some((block, request)) = geometry.row(row) else { return };
        let history = (request.kv_len - request.q_len) as usize;
        let mut counts = vec![0usize; groups];
        for t in geometry.tokens(row) {
            let at = (request.q_start as usize + t) * hq + head;
            let g = (history + t - block.block as usize * BLOCK) / pool;
            counts[g] += 1;
            let scale = exact_scale(q_scale[at]);
            for (sum, &code) in means[g * HEAD_DIM..].iter_mut().zip(&q[at * HEAD_DIM..(at + 1) * HEAD_DIM]) {
                *sum += scale * fp8::decode(code);
            }
        }
        for ((mean, scale), count) in means.chunks_exact_mut(HEAD_DIM).zip(scales).zip(counts) {
            let inverse = 1.0 / count.max(1) as f32;
            if config.fp8 && count > 0 {
                let largest = mean.iter().fold(LEAST_SCALE, |m, x| m.max(x.abs()));
                let factor = 1.0 / largest;
                mean.iter_mut().for_each(|x| *x = fp8::decode(fp8::encode(*x * factor)));
                *scale = largest * inverse;
            } else {
                mean.iter_mut().for_each(|x| *x *= inverse);
                *scale = if count == 0 { 0.0 } else { 1.0 };
            }
        }
    });
    Ok(QueryMeans { means, scales, hq })
}

/// Least scale of a group: keeps a group of zero queries away from 0 / 0.
const LEAST_SCALE: f32 = stem_attn_kernels::config::probe_sel::LEAST_SCALE;
