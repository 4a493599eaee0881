//! Named barriers of a block. The id is a constant: with one in a register ptxas reserves all sixteen.

use core::arch::asm;

/// Waits for every thread of the block (barrier 0). PTX: `bar.sync 0`. Called by every warp of the block, converged.
///
/// # Safety
/// - Every thread of the block gets here, or the block hangs; no lane of a warp comes alone.
#[inline(always)]
pub unsafe fn sync_all() {
    // SAFETY: the caller's obligation.
    unsafe { asm!("bar.sync 0;") };
}

/// Arrives at barrier `ID` and waits until `THREADS` threads have arrived. PTX: `bar.sync ID, THREADS`.
/// Called by whole, converged warps.
///
/// # Safety
/// - `ID` is from 1 to 15 (0 is [`sync_all`]) and `THREADS` a multiple of 32, the same for everyone at this barrier.
/// - Exactly `THREADS` threads come to each round, by [`sync`] or [`arrive`].
#[inline(always)]
pub unsafe fn sync<const ID: u32, const THREADS: u32>() {
    const { assert!(ID >= 1 && ID <= 15 && THREADS > 0 && THREADS.is_multiple_of(32)) };
    // SAFETY: the caller's obligation.
    unsafe { asm!("bar.sync {}, {};", const ID, const THREADS) };
}

/// Arrives at barrier `ID` without waiting. PTX: `bar.arrive ID, THREADS`. Called by whole, converged warps.
///
/// # Safety
/// As [`sync`]; and the same warp does not arrive twice in one round.
#[inline(always)]
pub unsafe fn arrive<const ID: u32, const THREADS: u32>() {
    const { assert!(ID >= 1 && ID <= 15 && THREADS > 0 && THREADS.is_multiple_of(32)) };
    // SAFETY: the caller's obligation.
    unsafe { asm!("bar.arrive {}, {};", const ID, const THREADS) };
}

/// As [`sync`]; and every thread learns whether `on` of any of the `THREADS` is not 0.
/// PTX: `bar.red.or.pred p, ID, THREADS, q`. Called by whole, converged warps.
///
/// # Safety
/// As [`sync`]; all threads of a round come by this function.
#[inline(always)]
pub unsafe fn any<const ID: u32, const THREADS: u32>(on: u32) -> bool {
    const { assert!(ID >= 1 && ID <= 15 && THREADS > 0 && THREADS.is_multiple_of(32)) };
    let result: u32;
    // SAFETY: the caller's obligation.
    unsafe {
        asm!(
            "{{ .reg .pred p, q; setp.ne.u32 q, {1}, 0; bar.red.or.pred p, {2}, {3}, q; selp.u32 {0}, 1, 0, p; }}",
            out(reg32) result,
            in(reg32) on,
            const ID,
            const THREADS
        );
    }
    result != 0
}
