//! What no kernel may do, whatever the snapshot says.

use crate::ptx::bounds;
use crate::ptx::facts::EntryFacts;
use crate::ptxas::{Report, Usage};
use std::collections::BTreeMap;

/// What is wrong with the entries of one file; with a report of ptxas, in what it says too.
pub fn judge(entries: &BTreeMap<String, EntryFacts>, report: Option<&Report>) -> Vec<String> {
    let mut out = Vec::new();
    if let Some(report) = report {
        out.extend(report.complaints.iter().cloned());
        out.extend(report.advisories.iter().filter(|a| a.is_fatal()).map(|a| format!("ptxas {}: {}", a.code, a.text)));
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
        match report.map(|report| report.entries.get(name)) {
            Some(Some(usage)) => out.extend(judge_usage(name, usage)),
            Some(None) => out.push(format!("{name}: ptxas did not report on it")),
            None => {}
        }
    }
    out
}

fn judge_usage(name: &str, usage: &Usage) -> Vec<String> {
    let mut out = Vec::new();
    if usage.spill_stores + usage.spill_loads > 0 {
        out.push(format!("{name}: spills {} bytes out and {} bytes in", usage.spill_stores, usage.spill_loads));
    } else if usage.stack > 0 {
        out.push(format!("{name}: a stack frame of {} bytes", usage.stack));
    }
    if usage.barriers >= 16 {
        out.push(format!("{name}: uses all 16 named barriers (an id that is not a constant)"));
    }
    out
}
