//! Small asynchronous copies: in groups, several in flight, some of fewer bytes, read by the thread itself and by others.

use crate::{address, launch, rng};
use rand::RngExt;
use rstest::rstest;
use stem_attn::driver::Launch;
use stem_attn_kernels::abi_probe::{CP_ASYNC_STAGES, CP_ASYNC_WORDS, ProbeParams, THREADS};
use stem_attn_tests::gpu::gpu;

const T: usize = THREADS as usize;
const STAGES: usize = CP_ASYNC_STAGES as usize;

/// `at_once`: each round's copies are waited for right after their start, when without a wait they could not be there yet.
#[rstest]
fn copies_are_there_after_their_group(
    #[values(1, STAGES - 1, STAGES, 5 * STAGES + 1)] rounds: usize,
    #[values(1, 3, 1000)] skip: usize,
    #[values(false, true)] at_once: bool,
) {
    let Some(gpu) = gpu() else { return };
    let mut rng = rng("cp_async");
    // No byte is 0: what was not copied must not pass for what was.
    let mut words = |len: usize| -> Vec<u32> { (0..len).map(|_| rng.random::<u32>() | 0x0101_0101).collect() };
    let (a, b) = (words(rounds * T * 4), words(rounds * T));
    let (da, db, out) = (gpu.upload(&a), gpu.upload(&b), gpu.poisoned::<u32>(rounds * T * CP_ASYNC_WORDS));
    let params = ProbeParams {
        a: address(&gpu, &da),
        b: address(&gpu, &db),
        out: address(&gpu, &out),
        count: rounds as i32,
        x: skip as i32,
        y: i32::from(at_once),
        ..Default::default()
    };
    launch(&gpu, "probe_cp_async", Launch::grid(1, 1, 1), &params, None);
    for (i, got) in gpu.download(&out, rounds * T * CP_ASYNC_WORDS).chunks(CP_ASYNC_WORDS).enumerate() {
        let (round, thread) = (i / T, i % T);
        let narrow = |t: usize| {
            let copied = (round + t) % 5;
            b[round * T + t] & ((1u64 << (8 * copied)) - 1) as u32
        };
        let wide = |t: usize, w: usize| if (round + t).is_multiple_of(skip) { 0 } else { a[(round * T + t) * 4 + w] };
        let other = (thread + 33) % T;
        let want = [narrow(thread), narrow(other), wide(other, 0), wide(other, 1), wide(other, 2), wide(other, 3)];
        assert_eq!(got, want, "round {round}, thread {thread}: own word, word and 16 bytes of thread {other}");
    }
}
