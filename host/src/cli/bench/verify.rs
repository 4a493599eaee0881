//! A result is checked before its time is shown.

use super::engine::Output;
use super::problem::Problem;
use crate::cli::accuracy;
use crate::config::{Selector, StemConfig};
use crate::geometry::Geometry;
use crate::mask::BlockLists;
use crate::reference::{self, KvSummaries, ProbeInputs, ScoreInputs};
use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use stem_attn_kernels::config::BLOCK;

/// Rows of attention checked: many enough for a stable error, few enough for 128 K tokens on a CPU.
const ROWS: usize = 48;
/// Largest relative error of attention on N(0, 1) data against f64 on the same blocks; rounding P to e4m3 alone gives 0.026.
const ATTENTION_ERROR: f64 = 0.03;
/// Scores are sums of 2,048 products in another order, rounded to bf16 at most: two units in the last place of bf16.
const SCORE_ERROR: f32 = 1.0 / 64.0;
/// Base-2 logarithms of the probe selector: f16 accumulators, and, where two query groups are nearly as strong, the correction
/// of the other.
const PROBE_ERROR: f32 = 0.25;
/// Scores whose lists are checked: all of 32 heads of 256 K tokens, of longer prompts every n-th row of every head.
const LIST_SCORES: usize = 1 << 27;
/// Logarithms of norms: f32 sums of 128 squares in another order, and the GPU's logarithm.
const NORM_ERROR: f32 = 1e-4;

/// What was compared.
#[derive(Debug)]
pub struct Checked {
    /// In words.
    pub text: String,
    /// Relative error of attention against f64 on the same blocks.
    pub error: Option<f64>,
}

impl From<String> for Checked {
    fn from(text: String) -> Self {
        Self { text, error: None }
    }
}

/// Checks what a stage wrote and says what was compared.
pub fn verify(problem: &Problem, config: &StemConfig, output: &Output, seed: u64) -> Result<Checked> {
    match output {
        Output::Attention { out, lists } => attention(problem, lists, out, seed),
        Output::Selection { scores, score_stride, lists } => Ok(selection(problem, config, scores, *score_stride, lists)?.into()),
        Output::Summaries(summaries) => Ok(summary(problem, config, summaries)?.into()),
        Output::KeyMeans(got) => {
            let want = reference::key_means(&problem.paged.view(), &problem.geometry(None)?, super::probe(config)?)?;
            ensure!(got.means == want.means, "key means differ from the CPU reference");
            Ok("every mean bit for bit".to_owned().into())
        }
        Output::Pages { k, v } => {
            let mut expected = problem.paged.clone();
            let (new_k, new_v) = problem.new_rows();
            reference::append_kv(&new_k, &new_v, &problem.geometry(None)?, &[1.0], &[1.0], &mut expected)?;
            ensure!(*k == expected.k_pages, "K pages differ from the CPU reference");
            ensure!(*v == expected.v_pages, "V pages differ from the CPU reference");
            Ok("every page bit for bit".to_owned().into())
        }
        Output::Geometry(geometry) => {
            ensure!(*geometry == problem.geometry(Some(config))?, "the batch is cut differently");
            Ok("the batch's tables".to_owned().into())
        }
    }
}

fn attention(problem: &Problem, lists: &BlockLists, out: &[half::bf16], seed: u64) -> Result<Checked> {
    let rows = accuracy::sample(&problem.shape, ROWS, seed);
    let errors = accuracy::measure(&problem.inputs(), &problem.shape, lists, out, &rows, || {});
    ensure!(
        errors.selected <= ATTENTION_ERROR,
        "relative error {:.4} against f64 attention on the selected blocks ({} rows), at most {ATTENTION_ERROR} allowed",
        errors.selected,
        errors.rows
    );
    Ok(Checked { text: format!("relative error {:.4} on {} rows", errors.selected, errors.rows), error: Some(errors.selected) })
}

/// The scores of the last query block against the reference, and every list against the scores it was made of.
fn selection(problem: &Problem, config: &StemConfig, scores: &[f32], stride: usize, lists: &BlockLists) -> Result<String> {
    let (shape, geometry) = (problem.shape, problem.geometry(Some(config))?);
    lists.validate(shape.hq, &geometry)?;
    let every = (shape.hq * shape.qb() * shape.kb()).div_ceil(LIST_SCORES).max(1);
    check_lists(&geometry, config, scores, stride, lists, every)?;
    let last = last_row_scores(problem, config)?;
    let kb = shape.kb();
    let mut worst = 0f32;
    for head in 0..shape.hq {
        let got =
            scores.get((head * shape.qb() + shape.qb() - 1) * stride..).and_then(|s| s.get(..kb)).context("score tensor too short")?;
        let want = &last[head * kb..][..kb];
        // Cancellation makes a single score's relative error meaningless: compare with the row's largest.
        let size = want.iter().fold(0f32, |m, x| m.max(x.abs()));
        let allowed = if config.selector == Selector::Stem { SCORE_ERROR * size } else { PROBE_ERROR };
        let error = got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0f32, |m, e| if e.is_nan() { f32::NAN } else { m.max(e) });
        ensure!(error <= allowed, "scores of head {head}, last query block: off by {error}, the largest is {size}");
        worst = worst.max(error / size);
    }
    let lists = if every == 1 { "every list".to_owned() } else { format!("one list of {every}") };
    Ok(format!("{lists} from its scores; scores of {} rows within {worst:.1e} of the largest", shape.hq))
}

/// Every `every`-th list, other ones of each head, against the scores it was made of, and the last.
fn check_lists(geometry: &Geometry, config: &StemConfig, scores: &[f32], stride: usize, lists: &BlockLists, every: usize) -> Result<()> {
    let rows = geometry.total_qb();
    (0..lists.hq * rows).into_par_iter().try_for_each(|i| {
        let (head, row) = (i / rows, i % rows);
        if !(row + head).is_multiple_of(every) && row + 1 != rows {
            return Ok(());
        }
        let (block, request) = geometry.row(row).context("a query block without a request")?;
        let candidates = geometry.candidates(row);
        let seen = scores.get(i * stride..).and_then(|s| s.get(..candidates)).context("score tensor too short")?;
        let diagonal = (request.kb_len - 1).min(block.block) as usize;
        let again = reference::topk_row(seen, block.budget as usize, diagonal, config);
        ensure!(lists.row(head, row) == again, "list of head {head}, query block {row} is not the top of its scores");
        Ok(())
    })
}

/// Reference scores of the last query block of every head: `[hq, kb]`.
fn last_row_scores(problem: &Problem, config: &StemConfig) -> Result<Vec<f32>> {
    let shape = problem.shape;
    let first = shape.row_tokens(shape.qb() - 1).start - shape.history();
    let tokens = (shape.tokens - first) as i32;
    let kv = shape.kv_tokens as i32;
    let geometry = Geometry::new(&[0, tokens], &[0, kv], &[kv], true, Some(config))?;
    let stride = shape.kv_tokens.div_ceil(BLOCK);
    let (q, q_scale) = (&problem.q[first * shape.hq * 128..], &problem.q_scale[first * shape.hq..]);
    if let Selector::Probe(probe) = &config.selector {
        let keys = reference::key_means(&problem.paged.view(), &geometry, probe)?;
        let queries = reference::query_means(q, q_scale, shape.hq, &geometry, probe)?;
        let softmax_scale = reference::default_softmax_scale();
        let inputs = ProbeInputs { queries: &queries, keys: &keys, k_scale: &[1.0], softmax_scale, score_stride: stride };
        return Ok(reference::probe_scores(&inputs, &geometry, probe)?);
    }
    let summaries = reference::summarize_kv(&problem.paged.view(), &geometry, &[1.0], &[1.0])?;
    let q_sums = reference::query_sums(q, q_scale, shape.hq, &geometry)?;
    let v_bias = reference::value_bias(&summaries.run_norms, shape.hkv, &geometry, &config.oam)?;
    let inputs =
        ScoreInputs { q_sums: &q_sums, k_sums: &summaries.k_sums, v_bias: &v_bias, hq: shape.hq, hkv: shape.hkv, score_stride: stride };
    Ok(reference::scores(&inputs, &geometry, &config.oam)?)
}

fn summary(problem: &Problem, config: &StemConfig, got: &KvSummaries) -> Result<String> {
    let want = reference::summarize_kv(&problem.paged.view(), &problem.geometry(None)?, &[1.0], &[1.0])?;
    if config.selector != Selector::Stem {
        // Its key means are compared by what comes of them: `select`.
        ensure!(got.v_tiles == want.v_tiles, "V tiles differ from the CPU reference");
        return Ok("V tiles bit for bit".into());
    }
    ensure!(got.k_sums == want.k_sums, "key sums differ from the CPU reference");
    ensure!(got.v_tiles == want.v_tiles, "V tiles differ from the CPU reference");
    ensure!(got.run_norms.len() == want.run_norms.len(), "run norms: {} of {}", got.run_norms.len(), want.run_norms.len());
    let close = got.run_norms.iter().zip(&want.run_norms).all(|(g, w)| (g - w).abs() <= NORM_ERROR * w.abs().max(1.0));
    ensure!(close, "run norms differ from the CPU reference by more than {NORM_ERROR}");
    Ok("key sums and V tiles bit for bit, run norms".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::cpu::CpuEngine;
    use crate::cli::bench::{Engine, Job, L2, QScaleOrder, Stage, random_lists};
    use crate::cli::work::Shape;
    use crate::config::{Preset, ProbeConfig};
    use clap::ValueEnum;

    fn problem() -> (Problem, StemConfig) {
        let shape = Shape { tokens: 300, kv_tokens: 700, hq: 2, hkv: 1 };
        (Problem::new(shape, 32, 1).unwrap(), StemConfig::preset(Preset::Hpc))
    }

    fn job<'a>(stage: Stage, problem: &'a Problem, config: &'a StemConfig, lists: Option<&'a BlockLists>) -> Job<'a> {
        Job { stage, problem, config, lists, l2: L2::Warm, q_scale: QScaleOrder::default(), in_a_row: 1, pause: 0 }
    }

    #[test]
    fn right_results_pass_and_wrong_ones_do_not() {
        let (problem, config) = problem();
        let lists = random_lists(&problem.geometry(None).unwrap(), 2, 0.5, 2).unwrap();
        let probe = StemConfig { selector: Selector::Probe(ProbeConfig::default()), ..config };
        for (stage, config) in Stage::value_variants().iter().flat_map(|stage| [(stage, config), (stage, probe)]) {
            let engine = CpuEngine::new(job(*stage, &problem, &config, Some(&lists)));
            if *stage == Stage::ProbeMeans && config.selector == Selector::Stem {
                assert!(engine.is_err());
                continue;
            }
            let mut engine = engine.unwrap();
            engine.time(1).unwrap();
            let mut output = engine.output().unwrap();
            let checked = verify(&problem, &config, &output, 1).unwrap();
            assert!(!checked.text.is_empty());
            assert_eq!(checked.error.is_some(), stage.attends());
            match &mut output {
                Output::Attention { out, .. } => out.iter_mut().for_each(|x| *x = half::bf16::from_f32(x.to_f32() * 1.1)),
                Output::Selection { scores, .. } => scores.iter_mut().for_each(|x| *x *= 2.0),
                Output::Summaries(s) if config.selector == Selector::Stem => s.run_norms[3] += 0.1,
                Output::Summaries(s) => s.v_tiles[3] = float8::F8E4M3::from_bits(s.v_tiles[3].to_bits() ^ 1),
                Output::KeyMeans(means) => means.means[3] += 1.0,
                Output::Pages { v, .. } => v.iter_mut().for_each(|x| *x = float8::F8E4M3::from_bits(x.to_bits() ^ 1)),
                Output::Geometry(g) => g.query_blocks[0].budget += 1,
            }
            assert!(verify(&problem, &config, &output, 1).is_err(), "{stage:?}");
        }
    }

    #[test]
    fn a_list_that_is_not_the_top_of_its_scores_is_found() {
        let shape = Shape { tokens: 128, kv_tokens: 60 * 128, hq: 1, hkv: 1 };
        let (problem, config) = (Problem::new(shape, 64, 1).unwrap(), StemConfig::preset(Preset::Hpc));
        let mut engine = CpuEngine::new(job(Stage::Select, &problem, &config, None)).unwrap();
        engine.time(1).unwrap();
        let Output::Selection { scores, score_stride, lists } = engine.output().unwrap() else { panic!("a selection") };
        assert!(lists.row(0, 0).len() < 60);
        let mut rows = [lists.row(0, 0).to_vec()];
        let missing = (0..60).find(|j| !rows[0].contains(j)).unwrap();
        let at = rows[0].iter().position(|&j| j > missing).unwrap();
        rows[0][at] = missing;
        rows[0].sort_unstable();
        rows[0].dedup();
        let wrong = BlockLists::from_rows(1, 1, 1, &rows).unwrap();
        let geometry = problem.geometry(Some(&config)).unwrap();
        for every in [1, 7] {
            check_lists(&geometry, &config, &scores, score_stride, &lists, every).unwrap();
            assert!(check_lists(&geometry, &config, &scores, score_stride, &wrong, every).is_err());
        }
        assert!(verify(&problem, &config, &Output::Selection { scores, score_stride, lists: wrong }, 1).is_err());
    }
}
