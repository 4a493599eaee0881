//! What the blocks of a cluster write to each other.

use crate::{address, launch, rng};
use rand::RngExt;
use rstest::rstest;
use stem_attn::driver::Launch;
use stem_attn_kernels::abi_probe::{ProbeParams, THREADS};
use stem_attn_tests::gpu::gpu;

const T: usize = THREADS as usize;

#[rstest]
#[case::one_phase(1, 2048)]
#[case::both_parities(2, 4096)]
#[case::parities_come_again(9, 2048)]
#[case::a_large_copy(3, 16384)]
fn two_blocks_swap_words_and_bytes(#[case] rounds: usize, #[case] bytes: usize) {
    let Some(gpu) = gpu() else { return };
    let mut rng = rng("cluster");
    let words: Vec<u32> = (0..4 * rounds * T).map(|_| rng.random()).collect();
    let copied: Vec<u32> = (0..2 * rounds * bytes / 4).map(|_| rng.random()).collect();
    let len = words.len() + copied.len() + 2 * T;
    let (a, b, out) = (gpu.upload(&words), gpu.upload(&copied), gpu.poisoned::<u32>(len));
    let params = ProbeParams {
        a: address(&gpu, &a),
        b: address(&gpu, &b),
        out: address(&gpu, &out),
        count: rounds as i32,
        x: bytes as i32,
        ..Default::default()
    };
    launch(&gpu, "probe_cluster", Launch::grid(2, 1, 1).cluster([2, 1, 1]), &params, None);
    let out = gpu.download(&out, len);
    let (got_words, rest) = out.split_at(words.len());
    let (got_copied, idle) = rest.split_at(copied.len());
    for (i, &got) in got_words.iter().enumerate() {
        let (block, round, thread, word) = (i / 2 / T / rounds, i / 2 / T % rounds, i / 2 % T, i % 2);
        let expected = words[(((1 - block) * rounds + round) * T + (thread + 1) % T) * 2 + word];
        assert_eq!(got, expected, "block {block}, round {round}, thread {thread}, word {word}");
    }
    let (first, second) = copied.split_at(copied.len() / 2);
    assert!(got_copied == [second, first].concat(), "bytes of the other block's copies");
    assert!(idle.iter().all(|&w| w == 0), "arrivals with `on` = 0 completed a phase");
}
