//! Fences between the ordinary accesses of threads and the async proxy (TMA, wgmma operands in shared memory).

use core::arch::asm;

/// Orders this thread's earlier ordinary accesses of shared memory before later ones of the async proxy.
///
/// PTX: `fence.proxy.async.shared::cta`. Called by every thread that wrote bytes which wgmma or TMA will touch, before the
/// barrier that hands them over.
///
/// # Safety
/// None by itself; the barrier that makes the order hold between threads is the caller's.
#[inline(always)]
pub unsafe fn proxy_async_shared() {
    // SAFETY: a fence.
    unsafe { asm!("fence.proxy.async.shared::cta;") };
}
