//! `cargo xtask audit`: assembles host/ptx for sm_90a and fails on what would be slow, wrong or hang.
//!
//! Inline assembly is not convergent for LLVM: it may copy an `.aligned` instruction into both arms of a divergent
//! branch, and then a warp runs it twice in halves and hangs. So the number of every such instruction is compared with
//! a committed table of what the sources issue. Whoever blesses a new table puts the difference before the reviewer.

use crate::ptx::facts::{self, EntryFacts, Histogram};
use crate::ptx::{bounds, scan};
use crate::ptxas::{self, Report};
use crate::{build_ptx, hash, sh};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Options.
#[derive(clap::Args, Debug, Default)]
pub struct Args {
    /// The ptxas to use (default: STEM_PTXAS, CUDA_HOME, target/ptxas, PATH, Python's packages)
    #[arg(long, value_name = "FILE")]
    pub ptxas: Option<PathBuf>,
    /// Fetch ptxas from PyPI into target/ when there is none (implied by CI=1)
    #[arg(long)]
    pub fetch: bool,
    /// Write the instruction counts found into the table of expected ones; read the diff before committing it
    #[arg(long)]
    pub bless: bool,
}

/// Expected instruction counts by entry.
pub type Expected = BTreeMap<String, Histogram>;

/// Runs the command.
///
/// # Errors
/// When there is no ptxas or no PTX, or the audit finds a problem.
pub fn run(args: &Args) -> Result<()> {
    let ptxas = ptxas::find_or_fetch(args.ptxas.as_deref(), args.fetch || sh::in_ci())?;
    say!("ptxas {} ({})", ptxas::version(&ptxas)?, ptxas.display());
    let files = hash::files_below(&build_ptx::ptx_dir(), "ptx")?;
    if files.is_empty() {
        bail!("no PTX in host/ptx; run `cargo xtask build-ptx`");
    }
    let (mut found, mut problems) = (Expected::new(), Vec::new());
    let table = sh::root().join("xtask/src/expected.json");
    let expected = if args.bless { Expected::new() } else { read_expected(&table)? };
    for file in &files {
        let (entries, report) = examine(&ptxas, file)?;
        print!("{}", summary(file, &entries, &report));
        problems.extend(judge(&entries, &report));
        found.extend(entries.into_iter().map(|(name, facts)| (name, facts.counted)));
    }
    if args.bless {
        std::fs::write(&table, serde_json::to_string_pretty(&found)? + "\n")?;
        say!("wrote {}; read its diff: every number must be what the source issues", table.display());
    } else {
        problems.extend(compare(&expected, &found));
    }
    if !problems.is_empty() {
        bail!("the audit found {} problem(s):\n  {}", problems.len(), problems.join("\n  "));
    }
    say!("audit: {} kernels, no spill but the {} known, no serialised wgmma, instruction counts as expected", found.len(), SPILLS.len());
    Ok(())
}

fn read_expected(table: &Path) -> Result<Expected> {
    let text =
        std::fs::read_to_string(table).with_context(|| format!("reading {}; `cargo xtask audit --bless` writes it", table.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not a table of instruction counts", table.display()))
}

/// Reads and assembles one file.
///
/// # Errors
/// When the file is not PTX or ptxas cannot be started.
pub fn examine(ptxas: &Path, file: &Path) -> Result<(BTreeMap<String, EntryFacts>, Report)> {
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let module = scan::parse(&text).with_context(|| format!("reading {}", file.display()))?;
    Ok((facts::of(&module), ptxas::assemble(ptxas, file)?))
}

/// Kernels that may spill, and how many bytes out and in together.
const SPILLS: &[(&str, u32)] = &[];

/// What is wrong with the entries of one file, apart from instruction counts.
pub fn judge(entries: &BTreeMap<String, EntryFacts>, report: &Report) -> Vec<String> {
    let mut out = report.complaints.clone();
    for advisory in report.advisories.iter().filter(|a| a.is_fatal()) {
        out.push(format!("ptxas {}: {}", advisory.code, advisory.text));
    }
    for (name, facts) in entries {
        match (facts.threads, bounds::of(name)) {
            (None, _) => out.push(format!("{name}: no .maxntid; without it ptxas cannot plan registers and ignores setmaxnreg")),
            (Some(_), None) => out.push(format!("{name}: not in the table of launch bounds")),
            (Some(threads), Some(b)) if threads != b.threads => {
                out.push(format!("{name}: .maxntid is {threads}, the table says {}", b.threads));
            }
            _ => {}
        }
        if facts.blocks_per_sm.is_none() {
            out.push(format!("{name}: no .minnctapersm"));
        }
        if facts.local {
            out.push(format!("{name}: uses .local memory"));
        }
        let Some(usage) = report.entries.get(name) else {
            out.push(format!("{name}: ptxas did not report on it"));
            continue;
        };
        let allowed = SPILLS.iter().find(|(kernel, _)| kernel == name).map_or(0, |(_, bytes)| *bytes);
        let spilled = usage.spill_stores + usage.spill_loads;
        if spilled > allowed {
            out.push(format!("{name}: spills {} bytes out and {} bytes in", usage.spill_stores, usage.spill_loads));
        } else if usage.stack > 0 && spilled == 0 {
            out.push(format!("{name}: a stack frame of {} bytes", usage.stack));
        }
        if usage.barriers >= 16 {
            out.push(format!("{name}: uses all 16 named barriers (an id that is not a constant)"));
        }
    }
    out
}

/// Where the instruction counts found differ from the expected ones.
pub fn compare(expected: &Expected, found: &Expected) -> Vec<String> {
    let mut out = Vec::new();
    for (entry, counts) in found {
        let Some(wanted) = expected.get(entry) else {
            out.push(format!("{entry}: not in the table of expected instruction counts (`cargo xtask audit --bless`)"));
            continue;
        };
        let mut forms: Vec<&String> = counts.keys().chain(wanted.keys()).collect();
        forms.sort();
        forms.dedup();
        for form in forms {
            let (is, was) = (counts.get(form).copied().unwrap_or(0), wanted.get(form).copied().unwrap_or(0));
            if is > was {
                out.push(format!("{entry}: `{form}` occurs {is} times, expected {was}: duplicated into a branch, or new in the source"));
            } else if is < was {
                out.push(format!("{entry}: `{form}` occurs {is} times, expected {was}"));
            }
        }
    }
    let gone = expected.keys().filter(|entry| !found.contains_key(*entry));
    out.extend(gone.map(|entry| format!("{entry}: expected, but not in host/ptx")));
    out
}

/// Lines about one file: a kernel each, then what ptxas remarked.
fn summary(file: &Path, entries: &BTreeMap<String, EntryFacts>, report: &Report) -> String {
    let mut out = format!("{}\n", file.file_name().unwrap_or_default().to_string_lossy());
    for (name, f) in entries {
        let usage = report.entries.get(name).cloned().unwrap_or_default();
        out.push_str(&format!(
            "  {name:<26} {:>4} threads {:>3} registers {:>2} barriers {:>4} B spilled | wgmma {:>3}  bar {:>2}  mbarrier {:>3}  tma {:>2}  setmaxnreg {}\n",
            f.threads.unwrap_or(0),
            usage.registers,
            usage.barriers,
            usage.spill_stores + usage.spill_loads,
            f.wgmma,
            f.barriers,
            f.mbarrier,
            f.tma,
            f.setmaxnreg
        ));
    }
    for a in &report.advisories {
        out.push_str(&format!("  {} {}: {}\n", if a.is_fatal() { "ERROR" } else { "info " }, a.code, a.text));
    }
    out
}

#[cfg(test)]
mod tests;
