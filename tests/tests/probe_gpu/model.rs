//! CPU models that the probes are compared with, written from the formats' definitions.

use rand::{RngExt, rngs::StdRng};
use stem_attn_kernels::layout::{accumulator_col, accumulator_row, swizzle_128};

/// Value of an e4m3 code: sign, four exponent bits of bias 7, three mantissa bits, no infinity, one NaN of each sign.
pub fn e4m3_value(code: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f64::NAN,
        (0, _) => mantissa / 8.0 * 2f64.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
    };
    if code & 0x80 != 0 { -magnitude } else { magnitude }
}

/// The code nearest to `x` by search: ties to the even code, saturation at 448, every NaN to 0x7f.
pub fn e4m3_code(x: f32) -> u8 {
    if x.is_nan() {
        return 0x7f;
    }
    let distance = |code: u8| (e4m3_value(code) - f64::from(x.abs())).abs();
    let nearest = (1..=0x7e).fold(0u8, |best, code| match distance(code).total_cmp(&distance(best)) {
        std::cmp::Ordering::Less => code,
        std::cmp::Ordering::Equal if code % 2 == 0 => code,
        _ => best,
    });
    // Infinity is as far from every code: it saturates.
    let magnitude = if x.is_infinite() { 0x7e } else { nearest };
    magnitude | if x.is_sign_negative() { 0x80 } else { 0 }
}

/// Any bit pattern of f32 with equal chance: every exponent, subnormals, infinities and NaN.
pub fn any_f32(rng: &mut StdRng) -> f32 {
    f32::from_bits(rng.random())
}

/// A matrix of whole numbers from `-limit` to `limit`.
pub fn integers(rng: &mut StdRng, rows: usize, cols: usize, limit: i32) -> Vec<Vec<f64>> {
    (0..rows).map(|_| (0..cols).map(|_| f64::from(rng.random_range(-limit..=limit))).collect()).collect()
}

/// The matrix as rows of 128 bytes in swizzled shared memory, elements encoded by `encode` (little-endian).
pub fn image<const N: usize>(matrix: &[Vec<f64>], encode: impl Fn(f64) -> [u8; N]) -> Vec<u8> {
    let mut bytes = vec![0; matrix.len() * 128];
    for (r, row) in matrix.iter().enumerate() {
        assert_eq!(row.len() * N, 128);
        for (c, byte) in row.iter().flat_map(|&x| encode(x)).enumerate() {
            bytes[swizzle_128(r * 128 + c)] = byte;
        }
    }
    bytes
}

/// The accumulators of 128 threads, `registers` each, as a matrix of 64 rows. Every element must be named exactly once.
pub fn gather_accumulators(threads: &[f32], registers: usize) -> Vec<Vec<f32>> {
    let mut matrix = vec![vec![None; 2 * registers]; 64];
    for (at, &x) in threads.iter().enumerate() {
        let (thread, i) = (at / registers, at % registers);
        let element = &mut matrix[accumulator_row(thread, i)][accumulator_col(thread, i)];
        assert!(element.replace(x).is_none());
    }
    matrix.into_iter().map(|row| row.into_iter().map(|x| x.expect("every element has a register")).collect()).collect()
}

/// `a` times the transpose of `b`.
pub fn product(a: &[Vec<f64>], b: &[Vec<f64>]) -> Vec<Vec<f64>> {
    a.iter().map(|x| b.iter().map(|y| x.iter().zip(y).map(|(x, y)| x * y).sum()).collect()).collect()
}

/// The models themselves, on known values: a wrong model would blame the GPU, or excuse it.
#[test]
fn models_give_known_values() {
    assert_eq!([0x00, 0x01, 0x08, 0x38, 0x7e, 0xb8].map(e4m3_value), [0.0, 2f64.powi(-9), 2f64.powi(-6), 1.0, 448.0, -1.0]);
    assert!(e4m3_value(0x7f).is_nan() && e4m3_value(0xff).is_nan());
    for code in (0..=0xff).filter(|&code| code & 0x7f != 0x7f) {
        assert_eq!(e4m3_code(e4m3_value(code) as f32), code);
    }
    // Ties: 17 is between 16 and 18, 19 between 18 and 20; half the smallest code is a tie with 0.
    assert_eq!([17.0, 19.0, 2f32.powi(-10), 464.0, -1e9, f32::INFINITY].map(e4m3_code), [0x58, 0x5a, 0x00, 0x7e, 0xfe, 0x7e]);
    // Row 1 of an image starts at chunk 1, row 8 at chunk 0 again.
    let rows: Vec<Vec<f64>> = (0..9).map(|r| vec![f64::from(r); 128]).collect();
    let bytes = image(&rows, |x| [x as u8]);
    assert!((0..9).all(|r| bytes[r * 128..][..128].iter().all(|&b| usize::from(b) == r)));
    let mut rows = vec![vec![0.0; 128]; 9];
    (rows[1][0], rows[8][0]) = (1.0, 2.0);
    let bytes = image(&rows, |x| [x as u8]);
    assert_eq!((bytes[128 + 16], bytes[8 * 128]), (1, 2));
}
