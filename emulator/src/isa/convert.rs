//! `cvt`: between widths and kinds of numbers.

use super::Op;
use super::decode::Cx;
use super::registers::H2;
use crate::fault::Result;
use crate::num::{e4m3_to_f32, f16_to_f32, f32_to_bf16, f32_to_e4m3, f32_to_f16, flush};

/// A conversion.
pub(super) fn cvt(cx: &mut Cx) -> Result<Op> {
    let (to, from) = (cx.before_last(), cx.last());
    cx.only(&["rn", "rni", "rzi", "rmi", "rpi", "ftz", "satfinite", to])?;
    let whole = ["rni", "rzi", "rmi", "rpi"].into_iter().find(|m| cx.has(m));
    if cx.has("satfinite") != (to == "e4m3x2") || whole.is_some() && !from.starts_with('f') {
        return cx.unknown();
    }
    match (to, from, whole) {
        (to, "f32", Some(whole)) => from_single(cx, to, whole),
        (_, _, Some(_)) => cx.unknown(),
        ("f32", from, _) => to_single(cx, from),
        ("f64", from, _) => to_double(cx, from),
        ("f16", "f32", _) => cx.one(|x: f32| f32_to_f16(x)),
        ("bf16", "f32", _) => cx.one(|x: f32| f32_to_bf16(x)),
        // The first operand goes to the upper half.
        ("f16x2", "f32", _) => cx.two(|x: f32, y: f32| u32::from(f32_to_f16(x)) << 16 | u32::from(f32_to_f16(y))),
        ("bf16x2", "f32", _) => cx.two(|x: f32, y: f32| u32::from(f32_to_bf16(x)) << 16 | u32::from(f32_to_bf16(y))),
        ("e4m3x2", "f32", _) => cx.two(|x: f32, y: f32| u16::from(f32_to_e4m3(x)) << 8 | u16::from(f32_to_e4m3(y))),
        ("e4m3x2", "f16x2", _) => cx.one(|x: H2| u16::from(f32_to_e4m3(x.0)) | u16::from(f32_to_e4m3(x.1)) << 8),
        ("f16x2", "e4m3x2", _) => cx.one(|x: u16| H2(e4m3_to_f32(x as u8), e4m3_to_f32((x >> 8) as u8))),
        (to, from, _) => integers(cx, to, from),
    }
}

fn to_single(cx: &mut Cx, from: &str) -> Result<Op> {
    match from {
        "u16" => cx.one(|x: u16| f32::from(x)),
        "s16" => cx.one(|x: i16| f32::from(x)),
        "u32" => cx.one(|x: u32| x as f32),
        "s32" => cx.one(|x: i32| x as f32),
        "u64" => cx.one(|x: u64| x as f32),
        "s64" => cx.one(|x: i64| x as f32),
        "f16" => cx.one(|x: u16| f16_to_f32(x)),
        "f64" => cx.one(|x: f64| x as f32),
        "f32" if cx.has("ftz") => cx.one(|x: f32| flush(x)),
        _ => cx.unknown(),
    }
}

fn to_double(cx: &mut Cx, from: &str) -> Result<Op> {
    match from {
        "u32" => cx.one(|x: u32| f64::from(x)),
        "s32" => cx.one(|x: i32| f64::from(x)),
        "u64" => cx.one(|x: u64| x as f64),
        "s64" => cx.one(|x: i64| x as f64),
        "f32" => cx.one(|x: f32| f64::from(x)),
        _ => cx.unknown(),
    }
}

/// To a whole number, as an integer that saturates or as a float.
fn from_single(cx: &mut Cx, to: &str, whole: &str) -> Result<Op> {
    let round = match whole {
        "rni" => f32::round_ties_even,
        "rzi" => f32::trunc,
        "rmi" => f32::floor,
        _ => f32::ceil,
    };
    match to {
        "u32" => cx.one(move |x: f32| round(x) as u32),
        "s32" => cx.one(move |x: f32| round(x) as i32),
        "u64" => cx.one(move |x: f32| round(x) as u64),
        "s64" => cx.one(move |x: f32| round(x) as i64),
        "f32" => cx.one(move |x: f32| round(x)),
        _ => cx.unknown(),
    }
}

/// Between integers: the sign is that of the source, bits that do not fit are dropped.
fn integers(cx: &mut Cx, to: &str, from: &str) -> Result<Op> {
    match (to, from) {
        ("u64" | "s64", "u32") => cx.one(|x: u32| u64::from(x)),
        ("u64" | "s64", "s32") => cx.one(|x: i32| i64::from(x)),
        ("u64" | "s64", "u16") => cx.one(|x: u16| u64::from(x)),
        ("u64" | "s64", "s16") => cx.one(|x: i16| i64::from(x)),
        ("u64" | "s64", "u8") => cx.one(|x: u8| u64::from(x)),
        ("u64" | "s64", "s8") => cx.one(|x: i8| i64::from(x)),
        ("u32" | "s32", "u64" | "s64") => cx.one(|x: u64| x as u32),
        ("u32" | "s32", "u32" | "s32") => cx.one(|x: u32| x),
        ("u32" | "s32", "u16") => cx.one(|x: u16| u32::from(x)),
        ("u32" | "s32", "s16") => cx.one(|x: i16| i32::from(x)),
        ("u32" | "s32", "u8") => cx.one(|x: u8| u32::from(x)),
        ("u32" | "s32", "s8") => cx.one(|x: i8| i32::from(x)),
        ("u16" | "s16", "u64" | "s64") => cx.one(|x: u64| x as u16),
        ("u16" | "s16", "u32" | "s32" | "u16" | "s16") => cx.one(|x: u16| x),
        ("u16" | "s16", "u8") => cx.one(|x: u8| u16::from(x)),
        ("u16" | "s16", "s8") => cx.one(|x: i8| i16::from(x)),
        ("u8", "u16" | "u32" | "s16" | "s32") => cx.one(|x: u8| x),
        ("s8", "u16" | "u32" | "s16" | "s32") => cx.one(|x: i8| x),
        _ => cx.unknown(),
    }
}
