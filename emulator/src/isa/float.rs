//! Floating point: f32, f64, and pairs of f16 and bf16.

use super::Op;
use super::decode::Cx;
use super::registers::{B2, H2};
use crate::fault::Result;
use crate::num::{f64_to_f16, flush};

/// Sums, products, quotients and their like.
pub(super) fn arithmetic(cx: &mut Cx) -> Result<Op> {
    cx.only(&["rn", "ftz", "sat", "full", "approx"])?;
    let name = cx.segment(0);
    let (ftz, sat) = (cx.has("ftz"), cx.has("sat"));
    if cx.has("full") || cx.has("approx") {
        // Quotients of reduced accuracy; the exact one is within their bounds.
        return if name == "div" && cx.last() == "f32" && !sat { quotient(cx, ftz) } else { cx.unknown() };
    }
    match (cx.last(), sat) {
        ("f32", false) => single(cx, name, ftz),
        ("f64", false) => double(cx, name),
        ("f16x2", true) if name == "fma" => cx.three(|x: H2, y: H2, z: H2| {
            let one = |x: f32, y: f32, z: f32| {
                let value = product_sum(x, y, z);
                // NaN becomes 0 here.
                if value > 0.0 { value.min(1.0) } else { 0.0 }
            };
            pack(one(x.0, y.0, z.0), one(x.1, y.1, z.1))
        }),
        ("f16x2", false) if !ftz => halves(cx, name),
        ("bf16x2", false) if name == "mul" && !ftz => cx.two(|x: B2, y: B2| B2(x.0 * y.0, x.1 * y.1)),
        _ => cx.unknown(),
    }
}

fn single(cx: &mut Cx, name: &str, ftz: bool) -> Result<Op> {
    match (name, ftz) {
        ("add", false) => cx.two(|x: f32, y: f32| x + y),
        ("add", true) => cx.two(|x: f32, y: f32| flush(flush(x) + flush(y))),
        ("sub", false) => cx.two(|x: f32, y: f32| x - y),
        ("sub", true) => cx.two(|x: f32, y: f32| flush(flush(x) - flush(y))),
        ("mul", false) => cx.two(|x: f32, y: f32| x * y),
        ("mul", true) => cx.two(|x: f32, y: f32| flush(flush(x) * flush(y))),
        ("fma", false) => cx.three(|x: f32, y: f32, z: f32| x.mul_add(y, z)),
        ("fma", true) => cx.three(|x: f32, y: f32, z: f32| flush(flush(x).mul_add(flush(y), flush(z)))),
        ("div", ftz) => quotient(cx, ftz),
        ("min", false) => cx.two(minimum),
        ("max", false) => cx.two(|x: f32, y: f32| -minimum(-x, -y)),
        ("neg", false) => cx.one(|x: u32| x ^ 1 << 31),
        ("abs", false) => cx.one(|x: u32| x & !(1 << 31)),
        _ => cx.unknown(),
    }
}

fn quotient(cx: &mut Cx, ftz: bool) -> Result<Op> {
    if ftz { cx.two(|x: f32, y: f32| flush(flush(x) / flush(y))) } else { cx.two(|x: f32, y: f32| x / y) }
}

fn double(cx: &mut Cx, name: &str) -> Result<Op> {
    match name {
        "add" => cx.two(|x: f64, y: f64| x + y),
        "sub" => cx.two(|x: f64, y: f64| x - y),
        "mul" => cx.two(|x: f64, y: f64| x * y),
        "div" => cx.two(|x: f64, y: f64| x / y),
        "fma" => cx.three(|x: f64, y: f64, z: f64| x.mul_add(y, z)),
        "min" => cx.two(|x: f64, y: f64| x.min(y)),
        "max" => cx.two(|x: f64, y: f64| x.max(y)),
        "neg" => cx.one(|x: u64| x ^ 1 << 63),
        "abs" => cx.one(|x: u64| x & !(1 << 63)),
        _ => cx.unknown(),
    }
}

/// Pairs of f16. Sums and products in f32 are rounded twice, which gives the same bits: f32 has more than twice the digits.
fn halves(cx: &mut Cx, name: &str) -> Result<Op> {
    match name {
        "add" => cx.two(|x: H2, y: H2| H2(x.0 + y.0, x.1 + y.1)),
        "sub" => cx.two(|x: H2, y: H2| H2(x.0 - y.0, x.1 - y.1)),
        "mul" => cx.two(|x: H2, y: H2| H2(x.0 * y.0, x.1 * y.1)),
        "fma" => cx.three(|x: H2, y: H2, z: H2| pack(product_sum(x.0, y.0, z.0), product_sum(x.1, y.1, z.1))),
        "min" => cx.two(|x: H2, y: H2| H2(minimum(x.0, y.0), minimum(x.1, y.1))),
        "max" => cx.two(|x: H2, y: H2| H2(-minimum(-x.0, -y.0), -minimum(-x.1, -y.1))),
        "neg" => cx.one(|x: u32| x ^ 0x8000_8000),
        "abs" => cx.one(|x: u32| x & 0x7fff_7fff),
        _ => cx.unknown(),
    }
}

/// Functions of one number. Where hardware approximates, the result here is the rounded exact one.
pub(super) fn function(cx: &mut Cx) -> Result<Op> {
    cx.only(&["rn", "approx", "ftz"])?;
    let ftz = cx.has("ftz");
    match (cx.segment(0), cx.last()) {
        ("sqrt", "f32") if !ftz => cx.one(|x: f32| x.sqrt()),
        ("sqrt", "f64") => cx.one(|x: f64| x.sqrt()),
        ("rcp", "f32") if ftz => cx.one(|x: f32| flush(1.0 / flush(x))),
        ("rcp", "f32") => cx.one(|x: f32| 1.0 / x),
        ("rcp", "f64") => cx.one(|x: f64| 1.0 / x),
        // Both take subnormal arguments for zero, with or without `.ftz`, as far as a result can show it.
        ("ex2", "f32") => cx.one(|x: f32| flush(f64::from(flush(x)).exp2() as f32)),
        ("lg2", "f32") => cx.one(|x: f32| f64::from(flush(x)).log2() as f32),
        ("ex2", "f16x2") => cx.one(|x: H2| pack(f64::from(x.0).exp2(), f64::from(x.1).exp2())),
        _ => cx.unknown(),
    }
}

/// The smaller number; of a NaN and a number the number, and -0 before 0.
#[inline(always)]
fn minimum(x: f32, y: f32) -> f32 {
    let first = x < y || x == y && x.is_sign_negative() || y.is_nan();
    if first { x } else { y }
}

/// Exact for numbers of f16 as far as their sum, rounded once more, can tell: where f64 drops bits, they are far below half
/// of its last.
#[inline(always)]
fn product_sum(x: f32, y: f32, z: f32) -> f64 {
    f64::from(x) * f64::from(y) + f64::from(z)
}

#[inline(always)]
fn pack(low: f64, high: f64) -> u32 {
    u32::from(f64_to_f16(low)) | u32::from(f64_to_f16(high)) << 16
}
