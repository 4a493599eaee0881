//! Packed f16 arithmetic (and one product of bf16): two values in a `u32`, the first in the low bits. Subnormals count.

use super::int::prmt;
use super::pure32;

/// `a * b + c` of both halves, with one rounding each. PTX: `fma.rn.f16x2 d, a, b, c`. Called by any thread.
#[inline(always)]
pub fn fma2(a: u32, b: u32, c: u32) -> u32 {
    pure32!(u32, "fma.rn.f16x2 {}, {}, {}, {};", a, b, c)
}

/// `a * b + c` of both halves, clamped to 0..1; NaN gives 0. PTX: `fma.rn.sat.f16x2 d, a, b, c`. Called by any thread.
#[inline(always)]
pub fn fma2_sat(a: u32, b: u32, c: u32) -> u32 {
    pure32!(u32, "fma.rn.sat.f16x2 {}, {}, {}, {};", a, b, c)
}

/// `a - b` of both halves. PTX: `sub.rn.f16x2 d, a, b`. Called by any thread.
#[inline(always)]
pub fn sub2(a: u32, b: u32) -> u32 {
    pure32!(u32, "sub.rn.f16x2 {}, {}, {};", a, b)
}

/// `a * b` of both halves. PTX: `mul.rn.f16x2 d, a, b`. Called by any thread.
#[inline(always)]
pub fn mul2(a: u32, b: u32) -> u32 {
    pure32!(u32, "mul.rn.f16x2 {}, {}, {};", a, b)
}

/// `a * b` of both halves, which are bf16. PTX: `mul.rn.bf16x2 d, a, b`. Called by any thread.
#[inline(always)]
pub fn mul_bf16x2(a: u32, b: u32) -> u32 {
    pure32!(u32, "mul.rn.bf16x2 {}, {}, {};", a, b)
}

/// `|a| + b` of both halves. PTX: `abs.f16x2 t, a` and `add.rn.f16x2 d, t, b`. Called by any thread.
#[inline(always)]
pub fn add_abs2(a: u32, b: u32) -> u32 {
    pure32!(u32, "{{ .reg .b32 t; abs.f16x2 t, {1}; add.rn.f16x2 {0}, t, {2}; }}", a, b)
}

/// The larger of each pair of halves; a NaN loses against a number. PTX: `max.f16x2 d, a, b`. Called by any thread.
#[inline(always)]
pub fn max2(a: u32, b: u32) -> u32 {
    pure32!(u32, "max.f16x2 {}, {}, {};", a, b)
}

/// The smaller of each pair of halves; a NaN loses against a number. PTX: `min.f16x2 d, a, b`. Called by any thread.
#[inline(always)]
pub fn min2(a: u32, b: u32) -> u32 {
    pure32!(u32, "min.f16x2 {}, {}, {};", a, b)
}

/// 2^a of both halves, relative error under 2^-9.9. PTX: `ex2.approx.f16x2 d, a`. Called by any thread.
#[inline(always)]
pub fn ex2_2(a: u32) -> u32 {
    pure32!(u32, "ex2.approx.f16x2 {}, {};", a)
}

/// `c > d ? a : b` of each half. PTX: `setp.gt.f16x2 p|q, c, d` and two `selp.b16`. Called by any thread.
#[inline(always)]
pub fn select_gt2(c: u32, d: u32, a: u32, b: u32) -> u32 {
    pure32!(
        u32,
        "{{ .reg .pred p, q; .reg .b16 al, ah, bl, bh; setp.gt.f16x2 p|q, {1}, {2}; mov.b32 {{al, ah}}, {3}; mov.b32 {{bl, bh}}, {4};
        selp.b16 al, al, bl, p; selp.b16 ah, ah, bh, q; mov.b32 {0}, {{al, ah}}; }}",
        c,
        d,
        a,
        b
    )
}

/// 1 where a half of `c` is above its partner in `d`, else 0. PTX: `setp.gt.f16x2 p|q, c, d`, `or.pred`, `selp`. Called by any thread.
#[inline(always)]
pub fn any_gt2(c: u32, d: u32) -> u32 {
    pure32!(u32, "{{ .reg .pred p, q; setp.gt.f16x2 p|q, {1}, {2}; or.pred p, p, q; selp.u32 {0}, 1, 0, p; }}", c, d)
}

/// The low half twice. PTX: `prmt.b32 d, a, a, 0x1010`. Called by any thread.
#[inline(always)]
pub fn low2(a: u32) -> u32 {
    pure32!(u32, "{{ .reg .b16 l, h; mov.b32 {{l, h}}, {1}; mov.b32 {0}, {{l, l}}; }}", a)
}

/// The high half twice. PTX: `prmt.b32 d, a, a, 0x3232`. Called by any thread.
#[inline(always)]
pub fn high2(a: u32) -> u32 {
    pure32!(u32, "{{ .reg .b16 l, h; mov.b32 {{l, h}}, {1}; mov.b32 {0}, {{h, h}}; }}", a)
}

/// The low halves of `a` and `b`. PTX: [`prmt`]. Called by any thread.
#[inline(always)]
pub fn lows(a: u32, b: u32) -> u32 {
    prmt(a, b, 0x5410)
}

/// The high halves of `a` and `b`. PTX: [`prmt`]. Called by any thread.
#[inline(always)]
pub fn highs(a: u32, b: u32) -> u32 {
    prmt(a, b, 0x7632)
}

/// Four f16 as e4m3 codes; bytes 0 and 1 are `a`'s. Rounds to nearest even, saturates to +-448; NaN gives 0x7f.
///
/// PTX: two `cvt.rn.satfinite.e4m3x2.f16x2 d, a` and a `mov.b32`. Called by any thread.
#[inline(always)]
pub fn e4m3x4(a: u32, b: u32) -> u32 {
    pure32!(
        u32,
        "{{ .reg .b16 lo, hi; cvt.rn.satfinite.e4m3x2.f16x2 lo, {1}; cvt.rn.satfinite.e4m3x2.f16x2 hi, {2}; mov.b32 {0}, {{lo, hi}}; }}",
        a,
        b
    )
}
