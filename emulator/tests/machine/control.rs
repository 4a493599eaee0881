//! Branches, and lanes that run an instruction together.

use super::Run;

#[test]
fn lanes_that_went_different_ways_meet_again() {
    // Lane i goes round i % 5 times; then all of them read lane 31, which went round once.
    let out = Run::default().run(
        "rem.u32 %r1, %r0, 5; mov.u32 %r2, 100;
        $loop: setp.eq.u32 %p0, %r1, 0; @%p0 bra $out;
        add.u32 %r2, %r2, %r0; sub.u32 %r1, %r1, 1; bra $loop;
        $out: shfl.sync.idx.b32 %r3, %r2, 31, 31, -1;
        sub.u32 %r4, %r2, %r3; st.global.u32 [%rd2], %r4;",
    );
    let want: Vec<u32> = (0..32).map(|i: u32| (100 + i % 5 * i).wrapping_sub(131)).collect();
    assert_eq!(out.unwrap(), want);
}

#[test]
fn each_way_has_its_own_lanes() {
    let out = Run::default().run(
        "and.b32 %r1, %r0, 3; setp.ne.u32 %p0, %r1, 0; setp.eq.u32 %p1, %r0, %r0; mov.u32 %r3, 0;
        @%p0 bra $others;
        vote.sync.ballot.b32 %r2, %p1, 0x11111111; bra $join;
        $others: vote.sync.ballot.b32 %r2, %p1, 0xeeeeeeee;
        $join: redux.sync.add.u32 %r3, %r0, -1;
        add.u32 %r2, %r2, %r3; st.global.u32 [%rd2], %r2;",
    );
    let want: Vec<u32> = (0..32).map(|i| if i % 4 == 0 { 0x1111_1111 } else { 0xeeee_eeee_u32 }.wrapping_add(496)).collect();
    assert_eq!(out.unwrap(), want);
}

#[test]
fn a_warp_wide_instruction_that_half_a_warp_cannot_reach_is_a_deadlock() {
    let report = Run::default().fails(
        "setp.lt.u32 %p0, %r0, 16; mov.u32 %r1, 0;
        @%p0 bra $half;
        bar.warp.sync -1; bra $end;
        $half: setp.eq.u32 %p2, %r0, 0; @%p2 mbarrier.init.shared::cta.b64 [%r63], 1; bar.warp.sync 0xffff;
        $again: mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r63], 0; @!%p1 bra $again;
        $end: st.global.u32 [%rd2], %r1;",
    );
    assert!(report.contains("deadlock"), "{report}");
    assert!(report.contains("lanes ffff0000 line 20, waits for other lanes: bar.warp.sync -1"), "{report}");
    assert!(report.contains("lanes 0000ffff line 22, waits for phase 0"), "{report}");
}

#[test]
fn a_lane_that_is_not_there_cannot_be_read() {
    let half = "setp.lt.u32 %p0, %r0, 16; @!%p0 bra $end; shfl.sync.bfly.b32 %r1, %r0, OTHER, 31, 0xffff; st.global.u32 [%rd2], %r1; $end:";
    let out = Run::default().run(&half.replace("OTHER", "15")).unwrap();
    assert_eq!(out[..16], (0..16).rev().collect::<Vec<u32>>());
    assert_eq!(out[16..], [u32::MAX; 16]);
    let report = Run::default().fails(&half.replace("OTHER", "16"));
    assert!(report.contains("lane 0 reads lane 16, which is not there"), "{report}");
}
