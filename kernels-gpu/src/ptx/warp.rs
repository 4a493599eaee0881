//! Exchange among the 32 lanes of a warp. None is `pure`: each needs all lanes at the same place at the same time.

use core::arch::asm;

/// The value of lane `lane ^ mask`. PTX: `shfl.sync.bfly.b32 d, x, mask, 0x1f, 0xffffffff`. Called by a whole warp.
///
/// # Safety
/// - All 32 lanes call it, converged.
#[inline(always)]
pub unsafe fn shfl_bfly_f32(x: f32, mask: u32) -> f32 {
    let result: f32;
    // SAFETY: the caller's obligation.
    unsafe { asm!("shfl.sync.bfly.b32 {}, {}, {}, 0x1f, 0xffffffff;", out(reg32) result, in(reg32) x, in(reg32) mask) };
    result
}

/// The value of lane `lane ^ mask`. PTX: `shfl.sync.bfly.b32 d, x, mask, 0x1f, 0xffffffff`. Called by a whole warp.
///
/// # Safety
/// - All 32 lanes call it, converged.
#[inline(always)]
pub unsafe fn shfl_bfly_u32(x: u32, mask: u32) -> u32 {
    let result: u32;
    // SAFETY: the caller's obligation.
    unsafe { asm!("shfl.sync.bfly.b32 {}, {}, {}, 0x1f, 0xffffffff;", out(reg32) result, in(reg32) x, in(reg32) mask) };
    result
}

/// The value of lane `lane` (modulo 32). PTX: `shfl.sync.idx.b32 d, x, lane, 0x1f, 0xffffffff`. Called by a whole warp.
///
/// # Safety
/// - All 32 lanes call it, converged.
#[inline(always)]
pub unsafe fn shfl_idx_u32(x: u32, lane: u32) -> u32 {
    let result: u32;
    // SAFETY: the caller's obligation.
    unsafe { asm!("shfl.sync.idx.b32 {}, {}, {}, 0x1f, 0xffffffff;", out(reg32) result, in(reg32) x, in(reg32) lane) };
    result
}

/// The value of the lane `delta` below; lanes under `delta` keep their own.
/// PTX: `shfl.sync.up.b32 d, x, delta, 0x0, 0xffffffff`. Called by a whole warp.
///
/// # Safety
/// - All 32 lanes call it, converged; `delta` is from 0 to 31.
#[inline(always)]
pub unsafe fn shfl_up_u32(x: u32, delta: u32) -> u32 {
    let result: u32;
    // SAFETY: the caller's obligation.
    unsafe { asm!("shfl.sync.up.b32 {}, {}, {}, 0x0, 0xffffffff;", out(reg32) result, in(reg32) x, in(reg32) delta) };
    result
}

/// Bit i of the result says whether `on` of lane i is not 0. PTX: `vote.sync.ballot.b32 d, p, 0xffffffff`. Called by a whole warp.
///
/// # Safety
/// - All 32 lanes call it, converged.
#[inline(always)]
pub unsafe fn ballot(on: u32) -> u32 {
    let result: u32;
    // SAFETY: the caller's obligation.
    unsafe {
        asm!("{{ .reg .pred p; setp.ne.u32 p, {1}, 0; vote.sync.ballot.b32 {0}, p, 0xffffffff; }}", out(reg32) result, in(reg32) on);
    }
    result
}

/// Whether `on` of any lane is not 0. PTX: `vote.sync.any.pred q, p, 0xffffffff`. Called by a whole warp.
///
/// # Safety
/// - All 32 lanes call it, converged.
#[inline(always)]
pub unsafe fn any(on: u32) -> bool {
    let result: u32;
    // SAFETY: the caller's obligation.
    unsafe {
        asm!(
            "{{ .reg .pred p, q; setp.ne.u32 p, {1}, 0; vote.sync.any.pred q, p, 0xffffffff; selp.u32 {0}, 1, 0, q; }}",
            out(reg32) result,
            in(reg32) on
        );
    }
    result != 0
}

/// The sum of `x` over all lanes, modulo 2^32, for every lane. PTX: `redux.sync.add.u32 d, x, 0xffffffff`. Called by a whole warp.
///
/// # Safety
/// - All 32 lanes call it, converged.
#[inline(always)]
pub unsafe fn add_u32(x: u32) -> u32 {
    let result: u32;
    // SAFETY: the caller's obligation.
    unsafe { asm!("redux.sync.add.u32 {}, {}, 0xffffffff;", out(reg32) result, in(reg32) x) };
    result
}

/// The largest `x` of all lanes, for every lane. PTX: `redux.sync.max.u32 d, x, 0xffffffff`. Called by a whole warp.
///
/// # Safety
/// - All 32 lanes call it, converged.
#[inline(always)]
pub unsafe fn max_u32(x: u32) -> u32 {
    let result: u32;
    // SAFETY: the caller's obligation.
    unsafe { asm!("redux.sync.max.u32 {}, {}, 0xffffffff;", out(reg32) result, in(reg32) x) };
    result
}

/// Brings the lanes of a warp together and orders their memory accesses before and after it among them.
/// PTX: `bar.warp.sync 0xffffffff`. Called by a whole warp.
///
/// # Safety
/// All 32 lanes call it.
#[inline(always)]
pub unsafe fn sync() {
    // SAFETY: the caller's obligation.
    unsafe { asm!("bar.warp.sync 0xffffffff;") };
}
