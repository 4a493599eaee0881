//! Random problems against attention by its definition, on the CPU backend and on the GPU.
//!
//! `STEM_ATTN_FUZZ_CASES` changes the number of cases, `STEM_ATTN_FUZZ_SEED` runs the one of a seed and says what it is.

use rayon::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};
use stem_attn::BlockLists;
use stem_attn_tests::fuzz::{Case, Form};
use stem_attn_tests::gpu::backend;

/// Cases on a GPU.
const GPU_CASES: u64 = 2000;
/// Cases on the CPU.
const CPU_CASES: u64 = 40;

/// The seeds to run: one that was asked for, or so many from 0.
fn seeds(default: u64) -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().unwrap_or_else(|_| panic!("{name}: a number expected")));
    match number("STEM_ATTN_FUZZ_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("STEM_ATTN_FUZZ_CASES").unwrap_or(default)).collect(),
    }
}

/// Runs every seed, several at a time, up to the first failure.
fn run_all(seeds: &[u64], run: impl Fn(&Case) -> Result<f64, String> + Sync) {
    let failed = AtomicBool::new(false);
    let worst = seeds
        .par_iter()
        .map(|&seed| {
            if failed.load(Ordering::Relaxed) {
                return Ok(0.0);
            }
            let case = Case::new(seed);
            if seeds.len() == 1 {
                println!("{}", case.describe());
            }
            let result = run(&case);
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            result
        })
        .collect::<Vec<_>>();
    let (mut largest, mut sum) = (0f64, 0f64);
    for (seed, result) in seeds.iter().zip(worst) {
        let share = result.unwrap_or_else(|e| panic!("STEM_ATTN_FUZZ_SEED={seed} repeats this.\n{e}"));
        largest = largest.max(share);
        sum += share;
    }
    let mean = sum / seeds.len().max(1) as f64;
    println!("{} cases; error over tolerance: at most {largest:.3}, {mean:.3} in the worst row of the mean case", seeds.len());
}

#[test]
fn random_problems_on_the_cpu() {
    run_all(&seeds(CPU_CASES), |case| {
        let lists = (case.form != Form::Dense).then_some(&case.lists);
        let (out, lse) = case.run_cpu(lists)?;
        case.check(&out, case.lse.then_some(&lse))
    });
}

#[test]
fn random_problems_on_the_gpu() {
    let Some(gpu) = backend() else { return };
    run_all(&seeds(GPU_CASES), |case| {
        let stream = gpu.device().context().new_stream().map_err(|e| e.to_string())?;
        let (out, lse) = case.run_cuda(gpu, &stream)?;
        case.check(&out, lse.as_deref())
    });
}

/// The check can fail: one block too many or too few in some row shows.
#[test]
fn a_wrong_block_shows() {
    let mut seen = 0;
    for seed in 0..24 {
        let case = Case::new(seed);
        let total_qb = case.geometry.total_qb();
        let rows: Vec<Vec<i32>> = (0..case.hq * total_qb)
            .map(|i| {
                let list = case.lists.row(i / total_qb, i % total_qb);
                let spare = (0..case.geometry.candidates(i % total_qb) as i32).find(|j| !list.contains(j));
                let mut wrong = list.to_vec();
                match (wrong.first_mut(), spare) {
                    // Another block instead of the first.
                    (Some(first), Some(spare)) => *first = spare,
                    (Some(_), None) => drop(wrong.remove(0)),
                    (None, Some(spare)) => wrong.push(spare),
                    (None, None) => {}
                }
                wrong.sort_unstable();
                wrong
            })
            .collect();
        if rows.is_empty() {
            continue;
        }
        let wrong = BlockLists::from_rows(case.hq, total_qb, 1, &rows).expect("lists");
        let (out, lse) = case.run_cpu(Some(&wrong)).expect("a run");
        assert!(case.check(&out, Some(&lse)).is_err(), "{}", case.describe());
        seen += 1;
    }
    assert!(seen > 12, "{seen} cases with rows");
}
