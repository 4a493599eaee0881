//! Packed f16 arithmetic, products with f16 accumulators, rows of Q made to fit them, and asking a barrier.

use crate::model::{e4m3_code, e4m3_value, gather_accumulators, image, integers, product};
use crate::{address, launch, rng, run};
use half::f16;
use rand::RngExt;
use rand_distr::StandardNormal;
use rstest::rstest;
use stem_attn::driver::Launch;
use stem_attn_kernels::abi_probe::{HALF_WORDS, ProbeParams};
use stem_attn_kernels::layout::swizzle_128;
use stem_attn_tests::gpu::{Gpu, gpu};

fn halves(word: u32) -> [f16; 2] {
    [f16::from_bits(word as u16), f16::from_bits((word >> 16) as u16)]
}

fn same(got: f16, want: f16) -> bool {
    got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan() || got == want && got == f16::ZERO
}

/// Rounded to f16 once, to nearest even. (`f16::from_f64` may round to f32 on the way.)
fn rounded(x: f64) -> f16 {
    if !x.is_finite() || x == 0.0 {
        return f16::from_f64(x);
    }
    // A unit of the last place: 2^-10 of the value's power of two, 2^-24 at least.
    let unit = (x.abs().log2().floor().max(-14.0) - 10.0).exp2();
    f16::from_f64((x / unit).round_ties_even() * unit)
}

#[test]
fn the_model_rounds_once() {
    // Just under a tie and just over one, by less than f32 can tell.
    assert_eq!(rounded(1.94287109375 - 1e-12).to_bits(), 0x3fc5);
    assert_eq!(rounded(134.0625 + 6e-8).to_bits(), 0x5831);
    assert_eq!(
        [rounded(134.0625), rounded(65519.9), rounded(65520.0), rounded(-2f64.powi(-25))].map(f16::to_bits),
        [0x5830, 0x7bff, 0x7c00, 0x8000]
    );
}

/// What each word of `probe_half` must be, for the operations that are exact up to one rounding.
fn exact(word: usize, a: f16, b: f16, c: f16) -> Option<f16> {
    let (x, y, z) = (a.to_f64(), b.to_f64(), c.to_f64());
    let fused = rounded(x.mul_add(y, z));
    Some(match word {
        0 => fused,
        1 if fused.is_nan() => f16::ZERO,
        1 => rounded(x.mul_add(y, z).clamp(0.0, 1.0)),
        2 => rounded(x - y),
        3 => rounded(x * y),
        4 => rounded(x.abs() + y),
        5 => rounded(x.max(y)),
        6 => rounded(x.min(y)),
        8 => {
            if x > y {
                c
            } else {
                a
            }
        }
        _ => return None,
    })
}

#[test]
fn packed_halves_are_each_computed_alone() {
    let Some(gpu) = gpu() else { return };
    let mut rng = rng("half");
    let special = [0.0, -0.0, 1.0, 65504.0, -65504.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 6e-8, 2e-5, -11.0, 448.0];
    let mut value = || match rng.random_range(0..4) {
        0 => f16::from_f32(special[rng.random_range(0..special.len())]),
        1 => f16::from_bits(rng.random()),
        2 => f16::from_f32(rng.random_range(-20.0..20.0)),
        _ => f16::from_f32(rng.sample(StandardNormal)),
    };
    let count = 128 * 64;
    let mut array = || -> Vec<u32> { (0..count).map(|_| u32::from(value().to_bits()) | u32::from(value().to_bits()) << 16).collect() };
    let (a, b, c) = (array(), array(), array());
    let (da, db, dc, out) = (gpu.upload(&a), gpu.upload(&b), gpu.upload(&c), gpu.poisoned::<u32>(count * HALF_WORDS));
    let params = ProbeParams {
        a: address(&gpu, &da),
        b: address(&gpu, &db),
        c: address(&gpu, &dc),
        out: address(&gpu, &out),
        count: count as i32,
        ..Default::default()
    };
    launch(&gpu, "probe_half", Launch::grid(1, 1, 1), &params, None);
    for (i, got) in gpu.download(&out, count * HALF_WORDS).chunks(HALF_WORDS).enumerate() {
        let (x, y, z) = (halves(a[i]), halves(b[i]), halves(c[i]));
        let what = format!("a = {x:?}, b = {y:?}, c = {z:?}: {got:x?}");
        for h in 0..2 {
            for (word, &got) in got.iter().enumerate() {
                if let Some(want) = exact(word, x[h], y[h], z[h]) {
                    assert!(same(halves(got)[h], want), "word {word}, half {h}: {want} wanted, {what}");
                }
            }
            let (power, exponent) = (halves(got[7])[h].to_f64(), x[h].to_f64());
            let want = exponent.exp2();
            if want > 65504.0 * 1.001 {
                assert_eq!(power, f64::INFINITY, "ex2, {what}");
            } else if !exponent.is_nan() && want < 65504.0 * 0.999 {
                // 2^-9.9 of the value, or a unit of the subnormals.
                assert!((power - want).abs() <= want * 1.05e-3 + 2f64.powi(-24), "ex2, {what}");
            }
        }
        let any = x[0] > y[0] || x[1] > y[1];
        assert_eq!(got[9], u32::from(any), "any, {what}");
        let (low, high) = (a[i] & 0xffff, a[i] >> 16);
        assert_eq!(got[10..14], [low | low << 16, high | high << 16, low | b[i] << 16, high | b[i] & 0xffff_0000], "halves, {what}");
        let codes = [x[0], x[1], y[0], y[1]].map(|x| e4m3_code(x.to_f32()));
        for (code, want) in got[14].to_le_bytes().into_iter().zip(codes) {
            assert!(code == want || code & 0x7f == 0x7f && want & 0x7f == 0x7f, "e4m3, {what}");
        }
    }
}

/// Runs the product with f16 accumulators on images of 64 rows and of 64 or 256; 64 x 64 or 64 x 256 elements.
fn multiply(gpu: &Gpu, a: &[Vec<f64>], b: &[Vec<f64>], accumulate: bool) -> Vec<Vec<f32>> {
    let encode = |x: f64| [e4m3_code(x as f32)];
    let registers = b.len() / 4;
    let (da, db, out) = (gpu.upload(&image(a, encode)), gpu.upload(&image(b, encode)), gpu.poisoned::<u32>(128 * registers));
    let start = if accumulate { f16::from_f32(3.0) } else { f16::NAN };
    let params = ProbeParams {
        a: address(gpu, &da),
        b: address(gpu, &db),
        out: address(gpu, &out),
        x: i32::from(accumulate),
        y: (u32::from(start.to_bits()) * 0x1_0001) as i32,
        ..Default::default()
    };
    let entry = if registers == 64 { "probe_wgmma_e4m3_f16_n256" } else { "probe_wgmma_e4m3_f16" };
    launch(gpu, entry, Launch::grid(1, 1, 1), &params, None);
    // Register 2 I + h packs columns 8 I + 2 (lane % 4) and the next of row h: elements 4 I + 2 h and 4 I + 2 h + 1 of the f32 form.
    let unpacked: Vec<f32> = gpu.download(&out, 128 * registers).into_iter().flat_map(|w| halves(w).map(f16::to_f32)).collect();
    gather_accumulators(&unpacked, 2 * registers)
}

#[rstest]
fn f16_accumulators_hold_whole_numbers(#[values(false, true)] accumulate: bool, #[values(64, 256)] n: usize) {
    let Some(gpu) = gpu() else { return };
    let mut rng = rng("wgmma_f16");
    // Sums of up to 128 * 9 = 1,152: exact in f16.
    let (a, b) = (integers(&mut rng, 64, 128, 3), integers(&mut rng, n, 128, 3));
    let got = multiply(&gpu, &a, &b, accumulate);
    let start = if accumulate { 3.0 } else { 0.0 };
    assert_eq!((got.len(), got[0].len()), (64, n));
    for (r, (got, want)) in got.iter().zip(product(&a, &b)).enumerate() {
        for (c, (&got, want)) in got.iter().zip(want).enumerate() {
            assert_eq!(f64::from(got), want + start, "row {r}, column {c}");
        }
    }
}

#[test]
fn f16_accumulators_round_once_a_step() {
    let Some(gpu) = gpu() else { return };
    let mut rng = rng("wgmma_f16_rounding");
    let mut random = |scale: f64| -> Vec<Vec<f64>> {
        let mut value = || e4m3_value(e4m3_code((rng.sample::<f64, _>(StandardNormal) * scale) as f32));
        (0..64).map(|_| (0..128).map(|_| value()).collect()).collect()
    };
    let (a, b) = (random(1.0), random(90.0));
    let got = multiply(&gpu, &a, &b, false);
    let (mut square, mut units, mut n) = (0.0, 0.0, 0.0);
    for (x, got) in a.iter().zip(&got) {
        for (y, &got) in b.iter().zip(got) {
            let (mut sum, mut largest, mut absolute) = (0.0f64, 0.0f64, 0.0);
            for (k, (x, y)) in x.iter().zip(y).enumerate() {
                sum += x * y;
                absolute += (x * y).abs();
                if k % 32 == 31 {
                    largest = largest.max(sum.abs());
                }
            }
            let error = f64::from(got) - sum;
            // Four sums kept to 11 bits (truncated at worst), and products aligned to the largest of 32 to 13 bits or so.
            assert!(error.abs() <= 4.0 * largest * 2f64.powi(-10) + absolute * 2f64.powi(-12), "{got} instead of {sum}");
            square += error * error;
            units += error;
            n += 1.0;
        }
    }
    println!("f16 accumulators: error rms {:.3}, mean {:.3}", (square / n).sqrt(), units / n);
}

#[test]
fn shrunk_rows_keep_every_score_in_f16() {
    let Some(gpu) = gpu() else { return };
    let mut rng = rng("shrink");
    let mut rows: Vec<Vec<u8>> = Vec::new();
    for row in 0..128 {
        let scale: f32 = [0.0, 1e-3, 0.3, 1.0, 30.0, 448.0][row % 6];
        rows.push(
            (0..128)
                .map(|d| match row {
                    1 => 0x7e,
                    2 => 0xfe,
                    3 => u8::from(d == 77) * 0x7e,
                    _ => e4m3_code(rng.sample::<f32, _>(StandardNormal) * scale),
                })
                .collect(),
        );
    }
    let mut bytes = vec![0u8; 128 * 128];
    for (r, row) in rows.iter().enumerate() {
        for (d, &code) in row.iter().enumerate() {
            bytes[swizzle_128(r * 128 + d)] = code;
        }
    }
    let out: Vec<u32> = run(&gpu, "probe_shrink", ProbeParams::default(), &bytes, 128 + 128 * 32);
    let image: Vec<u8> = out[128..].iter().flat_map(|w| w.to_le_bytes()).collect();
    for (r, row) in rows.iter().enumerate() {
        let undo = f64::from(f32::from_bits(out[r]));
        assert!(undo >= 1.0 && undo.log2().fract() == 0.0, "row {r}: {undo}");
        let before: f64 = row.iter().map(|&code| e4m3_value(code).abs()).sum();
        let mut after = 0.0;
        for (d, &code) in row.iter().enumerate() {
            let want = e4m3_code((e4m3_value(code) / undo) as f32);
            let got = image[swizzle_128(r * 128 + d)];
            assert!(got == want || e4m3_value(got) == e4m3_value(want), "row {r}, dimension {d}: {got:#x} instead of {want:#x}");
            after += e4m3_value(got).abs();
        }
        assert!(after * 448.0 <= 65504.0, "row {r}: scores up to {}", after * 448.0);
        // No more than needed.
        assert!(undo == 1.0 || before / undo > 60.0, "row {r}: {before} shrunk by {undo}");
    }
}

#[test]
fn asking_a_barrier_does_not_wait() {
    let Some(gpu) = gpu() else { return };
    let out: Vec<u32> = run(&gpu, "probe_test_wait", ProbeParams::default(), &[0u32], 128 * 4);
    for (thread, got) in out.chunks(4).enumerate() {
        assert_eq!(got, [0, 1, 0, 1], "thread {thread}");
    }
}
