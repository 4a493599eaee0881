//! mbarriers: arrival counters with a phase bit, in shared memory.
//!
//! A barrier completes its phase when the expected arrivals have come and every announced byte has landed. [`wait`] takes
//! the parity of the phase it waits for: a fresh barrier is in phase 0, so `wait(bar, 0)` blocks until the first
//! completion and `wait(bar, 1)` passes at once (how a producer finds a new ring empty).

use super::SmemAddr;
use core::arch::asm;

/// Sets a barrier to phase 0 expecting `count` arrivals per phase. PTX: `mbarrier.init.shared::cta.b64 [bar], count`.
/// Called by one thread.
///
/// # Safety
/// - `bar` is 8-byte aligned, inside the block's shared memory, and not in use as a barrier.
/// - `count` is from 1 to 2^20 - 1.
/// - [`init_fence`] and a block barrier follow before any other thread or copy uses it.
#[inline(always)]
pub unsafe fn init(bar: SmemAddr, count: u32) {
    // SAFETY: the caller's obligation.
    unsafe { asm!("mbarrier.init.shared::cta.b64 [{}], {};", in(reg32) bar.0, in(reg32) count) };
}

/// Where `on` is not 0, sets a barrier to phase 0 expecting `count` arrivals per phase: the form for a place that leads
/// straight to a block barrier. PTX: `@p mbarrier.init.shared::cta.b64 [bar], count`. Called by a warp with one lane `on`.
///
/// # Safety
/// As [`init`].
#[inline(always)]
pub unsafe fn init_if(bar: SmemAddr, count: u32, on: u32) {
    // SAFETY: the caller's obligation.
    unsafe {
        asm!(
            "{{ .reg .pred p; setp.ne.u32 p, {on}, 0; @p mbarrier.init.shared::cta.b64 [{bar}], {count}; }}",
            bar = in(reg32) bar.0,
            count = in(reg32) count,
            on = in(reg32) on,
        );
    }
}

/// Makes the initialised barriers visible to the async proxy (TMA). PTX: `fence.mbarrier_init.release.cluster`.
/// Called by the thread that initialised them; harmless in the others.
///
/// # Safety
/// None beyond being called after the [`init`]s; unsafe like its siblings because the protocol is the caller's.
#[inline(always)]
pub unsafe fn init_fence() {
    // SAFETY: a fence.
    unsafe { asm!("fence.mbarrier_init.release.cluster;") };
}

/// Where `on` is not 0, announces `bytes` of coming copies and arrives once.
/// PTX: `@p mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], bytes`. Called by a thread, or by a warp with one lane `on`.
///
/// # Safety
/// - `bar` is an initialised barrier whose current phase still expects this arrival.
/// - Copies of exactly `bytes` bytes (under 2^20) complete on the same phase.
#[inline(always)]
pub unsafe fn expect_tx_if(bar: SmemAddr, bytes: u32, on: u32) {
    // SAFETY: the caller's obligation.
    unsafe {
        asm!(
            "{{ .reg .pred p; setp.ne.u32 p, {on}, 0; @p mbarrier.arrive.expect_tx.shared::cta.b64 _, [{bar}], {bytes}; }}",
            bar = in(reg32) bar.0,
            bytes = in(reg32) bytes,
            on = in(reg32) on,
        );
    }
}

/// As [`expect_tx_if`], by one lane of a warp: which one is nothing to look up.
/// PTX: `elect.sync _|p, -1; @p mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], bytes`. Called by a whole warp with the same operands.
///
/// # Safety
/// As [`expect_tx_if`]; all 32 lanes call it, converged.
#[inline(always)]
pub unsafe fn expect_tx(bar: SmemAddr, bytes: u32) {
    // SAFETY: the caller's obligation.
    unsafe {
        asm!(
            "{{ .reg .pred p; elect.sync _|p, -1; @p mbarrier.arrive.expect_tx.shared::cta.b64 _, [{bar}], {bytes}; }}",
            bar = in(reg32) bar.0,
            bytes = in(reg32) bytes,
        );
    }
}

/// Where `on` is not 0, announces `bytes` of coming copies without arriving.
/// PTX: `@p mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [bar], bytes`. Called by a thread, or by a warp with one lane `on`.
///
/// # Safety
/// As [`expect_tx_if`], but that the phase expects no arrival of this.
#[inline(always)]
pub unsafe fn announce_if(bar: SmemAddr, bytes: u32, on: u32) {
    // SAFETY: the caller's obligation.
    unsafe {
        asm!(
            "{{ .reg .pred p; setp.ne.u32 p, {on}, 0; @p mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [{bar}], {bytes}; }}",
            bar = in(reg32) bar.0,
            bytes = in(reg32) bytes,
            on = in(reg32) on,
        );
    }
}

/// Arrives once (release). PTX: `mbarrier.arrive.shared::cta.b64 _, [bar]`. Called by a thread.
///
/// # Safety
/// - `bar` is an initialised barrier whose current phase still expects this arrival.
#[inline(always)]
pub unsafe fn arrive(bar: SmemAddr) {
    // SAFETY: the caller's obligation.
    unsafe { asm!("mbarrier.arrive.shared::cta.b64 _, [{}];", in(reg32) bar.0) };
}

/// Where `on` is not 0, arrives once (release). PTX: `@p mbarrier.arrive.shared::cta.b64 _, [bar]`.
/// Called by a warp, typically with one lane `on`.
///
/// # Safety
/// As [`arrive`], for the lanes that are `on`.
#[inline(always)]
pub unsafe fn arrive_if(bar: SmemAddr, on: u32) {
    // SAFETY: the caller's obligation.
    unsafe {
        asm!(
            "{{ .reg .pred p; setp.ne.u32 p, {on}, 0; @p mbarrier.arrive.shared::cta.b64 _, [{bar}]; }}",
            bar = in(reg32) bar.0,
            on = in(reg32) on,
        );
    }
}

/// Arrives `count` times (release). PTX: `mbarrier.arrive.shared::cta.b64 _, [bar], count`. Called by a thread.
///
/// # Safety
/// - As [`arrive`], for `count` arrivals, at least one.
#[inline(always)]
pub unsafe fn arrive_times(bar: SmemAddr, count: u32) {
    // SAFETY: the caller's obligation.
    unsafe { asm!("mbarrier.arrive.shared::cta.b64 _, [{}], {};", in(reg32) bar.0, in(reg32) count) };
}

/// Waits a bounded time for the phase of parity `parity` to complete (acquire); true when it has.
/// PTX: `mbarrier.try_wait.parity.shared::cta.b64 p, [bar], parity`. Called by a thread.
///
/// # Safety
/// - `bar` is an initialised barrier; `parity` is 0 or 1 and names the current phase or the one before it.
#[inline(always)]
pub unsafe fn try_wait(bar: SmemAddr, parity: u32) -> bool {
    let done: u32;
    // SAFETY: the caller's obligation.
    unsafe {
        asm!(
            "{{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [{bar}], {parity}; selp.u32 {done}, 1, 0, p; }}",
            done = out(reg32) done,
            bar = in(reg32) bar.0,
            parity = in(reg32) parity,
        );
    }
    done != 0
}

/// Waits until the phase of parity `parity` has completed (acquire). A loop of [`try_wait`] in Rust, because labels in
/// `asm!` collide when the function is inlined twice. Called by a thread; lanes of a warp leave together only if they ask
/// for the same barrier and parity.
///
/// # Safety
/// As [`try_wait`]; and somebody completes the phase, or the thread waits for ever.
#[inline(always)]
pub unsafe fn wait(bar: SmemAddr, parity: u32) {
    // SAFETY: the caller's obligation.
    while !unsafe { try_wait(bar, parity) } {}
}

/// Whether the phase of parity `parity` has completed (acquire), without waiting.
/// PTX: `mbarrier.test_wait.parity.shared::cta.b64 p, [bar], parity`. Called by a thread.
///
/// # Safety
/// As [`try_wait`].
#[inline(always)]
pub unsafe fn test_wait(bar: SmemAddr, parity: u32) -> bool {
    let done: u32;
    // SAFETY: the caller's obligation.
    unsafe {
        asm!(
            "{{ .reg .pred p; mbarrier.test_wait.parity.shared::cta.b64 p, [{bar}], {parity}; selp.u32 {done}, 1, 0, p; }}",
            done = out(reg32) done,
            bar = in(reg32) bar.0,
            parity = in(reg32) parity,
        );
    }
    done != 0
}

/// As [`wait`], and what threads of other blocks of the cluster wrote before they arrived ([`super::cluster::arrive_release_if`]) is then
/// visible, too. PTX: `mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [bar], parity`. Called by a thread.
///
/// # Safety
/// As [`wait`].
#[inline(always)]
pub unsafe fn wait_cluster(bar: SmemAddr, parity: u32) {
    loop {
        let done: u32;
        // SAFETY: the caller's obligation.
        unsafe {
            asm!(
                "{{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [{bar}], {parity}; selp.u32 {done}, 1, 0, p; }}",
                done = out(reg32) done,
                bar = in(reg32) bar.0,
                parity = in(reg32) parity,
            );
        }
        if done != 0 {
            return;
        }
    }
}
