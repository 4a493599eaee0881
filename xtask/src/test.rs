//! `cargo xtask test`: the tests, in three tiers.

use crate::{audit, build_ptx, sh, toolchain};
use anyhow::{Context, Result, bail};
use std::path::Path;

/// What a tier needs and runs.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// `cargo test` of the whole workspace; needs nothing but the toolchain
    Cpu,
    /// The committed PTX against its sources, and the audit; needs a compiler for the GPU
    Ptx,
    /// The tests package in release mode on the GPU, where tests must not skip
    Gpu,
}

/// Options.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Only this tier (default: cpu and ptx, and gpu where there is one)
    #[arg(long, value_enum)]
    pub tier: Option<Tier>,
}

/// Runs the command.
///
/// # Errors
/// When a test fails, or a tier that was asked for by name cannot run.
pub fn run(args: &Args) -> Result<()> {
    match args.tier {
        Some(Tier::Cpu) => cpu(),
        Some(Tier::Ptx) => ptx(),
        Some(Tier::Gpu) => {
            if !has_gpu() {
                bail!("no NVIDIA GPU here");
            }
            gpu()
        }
        None => {
            cpu()?;
            match ptx_lacks() {
                None => ptx()?,
                Some(reason) => say!("tier ptx: skipped: {reason}"),
            }
            if has_gpu() {
                gpu()?;
            } else {
                say!("tier gpu: skipped: no NVIDIA GPU here");
            }
            Ok(())
        }
    }
}

fn cpu() -> Result<()> {
    say!("tier cpu");
    sh::run(sh::cargo().args(["test", "--workspace", "--locked"])).context("tier cpu")
}

/// Why the PTX tier cannot run, if so. In CI what is missing is installed first.
fn ptx_lacks() -> Option<String> {
    toolchain::find_or_install(None, sh::in_ci()).err().map(|e| format!("{e:#}"))
}

fn ptx() -> Result<()> {
    say!("tier ptx");
    say!("{}", build_ptx::check(sh::in_ci()).context("tier ptx")?);
    audit::run(&audit::Args::default()).context("tier ptx")
}

fn gpu() -> Result<()> {
    say!("tier gpu");
    // STEM_ATTN_REQUIRE_GPU: a test that finds no usable GPU fails instead of skipping.
    let mut cargo = sh::cargo();
    cargo.env("STEM_ATTN_REQUIRE_GPU", "1").args([
        "test",
        "--release",
        "--locked",
        "--package",
        "stem-attn-tests",
        "--",
        "--test-threads=1",
    ]);
    sh::run(&mut cargo).context("tier gpu")
}

/// Whether the driver shows a GPU.
pub fn has_gpu() -> bool {
    Path::new("/dev/nvidia0").exists() || gpu_name().is_some()
}

/// Name, compute capability and driver of the first GPU, as nvidia-smi gives them.
pub fn gpu_name() -> Option<String> {
    let query = ["--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"];
    let text = sh::capture(sh::command("nvidia-smi").args(query)).ok()?;
    text.lines().next().map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned)
}
