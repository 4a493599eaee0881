//! Arguments of `stem`.

use crate::backend::BackendKind;
use crate::config::Preset;
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

/// Input tensors: `q` [T, Hq, 128], `k` and `v` [Tk, Hkv, 128] in F8_E4M3, BF16, F16 or F32; with FP8 data optional F32
/// `q_scale` [T, Hq], `k_scale`, `v_scale` [1] or [Hkv]; optional U8 `block_mask` [Hq, Qb, Kb] that replaces selection.
/// The queries are the last T of the Tk tokens. Causal.
#[derive(Debug, Args)]
pub struct PrefillArgs {
    /// Safetensors file with the input tensors.
    #[arg(long, value_name = "IN.safetensors")]
    pub input: PathBuf,
    /// Where `out` BF16 [T, Hq, 128], `block_mask` U8 [Hq, Qb, Kb] and `block_counts` I32 [Hq, Qb] go.
    #[arg(long, value_name = "OUT.safetensors")]
    pub output: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "auto")]
    pub backend: BackendArg,
    /// Published parameter set of the selection.
    #[arg(long, value_enum, default_value = "hpc")]
    pub preset: PresetArg,
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }
}
