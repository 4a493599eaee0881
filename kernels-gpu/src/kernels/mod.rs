//! The kernels: one file each, thin entries over `tile` and `pipeline`.

pub mod append_kv;
pub mod attend;
pub mod attend_token_scales;
pub mod lists;
pub mod probe;
pub mod probe_cluster;
pub mod probe_copy;
pub mod probe_cp_async;
pub mod probe_gather;
pub mod probe_half;
pub mod probe_math;
pub mod probe_matrix;
pub mod probe_octet;
pub mod probe_rate;
pub mod probe_select;
pub mod probe_sync;
pub mod probe_wgmma;
pub mod select_probe;
pub mod select_probe_means;
pub mod select_stem;
pub mod summarize_kv;
