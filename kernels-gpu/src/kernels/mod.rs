//! The kernels: one file each, thin entries over `tile` and `pipeline`.

pub mod append_kv;
pub mod attend;
pub mod probe;
pub mod probe_copy;
pub mod probe_math;
pub mod probe_rate;
pub mod probe_sync;
pub mod probe_wgmma;
pub mod select_probe;
pub mod select_probe_means;
pub mod select_query_sums;
pub mod select_scores;
pub mod select_topk;
pub mod select_value_bias;
pub mod summarize_kv;
