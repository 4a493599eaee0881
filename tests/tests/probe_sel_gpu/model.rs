//! The one-pass score in f64, on the reference's codes, with what the f16 accumulator may change.

use super::setting;
use stem_attn::geometry::Geometry;
use stem_attn::reference::{self, KeyMeans, QueryMeans, default_softmax_scale};
use stem_attn_kernels::config::probe_sel::{PART_GROUPS, SUB_BLOCKS, TILE_BLOCKS};
use stem_attn_tests::stages::Batch;

/// What the one-pass score of a row may be: the least and the largest over groups that may pass for the strongest, given
/// that each logit is off by at most the accumulator's roundings.
struct Admitted {
    low: Vec<f64>,
    high: Vec<f64>,
    tolerance: f64,
}

fn log_sum(logs: impl Iterator<Item = f64> + Clone) -> f64 {
    let largest = logs.clone().fold(f64::NEG_INFINITY, f64::max);
    if largest == f64::NEG_INFINITY { largest } else { largest + logs.map(|x| (x - largest).exp2()).sum::<f64>().log2() }
}

fn norm(logs: &[f64]) -> f64 {
    log_sum(logs.iter().map(|x| 3.0 * x)) / 3.0
}

/// The model of one row, in f64 on the reference's codes.
fn admitted(
    geometry: &Geometry,
    queries: &QueryMeans,
    keys: &KeyMeans,
    k_scale: f32,
    query_pool: usize,
    head: usize,
    row: usize,
) -> Admitted {
    let (block, request) = geometry.row(row).expect("a row");
    let groups = 128 / query_pool;
    let kv_head = head / (queries.hq / keys.hkv);
    let candidates = geometry.candidates(row);
    let (mut low, mut high) = (vec![vec![]; candidates], vec![vec![]; candidates]);
    let mut error = 0f64;
    for part in (0..groups).collect::<Vec<_>>().chunks(PART_GROUPS) {
        let mut maxima: Vec<Vec<f64>> = vec![];
        for &g in part {
            let at = (head * geometry.total_qb() + row) * groups + g;
            let scale = f64::from(queries.scales[at]) * f64::from(k_scale) * default_softmax_scale() * std::f64::consts::LOG2_E;
            if scale == 0.0 {
                continue;
            }
            let last = (block.block as usize * 128 + (g + 1) * query_pool - 1).min(request.kv_len as usize - 1);
            let limit = if geometry.causal { last } else { request.kv_len as usize - 1 };
            let query = &queries.means[at * 128..(at + 1) * 128];
            let logit = |j: usize, sub: usize| {
                let key =
                    &keys.means[(((kv_head * geometry.total_kb()) + request.kb_start as usize + j) * SUB_BLOCKS + sub) * 128..][..128];
                let products = query.iter().zip(key).map(|(q, k)| f64::from(q * k));
                // Four roundings to f16, and the tensor core's own sums of 32 products with 14 bits.
                (scale * products.clone().sum::<f64>(), scale * products.map(f64::abs).sum::<f64>() * (4.0 / 2048.0 + 4.0 / 8192.0))
            };
            let largest = |j: usize| {
                (0..SUB_BLOCKS).filter(|sub| j * 128 + sub * 8 <= limit).fold((f64::NEG_INFINITY, 0f64), |(x, e), sub| {
                    let (logit, error) = logit(j, sub);
                    (x.max(logit), e.max(error))
                })
            };
            let of_blocks: Vec<(f64, f64)> = (0..candidates).map(largest).collect();
            error = of_blocks.iter().fold(error, |e, b| e.max(b.1));
            maxima.push(of_blocks.into_iter().map(|b| b.0).collect());
        }
        let mut seen = vec![f64::NEG_INFINITY; maxima.len()];
        let mut shares: Vec<Vec<f64>> = vec![vec![]; candidates];
        let mut seen_then: Vec<Vec<f64>> = vec![vec![]; candidates];
        for tile in (0..candidates.div_ceil(TILE_BLOCKS)).rev() {
            let blocks = tile * TILE_BLOCKS..((tile + 1) * TILE_BLOCKS).min(candidates);
            for (seen, maxima) in seen.iter_mut().zip(&maxima) {
                *seen = log_sum([*seen].into_iter().chain(maxima[blocks.clone()].iter().copied()));
            }
            for j in blocks {
                shares[j] = maxima.iter().zip(&seen).map(|(m, s)| m[j] - s).collect();
                seen_then[j] = seen.clone();
            }
        }
        for j in 0..candidates {
            let best = shares[j].iter().copied().fold(f64::NEG_INFINITY, f64::max);
            // Scores differ by up to twice a logit's error, and so may two groups that are compared.
            let may_lead = |g: &usize| shares[j][*g] >= best - 4.0 * error - 1e-3;
            let corrected = |g: usize| norm(&shares[j]) + seen_then[j][g] - seen[g];
            let all: Vec<f64> = (0..shares[j].len()).filter(may_lead).map(corrected).collect();
            if !all.is_empty() {
                low[j].push(all.iter().copied().fold(f64::INFINITY, f64::min));
                high[j].push(all.iter().copied().fold(f64::NEG_INFINITY, f64::max));
            }
        }
    }
    let joined = |parts: Vec<Vec<f64>>| parts.iter().map(|p| if p.len() == 1 { p[0] } else { norm(p) }).collect();
    // Both logit and normaliser, now and at the end; approximate functions; a score's last four bits name a group.
    Admitted { low: joined(low), high: joined(high), tolerance: 4.0 * error + 4e-3 }
}

/// Asserts that exported scores are the model's, and that what a row cannot see was left alone.
pub fn check_scores(batch: &Batch, scores: &[f32], query_pool: u32) {
    let geometry = &batch.geometry;
    let keys = reference::key_means(&batch.paged.view(), geometry, &setting(query_pool)).expect("reference");
    let queries = reference::query_means(&batch.q, &batch.q_scale, batch.heads.hq, geometry, &setting(query_pool)).expect("reference");
    let stride = geometry.max_kb.max(1);
    let mut worst = 0f64;
    for head in 0..batch.heads.hq {
        let kv_head = head / (batch.heads.hq / batch.heads.hkv);
        let k_scale = if batch.k_scale.len() == 1 { batch.k_scale[0] } else { batch.k_scale[kv_head] };
        // Every row of short batches, some of long ones: the model takes its time.
        for row in (0..geometry.total_qb()).filter(|row| geometry.total_qb() < 40 || row % 23 == 0 || row + 1 == geometry.total_qb()) {
            let want = admitted(geometry, &queries, &keys, k_scale, query_pool as usize, head, row);
            let got = &scores[(head * geometry.total_qb() + row) * stride..][..stride];
            for (j, &got) in got.iter().enumerate() {
                if j >= want.low.len() {
                    assert_eq!(got.to_bits(), u32::MAX, "head {head}, row {row}: block {j} is out of sight");
                    continue;
                }
                let got = f64::from(got);
                let off = (want.low[j] - got).max(got - want.high[j]).max(0.0);
                worst = worst.max(off / want.tolerance);
                assert!(
                    off <= want.tolerance,
                    "head {head}, row {row}, block {j}: {got}, the model {} to {} (tolerance {})",
                    want.low[j],
                    want.high[j],
                    want.tolerance
                );
            }
        }
    }
    println!("at most {worst:.3} of the tolerance");
}
