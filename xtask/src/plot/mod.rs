//! `cargo xtask plot`: every figure of the documentation from the committed records.

mod chart;
pub mod data;
mod masks;
mod select;
mod selection;
mod speed;
mod stages;
mod svg;

use crate::sh;
use anyhow::{Context, Result, bail};
use data::Records;
use std::path::PathBuf;

/// Folder of the records.
pub const RECORDS: &str = "benches/records";
/// Folder of the figures.
const PLOTS: &str = "docs/plots";

/// Options.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Writes nothing; fails when a committed figure is not what the records give
    #[arg(long)]
    pub check: bool,
    /// Folder of `*.jsonl` files
    #[arg(long, default_value = RECORDS, value_name = "DIR")]
    pub records: PathBuf,
    /// Folder of the figures
    #[arg(long, default_value = PLOTS, value_name = "DIR")]
    pub out: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// When a record cannot be read or a figure not written; with `check`, when one is out of date.
pub fn run(args: &Args) -> Result<()> {
    let root = sh::root();
    let out = root.join(&args.out);
    let figures = figures(&Records::read(&root.join(&args.records))?)?;
    if args.check {
        let stale: Vec<_> = figures
            .iter()
            .filter(|(name, svg)| std::fs::read_to_string(out.join(name)).ok().as_deref() != Some(svg))
            .map(|(name, _)| *name)
            .collect();
        if !stale.is_empty() {
            bail!("not what the records give: {}; run `cargo xtask plot` and look at them", stale.join(", "));
        }
        return Ok(());
    }
    std::fs::create_dir_all(&out)?;
    for (name, svg) in figures {
        std::fs::write(out.join(name), svg).with_context(|| format!("writing {name}"))?;
        say!("{}/{name}", args.out.display());
    }
    Ok(())
}

/// Whether the committed figures are those of the committed records.
///
/// # Errors
/// When one is not.
pub fn check() -> Result<()> {
    run(&Args { check: true, records: RECORDS.into(), out: PLOTS.into() })
}

/// Name and text of every figure that there are records for.
fn figures(records: &Records) -> Result<Vec<(&'static str, String)>> {
    let all: [(&str, Option<Result<String>>); 10] = [
        ("attend-tflops.svg", speed::rates(records)),
        ("attend-latency.svg", speed::latencies(records)),
        ("skip-cost.svg", speed::cost_of_skipping(records)),
        ("roofline.svg", speed::roofline(records)),
        ("stages.svg", stages::shares(records)),
        ("select-time.svg", select::times(records)),
        ("error-length.svg", selection::error_by_length(records)),
        ("selection-mass.svg", selection::mass(records)),
        ("selection-sources.svg", selection::sources(records)),
        ("masks.svg", masks::kept_blocks(records).map(Ok)),
    ];
    all.into_iter().filter_map(|(name, figure)| Some(figure?.map(|svg| (name, svg)))).collect()
}
