//! Moving registers between warpgroups. ptxas heeds these only in a kernel with launch bounds (`.maxntid`).

use core::arch::asm;

/// Raises the registers of each thread of the warpgroup to `N`, waiting until the block's pool has them.
/// PTX: `setmaxnreg.inc.sync.aligned.u32 N`. Called by all warps of a warpgroup, converged.
///
/// # Safety
/// - `N` is at least the current number, and other warpgroups release enough for it ([`setmaxnreg_dec`]).
/// - Only once between two synchronisations of the warpgroup.
#[inline(always)]
pub unsafe fn setmaxnreg_inc<const N: u32>() {
    const { assert!(N >= 24 && N <= 256 && N.is_multiple_of(8)) };
    // SAFETY: the caller's obligation.
    unsafe { asm!("setmaxnreg.inc.sync.aligned.u32 {};", const N) };
}

/// Lowers the registers of each thread of the warpgroup to `N` and gives the rest to the block's pool.
/// PTX: `setmaxnreg.dec.sync.aligned.u32 N`. Called by all warps of a warpgroup, converged.
///
/// # Safety
/// - `N` is at most the current number.
/// - Only once between two synchronisations of the warpgroup.
#[inline(always)]
pub unsafe fn setmaxnreg_dec<const N: u32>() {
    const { assert!(N >= 24 && N <= 256 && N.is_multiple_of(8)) };
    // SAFETY: the caller's obligation.
    unsafe { asm!("setmaxnreg.dec.sync.aligned.u32 {};", const N) };
}
