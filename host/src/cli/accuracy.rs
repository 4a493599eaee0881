//! Error of an output against f64 attention on a sample of rows.

use super::work::Shape;
use crate::fp8;
use crate::mask::BlockLists;
use crate::tensor::PrefillInputs;
use half::bf16;
use rayon::prelude::*;
use stem_attn_kernels::config::{BLOCK, HEAD_DIM};

/// One query token of one head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    pub token: usize,
    pub head: usize,
}

/// Relative errors `|out - ref| / |ref|` (2-norms over all sampled rows).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Errors {
    /// Rows sampled.
    pub rows: usize,
    /// Against attention to every visible key: what sparsity and FP8 cost together.
    pub dense: f64,
    /// Against attention to the keys of the selected blocks: what FP8 alone costs.
    pub selected: f64,
}

/// Up to `count` rows: the last token of each head first, the rest drawn from a fixed sequence, so that every run and
/// both backends look at the same rows.
pub fn sample(g: &Shape, count: usize, seed: u64) -> Vec<Row> {
    if g.tokens == 0 {
        return Vec::new();
    }
    let mut rows: Vec<Row> = (0..g.hq.min(count)).map(|head| Row { token: g.tokens - 1, head }).collect();
    let total = g.tokens * g.hq;
    if total <= count {
        return (0..total).map(|i| Row { token: i / g.hq, head: i % g.hq }).collect();
    }
    let mut state = seed;
    while rows.len() < count {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let at = (mix(state) % total as u64) as usize;
        rows.push(Row { token: at / g.hq, head: at % g.hq });
    }
    rows.sort_unstable();
    rows.dedup();
    rows
}

/// The finaliser of splitmix64.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Measures `out` `[T, hq, 128]` on `rows`, calling `done` after each.
pub fn measure(inputs: &PrefillInputs<'_>, g: &Shape, lists: &BlockLists, out: &[bf16], rows: &[Row], done: impl Fn() + Sync) -> Errors {
    // [dense error, dense reference, selected error, selected reference], squared.
    let sums = rows
        .par_iter()
        .map(|row| {
            let at = (row.token * g.hq + row.head) * HEAD_DIM;
            let got = out.get(at..at + HEAD_DIM).unwrap_or(&[]);
            let position = g.history() + row.token;
            let dense = attend(inputs, g, *row, std::iter::once(0..position + 1));
            let blocks = lists.row(row.head, position / BLOCK - g.first_block());
            let spans = blocks.iter().map(|&b| b.max(0) as usize * BLOCK).map(|first| first..(first + BLOCK).min(position + 1));
            let selected = attend(inputs, g, *row, spans);
            done();
            let (de, dr) = difference(got, &dense);
            let (se, sr) = difference(got, &selected);
            [de, dr, se, sr]
        })
        .reduce(|| [0.0; 4], |a, b| std::array::from_fn(|i| a[i] + b[i]));
    Errors { rows: rows.len(), dense: ratio(sums[0], sums[1]), selected: ratio(sums[2], sums[3]) }
}

fn ratio(error: f64, reference: f64) -> f64 {
    if error == 0.0 { 0.0 } else { (error / reference).sqrt() }
}

/// Squared norms of the difference and of the reference. A missing output element counts as NaN.
fn difference(got: &[bf16], want: &[f64; HEAD_DIM]) -> (f64, f64) {
    let (mut error, mut reference) = (0.0, 0.0);
    for (d, want) in want.iter().enumerate() {
        let got = got.get(d).map_or(f64::NAN, |x| x.to_f64());
        error += (got - want) * (got - want);
        reference += want * want;
    }
    (error, reference)
}

/// f64 attention of one row over the keys of `spans` (empty and backward spans hold none); zero when there is no key.
fn attend(inputs: &PrefillInputs<'_>, g: &Shape, row: Row, spans: impl Iterator<Item = std::ops::Range<usize>> + Clone) -> [f64; HEAD_DIM] {
    let kv_head = row.head / (g.hq / g.hkv.max(1)).max(1);
    let per_head = |scales: &[f32]| f64::from(if scales.len() == 1 { scales[0] } else { scales[kv_head] });
    let at = (row.token * g.hq + row.head) * HEAD_DIM;
    let q: [f64; HEAD_DIM] = std::array::from_fn(|d| inputs.q[at + d].to_f64());
    let scale = f64::from(inputs.q_scale[row.token * g.hq + row.head]) * per_head(inputs.k_head_scale()) / (HEAD_DIM as f64).sqrt();
    let kv_row = |key: usize| (key * g.hkv + kv_head) * HEAD_DIM;
    let keys: Vec<usize> = spans.flatten().collect();
    let logits: Vec<f64> = keys
        .iter()
        .map(|&key| {
            let k = &inputs.k[kv_row(key)..][..HEAD_DIM];
            let own = inputs.k_token_scale().map_or(1.0, |own| f64::from(own[key * g.hkv + kv_head]));
            scale * own * q.iter().zip(k).map(|(q, &k)| q * f64::from(fp8::decode(k))).sum::<f64>()
        })
        .collect();
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (mut out, mut sum) = ([0.0; HEAD_DIM], 0.0);
    for (&key, &logit) in keys.iter().zip(&logits) {
        let p = (logit - largest).exp();
        sum += p;
        let v = &inputs.v[kv_row(key)..][..HEAD_DIM];
        out.iter_mut().zip(v).for_each(|(o, &v)| *o += p * f64::from(fp8::decode(v)));
    }
    if sum > 0.0 {
        let factor = per_head(inputs.v_scale) / sum;
        out.iter_mut().for_each(|o| *o *= factor);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use float8::F8E4M3;

    #[test]
    fn rows_of_the_sample_exist_and_repeat() {
        for (tokens, hq, count) in [(0, 2, 8), (1, 1, 64), (3, 2, 64), (1000, 4, 64)] {
            let g = Shape { tokens, kv_tokens: tokens + 7, hq, hkv: 1 };
            let rows = sample(&g, count, 1);
            assert!(rows.len() <= count && rows.iter().all(|r| r.token < tokens && r.head < hq));
            assert_eq!(rows, sample(&g, count, 1));
            assert_eq!(rows.is_empty(), tokens == 0);
        }
    }

    #[test]
    fn errors_of_known_outputs() {
        // All keys equal: attention is the mean of v whatever the selection, so a list that leaves out block 0 (v = 1)
        // and keeps block 1 (v = 2) gives 2, and dense gives the mean.
        let (tokens, one, two) = (256, F8E4M3::from_f32(1.0), F8E4M3::from_f32(2.0));
        let g = Shape { tokens, kv_tokens: tokens, hq: 1, hkv: 1 };
        let k = vec![one; tokens * HEAD_DIM];
        let v: Vec<_> = (0..tokens * HEAD_DIM).map(|i| if i < BLOCK * HEAD_DIM { one } else { two }).collect();
        let q_scale = vec![1.0; tokens];
        let (cu, prompt) = ([0, tokens as i32], [tokens as i32]);
        let inputs = PrefillInputs {
            q: &k,
            q_scale: &q_scale,
            k: &k,
            v: &v,
            k_scale: &[1.0],
            v_scale: &[0.5],
            hq: 1,
            hkv: 1,
            cu_seqlens_q: &cu,
            cu_seqlens_kv: &cu,
            prompt_lens: &prompt,
        };
        let lists = BlockLists { hq: 1, total_qb: 2, stride: 1, counts: vec![1, 1], lists: vec![0, 1] };
        let out = vec![bf16::from_f32(1.0); tokens * HEAD_DIM];
        let last = [Row { token: tokens - 1, head: 0 }];
        let e = measure(&inputs, &g, &lists, &out, &last, || {});
        assert!(e.selected < 1e-12, "{e:?}");
        assert!((e.dense - (1.0 - 0.75) / 0.75).abs() < 1e-12, "{e:?}");
        assert!(measure(&inputs, &g, &lists, &out[..5], &last, || {}).selected.is_nan());
    }
}
