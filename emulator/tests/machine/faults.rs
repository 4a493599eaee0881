//! Mistakes that hardware answers with an error at best: each is named with its line.

use super::Run;

#[test]
fn a_store_past_the_end_of_an_allocation() {
    let report = Run { out: 31, ..Run::default() }.fails("mov.u32 %r1, 5;\nst.global.u32 [%rd2], %r1;");
    assert!(report.starts_with("k line 19: st.global.u32 [%rd2], %r1: global access of 4 bytes at"), "{report}");
    // The output ends 124 bytes after its start, 132 before the allocator's next place.
    assert!(report.contains("passes the end of") || report.contains("in no allocation"), "{report}");
    assert_eq!(Run::default().run("mov.u32 %r1, 5;\nst.global.u32 [%rd2], %r1;").unwrap(), [5; 32]);
}

#[test]
fn a_store_to_parameters() {
    let report = Run::default().fails("st.global.u32 [%rd3], %r0;");
    assert!(report.contains("in no allocation"), "{report}");
}

#[test]
fn shared_memory_has_ends() {
    let store = |offset: i32| format!("st.shared.u32 [%r63+{offset}], %r0;");
    let run = Run { threads: 1, shared_bytes: 64, ..Run::default() };
    assert!(run.run(&store(60)).is_ok());
    for (offset, what) in [(64, "bytes at 64: the launch has 64"), (-4, "bytes at -4: the launch has 64"), (62, "at 62")] {
        let report = run.fails(&store(offset));
        assert!(report.contains(what), "{report}");
    }
}

#[test]
fn accesses_are_aligned() {
    let report = Run::default().fails("ld.shared.v2.u32 {%r1, %r2}, [%r63+4];");
    assert!(report.contains("shared access of 8 bytes at 4: not aligned"), "{report}");
    let report = Run::default().fails("ld.global.u32 %r1, [%rd0+2];");
    assert!(report.contains("not aligned"), "{report}");
}

#[test]
fn what_is_not_known_is_named_when_it_runs() {
    let unknown = "tanh.approx.f32 %r1, %r2;";
    let report = Run::default().fails(&format!("\n{unknown}"));
    assert!(report.starts_with("k line 19: tanh.approx.f32 %r1, %r2: no such instruction is known"), "{report}");
    // A modifier that may change the result is no detail.
    let report = Run::default().fails("add.rz.f32 %r1, %r2, %r3;");
    assert!(report.contains("the modifier .rz is not known here"), "{report}");
    let report = Run::default().fails("mov.u32 %r1, %smid;");
    assert!(report.contains("%smid"), "{report}");
    assert!(Run::default().run(&format!("bra $over; {unknown} $over:")).is_ok());
}

#[test]
fn an_endless_loop_ends() {
    let report = Run::default().fails("$loop: add.u32 %r1, %r1, 1; bra $loop;");
    assert!(report.contains("too many instructions"), "{report}");
}

#[test]
fn a_launch_must_fit_the_machine() {
    for run in [
        Run { threads: 1025, ..Run::default() },
        Run { shared_bytes: 228 << 10, ..Run::default() },
        Run { grid: 3, cluster: 2, ..Run::default() },
        Run { grid: 0, ..Run::default() },
    ] {
        assert!(run.run("").is_err());
    }
}
