//! One-instruction integer arithmetic.

use super::pure32;

/// Four bytes picked from eight: hexadecimal digit i of `selector` names byte i of the result, 0..4 from `a` and 4..8 from `b`.
/// PTX: `prmt.b32 d, a, b, selector`. Called by any thread.
#[inline(always)]
pub fn prmt(a: u32, b: u32, selector: u32) -> u32 {
    pure32!(u32, "prmt.b32 {}, {}, {}, {};", a, b, selector)
}

/// `a * b + c` modulo 2^32. PTX: `mad.lo.u32 d, a, b, c`. Called by any thread.
#[inline(always)]
pub fn mad(a: u32, b: u32, c: u32) -> u32 {
    pure32!(u32, "mad.lo.u32 {}, {}, {}, {};", a, b, c)
}

/// Number of the highest bit of `x` that is set; `u32::MAX` if none is. PTX: `bfind.u32 d, x`. Called by any thread.
#[inline(always)]
pub fn highest_bit(x: u32) -> u32 {
    pure32!(u32, "bfind.u32 {}, {};", x)
}

/// `a ^ b ^ c`. PTX: `lop3.b32 d, a, b, c, 0x96`. Called by any thread.
#[inline(always)]
pub fn xor3(a: u32, b: u32, c: u32) -> u32 {
    pure32!(u32, "lop3.b32 {}, {}, {}, {}, 0x96;", a, b, c)
}

/// The bits of `a` where `mask` has a one, of `b` elsewhere. PTX: `lop3.b32 d, a, b, mask, 0xe4`. Called by any thread.
#[inline(always)]
pub fn merge(a: u32, b: u32, mask: u32) -> u32 {
    pure32!(u32, "lop3.b32 {}, {}, {}, {}, 0xe4;", a, b, mask)
}
