//! What a selection loses: the share of the true attention mass that selectors keep, whether the blocks that hold the answers
//! to a capture's questions are among the kept ones, and what leaving the others out does to the output.

use rayon::prelude::*;
use serde::Serialize;
use stem_attn::cli::input::Input;
use stem_attn::config::ProbeConfig;
use stem_attn::kv::layout::{PageLayout, PagedTensors};
use stem_attn::reference::{self, ProbeInputs, ScoreInputs, topk_row};
use stem_attn::{BlockLists, Geometry, PrefillInputs, Preset, Result, StemConfig, fp8};

/// Tokens of a block.
const BLOCK: usize = 128;
/// Head dimension.
const DIM: usize = 128;
/// Every so many-th query token is looked at for the error of the output.
const STRIDE: usize = 61;

/// Tensors of a real layer in f32, with the questions that its text asks.
pub struct Capture {
    /// As the library takes them.
    pub input: Input,
    /// (first token of the source, first token of the answer) of every question.
    pub questions: Vec<(usize, usize)>,
    geometry: Geometry,
    /// Real values `[tokens, heads, 128]`.
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

/// A score `[hq, query blocks, key blocks]` of every pair of blocks; larger is kept first.
type Scores = Vec<f32>;

/// Something that scores blocks.
pub struct Selector {
    /// Name in records.
    pub name: &'static str,
    /// Its parameters, in words.
    pub setting: &'static str,
    scores: fn(&Capture) -> Result<Scores>,
}

/// The selectors that are compared. The oracle keeps the blocks with the largest true mass.
pub const SELECTORS: [Selector; 5] = [
    Selector { name: "oracle", setting: "true attention mass", scores: Capture::mass },
    Selector { name: "stem", setting: "hpc", scores: |capture| stem(capture, Preset::Hpc) },
    Selector { name: "stem", setting: "paper", scores: |capture| stem(capture, Preset::Paper) },
    Selector { name: "probe", setting: "groups of 8", scores: |capture| probe(capture, &ProbeConfig::default()) },
    Selector { name: "probe", setting: "groups of 4", scores: |capture| probe(capture, &ProbeConfig::fine()) },
];

/// What a selector keeps of one head at one budget: a line of a record file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fidelity {
    /// `fidelity`.
    pub bench: &'static str,
    /// File name of the capture.
    pub capture: String,
    /// Its tokens.
    pub tokens: usize,
    /// Query head.
    pub head: usize,
    /// Name of the selector.
    pub selector: &'static str,
    /// Its parameters.
    pub setting: &'static str,
    /// Share of the causal blocks that may be kept, as many in every row; sinks and window count.
    pub budget: f64,
    /// Share of the causal blocks that is kept.
    pub kept: f64,
    /// Share of the attention mass in kept blocks, mean over query tokens.
    pub mass: f64,
    /// Questions whose source block is in the list of the query block that gives the answer.
    pub sources_kept: usize,
    /// Questions.
    pub sources: usize,
    /// Relative error (2-norm) of the output without the other blocks, in f64 over sampled rows.
    pub error: f64,
    /// The command that made the line.
    pub command: String,
    /// Commit of the source.
    pub commit: Option<String>,
    /// UTC, `YYYY-MM-DDThh:mm:ssZ`.
    pub date: String,
}

/// The kept blocks of one head: a line of a record file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mask {
    /// `mask`.
    pub bench: &'static str,
    /// File name of the capture.
    pub capture: String,
    /// Its tokens.
    pub tokens: usize,
    /// Query head.
    pub head: usize,
    /// Name of the selector.
    pub selector: &'static str,
    /// Its parameters.
    pub setting: &'static str,
    /// Share of the causal blocks that may be kept.
    pub budget: f64,
    /// For every query block the runs of kept key blocks, `first-last` or a single number, with blanks between them.
    pub rows: Vec<String>,
    /// The command that made the line.
    pub command: String,
    /// Commit of the source.
    pub commit: Option<String>,
    /// UTC, `YYYY-MM-DDThh:mm:ssZ`.
    pub date: String,
}

impl Selector {
    /// Scores every pair of blocks.
    ///
    /// # Errors
    /// Those of the CPU reference.
    pub fn scores(&self, capture: &Capture) -> Result<Scores> {
        (self.scores)(capture)
    }
}

impl Capture {
    /// A capture of whole blocks without history, and its questions.
    ///
    /// # Errors
    /// Those of [`Geometry::new`].
    pub fn new(input: Input, questions: Vec<(usize, usize)>) -> Result<Self> {
        let tokens = input.shape.tokens as i32;
        let geometry = Geometry::new(&[0, tokens], &[0, tokens], &[tokens], true, None)?;
        let real = |codes: &[float8::F8E4M3], scale: &(dyn Fn(usize) -> f32 + Sync)| -> Vec<f32> {
            codes.par_iter().enumerate().map(|(i, &code)| fp8::decode(code) * scale(i / DIM)).collect()
        };
        let per_head = |scales: &[f32], row: usize| scales.get(row % input.shape.hkv).or(scales.first()).copied().unwrap_or(1.0);
        let q = real(&input.q, &|row| input.q_scale.get(row).copied().unwrap_or(1.0));
        let own = input.k_scale.len() * DIM == input.k.len();
        let k = real(&input.k, &|row| if own { input.k_scale[row] } else { per_head(&input.k_scale, row) });
        let v = real(&input.v, &|row| per_head(&input.v_scale, row));
        Ok(Self { input, questions, geometry, q, k, v })
    }

    /// Query heads.
    pub fn heads(&self) -> usize {
        self.input.shape.hq
    }

    /// Blocks of either kind.
    pub fn blocks(&self) -> usize {
        self.geometry.total_qb()
    }

    /// The attention mass of every pair of blocks, mean over the query block's tokens: `[hq, blocks, blocks]`.
    ///
    /// # Errors
    /// None; a selector may have some.
    pub fn mass(&self) -> Result<Scores> {
        let blocks = self.blocks();
        let mut mass = vec![0f32; self.heads() * blocks * blocks];
        mass.par_chunks_exact_mut(blocks).enumerate().for_each(|(row, mass)| {
            let (head, block) = (row / blocks, row % blocks);
            let tokens = block * BLOCK..((block + 1) * BLOCK).min(self.input.shape.tokens);
            let count = tokens.len() as f32;
            for token in tokens {
                let p = self.probabilities(token, head);
                for (mass, p) in mass.iter_mut().zip(p.chunks(BLOCK)) {
                    *mass += p.iter().sum::<f32>() / count;
                }
            }
        });
        Ok(mass)
    }

    /// Dense attention of one query token and head: a probability for every key up to it.
    fn probabilities(&self, token: usize, head: usize) -> Vec<f32> {
        let (hq, hkv) = (self.heads(), self.input.shape.hkv);
        let kv = head / (hq / hkv);
        let q = row(&self.q, token * hq + head);
        let mut p: Vec<f32> = (0..=token).map(|key| dot(q, row(&self.k, key * hkv + kv)) / (DIM as f32).sqrt()).collect();
        let largest = p.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        p.iter_mut().for_each(|x| *x = (*x - largest).exp());
        let sum: f64 = p.iter().map(|&x| f64::from(x)).sum();
        p.iter_mut().for_each(|x| *x = (f64::from(*x) / sum) as f32);
        p
    }

    /// Blocks that every row may keep (all of its own, where it has fewer): the fewest that make up the share `budget` of the
    /// causal blocks.
    pub fn row_budget(&self, budget: f64) -> usize {
        let blocks = self.blocks();
        let allowed = budget * (blocks * (blocks + 1) / 2) as f64;
        let kept = |k: usize| (1..=blocks).map(|visible| visible.min(k)).sum::<usize>() as f64;
        (1..=blocks).find(|&k| kept(k) >= allowed).unwrap_or(blocks)
    }

    /// Lists of the best blocks of `scores`: the same number in every row ([`Self::row_budget`]), sinks and window (four
    /// blocks each) among them.
    ///
    /// # Errors
    /// Those of [`BlockLists::from_rows`].
    pub fn lists(&self, scores: &Scores, budget: f64) -> Result<BlockLists> {
        let blocks = self.blocks();
        let (config, budget) = (StemConfig::preset(Preset::Hpc), self.row_budget(budget));
        let rows: Vec<Vec<i32>> = scores
            .par_chunks(blocks)
            .enumerate()
            .map(|(i, scores)| {
                let (block, visible) = (i % blocks, i % blocks + 1);
                let mut scores = scores[..visible].to_vec();
                // Guards are part of the budget, not on top of it.
                for (j, score) in scores.iter_mut().enumerate() {
                    if j < config.sink as usize || j + config.window as usize > block {
                        *score = f32::MAX;
                    }
                }
                topk_row(&scores, budget.min(visible), block, &config)
            })
            .collect();
        BlockLists::from_rows(self.heads(), blocks, 1, &rows)
    }

    /// Share of the mass in kept blocks of one head.
    pub fn mass_kept(&self, mass: &Scores, lists: &BlockLists, head: usize) -> f64 {
        let blocks = self.blocks();
        let kept = |block: usize| -> f64 {
            let mass = mass.get((head * blocks + block) * blocks..).unwrap_or(&[]);
            lists.row(head, block).iter().filter_map(|&j| mass.get(j as usize)).map(|&m| f64::from(m)).sum()
        };
        (0..blocks).map(kept).sum::<f64>() / blocks.max(1) as f64
    }

    /// Questions of which the source block is in the list of the query block whose last logits give the answer's first byte.
    pub fn sources_kept(&self, lists: &BlockLists, head: usize) -> usize {
        let kept =
            |(source, answer): &(usize, usize)| lists.row(head, answer.saturating_sub(1) / BLOCK).contains(&((source / BLOCK) as i32));
        self.questions.iter().filter(|question| kept(question)).count()
    }

    /// Relative error of the output of one head without the other blocks, over sampled query tokens.
    pub fn output_error(&self, lists: &BlockLists, head: usize) -> f64 {
        let hkv = self.input.shape.hkv;
        let kv = head / (self.heads() / hkv);
        let tokens: Vec<usize> = (0..self.input.shape.tokens).rev().step_by(STRIDE).collect();
        let sums = tokens.par_iter().map(|&token| {
            let p = self.probabilities(token, head);
            let list = lists.row(head, token / BLOCK);
            let (mut dense, mut sparse, mut kept) = ([0f64; DIM], [0f64; DIM], 0f64);
            for (key, &p) in p.iter().enumerate() {
                let (p, keep) = (f64::from(p), list.binary_search(&((key / BLOCK) as i32)).is_ok());
                kept += if keep { p } else { 0.0 };
                for ((dense, sparse), &v) in dense.iter_mut().zip(&mut sparse).zip(row(&self.v, key * hkv + kv)) {
                    *dense += p * f64::from(v);
                    *sparse += if keep { p * f64::from(v) } else { 0.0 };
                }
            }
            dense.iter().zip(&sparse).fold((0.0, 0.0), |(error, norm), (d, s)| (error + (s / kept - d).powi(2), norm + d * d))
        });
        let (error, norm) = sums.reduce(|| (0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
        if error == 0.0 { 0.0 } else { (error / norm).sqrt() }
    }
}

/// Runs of consecutive numbers: "0-3 7 9-12".
pub fn runs(list: &[i32]) -> String {
    let mut runs: Vec<(i32, i32)> = Vec::new();
    for &j in list {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == j => *last = j,
            _ => runs.push((j, j)),
        }
    }
    let words = runs.into_iter().map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") });
    words.collect::<Vec<_>>().join(" ")
}

/// K and V in pages, with the scales of single keys where there are any.
fn pages(inputs: &PrefillInputs<'_>) -> Result<PagedTensors> {
    let pages = PagedTensors::build(inputs.k, inputs.v, inputs.hkv, inputs.cu_seqlens_kv, 64, PageLayout::Nhd, None)?;
    match inputs.k_token_scale() {
        Some(scales) => pages.with_token_scales(scales, inputs.cu_seqlens_kv, PageLayout::Nhd, false),
        None => Ok(pages),
    }
}

/// Stem's scores, on the CPU.
fn stem(capture: &Capture, preset: Preset) -> Result<Scores> {
    let (config, geometry) = (StemConfig::preset(preset), &capture.geometry);
    let inputs = capture.input.inputs();
    let pages = pages(&inputs)?;
    let summaries = reference::summarize_kv(&pages.view(), geometry, inputs.k_head_scale(), inputs.v_scale)?;
    let q_sums = reference::query_sums(inputs.q, inputs.q_scale, inputs.hq, geometry)?;
    let v_bias = reference::value_bias(&summaries.run_norms, inputs.hkv, geometry, &config.oam)?;
    let scores = ScoreInputs {
        q_sums: &q_sums,
        k_sums: &summaries.k_sums,
        v_bias: &v_bias,
        hq: inputs.hq,
        hkv: inputs.hkv,
        score_stride: capture.blocks(),
    };
    reference::scores(&scores, geometry, &config.oam)
}

/// The probe selector's scores, on the CPU.
fn probe(capture: &Capture, config: &ProbeConfig) -> Result<Scores> {
    let (inputs, geometry) = (capture.input.inputs(), &capture.geometry);
    let pages = pages(&inputs)?;
    let keys = reference::key_means(&pages.view(), geometry, config)?;
    let queries = reference::query_means(inputs.q, inputs.q_scale, inputs.hq, geometry, config)?;
    let scores = ProbeInputs {
        queries: &queries,
        keys: &keys,
        k_scale: inputs.k_head_scale(),
        softmax_scale: reference::default_softmax_scale(),
        score_stride: capture.blocks(),
    };
    reference::probe_scores(&scores, geometry, config)
}

fn row(tensor: &[f32], at: usize) -> &[f32] {
    tensor.get(at * DIM..(at + 1) * DIM).unwrap_or(&[])
}

/// In sixteen partial sums, so that the compiler may use vectors.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 16];
    for (a, b) in a.as_chunks::<16>().0.iter().zip(b.as_chunks::<16>().0) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::{Dtype, tensor::TensorView};
    use stem_attn::cli::bench::Problem;
    use stem_attn::cli::work::Shape;

    fn capture(tokens: usize) -> Capture {
        let problem = Problem::new(Shape { tokens, kv_tokens: tokens, hq: 2, hkv: 1 }, 64, 3).expect("a problem");
        let bits = |codes: &[float8::F8E4M3]| codes.iter().map(|code| code.to_bits()).collect::<Vec<u8>>();
        let (q, k, v) = (bits(&problem.q), bits(&problem.k), bits(&problem.v));
        let view = |heads, data| TensorView::new(Dtype::F8_E4M3, vec![tokens, heads, DIM], data).expect("a tensor");
        let file = safetensors::serialize([("q", view(2, &q)), ("k", view(1, &k)), ("v", view(1, &v))], None).expect("a file");
        let input = Input::parse(&file).expect("an input");
        Capture::new(input, vec![(5, 1999), (300, 2001), (1900, 2040)]).expect("a capture")
    }

    #[test]
    fn mass_is_a_distribution_and_everything_keeps_all_of_it() {
        let capture = capture(2048);
        let mass = capture.mass().expect("mass");
        for (i, row) in mass.chunks(capture.blocks()).enumerate() {
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-4, "row {i}");
            assert!(row[i % capture.blocks() + 1..].iter().all(|&m| m == 0.0), "mass above the diagonal of row {i}");
        }
        let all = capture.lists(&mass, 1.0).expect("lists");
        assert!((capture.mass_kept(&mass, &all, 1) - 1.0).abs() < 1e-4);
        assert_eq!(capture.sources_kept(&all, 0), 3);
        assert!(capture.output_error(&all, 0) < 1e-6);
    }

    #[test]
    fn no_selector_beats_the_oracle_and_budgets_are_kept() {
        let capture = capture(2048);
        let mass = capture.mass().expect("mass");
        for selector in &SELECTORS {
            let lists = capture.lists(&selector.scores(&capture).expect("scores"), 0.8).expect("lists");
            assert_eq!(lists.row(0, 15).len(), 10, "{}", selector.setting);
            let oracle = capture.lists(&mass, 0.8).expect("lists");
            for head in 0..2 {
                let (got, best) = (capture.mass_kept(&mass, &lists, head), capture.mass_kept(&mass, &oracle, head));
                assert!(got <= best + 1e-6 && got > 0.5, "{} keeps {got}, the oracle {best}", selector.setting);
                let error = capture.output_error(&lists, head);
                assert!(error > 0.01 && error < 1.0, "{error}");
            }
        }
        // Block 2 holds the second source, is no guard of row 15, and is left out of a list without it.
        let mut scores = mass.clone();
        scores[(15 * 16)..(16 * 16)].iter_mut().for_each(|s| *s = 1.0);
        let lists = capture.lists(&scores, 0.5).expect("lists");
        assert_eq!(capture.sources_kept(&lists, 0), 3, "sinks hold two of the sources, the window the third");
        let far = Capture { questions: vec![(900, 2047)], ..capture };
        assert_eq!(far.sources_kept(&far.lists(&scores, 0.5).expect("lists"), 0), 0);
    }

    #[test]
    fn runs_of_numbers() {
        assert_eq!(runs(&[0, 1, 2, 3, 7, 9, 10]), "0-3 7 9-10");
        assert_eq!(runs(&[]), "");
    }
}
