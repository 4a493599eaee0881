//! Asynchronous copies.

use super::{Run, WAIT, pattern};
use stem_emulator::settings::{Mode, Settings};

/// Thread 0 copies a box at some coordinates, with a hint for the cache if `once`; then every byte of the box goes out, as it lies in
/// shared memory.
fn tensor_box(tensor: ([u64; 2], [u64; 2]), [x, y]: [i64; 2], input: &[u8], once: bool) -> Vec<u8> {
    let (_, [width, height]) = tensor;
    let bytes = (width * height) as usize;
    let run = Run { threads: 1, out: bytes / 4, input, tensor: Some(tensor), ..Run::default() };
    let (hint, policy) = if once { (".L2::cache_hint", ", %rd6") } else { ("", "") };
    let body = format!(
        "add.u32 %r1, %r63, 7168; mbarrier.init.shared::cta.b64 [%r1], 1;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], {bytes};
        createpolicy.fractional.L2::evict_first.b64 %rd6, 1.0;
        cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes{hint} [%r63], [%rd3, {{{x}, {y}}}], [%r1]{policy};
        {WAIT} mov.u32 %r2, 0;
        $loop: add.u32 %r3, %r63, %r2; ld.shared.u32 %r4, [%r3]; cvt.u64.u32 %rd5, %r2; add.s64 %rd5, %rd5, %rd0;
        st.global.u32 [%rd5], %r4; add.u32 %r2, %r2, 4; setp.lt.u32 %p0, %r2, {bytes}; @%p0 bra $loop;"
    );
    run.run(&body).unwrap().iter().flat_map(|w| w.to_le_bytes()).collect()
}

#[test]
fn boxes_are_swizzled_and_zeros_outside_the_tensor() {
    let (row, rows) = (160, 10);
    let input = pattern(row * rows);
    for (x, y) in [(0, 0), (32, 2), (48, 5), (-16, -3), (160, 0), (0, 10), (-128, 0)] {
        let got = tensor_box(([row as u64, rows as u64], [128, 16]), [x, y], &input, x < 0);
        for (i, byte) in got.iter().enumerate() {
            // Chunks of 16 bytes change places within the row: their number is xored with the row's.
            let (r, chunk) = (i / 128, i % 128 / 16);
            let c = (chunk ^ (r % 8)) * 16 + i % 16;
            let (column, line) = (x + c as i64, y + r as i64);
            let inside = (0..row as i64).contains(&column) && (0..rows as i64).contains(&line);
            let want = if inside { input[line as usize * row + column as usize] } else { 0 };
            assert_eq!(*byte, want, "box at {x}, {y}: row {r}, column {c}");
        }
    }
}

#[test]
fn a_tensor_that_leaves_its_allocation_is_an_error() {
    let input = pattern(1024);
    // The map says nine rows of 128 bytes, where there are eight.
    let run = Run { threads: 1, input: &input, tensor: Some(([128, 9], [128, 9])), ..Run::default() };
    let report = run.fails(&format!(
        "mov.u32 %r1, %r63; add.u32 %r2, %r63, 1024; mbarrier.init.shared::cta.b64 [%r1], 1;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 1152;
        cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%rd3, {{0, 0}}], [%r1]; {WAIT}"
    ));
    assert!(report.contains("global access of 128 bytes"), "{report}");
}

/// Each lane copies its word to shared memory and reads it back, with or without waiting for the copy.
fn small_copies(wait: &str, seed: u64) -> Vec<u32> {
    let input = pattern(128);
    // A word that is read too early is a race, which is not what this is about.
    let settings = Settings { seed, mode: Some(Mode::Fair), races: false, ..Settings::default() };
    Run { input: &input, ..Run::default() }
        .under(settings)
        .run(&format!(
            "mad.lo.u32 %r1, %r0, 4, %r63; mul.wide.u32 %rd5, %r0, 4; add.s64 %rd5, %rd5, %rd1;
            cp.async.ca.shared.global [%r1], [%rd5], 4; cp.async.commit_group; {wait}
            ld.shared.u32 %r2, [%r1]; cp.async.wait_all; st.global.u32 [%rd2], %r2;"
        ))
        .unwrap()
}

#[test]
fn a_copy_is_there_after_its_wait_and_not_before() {
    let want: Vec<u32> = pattern(128).chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(small_copies("cp.async.wait_group 0;", 1), want);
    let early = small_copies("cp.async.wait_group 1;", 1);
    assert!(early.iter().zip(&want).all(|(x, y)| x != y), "{early:?}");
}

#[test]
fn what_nobody_wrote_is_not_zero_and_changes_with_the_seed() {
    let read = |seed| {
        Run::default()
            .under(Settings { seed, ..Settings::default() })
            .run("mad.lo.u32 %r1, %r0, 4, %r63; ld.shared.u32 %r2, [%r1]; add.u32 %r2, %r2, %r40; st.global.u32 [%rd2], %r2;")
            .unwrap()
    };
    let (a, b) = (read(1), read(2));
    assert!(a.iter().all(|x| *x != 0), "{a:?}");
    assert!(a.iter().zip(&b).all(|(x, y)| x != y), "{a:?} {b:?}");
    // A register that nobody wrote is the same in all lanes of a warp, and not the same for every seed.
    let register = |seed| Run::default().under(Settings { seed, ..Settings::default() }).run("st.global.u32 [%rd2], %r40;").unwrap()[0];
    assert_ne!(register(1), register(2));
}
