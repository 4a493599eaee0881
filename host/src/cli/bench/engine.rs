//! What a backend offers to the benchmarks: a stage that can be launched, timed and read back.

use crate::error::Result;
use crate::mask::BlockLists;
use crate::reference::KvSummaries;
use clap::ValueEnum;
use float8::F8E4M3;
use half::bf16;

/// A measured stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Stage {
    /// Attention over given blocks.
    Attend,
    /// Query sums, scores, top-k.
    Select,
    /// Key sums, run norms, V tiles.
    SummarizeKv,
    /// BF16 K and V to FP8 pages.
    AppendKv,
    /// summarize_kv, select and attend.
    Prefill,
}

impl Stage {
    /// Name in tables and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Attend => "attend",
            Self::Select => "select",
            Self::SummarizeKv => "summarize_kv",
            Self::AppendKv => "append_kv",
            Self::Prefill => "prefill",
        }
    }
}

/// What a stage wrote.
pub enum Output {
    /// Attention `[tokens, hq, 128]` over `lists`.
    Attention { out: Vec<bf16>, lists: BlockLists },
    /// Scores `[hq, total_qb, score_stride]` and the lists made of them.
    Selection { scores: Vec<f32>, score_stride: usize, lists: BlockLists },
    /// Summaries of every key block.
    Summaries(KvSummaries),
    /// K pages and V pages.
    Pages { k: Vec<F8E4M3>, v: Vec<F8E4M3> },
}

/// A stage on a backend, its inputs in place.
pub trait Engine {
    /// Launches `n` times and gives the milliseconds of each. Launches are queued back to back where the backend can.
    fn time(&mut self, n: usize) -> Result<Vec<f64>>;
    /// What the last launch wrote.
    fn output(&mut self) -> Result<Output>;
}
