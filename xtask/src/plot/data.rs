//! Records, as far as plots and comparisons look at them.

use anyhow::{Context, Result};
use serde::Deserialize;
use std::path::Path;

/// A measured stage (host/src/record.rs). Fields that a line lacks are empty.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Speed {
    pub bench: String,
    pub backend: String,
    pub gpu: Option<String>,
    pub hq: u64,
    pub hkv: u64,
    pub seq: u64,
    pub chunk: Option<u64>,
    pub history: u64,
    pub page: u64,
    pub q_scale: Option<String>,
    pub in_a_row: Option<u64>,
    pub pause_ms: Option<u64>,
    pub skip: Option<f64>,
    pub preset: Option<String>,
    pub selector: Option<String>,
    pub ms: Option<f64>,
    pub p10: Option<f64>,
    pub p90: Option<f64>,
    pub l2: Option<String>,
    pub tflops_selected: Option<f64>,
    pub bytes: Option<f64>,
    pub error: Option<f64>,
    pub cycles_per_tile: Option<f64>,
    pub peer: Option<String>,
    pub dtype: Option<String>,
    pub source: Option<String>,
    pub commit: Option<String>,
    pub date: Option<String>,
}

/// What a selector keeps of one head (benches/src/fidelity.rs).
#[derive(Clone, Debug, Deserialize)]
pub struct Fidelity {
    pub capture: String,
    pub tokens: u64,
    pub head: u64,
    pub selector: String,
    pub setting: String,
    pub budget: f64,
    pub kept: f64,
    pub mass: f64,
    pub sources_kept: u64,
    pub sources: u64,
    pub error: f64,
    pub date: String,
}

/// The kept blocks of one head.
#[derive(Clone, Debug, Deserialize)]
pub struct Mask {
    pub capture: String,
    pub tokens: u64,
    pub head: u64,
    pub selector: String,
    pub setting: String,
    pub budget: f64,
    pub rows: Vec<String>,
    pub date: String,
}

/// Attention's error at one length.
#[derive(Clone, Debug, Deserialize)]
pub struct LengthError {
    pub backend: String,
    pub capture: String,
    pub tokens: u64,
    pub head: u64,
    pub error: f64,
    pub date: String,
}

/// Attention's error at one length, as its test measures it.
#[derive(Clone, Debug, Deserialize)]
pub struct TestError {
    pub backend: String,
    pub data: String,
    pub tokens: u64,
    pub relative_error: f64,
    pub date: String,
}

/// All records of a folder.
#[derive(Clone, Debug, Default)]
pub struct Records {
    pub speed: Vec<Speed>,
    pub fidelity: Vec<Fidelity>,
    pub masks: Vec<Mask>,
    pub length_errors: Vec<LengthError>,
    pub test_errors: Vec<TestError>,
}

impl Records {
    /// Reads every `*.jsonl` of a folder, in the order of their names; `*-rates.jsonl` hold something else.
    ///
    /// # Errors
    /// When a file cannot be read or a line is no record.
    pub fn read(folder: &Path) -> Result<Self> {
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
            let path = entry?.path();
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            if name.ends_with(".jsonl") && !name.ends_with("-rates.jsonl") {
                paths.push(path);
            }
        }
        paths.sort();
        let mut records = Self::default();
        for path in paths {
            let text = std::fs::read_to_string(&path)?;
            records.add(&text).with_context(|| path.display().to_string())?;
        }
        Ok(records)
    }

    /// Adds the lines of a file.
    ///
    /// # Errors
    /// When a line is no record.
    pub fn add(&mut self, text: &str) -> Result<()> {
        for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let mut read = || -> Result<()> {
                let value: serde_json::Value = serde_json::from_str(line)?;
                match value.get("bench").and_then(|b| b.as_str()).context("no field `bench`")? {
                    "fidelity" => self.fidelity.push(serde_json::from_value(value)?),
                    "mask" => self.masks.push(serde_json::from_value(value)?),
                    "length_error" => self.length_errors.push(serde_json::from_value(value)?),
                    "attend_error" => self.test_errors.push(serde_json::from_value(value)?),
                    _ => self.speed.push(serde_json::from_value(value)?),
                }
                Ok(())
            };
            read().with_context(|| format!("line {}", i + 1))?;
        }
        Ok(())
    }

    /// The GPU that the plots are of: that of the newest record of ours.
    pub fn gpu(&self) -> Option<&str> {
        let ours = self.speed.iter().filter(|r| r.peer.is_none() && r.backend == "cuda");
        ours.max_by(|a, b| a.date.cmp(&b.date)).and_then(|r| r.gpu.as_deref())
    }

    /// Records of the plots' shape on the plots' GPU, or taken from a table: 32 query and 4 KV heads, pages of 64 or none, no
    /// history, the L2 cache not warm, scales of the queries tokens first, one launch at
    /// a time and no pauses. Of records that differ in nothing but the day the newest.
    pub fn standard(&self) -> Vec<&Speed> {
        let gpu = self.gpu();
        let mut newest: Vec<&Speed> = Vec::new();
        for r in &self.speed {
            let shape = r.bench == "gemm" || (r.hq, r.hkv, r.history) == (32, 4, 0) && matches!(r.page, 0 | 64);
            let shape = shape && r.q_scale.as_deref() != Some("heads-first") && r.in_a_row.is_none() && r.pause_ms.is_none();
            if !shape || r.l2.as_deref() == Some("warm") || r.backend != "cuda" || (r.gpu.as_deref() != gpu && r.source.is_none()) {
                continue;
            }
            match newest.iter_mut().find(|other| other.same(r)) {
                Some(other) if other.date <= r.date => *other = r,
                Some(_) => {}
                None => newest.push(r),
            }
        }
        newest
    }
}

impl Speed {
    /// The share of blocks skipped that the record is meant to show, in hundredths: the diagonals make the exact one differ.
    pub fn skip_percent(&self) -> Option<i64> {
        self.skip.map(|skip| (skip * 100.0).round() as i64)
    }

    /// Whether the blocks were given, all or random ones, not selected.
    pub fn lists_given(&self) -> bool {
        matches!(self.preset.as_deref(), Some("dense" | "random"))
    }

    /// What chose the blocks; records older than the field are Stem's.
    pub fn selector(&self) -> &str {
        self.selector.as_deref().unwrap_or("stem")
    }

    /// [`Self::skip_percent`] where it was asked for; of a stage that selects it is an outcome.
    pub fn given_skip(&self) -> Option<i64> {
        self.skip_percent().filter(|_| self.lists_given())
    }

    /// Whether two records are of one thing, measured on other days.
    pub fn same(&self, other: &Self) -> bool {
        let key = |r: &Self| (r.bench.clone(), r.peer.clone(), r.seq, r.preset.clone(), r.selector().to_owned(), r.source.clone());
        // A table's two ends of a range are two figures.
        key(self) == key(other) && self.given_skip() == other.given_skip() && self.source.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_apart_and_the_newest_counts() {
        let mut records = Records::default();
        let line = |gpu: &str, page: u64, tflops: f64, date: &str| {
            format!(
                r#"{{"bench":"attend","backend":"cuda","gpu":"{gpu}","hq":32,"hkv":4,"seq":8192,"page":{page},"skip":0.5,"preset":"random","tflops_selected":{tflops},"date":"{date}"}}"#
            )
        };
        let text = [
            line("H200", 64, 1.0, "2026-01-02"),
            line("H200", 64, 2.0, "2026-01-01"),
            line("H100", 64, 3.0, "2025-01-03"),
            line("H200", 16, 4.0, "2026-01-02"),
            line("H200", 64, 5.0, "2026-01-02").replace(r#""page""#, r#""l2":"warm","page""#),
            line("H200", 64, 6.0, "2026-01-02").replace(r#""page""#, r#""q_scale":"heads-first","page""#),
            line("H200", 64, 7.0, "2026-01-02").replace(r#""page""#, r#""in_a_row":20,"page""#),
            line("H200", 64, 8.0, "2026-01-02").replace(r#""page""#, r#""pause_ms":20,"page""#),
            r#"{"bench":"attend","backend":"cuda","gpu":"X","hq":32,"hkv":4,"seq":8192,"skip":0.5,"peer":"p","source":"a table","ms":null}"#.into(),
            r#"{"bench":"mask","capture":"c","tokens":1,"head":0,"selector":"s","setting":"","budget":0.5,"rows":["0"],"date":"d"}"#.into(),
        ];
        records.add(&text.join("\n")).expect("records");
        assert_eq!((records.speed.len(), records.masks.len(), records.gpu()), (9, 1, Some("H200")));
        let standard = records.standard();
        assert_eq!(standard.iter().map(|r| r.tflops_selected).collect::<Vec<_>>(), [Some(1.0), None]);
        assert!(records.add("{}").is_err() && records.add("x").is_err());
    }
}
