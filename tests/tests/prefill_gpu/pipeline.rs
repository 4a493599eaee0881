//! Random batches of every shape.

use super::{Case, RANDOM, RANDOM_ROW, choosy};
use half::bf16;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rstest::rstest;
use stem_attn::driver::buffer;
use stem_attn::error::Error;
use stem_attn::kv::PageLayout;
use stem_attn::ops::ScaleStrides;
use stem_attn::plan::{PrefillTensors, TensorRows};
use stem_attn::{BlockLists, Guards, OamConfig, Preset, Selection, StemConfig, TieRule};
use stem_attn_tests::batch::Batch;
use stem_attn_tests::gpu::backend;
use stem_attn_tests::stages::{assert_bits, scales_laid_out};

/// Requests of (new tokens, visible tokens): an empty one, one that only waits, single tokens, history that is not a
/// multiple of 128, ends on and beside a block's edge.
const RAGGED: [(usize, usize); 8] = [(200, 200), (0, 0), (0, 300), (1, 1), (129, 517), (300, 1000), (128, 256), (1, 2049)];

#[rstest]
fn corner_lengths(#[values(1, 2, 16, 127, 128, 129, 255, 1000, 4097)] tokens: usize) {
    let Some(gpu) = backend() else { return };
    let batch = Batch::random(tokens as u64, 2, 1, &[(tokens, tokens)]);
    Case::new(&batch, Selection::Dense).check(gpu, RANDOM, RANDOM_ROW);
    Case::new(&batch, Selection::Stem(&choosy(0.7))).check(gpu, RANDOM, RANDOM_ROW);
}

#[rstest]
fn page_sizes_and_layouts(
    #[values(16, 32, 64, 128, 256)] page_size: usize,
    #[values(PageLayout::Nhd, PageLayout::Hnd)] layout: PageLayout,
) {
    let Some(gpu) = backend() else { return };
    let batch = Batch::random(page_size as u64, 4, 2, &RAGGED);
    let config = choosy(0.7);
    Case { page_size, layout, ..Case::new(&batch, Selection::Dense) }.check(gpu, RANDOM, RANDOM_ROW);
    Case { page_size, layout, ..Case::new(&batch, Selection::Stem(&config)) }.check(gpu, RANDOM, RANDOM_ROW);
}

#[rstest]
fn head_counts(#[values((1, 1), (2, 1), (16, 1), (4, 2), (12, 4), (16, 16), (32, 4))] heads: (usize, usize)) {
    let Some(gpu) = backend() else { return };
    let batch = Batch::random(3, heads.0, heads.1, &[(300, 700), (260, 260)]);
    let config = choosy(1.0);
    Case::new(&batch, Selection::Dense).check(gpu, RANDOM, RANDOM_ROW);
    Case::new(&batch, Selection::Stem(&config)).check(gpu, RANDOM, RANDOM_ROW);
}

#[rstest]
fn selection_rules(
    #[values(Preset::Hpc, Preset::Paper)] preset: Preset,
    #[values(Guards::InsideBudget, Guards::OnTop)] guards: Guards,
    #[values(TieRule::LowestIndex, TieRule::KeepAll)] ties: TieRule,
    #[values(true, false)] causal: bool,
) {
    let Some(gpu) = backend() else { return };
    let batch = Batch::random(11, 4, 2, &[(900, 2900), (129, 517)]);
    let oam: OamConfig = StemConfig::preset(preset).oam;
    let config = StemConfig { oam, guards, ties, causal, sink: 2, window: 2, ..choosy(0.8) };
    let done = Case { causal, ..Case::new(&batch, Selection::Stem(&config)) }.check(gpu, RANDOM, RANDOM_ROW);
    assert!(done.lists.density(&done.geometry) < 0.9, "the case is meant to be sparse");
}

#[rstest]
fn a_scale_for_every_key(#[values(16, 64, 256)] page_size: usize, #[values(PageLayout::Nhd, PageLayout::Hnd)] layout: PageLayout) {
    let Some(gpu) = backend() else { return };
    let batch = Batch::random(12, 4, 2, &RAGGED).with_token_scales(13);
    let config = choosy(0.7);
    Case { page_size, layout, ..Case::new(&batch, Selection::Dense) }.check(gpu, RANDOM, RANDOM_ROW);
    Case { page_size, layout, ..Case::new(&batch, Selection::Stem(&config)) }.check(gpu, RANDOM, RANDOM_ROW);
}

#[test]
fn not_causal() {
    let Some(gpu) = backend() else { return };
    let batch = Batch::random(5, 4, 2, &RAGGED);
    Case { causal: false, ..Case::new(&batch, Selection::Dense) }.check(gpu, RANDOM, RANDOM_ROW);
}

#[test]
fn a_guard_of_zero_sinks_and_a_window_past_the_start() {
    let Some(gpu) = backend() else { return };
    let batch = Batch::random(6, 2, 1, &[(1500, 1500)]);
    let config = StemConfig { sink: 0, window: 1 << 20, ..choosy(1.0) };
    let done = Case::new(&batch, Selection::Stem(&config)).check(gpu, RANDOM, RANDOM_ROW);
    assert_eq!(done.lists, BlockLists::dense(2, &done.geometry).expect("lists"));
}

#[test]
fn lists_of_the_caller_with_empty_rows() {
    let Some(gpu) = backend() else { return };
    let batch = Batch::random(7, 4, 2, &RAGGED);
    let geometry = batch.geometry(true, None);
    let mut rng = StdRng::seed_from_u64(7);
    let rows: Vec<Vec<i32>> = (0..4 * geometry.total_qb())
        .map(|i| match i % 5 {
            0 => vec![],
            _ => (0..geometry.candidates(i % geometry.total_qb()) as i32).filter(|_| rng.random::<f32>() < 0.4).collect(),
        })
        .collect();
    let lists = BlockLists::from_rows(4, geometry.total_qb(), geometry.list_stride, &rows).expect("lists");
    let done = Case::new(&batch, Selection::Lists(&lists)).check(gpu, RANDOM, RANDOM_ROW);
    let mut empty = 0;
    for row in (0..geometry.total_qb()).filter(|&row| lists.row(0, row).is_empty()) {
        let (block, request) = geometry.row(row).expect("a row");
        assert_eq!(block.request as usize, geometry.requests.iter().position(|r| r == request).expect("its request"));
        for t in geometry.tokens(row) {
            let at = (request.q_start as usize + t) * 4;
            assert!(done.out[at * 128..][..128].iter().all(|x| x.to_bits() == 0), "zeros, not even minus zero");
            assert_eq!(done.lse[at], f32::NEG_INFINITY);
            empty += 1;
        }
    }
    assert!(empty > 0, "the case is meant to have empty rows");
}

#[test]
fn a_batch_without_a_query_or_a_key() {
    let Some(gpu) = backend() else { return };
    for lens in [&[][..], &[(0, 0)], &[(0, 0), (0, 0)], &[(0, 200)]] {
        let batch = Batch::random(8, 2, 1, lens);
        Case::new(&batch, Selection::Dense).check(gpu, RANDOM, RANDOM_ROW);
        Case::new(&batch, Selection::Stem(&choosy(0.7))).check(gpu, RANDOM, RANDOM_ROW);
    }
}

#[test]
fn chunks_give_what_the_whole_prompt_gives() {
    let Some(gpu) = backend() else { return };
    let whole = Batch::random(9, 2, 1, &[(1000, 1000)]);
    let all = Case::new(&whole, Selection::Dense).check(gpu, RANDOM, RANDOM_ROW);
    // The last 300 tokens as a chunk with a history of 700, which is not a multiple of 128.
    let chunk =
        Batch { q: whole.q[700 * 256..].to_vec(), q_scale: whole.q_scale[700 * 2..].to_vec(), cu_seqlens_q: vec![0, 300], ..whole.clone() };
    let part = Case::new(&chunk, Selection::Dense).check(gpu, RANDOM, RANDOM_ROW);
    // Rows share their biases by sixteen. From the first sixteen that are all there (704) on: the same, bit for bit.
    let bits = |out: &[bf16]| -> Vec<u16> { out.iter().map(|x| x.to_bits()).collect() };
    assert!(bits(&part.out[4 * 256..]) == bits(&all.out[704 * 256..]), "rows of a chunk differ from those of the whole");
}

#[test]
fn a_request_does_not_notice_its_neighbours() {
    let Some(gpu) = backend() else { return };
    // Chunks that do not start on a block: their first and last tiles hold rows of their neighbours, which are large here.
    let lens = [(77, 300), (130, 777), (50, 50)];
    let batch = Batch::random(11, 2, 1, &lens);
    let mut other = batch.clone();
    let (before, after) = (77 * 2, (77 + 130) * 2);
    for (row, scale) in other.q_scale.iter_mut().enumerate() {
        *scale *= if row < before || row >= after { 50.0 } else { 1.0 };
    }
    let out = [&batch, &other].map(|batch| Case::new(batch, Selection::Dense).run(gpu).out);
    let bits = |out: &[bf16]| -> Vec<u16> { out[77 * 256..207 * 256].iter().map(|x| x.to_bits()).collect() };
    assert!(bits(&out[0]) == bits(&out[1]), "a request's rows changed with its neighbours'");
}

/// Scales `[hq, total_q]`, with room behind each head's, give what `[total_q, hq]` gives, bit for bit.
#[test]
fn the_order_of_scales_changes_nothing() {
    let Some(gpu) = backend() else { return };
    let mut batch = Batch::random(13, 4, 2, &RAGGED);
    for (i, scale) in batch.q_scale.iter_mut().enumerate() {
        *scale *= 1.0 + i as f32 % 7.0;
    }
    let (wide, strides) = scales_laid_out(&batch.q_scale, batch.hq, true);
    let wide = buffer::upload(gpu.stream(), &wide).expect("upload");
    let config = choosy(0.7);
    for selection in [Selection::Dense, Selection::Stem(&config)] {
        let case = Case::new(&batch, selection);
        let inputs = case.upload(gpu);
        let want = case.launch(gpu, &case.plan(gpu, &inputs), &inputs);
        let rows = TensorRows { q_scale: Some(strides), ..TensorRows::default() };
        let plan = case.plan(gpu, &inputs).with_rows(rows).expect("strides");
        let got = case.launch_on(gpu, &plan, &PrefillTensors { q_scale: wide.as_view(), ..inputs.tensors() });
        assert_bits("out", &got.out, &want.out, |x| x.to_bits());
        assert_bits("lse", &got.lse, &want.lse, f32::to_bits);
        assert_eq!((got.lists, got.scores.len()), (want.lists, want.scores.len()));
        let large = TensorRows { q_scale: Some(ScaleStrides { token: 1 << 29, head: 1 }), ..TensorRows::default() };
        assert!(matches!(plan.with_rows(large), Err(Error::Value { name: "q_scale", .. })));
    }
}
