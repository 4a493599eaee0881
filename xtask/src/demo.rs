//! `cargo xtask demo`: one `stem prefill` on the capture in the repository.

use crate::sh;
use anyhow::{Result, bail};

/// Q, K and V of one layer of a real model, 8,192 tokens.
const CAPTURE: &str = "demo/qkv_layer5_8k.safetensors";
/// Where the results go.
const OUT: &str = "target/demo";

/// Options.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// More arguments for `stem prefill`, after `--`
    #[arg(last = true)]
    pub extra: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// When the capture is missing or `stem prefill` fails.
pub fn run(args: &Args) -> Result<()> {
    let root = sh::root();
    if !root.join(CAPTURE).is_file() {
        bail!("{CAPTURE} is missing; it is part of the repository");
    }
    std::fs::create_dir_all(root.join(OUT))?;
    let out = |name: &str| format!("{OUT}/{name}");
    let mut cargo = sh::cargo();
    cargo
        .args(["run", "--quiet", "--release", "--locked", "--package", "stem-attn", "--bin", "stem", "--"])
        .args([
            "prefill",
            "--input",
            CAPTURE,
            "--output",
            &out("out.safetensors"),
            "--report",
            &out("report.json"),
            "--mask",
            &out("mask.svg"),
        ])
        .args(&args.extra);
    say!("$ {}", sh::shown(&cargo));
    sh::run(&mut cargo)?;
    say!("output, report and the picture of the block mask are in {OUT}/");
    Ok(())
}
