//! A block of threads takes strip after strip: more of them than multiprocessors, over requests of all sizes, and rows that are so
//! long that the ring of key tiles has to be short.

use super::model::check_scores;
use super::{Case, Done, assert_lists, choosy};
use float8::F8E4M3;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rstest::rstest;
use stem_attn::StemConfig;
use stem_attn::config::Selector;
use stem_attn::error::Error;
use stem_attn::fp8;
use stem_attn::kv::{PageLayout, PagedTensors};
use stem_attn::ops::{self, Heads, RowStrides, ScaleStrides};
use stem_attn::reference;
use stem_attn_kernels::config::probe_sel::{MAX_BLOCKS, SHORT_BLOCKS};
use stem_attn_tests::gpu::gpu;
use stem_attn_tests::stages::{Batch, Bench, DevicePages, assert_bits, cut, normal, scales_laid_out};

/// What one request brings.
#[derive(Clone)]
struct Part {
    new: i32,
    kv: i32,
    q: Vec<F8E4M3>,
    q_scale: Vec<f32>,
    k: Vec<F8E4M3>,
}

impl Part {
    fn random(rng: &mut StdRng, (new, kv): (i32, i32), hq: usize, hkv: usize) -> Self {
        let mut codes = |n: usize| normal(rng, n * 128).map(|x| fp8::encode(8.0 * x)).collect();
        let (q, k) = (codes(new as usize * hq), codes(kv as usize * hkv));
        Self { new, kv, q, q_scale: (0..new as usize * hq).map(|_| rng.random_range(0.01..0.3)).collect(), k }
    }
}

/// The batch of these requests, one after another.
fn joined(parts: &[Part], heads: Heads, config: &StemConfig) -> Batch {
    let lengths: Vec<(i32, i32)> = parts.iter().map(|p| (p.new, p.kv)).collect();
    let starts = parts.iter().scan(0, |sum, p| {
        *sum += p.kv;
        Some(*sum)
    });
    let starts: Vec<i32> = std::iter::once(0).chain(starts).collect();
    let k: Vec<F8E4M3> = parts.iter().flat_map(|p| p.k.iter().copied()).collect();
    Batch {
        geometry: cut(&lengths, config.causal, Some(config)),
        heads,
        q: parts.iter().flat_map(|p| p.q.iter().copied()).collect(),
        q_scale: parts.iter().flat_map(|p| p.q_scale.iter().copied()).collect(),
        paged: PagedTensors::build(&k, &k, heads.hkv, &starts, 64, PageLayout::Nhd, None).expect("pages"),
        k_scale: vec![0.07],
        v_scale: vec![1.0],
    }
}

/// Scores and lists of a batch; all query heads are the first one where `one_head`.
fn run(batch: &Batch, config: &StemConfig, heads: Heads, one_head: bool) -> Option<Done> {
    let bench = Bench::new(gpu()?, &batch.geometry, heads);
    let device = DevicePages::new(&bench, batch, &batch.paged, &batch.paged.table);
    let q_rows = if one_head { RowStrides { token: 128, head: 0 } } else { RowStrides::packed(heads.hq) };
    let (q_scale, strides) = scales_laid_out(&batch.q_scale, if one_head { 1 } else { heads.hq }, true);
    let q_scale_rows = if one_head { ScaleStrides { head: 0, ..strides } } else { strides };
    let case = Case { heads, q_rows, q_scale: &q_scale, q_scale_rows, ..Case::new(&bench, batch, &device) };
    Some(case.run(config, true))
}

/// Several rounds of strips; each request's scores are, bit for bit, those of the request alone, whose strips are other blocks'.
#[rstest]
fn a_request_does_not_notice_its_neighbours(#[values(8, 4, 2, 1)] query_pool: u32, #[values(true, false)] causal: bool) {
    if gpu().is_none() {
        return;
    }
    let rng = &mut StdRng::seed_from_u64(7);
    let heads = Heads::new(32, 4).expect("heads");
    let config = choosy(query_pool, causal);
    let lengths = [(2300, 2300), (0, 40), (700, 5000), (0, 0), (1, 1), (1500, 1500), (0, 300), (129, 4000)];
    let parts: Vec<Part> = lengths.iter().map(|&l| Part::random(rng, l, heads.hq, heads.hkv)).collect();
    let batch = joined(&parts, heads, &config);
    let Some(done) = run(&batch, &config, heads, false) else { return };
    let stride = batch.geometry.max_kb;
    let want = reference::topk(&done.scores, stride, heads.hq, &batch.geometry, &config).expect("top-k");
    assert_lists(&done.lists, &want);
    for (request, part) in batch.geometry.requests.iter().zip(&parts).filter(|(r, _)| r.qb_len > 0) {
        let alone = joined(std::slice::from_ref(part), heads, &config);
        let Some(other) = run(&alone, &config, heads, false) else { return };
        let other_stride = alone.geometry.max_kb;
        for head in 0..heads.hq {
            for row in 0..request.qb_len as usize {
                let n = alone.geometry.candidates(row);
                let got = &done.scores[(head * batch.geometry.total_qb() + request.qb_start as usize + row) * stride..][..n];
                let want = &other.scores[(head * alone.geometry.total_qb() + row) * other_stride..][..n];
                assert_bits(&format!("request {:?}, head {head}, row {row}", (part.new, part.kv)), got, want, f32::to_bits);
            }
        }
    }
}

/// Rows as long as the full ring leaves room for, and longer ones, against the model; and in several rounds a block: all heads, alike,
/// have the scores of one that has a block for each of its strips.
#[rstest]
fn long_rows(#[values(SHORT_BLOCKS, SHORT_BLOCKS + 1, MAX_BLOCKS)] blocks: usize, #[values(8, 2)] query_pool: u32) {
    if gpu().is_none() {
        return;
    }
    let rng = &mut StdRng::seed_from_u64(blocks as u64);
    let one = Heads::new(1, 1).expect("heads");
    let config = choosy(query_pool, true);
    let kv = blocks as i32 * 128 - 60;
    // Few new tokens for the model, which takes its time.
    let few = joined(&[Part::random(rng, (200, kv), 1, 1)], one, &config);
    let Some(done) = run(&few, &config, one, false) else { return };
    check_scores(&few, &done.scores, query_pool);
    let want = reference::topk(&done.scores, few.geometry.max_kb, 1, &few.geometry, &config).expect("top-k");
    assert_lists(&done.lists, &want);
    let many = joined(&[Part::random(rng, (4000, kv), 1, 1), Part::random(rng, (700, 900), 1, 1)], one, &config);
    let Some(alone) = run(&many, &config, one, false) else { return };
    let heads = Heads::new(80, 1).expect("heads");
    let Some(done) = run(&many, &config, heads, true) else { return };
    for (head, scores) in done.scores.chunks_exact(alone.scores.len()).enumerate() {
        assert_bits(&format!("head {head}"), scores, &alone.scores, f32::to_bits);
    }
    let want = reference::topk(&done.scores, many.geometry.max_kb, heads.hq, &many.geometry, &config).expect("top-k");
    assert_lists(&done.lists, &want);
}

/// A softmax scale that is no positive number is an error, and nothing is launched.
#[rstest]
fn bad_softmax_scales_are_refused(#[values(0.0, -1.0, f32::NAN, f32::INFINITY)] softmax_scale: f32) {
    let Some(gpu) = gpu() else { return };
    let config = choosy(8, true);
    let Selector::Probe(probe) = &config.selector else { panic!("a probe selector") };
    let batch = Batch::new(0, true, Some(&config));
    let bench = Bench::new(gpu, &batch.geometry, batch.heads);
    let device = DevicePages::new(&bench, &batch, &batch.paged, &batch.paged.table);
    let refused = Case::new(&bench, &batch, &device)
        .with_args(false, |bench, args, _| ops::probe(&bench.at(), &ops::Probe { softmax_scale, ..*args }, probe, &config));
    assert!(matches!(refused, Err(Error::Value { name: "softmax_scale", .. })), "{refused:?}");
}
