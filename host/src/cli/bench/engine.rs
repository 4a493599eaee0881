//! What a backend offers to the benchmarks: a stage that can be launched, timed and read back.

use super::problem::Problem;
use crate::config::StemConfig;
use crate::error::Result;
use crate::geometry::Geometry;
use crate::mask::BlockLists;
use crate::reference::{KeyMeans, KvSummaries};
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
    /// Key sums, run norms, V tiles; for the probe selector key means and V tiles.
    SummarizeKv,
    /// summarize_kv of the last --chunk tokens of a prompt, after summarize_kv of all of them. The CPU reference, which only knows
    /// the latter, does it twice.
    SummarizeChunk,
    /// summarize_kv and select, queued as prefill queues them: everything before attention.
    Selection,
    /// The probe selector's key means alone.
    ProbeMeans,
    /// BF16 K and V to FP8 pages.
    AppendKv,
    /// summarize_kv, select and attend.
    Prefill,
    /// Host time of making a plan: checking a batch and copying its tables.
    HostPlan,
    /// Host time of queueing a prefill on a plan; on the CPU, of checking one.
    HostRun,
}

/// State of the L2 cache before a timed launch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum L2 {
    /// What the launch before left: every launch reads the same buffers.
    #[default]
    Warm,
    /// Overwritten with zeros.
    Flushed,
}

impl L2 {
    /// Name in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Flushed => "flushed",
        }
    }
}

/// Order of the queries' scales in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum QScaleOrder {
    /// `[tokens, heads]`.
    #[default]
    TokensFirst,
    /// `[heads, tokens]`.
    HeadsFirst,
}

impl QScaleOrder {
    /// Name in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::TokensFirst => "tokens-first",
            Self::HeadsFirst => "heads-first",
        }
    }
}

impl Stage {
    /// Name in tables and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Attend => "attend",
            Self::Select => "select",
            Self::SummarizeKv => "summarize_kv",
            Self::SummarizeChunk => "summarize_chunk",
            Self::Selection => "selection",
            Self::ProbeMeans => "probe_means",
            Self::AppendKv => "append_kv",
            Self::Prefill => "prefill",
            Self::HostPlan => "host_plan",
            Self::HostRun => "host_run",
        }
    }

    /// Whether the stage scores and selects blocks.
    pub fn selects(self) -> bool {
        matches!(self, Self::Select | Self::Selection | Self::Prefill | Self::HostPlan | Self::HostRun)
    }

    /// Whether the stage does other work for another selector.
    pub fn depends_on_selector(self) -> bool {
        self.selects() || matches!(self, Self::SummarizeKv | Self::SummarizeChunk | Self::ProbeMeans)
    }

    /// Whether the stage reads queries and their scales from device memory.
    pub fn reads_queries(self) -> bool {
        matches!(self, Self::Select | Self::Selection | Self::Attend | Self::Prefill)
    }

    /// Whether the stage does the attention that FLOPs are counted of.
    pub fn attends(self) -> bool {
        matches!(self, Self::Attend | Self::Prefill)
    }

    /// Whether what counts is the host's time.
    pub fn on_host(self) -> bool {
        matches!(self, Self::HostPlan | Self::HostRun)
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
    /// Means of every sub-block of keys.
    KeyMeans(KeyMeans),
    /// K pages and V pages.
    Pages { k: Vec<F8E4M3>, v: Vec<F8E4M3> },
    /// A batch, cut into blocks.
    Geometry(Geometry),
}

/// What an engine runs.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// Stage.
    pub stage: Stage,
    /// Tensors.
    pub problem: &'a Problem,
    /// Selection of the stages that select.
    pub config: &'a StemConfig,
    /// Blocks that `attend` attends to; `None` is every visible one.
    pub lists: Option<&'a BlockLists>,
    /// Cache before each launch; the CPU's is left alone.
    pub l2: L2,
    /// Order of the queries' scales.
    pub q_scale: QScaleOrder,
    /// Launches that are timed together, at least 1; the CPU takes them one by one.
    pub in_a_row: u32,
    /// Milliseconds of idleness before each timing; only of a GPU.
    pub pause: u32,
}

/// A stage on a backend, its inputs in place.
pub trait Engine {
    /// Launches `n` times and gives the milliseconds of each. Launches are queued back to back where the backend can.
    fn time(&mut self, n: usize) -> Result<Vec<f64>>;
    /// What the last launch wrote.
    fn output(&mut self) -> Result<Output>;
}
