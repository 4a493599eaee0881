//! The selection on a GPU against the CPU reference, stage by stage though it is one kernel: integer data make the query sums,
//! products and layouts exact; a weight of zero leaves the value term alone; lists are compared entry for entry given the scores
//! that the kernel used. Skipped, with a printed reason, where there is no GPU.

use float8::F8E4M3;
use half::bf16;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rstest::rstest;
use stem_attn::driver::CudaSlice;
use stem_attn::geometry::Geometry;
use stem_attn::ops::{self, Heads, RowStrides, ScaleStrides, ScoreSpace};
use stem_attn::reference::{self, ScoreInputs};
use stem_attn::{BlockLists, Guards, OamConfig, Preset, Schedule, StemConfig, TieRule, fp8};
use stem_attn_kernels::config::{HEAD_DIM, RUNS, SUM_LEN};
use stem_attn_tests::gpu::gpu;
use stem_attn_tests::stages::{Bench, assert_bits, assert_close, cut, laid_out, scales_laid_out};

/// What the kernel reads: queries, and summaries that need no keys.
struct Problem {
    geometry: Geometry,
    heads: Heads,
    q: Vec<F8E4M3>,
    q_scale: Vec<f32>,
    k_sums: Vec<bf16>,
    run_norms: Vec<f32>,
}

impl Problem {
    /// Random data. `integers`: codes of -1, 0 and 1, scales that are powers of two, key sums of small integers.
    fn new(seed: u64, lengths: &[(i32, i32)], heads: (usize, usize), config: &StemConfig, integers: bool) -> Self {
        let rng = &mut StdRng::seed_from_u64(seed);
        let geometry = cut(lengths, config.causal, Some(config));
        let (hq, hkv) = heads;
        let rows = geometry.total_q * hq;
        let blocks = hkv * geometry.total_kb();
        let mut draw = |integer: i32, width: f32| match integers {
            true => rng.random_range(-integer..=integer) as f32,
            // Sums of four are close enough to normal.
            false => (0..4).map(|_| rng.random_range(-width..width)).sum(),
        };
        let q = (0..rows * HEAD_DIM).map(|_| fp8::encode(draw(1, 4.0))).collect();
        let k_sums = (0..blocks * SUM_LEN).map(|_| bf16::from_f32(draw(3, 1.0))).collect();
        let run_norms = (0..blocks * RUNS).map(|_| draw(3, 0.5)).collect();
        let q_scale =
            (0..rows).map(|_| if integers { [0.5, 1.0, 2.0][rng.random_range(0..3)] } else { rng.random_range(0.01..0.3) }).collect();
        Self { geometry, heads: Heads::new(hq, hkv).expect("heads"), q, q_scale, k_sums, run_norms }
    }

    fn stride(&self) -> usize {
        self.geometry.max_kb + 3
    }

    /// Scores of the reference.
    fn reference(&self, oam: &OamConfig) -> Vec<f32> {
        let Heads { hq, hkv } = self.heads;
        let q_sums = reference::query_sums(&self.q, &self.q_scale, hq, &self.geometry).expect("reference");
        let v_bias = reference::value_bias(&self.run_norms, hkv, &self.geometry, oam).expect("reference");
        let inputs = ScoreInputs { q_sums: &q_sums, k_sums: &self.k_sums, v_bias: &v_bias, hq, hkv, score_stride: self.stride() };
        reference::scores(&inputs, &self.geometry, oam).expect("reference")
    }
}

/// A problem in device memory.
struct OnDevice {
    bench: Bench,
    q: CudaSlice<F8E4M3>,
    q_rows: RowStrides,
    q_scale: CudaSlice<f32>,
    q_scale_rows: ScaleStrides,
    k_sums: CudaSlice<bf16>,
    run_norms: CudaSlice<f32>,
}

/// What a launch wrote.
struct Done {
    counts: Vec<i32>,
    lists: Vec<i32>,
    capacity: usize,
    scores: Vec<f32>,
}

impl OnDevice {
    fn new(problem: &Problem) -> Option<Self> {
        Self::with_rows(problem, false)
    }

    /// `apart`: heads before tokens, with NaN between the rows.
    fn with_rows(problem: &Problem, apart: bool) -> Option<Self> {
        let bench = Bench::new(gpu()?, &problem.geometry, problem.heads);
        let (q, q_rows) = laid_out(&problem.q, problem.heads.hq, apart, 16, F8E4M3::from_bits(0x7f));
        let (q_scale, q_scale_rows) = scales_laid_out(&problem.q_scale, problem.heads.hq, apart);
        let (q, q_scale) = (bench.gpu.upload(&q), bench.gpu.upload(&q_scale));
        let (k_sums, run_norms) = (bench.gpu.upload(&problem.k_sums), bench.gpu.upload(&problem.run_norms));
        Some(Self { bench, q, q_rows, q_scale, q_scale_rows, k_sums, run_norms })
    }

    /// One launch into poisoned buffers; with the scores of all rows, or as a run does it.
    fn launch(&self, problem: &Problem, config: &StemConfig, all_scores: bool) -> Done {
        let (geometry, hq, bench) = (&problem.geometry, problem.heads.hq, &self.bench);
        let (rows, capacity) = (hq * geometry.total_qb(), geometry.list_stride);
        let (lists, counts) = (bench.gpu.poisoned::<i32>(rows * capacity), bench.gpu.poisoned::<i32>(rows));
        let len = if all_scores { rows * problem.stride() } else { ops::scratch_len(geometry).expect("a size") };
        let scores = bench.gpu.poisoned::<f32>(len);
        let args = ops::Select {
            q: bench.span(&self.q, self.q.len()),
            q_rows: self.q_rows,
            q_scale: bench.span(&self.q_scale, self.q_scale.len()),
            q_scale_rows: self.q_scale_rows,
            k_sums: bench.span(&self.k_sums, problem.k_sums.len()),
            run_norms: bench.span(&self.run_norms, problem.run_norms.len()),
            lists: ops::Lists { lists: bench.span(&lists, rows * capacity), counts: bench.span(&counts, rows), stride: capacity },
            scores: match all_scores {
                true => ScoreSpace::All { scores: bench.span(&scores, len), stride: problem.stride() },
                false => ScoreSpace::Scratch(bench.span(&scores, len)),
            },
            overlap: false,
        };
        ops::select(&bench.at(), &args, config).expect("launch");
        Done {
            counts: bench.gpu.download(&counts, rows),
            lists: bench.gpu.download(&lists, rows * capacity),
            capacity,
            scores: if all_scores { bench.gpu.download(&scores, len) } else { Vec::new() },
        }
    }
}

impl Done {
    /// Asserts that the lists are `want`, and that nothing was written past their ends.
    fn assert_lists(&self, want: &BlockLists) {
        for head in 0..want.hq {
            for row in 0..want.total_qb {
                let (at, expected) = (head * want.total_qb + row, want.row(head, row));
                let list = &self.lists[at * self.capacity..(at + 1) * self.capacity];
                assert_eq!(self.counts[at] as usize, expected.len(), "count of head {head}, row {row}");
                assert_eq!(&list[..expected.len()], expected, "head {head}, row {row}");
                assert!(list[expected.len()..].iter().all(|&j| j == -1), "head {head}, row {row} wrote past its count");
            }
        }
    }
}

/// Runs a problem with and without scores in device memory; compares lists with the CPU's top-k of those scores. Gives the scores.
fn check(problem: &Problem, config: &StemConfig) -> Option<Vec<f32>> {
    let device = OnDevice::new(problem)?;
    let with = device.launch(problem, config, true);
    for (i, row) in with.scores.chunks(problem.stride()).enumerate() {
        let visible = problem.geometry.candidates(i % problem.geometry.total_qb());
        assert!(row[visible..].iter().all(|x| x.to_bits() == u32::MAX), "row {i} wrote past what it sees");
    }
    let want = reference::topk(&with.scores, problem.stride(), problem.heads.hq, &problem.geometry, config).expect("top-k");
    with.assert_lists(&want);
    device.launch(problem, config, false).assert_lists(&want);
    Some(with.scores)
}

/// Columns that rows can see, row by row.
fn visible<'a>(problem: &'a Problem, scores: &'a [f32]) -> impl Iterator<Item = &'a [f32]> {
    let (stride, total_qb) = (problem.stride(), problem.geometry.total_qb());
    scores.chunks(stride).enumerate().map(move |(i, row)| &row[..problem.geometry.candidates(i % total_qb)])
}

/// Small prompts that still have to choose.
fn choosy() -> StemConfig {
    StemConfig { schedule: Schedule::Ratio { ratio: 0.3, floor: 2 }, alpha: 0.7, sink: 1, window: 1, ..StemConfig::preset(Preset::Hpc) }
}

/// Corner lengths, ragged batches, history that is not a multiple of 128, strips of one row to several requests.
const BATCHES: [&[(i32, i32)]; 9] = [
    &[(1, 1)],
    &[(129, 129)],
    &[(2048, 2048)],
    &[(4097, 4097)],
    &[(300, 777), (0, 130), (1, 1), (128, 256), (5, 1029)],
    &[(129, 131), (0, 0), (257, 4000), (127, 127), (1, 9000)],
    &[(3000, 16_450), (1000, 1001)],
    &[(8200, 8200)],
    &[(140, 140_000)],
];

#[rstest]
fn integer_scores_are_exact(
    #[values(0, 1, 2, 3, 4, 5, 6, 7)] case: usize,
    #[values((1, 1), (4, 2), (8, 1))] heads: (usize, usize),
    #[values(false, true)] causal: bool,
) {
    let oam = OamConfig { qk_scale: 0.25, lambda: 0.0, count_empty_runs: false, round_bf16: false };
    let config = StemConfig { oam, causal, ..choosy() };
    let problem = Problem::new(case as u64, BATCHES[case], heads, &config, true);
    let Some(scores) = check(&problem, &config) else { return };
    let want = problem.reference(&oam);
    for (i, (got, want)) in visible(&problem, &scores).zip(visible(&problem, &want)).enumerate() {
        assert_bits(&format!("scores of row {i}"), got, want, f32::to_bits);
    }
}

/// Queries and scales of any strides give the same scores and lists as packed ones, bit for bit.
#[rstest]
fn strides_of_q_change_nothing(#[values(3, 4, 5, 7)] case: usize, #[values((1, 1), (4, 2), (8, 1))] heads: (usize, usize)) {
    let config = choosy();
    let problem = Problem::new(120 + case as u64, BATCHES[case], heads, &config, false);
    let (Some(packed), Some(apart)) = (OnDevice::new(&problem), OnDevice::with_rows(&problem, true)) else { return };
    assert!(packed.q_rows != apart.q_rows && packed.q_scale_rows != apart.q_scale_rows);
    let (want, got) = (packed.launch(&problem, &config, true), apart.launch(&problem, &config, true));
    assert_bits("scores", &got.scores, &want.scores, f32::to_bits);
    assert_eq!((got.counts, got.lists), (want.counts, want.lists));
}

/// Enough key blocks for clusters, for several chunks, and for several spans.
#[rstest]
#[case::pairs(&[(3000, 40_000), (260, 33_000)], (4, 2))]
#[case::pairs_of_a_larger_group(&[(5000, 70_000)], (8, 2))]
#[case::pairs_of_a_ragged_batch(&[(700, 100_000), (300, 300), (200, 66_000)], (8, 1))]
#[case::whole_span(&[(256, 131_072)], (4, 1))]
#[case::two_spans(&[(300, 131_200)], (4, 1))]
#[case::five_spans(&[(140, 600_000), (100, 100), (260, 200_000)], (4, 1))]
fn long_requests_are_exact(#[case] lengths: &[(i32, i32)], #[case] heads: (usize, usize), #[values(false, true)] causal: bool) {
    let oam = OamConfig { qk_scale: 0.25, lambda: 0.0, count_empty_runs: false, round_bf16: false };
    for round_bf16 in [false, true] {
        let oam = OamConfig { round_bf16, ..oam };
        let config = StemConfig { oam, causal, ..StemConfig::preset(Preset::Hpc) };
        let problem = Problem::new(1, lengths, heads, &config, true);
        let Some(scores) = check(&problem, &config) else { return };
        let want = problem.reference(&oam);
        for (i, (got, want)) in visible(&problem, &scores).zip(visible(&problem, &want)).enumerate() {
            assert_bits(&format!("scores of row {i}, rounded: {round_bf16}"), got, want, f32::to_bits);
        }
    }
}

/// More strips than the GPU has room for: every block takes several, to and fro, of many rows and of few. Where there are few, those of the
/// second round are shorter ([`stem_attn_kernels::layout::windows`]): on 132 multiprocessors in one case, on the emulator's four in another.
#[rstest]
#[case::alone(&[(20_000, 20_000), (700, 1500), (2, 9000)], (64, 8), false)]
#[case::in_pairs(&[(12_300, 33_000), (1, 100), (900, 1000)], (64, 8), false)]
#[case::in_pairs_of_longer_rows(&[(12_300, 66_000), (300, 300)], (64, 8), false)]
#[case::in_pairs_that_share_products(&[(8300, 99_000), (300, 300)], (64, 8), true)]
#[case::of_two_lengths(&[(14_336, 14_336)], (64, 8), false)]
#[case::of_two_lengths_on_four(&[(10_240, 10_240)], (2, 1), false)]
fn several_strips_a_block_are_exact(#[case] lengths: &[(i32, i32)], #[case] heads: (usize, usize), #[case] round_bf16: bool) {
    let oam = OamConfig { qk_scale: 0.25, lambda: 0.0, count_empty_runs: false, round_bf16 };
    let config = StemConfig { oam, ..choosy() };
    let problem = Problem::new(3, lengths, heads, &config, true);
    let Some(scores) = check(&problem, &config) else { return };
    let want = problem.reference(&oam);
    for (i, (got, want)) in visible(&problem, &scores).zip(visible(&problem, &want)).enumerate() {
        assert_bits(&format!("scores of row {i}"), got, want, f32::to_bits);
    }
}

#[rstest]
fn value_terms_match(#[values(2, 4, 5, 6, 7, 8)] case: usize, #[values(Preset::Hpc, Preset::Paper)] preset: Preset) {
    // A weight of zero leaves the value term alone; small weights of it and no rounding keep f32's digits.
    let oam = OamConfig { qk_scale: 0.0, round_bf16: false, ..StemConfig::preset(preset).oam };
    let config = StemConfig { oam, ..choosy() };
    let mut problem = Problem::new(40 + case as u64, BATCHES[case], (4, 2), &config, false);
    // Norms as of real values: near each other, far from zero, a few outliers; of one head all equal.
    let half = problem.run_norms.len() / 2;
    for (i, x) in problem.run_norms.iter_mut().enumerate() {
        *x = if i < half { 2.5 + 1e-3 * *x - if i % 97 == 0 { 16.0 } else { 0.0 } } else { 0.75 };
    }
    let Some(scores) = check(&problem, &config) else { return };
    let want = problem.reference(&oam);
    for (i, (got, want)) in visible(&problem, &scores).zip(visible(&problem, &want)).enumerate() {
        assert_close(&format!("value terms of row {i}"), got, want, 1e-5, 1e-6);
    }
}

#[rstest]
fn scores_match(
    #[values(0, 1, 2, 3, 4, 5, 6, 7)] case: usize,
    #[values(Preset::Hpc, Preset::Paper)] preset: Preset,
    #[values(false, true)] causal: bool,
) {
    let config = StemConfig { oam: StemConfig::preset(preset).oam, causal, ..choosy() };
    let problem = Problem::new(80 + case as u64, BATCHES[case], (4, 2), &config, false);
    let Some(scores) = check(&problem, &config) else { return };
    let want = problem.reference(&OamConfig { round_bf16: false, ..config.oam });
    let largest = want.iter().filter(|x| x.is_finite()).fold(0f32, |m, x| m.max(x.abs()));
    // One unit of bf16 where the score is rounded; else the order of 2,048 f32 additions.
    let relative = if config.oam.round_bf16 { 1.0 / 256.0 } else { 0.0 };
    for (i, (got, want)) in visible(&problem, &scores).zip(visible(&problem, &want)).enumerate() {
        assert_close(&format!("scores of row {i}"), got, want, relative, 2e-5 * largest);
        if config.oam.round_bf16 {
            assert!(got.iter().all(|x| bf16::from_f32(*x).to_f32() == *x), "row {i} is not rounded");
        }
    }
}

#[rstest]
fn every_rule_keeps_what_the_reference_keeps(
    #[values(Guards::InsideBudget, Guards::OnTop)] guards: Guards,
    #[values(TieRule::LowestIndex, TieRule::KeepAll)] ties: TieRule,
    #[values(false, true)] causal: bool,
    #[values((4, 4), (0, 1), (7, 40), (300, 1))] (sink, window): (u32, u32),
) {
    let batches: [&[(i32, i32)]; 3] = [&[(1, 1), (0, 300), (4097, 4097), (129, 131)], &[(300, 40_000), (260, 33_000)], &[(140, 200_000)]];
    for (n, lengths) in batches.into_iter().enumerate() {
        for schedule in [Schedule::Ratio { ratio: 0.01, floor: 1 }, Schedule::Ratio { ratio: 0.3, floor: 5 }, Schedule::Hpc] {
            let config = StemConfig { guards, ties, causal, sink, window, schedule, ..StemConfig::preset(Preset::Hpc) };
            let mut problem = Problem::new(n as u64, lengths, (6, 1), &config, true);
            // Heads of ordinary scores, of nothing but value terms (plateaus), of NaN, and of infinities of both signs.
            let hq = problem.heads.hq;
            for (i, scale) in problem.q_scale.iter_mut().enumerate() {
                match i % hq {
                    1 => *scale = 0.0,
                    2 => *scale = f32::NAN,
                    3 if i / hq % 128 == 5 => *scale = f32::INFINITY,
                    4 => *scale *= 1e-20,
                    _ => {}
                }
            }
            if check(&problem, &config).is_none() {
                return;
            }
        }
    }
}

/// Without the value term, aligned chunks of a prompt select what the whole prompt does.
#[test]
fn chunks_select_as_the_whole() {
    let preset = StemConfig::preset(Preset::Hpc);
    let config = StemConfig { oam: OamConfig { lambda: 0.0, ..preset.oam }, alpha: 0.7, ..preset };
    let prompt = 9000usize;
    let whole = Problem::new(7, &[(prompt as i32, prompt as i32)], (4, 2), &config, false);
    let Some(device) = OnDevice::new(&whole) else { return };
    let all = device.launch(&whole, &config, false);
    let (hq, blocks) = (4, prompt.div_ceil(128));
    let mut start = 0;
    for end in [1280, 7424, 7552, 9000usize] {
        let (tokens, kb) = (end - start, end.div_ceil(128));
        let geometry = Geometry::new(&[0, tokens as i32], &[0, end as i32], &[prompt as i32], true, Some(&config)).expect("a chunk");
        let keys = geometry.total_kb();
        let mut part = Problem { geometry, ..Problem::new(7, &[(1, 1)], (4, 2), &config, false) };
        part.q = whole.q[start * hq * HEAD_DIM..end * hq * HEAD_DIM].to_vec();
        part.q_scale = whole.q_scale[start * hq..end * hq].to_vec();
        part.k_sums = vec![bf16::ZERO; 2 * keys * SUM_LEN];
        part.run_norms = vec![0.0; 2 * keys * RUNS];
        for head in 0..2 {
            let from = &whole.k_sums[head * blocks * SUM_LEN..][..kb * SUM_LEN];
            part.k_sums[head * keys * SUM_LEN..][..kb * SUM_LEN].copy_from_slice(from);
        }
        let Some(device) = OnDevice::new(&part) else { return };
        let done = device.launch(&part, &config, false);
        for head in 0..hq {
            for row in 0..part.geometry.total_qb() {
                let (a, b) = (head * part.geometry.total_qb() + row, head * blocks + start / 128 + row);
                let n = done.counts[a] as usize;
                assert_eq!(done.counts[a], all.counts[b], "head {head}, block {}", start / 128 + row);
                assert_eq!(
                    done.lists[a * done.capacity..][..n],
                    all.lists[b * all.capacity..][..n],
                    "head {head}, block {}",
                    start / 128 + row
                );
            }
        }
        start = end;
    }
    let kept: i32 = all.counts.iter().sum();
    assert!((kept as usize) < hq * blocks * (blocks + 1) / 2, "something must be left out");
}

/// The same bits every time: what one role reads before another has written it, or after, would differ some time. Of few strips and of
/// many, of short rows and of several spans, with units of queries that a copy brings and such that it does not.
#[rstest]
#[case::few(&[(1100, 8100), (77, 300)], (4, 2))]
#[case::many(&[(3000, 8100), (500, 600)], (64, 8))]
#[case::long(&[(1100, 70_000), (200, 132_000)], (8, 1))]
fn launches_repeat(#[case] lengths: &[(i32, i32)], #[case] heads: (usize, usize)) {
    let config = choosy();
    let problem = Problem::new(12, lengths, heads, &config, false);
    let Some(device) = OnDevice::new(&problem) else { return };
    let first = device.launch(&problem, &config, true);
    for turn in 0..10 {
        let again = device.launch(&problem, &config, true);
        assert_bits(&format!("scores of turn {turn}"), &again.scores, &first.scores, f32::to_bits);
        assert!((again.counts, again.lists) == (first.counts.clone(), first.lists.clone()), "lists of turn {turn}");
    }
}
