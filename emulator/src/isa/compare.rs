//! Moves, comparisons and choices.

use super::Op;
use super::decode::{Cx, scalar};
use super::registers::{H2, Lane};
use crate::fault::{Result, fault};
use crate::ptx::{D, Operand, P, W};
use std::cmp::Ordering;

/// `mov` and `cvta`: copies, packing, special registers and addresses.
pub(super) fn mov(cx: &mut Cx) -> Result<Op> {
    let wide = matches!(cx.last(), "u64" | "s64" | "b64" | "f64");
    if cx.segment(0) == "cvta" {
        return match cx.arg(1)? {
            Operand::Param(offset) => {
                let offset = *offset as u32;
                Ok(Op::ParamAddr(cx.to(0)?, offset))
            }
            // Generic addresses are global ones here.
            _ if cx.has("global") && wide => cx.one(|x: u64| x),
            _ => cx.unknown(),
        };
    }
    match (cx.arg(0)?.clone(), cx.arg(1)?.clone()) {
        (Operand::Vector(halves), from) => unpack(cx, &halves, &from, wide),
        (_, Operand::Vector(halves)) => pack(cx, &halves, wide),
        (_, Operand::Immediate(value)) if cx.last() == "pred" => {
            let d: P = cx.to(0)?;
            let bits = if value == 0 { 0 } else { !0 };
            Ok(scalar(move |r, m| r.set(d, bits, m)))
        }
        _ if cx.last() == "pred" => cx.one(|x: bool| x),
        (_, Operand::Special(_)) if !wide => {
            // The operand's own instruction writes a register; one more copy costs nothing that matters.
            cx.one(|x: u32| x)
        }
        _ if wide => cx.one(|x: u64| x),
        _ => cx.one(|x: u32| x),
    }
}

fn unpack(cx: &mut Cx, halves: &[Operand], from: &Operand, wide: bool) -> Result<Op> {
    let [low, high] = halves else { fault!("a vector of two is expected") };
    let (low, high): (W, W) = (cx.destination(low)?, cx.destination(high)?);
    if wide {
        let from: D = cx.source(from)?;
        return Ok(scalar(move |r, m| {
            r.map1(low, from, m, |x: u64| x as u32);
            r.map1(high, from, m, |x: u64| (x >> 32) as u32);
        }));
    }
    let from: W = cx.source(from)?;
    Ok(scalar(move |r, m| {
        // The source may be one of the halves.
        let x = r[from];
        for i in super::lanes(m) {
            r[low][i] = x[i] & 0xffff;
            r[high][i] = x[i] >> 16;
        }
    }))
}

fn pack(cx: &mut Cx, halves: &[Operand], wide: bool) -> Result<Op> {
    let [low, high] = halves else { fault!("a vector of two is expected") };
    let (low, high): (W, W) = (cx.source(low)?, cx.source(high)?);
    if wide {
        let d: D = cx.to(0)?;
        return Ok(scalar(move |r, m| r.map2(d, (low, high), m, |x: u32, y: u32| u64::from(y) << 32 | u64::from(x))));
    }
    let d: W = cx.to(0)?;
    Ok(scalar(move |r, m| r.map2(d, (low, high), m, |x: u32, y: u32| x & 0xffff | y << 16)))
}

/// `selp`.
pub(super) fn selp(cx: &mut Cx) -> Result<Op> {
    cx.only(&[])?;
    match cx.last() {
        "b64" | "u64" | "s64" | "f64" => cx.three(|x: u64, y: u64, p: bool| if p { x } else { y }),
        _ => cx.three(|x: u32, y: u32, p: bool| if p { x } else { y }),
    }
}

/// `setp`.
pub(super) fn setp(cx: &mut Cx) -> Result<Op> {
    cx.only(&[cx.segment(1)])?;
    let (name, ty) = (cx.segment(1), cx.last());
    match ty {
        "b16" | "u16" => integers::<u16>(cx, name),
        "s16" => integers::<i16>(cx, name),
        "b32" | "u32" => integers::<u32>(cx, name),
        "s32" => integers::<i32>(cx, name),
        "b64" | "u64" => integers::<u64>(cx, name),
        "s64" => integers::<i64>(cx, name),
        "f32" => floats::<f32>(cx, name),
        "f64" => floats::<f64>(cx, name),
        "f16x2" => halves(cx, name),
        _ => cx.unknown(),
    }
}

fn integers<T: Lane + Ord + Send + Sync + 'static>(cx: &mut Cx, name: &str) -> Result<Op> {
    match name {
        "eq" => cx.two(|x: T, y: T| x == y),
        "ne" => cx.two(|x: T, y: T| x != y),
        "lt" | "lo" => cx.two(|x: T, y: T| x < y),
        "le" | "ls" => cx.two(|x: T, y: T| x <= y),
        "gt" | "hi" => cx.two(|x: T, y: T| x > y),
        "ge" | "hs" => cx.two(|x: T, y: T| x >= y),
        _ => cx.unknown(),
    }
}

fn floats<T: Lane + PartialOrd + Send + Sync + 'static>(cx: &mut Cx, name: &str) -> Result<Op> {
    let Some(holds) = relation(name) else { return cx.unknown() };
    cx.two(move |x: T, y: T| holds(x.partial_cmp(&y)))
}

/// Two comparisons, one for each half.
fn halves(cx: &mut Cx, name: &str) -> Result<Op> {
    let Some(holds) = relation(name) else { return cx.unknown() };
    let Operand::Pair(low, high) = *cx.arg(0)? else { fault!("two predicates are expected") };
    let ab: (W, W) = (cx.word(1)?, cx.word(2)?);
    Ok(scalar(move |r, m| {
        if let Some(p) = low {
            r.map2(p, ab, m, |x: H2, y: H2| holds(x.0.partial_cmp(&y.0)));
        }
        if let Some(p) = high {
            r.map2(p, ab, m, |x: H2, y: H2| holds(x.1.partial_cmp(&y.1)));
        }
    }))
}

/// A comparison of floats by name; those that end in `u` hold for NaN too.
fn relation(name: &str) -> Option<fn(Option<Ordering>) -> bool> {
    use Ordering::{Equal, Greater, Less};
    Some(match name {
        "eq" => |o| o == Some(Equal),
        "ne" => |o| matches!(o, Some(Less | Greater)),
        "lt" => |o| o == Some(Less),
        "le" => |o| matches!(o, Some(Less | Equal)),
        "gt" => |o| o == Some(Greater),
        "ge" => |o| matches!(o, Some(Greater | Equal)),
        "equ" => |o| matches!(o, None | Some(Equal)),
        "neu" => |o| o != Some(Equal),
        "ltu" => |o| matches!(o, None | Some(Less)),
        "leu" => |o| o != Some(Greater),
        "gtu" => |o| matches!(o, None | Some(Greater)),
        "geu" => |o| o != Some(Less),
        "num" => |o| o.is_some(),
        "nan" => |o| o.is_none(),
        _ => return None,
    })
}
