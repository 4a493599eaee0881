//! Accesses of shared memory that nothing orders, whatever order they happened to take.

use super::{Run, WAIT, pattern};

/// Four warps. Warp 0 stores its words; warp 1 loads them after `between` (of warp 0) and `before` (of warp 1). There are mbarriers
/// for one arrival at `%r1` and `%r2`.
fn hand_over(between: &str, before: &str) -> String {
    format!(
        "add.u32 %r1, %r63, 4096; add.u32 %r2, %r63, 4104; setp.eq.u32 %p0, %r0, 0; and.b32 %r4, %r0, 31; mad.lo.u32 %r3, %r4, 4, %r63;
        setp.eq.u32 %p2, %r4, 0;
        @%p0 mbarrier.init.shared::cta.b64 [%r1], 1; @%p0 mbarrier.init.shared::cta.b64 [%r2], 32; bar.sync 0;
        setp.lt.u32 %p1, %r0, 32; @%p1 bra $store; setp.lt.u32 %p3, %r0, 64; @%p3 bra $load; ret;
        $store: st.shared.u32 [%r3], %r0; {between} ret;
        $load: {before} ld.shared.u32 %r5, [%r3]; st.global.u32 [%rd2], %r5;"
    )
}

fn warps() -> Run<'static> {
    Run { threads: 128, out: 128, ..Run::default() }
}

/// What is said about statements that race: something, after the same kernel passed where nobody looked.
pub(super) fn race(run: &Run, body: &str) -> String {
    let mut quiet = Run { settings: run.settings, ..*run };
    quiet.settings.races = false;
    assert!(quiet.run(body).is_ok());
    let report = run.fails(body);
    assert!(report.contains("a race"), "{report}");
    report
}

#[test]
fn a_load_after_another_warps_store() {
    // The schedule runs warp 0 first, so that the value is right.
    let spin = "mov.u32 %r6, 0; $spin: add.u32 %r6, %r6, 1; setp.lt.u32 %p4, %r6, 999; @%p4 bra $spin;";
    let report = race(&warps(), &hand_over("", spin));
    let says = "a race on shared memory at 0 of block 0: lane 0 reads it, not ordered after \
                block 0 warp 0 lane 0, which writes it (line 22: st.shared.u32 [%r3], %r0)";
    assert!(report.contains(says), "{report}");
    for (between, before) in [
        ("bar.sync 1, 64;", "bar.sync 1, 64;"),
        ("bar.arrive 2, 64;", "bar.sync 2, 64;"),
        ("bar.warp.sync -1; @%p2 mbarrier.arrive.shared::cta.b64 _, [%r1];", WAIT),
        ("mbarrier.arrive.shared::cta.b64 _, [%r2];", &WAIT.replace("%r1", "%r2")),
    ] {
        assert!(warps().run(&hand_over(between, before)).is_ok(), "{between}");
    }
}

#[test]
fn an_arrival_speaks_for_its_lane_alone() {
    let report = race(&warps(), &hand_over("@%p2 mbarrier.arrive.shared::cta.b64 _, [%r1];", WAIT));
    assert!(report.contains("lane 1 reads it"), "{report}");
    assert!(report.contains("block 0 warp 0 lane 1, which writes it"), "{report}");
}

#[test]
fn a_wait_tells_its_lane_alone() {
    let one = format!("@!%p2 bra $others; {WAIT} $others:");
    let arrive = "mbarrier.arrive.shared::cta.b64 _, [%r2];";
    let report = race(&warps(), &hand_over(arrive, &one.replace("%r1", "%r2")));
    assert!(report.contains("lane 1 reads it"), "{report}");
    let together = format!("{one} bar.warp.sync -1;").replace("%r1", "%r2");
    assert!(warps().run(&hand_over(arrive, &together)).is_ok());
}

#[test]
fn lanes_of_a_warp_are_not_ordered_by_being_together() {
    let body = |between: &str| {
        format!(
            "mad.lo.u32 %r1, %r0, 4, %r63; xor.b32 %r2, %r0, 1; mad.lo.u32 %r2, %r2, 4, %r63; st.shared.u32 [%r1], %r0;
            {between} ld.shared.u32 %r3, [%r2]; st.global.u32 [%rd2], %r3;"
        )
    };
    for nothing in ["", "shfl.sync.bfly.b32 %r4, %r0, 1, 31, -1;", "vote.sync.ballot.b32 %r4, %p1, -1;"] {
        let report = race(&Run::default(), &body(nothing));
        assert!(report.contains("block 0 warp 0 lane 1, which writes it"), "{report}");
    }
    assert_eq!(Run::default().run(&body("bar.warp.sync -1;")).unwrap()[..4], [1, 0, 3, 2]);
}

#[test]
fn a_store_over_what_another_lane_still_reads() {
    let body = |between: &str| format!("ld.shared.u32 %r1, [%r63]; {between} setp.eq.u32 %p0, %r0, 7; @%p0 st.shared.u32 [%r63], %r0;");
    let report = race(&Run::default(), &body(""));
    assert!(report.contains("lane 7 writes it"), "{report}");
    assert!(report.contains("block 0 warp 0 lane 0, which reads it"), "{report}");
    assert!(Run::default().run(&body("bar.warp.sync -1;")).is_ok());
}

#[test]
fn neighbours_in_a_word_and_atomics_are_no_race() {
    let bytes = "add.u32 %r1, %r63, %r0; st.shared.u8 [%r1], %r0; ld.shared.u8 %r2, [%r1]; st.shared.u8 [%r1], %r2;";
    assert!(Run::default().run(bytes).is_ok());
    let atomics = "red.shared.add.u32 [%r63], %r0;";
    assert!(Run::default().run(atomics).is_ok());
    let report = race(&Run::default(), &format!("{atomics} ld.shared.u32 %r1, [%r63];"));
    assert!(report.contains("which writes it (line 18: red.shared.add.u32"), "{report}");
}

#[test]
fn an_mbarrier_that_another_lane_initialises() {
    let body = |between: &str| {
        format!(
            "setp.eq.u32 %p0, %r0, 0; @%p0 mbarrier.init.shared::cta.b64 [%r63], 32; {between} mbarrier.arrive.shared::cta.b64 _, [%r63];"
        )
    };
    let report = race(&Run::default(), &body(""));
    assert!(report.contains("lane 1 uses the mbarrier at 0, not ordered after block 0 warp 0 lane 0, which initialises it"), "{report}");
    assert!(Run::default().run(&body("bar.warp.sync -1;")).is_ok());
}

#[test]
fn blocks_of_a_cluster_meet() {
    let run = Run { grid: 2, cluster: 2, threads: 32, out: 64, ..Run::default() };
    let body = |meet: &str| {
        format!(
            "mov.u32 %r2, %cluster_ctarank; xor.b32 %r3, %r2, 1; mapa.shared::cluster.u32 %r4, %r63, %r3; mad.lo.u32 %r4, %r0, 4, %r4;
            st.shared::cluster.u32 [%r4], %r0; {meet} mad.lo.u32 %r4, %r0, 4, %r63; ld.shared.u32 %r5, [%r4];
            barrier.cluster.arrive; barrier.cluster.wait;"
        )
    };
    let report = race(&run, &body(""));
    assert!(report.contains("reads it") || report.contains("writes it"), "{report}");
    assert!(run.run(&body("barrier.cluster.arrive; barrier.cluster.wait;")).is_ok());
}

/// A lane makes an mbarrier at `%r1`, announces and starts a copy of 128 bytes to the start of shared memory.
const COPY: &str = "@%p0 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 128;
    @%p0 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r63], [%rd1], 128, [%r1];";
const BARRIER: &str = "add.u32 %r1, %r63, 4096; setp.eq.u32 %p0, %r0, 0; mad.lo.u32 %r3, %r0, 4, %r63;
    @%p0 mbarrier.init.shared::cta.b64 [%r1], 1; bar.sync 0;";

#[test]
fn a_copy_lands_in_memory_that_is_in_use() {
    let input = pattern(128);
    let run = Run { input: &input, ..Run::default() };
    // Read before, read too early, read between two of them.
    let read = "ld.shared.u32 %r4, [%r3];";
    for body in [format!("{read} {COPY} {WAIT}"), format!("{COPY} {read} {WAIT}"), format!("{COPY} {WAIT} {read} {COPY}")] {
        let report = race(&run, &format!("{BARRIER} {body}"));
        assert!(report.contains("a copy"), "{report}");
    }
    let again = WAIT.replace("wait:", "more:").replace("$wait", "$more").replace(", 0;", ", 1;");
    let good = format!("{BARRIER} {read} bar.warp.sync -1; {COPY} {WAIT} {read} bar.warp.sync -1; {COPY} {again}");
    assert!(run.run(&good).is_ok());
}

#[test]
fn a_copy_over_what_a_store_wrote_needs_a_proxy_fence() {
    let input = pattern(128);
    let run = Run { input: &input, ..Run::default() };
    let body = |fence: &str| format!("{BARRIER} st.shared.u32 [%r3], %r0; {fence} bar.warp.sync -1; {COPY} {WAIT}");
    let report = race(&run, &body(""));
    assert!(report.contains("with no proxy fence between"), "{report}");
    assert!(run.run(&body("fence.proxy.async.shared::cta;")).is_ok());
}

#[test]
fn a_small_copy_that_was_not_waited_for() {
    let input = pattern(128);
    let run = Run { input: &input, ..Run::default() };
    let body = |wait: &str, meet: &str| {
        format!(
            "mad.lo.u32 %r1, %r0, 4, %r63; xor.b32 %r2, %r0, 1; mad.lo.u32 %r2, %r2, 4, %r63; mul.wide.u32 %rd5, %r0, 4; add.s64 %rd5, %rd5, %rd1;
            cp.async.ca.shared.global [%r1], [%rd5], 4; {wait} {meet} ld.shared.u32 %r3, [%r2]; cp.async.wait_all;"
        )
    };
    let all = "cp.async.wait_all;";
    race(&run, &body("", "bar.warp.sync -1;"));
    race(&run, &body(all, ""));
    assert!(run.run(&body(all, "bar.warp.sync -1;")).is_ok());
    // The copies' arrivals at an mbarrier, in a cluster of one block and of two.
    let init = "add.u32 %r9, %r63, 4096; setp.eq.u32 %p0, %r0, 0; @%p0 mbarrier.init.shared::cta.b64 [%r9], 32; bar.sync 0;";
    let arrive = "cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%r9];";
    let body = |wait: &str| format!("{init} {}", body(arrive, &wait.replace("[%r1]", "[%r9]")));
    for cluster in [1, 2] {
        let run = Run { input: &input, grid: cluster, cluster, ..Run::default() };
        race(&run, &body(""));
        assert!(run.run(&body(WAIT)).is_ok());
    }
}

#[test]
fn a_product_of_what_stores_wrote_and_stores_write() {
    let run = Run { threads: 128, out: 128, ..Run::default() };
    let body = |before: &str, wait: &str| {
        format!(
            "mad.lo.u32 %r3, %r0, 16, %r63; st.shared.v4.u32 [%r3], {{%r0, %r0, %r0, %r0}}; st.shared.v4.u32 [%r3+2048], {{%r0, %r0, %r0, %r0}};
            {before} shr.u32 %r2, %r63, 4; cvt.u64.u32 %rd4, %r2; or.b64 %rd4, %rd4, 0xC000001000000000; add.s64 %rd5, %rd4, 128;
            setp.ne.u32 %p2, %r0, %r0; wgmma.fence.sync.aligned;
            wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {{%r10, %r11, %r12, %r13}}, %rd4, %rd5, %p2, 1, 1;
            wgmma.commit_group.sync.aligned; {wait} st.shared.u32 [%r3], %r0; wgmma.wait_group.sync.aligned 0;"
        )
    };
    let (fence, wait) = ("fence.proxy.async.shared::cta; bar.sync 0;", "wgmma.wait_group.sync.aligned 0;");
    assert!(run.run(&body(fence, &format!("{wait} bar.sync 0;"))).is_ok());
    let report = race(&run, &body("bar.sync 0;", wait));
    assert!(report.contains("with no proxy fence between"), "{report}");
    let report = race(&run, &body("fence.proxy.async.shared::cta;", wait));
    assert!(report.contains("a product of group 0 reads it"), "{report}");
    let report = race(&run, &body(fence, ""));
    assert!(report.contains("product"), "{report}");
}
