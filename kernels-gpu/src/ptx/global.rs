//! Loads and stores of device memory by 64-bit address, where the width or the cache path matters.

use core::arch::asm;

/// Loads 32 bits through the read-only path. PTX: `ld.global.nc.u32 d, [a]`. Called by any thread.
///
/// # Safety
/// - `ptr` is a device address, 4-byte aligned, of memory that stays allocated.
/// - Nobody writes the bytes while the kernel runs (the load may come from a cache that is not coherent).
#[inline(always)]
pub unsafe fn ld_nc_u32(ptr: u64) -> u32 {
    let value: u32;
    // SAFETY: the caller's obligation.
    unsafe { asm!("ld.global.nc.u32 {}, [{}];", out(reg32) value, in(reg64) ptr) };
    value
}

/// Loads 32 bits. PTX: `ld.global.u32 d, [a]`. Called by any thread.
///
/// # Safety
/// - `ptr` is a device address, 4-byte aligned, of memory that stays allocated.
/// - A barrier orders the load after whoever wrote the bytes while the kernel runs.
#[inline(always)]
pub unsafe fn ld_u32(ptr: u64) -> u32 {
    let value: u32;
    // SAFETY: the caller's obligation.
    unsafe { asm!("ld.global.u32 {}, [{}];", out(reg32) value, in(reg64) ptr) };
    value
}

/// Loads 32 bits where `on` is not 0; 0 elsewhere. PTX: `mov.u32 d, 0`, `@p ld.global.u32 d, [a]`. Called by a thread, or by a warp
/// with some lanes `on`.
///
/// # Safety
/// As [`ld_u32`], for the lanes that are `on`.
#[inline(always)]
pub unsafe fn ld_u32_if(ptr: u64, on: u32) -> u32 {
    let value: u32;
    // SAFETY: the caller's obligation.
    unsafe {
        asm!(
            "{{ .reg .pred p; setp.ne.u32 p, {2}, 0; mov.u32 {0}, 0; @p ld.global.u32 {0}, [{1}]; }}",
            out(reg32) value,
            in(reg64) ptr,
            in(reg32) on
        );
    }
    value
}

/// Loads 128 bits through the read-only path. PTX: `ld.global.nc.v4.u32 {d0, d1, d2, d3}, [a]`. Called by any thread.
///
/// # Safety
/// As [`ld_nc_u32`], aligned to 16 bytes.
#[inline(always)]
pub unsafe fn ld_nc_v4(ptr: u64) -> [u32; 4] {
    let (a, b, c, d): (u32, u32, u32, u32);
    // SAFETY: the caller's obligation.
    unsafe {
        asm!("ld.global.nc.v4.u32 {{{}, {}, {}, {}}}, [{}];", out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg64) ptr);
    }
    [a, b, c, d]
}

/// Loads 128 bits. PTX: `ld.global.v4.u32 {d0, d1, d2, d3}, [a]`. Called by any thread.
///
/// # Safety
/// As [`ld_u32`], aligned to 16 bytes.
#[inline(always)]
pub unsafe fn ld_v4(ptr: u64) -> [u32; 4] {
    let (a, b, c, d): (u32, u32, u32, u32);
    // SAFETY: the caller's obligation.
    unsafe {
        asm!("ld.global.v4.u32 {{{}, {}, {}, {}}}, [{}];", out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg64) ptr);
    }
    [a, b, c, d]
}

/// Where `on` is not 0, loads 128 bits through the read-only path; else zeros. PTX: `@p ld.global.nc.v4.u32 {d0, d1, d2, d3}, [a]`.
/// Called by a thread, or by a warp with some lanes `on`.
///
/// # Safety
/// As [`ld_nc_v4`], for the lanes that are `on`.
#[inline(always)]
pub unsafe fn ld_nc_v4_if(ptr: u64, on: u32) -> [u32; 4] {
    let (a, b, c, d): (u32, u32, u32, u32);
    // SAFETY: the caller's obligation.
    unsafe {
        asm!(
            "{{ .reg .pred p; setp.ne.u32 p, {on}, 0; mov.u32 {a}, 0; mov.u32 {b}, 0; mov.u32 {c}, 0; mov.u32 {d}, 0; @p ld.global.nc.v4.u32 {{{a}, {b}, {c}, {d}}}, [{ptr}]; }}",
            a = out(reg32) a,
            b = out(reg32) b,
            c = out(reg32) c,
            d = out(reg32) d,
            ptr = in(reg64) ptr,
            on = in(reg32) on,
        );
    }
    [a, b, c, d]
}

/// Stores 32 bits. PTX: `st.global.u32 [a], v`. Called by any thread.
///
/// # Safety
/// - `ptr` is a device address, 4-byte aligned, of memory that stays allocated.
/// - No other thread uses the bytes without synchronisation.
#[inline(always)]
pub unsafe fn st_u32(ptr: u64, value: u32) {
    // SAFETY: the caller's obligation.
    unsafe { asm!("st.global.u32 [{}], {};", in(reg64) ptr, in(reg32) value) };
}

/// Where `on` is not 0, stores 32 bits. PTX: `@p st.global.u32 [a], v`. Called by a thread, or by a warp with some lanes `on`.
///
/// # Safety
/// As [`st_u32`], for the lanes that are `on`.
#[inline(always)]
pub unsafe fn st_u32_if(ptr: u64, value: u32, on: u32) {
    // SAFETY: the caller's obligation.
    unsafe {
        asm!("{{ .reg .pred p; setp.ne.u32 p, {2}, 0; @p st.global.u32 [{0}], {1}; }}", in(reg64) ptr, in(reg32) value, in(reg32) on);
    }
}

/// Stores 128 bits. PTX: `st.global.v4.u32 [a], {v0, v1, v2, v3}`. Called by any thread.
///
/// # Safety
/// As [`st_u32`], aligned to 16 bytes.
#[inline(always)]
pub unsafe fn st_v4(ptr: u64, value: [u32; 4]) {
    let [a, b, c, d] = value;
    // SAFETY: the caller's obligation.
    unsafe {
        asm!("st.global.v4.u32 [{}], {{{}, {}, {}, {}}};", in(reg64) ptr, in(reg32) a, in(reg32) b, in(reg32) c, in(reg32) d);
    }
}

/// Stores 16 bits. PTX: `st.global.u16 [a], v`. Called by any thread.
///
/// # Safety
/// As [`st_u32`], aligned to 2 bytes.
#[inline(always)]
pub unsafe fn st_u16(ptr: u64, value: u16) {
    // SAFETY: the caller's obligation.
    unsafe { asm!("st.global.u16 [{}], {};", in(reg64) ptr, in(reg16) value) };
}

/// Where `on` is not 0, fetches the line at `ptr` into L2. PTX: `@p prefetch.global.L2 [a]`. Called by a thread, or by a warp with
/// some lanes `on`.
///
/// # Safety
/// - `ptr` is a device address of memory that stays allocated, for the lanes that are `on`.
#[inline(always)]
pub unsafe fn prefetch_if(ptr: u64, on: u32) {
    // SAFETY: the caller's obligation.
    unsafe { asm!("{{ .reg .pred p; setp.ne.u32 p, {1}, 0; @p prefetch.global.L2 [{0}]; }}", in(reg64) ptr, in(reg32) on) };
}
