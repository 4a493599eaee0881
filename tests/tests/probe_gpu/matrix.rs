//! Matrices that a warp holds: transposing loads and small products; the largest word of a warp.

use crate::{rng, run};
use half::f16;
use rand::RngExt;
use stem_attn_kernels::abi_probe::{MATRIX_WORDS, ProbeParams, THREADS};
use stem_attn_tests::gpu::gpu;

#[test]
fn matrices_of_a_warp_are_transposed_and_multiplied() {
    let Some(gpu) = gpu() else { return };
    let mut rng = rng("matrix");
    // Integers whose products add up exactly.
    let a: Vec<[u16; 8]> =
        (0..THREADS).map(|_| std::array::from_fn(|_| f16::from_f32(rng.random_range(-64..=64) as f32).to_bits())).collect();
    let words: Vec<u32> = a.iter().flat_map(|x| [0, 1, 2, 3].map(|i| u32::from(x[2 * i]) | u32::from(x[2 * i + 1]) << 16)).collect();
    let out: Vec<u32> = run(&gpu, "probe_matrix", ProbeParams::default(), &words, THREADS as usize * MATRIX_WORDS);
    for (w, got) in out.chunks(32 * MATRIX_WORDS).enumerate() {
        let (a, words) = (&a[32 * w..][..32], &words[128 * w..][..128]);
        let value = |lane: usize, word: usize, half: usize| f32::from(f16::from_bits(a[lane][2 * word + half]));
        // Element (row, k) of A and (k, column) of B, by the lane that holds it.
        let left = |row: usize, k: usize| value(row % 8 * 4 + k % 8 / 2, row / 8 + k / 8 * 2, k % 2);
        let right = |k: usize, column: usize| value(column * 4 + k % 8 / 2, 1 + k / 8, k % 2);
        for (lane, got) in got.chunks(MATRIX_WORDS).enumerate() {
            let (g, t) = (lane / 4, lane % 4);
            // Rows are named in reverse: row r of matrix i is that of lane 31 - 8 i - r.
            let transposed = [0, 1, 2, 3].map(|i| {
                let element = |r: usize| u32::from(a[31 - 8 * i - r][g]);
                element(2 * t) | element(2 * t + 1) << 16
            });
            let sum = [(g, 2 * t), (g, 2 * t + 1), (g + 8, 2 * t), (g + 8, 2 * t + 1)]
                .map(|(row, column)| (1.0 + (0..16).map(|k| left(row, k) * right(k, column)).sum::<f32>()).to_bits());
            let largest = words.iter().step_by(4).max().copied().unwrap_or(0);
            let next = &words[(lane + 1) % 32 * 4 + 2..][..2];
            assert_eq!(got[..4], transposed, "warp {w}, lane {lane}: transposed");
            assert_eq!(got[4..8], sum, "warp {w}, lane {lane}: product");
            assert_eq!(got[8..], [largest, next[0], next[1]], "warp {w}, lane {lane}: largest, next");
        }
    }
}
