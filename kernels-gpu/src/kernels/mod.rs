//! The kernels: one file each, thin entries over `tile` and `pipeline`.

pub mod attend;
