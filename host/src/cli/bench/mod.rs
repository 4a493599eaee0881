//! `stem bench`: one stage on random data, checked before it is timed.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod engine;
mod problem;
mod verify;

pub use engine::Stage;

use super::args::BenchArgs;
use super::clocks::Sampler;
use super::commas::commas;
use super::machine::Machine;
use super::progress::Progress;
use super::work::{Shape, tflops};
use super::{files, table};
use crate::backend::{Backend, StageTime};
use crate::config::StemConfig;
use crate::error::{Error, Result};
use crate::mask::BlockLists;
use crate::record::{self, Record};
use engine::{Engine, Output};
use problem::Problem;
use std::time::{Duration, Instant};

/// Tokens of a problem, history included: 4 Mi keep every index in 32 bits.
const MAX_TOKENS: usize = 1 << 22;
/// Launching before the first timed one, so that clocks and power settle.
const WARM_UP: Duration = Duration::from_millis(300);
/// Launching while clock and power are sampled, at least.
const SAMPLED: Duration = Duration::from_millis(1500);

/// One line of the table: what is run, and the blocks it attends to.
enum Blocks {
    /// A stage without attention over given blocks.
    Selected,
    Dense,
    Random(f64),
}

/// Runs the command.
pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    files::check_targets(&[("records", args.records.as_deref())], None)?;
    let config = check(args)?;
    let backend = Backend::open(args.backend.into())?;
    let machine = Machine::of(&backend);
    let blocks = match args.bench {
        Stage::Attend => {
            let skips: &[f64] = if args.skip.is_empty() && !args.dense { &[0.5] } else { &args.skip };
            args.dense.then_some(Blocks::Dense).into_iter().chain(skips.iter().map(|&skip| Blocks::Random(skip))).collect()
        }
        _ => vec![Blocks::Selected],
    };
    let progress = Progress::new((args.seq.len() * blocks.len()) as u64);
    let mut rows = Vec::new();
    for &seq in &args.seq {
        progress.message(format!("{} {}: random data", args.bench.name(), commas(seq)));
        let shape = Shape { tokens: seq, kv_tokens: seq + args.history, hq: args.hq, hkv: args.hkv };
        let problem = Problem::new(shape, args.page, args.seed)?;
        for blocks in &blocks {
            let lists = match blocks {
                Blocks::Random(skip) => Some(problem::random_lists(&problem.geometry(None)?, args.hq, *skip, args.seed)?),
                Blocks::Dense | Blocks::Selected => None,
            };
            let mut engine = engine(&backend, args.bench, &problem, &config, lists.as_ref())?;
            let line = measure(args, &config, &machine, &problem, engine.as_mut(), blocks, &progress)?;
            if let Some(path) = &args.records {
                files::append_lines("records", path, &line.record.to_line())?;
            }
            rows.push(line.row());
            progress.step();
        }
    }
    drop(progress);
    say!(
        "{}: {}, {} query and {} KV heads, pages of {} tokens in random order",
        args.bench.name(),
        machine.describe(),
        args.hq,
        args.hkv,
        args.page
    );
    say!(
        "{}",
        table::grid(
            &["tokens", "history", "blocks", "kept", "ms", "p10", "p90", "TFLOP/s sel.", "dense-eq.", "MHz", "W", "checked"],
            &rows
        )
    );
    let clock = match machine.backend {
        "cpu" => "by the wall clock of the CPU reference, which is no yardstick".to_owned(),
        _ => format!("by CUDA events after {} ms of warm-up, L2 warm (every launch reads the same buffers)", WARM_UP.as_millis()),
    };
    say!(
        "Median of {} launches {clock}. N(0, 1) e4m3 data, scales 1.\n\
         TFLOP/s count visible (query, key) pairs, 4 x 128 each: those in kept blocks, and all of them.",
        args.repeat
    );
    Ok(())
}

/// Everything that can be wrong with the arguments, before anything is allocated or launched.
fn check(args: &BenchArgs) -> Result<StemConfig> {
    crate::kv::layout::check_page_size(args.page)?;
    for &seq in &args.seq {
        if seq == 0 || seq.checked_add(args.history).is_none_or(|n| n > MAX_TOKENS) {
            return Err(Error::value("seq", format!("1 to {MAX_TOKENS} tokens, history included"), seq));
        }
    }
    if args.hkv == 0 || args.hq == 0 || args.hq > 1024 || !args.hq.is_multiple_of(args.hkv) {
        let got = format!("{} and {}", args.hq, args.hkv);
        return Err(Error::value("heads", "at most 1,024 query heads, a positive multiple of the KV heads", got));
    }
    if let Some(skip) = args.skip.iter().find(|s| !(0.0..1.0).contains(*s)) {
        return Err(Error::value("skip", "a share of at least 0 and below 1", skip));
    }
    if args.bench != Stage::Attend && (args.dense || !args.skip.is_empty()) {
        return Err(Error::value("skip", "no --skip and no --dense, which are for --bench attend", args.bench.name()));
    }
    let mut config = StemConfig::preset(args.preset.into());
    config.alpha = args.alpha.unwrap_or(config.alpha);
    config.validate()?;
    Ok(config)
}

fn engine<'a>(
    backend: &'a Backend,
    stage: Stage,
    problem: &'a Problem,
    config: &'a StemConfig,
    lists: Option<&'a BlockLists>,
) -> Result<Box<dyn Engine + 'a>> {
    Ok(match backend {
        Backend::Cpu => Box::new(cpu::CpuEngine::new(stage, problem, config, lists)?),
        #[cfg(feature = "cuda")]
        Backend::Cuda(backend) => Box::new(cuda::CudaEngine::new(backend, stage, problem, config, lists)?),
    })
}

/// A measured line.
struct Line {
    record: Record,
    kept: Option<f64>,
    checked: String,
}

fn measure(
    args: &BenchArgs,
    config: &StemConfig,
    machine: &Machine,
    problem: &Problem,
    engine: &mut dyn Engine,
    blocks: &Blocks,
    progress: &Progress,
) -> anyhow::Result<Line> {
    let shape = problem.shape;
    progress.message(format!("{} {}: checking", args.bench.name(), commas(shape.tokens)));
    engine.time(1)?;
    let output = engine.output()?;
    let checked = verify::verify(problem, config, &output, args.seed)
        .map_err(|e| e.context(format!("{} of {} tokens is wrong, so no time is shown", args.bench.name(), shape.tokens)))?;
    let lists = match &output {
        Output::Attention { lists, .. } | Output::Selection { lists, .. } => Some(lists),
        Output::Summaries(_) | Output::Pages { .. } => None,
    };

    progress.message(format!("{} {}: timing", args.bench.name(), commas(shape.tokens)));
    let (samples, clock, power) = time(engine, args.repeat as usize, machine.pci_address.as_deref())?;
    let time = StageTime::from_samples(samples);
    let kept = lists.map(|lists| shape.kept(lists).1);
    let attends = matches!(args.bench, Stage::Attend | Stage::Prefill);
    let rate = |pairs: u64| attends.then(|| tflops(pairs, time.ms));
    let tiles = lists.filter(|_| args.bench == Stage::Attend).map(BlockLists::kept);
    let cycles = clock.zip(machine.sm_count).zip(tiles).map(|((mhz, sms), tiles)| mhz * 1e3 * f64::from(sms) * time.ms / tiles as f64);
    let preset = match blocks {
        Blocks::Selected => args.preset.name(),
        Blocks::Dense => "dense",
        Blocks::Random(_) => "random",
    };
    let record = Record {
        bench: args.bench.name().into(),
        backend: machine.backend.into(),
        gpu: machine.gpu.clone(),
        driver: machine.driver.clone(),
        sm_clock_mhz: clock,
        power_w: power,
        hq: shape.hq,
        hkv: shape.hkv,
        d: stem_attn_kernels::config::HEAD_DIM,
        seq: shape.tokens,
        history: shape.history(),
        page: args.page,
        skip: kept.map(|kept| 1.0 - kept),
        softmax: attends.then(|| "exact".into()),
        preset: lists.map(|_| preset.into()),
        ms: time.ms,
        p10: time.p10,
        p90: time.p90,
        repeat: args.repeat as usize,
        l2: machine.gpu.is_some().then(|| "warm".into()),
        tflops_selected: rate(lists.map_or(0, |lists| shape.selected_pairs(lists))),
        tflops_dense_equiv: rate(shape.visible_pairs()),
        cycles_per_tile: cycles,
        peer: None,
        command: record::command(),
        commit: record::commit(),
        date: record::now(),
    };
    Ok(Line { record, kept, checked })
}

/// Milliseconds of `repeat` launches, and clock and power meanwhile where there is a GPU (at a PCI address) to sample.
fn time(engine: &mut dyn Engine, repeat: usize, gpu: Option<&str>) -> Result<(Vec<f64>, Option<f64>, Option<f64>)> {
    let Some(pci_address) = gpu else { return Ok((engine.time(repeat)?, None, None)) };
    let start = Instant::now();
    while start.elapsed() < WARM_UP {
        engine.time(8)?;
    }
    let (sampler, start) = (Sampler::start(pci_address), Instant::now());
    let samples = engine.time(repeat)?;
    while start.elapsed() < SAMPLED {
        engine.time(8)?;
    }
    let (clock, power) = sampler.stop();
    Ok((samples, clock, power))
}

impl Line {
    fn row(&self) -> Vec<String> {
        let r = &self.record;
        let number = |x: Option<f64>, digits: usize| x.map_or_else(|| "-".into(), |x| format!("{x:.digits$}"));
        vec![
            commas(r.seq),
            commas(r.history),
            r.preset.clone().unwrap_or_else(|| "-".into()),
            self.kept.map_or_else(|| "-".into(), |kept| format!("{:.1} %", 100.0 * kept)),
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
