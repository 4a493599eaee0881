//! `cargo xtask test`: the tests, in four tiers.

use crate::{audit, build_ptx, sh, toolchain};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// What a tier needs and runs.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// `cargo test` of the whole workspace; needs nothing but the toolchain
    Cpu,
    /// The committed PTX against its sources, and the audit; needs a compiler for the GPU
    Ptx,
    /// The tests package in release mode on the GPU, where tests must not skip
    Gpu,
    /// The GPU tests on the CPU: the committed PTX on the emulator, its warps held up at random (docs/emulator.md)
    Emulated,
}

/// Options.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Only this tier (default: cpu and ptx, and gpu where there is one, else, on Linux, emulated)
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
        Some(Tier::Emulated) => emulated(),
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
                if cfg!(target_os = "linux") {
                    emulated()?;
                } else {
                    say!("tier emulated: skipped: {NO_DRIVER}");
                }
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

/// Test programs that launch kernels, except `attend_error` (long prompts) and `attend_fuzz` (many cases).
const EMULATED: [&str; 6] = ["probe_gpu", "stages_gpu", "masks_gpu", "select_gpu", "probe_sel_gpu", "prefill_gpu"];

/// Parts of the names of tests that are left out there: one group measures clocks, of which the emulator knows nothing; the others take
/// minutes each.
const NOT_EMULATED: [&str; 5] = ["rates::", "capture::", "strips::", "every_rule_keeps", "several_strips"];

fn emulated() -> Result<()> {
    say!("tier emulated");
    let mut cargo = sh::cargo();
    cargo.env("LD_LIBRARY_PATH", emulator().context("tier emulated")?).env("STEM_ATTN_REQUIRE_GPU", "1");
    // Where warps go on unevenly a barrier that is waited for wrongly shows.
    if std::env::var_os("STEM_EMULATOR_MODE").is_none() {
        cargo.env("STEM_EMULATOR_MODE", "random");
    }
    cargo.args(["test", "--locked", "--package", "stem-attn-tests"]).args(EMULATED.iter().flat_map(|test| ["--test", test]));
    cargo.args(["--", "--test-threads=1"]).args(NOT_EMULATED.iter().flat_map(|name| ["--skip", name]));
    sh::run(&mut cargo).context("tier emulated")
}

/// Why other systems do without.
const NO_DRIVER: &str = "the emulator takes the place of Linux's libcuda.so.1";

/// Builds the emulator and puts a copy with the driver's name into a folder of its own, which is returned.
fn emulator() -> Result<PathBuf> {
    if cfg!(not(target_os = "linux")) {
        bail!(NO_DRIVER);
    }
    let folder = sh::root().join("target/emulator");
    let build = ["build", "--release", "--locked", "--package", "stem-attn-emulator", "--target-dir"];
    sh::run(sh::cargo().args(build).arg(&folder))?;
    let (from, to) = (folder.join("release/libstem_emulator.so"), folder.join("driver/libcuda.so.1"));
    std::fs::create_dir_all(folder.join("driver")).with_context(|| format!("cannot make a folder for {}", to.display()))?;
    std::fs::copy(&from, &to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(folder.join("driver"))
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
