//! Arguments of `stem`.

use super::bench::{L2, QScaleOrder, Stage};
use crate::backend::BackendKind;
use crate::config::{Preset, ProbeConfig, Selector};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Stem sparse prefill attention for NVIDIA Hopper.
#[derive(Debug, Parser)]
#[command(name = "stem", version, about)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Attention of one layer on tensors from a safetensors file.
    Prefill(PrefillArgs),
    /// One stage on random data, checked and then timed.
    Bench(BenchArgs),
    /// Driver, GPU and the PTX this program carries.
    Info,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendArg {
    /// The GPU where there is a Hopper one, else the CPU.
    Auto,
    Cuda,
    Cpu,
}

impl From<BackendArg> for BackendKind {
    fn from(arg: BackendArg) -> Self {
        match arg {
            BackendArg::Auto => Self::Auto,
            BackendArg::Cuda => Self::Cuda,
            BackendArg::Cpu => Self::Cpu,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PresetArg {
    /// Tencent hpc-ops' parameters.
    Hpc,
    /// The Stem paper's parameters.
    Paper,
}

impl PresetArg {
    pub fn name(self) -> &'static str {
        match self {
            Self::Hpc => "hpc",
            Self::Paper => "paper",
        }
    }
}

impl From<PresetArg> for Preset {
    fn from(arg: PresetArg) -> Self {
        match arg {
            PresetArg::Hpc => Self::Hpc,
            PresetArg::Paper => Self::Paper,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SelectorArg {
    /// Stem's score: group sums of whole blocks, and the value term.
    Stem,
    /// Means of 8 queries and 8 keys.
    Probe,
    /// Means of 4 queries and 8 keys.
    ProbeFine,
}

impl SelectorArg {
    /// Name on the command line and in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stem => "stem",
            Self::Probe => "probe",
            Self::ProbeFine => "probe-fine",
        }
    }

    /// Parameter set and selector as tables show them: the set alone where the score is Stem's.
    pub fn with(self, preset: &str) -> String {
        if self == Self::Stem { preset.to_owned() } else { format!("{preset}, {}", self.name()) }
    }
}

impl From<SelectorArg> for Selector {
    fn from(arg: SelectorArg) -> Self {
        match arg {
            SelectorArg::Stem => Self::Stem,
            SelectorArg::Probe => Self::Probe(ProbeConfig::default()),
            SelectorArg::ProbeFine => Self::Probe(ProbeConfig::fine()),
        }
    }
}

/// Input tensors: `q` [T, Hq, 128], `k` and `v` [Tk, Hkv, 128] in F8_E4M3, BF16, F16 or F32; with FP8 data optional F32
/// `q_scale` [T, Hq], `k_scale`, `v_scale` [1] or [Hkv], `k_scale` also [Tk, Hkv]; optional U8 `block_mask` [Hq, Qb, Kb] that replaces selection.
/// The queries are the last T of the Tk tokens. Causal.
#[derive(Debug, Args)]
pub struct PrefillArgs {
    /// Safetensors file with the input tensors.
    #[arg(long, value_name = "IN.safetensors")]
    pub input: PathBuf,
    /// Where `out` BF16 [T, Hq, 128], `block_mask` U8 [Hq, Qb, Kb] and `block_counts` I32 [Hq, Qb] go.
    #[arg(long, value_name = "OUT.safetensors")]
    pub output: Option<PathBuf>,
    /// Where to run.
    #[arg(long, value_enum, default_value = "auto")]
    pub backend: BackendArg,
    /// Published parameter set of the selection.
    #[arg(long, value_enum, default_value = "hpc")]
    pub preset: PresetArg,
    /// How blocks are scored; budgets are the parameter set's.
    #[arg(long, value_enum, default_value = "stem")]
    pub selector: SelectorArg,
    /// Decay of the budget along the prompt, in (0, 1]; 1 is no decay.
    #[arg(long, value_name = "A")]
    pub alpha: Option<f32>,
    /// Attend to every visible block.
    #[arg(long)]
    pub dense: bool,
    /// Tokens in a KV page: 16, 32, 64, 128 or 256.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub page_size: usize,
    /// Timed repetitions of every stage; the median is shown.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub repeat: u32,
    /// Adds one JSON record per stage to this file, one a line.
    #[arg(long, value_name = "R.json")]
    pub report: Option<PathBuf>,
    /// Draws the kept blocks of every head into this SVG file.
    #[arg(long, value_name = "M.svg")]
    pub mask: Option<PathBuf>,
}

/// Random N(0, 1) e4m3 data with scales 1, one causal request, pages in random order. A few rows are checked against the
/// CPU reference first; a wrong result has no time.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Stages.
    #[arg(long, value_enum, value_name = "STAGE[,STAGE..]", value_delimiter = ',', required = true)]
    pub bench: Vec<Stage>,
    /// New tokens.
    #[arg(long, value_name = "N[,N..]", value_delimiter = ',', required = true)]
    pub seq: Vec<usize>,
    /// Tokens before them.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub history: usize,
    /// New tokens of summarize_chunk: the last of every --seq, those before them summarised already [default: 8192].
    #[arg(long, value_name = "N")]
    pub chunk: Option<usize>,
    /// Query heads.
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub hq: usize,
    /// KV heads.
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub hkv: usize,
    /// Tokens in a KV page.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub page: usize,
    /// Order of the queries' scales in device memory. (The CPU has them tokens first.)
    #[arg(long, value_enum, default_value = "tokens-first")]
    pub q_scale: QScaleOrder,
    /// Shares of the causal blocks that `attend` leaves out, drawn at random [default: 0.5].
    #[arg(long, value_name = "S[,S..]", value_delimiter = ',')]
    pub skip: Vec<f64>,
    /// `attend` over every visible block, too.
    #[arg(long)]
    pub dense: bool,
    /// Published parameter set of select, selection and prefill.
    #[arg(long, value_enum, default_value = "hpc")]
    pub preset: PresetArg,
    /// How select, selection and prefill score blocks, and what summarize_kv prepares for it.
    #[arg(long, value_enum, default_value = "stem")]
    pub selector: SelectorArg,
    /// Decay of the budget along the prompt, in (0, 1]; 1 is no decay.
    #[arg(long, value_name = "A")]
    pub alpha: Option<f32>,
    /// Where to run.
    #[arg(long, value_enum, default_value = "auto")]
    pub backend: BackendArg,
    /// Timed launches, in each round.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub repeat: u32,
    /// Launches between the two events of a timing, which is divided by their number: what a launch adds to a stream that is busy, where
    /// that of a single one has the GPU's way from one to the next in it. The L2 cache is flushed, if so, before the first.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub in_a_row: u32,
    /// Milliseconds in which the GPU has nothing to do before each timing, so that it stays below its power limit and keeps its highest
    /// clock; with `--l2 flushed` only, as the flush gives the host time to queue what is timed.
    #[arg(long, value_name = "MS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub pause: u32,
    /// Takes the lines of one length in turns, this many times, so that they share the GPU's clocks.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// L2 cache before each timed launch: as the launch before left it, or flushed.
    #[arg(long, value_enum, default_value = "warm")]
    pub l2: L2,
    /// Adds one JSON record per line of the table to this file.
    #[arg(long, value_name = "FILE.jsonl")]
    pub records: Option<PathBuf>,
    /// Seed of data, pages and lists.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Writes the tensors and block masks of every length to N.safetensors in this folder: an input of `stem prefill`.
    #[arg(long, value_name = "DIR")]
    pub dump: Option<PathBuf>,
    /// Waits for a line on standard input before every turn and answers `done`, so that another program can take turns
    /// with this one; prints `ready` when all lines of a length are prepared.
    #[arg(long)]
    pub paced: bool,
    /// Name of the run in the records [default: now].
    #[arg(long, value_name = "NAME")]
    pub run: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }
}
