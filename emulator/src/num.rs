//! Small floats: codes to values and back, to nearest even.

/// The value of an f16 code.
#[inline(always)]
pub fn f16_to_f32(code: u16) -> f32 {
    let magnitude = u32::from(code & 0x7fff) << 13;
    let sign = u32::from(code & 0x8000) << 16;
    // The exponent's bias differs by 112: one exact product mends it, for subnormal codes too.
    let finite = f32::from_bits(magnitude) * f32::from_bits((112 + 127) << 23);
    let bits = if magnitude >= 0x7c00 << 13 { magnitude | 0x7f80_0000 } else { finite.to_bits() };
    f32::from_bits(bits | sign)
}

/// The f16 code nearest to a value; what is too large becomes infinite.
#[inline(always)]
pub fn f64_to_f16(x: f64) -> u16 {
    let sign = if x.is_sign_negative() { 0x8000 } else { 0 };
    let a = x.abs();
    if a.is_nan() {
        0x7fff
    } else if a >= 65520.0 {
        sign | 0x7c00
    } else {
        sign | nearest(a, 10, -14)
    }
}

/// The f16 code nearest to a value; what is too large becomes infinite.
#[inline(always)]
pub fn f32_to_f16(x: f32) -> u16 {
    f64_to_f16(f64::from(x))
}

/// The value of a bf16 code.
#[inline(always)]
pub fn bf16_to_f32(code: u16) -> f32 {
    f32::from_bits(u32::from(code) << 16)
}

/// The bf16 code nearest to a value.
#[inline(always)]
pub fn f32_to_bf16(x: f32) -> u16 {
    if x.is_nan() {
        return 0x7fff;
    }
    let bits = x.to_bits();
    // At most 0xff80_0000 + 0x8000: no overflow.
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// The value of an e4m3 code.
#[inline(always)]
pub fn e4m3_to_f32(code: u8) -> f32 {
    let magnitude = u32::from(code & 0x7f) << 20;
    let sign = u32::from(code & 0x80) << 24;
    let finite = f32::from_bits(magnitude) * f32::from_bits((120 + 127) << 23);
    let bits = if code & 0x7f == 0x7f { 0x7fff_ffff } else { finite.to_bits() };
    f32::from_bits(bits | sign)
}

/// The e4m3 code nearest to a value; what is too large becomes the largest finite one.
#[inline(always)]
pub fn f32_to_e4m3(x: f32) -> u8 {
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let a = f64::from(x.abs());
    if a.is_nan() {
        0x7f
    } else if a >= 448.0 {
        sign | 0x7e
    } else {
        sign | nearest(a, 3, -6).min(0x7e) as u8
    }
}

/// Zero instead of a subnormal number.
#[inline(always)]
pub fn flush(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0f32.copysign(x) } else { x }
}

/// The code nearest to a positive value in a format with `mantissa` bits whose smallest normal number is `2^least`.
#[inline(always)]
fn nearest(a: f64, mantissa: i32, least: i32) -> u16 {
    let exponent = ((a.to_bits() >> 52) as i32 - 1023).max(least);
    // In this binade of f64 the last bit is worth what the last bit of the result is worth, so that the sum rounds.
    let anchor = f64::from_bits(((exponent + 52 - mantissa + 1023) as u64) << 52);
    let steps = (a + anchor).to_bits() - anchor.to_bits();
    // `steps` holds the leading one of a normal number, which adds one to the exponent's field.
    (((exponent - least) as u64) << mantissa) as u16 + steps as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use float8::F8E4M3;
    use half::{bf16, f16};

    #[test]
    fn every_code_has_the_value_of_the_half_crate() {
        for code in 0..=u16::MAX {
            let (a, b) = (f16_to_f32(code), f16::from_bits(code).to_f32());
            assert!(a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan(), "f16 {code:#x}: {a} {b}");
            let (a, b) = (bf16_to_f32(code), bf16::from_bits(code).to_f32());
            assert!(a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan(), "bf16 {code:#x}: {a} {b}");
        }
        for code in 0..=u8::MAX {
            let (a, b) = (e4m3_to_f32(code), F8E4M3::from_bits(code).to_f32());
            assert!(a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan(), "e4m3 {code:#x}: {a} {b}");
        }
    }

    /// Every code's value, the middle between it and the next, and the neighbours of both.
    fn around(value: f32, next: f32) -> impl Iterator<Item = f32> {
        let middle = ((f64::from(value) + f64::from(next)) / 2.0) as f32;
        [value, middle].into_iter().flat_map(|x| [x, x.next_down(), x.next_up()]).flat_map(|x| [x, -x])
    }

    #[test]
    fn rounding_is_that_of_the_half_crate() {
        for code in 0..0x7c00 {
            for x in around(f16_to_f32(code), f16_to_f32(code + 1)) {
                assert_eq!(f32_to_f16(x), f16::from_f32(x).to_bits(), "{x:e}");
            }
            let next = if code == 0x7bff { 65536.0 } else { f16_to_f32(code + 1) };
            for x in around(f16_to_f32(code), next) {
                assert_eq!(f64_to_f16(f64::from(x)), f16::from_f64(f64::from(x)).to_bits(), "{x:e}");
            }
        }
        for code in 0..0x7f80 {
            for x in around(bf16_to_f32(code), bf16_to_f32(code + 1)) {
                assert_eq!(f32_to_bf16(x), bf16::from_f32(x).to_bits(), "{x:e}");
            }
        }
    }

    #[test]
    fn rounding_is_that_of_the_float8_crate() {
        for code in 0..0x7e {
            for x in around(e4m3_to_f32(code), e4m3_to_f32(code + 1)) {
                assert_eq!(f32_to_e4m3(x), F8E4M3::from_f32(x).to_bits(), "{x:e}");
            }
        }
        for x in [448.0, 449.0, 464.0, 465.0, 1e30, f32::INFINITY] {
            assert_eq!((f32_to_e4m3(x), f32_to_e4m3(-x)), (0x7e, 0xfe), "{x:e}");
        }
    }

    #[test]
    fn nan_stays_and_subnormals_flush() {
        assert_eq!((f32_to_f16(f32::NAN), f32_to_bf16(f32::NAN), f32_to_e4m3(f32::NAN)), (0x7fff, 0x7fff, 0x7f));
        assert_eq!(flush(-1e-40).to_bits(), 0x8000_0000);
        assert_eq!(flush(f32::MIN_POSITIVE), f32::MIN_POSITIVE);
        assert!(flush(f32::NAN).is_nan());
    }
}
