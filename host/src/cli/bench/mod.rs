//! `stem bench`: stages on random data, checked before they are timed. The criterion benches use its problems and engines.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod dump;
mod engine;
mod line;
mod pace;
mod problem;
mod verify;

pub use engine::{Engine, Job, L2, Output, QScaleOrder, Stage};
pub use problem::{Problem, random_lists};

use super::args::BenchArgs;
use super::clocks::Sampler;
use super::commas::commas;
use super::machine::Machine;
use super::progress::Progress;
use super::work::Shape;
use super::{files, table};
use crate::backend::Backend;
use crate::config::{ProbeConfig, Selector, StemConfig};
use crate::error::{Error, Result};
use crate::record;
use line::{Line, Measured, Row};
use pace::Pace;

/// Tokens of a problem, history included: 4 Mi keep every index in 32 bits.
const MAX_TOKENS: usize = 1 << 22;
/// New tokens of `summarize_chunk`, where nothing else is asked for.
const CHUNK: usize = 8192;

/// Runs the command.
pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    files::check_targets(&[("records", args.records.as_deref())], None)?;
    let config = check(args)?;
    let backend = Backend::open(args.backend.into())?;
    let machine = Machine::of(&backend);
    let sampler = machine.pci_address.as_deref().map(Sampler::start);
    let run = args.run.clone().unwrap_or_else(record::now);
    let progress = Progress::new(args.seq.len() as u64);
    let pace = Pace(args.paced);
    let mut rows: Vec<Row> = Vec::new();
    for &seq in &args.seq {
        progress.message(format!("{}: random data", commas(seq)));
        let shape = Shape { tokens: seq, kv_tokens: seq + args.history, hq: args.hq, hkv: args.hkv };
        let problem = Problem::new(shape, args.page, args.seed)?;
        let lines = Line::all(args, &problem)?;
        let chunk = args.bench.contains(&Stage::SummarizeChunk).then(|| problem.last(args.chunk.unwrap_or(CHUNK)));
        if let Some(folder) = &args.dump {
            let lists: Vec<_> = lines.iter().filter_map(|line| line.lists.as_ref()).map(|(skip, lists)| (*skip, lists)).collect();
            dump::write(folder, &problem, &lists)?;
        }
        // Lines that take turns lie in memory side by side, others one after another.
        let together = if args.rounds > 1 || args.paced { lines.len() } else { 1 };
        for lines in lines.chunks(together.max(1)) {
            let mut measured = Vec::with_capacity(lines.len());
            for line in lines {
                progress.message(format!("{} {}: checking", line.stage.name(), commas(seq)));
                let job = line.job(args, &problem, chunk.as_ref(), &config);
                measured.push(Measured::new(line, job, engine(&backend, job)?, args.seed)?);
            }
            pace.ready();
            progress.message(format!("{}: timing", commas(seq)));
            for _ in 0..args.rounds {
                for measured in &mut measured {
                    pace.wait()?;
                    measured.turn(args.repeat as usize, sampler.as_ref())?;
                    pace.done();
                }
            }
            for measured in measured {
                let row = measured.finish(args, &machine, &run);
                if let Some(path) = &args.records {
                    files::append_lines("records", path, &row.record.to_line())?;
                }
                rows.push(row);
            }
        }
        progress.step();
    }
    drop((progress, sampler));
    show(args, &machine, &rows);
    Ok(())
}

fn show(args: &BenchArgs, machine: &Machine, rows: &[Row]) {
    say!("{}, {} query and {} KV heads, pages of {} tokens in random order", machine.describe(), args.hq, args.hkv, args.page);
    say!("{}", table::grid(&Row::HEADER, &rows.iter().map(Row::cells).collect::<Vec<_>>()));
    for text in rows.iter().filter_map(|row| row.of_full_pass(rows)) {
        say!("{text}");
    }
    let clock = match (machine.backend, args.l2) {
        ("cpu", _) => "by the wall clock of the CPU reference, which is no yardstick".to_owned(),
        (_, L2::Warm) => {
            format!("by CUDA events after {} ms of warm-up, L2 warm (every launch reads the same buffers)", line::WARM_UP.as_millis())
        }
        (_, L2::Flushed) => format!("by CUDA events after {} ms of warm-up, L2 flushed before each", line::WARM_UP.as_millis()),
    };
    let clock = match args.pause {
        0 => clock,
        ms => format!("{clock}, the GPU idle for {ms} ms before"),
    };
    say!(
        "Median of {} launches {clock}. N(0, 1) e4m3 data, scales 1.\n\
         TFLOP/s count visible (query, key) pairs, 4 x 128 each: those in kept blocks, and all of them.",
        args.repeat * args.rounds
    );
}

/// Everything that can be wrong with the arguments, before anything is allocated or launched.
fn check(args: &BenchArgs) -> Result<StemConfig> {
    crate::kv::layout::check_page_size(args.page)?;
    for &seq in &args.seq {
        if seq == 0 || seq.checked_add(args.history).is_none_or(|n| n > MAX_TOKENS) {
            return Err(Error::value("seq", format!("1 to {MAX_TOKENS} tokens, history included"), seq));
        }
    }
    check_chunk(args)?;
    if args.pause > 0 && args.l2 != L2::Flushed {
        return Err(Error::value("pause", "0, or --l2 flushed", args.pause));
    }
    if args.hkv == 0 || args.hq == 0 || args.hq > 1024 || !args.hq.is_multiple_of(args.hkv) {
        let got = format!("{} and {}", args.hq, args.hkv);
        return Err(Error::value("heads", "at most 1,024 query heads, a positive multiple of the KV heads", got));
    }
    if let Some(skip) = args.skip.iter().find(|s| !(0.0..1.0).contains(*s)) {
        return Err(Error::value("skip", "a share of at least 0 and below 1", skip));
    }
    if !args.bench.contains(&Stage::Attend) && (args.dense || !args.skip.is_empty()) {
        let stages: Vec<_> = args.bench.iter().map(|stage| stage.name()).collect();
        return Err(Error::value("skip", "no --skip and no --dense, which are for --bench attend", stages.join(",")));
    }
    if let Some(folder) = args.dump.as_ref().filter(|folder| !folder.is_dir()) {
        return Err(Error::value("dump", "a folder that exists", folder.display()));
    }
    let mut config = StemConfig::preset(args.preset.into());
    config.alpha = args.alpha.unwrap_or(config.alpha);
    config.selector = args.selector.into();
    config.validate()?;
    if args.bench.contains(&Stage::ProbeMeans) {
        probe(&config)?;
    }
    Ok(config)
}

fn check_chunk(args: &BenchArgs) -> Result<()> {
    if !args.bench.contains(&Stage::SummarizeChunk) {
        return match args.chunk {
            Some(chunk) => Err(Error::value("chunk", "no --chunk, which is for --bench summarize_chunk", chunk)),
            None => Ok(()),
        };
    }
    if args.history > 0 {
        return Err(Error::value("history", "0 with --bench summarize_chunk, whose history is the rest of --seq", args.history));
    }
    let (chunk, shortest) = (args.chunk.unwrap_or(CHUNK), args.seq.iter().copied().min().unwrap_or(0));
    if chunk == 0 || chunk > shortest {
        return Err(Error::value("chunk", format!("1 to {shortest} tokens, the shortest --seq"), chunk));
    }
    Ok(())
}

/// The probe selector that `probe_means` works for.
fn probe(config: &StemConfig) -> Result<&ProbeConfig> {
    match &config.selector {
        Selector::Probe(probe) => Ok(probe),
        Selector::Stem => Err(Error::value("selector", "probe or probe-fine for --bench probe_means", "stem")),
    }
}

/// Prepares a job on a backend.
///
/// # Errors
/// Those of the stage's inputs; driver errors on CUDA.
pub fn engine<'a>(backend: &'a Backend, job: Job<'a>) -> Result<Box<dyn Engine + 'a>> {
    Ok(match backend {
        Backend::Cpu => Box::new(cpu::CpuEngine::new(job)?),
        #[cfg(feature = "cuda")]
        Backend::Cuda(backend) => Box::new(cuda::CudaEngine::new(backend, job)?),
    })
}
