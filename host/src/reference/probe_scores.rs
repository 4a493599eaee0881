//! Block scores of the probe selector. All logarithms are base 2.

use super::probe_pool::{KeyMeans, QueryMeans};
use super::{check_group, check_len, scale_at};
use crate::config::{GroupNorm, KeyModel, Normaliser, ProbeConfig};
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use rayon::prelude::*;
use stem_attn_kernels::config::probe_sel::{PART_GROUPS, TILE_BLOCKS};
use stem_attn_kernels::config::{BLOCK, HEAD_DIM};

/// What [`probe_scores`] reads.
#[derive(Clone, Copy, Debug)]
pub struct ProbeInputs<'a> {
    /// From [`super::query_means`].
    pub queries: &'a QueryMeans,
    /// From [`super::key_means`], same settings.
    pub keys: &'a KeyMeans,
    /// `[1]` or `[hkv]`.
    pub k_scale: &'a [f32],
    /// Multiplies q.k.
    pub softmax_scale: f64,
    /// Columns of a score row, at least the longest request's key blocks and at least 1.
    pub score_stride: usize,
}

/// Scores `[hq, total_qb, score_stride]`, base-2 logarithms: the norm over the query groups of their shares for each key
/// block. Columns the row cannot see are minus infinity, and so is all of a row without a query.
///
/// A sub-block counts for a group when its first token is visible to the group's last query. Products in f32, the rest in f64.
/// Work per head: query groups times visible sub-blocks times 128.
///
/// # Errors
/// [`Error::Shape`] or [`Error::Value`] naming the tensor; those of [`ProbeConfig::validate`].
pub fn probe_scores(inputs: &ProbeInputs<'_>, geometry: &Geometry, config: &ProbeConfig) -> Result<Vec<f32>> {
    config.validate()?;
    geometry.check()?;
    let ProbeInputs { queries, keys, k_scale, softmax_scale, score_stride } = *inputs;
    let (hq, hkv, total_qb) = (queries.hq, keys.hkv, geometry.total_qb());
    let group = check_group(hq, hkv)?;
    let key_extents = [hkv, geometry.total_kb(), config.sub_blocks(), HEAD_DIM];
    check_len("query means", queries.means.len(), &[hq, total_qb, config.query_groups(), HEAD_DIM])?;
    check_len("query scales", queries.scales.len(), &[hq, total_qb, config.query_groups()])?;
    check_len("key means", keys.means.len(), &key_extents)?;
    if config.keys == KeyModel::Gauss {
        check_len("key variances", keys.variances.len(), &key_extents)?;
    }
    if score_stride < geometry.max_kb.max(1) {
        return Err(Error::shape("scores", format!("at least {} columns", geometry.max_kb.max(1)), score_stride));
    }
    for head in 0..hkv {
        scale_at("k_scale", k_scale, head, hkv)?;
    }
    let total = (hq * total_qb).checked_mul(score_stride);
    let total = total.ok_or_else(|| Error::shape("scores", "a size that fits the address space", score_stride))?;
    let mut scores = vec![f32::NEG_INFINITY; total];
    scores.par_chunks_exact_mut(score_stride).enumerate().try_for_each(|(i, scores)| {
        let (head, row) = (i / total_qb, i % total_qb);
        let scale = softmax_scale * f64::from(scale_at("k_scale", k_scale, head / group, hkv)?);
        let groups = groups_of_row(inputs, geometry, config, (head, head / group, row), scale);
        let row = match config.normaliser {
            Normaliser::Running => running(&groups, geometry.candidates(row), config.groups),
            Normaliser::Sums | Normaliser::Maxima => {
                let share = |group: &Group| group.maxima.iter().map(|m| m - group.normaliser).collect();
                let shares: Vec<Vec<f64>> = groups.iter().flatten().map(share).collect();
                norm_rows(&shares, geometry.candidates(row), config.groups)
            }
        };
        for (score, exact) in scores.iter_mut().zip(row) {
            *score = exact as f32;
        }
        Ok(())
    })?;
    Ok(scores)
}

/// One query group that has queries.
struct Group {
    /// Largest logit of each candidate key block.
    maxima: Vec<f64>,
    /// Log-sum-exp that logits are measured against (not used by the running normaliser).
    normaliser: f64,
}

/// The row's groups in order, `None` where one has no query.
fn groups_of_row(
    inputs: &ProbeInputs<'_>,
    geometry: &Geometry,
    config: &ProbeConfig,
    (head, kv_head, row): (usize, usize, usize),
    scale: f64,
) -> Vec<Option<Group>> {
    let Some((block, request)) = geometry.row(row) else { return Vec::new() };
    let (pool, sub_blocks, groups) = (config.query_pool as usize, config.sub_blocks(), config.query_groups());
    let first_group = (head * geometry.total_qb() + row) * groups;
    let first_block = kv_head * geometry.total_kb() + request.kb_start as usize;
    let tokens = geometry.tokens(row);
    let history = (request.kv_len - request.q_len) as usize;
    let log2 = scale * std::f64::consts::LOG2_E;
    let mut done = Vec::with_capacity(groups);
    for g in 0..groups {
        let query_scale = inputs.queries.scales[first_group + g];
        if query_scale == 0.0 {
            done.push(None);
            continue;
        }
        let last_query = (block.block as usize * BLOCK + (g + 1) * pool - 1).min(history + tokens.end.saturating_sub(1));
        let limit = if geometry.causal { last_query } else { request.kv_len as usize - 1 };
        let query = &inputs.queries.means[(first_group + g) * HEAD_DIM..][..HEAD_DIM];
        let to_log2 = f64::from(query_scale) * log2;
        let squares: Vec<f32> = query.iter().map(|x| x * x).collect();
        let mut maxima = vec![f64::NEG_INFINITY; geometry.candidates(row)];
        let mut all = Vec::new();
        for (j, maximum) in maxima.iter_mut().enumerate() {
            for c in (0..sub_blocks).take_while(|c| j * BLOCK + c * config.key_pool as usize <= limit) {
                let at = ((first_block + j) * sub_blocks + c) * HEAD_DIM;
                let mut logit = to_log2 * f64::from(dot(query, &inputs.keys.means[at..at + HEAD_DIM]));
                if config.keys == KeyModel::Gauss {
                    let spread = f64::from(dot(&squares, &inputs.keys.variances[at..at + HEAD_DIM]));
                    logit += 0.5 * to_log2 * to_log2 * spread / std::f64::consts::LOG2_E;
                }
                *maximum = maximum.max(logit);
                if config.normaliser == Normaliser::Sums {
                    all.push(logit);
                }
            }
        }
        let normaliser = match config.normaliser {
            Normaliser::Sums => log_sum(&all),
            Normaliser::Maxima => log_sum(&maxima),
            Normaliser::Running => 0.0,
        };
        done.push(Some(Group { maxima, normaliser }));
    }
    done
}

/// The one-pass form, in parts of 16 groups: see [`Normaliser::Running`].
fn running(groups: &[Option<Group>], candidates: usize, norm: GroupNorm) -> Vec<f64> {
    let part = |part: &[Option<Group>]| running_part(&part.iter().flatten().collect::<Vec<_>>(), candidates, norm);
    let parts: Vec<Vec<f64>> = groups.chunks(PART_GROUPS).map(part).collect();
    norm_rows(&parts, candidates, norm)
}

fn running_part(part: &[&Group], candidates: usize, norm: GroupNorm) -> Vec<f64> {
    let mut seen = vec![f64::NEG_INFINITY; part.len()];
    let mut scores = vec![f64::NEG_INFINITY; candidates];
    let mut strongest = vec![0; candidates];
    for tile in (0..candidates.div_ceil(TILE_BLOCKS)).rev() {
        let blocks = tile * TILE_BLOCKS..((tile + 1) * TILE_BLOCKS).min(candidates);
        for (seen, group) in seen.iter_mut().zip(part) {
            *seen = log_sum(&[*seen, log_sum(&group.maxima[blocks.clone()])]);
        }
        for j in blocks {
            let shares: Vec<f64> = part.iter().zip(&seen).map(|(group, seen)| group.maxima[j] - seen).collect();
            let best = (0..shares.len()).reduce(|best, g| if shares[g] > shares[best] { g } else { best });
            let Some(best) = best else { continue };
            strongest[j] = best;
            // Back in absolute terms; all that the group has seen by the end is taken off below.
            scores[j] = norm_of(&shares, norm) + seen[best];
        }
    }
    scores.iter().zip(strongest).map(|(score, best)| score - seen.get(best).copied().unwrap_or(0.0)).collect()
}

/// Norm over rows of `candidates` logarithms, column by column.
fn norm_rows(rows: &[Vec<f64>], candidates: usize, norm: GroupNorm) -> Vec<f64> {
    (0..candidates).map(|j| norm_of(&rows.iter().map(|row| row[j]).collect::<Vec<_>>(), norm)).collect()
}

/// Logarithm of the norm of numbers given by their logarithms.
fn norm_of(logs: &[f64], norm: GroupNorm) -> f64 {
    match norm {
        GroupNorm::Max => logs.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        GroupNorm::Cubic => log_sum(&logs.iter().map(|x| 3.0 * x).collect::<Vec<_>>()) / 3.0,
    }
}

/// log2 of the sum of 2^x; minus infinity for nothing.
fn log_sum(logs: &[f64]) -> f64 {
    let largest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if largest == f64::NEG_INFINITY {
        return largest;
    }
    largest + logs.iter().map(|x| (x - largest).exp2()).sum::<f64>().log2()
}

/// A dot product with sixteen partial sums, which the compiler turns into vector code.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 16];
    for (a, b) in a.chunks_exact(16).zip(b.chunks_exact(16)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum()
}
