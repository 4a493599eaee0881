//! Loads and stores of shared memory by 32-bit address.
//!
//! Addresses come from [`base`]; "inside the block's shared memory" below means within the dynamic size of the launch.

use super::SmemAddr;
use core::arch::{asm, global_asm};

// The 128-byte swizzle repeats every 1,024 bytes and wgmma descriptors assume tiles aligned to it.
global_asm!(".extern .shared .align 1024 .b8 dyn_smem[];");

/// First byte of the dynamic shared memory of the block, aligned to 1,024. PTX: `mov.u32 d, dyn_smem`. Called by any thread.
#[inline(always)]
pub fn base() -> SmemAddr {
    let address: u32;
    // SAFETY: the address of a symbol.
    unsafe { asm!("mov.u32 {}, dyn_smem;", out(reg32) address, options(pure, nomem, nostack)) };
    SmemAddr(address)
}

/// As [`base`], read anew: neither it nor what hangs on it need be kept. Called by any thread.
#[inline(always)]
pub fn base_again() -> SmemAddr {
    let address: u32;
    // SAFETY: as `base`; not `pure`, so that the compiler does not keep the first answer instead.
    unsafe { asm!("mov.u32 {}, dyn_smem;", out(reg32) address, options(nomem, nostack)) };
    SmemAddr(address)
}

/// Loads 32 bits. PTX: `ld.shared.u32 d, [a]`. Called by any thread.
///
/// # Safety
/// - `at` is 4-byte aligned and inside the block's shared memory.
/// - A barrier orders the load after whoever wrote the bytes.
#[inline(always)]
pub unsafe fn ld_u32(at: SmemAddr) -> u32 {
    let value: u32;
    // SAFETY: the caller's obligation.
    unsafe { asm!("ld.shared.u32 {}, [{}];", out(reg32) value, in(reg32) at.0) };
    value
}

/// Stores 32 bits. PTX: `st.shared.u32 [a], v`. Called by any thread.
///
/// # Safety
/// - `at` is 4-byte aligned and inside the block's shared memory.
/// - No other thread or asynchronous copy uses the bytes without a barrier (and, for the async proxy, a fence) between.
#[inline(always)]
pub unsafe fn st_u32(at: SmemAddr, value: u32) {
    // SAFETY: the caller's obligation.
    unsafe { asm!("st.shared.u32 [{}], {};", in(reg32) at.0, in(reg32) value) };
}

/// Loads 32 bits that another thread may store meanwhile, as they are now. PTX: `ld.volatile.shared.u32 d, [a]`. Called by any thread.
///
/// # Safety
/// - `at` is 4-byte aligned and inside the block's shared memory.
/// - Whoever stores the bytes meanwhile does it with [`st_volatile_u32`], and either value serves.
#[inline(always)]
pub unsafe fn ld_volatile_u32(at: SmemAddr) -> u32 {
    let value: u32;
    // SAFETY: the caller's obligation.
    unsafe { asm!("ld.volatile.shared.u32 {}, [{}];", out(reg32) value, in(reg32) at.0) };
    value
}

/// Stores 32 bits that other threads may load meanwhile. PTX: `st.volatile.shared.u32 [a], v`. Called by any thread.
///
/// # Safety
/// - `at` is 4-byte aligned and inside the block's shared memory.
/// - Whoever loads the bytes meanwhile does it with [`ld_volatile_u32`].
#[inline(always)]
pub unsafe fn st_volatile_u32(at: SmemAddr, value: u32) {
    // SAFETY: the caller's obligation.
    unsafe { asm!("st.volatile.shared.u32 [{}], {};", in(reg32) at.0, in(reg32) value) };
}

/// Where `on` is not 0, stores 32 bits. PTX: `@p st.shared.u32 [a], v`. Called by a thread, or by a warp with some lanes `on`.
///
/// # Safety
/// As [`st_u32`], for the lanes that are `on`.
#[inline(always)]
pub unsafe fn st_u32_if(at: SmemAddr, value: u32, on: u32) {
    // SAFETY: the caller's obligation.
    unsafe {
        asm!("{{ .reg .pred p; setp.ne.u32 p, {2}, 0; @p st.shared.u32 [{0}], {1}; }}", in(reg32) at.0, in(reg32) value, in(reg32) on);
    }
}

/// Where `on` is not 0, stores 16 bits. PTX: `@p st.shared.u16 [a], v`. Called by a thread, or by a warp with some lanes `on`.
///
/// # Safety
/// As [`st_u16`], for the lanes that are `on`.
#[inline(always)]
pub unsafe fn st_u16_if(at: SmemAddr, value: u16, on: u32) {
    // SAFETY: the caller's obligation.
    unsafe {
        asm!("{{ .reg .pred p; setp.ne.u32 p, {2}, 0; @p st.shared.u16 [{0}], {1}; }}", in(reg32) at.0, in(reg16) value, in(reg32) on);
    }
}

/// Loads an f32. PTX: `ld.shared.f32 d, [a]`. Called by any thread.
///
/// # Safety
/// As [`ld_u32`].
#[inline(always)]
pub unsafe fn ld_f32(at: SmemAddr) -> f32 {
    let value: f32;
    // SAFETY: the caller's obligation.
    unsafe { asm!("ld.shared.f32 {}, [{}];", out(reg32) value, in(reg32) at.0) };
    value
}

/// Loads two f32. PTX: `ld.shared.v2.f32 {d0, d1}, [a]`. Called by any thread.
///
/// # Safety
/// As [`ld_u32`], aligned to 8 bytes.
#[inline(always)]
pub unsafe fn ld_v2_f32(at: SmemAddr) -> [f32; 2] {
    let (a, b): (f32, f32);
    // SAFETY: the caller's obligation.
    unsafe { asm!("ld.shared.v2.f32 {{{}, {}}}, [{}];", out(reg32) a, out(reg32) b, in(reg32) at.0) };
    [a, b]
}

/// Stores an f32. PTX: `st.shared.f32 [a], v`. Called by any thread.
///
/// # Safety
/// As [`st_u32`].
#[inline(always)]
pub unsafe fn st_f32(at: SmemAddr, value: f32) {
    // SAFETY: the caller's obligation.
    unsafe { asm!("st.shared.f32 [{}], {};", in(reg32) at.0, in(reg32) value) };
}

/// Loads 64 bits. PTX: `ld.shared.v2.u32 {d0, d1}, [a]`. Called by any thread.
///
/// # Safety
/// As [`ld_u32`], aligned to 8 bytes.
#[inline(always)]
pub unsafe fn ld_v2_u32(at: SmemAddr) -> [u32; 2] {
    let (a, b): (u32, u32);
    // SAFETY: the caller's obligation.
    unsafe { asm!("ld.shared.v2.u32 {{{}, {}}}, [{}];", out(reg32) a, out(reg32) b, in(reg32) at.0) };
    [a, b]
}

/// Loads 16 bits. PTX: `ld.shared.u16 d, [a]`. Called by any thread.
///
/// # Safety
/// As [`ld_u32`], aligned to 2 bytes.
#[inline(always)]
pub unsafe fn ld_u16(at: SmemAddr) -> u16 {
    let value: u16;
    // SAFETY: the caller's obligation.
    unsafe { asm!("ld.shared.u16 {}, [{}];", out(reg16) value, in(reg32) at.0) };
    value
}

/// Stores 16 bits. PTX: `st.shared.u16 [a], v`. Called by any thread.
///
/// # Safety
/// As [`st_u32`], aligned to 2 bytes.
#[inline(always)]
pub unsafe fn st_u16(at: SmemAddr, value: u16) {
    // SAFETY: the caller's obligation.
    unsafe { asm!("st.shared.u16 [{}], {};", in(reg32) at.0, in(reg16) value) };
}

/// Stores 8 bits. PTX: `st.shared.u8 [a], v`. Called by any thread.
///
/// # Safety
/// As [`st_u32`], any alignment.
#[inline(always)]
pub unsafe fn st_u8(at: SmemAddr, value: u8) {
    // SAFETY: the caller's obligation. An 8-bit store takes the low byte of a wider register.
    unsafe { asm!("st.shared.u8 [{}], {};", in(reg32) at.0, in(reg16) u16::from(value)) };
}

/// Loads 128 bits. PTX: `ld.shared.v4.u32 {d0, d1, d2, d3}, [a]`. Called by any thread.
///
/// # Safety
/// As [`ld_u32`], aligned to 16 bytes.
#[inline(always)]
pub unsafe fn ld_v4(at: SmemAddr) -> [u32; 4] {
    let (a, b, c, d): (u32, u32, u32, u32);
    // SAFETY: the caller's obligation.
    unsafe {
        asm!("ld.shared.v4.u32 {{{}, {}, {}, {}}}, [{}];", out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg32) at.0);
    }
    [a, b, c, d]
}

/// Stores 128 bits. PTX: `st.shared.v4.u32 [a], {v0, v1, v2, v3}`. Called by any thread.
///
/// # Safety
/// As [`st_u32`], aligned to 16 bytes.
#[inline(always)]
pub unsafe fn st_v4(at: SmemAddr, value: [u32; 4]) {
    let [a, b, c, d] = value;
    // SAFETY: the caller's obligation.
    unsafe {
        asm!("st.shared.v4.u32 [{}], {{{}, {}, {}, {}}};", in(reg32) at.0, in(reg32) a, in(reg32) b, in(reg32) c, in(reg32) d);
    }
}

/// Where `on` is not 0, stores 128 bits. PTX: `@p st.shared.v4.u32 [a], {v0, v1, v2, v3}`. Called by a thread, or by a warp with some
/// lanes `on`.
///
/// # Safety
/// As [`st_v4`], for the lanes that are `on`.
#[inline(always)]
pub unsafe fn st_v4_if(at: SmemAddr, value: [u32; 4], on: u32) {
    let [a, b, c, d] = value;
    // SAFETY: the caller's obligation.
    unsafe {
        asm!(
            "{{ .reg .pred p; setp.ne.u32 p, {on}, 0; @p st.shared.v4.u32 [{at}], {{{a}, {b}, {c}, {d}}}; }}",
            at = in(reg32) at.0,
            a = in(reg32) a,
            b = in(reg32) b,
            c = in(reg32) c,
            d = in(reg32) d,
            on = in(reg32) on,
        );
    }
}

/// Sets bits of 32 atomically. PTX: `red.shared.or.b32 [a], v`. Called by any thread.
///
/// # Safety
/// As [`atomic_add_u32`].
#[inline(always)]
pub unsafe fn atomic_or_u32(at: SmemAddr, value: u32) {
    // SAFETY: the caller's obligation.
    unsafe { asm!("red.shared.or.b32 [{}], {};", in(reg32) at.0, in(reg32) value) };
}

/// Adds to 32 bits atomically and returns what was there before. PTX: `atom.shared.add.u32 d, [a], v`. Called by any thread.
///
/// # Safety
/// - `at` is 4-byte aligned and inside the block's shared memory.
/// - Between barriers, other threads use the bytes atomically only.
#[inline(always)]
pub unsafe fn atomic_add_u32(at: SmemAddr, value: u32) -> u32 {
    let before: u32;
    // SAFETY: the caller's obligation.
    unsafe { asm!("atom.shared.add.u32 {}, [{}], {};", out(reg32) before, in(reg32) at.0, in(reg32) value) };
    before
}
