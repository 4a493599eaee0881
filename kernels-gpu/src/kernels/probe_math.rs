//! Probes of conversions and arithmetic, one element (or packed group) per thread and round. `count` is the number of
//! elements or groups, a multiple of 128; one block of 128 threads.

use super::probe::{load_f32, word};
use crate::abi_probe::{MATH_WORDS, ProbeParams, THREADS};
use crate::ptx::{cvt, global, math, special};

/// Calls `each` with this thread's indices below `count`.
#[inline(always)]
fn for_each(count: i32, mut each: impl FnMut(u32)) {
    let mut done = 0;
    while done < count as u32 {
        each(done + special::tid_x());
        done += THREADS;
    }
}

/// f32 to e4m3. `a`: f32 `[count, 4]`; `out`: u32 `[count]`, the first of four in the low byte.
///
/// # Safety
/// Launched with 128 threads, one block, and buffers of the sizes above.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_cvt_e4m3(p: ProbeParams) {
    // SAFETY: indices are below `count`.
    for_each(p.count, |i| unsafe {
        let x = [load_f32(p.a, 4 * i), load_f32(p.a, 4 * i + 1), load_f32(p.a, 4 * i + 2), load_f32(p.a, 4 * i + 3)];
        global::st_u32(word(p.out, i), cvt::e4m3x4(x[0], x[1], x[2], x[3]));
    });
}

/// e4m3 to f32. `a`: u32 `[count]`, four codes each; `out`: f32 `[count, 4]`.
///
/// # Safety
/// Launched with 128 threads, one block, and buffers of the sizes above.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_cvt_from_e4m3(p: ProbeParams) {
    // SAFETY: indices are below `count`.
    for_each(p.count, |i| unsafe {
        let x = cvt::e4m3x4_to_f32(global::ld_nc_u32(word(p.a, i)));
        global::st_v4(word(p.out, 4 * i), x.map(f32::to_bits));
    });
}

/// f32 to bf16 and back. `a`: f32 `[count, 2]`; `out`: u32 `[count, 3]`: the packed pair, then its two values as f32.
///
/// # Safety
/// Launched with 128 threads, one block, and buffers of the sizes above.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_cvt_bf16(p: ProbeParams) {
    // SAFETY: indices are below `count`.
    for_each(p.count, |i| unsafe {
        let packed = cvt::bf16x2(load_f32(p.a, 2 * i), load_f32(p.a, 2 * i + 1));
        let (lo, hi) = cvt::bf16x2_to_f32(packed);
        global::st_u32(word(p.out, 3 * i), packed);
        global::st_u32(word(p.out, 3 * i + 1), lo.to_bits());
        global::st_u32(word(p.out, 3 * i + 2), hi.to_bits());
    });
}

/// Arithmetic. `a`, `b`, `c`: f32 `[count]`.
///
/// `out`: f32 `[count, 7]`: 2^a, log2 a, 1/a, sqrt a, max(a, b), a b + c, min(a, b).
///
/// # Safety
/// Launched with 128 threads, one block, and buffers of the sizes above.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_math(p: ProbeParams) {
    // SAFETY: indices are below `count`.
    for_each(p.count, |i| unsafe {
        let (a, b, c) = (load_f32(p.a, i), load_f32(p.b, i), load_f32(p.c, i));
        let at = i * MATH_WORDS as u32;
        global::st_u32(word(p.out, at), math::ex2(a).to_bits());
        global::st_u32(word(p.out, at + 1), math::lg2(a).to_bits());
        global::st_u32(word(p.out, at + 2), math::rcp(a).to_bits());
        global::st_u32(word(p.out, at + 3), math::sqrt_rn(a).to_bits());
        global::st_u32(word(p.out, at + 4), math::fmax(a, b).to_bits());
        global::st_u32(word(p.out, at + 5), math::fma(a, b, c).to_bits());
        global::st_u32(word(p.out, at + 6), math::fmin(a, b).to_bits());
    });
}
