//! `attend_fp8_d128_token_scales`: `attend_fp8_d128` for a cache whose keys have a scale each (see
//! [`crate::pipeline::key_scales`]).

use super::attend::attend;
use crate::abi::{AttendParams, TokenScales};
use crate::ptx::tma::{self, TensorMap};

/// Entry: see [`AttendParams`] for the grid, the tensors and the two tensor maps, [`TokenScales`] for the scales.
///
/// # Safety
/// Launched with the grid, block size and shared memory that the host crate's `ops::attend` computes, on buffers whose
/// extents it has checked.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn attend_fp8_d128_token_scales(p: AttendParams, _q_map: TensorMap, _k_map: TensorMap, keys: TokenScales) {
    let q_map = tma::tensor_map_param!(attend_fp8_d128_token_scales, 1);
    let k_map = tma::tensor_map_param!(attend_fp8_d128_token_scales, 2);
    // SAFETY: forwarded from the host.
    unsafe { attend(&p, &keys, q_map, k_map) }
}
