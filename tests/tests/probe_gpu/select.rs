//! Lists of made-up score rows, as every selector ends, against the CPU's rule.

use super::{address, launch, rng};
use half::bf16;
use rand::RngExt;
use rand::rngs::StdRng;
use rand_distr::StandardNormal;
use rstest::rstest;
use stem_attn::driver::Launch;
use stem_attn::{Guards, Preset, StemConfig, TieRule, reference};
use stem_attn_kernels::abi_probe::{PROBE_PAIR_ROWS, PROBE_ROWS, ProbeParams, RowParams};
use stem_attn_kernels::layout::select::{BF16_LOW_BIT, Row};
use stem_attn_tests::gpu::{Gpu, gpu};

/// One row: its scores, and everything that decides about them.
struct Case {
    scores: Vec<f32>,
    budget: usize,
    config: StemConfig,
    low_bit: u32,
}

/// A random row of `count` candidates: ordinary scores, plateaus, few values, special ones, all equal, all NaN.
fn case(rng: &mut StdRng, count: usize) -> Case {
    let rounded = rng.random_bool(0.5);
    let kind = rng.random_range(0..6);
    let special = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 0.0, f32::MIN_POSITIVE, -1e-45, 3e38, -3e38];
    let scores = (0..count)
        .map(|_| {
            let x: f32 = rng.sample(StandardNormal);
            let score = match kind {
                0 => x,
                1 => x * 0.01 + 1.0,
                2 => (x * 1.5).round(),
                3 => {
                    let i = rng.random_range(0..special.len() + 2);
                    special.get(i).copied().unwrap_or(x)
                }
                4 => -1.25,
                _ => f32::NAN,
            };
            if rounded { bf16::from_f32(score).to_f32() } else { score }
        })
        .collect();
    let config = StemConfig {
        sink: [0, 1, 4, 300][rng.random_range(0..4)],
        window: [1, 4, 40][rng.random_range(0..3)],
        guards: if rng.random_bool(0.5) { Guards::InsideBudget } else { Guards::OnTop },
        ties: if rng.random_bool(0.7) { TieRule::LowestIndex } else { TieRule::KeepAll },
        ..StemConfig::preset(Preset::Hpc)
    };
    let budget = match rng.random_range(0..5) {
        0 => 1,
        1 => count,
        2 => count.saturating_sub(1).max(1),
        _ => rng.random_range(1..=count.max(1)),
    };
    Case { scores, budget, config, low_bit: if rounded { BF16_LOW_BIT } else { 0 } }
}

/// Where the kernel has the scores, and how many rows a warp takes.
#[derive(Clone, Copy)]
enum Source {
    Device,
    Shared,
    SharedPairs,
}

#[rstest]
fn rows_of_every_kind_give_the_rules_list(#[values(Source::Device, Source::Shared)] source: Source, #[values(4097, 40)] capacity: usize) {
    let Some(gpu) = gpu() else { return };
    let rng = &mut rng("rows_of_every_kind_give_the_rules_list");
    // Rows of one lane's keys and all, at the edges of what registers hold, and past it.
    let lengths = [1, 2, 31, 32, 33, 55, 56, 159, 160, 255, 256, 257, 511, 512, 513, 768, 1000, 1023, 1024, 1025, 1536, 2048, 2049, 4097];
    let cases: Vec<Case> = (0..5000)
        .map(|i| {
            let count = if i % 2 == 0 { lengths[i / 2 % lengths.len()] } else { rng.random_range(1..400) };
            case(rng, count)
        })
        .collect();
    expect_lists(&gpu, &cases, capacity, source);
}

/// Rows that a warp decides together: of one length and of very different ones, without candidates, one that chooses and one that
/// does not, one with f32 scores and one with bf16 scores, one that keeps ties and one that does not; the last row is alone.
#[rstest]
fn pairs_of_rows_give_the_rules_lists(#[values(1024, 40)] capacity: usize) {
    let Some(gpu) = gpu() else { return };
    let rng = &mut rng("pairs_of_rows_give_the_rules_lists");
    let lengths = [0, 1, 2, 31, 32, 33, 56, 127, 128, 129, 256, 511, 512, 513, 768, 1000, 1023, 1024];
    let mut cases: Vec<Case> = Vec::new();
    for pair in 0..2500 {
        let first = lengths[pair % lengths.len()];
        let second = match pair % 3 {
            0 => first,
            1 => lengths[pair / lengths.len() % lengths.len()],
            _ => rng.random_range(0..=1024),
        };
        cases.extend([first, second].map(|count| case(rng, count)));
    }
    cases.push(case(rng, 1024));
    let chooses = |case: &Case| case.budget < case.scores.len();
    let mixed = cases.chunks(2).filter(|pair| pair.len() == 2 && chooses(&pair[0]) != chooses(&pair[1])).count();
    let both = cases.chunks(2).filter(|pair| pair.iter().all(chooses)).count();
    assert!(mixed > 300 && both > 300, "{mixed} pairs of one row that chooses, {both} of two");
    expect_lists(&gpu, &cases, capacity, Source::SharedPairs);
}

/// Runs the kernel on rows and compares their lists with the CPU's rule.
fn expect_lists(gpu: &Gpu, cases: &[Case], capacity: usize, source: Source) {
    let stride = 4097;
    let mut scores = vec![1e30f32; cases.len() * stride];
    let mut rows = Vec::new();
    for (i, case) in cases.iter().enumerate() {
        scores[i * stride..][..case.scores.len()].copy_from_slice(&case.scores);
        let count = case.scores.len() as i32;
        let on_top = case.config.guards == Guards::OnTop;
        let row = Row::new(count - 1, count, true, case.config.sink as i32, case.config.window as i32, on_top);
        let row = RowParams {
            count: row.count,
            first_free: row.first_free,
            end_free: row.end_free,
            guards_rank: row.guards_rank.into(),
            budget: case.budget as i32,
            keep_all_ties: (case.config.ties == TieRule::KeepAll).into(),
            low_bit: case.low_bit as i32,
            reserved: 0,
        };
        rows.extend([row.count, row.first_free, row.end_free, row.guards_rank, row.budget, row.keep_all_ties, row.low_bit, row.reserved]);
    }
    let (scores, rows) = (gpu.upload(&scores), gpu.upload(&rows));
    let (lists, counts) = (gpu.poisoned::<i32>(cases.len() * capacity), gpu.poisoned::<i32>(cases.len()));
    let params = ProbeParams {
        a: address(gpu, &scores),
        b: address(gpu, &rows),
        c: address(gpu, &counts),
        out: address(gpu, &lists),
        count: cases.len() as i32,
        x: stride as i32,
        y: capacity as i32,
        z: source as i32,
    };
    let rows_of_block = if matches!(source, Source::SharedPairs) { PROBE_PAIR_ROWS } else { PROBE_ROWS };
    launch(gpu, "probe_select_rows", Launch::grid(cases.len().div_ceil(rows_of_block as usize), 1, 1), &params, None);
    let lists = gpu.download(&lists, cases.len() * capacity);
    let counts = gpu.download(&counts, cases.len());
    for (i, case) in cases.iter().enumerate() {
        let mut want = reference::topk_row(&case.scores, case.budget, case.scores.len().saturating_sub(1), &case.config);
        // What a list has no room for is left out.
        want.truncate(capacity);
        let list = &lists[i * capacity..][..capacity];
        let name = format!("row {i}: {} of {} scores, low bit {}, {:?}", case.budget, case.scores.len(), case.low_bit, case.config);
        assert_eq!(counts[i] as usize, want.len(), "{name}");
        assert_eq!(&list[..want.len()], want, "{name}");
        assert!(list[want.len()..].iter().all(|&j| j == -1), "{name}: wrote past its count");
    }
}
