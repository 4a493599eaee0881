//! Mbarriers, named barriers, the cluster's barrier.

use super::{Run, WAIT};

/// An mbarrier at `%r1` for so many arrivals, made by thread 0.
fn mbarrier(arrivals: u32) -> String {
    format!(
        "mov.u32 %r1, %r63; setp.eq.u32 %p0, %r0, 0;
        @%p0 mbarrier.init.shared::cta.b64 [%r1], {arrivals}; bar.sync 0;"
    )
}

#[test]
fn a_phase_ends_with_its_last_arrival_and_the_next_begins() {
    // After each of three arrivals at a barrier for two: whether phase 0 and phase 1 have ended.
    let arrive = |n: u32| {
        format!(
            "mbarrier.arrive.shared::cta.b64 _, [%r1];
            mbarrier.test_wait.parity.shared::cta.b64 %p1, [%r1], 0; selp.b32 %r2, 1, 0, %p1;
            mbarrier.test_wait.parity.shared::cta.b64 %p2, [%r1], 1; selp.b32 %r3, 1, 0, %p2;
            st.global.v2.u32 [%rd0+{}], {{%r2, %r3}};",
            8 * n
        )
    };
    let body = format!("{} setp.ne.u32 %p3, %r0, 0; @%p3 ret; {}{}{}{}", mbarrier(2), arrive(0), arrive(1), arrive(2), arrive(3));
    let out = Run::default().run(&body).unwrap();
    // Parity 1 asks for the phase before the current one while that is phase 0.
    assert_eq!(out[..8], [0, 1, 1, 0, 1, 0, 0, 1]);
}

#[test]
fn bytes_hold_a_phase_open() {
    let report = Run::default().fails(&format!("{} @%p0 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 64; {WAIT}", mbarrier(1)));
    assert!(report.contains("now phase 0, 0 arrivals and 64 bytes missing"), "{report}");
}

#[test]
fn one_arrival_too_many_is_an_error() {
    let body =
        |arrivals: u32| format!("{} mbarrier.arrive.shared::cta.b64 _, [%r1]; {WAIT} st.global.u32 [%rd2], %r0;", mbarrier(arrivals));
    assert_eq!(Run::default().run(&body(32)).unwrap()[31], 31);
    let late = "mbarrier.arrive.shared::cta.b64 _, [%r1], 33;";
    let report = Run::default().fails(&format!("{} {late}", mbarrier(32)));
    assert!(report.contains("too many arrivals"), "{report}");
}

#[test]
fn an_mbarrier_must_be_initialised() {
    let report = Run::default().fails("mbarrier.arrive.shared::cta.b64 _, [%r63+8];");
    assert!(report.contains("no mbarrier was initialised at 8 of block 0"), "{report}");
}

#[test]
fn a_named_barrier_keeps_warps_together() {
    // Warp 0 writes late; every warp reads after the barrier.
    let run = Run { threads: 128, out: 128, ..Run::default() };
    let out = run.run(
        "setp.lt.u32 %p0, %r0, 32; @!%p0 bra $read; mov.u32 %r2, 0;
        $spin: add.u32 %r2, %r2, 1; setp.lt.u32 %p1, %r2, 500; @%p1 bra $spin;
        mad.lo.u32 %r3, %r0, 4, %r63; st.shared.u32 [%r3], %r2;
        $read: bar.sync 3, 128; and.b32 %r4, %r0, 31; mad.lo.u32 %r3, %r4, 4, %r63; ld.shared.u32 %r5, [%r3];
        st.global.u32 [%rd2], %r5;",
    );
    assert_eq!(out.unwrap(), [500; 128]);
}

#[test]
fn warps_must_agree_how_many_a_barrier_counts() {
    let run = Run { threads: 64, ..Run::default() };
    let report = run.fails("and.b32 %r1, %r0, 32; add.u32 %r1, %r1, 64; bar.sync 1, %r1;");
    assert!(report.contains("barrier 1 for"), "{report}");
}

#[test]
fn blocks_of_a_cluster_reach_each_other() {
    let run = Run { grid: 4, cluster: 2, threads: 1, out: 4, ..Run::default() };
    // Each block writes its number to the other block of its cluster.
    let body = |address: &str| {
        format!(
            "mov.u32 %r1, %ctaid.x; mov.u32 %r2, %cluster_ctarank; xor.b32 %r3, %r2, 1;
            barrier.cluster.arrive; barrier.cluster.wait;
            mapa.shared::cluster.u32 %r4, %r63, {address}; st.shared::cluster.u32 [%r4], %r1;
            barrier.cluster.arrive; barrier.cluster.wait;
            ld.shared.u32 %r5, [%r63]; mul.wide.u32 %rd5, %r1, 4; add.s64 %rd5, %rd0, %rd5; st.global.u32 [%rd5], %r5;"
        )
    };
    assert_eq!(run.run(&body("%r3")).unwrap(), [1, 0, 3, 2]);
    let report = run.fails(&body("2"));
    assert!(report.contains("block 2, which is not in the cluster"), "{report}");
}

#[test]
fn a_deadlock_names_line_and_text_of_every_wait() {
    let run = Run { threads: 64, ..Run::default() };
    let report = run.fails(&format!("{}\nsetp.lt.u32 %p3, %r0, 32;\n@%p3 bra $wait;\nbar.sync 5;\n{WAIT}", mbarrier(1)));
    assert!(report.starts_with("k: deadlock: nothing can go on; block [0, 0, 0] of [1, 1, 1]"), "{report}");
    let barrier = "block 0 warp  1 lanes ffffffff line 22, waits at barrier 5 (1 of 2 warps): bar.sync 5";
    assert!(report.contains(barrier), "{report}");
    let wait = "block 0 warp  0 lanes ffffffff line 23, waits for phase 0 of the mbarrier at 0 (now phase 0, 1 arrivals and 0 \
                bytes missing): mbarrier.try_wait.parity.shared::cta.b64 %p7, [%r1], 0";
    assert!(report.contains(wait), "{report}");
}
