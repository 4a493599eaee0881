//! One file per kernel.

pub mod probe;
pub mod probe_copy;
pub mod probe_math;
pub mod probe_sync;
pub mod probe_wgmma;
