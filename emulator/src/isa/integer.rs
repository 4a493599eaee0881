//! Integers and bits.

use super::Op;
use super::decode::{Cx, scalar};
use crate::fault::{Result, fault};

/// Arithmetic of integers. A quotient by 0 has all bits set; PTX leaves it open.
pub(super) fn arithmetic(cx: &mut Cx) -> Result<Op> {
    cx.only(&["lo", "hi", "wide"])?;
    let (name, part, ty) = (cx.segment(0), cx.segment(1), cx.last());
    match (name, part, ty) {
        ("mul", "wide", "u32") => cx.two(|x: u32, y: u32| u64::from(x) * u64::from(y)),
        ("mul", "wide", "s32") => cx.two(|x: i32, y: i32| i64::from(x) * i64::from(y)),
        ("mul", "wide", "u16") => cx.two(|x: u16, y: u16| u32::from(x) * u32::from(y)),
        ("mul", "wide", "s16") => cx.two(|x: i16, y: i16| i32::from(x) * i32::from(y)),
        ("mul", "hi", "u32") => cx.two(|x: u32, y: u32| ((u64::from(x) * u64::from(y)) >> 32) as u32),
        ("mul", "hi", "s32") => cx.two(|x: i32, y: i32| ((i64::from(x) * i64::from(y)) >> 32) as i32),
        ("mul", "hi", "u16") => cx.two(|x: u16, y: u16| ((u32::from(x) * u32::from(y)) >> 16) as u16),
        ("mul", "hi", "u64") => cx.two(|x: u64, y: u64| ((u128::from(x) * u128::from(y)) >> 64) as u64),
        ("mul", "lo", "u32" | "s32") => cx.two(|x: u32, y: u32| x.wrapping_mul(y)),
        ("mul", "lo", "u16" | "s16") => cx.two(|x: u16, y: u16| x.wrapping_mul(y)),
        ("mul", "lo", "u64" | "s64") => cx.two(|x: u64, y: u64| x.wrapping_mul(y)),
        ("mad", "wide", "u32") => cx.three(|x: u32, y: u32, z: u64| (u64::from(x) * u64::from(y)).wrapping_add(z)),
        ("mad", "wide", "s32") => cx.three(|x: i32, y: i32, z: i64| (i64::from(x) * i64::from(y)).wrapping_add(z)),
        ("mad", "lo", "u32" | "s32") => cx.three(|x: u32, y: u32, z: u32| x.wrapping_mul(y).wrapping_add(z)),
        ("mad", "lo", "u16" | "s16") => cx.three(|x: u16, y: u16, z: u16| x.wrapping_mul(y).wrapping_add(z)),
        ("mad", "lo", "u64" | "s64") => cx.three(|x: u64, y: u64, z: u64| x.wrapping_mul(y).wrapping_add(z)),
        ("mul" | "mad", ..) => cx.unknown(),
        (_, "lo" | "hi" | "wide", _) => fault!("the modifier .{part} belongs to products"),
        (name, _, ty) => simple(cx, name, ty),
    }
}

/// What has a name and a type and nothing between.
fn simple(cx: &mut Cx, name: &str, ty: &str) -> Result<Op> {
    match (name, ty) {
        ("add", "u32" | "s32") => cx.two(|x: u32, y: u32| x.wrapping_add(y)),
        ("add", "u16" | "s16") => cx.two(|x: u16, y: u16| x.wrapping_add(y)),
        ("add", "u64" | "s64") => cx.two(|x: u64, y: u64| x.wrapping_add(y)),
        ("sub", "u32" | "s32") => cx.two(|x: u32, y: u32| x.wrapping_sub(y)),
        ("sub", "u16" | "s16") => cx.two(|x: u16, y: u16| x.wrapping_sub(y)),
        ("sub", "u64" | "s64") => cx.two(|x: u64, y: u64| x.wrapping_sub(y)),
        ("div", "u16") => cx.two(|x: u16, y: u16| x.checked_div(y).unwrap_or(!0)),
        ("div", "u32") => cx.two(|x: u32, y: u32| x.checked_div(y).unwrap_or(!0)),
        ("div", "s32") => cx.two(|x: i32, y: i32| if y == 0 { -1 } else { x.wrapping_div(y) }),
        ("div", "u64") => cx.two(|x: u64, y: u64| x.checked_div(y).unwrap_or(!0)),
        ("div", "s64") => cx.two(|x: i64, y: i64| if y == 0 { -1 } else { x.wrapping_div(y) }),
        ("rem", "u16") => cx.two(|x: u16, y: u16| x.checked_rem(y).unwrap_or(x)),
        ("rem", "u32") => cx.two(|x: u32, y: u32| x.checked_rem(y).unwrap_or(x)),
        ("rem", "s32") => cx.two(|x: i32, y: i32| if y == 0 { x } else { x.wrapping_rem(y) }),
        ("rem", "u64") => cx.two(|x: u64, y: u64| x.checked_rem(y).unwrap_or(x)),
        ("rem", "s64") => cx.two(|x: i64, y: i64| if y == 0 { x } else { x.wrapping_rem(y) }),
        ("min", "u16") => cx.two(|x: u16, y: u16| x.min(y)),
        ("min", "u32") => cx.two(|x: u32, y: u32| x.min(y)),
        ("min", "s32") => cx.two(|x: i32, y: i32| x.min(y)),
        ("min", "u64") => cx.two(|x: u64, y: u64| x.min(y)),
        ("min", "s64") => cx.two(|x: i64, y: i64| x.min(y)),
        ("max", "u16") => cx.two(|x: u16, y: u16| x.max(y)),
        ("max", "u32") => cx.two(|x: u32, y: u32| x.max(y)),
        ("max", "s32") => cx.two(|x: i32, y: i32| x.max(y)),
        ("max", "u64") => cx.two(|x: u64, y: u64| x.max(y)),
        ("max", "s64") => cx.two(|x: i64, y: i64| x.max(y)),
        ("neg", "s32") => cx.one(|x: u32| x.wrapping_neg()),
        ("neg", "s64") => cx.one(|x: u64| x.wrapping_neg()),
        ("abs", "s32") => cx.one(|x: i32| x.wrapping_abs()),
        ("abs", "s64") => cx.one(|x: i64| x.wrapping_abs()),
        _ => cx.unknown(),
    }
}

/// Bit by bit.
pub(super) fn logic(cx: &mut Cx) -> Result<Op> {
    cx.only(&[])?;
    let (name, ty) = (cx.segment(0), cx.last());
    match (name, ty) {
        ("and", "pred") => cx.two(|x: bool, y: bool| x & y),
        ("or", "pred") => cx.two(|x: bool, y: bool| x | y),
        ("xor", "pred") => cx.two(|x: bool, y: bool| x ^ y),
        ("not", "pred") => cx.one(|x: bool| !x),
        ("and", "b16") => cx.two(|x: u16, y: u16| x & y),
        ("or", "b16") => cx.two(|x: u16, y: u16| x | y),
        ("xor", "b16") => cx.two(|x: u16, y: u16| x ^ y),
        ("not", "b16") => cx.one(|x: u16| !x),
        ("and", "b32") => cx.two(|x: u32, y: u32| x & y),
        ("or", "b32") => cx.two(|x: u32, y: u32| x | y),
        ("xor", "b32") => cx.two(|x: u32, y: u32| x ^ y),
        ("not", "b32") => cx.one(|x: u32| !x),
        ("and", "b64") => cx.two(|x: u64, y: u64| x & y),
        ("or", "b64") => cx.two(|x: u64, y: u64| x | y),
        ("xor", "b64") => cx.two(|x: u64, y: u64| x ^ y),
        ("not", "b64") => cx.one(|x: u64| !x),
        _ => cx.unknown(),
    }
}

/// Shifts, fields and counts. Shifts by the width or more give zeros, or the sign.
pub(super) fn bits(cx: &mut Cx) -> Result<Op> {
    let (name, ty) = (cx.segment(0), cx.last());
    if name != "shf" {
        cx.only(&[])?;
    }
    match (name, ty) {
        ("shl", "b16") => cx.two(|x: u16, y: u32| if y > 15 { 0 } else { x << y }),
        ("shl", "b32") => cx.two(|x: u32, y: u32| if y > 31 { 0 } else { x << y }),
        ("shl", "b64") => cx.two(|x: u64, y: u32| if y > 63 { 0 } else { x << y }),
        ("shr", "b16" | "u16") => cx.two(|x: u16, y: u32| if y > 15 { 0 } else { x >> y }),
        ("shr", "b32" | "u32") => cx.two(|x: u32, y: u32| if y > 31 { 0 } else { x >> y }),
        ("shr", "b64" | "u64") => cx.two(|x: u64, y: u32| if y > 63 { 0 } else { x >> y }),
        ("shr", "s16") => cx.two(|x: i16, y: u32| x >> y.min(15)),
        ("shr", "s32") => cx.two(|x: i32, y: u32| x >> y.min(31)),
        ("shr", "s64") => cx.two(|x: i64, y: u32| x >> y.min(63)),
        ("shf", "b32") => funnel(cx),
        ("bfe", "u32") => cx.three(|x: u32, at: u32, len: u32| {
            let (at, len) = (at & 255, len & 255);
            let field = if at > 31 { 0 } else { x >> at };
            if len > 31 { field } else { field & ((1 << len) - 1) }
        }),
        ("popc", "b32") => cx.one(|x: u32| x.count_ones()),
        ("popc", "b64") => cx.one(|x: u64| x.count_ones()),
        ("clz", "b32") => cx.one(|x: u32| x.leading_zeros()),
        ("clz", "b64") => cx.one(|x: u64| x.leading_zeros()),
        ("brev", "b32") => cx.one(|x: u32| x.reverse_bits()),
        ("bfind", "u32") => cx.one(|x: u32| if x == 0 { !0 } else { 31 - x.leading_zeros() }),
        ("prmt", "b32") => cx.three(permute),
        ("lop3", "b32") => lop3(cx),
        _ => cx.unknown(),
    }
}

/// Shifts of a pair of words, of which one comes out.
fn funnel(cx: &mut Cx) -> Result<Op> {
    let pair = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
    match (cx.segment(1), cx.segment(2)) {
        ("l", "wrap") => cx.three(move |x, y, n: u32| ((pair(x, y) << (n & 31)) >> 32) as u32),
        ("l", "clamp") => cx.three(move |x, y, n: u32| ((pair(x, y) << n.min(32)) >> 32) as u32),
        ("r", "wrap") => cx.three(move |x, y, n: u32| (pair(x, y) >> (n & 31)) as u32),
        ("r", "clamp") => cx.three(move |x, y, n: u32| (pair(x, y) >> n.min(32)) as u32),
        _ => cx.unknown(),
    }
}

/// Four bytes of eight; the selector's fourth bit takes the byte's sign instead.
fn permute(x: u32, y: u32, selector: u32) -> u32 {
    let bytes = (u64::from(y) << 32 | u64::from(x)).to_le_bytes();
    let out = std::array::from_fn(|k| {
        let which = selector >> (4 * k);
        let byte = bytes[which as usize & 7];
        if which & 8 == 0 { byte } else { ((byte as i8) >> 7) as u8 }
    });
    u32::from_le_bytes(out)
}

/// A function of three bits, given by its table.
fn lop3(cx: &mut Cx) -> Result<Op> {
    let table = cx.immediate(4)?;
    let (d, abc) = (cx.to(0)?, (cx.word(1)?, cx.word(2)?, cx.word(3)?));
    // A product of three for each entry that is set; all of them are formed at once for a whole register.
    let terms: Vec<[u32; 3]> =
        (0..8).filter(|k| table >> k & 1 != 0).map(|k: u32| [4, 2, 1].map(|b| if k & b != 0 { 0 } else { !0 })).collect();
    Ok(scalar(move |r, m| {
        r.map3(d, abc, m, |x: u32, y: u32, z: u32| terms.iter().fold(0, |out, t| out | (x ^ t[0]) & (y ^ t[1]) & (z ^ t[2])));
    }))
}
