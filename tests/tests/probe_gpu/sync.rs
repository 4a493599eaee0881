//! Barriers, warp exchange, register reallocation, special registers, shared loads and stores, dependent launches.

use crate::{address, launch, rng, run};
use rand::RngExt;
use rstest::rstest;
use stem_attn::driver::Launch;
use stem_attn_kernels::abi_probe::{MBARRIER_WORDS, ProbeParams, SETMAXNREG_LIVE, SMEM_WORDS, SPECIAL_WORDS, THREADS, WARP_WORDS};
use stem_attn_tests::gpu::gpu;

const T: usize = THREADS as usize;

#[rstest]
#[case::one_phase(1)]
#[case::both_parities(2)]
#[case::parities_come_again(9)]
fn mbarriers_flip_phase_when_all_have_arrived(#[case] rounds: usize) {
    let Some(gpu) = gpu() else { return };
    let mut rng = rng("mbarrier");
    let a: Vec<u32> = (0..rounds * T).map(|_| rng.random()).collect();
    let words = rounds * T * MBARRIER_WORDS;
    let out: Vec<u32> = run(&gpu, "probe_mbarrier", ProbeParams { count: rounds as i32, ..Default::default() }, &a, words + T);
    for (i, got) in out[..words].chunks(MBARRIER_WORDS).enumerate() {
        let (round, thread) = (i / T, i % T);
        let neighbour = a[round * T + (thread + 1) % T];
        assert_eq!(got, [0, 1, neighbour], "round {round}, thread {thread}: before its arrival, phase before, neighbour");
    }
    assert!(out[words..].iter().all(|&w| w == 0), "arrivals with `on` = 0 completed a phase");
}

#[rstest]
#[case(1)]
#[case(2)]
#[case(33)]
fn named_barriers_hand_over_between_two_groups_of_warps(#[case] rounds: usize) {
    let Some(gpu) = gpu() else { return };
    let mut rng = rng("named_barrier");
    let a: Vec<u32> = (0..rounds * 64).map(|_| rng.random()).collect();
    let out: Vec<u32> = run(&gpu, "probe_named_barrier", ProbeParams { count: rounds as i32, ..Default::default() }, &a, rounds * 64);
    for (i, &got) in out.iter().enumerate() {
        let (round, lane) = (i / 64, i % 64);
        assert_eq!(got, a[round * 64 + 63 - lane], "round {round}, consumer {lane}");
    }
}

#[test]
fn shuffles_and_votes_match_their_definition() {
    let Some(gpu) = gpu() else { return };
    let mut rng = rng("warp");
    // Finite as f32, so that a move through a float register cannot change a NaN.
    let a: Vec<u32> = (0..T).map(|_| rng.random::<u32>() & 0xbfff_ffff).collect();
    let wanted = a[77];
    let out: Vec<u32> = run(&gpu, "probe_warp", ProbeParams { x: wanted as i32, ..Default::default() }, &a, T * WARP_WORDS);
    for (t, got) in out.chunks(WARP_WORDS).enumerate() {
        let (warp, lane) = (&a[t / 32 * 32..][..32], t % 32);
        let up = |delta: usize| warp[if lane < delta { lane } else { lane - delta }];
        let ballot = warp.iter().enumerate().fold(0, |bits, (i, x)| bits | (x & 1) << i);
        let any = u32::from(warp.contains(&wanted));
        let sum = warp.iter().fold(0u32, |sum, &x| sum.wrapping_add(x));
        let idx = warp[warp[lane] as usize % 32];
        let expected = [warp[lane ^ 1], warp[lane ^ 16], warp[lane ^ 2], idx, warp[31], up(1), up(7), ballot, any, 0, sum];
        assert_eq!(got, expected, "thread {t}");
    }
}

#[test]
fn special_registers_say_where_a_thread_is() {
    let Some(gpu) = gpu() else { return };
    let (nx, ny, nz) = (3, 2, 2);
    let len = nx * ny * nz * T * SPECIAL_WORDS;
    let out = gpu.poisoned::<u32>(len);
    let params = ProbeParams { out: address(&gpu, &out), ..Default::default() };
    launch(&gpu, "probe_special", Launch::grid(nx, ny, nz), &params, None);
    for (i, got) in gpu.download(&out, len).chunks(SPECIAL_WORDS).enumerate() {
        let (block, t) = (i / T, i % T);
        let expected = [t, T, block % nx, block / nx % ny, block / nx / ny, nx, ny, t % 32].map(|x| x as u32);
        assert_eq!(got[..8], expected, "block {block}, thread {t}");
        let cycles = got[9].wrapping_sub(got[8]);
        assert!((1..1_000_000).contains(&cycles), "{cycles} cycles between two readings of the clock");
    }
}

#[test]
fn shared_memory_of_every_width() {
    let Some(gpu) = gpu() else { return };
    let mut rng = rng("smem");
    let a: Vec<u32> = (0..T).map(|_| rng.random::<u32>() & 0xbfff_ffff).collect();
    let out: Vec<u32> = run(&gpu, "probe_smem", ProbeParams::default(), &a, T * SMEM_WORDS);
    let mut orders = vec![];
    for (&x, got) in a.iter().zip(out.chunks(SMEM_WORDS)) {
        let sum = (0..4).fold(0u32, |s, i| s.wrapping_add(x ^ i));
        assert_eq!(got[..5], [x, x, x, x, sum]);
        orders.push(got[5]);
        assert_eq!(got[6..], [THREADS, x, x], "counter, 16-bit stores to device memory");
    }
    orders.sort_unstable();
    assert!(orders.into_iter().eq(0..THREADS), "each thread drew one number of the atomic counter");
}

#[test]
fn registers_move_between_warpgroups() {
    let Some(gpu) = gpu() else { return };
    let mut rng = rng("setmaxnreg");
    let live = 256 * SETMAXNREG_LIVE as usize;
    let a: Vec<u32> = (0..live).map(|_| rng.random::<u32>() & 0xbfff_ffff).collect();
    let out: Vec<u32> = run(&gpu, "probe_setmaxnreg", ProbeParams::default(), &a, live + T);
    assert!(out[..live] == a[..], "values held in reallocated registers changed");
    assert!(out[live..].iter().copied().eq(0..THREADS));
}

#[test]
fn dependent_launches_see_what_the_one_before_wrote() {
    let Some(gpu) = gpu() else { return };
    let mut rng = rng("pdl");
    let count = 64 * T;
    let a: Vec<f32> = (0..count).map(|_| rng.random_range(-8i32..8) as f32).collect();
    let buffers = [gpu.upload(&a), gpu.poisoned::<f32>(count)];
    const LINKS: usize = 8;
    for link in 0..LINKS {
        let (from, to) = (&buffers[link % 2], &buffers[(link + 1) % 2]);
        let params = ProbeParams { a: address(&gpu, from), out: address(&gpu, to), count: count as i32, ..Default::default() };
        launch(&gpu, "probe_pdl", Launch::grid(1, 1, 1).overlap(true), &params, None);
    }
    let expected: Vec<f32> = a.iter().map(|&x| (0..LINKS).fold(x, |x, _| 2.0 * x + 1.0)).collect();
    assert_eq!(gpu.download(&buffers[LINKS % 2], count), expected);
}
