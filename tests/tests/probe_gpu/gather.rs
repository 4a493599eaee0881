//! Loads for some threads only, stored and announced by a barrier; pairs of f32 from shared memory, and bits set by many threads at once.

use crate::{rng, run};
use rand::RngExt;
use rstest::rstest;
use stem_attn_kernels::abi_probe::{GATHER_WORDS, ProbeParams, THREADS};
use stem_attn_tests::gpu::gpu;

const T: usize = THREADS as usize;

#[rstest]
fn gathered_words_arrive_with_their_barrier(#[values(1, 2, 9)] rounds: usize, #[values(1, 3, 1000)] skip: usize) {
    let Some(gpu) = gpu() else { return };
    let mut rng = rng("gather");
    // Finite as f32, so that a move through a float register cannot change a NaN.
    let a: Vec<u32> = (0..rounds * T).map(|_| rng.random::<u32>() & 0xbfff_ffff).collect();
    let params = ProbeParams { count: rounds as i32, x: skip as i32, ..Default::default() };
    let out: Vec<u32> = run(&gpu, "probe_gather", params, &a, rounds * T * GATHER_WORDS);
    for (i, got) in out.chunks(GATHER_WORDS).enumerate() {
        let (round, thread) = (&a[i / T * T..][..T], i % T);
        // What is not loaded is 0.
        let loaded = |t: usize| if t.is_multiple_of(skip) { 0 } else { round[t] };
        let pair = (thread + 1) % T / 2 * 2;
        let bits = round[thread / 32 * 32..][..32].iter().fold(0u32, |bits, x| bits | 1 << (x % 32));
        assert_eq!(got, [loaded(pair), loaded(pair + 1), bits], "round {}, thread {thread}", i / T);
    }
}
