//! Stages behind a plan: scores as the whole chain gives them, and appended pages. `stages_gpu.rs` tests each launcher alone.

use super::{Case, choosy};
use half::bf16;
use rstest::rstest;
use stem_attn::driver::buffer;
use stem_attn::kv::PageLayout;
use stem_attn::ops::PageDesc;
use stem_attn::plan::{AppendTensors, Plan, PlanDesc, PlanSelection, default_softmax_scale};
use stem_attn::reference::{self, ScoreInputs};
use stem_attn::{Preset, Selection, StemConfig};
use stem_attn_tests::batch::Batch;
use stem_attn_tests::gpu::backend;

const RAGGED: [(usize, usize); 6] = [(200, 200), (0, 0), (0, 300), (1, 1), (129, 517), (300, 1000)];

/// Scores of the reference, and how far the GPU's may be from them: the order of an f32 sum of 2,048 products, the value
/// term's logarithms, and one unit of bf16 where a sum lies on a rounding edge.
fn reference_scores(batch: &Batch, geometry: &stem_attn::Geometry, config: &StemConfig) -> (Vec<f32>, Vec<f32>) {
    let paged = batch.paged(64, PageLayout::Nhd, None);
    let summaries = reference::summarize_kv(&paged.view(), geometry, &batch.k_scale, &batch.v_scale).expect("reference");
    let q_sums = reference::query_sums(&batch.q, &batch.q_scale, batch.hq, geometry).expect("reference");
    let v_bias = reference::value_bias(&summaries.run_norms, batch.hkv, geometry, &config.oam).expect("reference");
    let score_stride = geometry.max_kb.max(1);
    let inputs = ScoreInputs { q_sums: &q_sums, k_sums: &summaries.k_sums, v_bias: &v_bias, hq: batch.hq, hkv: batch.hkv, score_stride };
    let scores = reference::scores(&inputs, geometry, &config.oam).expect("reference");
    let norm = |x: &[bf16]| x.iter().map(|x| x.to_f32().powi(2)).sum::<f32>().sqrt();
    let longest = |x: &[bf16]| x.chunks(2048).map(norm).fold(0.0, f32::max);
    let sum = config.oam.qk_scale * longest(&q_sums) * longest(&summaries.k_sums) * 1e-5 + 1e-3;
    let rounding = if config.oam.round_bf16 { 1.0 / 128.0 } else { 0.0 };
    let tolerance = scores.iter().map(|s| sum + rounding * s.abs()).collect();
    (scores, tolerance)
}

#[rstest]
fn scores_are_the_references_but_for_rounding(
    #[values(Preset::Hpc, Preset::Paper)] preset: Preset,
    #[values(true, false)] causal: bool,
    #[values((4, 2), (1, 1))] heads: (usize, usize),
) {
    let Some(gpu) = backend() else { return };
    // The last request is longer than one tile of 128 blocks.
    let batch = Batch::random(22, heads.0, heads.1, &[(129, 517), (0, 0), (300, 1000), (700, 17_000)]);
    let config = StemConfig { oam: StemConfig::preset(preset).oam, causal, ..choosy(0.7) };
    let case = Case { causal, ..Case::new(&batch, Selection::Stem(&config)) };
    let done = case.run(gpu);
    let (want, tolerance) = reference_scores(&batch, &done.geometry, &config);
    let rows = done.scores.chunks(done.score_stride).zip(want.chunks(done.score_stride)).zip(tolerance.chunks(done.score_stride));
    for (i, ((got, want), tolerance)) in rows.enumerate() {
        let row = i % done.geometry.total_qb();
        for j in 0..done.geometry.candidates(row) {
            assert!((got[j] - want[j]).abs() <= tolerance[j], "row {i}, block {j}: {}, reference {}", got[j], want[j]);
        }
    }
    let lists = reference::topk(&done.scores, done.score_stride, batch.hq, &done.geometry, &config).expect("top-k");
    assert_eq!(done.lists, lists);
}

#[rstest]
fn appended_pages_are_the_references_byte_for_byte(
    #[values(16, 64, 256)] page_size: usize,
    #[values(PageLayout::Nhd, PageLayout::Hnd)] layout: PageLayout,
) {
    let Some(gpu) = backend() else { return };
    let stream = gpu.stream();
    let batch = Batch::random(23, 4, 2, &RAGGED);
    let geometry = batch.geometry(true, None);
    let noise = Batch::random(24, 2, 2, &[(geometry.total_q, geometry.total_q)]);
    // Values past the largest e4m3, ties, subnormals, infinities and NaN among them.
    let values = |codes: &[float8::F8E4M3], special: [f32; 5]| -> Vec<bf16> {
        let pick = |i: usize, x: f32| if i % 97 < 5 { special[i % 97] } else { x };
        codes.iter().enumerate().map(|(i, &c)| bf16::from_f32(pick(i, stem_attn::fp8::decode(c) * 0.013))).collect()
    };
    let k = values(&noise.k, [1e9, -1e9, f32::INFINITY, f32::NAN, 1e-6]);
    let v = values(&noise.v, [0.0, -0.0, f32::NEG_INFINITY, 1e-4, -7.0]);
    let mut want = batch.paged(page_size, layout, None);
    let before = want.clone();
    reference::append_kv(&k, &v, &geometry, &batch.k_scale, &batch.v_scale, &mut want).expect("reference");

    let pages = PageDesc::dense(layout, batch.hkv, page_size, want.pages, want.table_stride);
    let desc = PlanDesc {
        hq: batch.hq,
        hkv: batch.hkv,
        cu_seqlens_q: &batch.cu_seqlens_q,
        cu_seqlens_kv: &batch.cu_seqlens_kv,
        prompt_lens: &batch.prompt_lens,
        pages,
        selection: PlanSelection::Dense,
        causal: true,
        softmax_scale: default_softmax_scale(),
    };
    let plan = Plan::new(gpu.kernels(), stream, &desc).expect("a plan");
    let mut k_pages = buffer::upload(stream, &before.k_pages).expect("k");
    let mut v_pages = buffer::upload(stream, &before.v_pages).expect("v");
    let (k, v) = (buffer::upload(stream, &k).expect("k"), buffer::upload(stream, &v).expect("v"));
    let table = buffer::upload(stream, &before.table).expect("table");
    let k_scale = buffer::upload(stream, &batch.k_scale).expect("scale");
    let v_scale = buffer::upload(stream, &batch.v_scale).expect("scale");
    let mut tensors = AppendTensors {
        k: k.as_view(),
        v: v.as_view(),
        k_pages: k_pages.as_view_mut(),
        v_pages: v_pages.as_view_mut(),
        page_table: table.as_view(),
        k_scale: k_scale.as_view(),
        v_scale: v_scale.as_view(),
        k_token_scale: None,
    };
    plan.append_kv(stream, &mut tensors).expect("append");
    for (name, got, want) in [("k", &k_pages, &want.k_pages), ("v", &v_pages, &want.v_pages)] {
        let got = buffer::download(stream, got, want.len()).expect("pages");
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            let (got, want) = (got.to_bits(), want.to_bits());
            // NaN has two codes.
            assert!(got == want || (got & 0x7f == 0x7f && want & 0x7f == 0x7f), "{name}_pages[{i}]: {got:#x}, reference {want:#x}");
        }
    }
}
