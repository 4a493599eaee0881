//! Conversions and arithmetic.

use crate::model::{any_f32, e4m3_code, e4m3_value};
use crate::{address, launch, rng, run};
use half::bf16;
use rand::RngExt;
use stem_attn::driver::Launch;
use stem_attn_kernels::abi_probe::{MATH_WORDS, ProbeParams};
use stem_attn_tests::gpu::gpu;

/// The neighbours of a value: one unit in the last place down, itself, one up.
fn around(x: f32) -> [f32; 3] {
    [f32::from_bits(x.to_bits().wrapping_sub(1)), x, f32::from_bits(x.to_bits().wrapping_add(1))]
}

/// Appends copies of the last element until the length is a multiple of `unit`.
fn pad(values: &mut Vec<f32>, unit: usize) {
    let last = values.last().copied().unwrap_or(0.0);
    values.resize(values.len().next_multiple_of(unit), last);
}

#[test]
fn e4m3_codes_are_rounded_saturated_and_packed_in_order() {
    let Some(gpu) = gpu() else { return };
    let mut rng = rng("cvt_e4m3");
    let mut x = vec![0.0, -0.0, 448.0, 449.0, 463.9, 464.0, 465.0, 1e9, f32::MAX, f32::INFINITY, f32::NAN, -f32::NAN, 1e-40];
    for code in 0..0x7e {
        // Every code, and every tie between two, with its neighbours on both sides.
        x.extend(around(e4m3_value(code) as f32));
        x.extend(around(((e4m3_value(code) + e4m3_value(code + 1)) / 2.0) as f32));
    }
    x.extend(x.clone().into_iter().map(|x| -x));
    x.extend((0..4096).map(|_| any_f32(&mut rng)));
    x.extend((0..4096).map(|_| rng.random_range(-500.0f32..500.0)));
    pad(&mut x, 4 * 128);
    let count = x.len() / 4;
    let out: Vec<u32> = run(&gpu, "probe_cvt_e4m3", ProbeParams { count: count as i32, ..Default::default() }, &x, count);
    for (i, (&x, code)) in x.iter().zip(out.iter().flat_map(|w| w.to_le_bytes())).enumerate() {
        assert_eq!(code, e4m3_code(x), "element {i}: {x:e} ({:#x})", x.to_bits());
    }
}

#[test]
fn every_e4m3_code_reads_exactly() {
    let Some(gpu) = gpu() else { return };
    let count = 128;
    let codes: Vec<u8> = (0..4 * count).map(|i| (i * 37 % 256) as u8).collect();
    let words: Vec<u32> = codes.chunks(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect();
    let params = ProbeParams { count: count as i32, ..Default::default() };
    let out: Vec<f32> = run(&gpu, "probe_cvt_from_e4m3", params, &words, 4 * count);
    for (&code, &x) in codes.iter().zip(&out) {
        let expected = e4m3_value(code) as f32;
        assert!(x.to_bits() == expected.to_bits() || x.is_nan() && expected.is_nan(), "code {code:#x}: {x} instead of {expected}");
    }
}

#[test]
fn bf16_pairs_round_to_nearest_even() {
    let Some(gpu) = gpu() else { return };
    let mut rng = rng("cvt_bf16");
    let mut x = vec![0.0, -0.0, f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-40];
    // Ties (the dropped half is exactly 0x8000) and their neighbours.
    x.extend((0..2048).flat_map(|_| around(f32::from_bits(rng.random::<u32>() & 0xffff_0000 | 0x8000))));
    x.extend((0..4096).map(|_| any_f32(&mut rng)));
    pad(&mut x, 2 * 128);
    let count = x.len() / 2;
    let out: Vec<u32> = run(&gpu, "probe_cvt_bf16", ProbeParams { count: count as i32, ..Default::default() }, &x, 3 * count);
    for (pair, got) in x.chunks(2).zip(out.chunks(3)) {
        for (i, &x) in pair.iter().enumerate() {
            let code = (got[0] >> (16 * i)) as u16;
            let (rounded, expected) = (bf16::from_bits(code), bf16::from_f32(x));
            assert!(rounded == expected && rounded.is_sign_negative() == expected.is_sign_negative() || x.is_nan() && rounded.is_nan());
            assert_eq!(got[1 + i], u32::from(code) << 16, "widening {code:#x}");
        }
    }
}

/// The bound of a function that the PTX manual gives with 2^-22 or one unit in the last place, with a margin of two.
const APPROXIMATE: f64 = 1.0 / (1 << 21) as f64;

/// Relative difference, absolute below 1 where `floor` is 1.
fn close(got: f32, expected: f64, floor: f64) -> bool {
    (f64::from(got) - expected).abs() <= APPROXIMATE * expected.abs().max(floor)
}

fn check_math(a: f32, b: f32, c: f32, got: &[f32]) {
    let x = f64::from(a);
    let normal = |x: f64| x.abs() >= f64::from(f32::MIN_POSITIVE) && x.abs() <= f64::from(f32::MAX);
    let what = format!("a = {a:e}, b = {b:e}, c = {c:e}: {got:?}");
    if a > -126.0 && a < 128.0 {
        assert!(close(got[0], x.exp2(), 0.0), "ex2, {what}");
    } else if a <= -127.0 {
        assert_eq!(got[0], 0.0, "ex2, {what}");
    } else if a >= 128.0 {
        assert_eq!(got[0], f32::INFINITY, "ex2, {what}");
    }
    if a > 0.0 && normal(x) {
        assert!(close(got[1], x.log2(), 1.0), "lg2, {what}");
    }
    if normal(x) && normal(1.0 / x) {
        assert!(close(got[2], 1.0 / x, 0.0), "rcp, {what}");
    }
    if a >= 0.0 {
        assert_eq!(got[3].to_bits(), a.sqrt().to_bits(), "sqrt, {what}");
    }
    let max = a.max(b);
    assert!(got[4] == max || got[4].is_nan() && max.is_nan(), "max, {what}");
    let min = a.min(b);
    assert!(got[6] == min || got[6].is_nan() && min.is_nan(), "min, {what}");
    let fused = a.mul_add(b, c);
    if [x, f64::from(b), f64::from(c), f64::from(fused)].into_iter().all(normal) {
        assert_eq!(got[5].to_bits(), fused.to_bits(), "fma, {what}");
    }
}

#[test]
fn arithmetic_is_as_accurate_as_its_doc_says() {
    let Some(gpu) = gpu() else { return };
    let mut rng = rng("math");
    let mut a = vec![0.0, 1.0, 0.5, 2.0, f32::NEG_INFINITY, f32::NAN, -126.0, 127.999, -150.0, 1e-6];
    a.extend((0..4096).map(|_| rng.random_range(-140.0f32..140.0)));
    a.extend((0..4096).map(|_| rng.random_range(-100.0f32..100.0).exp2()));
    a.extend((0..1024).map(|_| rng.random_range(0.99f32..1.01)));
    pad(&mut a, 128);
    let b: Vec<f32> = a.iter().map(|&a| if a.is_nan() { 1.0 } else { rng.random_range(-100.0..100.0) }).collect();
    let c: Vec<f32> = a.iter().map(|_| rng.random_range(-1000.0..1000.0)).collect();
    let (da, db, dc, out) = (gpu.upload(&a), gpu.upload(&b), gpu.upload(&c), gpu.poisoned::<f32>(a.len() * MATH_WORDS));
    let params = ProbeParams {
        a: address(&gpu, &da),
        b: address(&gpu, &db),
        c: address(&gpu, &dc),
        out: address(&gpu, &out),
        count: a.len() as i32,
        ..Default::default()
    };
    launch(&gpu, "probe_math", Launch::grid(1, 1, 1), &params, None);
    let got = gpu.download(&out, a.len() * MATH_WORDS);
    for (i, got) in got.chunks(MATH_WORDS).enumerate() {
        check_math(a[i], b[i], c[i], got);
    }
    assert_eq!(got[1], f32::NEG_INFINITY, "lg2 of 0");
    assert_eq!(got[4 * MATH_WORDS], 0.0, "ex2 of minus infinity");
    assert_eq!(got[5 * MATH_WORDS + 4], 1.0, "max of NaN and 1");
}
