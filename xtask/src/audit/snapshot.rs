//! The committed snapshot (`expected.json`) and where the kernels differ from it.

use crate::ptx::facts::{Declarations, Histogram};
use crate::ptxas::Usage;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The kernels as they were when someone last looked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Release of the ptxas that each kernel's usage is from; none where there was no ptxas.
    pub ptxas: Option<String>,
    /// By entry.
    pub kernels: BTreeMap<String, Kernel>,
}

/// One kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// What the PTX declares around the body.
    pub declared: Declarations,
    /// Instructions that must run as often as the source says.
    pub counts: Histogram,
    /// What ptxas made of it.
    pub usage: Option<Usage>,
}

/// Where the kernels are not as in the snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// What fails the audit.
    pub problems: Vec<String>,
    /// What is only said: another ptxas allocates otherwise.
    pub notes: Vec<String>,
}

impl Snapshot {
    /// Reads the snapshot.
    ///
    /// # Errors
    /// When there is none, or one of another form.
    pub fn read(table: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(table)
            .with_context(|| format!("reading {}; `cargo xtask audit --bless` writes it", table.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no snapshot; `cargo xtask audit --bless` writes it", table.display()))
    }

    /// Writes the snapshot.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, table: &Path) -> Result<()> {
        std::fs::write(table, serde_json::to_string_pretty(self)? + "\n").with_context(|| format!("writing {}", table.display()))
    }
}

/// Compares what was found with the snapshot.
pub fn compare(expected: &Snapshot, found: &Snapshot) -> Difference {
    let mut out = Difference::default();
    let same_ptxas = expected.ptxas == found.ptxas;
    for (entry, is) in &found.kernels {
        let Some(was) = expected.kernels.get(entry) else {
            out.problems.push(format!("{entry}: not in the snapshot (`cargo xtask audit --bless`)"));
            continue;
        };
        out.problems.extend(declarations(&was.declared, &is.declared).map(|d| format!("{entry}: {d}")));
        out.problems.extend(counts(&was.counts, &is.counts).map(|d| format!("{entry}: {d}")));
        if let (Some(was), Some(is)) = (&was.usage, &is.usage) {
            let side = if same_ptxas { &mut out.problems } else { &mut out.notes };
            side.extend(usage(was, is).map(|d| format!("{entry}: {d}")));
        }
    }
    let gone = expected.kernels.keys().filter(|entry| !found.kernels.contains_key(*entry));
    out.problems.extend(gone.map(|entry| format!("{entry}: in the snapshot, but not in host/ptx")));
    if let (false, Some(was), Some(is)) = (same_ptxas, &expected.ptxas, &found.ptxas) {
        out.notes.push(format!("ptxas is {is}, the snapshot's {was}: differences of registers, barriers and memory are no errors"));
    }
    out
}

fn declarations<'a>(was: &'a Declarations, is: &'a Declarations) -> impl Iterator<Item = String> + 'a {
    let fields = [
        ("directives", &was.bounds, &is.bounds),
        ("parameters", &was.parameters, &is.parameters),
        ("shared variables", &was.shared, &is.shared),
    ];
    fields
        .into_iter()
        .filter(|(_, was, is)| was != is)
        .map(|(what, was, is)| format!("{what} are [{}], in the snapshot [{}]", is.join("; "), was.join("; ")))
}

fn counts<'a>(was: &'a Histogram, is: &'a Histogram) -> impl Iterator<Item = String> + 'a {
    let forms: BTreeSet<&String> = was.keys().chain(is.keys()).collect();
    forms.into_iter().filter_map(|form| {
        let count = |side: &Histogram| side.get(form).copied().unwrap_or(0);
        match (count(is), count(was)) {
            (is, was) if is > was => {
                Some(format!("`{form}` occurs {is} times, expected {was}: duplicated into a branch, or new in the source"))
            }
            (is, was) if is < was => Some(format!("`{form}` occurs {is} times, expected {was}")),
            _ => None,
        }
    })
}

fn usage(was: &Usage, is: &Usage) -> impl Iterator<Item = String> {
    let fields = [
        ("registers", was.registers, is.registers),
        ("barriers", was.barriers, is.barriers),
        ("bytes of static shared memory", was.shared, is.shared),
        ("bytes of stack", was.stack, is.stack),
        ("bytes spilled out", was.spill_stores, is.spill_stores),
        ("bytes spilled in", was.spill_loads, is.spill_loads),
    ];
    fields.into_iter().filter(|(_, was, is)| was != is).map(|(what, was, is)| format!("{is} {what}, in the snapshot {was}"))
}
