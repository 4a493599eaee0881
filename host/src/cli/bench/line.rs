//! One line of the table: what is run, on which blocks, and what came of it.

use super::engine::{Engine, Job, Output, Stage};
use super::problem::{Problem, random_lists};
use super::verify::{self, Checked};
use crate::backend::StageTime;
use crate::cli::args::{BenchArgs, SelectorArg};
use crate::cli::clocks::{self, Sampler};
use crate::cli::commas::commas;
use crate::cli::machine::Machine;
use crate::cli::table;
use crate::cli::work::{Shape, tflops};
use crate::config::StemConfig;
use crate::error::Result;
use crate::mask::BlockLists;
use crate::record::{self, Record};
use std::time::{Duration, Instant};
use stem_attn_kernels::config::probe_sel::SUB_BLOCKS;
use stem_attn_kernels::config::{BLOCK, HEAD_DIM, RUNS, SUM_LEN};

/// Launching before the first timed launch of a turn, so that clocks and power settle.
pub const WARM_UP: Duration = Duration::from_millis(250);
/// Launching while clock and power are sampled, at least.
const SAMPLED: Duration = Duration::from_millis(750);
/// Launches that are queued at once to fill time last about so long.
const BATCH_MS: f64 = 50.0;

/// What is run.
pub struct Line {
    pub stage: Stage,
    /// Where the blocks come from.
    pub preset: &'static str,
    /// What scores them, of a stage that selects.
    pub selector: SelectorArg,
    /// Random lists, with the share they leave out.
    pub lists: Option<(f64, BlockLists)>,
}

impl Line {
    /// The lines of one problem.
    pub fn all(args: &BenchArgs, problem: &Problem) -> Result<Vec<Self>> {
        let mut lines = Vec::new();
        let selector = args.selector;
        for &stage in &args.bench {
            if stage == Stage::SummarizeChunk && !args.bench.contains(&Stage::SummarizeKv) {
                // What it is to be compared with.
                lines.push(Self { stage: Stage::SummarizeKv, preset: args.preset.name(), selector, lists: None });
            }
            if stage != Stage::Attend {
                lines.push(Self { stage, preset: args.preset.name(), selector, lists: None });
                continue;
            }
            if args.dense {
                lines.push(Self { stage, preset: "dense", selector, lists: None });
            }
            let skips: &[f64] = if args.skip.is_empty() && !args.dense { &[0.5] } else { &args.skip };
            for &skip in skips {
                let lists = random_lists(&problem.geometry(None)?, args.hq, skip, args.seed)?;
                lines.push(Self { stage, preset: "random", selector, lists: Some((skip, lists)) });
            }
        }
        Ok(lines)
    }

    /// What an engine needs to run it. `chunk`: the problem of `summarize_chunk`.
    pub fn job<'a>(&'a self, args: &BenchArgs, problem: &'a Problem, chunk: Option<&'a Problem>, config: &'a StemConfig) -> Job<'a> {
        let problem = chunk.filter(|_| self.stage == Stage::SummarizeChunk).unwrap_or(problem);
        Job {
            stage: self.stage,
            problem,
            config,
            lists: self.lists.as_ref().map(|(_, lists)| lists),
            l2: args.l2,
            q_scale: args.q_scale,
            in_a_row: args.in_a_row,
            pause: args.pause,
        }
    }
}

/// A line whose result has been checked, and its times so far.
pub struct Measured<'a> {
    line: &'a Line,
    shape: Shape,
    engine: Box<dyn Engine + 'a>,
    checked: Checked,
    /// Blocks attended to or selected.
    lists: Option<BlockLists>,
    samples: Vec<f64>,
    clocks: Vec<(f64, f64)>,
}

impl<'a> Measured<'a> {
    /// Launches once and checks what it wrote.
    pub fn new(line: &'a Line, job: Job<'a>, mut engine: Box<dyn Engine + 'a>, seed: u64) -> anyhow::Result<Self> {
        engine.time(1)?;
        let output = engine.output()?;
        let checked = verify::verify(job.problem, job.config, &output, seed).map_err(|e| {
            e.context(format!("{} of {} tokens is wrong, so no time is shown", line.stage.name(), job.problem.shape.tokens))
        })?;
        let lists = match output {
            Output::Attention { lists, .. } | Output::Selection { lists, .. } if !line.stage.on_host() => Some(lists),
            _ => None,
        };
        Ok(Self { line, shape: job.problem.shape, engine, checked, lists, samples: Vec::new(), clocks: Vec::new() })
    }

    /// One turn: `repeat` timed launches, after a warm-up and with clock and power sampled where there is a GPU.
    pub fn turn(&mut self, repeat: usize, sampler: Option<&Sampler>) -> Result<()> {
        let start = Instant::now();
        let mut last = self.engine.time(1)?;
        // The GPU's state is no part of what the host takes.
        let Some(sampler) = sampler.filter(|_| !self.line.stage.on_host()) else {
            self.samples.extend(self.engine.time(repeat)?);
            return Ok(());
        };
        let batch = |last: &[f64]| ((BATCH_MS / last.first().copied().unwrap_or(1.0).max(1e-3)) as usize).clamp(1, 64);
        while start.elapsed() < WARM_UP {
            last = self.engine.time(batch(&last))?;
        }
        let start = Instant::now();
        self.samples.extend(self.engine.time(repeat)?);
        while start.elapsed() < SAMPLED {
            self.engine.time(batch(&last))?;
        }
        self.clocks.extend(sampler.since(start));
        Ok(())
    }

    /// The record of all turns.
    pub fn finish(self, args: &BenchArgs, machine: &Machine, run: &str) -> Row {
        let (stage, shape) = (self.line.stage, &self.shape);
        let chunk = (stage == Stage::SummarizeChunk).then_some(shape.tokens);
        let (clock, power) = clocks::medians(&self.clocks);
        let repeat = self.samples.len();
        let time = StageTime::from_samples(self.samples);
        let kept = self.lists.as_ref().map(|lists| shape.kept(lists).1);
        // Counted only where it is shown: of a million tokens it takes seconds.
        let rate = |pairs: &dyn Fn() -> u64| stage.attends().then(|| tflops(pairs(), time.ms));
        let tiles = self.lists.as_ref().filter(|_| stage == Stage::Attend).map(BlockLists::kept);
        let cycles = clock.zip(machine.sm_count).zip(tiles).map(|((mhz, sms), tiles)| mhz * 1e3 * f64::from(sms) * time.ms / tiles as f64);
        let record = Record {
            bench: stage.name().into(),
            backend: machine.backend.into(),
            gpu: machine.gpu.clone(),
            driver: machine.driver.clone(),
            sm_clock_mhz: clock,
            power_w: power,
            hq: shape.hq,
            hkv: shape.hkv,
            d: HEAD_DIM,
            seq: chunk.map_or(shape.tokens, |_| shape.kv_tokens),
            chunk,
            history: chunk.map_or(shape.history(), |_| 0),
            page: args.page,
            q_scale: (stage.reads_queries() && machine.gpu.is_some()).then(|| args.q_scale.name().into()),
            skip: kept.map(|kept| 1.0 - kept),
            softmax: stage.attends().then(|| "exact".into()),
            preset: (self.lists.is_some() || stage.selects()).then(|| self.line.preset.into()),
            selector: stage.depends_on_selector().then(|| self.line.selector.name().into()),
            ms: time.ms,
            p10: time.p10,
            p90: time.p90,
            repeat,
            rounds: Some(args.rounds as usize),
            in_a_row: (args.in_a_row > 1 && !stage.on_host()).then_some(args.in_a_row as usize),
            pause_ms: (args.pause > 0 && machine.gpu.is_some() && !stage.on_host()).then_some(args.pause as usize),
            run: Some(run.into()),
            l2: (machine.gpu.is_some() && !stage.on_host()).then(|| args.l2.name().into()),
            tflops_selected: rate(&|| self.lists.as_ref().map_or(0, |lists| shape.selected_pairs(lists))),
            tflops_dense_equiv: rate(&|| shape.visible_pairs()),
            bytes: bytes(stage, self.line.selector, shape, self.lists.as_ref()),
            error: self.checked.error.filter(|_| stage.attends()),
            cycles_per_tile: cycles,
            command: record::command(),
            commit: record::commit(),
            date: record::now(),
            ..Record::default()
        };
        let selector = stage.selects().then_some(self.line.selector);
        Row { record, selector, checked: self.checked.text }
    }
}

/// Least traffic of a stage with device memory; none for the host's own work.
fn bytes(stage: Stage, selector: SelectorArg, shape: &Shape, lists: Option<&BlockLists>) -> Option<u64> {
    let (blocks, rows) = (shape.kb(), shape.tokens * shape.hq);
    let (q, out) = (rows * (HEAD_DIM + size_of::<f32>()), rows * 2 * HEAD_DIM);
    let kv = shape.kv_tokens * shape.hkv * HEAD_DIM;
    let v_tiles = |blocks: usize| blocks * BLOCK * shape.hkv * HEAD_DIM;
    // What summarize_kv reads: of a chunk, the blocks that it touches.
    let new_kv = shape.new_block_tokens() * shape.hkv * HEAD_DIM;
    let of_block = match selector {
        SelectorArg::Stem => 2 * SUM_LEN + size_of::<f32>() * RUNS,
        SelectorArg::Probe | SelectorArg::ProbeFine => SUB_BLOCKS * HEAD_DIM,
    };
    let sums = |blocks: usize| blocks * shape.hkv * of_block;
    let indices = lists.map_or(0, |lists| 4 * (lists.kept() as usize + shape.qb() * shape.hq));
    let bytes = match stage {
        Stage::Attend => q + kv + v_tiles(blocks) + indices + out,
        Stage::Select => q + sums(blocks) + indices,
        Stage::SummarizeKv | Stage::SummarizeChunk => 2 * new_kv + sums(shape.qb()) + v_tiles(shape.qb()),
        // Sums are written of the new blocks, and read of those before.
        Stage::Selection => q + 2 * new_kv + sums(blocks) + v_tiles(shape.qb()) + indices,
        Stage::ProbeMeans => new_kv + sums(shape.qb()),
        Stage::AppendKv => shape.tokens * shape.hkv * HEAD_DIM * 2 * 3,
        Stage::Prefill => q + 2 * kv + out,
        Stage::HostPlan | Stage::HostRun => return None,
    };
    Some(bytes as u64)
}

/// A measured line.
pub struct Row {
    pub record: Record,
    selector: Option<SelectorArg>,
    checked: String,
}

impl Row {
    /// How the time of a chunk compares with that of the full pass among `rows`, in words.
    pub fn of_full_pass(&self, rows: &[Self]) -> Option<String> {
        let (r, chunk) = (&self.record, self.record.chunk?);
        let full = rows.iter().map(|row| &row.record).find(|full| full.bench == Stage::SummarizeKv.name() && full.seq == r.seq)?;
        let share = 100.0 * r.ms / full.ms;
        Some(format!("{} of {} tokens, {} before them: {share:.1} % of the full pass", r.bench, commas(chunk), commas(r.seq - chunk)))
    }

    /// Titles of the columns.
    pub const HEADER: [&'static str; 13] =
        ["stage", "tokens", "history", "blocks", "kept", "ms", "p10", "p90", "TFLOP/s sel.", "dense-eq.", "MHz", "W", "checked"];

    /// The columns.
    pub fn cells(&self) -> Vec<String> {
        let r = &self.record;
        let (tokens, history) = r.chunk.map_or((r.seq, r.history), |chunk| (chunk, r.seq - chunk));
        let number = |x: Option<f64>, digits: usize| x.map_or_else(|| "-".into(), |x| format!("{x:.digits$}"));
        vec![
            r.bench.clone(),
            commas(tokens),
            commas(history),
            r.preset.as_ref().map_or_else(|| "-".into(), |preset| self.selector.map_or(preset.clone(), |selector| selector.with(preset))),
            r.skip.map_or_else(|| "-".into(), |skip| format!("{:.1} %", 100.0 * (1.0 - skip))),
            table::milliseconds(r.ms),
            table::milliseconds(r.p10),
            table::milliseconds(r.p90),
            r.tflops_selected.map_or_else(|| "-".into(), table::rate),
            r.tflops_dense_equiv.map_or_else(|| "-".into(), table::rate),
            number(r.sm_clock_mhz, 0),
            number(r.power_w, 0),
            self.checked.clone(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_a_small_case() {
        let shape = Shape { tokens: 128, kv_tokens: 256, hq: 2, hkv: 1 };
        let lists = BlockLists { hq: 2, total_qb: 1, stride: 2, counts: vec![1, 2], lists: vec![1, 0, 0, 1] };
        let (q, out, kv) = (128 * 2 * 132, 128 * 2 * 256, 256 * 128);
        let bytes = |stage, shape, lists| bytes(stage, SelectorArg::Stem, shape, lists);
        assert_eq!(bytes(Stage::Attend, &shape, Some(&lists)), Some(q + out + 2 * kv + 4 * (3 + 2)));
        assert_eq!(bytes(Stage::Prefill, &shape, Some(&lists)), Some(q + out + 2 * kv));
        assert_eq!(bytes(Stage::AppendKv, &shape, None), Some(128 * 128 * (2 * 2 + 2)));
        assert_eq!(bytes(Stage::HostRun, &shape, None), None);
        assert_eq!(super::bytes(Stage::Select, SelectorArg::Probe, &shape, None), Some(q + 2 * 16 * 128));
        // One block is new of two.
        assert_eq!(super::bytes(Stage::ProbeMeans, SelectorArg::Probe, &shape, None), Some(kv / 2 + 16 * 128));
        let sums = 2 * 2048 + 4 * 8;
        assert_eq!(bytes(Stage::SummarizeChunk, &shape, None), Some(kv + sums + kv / 2));
        assert_eq!(bytes(Stage::Selection, &shape, Some(&lists)), Some(q + kv + 2 * sums + kv / 2 + 4 * (3 + 2)));
        let whole = Shape { tokens: 256, ..shape };
        assert_eq!(bytes(Stage::SummarizeKv, &whole, None), Some(2 * kv + 2 * sums + kv));
    }
}
