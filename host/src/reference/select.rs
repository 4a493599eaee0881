//! `select` on the CPU: query sums, value term, block scores, and the lists they lead to.

use super::query_sum::group_sum;
use super::{check_group, check_len};
use crate::config::{Guards, OamConfig, StemConfig, TieRule};
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::mask::BlockLists;
use float8::F8E4M3;
use half::bf16;
use rayon::prelude::*;
use stem_attn_kernels::config::{BLOCK, HEAD_DIM, RUN, RUNS, SUM_LEN};

/// Group sums of the queries, `[hq, total_qb, 16, 128]` with group g at g, from `q` `[total_q, hq, 128]` and `q_scale`
/// `[total_q, hq]`. Token t of a block belongs to group t mod 16; positions of a block outside the chunk count as nothing. The bits are
/// the kernel's: `scale * code` in f16, rounded to bf16 last (the group's scales normalised by a power of two, so that f16 holds them).
///
/// # Errors
/// [`Error::Shape`] naming `q` or `q_scale`; [`Error::Value`] naming a table of the geometry.
pub fn query_sums(q: &[F8E4M3], q_scale: &[f32], hq: usize, geometry: &Geometry) -> Result<Vec<bf16>> {
    geometry.check()?;
    check_len("q", q.len(), &[geometry.total_q, hq, HEAD_DIM])?;
    check_len("q_scale", q_scale.len(), &[geometry.total_q, hq])?;
    let total_qb = geometry.total_qb();
    let mut sums = vec![bf16::ZERO; hq * total_qb * SUM_LEN];
    sums.par_chunks_exact_mut(SUM_LEN).enumerate().for_each(|(i, sums)| {
        let (head, row) = (i / total_qb, i % total_qb);
        let Some((block, request)) = geometry.row(row) else { return };
        let history = (request.kv_len - request.q_len) as usize;
        let mut rows = [None; BLOCK];
        let mut scales = [0f32; BLOCK];
        for t in geometry.tokens(row) {
            let at = (request.q_start as usize + t) * hq + head;
            let in_block = history + t - block.block as usize * BLOCK;
            rows[in_block] = q[at * HEAD_DIM..].first_chunk();
            scales[in_block] = q_scale[at];
        }
        for (g, sum) in sums.chunks_exact_mut(HEAD_DIM).enumerate() {
            group_sum(&rows, g, |t| scales[t], sum);
        }
    });
    Ok(sums)
}

/// Value term of every key block, `[hkv, total_kb]`, from run norms `[hkv, total_kb, 8]`: `lambda` times the mean over the
/// block's eight runs of max(0, z), z over the runs of the request and head.
///
/// A run without a token counts in mean and deviation, as ln 1e-6, when `count_empty_runs`; else it counts nowhere and
/// adds 0 to its block. The deviation is the unbiased one, 0 for fewer than two runs. Statistics in f64.
///
/// # Errors
/// [`Error::Shape`] naming `run_norms`; [`Error::Value`] naming a table of the geometry.
pub fn value_bias(run_norms: &[f32], hkv: usize, geometry: &Geometry, oam: &OamConfig) -> Result<Vec<f32>> {
    geometry.check()?;
    let total_kb = geometry.total_kb();
    check_len("run_norms", run_norms.len(), &[hkv, total_kb, RUNS])?;
    let mut bias = vec![0f32; hkv * total_kb];
    for head in 0..hkv {
        for request in &geometry.requests {
            let first = head * total_kb + request.kb_start as usize;
            let blocks = request.kb_len as usize;
            let runs = &run_norms[first * RUNS..(first + blocks) * RUNS];
            let counted = if oam.count_empty_runs { runs.len() } else { (request.kv_len as usize).div_ceil(RUN) };
            let runs = &runs[..counted];
            let n = counted as f64;
            let mean = runs.iter().map(|&l| f64::from(l)).sum::<f64>() / n;
            let squares = runs.iter().map(|&l| (f64::from(l) - mean).powi(2)).sum::<f64>();
            let deviation = if counted < 2 { 0.0 } else { (squares / (n - 1.0)).sqrt() };
            for (bias, runs) in bias[first..first + blocks].iter_mut().zip(runs.chunks(RUNS)) {
                let positive: f64 = runs.iter().map(|&l| ((f64::from(l) - mean) / (deviation + 1e-6)).max(0.0)).sum();
                *bias = (f64::from(oam.lambda) * positive / RUNS as f64) as f32;
            }
        }
    }
    Ok(bias)
}

/// What [`scores`] reads.
#[derive(Clone, Copy, Debug)]
pub struct ScoreInputs<'a> {
    /// `[hq, total_qb, 16, 128]`, group g at g.
    pub q_sums: &'a [bf16],
    /// `[hkv, total_kb, 16, 128]`, group g at 15 - g.
    pub k_sums: &'a [bf16],
    /// `[hkv, total_kb]`.
    pub v_bias: &'a [f32],
    /// Query heads.
    pub hq: usize,
    /// KV heads.
    pub hkv: usize,
    /// Columns of a score row, at least the longest request's key blocks and at least 1.
    pub score_stride: usize,
}

/// Scores `[hq, total_qb, score_stride]`: `qk_scale * <q_sums, k_sums> + v_bias`, the product accumulated in f64, rounded to
/// bf16 when the configuration says so. Column j is key block j of the row's request; columns the row cannot see are minus infinity.
///
/// # Errors
/// [`Error::Shape`] or [`Error::Value`] naming the tensor.
pub fn scores(inputs: &ScoreInputs<'_>, geometry: &Geometry, oam: &OamConfig) -> Result<Vec<f32>> {
    geometry.check()?;
    let ScoreInputs { q_sums, k_sums, v_bias, hq, hkv, score_stride } = *inputs;
    let (total_qb, total_kb) = (geometry.total_qb(), geometry.total_kb());
    let group = check_group(hq, hkv)?;
    check_len("q_sums", q_sums.len(), &[hq, total_qb, SUM_LEN])?;
    check_len("k_sums", k_sums.len(), &[hkv, total_kb, SUM_LEN])?;
    check_len("v_bias", v_bias.len(), &[hkv, total_kb])?;
    if score_stride < geometry.max_kb.max(1) {
        return Err(Error::shape("scores", format!("at least {} columns", geometry.max_kb.max(1)), score_stride));
    }
    let rows = hq * total_qb;
    let total = rows.checked_mul(score_stride).ok_or_else(|| Error::shape("scores", "a size that fits the address space", score_stride))?;
    let mut scores = vec![f32::NEG_INFINITY; total];
    scores.par_chunks_exact_mut(score_stride).enumerate().for_each(|(i, scores)| {
        let (head, row) = (i / total_qb, i % total_qb);
        let Some((_, request)) = geometry.row(row) else { return };
        let query: Vec<f64> = q_sums[i * SUM_LEN..(i + 1) * SUM_LEN].iter().map(|x| x.to_f64()).collect();
        let first = head / group * total_kb + request.kb_start as usize;
        for (j, score) in scores.iter_mut().enumerate().take(geometry.candidates(row)) {
            let keys = &k_sums[(first + j) * SUM_LEN..(first + j + 1) * SUM_LEN];
            let qk: f64 = query.iter().zip(keys).map(|(q, k)| q * k.to_f64()).sum();
            let exact = oam.qk_scale * qk as f32 + v_bias[first + j];
            *score = if oam.round_bf16 { bf16::from_f32(exact).to_f32() } else { exact };
        }
    });
    Ok(scores)
}

/// Order of scores as unsigned integers: -0 equals +0, and whatever is not finite ranks below every finite value.
pub fn score_key(score: f32) -> u32 {
    if !score.is_finite() {
        return 0;
    }
    // Adding 0 turns -0 into +0.
    let bits = (score + 0.0).to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 0x8000_0000 }
}

/// The kept blocks of one row, ascending: the `budget` best of `scores` (one entry per candidate) and the guards.
///
/// Guards are the first `sink` blocks and the `window` blocks up to and including `diagonal`.
pub fn topk_row(scores: &[f32], budget: usize, diagonal: usize, config: &StemConfig) -> Vec<i32> {
    let candidates = scores.len();
    if budget >= candidates {
        return (0..candidates as i32).collect();
    }
    let window = diagonal.saturating_add(1).saturating_sub(config.window as usize)..=diagonal;
    let guard = |j: &usize| *j < config.sink as usize || window.contains(j);
    let mut ranked: Vec<usize> = match config.guards {
        Guards::InsideBudget => (0..candidates).collect(),
        Guards::OnTop => (0..candidates).filter(|j| !guard(j)).collect(),
    };
    // The sort is stable: equal keys stay in index order.
    ranked.sort_by_key(|&j| std::cmp::Reverse(score_key(scores[j])));
    let mut kept = budget.min(ranked.len());
    if config.ties == TieRule::KeepAll
        && let Some(threshold) = kept.checked_sub(1).map(|last| score_key(scores[ranked[last]]))
    {
        kept = ranked.partition_point(|&j| score_key(scores[j]) >= threshold);
    }
    ranked.truncate(kept);
    ranked.extend((0..candidates).filter(guard));
    ranked.sort_unstable();
    ranked.dedup();
    ranked.into_iter().map(|j| j as i32).collect()
}

/// The lists of every row from scores `[hq, total_qb, score_stride]`, with the geometry's budgets.
///
/// # Errors
/// [`Error::Shape`] naming `scores`; [`Error::Value`] naming a table of the geometry.
pub fn topk(scores: &[f32], score_stride: usize, hq: usize, geometry: &Geometry, config: &StemConfig) -> Result<BlockLists> {
    geometry.check()?;
    let total_qb = geometry.total_qb();
    check_len("scores", scores.len(), &[hq, total_qb, score_stride])?;
    if score_stride < geometry.max_kb.max(1) {
        return Err(Error::shape("scores", format!("at least {} columns", geometry.max_kb.max(1)), score_stride));
    }
    let rows: Vec<Vec<i32>> = scores
        .par_chunks_exact(score_stride)
        .enumerate()
        .map(|(i, scores)| {
            let row = i % total_qb;
            let candidates = geometry.candidates(row);
            let Some((block, request)) = geometry.row(row) else { return Vec::new() };
            let last = request.kb_len.saturating_sub(1);
            let diagonal = if geometry.causal { last.min(block.block) } else { last };
            topk_row(&scores[..candidates], block.budget as usize, diagonal as usize, config)
        })
        .collect();
    BlockLists::from_rows(hq, total_qb, geometry.list_stride, &rows)
}
