//! `cargo xtask audit`: reads host/ptx, assembles it for sm_90a, and fails on what would be slow, wrong or hang, and on what
//! is not as in the committed snapshot.
//!
//! Inline assembly is not convergent for LLVM: it may copy an `.aligned` instruction into both arms of a divergent
//! branch, and then a warp runs it twice in halves and hangs. So the number of every such instruction is compared with
//! what the sources issue. Registers, barriers and spills are compared too, where they come from the snapshot's ptxas; without
//! any ptxas the rest is. Whoever blesses a new snapshot puts the difference before the reviewer.

mod rules;
mod snapshot;

use crate::ptx::facts::{self, EntryFacts};
use crate::ptx::scan;
use crate::ptxas::{self, Report};
use crate::{build_ptx, hash, sh};
use anyhow::{Context, Result, bail};
use snapshot::{Kernel, Snapshot};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Options.
#[derive(clap::Args, Debug, Default)]
pub struct Args {
    /// The ptxas to use (default: STEM_PTXAS, CUDA_HOME, target/ptxas, PATH, Python's packages)
    #[arg(long, value_name = "FILE")]
    pub ptxas: Option<PathBuf>,
    /// Fetch ptxas from PyPI into target/ when there is none; with CI=1 that is tried anyway, and may fail
    #[arg(long)]
    pub fetch: bool,
    /// Write what was found as the snapshot; read the diff before committing it
    #[arg(long)]
    pub bless: bool,
}

/// Runs the command.
///
/// # Errors
/// When there is no PTX, a ptxas that was named is not there, or the audit finds a problem.
pub fn run(args: &Args) -> Result<()> {
    let assembler = assembler(args)?;
    let files = hash::files_below(&build_ptx::ptx_dir(), "ptx")?;
    if files.is_empty() {
        bail!("no PTX in host/ptx; run `cargo xtask build-ptx`");
    }
    let release = assembler.as_deref().map(ptxas::version).transpose()?;
    if let (Some(path), Some(release)) = (&assembler, &release) {
        say!("ptxas {release} ({})", path.display());
    }
    let (mut found, mut problems) = (Snapshot { ptxas: release, ..Snapshot::default() }, Vec::new());
    for file in &files {
        let (entries, report) = examine(assembler.as_deref(), file)?;
        print!("{}", summary(file, &entries, report.as_ref()));
        problems.extend(rules::judge(&entries, report.as_ref()));
        for (name, facts) in entries {
            let usage = report.as_ref().and_then(|r| r.entries.get(&name)).cloned();
            found.kernels.insert(name, Kernel { declared: facts.declared, counts: facts.counted, usage });
        }
    }
    let table = sh::root().join("xtask/src/expected.json");
    if args.bless {
        found.write(&table)?;
        say!("wrote {}; read its diff: every number must be what the source issues", table.display());
    } else {
        let difference = snapshot::compare(&Snapshot::read(&table)?, &found);
        for note in &difference.notes {
            say!("note: {note}");
        }
        problems.extend(difference.problems);
    }
    if !problems.is_empty() {
        bail!("the audit found {} problem(s):\n  {}", problems.len(), problems.join("\n  "));
    }
    let assembled = if assembler.is_some() { "no spill, no serialised wgmma, " } else { "not assembled, " };
    say!("audit: {} kernels, {assembled}all else as in the snapshot", found.kernels.len());
    Ok(())
}

/// The ptxas to use; none, with a note of the reason, where none can be had and none was asked for.
fn assembler(args: &Args) -> Result<Option<PathBuf>> {
    if let Some(found) = ptxas::find(args.ptxas.as_deref())? {
        return Ok(Some(found));
    }
    if args.fetch {
        return ptxas::fetch().map(Some);
    }
    let fetched =
        if sh::in_ci() { ptxas::fetch() } else { Err(anyhow::anyhow!("`--fetch` gets it from PyPI, or set CUDA_HOME or STEM_PTXAS")) };
    match fetched {
        Ok(path) => Ok(Some(path)),
        Err(reason) if args.bless => Err(reason.context("a snapshot needs ptxas, and there is none")),
        Err(reason) => {
            say!("note: no ptxas ({reason:#}): registers, barriers, spills and serialised wgmma are not checked");
            Ok(None)
        }
    }
}

/// Reads one file and, with a ptxas, assembles it.
///
/// # Errors
/// When the file is not PTX or ptxas cannot be started.
fn examine(ptxas: Option<&Path>, file: &Path) -> Result<(BTreeMap<String, EntryFacts>, Option<Report>)> {
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let module = scan::parse(&text).with_context(|| format!("reading {}", file.display()))?;
    let report = ptxas.map(|ptxas| ptxas::assemble(ptxas, file)).transpose()?;
    Ok((facts::of(&module), report))
}

/// Lines about one file: a kernel each, then what ptxas remarked.
fn summary(file: &Path, entries: &BTreeMap<String, EntryFacts>, report: Option<&Report>) -> String {
    let mut out = format!("{}\n", file.file_name().unwrap_or_default().to_string_lossy());
    for (name, f) in entries {
        let used = report.map_or_else(String::new, |report| {
            let usage = report.entries.get(name).cloned().unwrap_or_default();
            let spilled = usage.spill_stores + usage.spill_loads;
            format!(" {:>3} registers {:>2} barriers {spilled:>4} B spilled", usage.registers, usage.barriers)
        });
        out.push_str(&format!(
            "  {name:<28} {:>4} threads{used} | wgmma {:>3}  bar {:>2}  mbarrier {:>3}  tma {:>2}  setmaxnreg {}\n",
            f.threads.unwrap_or(0),
            f.wgmma,
            f.barriers,
            f.mbarrier,
            f.tma,
            f.setmaxnreg
        ));
    }
    for a in report.iter().flat_map(|r| &r.advisories) {
        out.push_str(&format!("  {} {}: {}\n", if a.is_fatal() { "ERROR" } else { "info " }, a.code, a.text));
    }
    out
}

#[cfg(test)]
mod tests;
