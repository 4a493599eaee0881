//! What the probe kernels share: a map of shared memory and copies by all threads.
//!
//! Every loop here runs the same number of rounds in every thread, so that nothing diverges before a block barrier.

use crate::abi_probe::{REGION_BYTES, REGIONS_AT, THREADS};
use crate::ptx::{SmemAddr, global, smem, special};

/// Address of 32-bit element `index` of the array at `base`.
#[inline(always)]
pub fn word(base: u64, index: u32) -> u64 {
    base + 4 * index as u64
}

/// Element `index` of the f32 array at `base`.
///
/// # Safety
/// The element exists and nobody writes it while the kernel runs.
#[inline(always)]
pub unsafe fn load_f32(base: u64, index: u32) -> f32 {
    // SAFETY: the caller's obligation.
    f32::from_bits(unsafe { global::ld_nc_u32(word(base, index)) })
}

/// Barrier `index` (0..128).
#[inline(always)]
pub fn barrier_at(index: u32) -> SmemAddr {
    smem::base().offset(8 * index)
}

/// Region `index` (0..3) of [`REGION_BYTES`].
#[inline(always)]
pub fn region(index: u32) -> SmemAddr {
    smem::base().offset(REGIONS_AT + index * REGION_BYTES)
}

/// Copies `bytes` from device address `src` to shared memory with all threads.
///
/// # Safety
/// Both ranges exist and are 16-byte aligned; `bytes` is a multiple of 2,048; a barrier follows before other threads read.
#[inline(always)]
pub unsafe fn copy_in(dst: SmemAddr, src: u64, bytes: u32) {
    let mut done = 0;
    while done < bytes {
        let at = done + special::tid_x() * 16;
        // SAFETY: `at` is below `bytes` and a multiple of 16.
        unsafe { smem::st_v4(dst.offset(at), global::ld_nc_v4(src + at as u64)) };
        done += THREADS * 16;
    }
}

/// Copies `bytes` of shared memory to device address `dst` with all threads.
///
/// # Safety
/// As [`copy_in`], with a barrier before it.
#[inline(always)]
pub unsafe fn copy_out(dst: u64, src: SmemAddr, bytes: u32) {
    let mut done = 0;
    while done < bytes {
        let at = done + special::tid_x() * 16;
        // SAFETY: `at` is below `bytes` and a multiple of 16.
        unsafe { global::st_v4(dst + at as u64, smem::ld_v4(src.offset(at))) };
        done += THREADS * 16;
    }
}

/// Fills `bytes` of shared memory with `value` with all threads.
///
/// # Safety
/// As [`copy_in`].
#[inline(always)]
pub unsafe fn fill(dst: SmemAddr, value: u32, bytes: u32) {
    let mut done = 0;
    while done < bytes {
        // SAFETY: the address is below `bytes` and a multiple of 16.
        unsafe { smem::st_v4(dst.offset(done + special::tid_x() * 16), [value; 4]) };
        done += THREADS * 16;
    }
}
