//! Matrix products: accumulator and operand fragments, descriptors, and the chain that needs no shuffle.
//!
//! Small whole numbers make every sum exact in the tensor core's accumulator, so most results are compared for equality.

use crate::model::{e4m3_code, e4m3_value, gather_accumulators, image, integers, product};
use crate::{address, launch, rng};
use half::bf16;
use rand::{RngExt, rngs::StdRng};
use rand_distr::StandardNormal;
use rstest::rstest;
use stem_attn::driver::Launch;
use stem_attn_kernels::abi_probe::{ProbeParams, REGION_BYTES};
use stem_attn_kernels::layout::{a_fragment_e4m3, v_row, v_tile_offset};
use stem_attn_tests::gpu::{Gpu, gpu};

fn e4m3(x: f64) -> [u8; 1] {
    [e4m3_code(x as f32)]
}

fn bf16_bytes(x: f64) -> [u8; 2] {
    bf16::from_f64(x).to_le_bytes()
}

/// Runs a product of images `a`, `b` (and `c`) and returns the accumulator as 64 rows.
fn multiply(gpu: &Gpu, entry: &'static str, registers: usize, [a, b, c]: [&[u8]; 3], params: ProbeParams) -> Vec<Vec<f32>> {
    let (a, b, c, out) = (gpu.upload(a), gpu.upload(b), gpu.upload(c), gpu.poisoned::<f32>(128 * registers));
    let params = ProbeParams { a: address(gpu, &a), b: address(gpu, &b), c: address(gpu, &c), out: address(gpu, &out), ..params };
    launch(gpu, entry, Launch::grid(1, 1, 1), &params, None);
    gather_accumulators(&gpu.download(&out, 128 * registers), registers)
}

/// Whether the first product adds to the accumulator, and what the accumulator starts with.
fn start_of(accumulate: bool) -> (ProbeParams, f64) {
    // What is not added to must not matter: NaN would spread.
    let start = if accumulate { 3.0 } else { f32::NAN };
    let params = ProbeParams { x: i32::from(accumulate), y: start.to_bits() as i32, ..Default::default() };
    (params, if accumulate { 3.0 } else { 0.0 })
}

fn check_exact(got: &[Vec<f32>], expected: &[Vec<f64>], start: f64) {
    for (r, (got, expected)) in got.iter().zip(expected).enumerate() {
        for (c, (&got, &expected)) in got.iter().zip(expected).enumerate() {
            assert_eq!(f64::from(got), expected + start, "row {r}, column {c}");
        }
    }
    assert_eq!((got.len(), got[0].len()), (expected.len(), expected[0].len()));
}

/// The registers that hold A: thread, step along K, register, byte.
fn a_fragments(a: &[Vec<f64>]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(128 * 64);
    for thread in 0..128 {
        for step in 0..4 {
            for (reg, byte) in (0..4).flat_map(|reg| (0..4).map(move |byte| (reg, byte))) {
                let (row, k) = a_fragment_e4m3(thread, reg, byte);
                bytes.extend(e4m3(a[row][32 * step + k]));
            }
        }
    }
    bytes
}

#[rstest]
fn e4m3_from_shared_memory(#[values(false, true)] accumulate: bool) {
    let Some(gpu) = gpu() else { return };
    let mut rng = rng("wgmma_e4m3_ss");
    let (a, b) = (integers(&mut rng, 64, 128, 3), integers(&mut rng, 128, 128, 3));
    let (params, start) = start_of(accumulate);
    let got = multiply(&gpu, "probe_wgmma_e4m3_ss", 64, [&image(&a, e4m3), &image(&b, e4m3), &[]], params);
    check_exact(&got, &product(&a, &b), start);
}

#[rstest]
fn bf16_from_shared_memory(#[values(false, true)] accumulate: bool, #[values(128, 64, 32)] n: usize) {
    let Some(gpu) = gpu() else { return };
    let mut rng = rng("wgmma_bf16_ss");
    // Up to 100: more than e4m3 holds exactly, and the sums are still whole in f32.
    let (a, b) = (integers(&mut rng, 64, 64, 100), integers(&mut rng, n, 64, 100));
    let (params, start) = start_of(accumulate);
    let entry = match n {
        32 => "probe_wgmma_bf16_ss_n32",
        64 => "probe_wgmma_bf16_ss_n64",
        _ => "probe_wgmma_bf16_ss",
    };
    let got = multiply(&gpu, entry, n / 2, [&image(&a, bf16_bytes), &image(&b, bf16_bytes), &[]], params);
    check_exact(&got, &product(&a, &b), start);
}

#[rstest]
fn e4m3_from_registers(#[values(false, true)] accumulate: bool, #[values(128, 136)] n: usize) {
    let Some(gpu) = gpu() else { return };
    let mut rng = rng("wgmma_e4m3_rs");
    let (a, mut b) = (integers(&mut rng, 64, 128, 3), integers(&mut rng, n, 128, 3));
    for row in b.iter_mut().skip(128) {
        row.fill(1.0); // the rows of ones that make row sums
    }
    let mut b_image = image(&b, e4m3);
    if n == 136 {
        b_image.resize(REGION_BYTES as usize, 0x7f);
    }
    let (params, start) = start_of(accumulate);
    let entry = if n == 136 { "probe_wgmma_e4m3_rs_n136" } else { "probe_wgmma_e4m3_rs_n128" };
    let got = multiply(&gpu, entry, n / 2, [&a_fragments(&a), &b_image, &[]], params);
    check_exact(&got, &product(&a, &b), start);
}

/// Standard normal values rounded to e4m3.
fn normals(rng: &mut StdRng, rows: usize, cols: usize) -> Vec<Vec<f64>> {
    let mut one = || e4m3_value(e4m3_code(rng.sample(StandardNormal)));
    (0..rows).map(|_| (0..cols).map(|_| one()).collect()).collect()
}

/// Checks against a bound relative to the sum of magnitudes: the e4m3 accumulator keeps about 14 bits, and each of 128
/// products is cut to them. A wrong order of elements is off by a tenth and more.
fn check_close(got: &[Vec<f32>], a: &[Vec<f64>], b: &[Vec<f64>]) {
    let magnitudes = |m: &[Vec<f64>]| m.iter().map(|row| row.iter().map(|x| x.abs()).collect()).collect::<Vec<Vec<f64>>>();
    let (expected, sizes) = (product(a, b), product(&magnitudes(a), &magnitudes(b)));
    for (r, (got, (expected, sizes))) in got.iter().zip(expected.iter().zip(&sizes)).enumerate() {
        for (c, ((&got, expected), size)) in got.iter().zip(expected).zip(sizes).enumerate() {
            let error = (f64::from(got) - expected).abs();
            assert!(error <= size / 512.0, "row {r}, column {c}: {got} instead of {expected}");
        }
    }
}

#[test]
fn e4m3_sums_keep_enough_bits() {
    let Some(gpu) = gpu() else { return };
    let mut rng = rng("wgmma_e4m3_normal");
    let (a, b) = (normals(&mut rng, 64, 128), normals(&mut rng, 128, 128));
    let got = multiply(&gpu, "probe_wgmma_e4m3_ss", 64, [&image(&a, e4m3), &image(&b, e4m3), &[]], start_of(false).0);
    check_close(&got, &a, &b);
}

#[test]
fn packed_scores_feed_the_value_product_without_shuffles() {
    let Some(gpu) = gpu() else { return };
    let mut rng = rng("wgmma_chain");
    const SCALE: f32 = 0.25;
    // Whole numbers keep S exact, so that P is rounded alike on both sides.
    let (q, k, v) = (integers(&mut rng, 64, 128, 2), integers(&mut rng, 128, 128, 2), normals(&mut rng, 128, 128));
    let mut tile = vec![0; 128 * 128];
    for (token, row) in v.iter().enumerate() {
        for (d, &x) in row.iter().enumerate() {
            tile[v_tile_offset(d, token)] = e4m3_code(x as f32);
        }
    }
    let params = ProbeParams { x: SCALE.to_bits() as i32, ..Default::default() };
    let got = multiply(&gpu, "probe_wgmma_chain", 64, [&image(&q, e4m3), &image(&k, e4m3), &tile], params);
    let p: Vec<Vec<f64>> =
        product(&q, &k).iter().map(|row| row.iter().map(|&s| e4m3_value(e4m3_code(s as f32 * SCALE))).collect()).collect();
    // Columns of the product are the tile's rows.
    let transposed: Vec<Vec<f64>> = (0..128).map(|n| v.iter().map(|row| row[v_row(n)]).collect()).collect();
    check_close(&got, &p, &transposed);
}
