//! Small asynchronous copies from device memory to shared memory, by ordinary threads: for what no bulk copy can gather.

use super::SmemAddr;
use core::arch::asm;

/// Starts a copy of the first `bytes` (0 to 4) of the 4 bytes at device address `src` to `dst`; the rest become zeros.
/// PTX: `cp.async.ca.shared.global [dst], [src], 4, bytes`. Called by any thread.
///
/// # Safety
/// - `dst` is 4-byte aligned and inside the block's shared memory; nobody uses it until [`wait`] has said that the copy is
///   complete.
/// - `src` is a device address, 4-byte aligned, whose first `bytes` bytes are allocated and not written meanwhile.
#[inline(always)]
pub unsafe fn copy_4(dst: SmemAddr, src: u64, bytes: u32) {
    // SAFETY: the caller's obligation.
    unsafe { asm!("cp.async.ca.shared.global [{}], [{}], 4, {};", in(reg32) dst.0, in(reg64) src, in(reg32) bytes) };
}

/// As [`copy_4`], where `on` is 1; nothing where it is 0. Predicated: a branch has no place near warp-wide instructions.
/// PTX: `@p cp.async.ca.shared.global [dst], [src], 4, bytes`. Called by any thread.
///
/// # Safety
/// As [`copy_4`], where `on` is 1.
#[inline(always)]
pub unsafe fn copy_4_if(dst: SmemAddr, src: u64, bytes: u32, on: u32) {
    // SAFETY: the caller's obligation.
    unsafe {
        asm!(
            "{{ .reg .pred p; setp.ne.u32 p, {}, 0;", "@p cp.async.ca.shared.global [{}], [{}], 4, {}; }}",
            in(reg32) on, in(reg32) dst.0, in(reg64) src, in(reg32) bytes
        )
    };
}

/// Starts a copy of the first `bytes` (0 or 16) of the 16 bytes at device address `src` to `dst`, past L1; the rest become zeros.
/// PTX: `cp.async.cg.shared.global [dst], [src], 16, bytes`. Called by any thread.
///
/// # Safety
/// - `dst` is 16-byte aligned and inside the block's shared memory; nobody uses it until [`wait`] has said that the copy is
///   complete.
/// - `src` is a device address, 16-byte aligned, whose first `bytes` bytes are allocated and not written meanwhile.
#[inline(always)]
pub unsafe fn copy_16(dst: SmemAddr, src: u64, bytes: u32) {
    // SAFETY: the caller's obligation.
    unsafe { asm!("cp.async.cg.shared.global [{}], [{}], 16, {};", in(reg32) dst.0, in(reg64) src, in(reg32) bytes) };
}

/// Lets the barrier at `bar` wait for the copies that this thread has started: it expects one arrival more in its current phase,
/// which comes when they are complete. PTX: `cp.async.mbarrier.arrive.shared.b64 [bar]`. Called by any thread.
///
/// # Safety
/// - `bar` is an initialised barrier in the block's shared memory, whose current phase does not complete before this instruction:
///   another arrival that it expects comes after it.
#[inline(always)]
pub unsafe fn arrive(bar: SmemAddr) {
    // SAFETY: the caller's obligation.
    unsafe { asm!("cp.async.mbarrier.arrive.shared::cta.b64 [{}];", in(reg32) bar.0) };
}

/// Makes a group of the copies that this thread has started since the last one (or of none).
/// PTX: `cp.async.commit_group`. Called by any thread.
///
/// # Safety
/// None beyond that of the copies; unsafe like its siblings because the protocol is the caller's.
#[inline(always)]
pub unsafe fn commit() {
    // SAFETY: no memory is touched.
    unsafe { asm!("cp.async.commit_group;") };
}

/// Waits until all but the last `N` groups of this thread are complete and this thread sees what they copied; for other
/// threads a barrier has to follow. PTX: `cp.async.wait_group N`. Called by any thread.
///
/// # Safety
/// As [`commit`].
#[inline(always)]
pub unsafe fn wait<const N: u32>() {
    // SAFETY: it only waits.
    unsafe { asm!("cp.async.wait_group {};", const N) };
}
