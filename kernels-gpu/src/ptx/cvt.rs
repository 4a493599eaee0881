//! Conversions between f32, bf16 and e4m3. Packed values travel in a `u32`, the first element in the low bits.

use super::pure32;
use core::arch::asm;

/// Four f32 as e4m3 codes; byte 0 is `a`. Rounds to nearest even, saturates to +-448; NaN gives 0x7f.
///
/// PTX: two `cvt.rn.satfinite.e4m3x2.f32 d, hi, lo` and a `mov.b32`. Called by any thread.
#[inline(always)]
pub fn e4m3x4(a: f32, b: f32, c: f32, d: f32) -> u32 {
    pure32!(
        u32,
        "{{ .reg .b16 lo, hi; cvt.rn.satfinite.e4m3x2.f32 lo, {2}, {1}; cvt.rn.satfinite.e4m3x2.f32 hi, {4}, {3}; mov.b32 {0}, {{lo, hi}}; }}",
        a,
        b,
        c,
        d
    )
}

/// Two e4m3 codes (low 16 bits of `codes`) as packed f16, exactly. PTX: `cvt.rn.f16x2.e4m3x2 d, a`. Called by any thread.
#[inline(always)]
pub fn e4m3x2_to_f16x2(codes: u32) -> u32 {
    pure32!(u32, "{{ .reg .b16 t; cvt.u16.u32 t, {1}; cvt.rn.f16x2.e4m3x2 {0}, t; }}", codes)
}

/// Four e4m3 codes (byte 0 first) as packed f16, exactly, the first two and the others. PTX: `cvt.rn.f16x2.e4m3x2 d, a` of each half.
/// Called by any thread.
#[inline(always)]
pub fn e4m3x4_to_f16(codes: u32) -> [u32; 2] {
    let (low, high): (u32, u32);
    // SAFETY: arithmetic on registers. Halves that are named, not shifted and masked, cost no instruction.
    unsafe {
        asm!(
            "{{ .reg .b16 lo, hi; mov.b32 {{lo, hi}}, {2}; cvt.rn.f16x2.e4m3x2 {0}, lo; cvt.rn.f16x2.e4m3x2 {1}, hi; }}",
            out(reg32) low,
            out(reg32) high,
            in(reg32) codes,
            options(pure, nomem, nostack)
        );
    }
    [low, high]
}

/// Packed f16 as two f32 (low half first), exactly. PTX: two `cvt.f32.f16 d, a`. Called by any thread.
#[inline(always)]
pub fn f16x2_to_f32(packed: u32) -> (f32, f32) {
    let (low, high): (f32, f32);
    // SAFETY: arithmetic on registers.
    unsafe {
        asm!(
            "{{ .reg .b16 lo, hi; mov.b32 {{lo, hi}}, {2}; cvt.f32.f16 {0}, lo; cvt.f32.f16 {1}, hi; }}",
            out(reg32) low,
            out(reg32) high,
            in(reg32) packed,
            options(pure, nomem, nostack)
        );
    }
    (low, high)
}

/// Four e4m3 codes (byte 0 first) as f32, exactly: [`e4m3x4_to_f16`] and [`f16x2_to_f32`]. Called by any thread.
#[inline(always)]
pub fn e4m3x4_to_f32(codes: u32) -> [f32; 4] {
    let [low, high] = e4m3x4_to_f16(codes);
    let ((a, b), (c, d)) = (f16x2_to_f32(low), f16x2_to_f32(high));
    [a, b, c, d]
}

/// Two f32 as packed bf16, rounded to nearest even. PTX: `cvt.rn.bf16x2.f32 d, hi, lo`. Called by any thread.
#[inline(always)]
pub fn bf16x2(lo: f32, hi: f32) -> u32 {
    pure32!(u32, "cvt.rn.bf16x2.f32 {}, {}, {};", hi, lo)
}

/// Two f32 as packed f16, rounded to nearest even; beyond the range, infinity. PTX: `cvt.rn.f16x2.f32 d, hi, lo`.
/// Called by any thread.
#[inline(always)]
pub fn f16x2(lo: f32, hi: f32) -> u32 {
    pure32!(u32, "cvt.rn.f16x2.f32 {}, {}, {};", hi, lo)
}

/// Packed bf16 as two f32 (low half first), exactly: a bf16 is the upper half of an f32. Called by any thread.
#[inline(always)]
pub fn bf16x2_to_f32(packed: u32) -> (f32, f32) {
    (f32::from_bits(packed << 16), f32::from_bits(packed & 0xffff_0000))
}
