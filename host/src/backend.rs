//! Host tensors in, host tensors out, on the GPU where there is one and on the CPU where there is none.

use crate::config::Selection;
use crate::error::Result;
use crate::mask::BlockLists;
use crate::tensor::PrefillInputs;
use half::bf16;

/// Which backend to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendKind {
    /// CUDA where a Hopper GPU and a driver are, else the CPU.
    #[default]
    Auto,
    /// CUDA, or an error that says what is missing.
    Cuda,
    /// The CPU.
    Cpu,
}

/// How a prefill call runs.
#[derive(Clone, Copy, Debug)]
pub struct PrefillOptions {
    /// Tokens in a KV page: 16, 32, 64, 128 or 256.
    pub page_size: usize,
    /// Whether keys after a query are masked (bottom-right aligned).
    pub causal: bool,
    /// Whether the log-sum-exp is returned.
    pub lse: bool,
    /// Timed repetitions of every stage (at least 1); the median is reported.
    pub repeat: usize,
}

impl Default for PrefillOptions {
    fn default() -> Self {
        Self { page_size: 64, causal: true, lse: false, repeat: 1 }
    }
}

/// Milliseconds of each stage: CUDA events on the GPU, wall clock on the CPU; median, 10th and 90th percentile.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StageTime {
    /// Median.
    pub ms: f64,
    /// 10th percentile.
    pub p10: f64,
    /// 90th percentile.
    pub p90: f64,
}

impl StageTime {
    /// Median, 10th and 90th percentile (nearest rank) of timed repetitions, in milliseconds; zeros where there is none.
    pub fn from_samples(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let rank = |share: f64| {
            let last = samples.len().saturating_sub(1);
            samples.get((share * last as f64).round() as usize).copied().unwrap_or(0.0)
        };
        Self { ms: rank(0.5), p10: rank(0.1), p90: rank(0.9) }
    }
}

/// Time of every stage.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StageTimes {
    /// Key sums, run norms, V tiles.
    pub summarize_kv: StageTime,
    /// Query sums, scores, top-k; zero when dense or when lists were given.
    pub select: StageTime,
    /// Attention.
    pub attend: StageTime,
}

/// What a prefill call gives back.
#[derive(Clone, Debug)]
pub struct PrefillOutput {
    /// `[total_q, hq, 128]`.
    pub out: Vec<bf16>,
    /// `[total_q, hq]` natural logarithm, when asked for; minus infinity for a query that sees no key.
    pub lse: Option<Vec<f32>>,
    /// The blocks attended to (all visible ones when dense).
    pub lists: BlockLists,
    /// `[hq, total_qb, score_stride]` scores when they were computed (entries past the diagonal unspecified).
    pub scores: Option<Vec<f32>>,
    /// Columns of a score row.
    pub score_stride: usize,
    /// Time of every stage.
    pub times: StageTimes,
}

/// A backend that is ready to run.
#[non_exhaustive]
pub enum Backend {
    /// rayon over the CPU's cores.
    Cpu,
    /// One Hopper GPU.
    #[cfg(feature = "cuda")]
    Cuda(Box<crate::cuda::CudaBackend>),
}

impl Backend {
    /// CUDA where it can run, else the CPU; also the CPU where a GPU is there but fails to start, which
    /// [`Backend::open`] with [`BackendKind::Auto`] reports.
    pub fn auto() -> Self {
        Self::open(BackendKind::Auto).unwrap_or(Self::Cpu)
    }

    /// Opens the backend asked for.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`] when CUDA is asked for and there is no driver, no GPU, or none of compute capability 9.0;
    /// with [`BackendKind::Auto`] too, [`crate::Error::Jit`] and [`crate::Error::Driver`] of a GPU that is there and does not start.
    pub fn open(kind: BackendKind) -> Result<Self> {
        match kind {
            BackendKind::Cpu => Ok(Self::Cpu),
            #[cfg(feature = "cuda")]
            BackendKind::Cuda => Ok(Self::Cuda(Box::new(crate::cuda::CudaBackend::open(0)?))),
            #[cfg(feature = "cuda")]
            BackendKind::Auto => match crate::cuda::CudaBackend::open(0) {
                Ok(backend) => Ok(Self::Cuda(Box::new(backend))),
                Err(crate::Error::Unavailable(_)) => Ok(Self::Cpu),
                Err(broken) => Err(broken),
            },
            #[cfg(not(feature = "cuda"))]
            BackendKind::Cuda => Err(crate::Error::Unavailable("built without the feature `cuda`".into())),
            #[cfg(not(feature = "cuda"))]
            BackendKind::Auto => Ok(Self::Cpu),
        }
    }

    /// "cpu" or "cuda".
    pub fn name(&self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => "cuda",
        }
    }

    /// Attention of one layer, whole batch.
    ///
    /// # Errors
    /// Any validation error of [`PrefillInputs::validate`] or [`crate::StemConfig::validate`], before anything runs; driver errors on CUDA.
    pub fn prefill(&self, inputs: &PrefillInputs<'_>, selection: Selection<'_>, options: &PrefillOptions) -> Result<PrefillOutput> {
        match self {
            Self::Cpu => crate::reference::prefill(inputs, selection, options),
            #[cfg(feature = "cuda")]
            Self::Cuda(backend) => backend.prefill(inputs, selection, options),
        }
    }
}
