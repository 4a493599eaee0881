//! Every stage on the CPU: the oracle of the tests, and the backend of machines without a Hopper GPU.
//!
//! One file per kernel, of the same name. FP8 rounding is bit-exact; sums whose order the GPU does not fix are compared
//! within a tolerance. Work is spread over the cores by rayon.

mod append_kv;
mod attend;
pub mod error;
mod prefill;
mod probe_pool;
mod probe_scores;
mod query_sum;
mod select;
mod summarize_kv;
mod tile;

pub use append_kv::append_kv;
pub use attend::{AttendInputs, AttendOutput, attend_f64, attend_model, default_softmax_scale};
pub use error::dense_rows;
pub use prefill::prefill;
#[cfg(feature = "cli")]
pub(crate) use prefill::select;
#[cfg(feature = "cuda")]
pub(crate) use prefill::validate;
pub use probe_pool::{KeyMeans, QueryMeans, key_means, query_means};
pub use probe_scores::{ProbeInputs, probe_scores};
pub use select::{ScoreInputs, query_sums, score_key, scores, topk, topk_row, value_bias};
pub use summarize_kv::{KvSummaries, summarize_kv};

use crate::error::{Error, Result};

/// Checks the length of a tensor against its extents.
fn check_len(name: &'static str, got: usize, extents: &[usize]) -> Result<()> {
    let want = extents.iter().try_fold(1usize, |n, &extent| n.checked_mul(extent));
    if want == Some(got) { Ok(()) } else { Err(Error::shape(name, format!("{extents:?}"), format!("{got} elements"))) }
}

/// Query heads per KV head.
fn check_group(hq: usize, hkv: usize) -> Result<usize> {
    match hq.checked_div(hkv) {
        Some(group) if group > 0 && hq.is_multiple_of(hkv) => Ok(group),
        _ => Err(Error::value("heads", "query heads a positive multiple of KV heads", format!("{hq} and {hkv}"))),
    }
}

/// The scale of KV head `head` of a `[1]` or `[hkv]` tensor.
fn scale_at(name: &'static str, scales: &[f32], head: usize, hkv: usize) -> Result<f32> {
    match (scales.len(), scales.get(head)) {
        (1, _) => Ok(scales[0]),
        (n, Some(&scale)) if n == hkv => Ok(scale),
        (n, _) => Err(Error::shape(name, format!("[1] or [{hkv}]"), format!("[{n}]"))),
    }
}
