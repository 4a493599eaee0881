//! `cargo xtask check`: all that can be checked without running the product, cheapest first.

use crate::toolchain::{self, Compiler};
use crate::{audit, build_ptx, plot, sh, tidy};
use anyhow::{Context, Result, bail};
use std::time::Instant;

/// Options.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Go on after a step that failed
    #[arg(long)]
    pub keep_going: bool,
}

type Step = (&'static str, fn() -> Result<()>);

const STEPS: &[Step] = &[
    ("format", format),
    ("tidy", tidy),
    ("plots as committed", plot::check),
    ("clippy, host", clippy_host),
    ("clippy, nvptx64", clippy_device),
    ("rustdoc", rustdoc),
    ("PTX as committed", ptx),
    ("audit", || audit::run(&audit::Args::default())),
];

/// Runs the command.
///
/// # Errors
/// When a step fails.
pub fn run(args: &Args) -> Result<()> {
    let mut failed = Vec::new();
    for (name, step) in STEPS {
        let start = Instant::now();
        let result = step();
        let seconds = start.elapsed().as_secs_f64();
        match result {
            Ok(()) => say!("check: {name:<18} ok     {seconds:6.1} s"),
            Err(error) => {
                say!("check: {name:<18} FAILED {seconds:6.1} s\n{error:#}");
                failed.push(*name);
                if !args.keep_going {
                    break;
                }
            }
        }
    }
    if !failed.is_empty() {
        bail!("check failed: {}", failed.join("; "));
    }
    Ok(())
}

fn format() -> Result<()> {
    sh::run(sh::cargo().args(["fmt", "--all", "--check"]))
}

fn tidy() -> Result<()> {
    let broken = tidy::check()?;
    if !broken.is_empty() {
        bail!("{}", broken.join("\n"));
    }
    Ok(())
}

fn clippy_host() -> Result<()> {
    // Debian's clippy package puts another cargo-clippy on PATH; its lints are those of another release.
    let clippy = sh::capture(sh::cargo().args(["clippy", "--version"]))?;
    let rustc = sh::capture(sh::command("rustc").arg("--version"))?;
    let minor = toolchain::minor(&rustc).context("cannot read the version of rustc")?;
    if !clippy.contains(&format!("0.1.{minor} ")) {
        bail!("`cargo clippy` is {}, not of the pinned toolchain ({}): put cargo's bin folder first on PATH", clippy.trim(), rustc.trim());
    }
    sh::run(sh::cargo().args(["clippy", "--quiet", "--workspace", "--all-targets", "--locked", "--", "-Dwarnings"]))
}

fn clippy_device() -> Result<()> {
    let compiler = toolchain::find_or_install(None, sh::in_ci())?;
    sh::run(&mut device_lints(&compiler))
}

/// Lints of the device build: clippy's where the compiler has its clippy, rustc's otherwise.
fn device_lints(compiler: &Compiler) -> std::process::Command {
    if let Some(clippy) = &compiler.clippy {
        // What `cargo clippy -- -Dwarnings` sets; the wrapper applies to this workspace only, not to `core`.
        let mut cargo = compiler.cargo("check");
        cargo.arg("--quiet").env("RUSTC_WORKSPACE_WRAPPER", clippy).env("CLIPPY_ARGS", "-Dwarnings__CLIPPY_HACKERY__");
        return cargo;
    }
    say!("no clippy of `{}`: rustc's own lints only (`{}`)", compiler.version, toolchain::install_command());
    let mut cargo = compiler.cargo("rustc");
    cargo.args(["--quiet", "--", "-Dwarnings"]);
    cargo
}

fn rustdoc() -> Result<()> {
    sh::run(sh::cargo().env("RUSTDOCFLAGS", "-Dwarnings").args(["doc", "--quiet", "--workspace", "--no-deps", "--locked"]))
}

fn ptx() -> Result<()> {
    say!("{}", build_ptx::check(sh::in_ci())?);
    Ok(())
}
