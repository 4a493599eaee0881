//! Small asynchronous copies from device memory to shared memory, by ordinary threads: for what no bulk copy can gather.

use super::SmemAddr;
use core::arch::asm;

/// Starts a copy of the first `bytes` (0 to 4) of the 4 bytes at device address `src` to `dst`; the rest become zeros.
/// PTX: `cp.async.ca.shared.global [dst], [src], 4, bytes`. Called by any thread.
///
/// # Safety
/// - `dst` is 4-byte aligned and inside the block's shared memory; nobody uses it until [`arrive`] has made a barrier complete.
/// - `src` is a device address, 4-byte aligned, whose first `bytes` bytes are allocated and not written meanwhile.
#[inline(always)]
pub unsafe fn copy_4(dst: SmemAddr, src: u64, bytes: u32) {
    // SAFETY: the caller's obligation.
    unsafe { asm!("cp.async.ca.shared.global [{}], [{}], 4, {};", in(reg32) dst.0, in(reg64) src, in(reg32) bytes) };
}

/// Arrives once on a barrier when every copy that this thread has started is complete; the barrier must count the arrival.
/// PTX: `cp.async.mbarrier.arrive.noinc.shared::cta.b64 [bar]`. Called by any thread.
///
/// # Safety
/// - `bar` is an initialised barrier whose current phase still expects this arrival.
#[inline(always)]
pub unsafe fn arrive(bar: SmemAddr) {
    // SAFETY: the caller's obligation.
    unsafe { asm!("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [{}];", in(reg32) bar.0) };
}
