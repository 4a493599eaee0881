//! e4m3 rounding, against a search over all values, and quantisation.

use float8::F8E4M3;
use half::bf16;
use proptest::prelude::*;
use stem_attn::{Error, fp8};

/// The value of a code from the definition of the format, in f64.
fn value(code: u8) -> f64 {
    let (sign, exponent, mantissa) = (code >> 7, i32::from(code >> 3 & 15), f64::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f64::NAN,
        (0, _) => mantissa / 8.0 * 2f64.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
    };
    if sign == 1 { -magnitude } else { magnitude }
}

/// Nearest code by search: on a tie the even one; the sign travels alone.
fn nearest(x: f32) -> u8 {
    if x.is_nan() {
        return 0x7F;
    }
    // Saturation first: far from every value, the distances below would all round to the same.
    let magnitude = f64::from(x.abs()).min(448.0);
    let best = (0..0x7F).min_by(|&a, &b| {
        let distance = |code: u8| (value(code) - magnitude).abs();
        distance(a).total_cmp(&distance(b)).then((a & 1).cmp(&(b & 1)))
    });
    best.unwrap() | if x.is_sign_negative() { 0x80 } else { 0 }
}

#[test]
fn every_code_decodes_to_its_value_and_back() {
    for code in 0..=255u8 {
        let decoded = fp8::decode(F8E4M3::from_bits(code));
        if code & 0x7F == 0x7F {
            assert!(decoded.is_nan());
            assert_eq!(fp8::encode(decoded).to_bits(), 0x7F);
        } else {
            assert_eq!(f64::from(decoded), value(code), "code {code:#x}");
            assert_eq!(decoded.is_sign_negative(), code >= 0x80);
            assert_eq!(fp8::encode(decoded).to_bits(), code);
        }
    }
}

#[test]
fn midpoints_go_to_the_even_code_and_their_neighbours_to_the_nearer() {
    for low in 0..0x7Eu8 {
        let midpoint = ((value(low) + value(low + 1)) / 2.0) as f32;
        for (x, expected) in
            [(midpoint, low + (low & 1)), (midpoint.next_down(), low), (midpoint.next_up(), low + 1), (-midpoint, (low + (low & 1)) | 0x80)]
        {
            assert_eq!(fp8::encode(x).to_bits(), expected, "{x} above {low:#x}");
            assert_eq!(fp8::encode(x).to_bits(), nearest(x));
        }
    }
}

#[test]
fn overflow_saturates_and_nan_stays() {
    for x in [448.0, 448.1, 463.9, 464.0, 464.1, 480.0, 512.0, 1e9, f32::MAX, f32::INFINITY] {
        assert_eq!(fp8::encode(x).to_bits(), 0x7E, "{x}");
        assert_eq!(fp8::encode(-x).to_bits(), 0xFE, "-{x}");
    }
    assert_eq!(fp8::encode(f32::NAN).to_bits(), 0x7F);
    assert_eq!(fp8::encode(-f32::NAN).to_bits(), 0x7F, "the instruction gives one NaN");
    for x in [f32::MIN_POSITIVE, f32::from_bits(1), 2f32.powi(-10)] {
        assert_eq!(fp8::encode(x).to_bits(), 0, "{x}");
        assert_eq!(fp8::encode(-x).to_bits(), 0x80);
    }
}

#[test]
fn every_bf16_rounds_as_the_search_says() {
    for bits in 0..=u16::MAX {
        let x = bf16::from_bits(bits).to_f32();
        assert_eq!(fp8::encode(x).to_bits(), nearest(x), "{x}");
        if x >= 0.0 {
            assert_eq!(f64::from(fp8::round_magnitude(x)), value(nearest(x)), "{x}");
        }
    }
}

proptest! {
    #[test]
    fn every_f32_rounds_as_the_search_says(bits in any::<u32>(), small in -500f32..500.0) {
        for x in [f32::from_bits(bits), small, small / 4096.0] {
            prop_assert_eq!(fp8::encode(x).to_bits(), nearest(x), "{}", x);
        }
    }

    #[test]
    fn quantised_rows_are_within_half_a_step(rows in prop::collection::vec(prop::array::uniform32(-3f32..3.0), 4..=16)) {
        let x: Vec<f32> = rows.concat();
        let x = &x[..x.len() / 128 * 128];
        let (codes, scales) = fp8::quantize_per_token_head("q", x).unwrap();
        prop_assert_eq!(scales.len(), x.len() / 128);
        for (i, (&x, &code)) in x.iter().zip(&codes).enumerate() {
            let scale = scales[i / 128];
            // Half a step is 1/16 of the value, or of the subnormal steps of 2^-9.
            let tolerance = (x.abs() / 16.0).max(scale / 1024.0) * 1.0001;
            prop_assert!((fp8::decode(code) * scale - x).abs() <= tolerance, "{} as {} * {}", x, fp8::decode(code), scale);
        }
    }
}

#[test]
fn scales_follow_the_largest_element() {
    let mut x = vec![0f32; 256];
    x[128 + 5] = -896.0;
    x[128 + 6] = 2.0;
    let (codes, scales) = fp8::quantize_per_token_head("q", &x).unwrap();
    assert_eq!(scales, [1.0, 2.0], "a row of zeros has scale 1");
    assert_eq!((fp8::decode(codes[133]), fp8::decode(codes[134])), (-448.0, 1.0));
    let (codes, scale) = fp8::quantize_per_tensor("k", &x).unwrap();
    assert_eq!((scale, fp8::decode(codes[133])), (2.0, -448.0));
    assert_eq!(fp8::quantize_per_tensor::<f32>("k", &[]).unwrap().1, 1.0);
    // The smallest subnormal still gets a scale whose reciprocal is finite.
    let (codes, scale) = fp8::quantize_per_tensor("k", &[f32::from_bits(1), 0.0]).unwrap();
    assert!((1.0 / scale).is_finite() && !fp8::decode(codes[0]).is_nan());
}

#[test]
fn append_rounds_the_product_with_the_reciprocal() {
    let x: Vec<bf16> = (0..1000).map(|i| bf16::from_f32((i as f32 - 500.0) * 0.37)).chain([bf16::NAN]).collect();
    let scale = 0.3;
    let mut codes = Vec::new();
    fp8::append(&x, scale, 1.0, &mut codes);
    for (x, code) in x.iter().zip(&codes) {
        assert_eq!(code.to_bits(), nearest(x.to_f32() * (1.0 / scale)));
    }
    assert_eq!(codes[1000].to_bits(), 0x7F);
}

#[test]
fn bad_tensors_are_named() {
    let mut x = vec![1f32; 128];
    assert!(matches!(fp8::quantize_per_token_head("q", &x[..100]), Err(Error::Shape { tensor: "q", .. })));
    x[7] = f32::NAN;
    assert!(matches!(fp8::quantize_per_token_head("q", &x), Err(Error::Value { name: "q", .. })));
    x[7] = f32::INFINITY;
    assert!(matches!(fp8::quantize_per_tensor("v", &x), Err(Error::Value { name: "v", .. })));
}
