//! One line of `benches/records/*.jsonl`: a measured stage with everything needed to read the number.

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// A measured stage. What is not known, or has no meaning for the stage, is `null`; lines written before a field existed
/// lack it.
///
/// FLOPs count visible (query, key) pairs only, 4 x 128 each; `tflops_selected` those inside the selected blocks,
/// `tflops_dense_equiv` all of them, both over the stage's median time. Of `gemm`, the roof, both are 2 x M x N x K.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// `attend`, `select`, `summarize_kv`, `summarize_chunk` (summarize_kv of the last `chunk` tokens, those before them summarised
    /// already), `selection` (summarize_kv and select together, in one interval), `probe_means` (the part of summarize_kv that the
    /// probe selector wants), `append_kv`, `prefill` (summarize_kv, select and attend together), `host_plan` or `host_run` (host time
    /// of making a plan and of queueing a prefill on it), or `gemm` (a peer's matrix product).
    pub bench: String,
    /// `cuda` or `cpu`.
    pub backend: String,
    /// GPU name.
    pub gpu: Option<String>,
    /// Driver version.
    pub driver: Option<String>,
    /// Median SM clock while launches repeated.
    pub sm_clock_mhz: Option<f64>,
    /// Median board power while launches repeated.
    pub power_w: Option<f64>,
    /// Query heads.
    pub hq: usize,
    /// KV heads.
    pub hkv: usize,
    /// Head dimension.
    pub d: usize,
    /// New tokens; of `summarize_chunk` all tokens.
    pub seq: usize,
    /// New tokens of `summarize_chunk`, the last of `seq`.
    pub chunk: Option<usize>,
    /// Tokens before them.
    pub history: usize,
    /// Tokens in a KV page; 0 where K and V are not paged.
    pub page: usize,
    /// Order of the queries' scales in device memory: `tokens-first` or `heads-first`; only of stages that read them. Records
    /// older than the field are tokens first.
    pub q_scale: Option<String>,
    /// Share of causal blocks not attended to; only of stages that select or attend.
    pub skip: Option<f64>,
    /// How probabilities are formed (`exact`: exp2 in f32, rounded to e4m3 at 2^8); only of stages with a softmax.
    pub softmax: Option<String>,
    /// Where the blocks come from: `hpc`, `paper`, `dense`, `random` or `block_mask`; only of stages that select or attend.
    pub preset: Option<String>,
    /// What scored the blocks: `stem`, `probe` or `probe-fine`; only of stages that select or prepare for it.
    pub selector: Option<String>,
    /// Median of the repetitions, milliseconds. Of `prefill --report`'s line `prefill`: the stages' medians (and percentiles) added.
    pub ms: f64,
    /// 10th percentile.
    pub p10: f64,
    /// 90th percentile.
    pub p90: f64,
    /// Timed repetitions.
    pub repeat: usize,
    /// Launches in a row between the events of a repetition, whose time is divided by their number; none: one.
    pub in_a_row: Option<usize>,
    /// Milliseconds of idleness before each repetition, which leave the GPU below its power limit; none: as fast as they come.
    pub pause_ms: Option<usize>,
    /// Turns that the repetitions were spread over, other measurements of the same run between them.
    pub rounds: Option<usize>,
    /// When the run began that the line belongs to: lines with one name were measured in turns on one machine.
    pub run: Option<String>,
    /// State of the L2 cache before each timed launch: `warm` (what the launch before left), or `flushed`.
    pub l2: Option<String>,
    /// TFLOP/s of the visible pairs inside the selected blocks.
    pub tflops_selected: Option<f64>,
    /// TFLOP/s as if every visible pair had been computed.
    pub tflops_dense_equiv: Option<f64>,
    /// Least traffic with device memory: every input of the stage read once, every output written once.
    pub bytes: Option<u64>,
    /// Relative error (2-norm) against f64 attention on the same blocks and FP8 values, over sampled rows.
    pub error: Option<f64>,
    /// SM clocks per 128 x 128 tile: clock x SMs x time / executed tiles.
    pub cycles_per_tile: Option<f64>,
    /// Name of the peer, where the line is a peer's.
    pub peer: Option<String>,
    /// Element type that the peer computes with, where the line is a peer's.
    pub dtype: Option<String>,
    /// Where the figure is from, where it was not measured by the command.
    pub source: Option<String>,
    /// The command that made the line.
    pub command: String,
    /// Commit of the source.
    pub commit: Option<String>,
    /// UTC, `YYYY-MM-DDThh:mm:ssZ`.
    pub date: String,
}

impl Record {
    /// The line, with its line feed.
    pub fn to_line(&self) -> String {
        // Serialising a struct of numbers and strings cannot fail; a non-finite number becomes null.
        serde_json::to_string(self).map(|line| line + "\n").unwrap_or_default()
    }
}

/// This moment as `YYYY-MM-DDThh:mm:ssZ`.
pub fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    utc(seconds)
}

/// Seconds since 1970 as `YYYY-MM-DDThh:mm:ssZ`.
fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let leap = |y: u64| (y.is_multiple_of(4) && !y.is_multiple_of(100)) || y.is_multiple_of(400);
    let (mut year, mut day) = (1970, days);
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    format!("{year:04}-{month:02}-{:02}T{:02}:{:02}:{:02}Z", day + 1, rest / 3600, rest / 60 % 60, rest % 60)
}

/// The commit of the source, `-dirty` behind it where files were changed since: `STEM_COMMIT` of the build or of the
/// environment (a packaged binary has no repository beside it), else what git says here, if here is this repository.
pub fn commit() -> Option<String> {
    if let Some(commit) = option_env!("STEM_COMMIT") {
        return Some(commit.to_owned());
    }
    if let Ok(commit) = std::env::var("STEM_COMMIT") {
        return Some(commit);
    }
    let git = |arguments: &[&str]| {
        let output = std::process::Command::new("git").args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
    };
    let root = PathBuf::from(git(&["rev-parse", "--show-toplevel"])?);
    // Started in another project, its commit would say nothing about this program.
    if !root.join("host/ptx/manifest.json").is_file() {
        return None;
    }
    git(&["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"])
}

/// The command that made a record: `STEM_COMMAND` of the environment where another program runs this one, else the command
/// line, the program by its bare name and files given by an absolute path by theirs: a record must not carry a machine's
/// folders.
pub fn command() -> String {
    if let Ok(command) = std::env::var("STEM_COMMAND") {
        return command;
    }
    let words = std::env::args_os().skip(1).map(|word| without_folders(&word.to_string_lossy()));
    std::iter::once("stem".to_owned()).chain(words).collect::<Vec<_>>().join(" ")
}

/// A word of the command line, an absolute path in it (`/a/b` or `--option=/a/b`) cut to the last name, `b`.
fn without_folders(word: &str) -> String {
    let (option, value) = match word.split_once('=') {
        Some((option, value)) if option.starts_with('-') => (&word[..=option.len()], value),
        _ => ("", word),
    };
    let path = Path::new(value);
    if !path.is_absolute() {
        return word.to_owned();
    }
    // A path that ends in `..` has no last name.
    let name = path.file_name().map_or("/".into(), |name| name.to_string_lossy());
    format!("{option}{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_735_689_600, "2025-01-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(seconds), text);
        }
    }

    #[test]
    fn absolute_paths_lose_their_folders() {
        for (word, recorded) in [
            ("/data/someone/in.safetensors", "in.safetensors"),
            ("/in.safetensors", "in.safetensors"),
            ("/data/someone/", "someone"),
            ("--report=/data/someone/r=1.json", "--report=r=1.json"),
            ("/data/some=one/r.json", "r.json"),
            ("/data/someone/..", "/"),
            ("/", "/"),
            ("demo/in.safetensors", "demo/in.safetensors"),
            ("--report=out/r.json", "--report=out/r.json"),
            ("--skip", "--skip"),
            ("0,0.5", "0,0.5"),
            ("--report=", "--report="),
            ("", ""),
        ] {
            assert_eq!(without_folders(word), recorded, "{word:?}");
        }
    }

    #[test]
    fn a_line_reads_back() {
        let record = Record { bench: "attend".into(), ms: 1.5, tflops_selected: Some(800.0), date: now(), ..Default::default() };
        let line = record.to_line();
        assert!(line.ends_with('\n') && line.matches('\n').count() == 1);
        assert_eq!(serde_json::from_str::<Record>(&line).unwrap(), record);
    }
}
