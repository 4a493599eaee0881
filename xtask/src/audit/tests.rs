//! Every failure of the audit, provoked: with the real ptxas where there is one, else from its words.

use super::rules::judge;
use super::snapshot::compare;
use super::*;
use crate::ptxas::{Usage, find, read_report};

const HEADER: &str = ".version 8.0\n.target sm_90a\n.address_size 64\n";

/// A probe kernel of 128 threads with `body`.
fn kernel(directives: &str, registers: &str, body: &str) -> String {
    format!("{HEADER}.visible .entry probe_x(.param .u64 probe_x_param_0)\n{directives}\n{{\n{registers}\n{body}\nret;\n}}\n")
}

const BOUNDS: &str = ".maxntid 128, 1, 1\n.minnctapersm 1";

/// The entries of `text`, without ptxas.
fn scanned(text: &str) -> BTreeMap<String, EntryFacts> {
    facts::of(&scan::parse(text).expect("the test's PTX is well formed"))
}

/// Problems that the real ptxas and the rules see in `text`; nothing where there is no ptxas.
fn assembled(text: &str) -> Option<(Vec<String>, Report)> {
    let Ok(Some(ptxas)) = find(None) else {
        println!("skipped: no ptxas here");
        return None;
    };
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("probe.ptx");
    std::fs::write(&file, text).expect("writing a temporary file");
    let (entries, report) = examine(Some(&ptxas), &file).expect("ptxas starts");
    let report = report.expect("ptxas reports");
    Some((judge(&entries, Some(&report)), report))
}

fn report(usage: Usage) -> Report {
    Report { entries: [("probe_x".to_owned(), usage)].into(), ..Report::default() }
}

#[test]
fn a_sound_kernel_passes() {
    let text = kernel(BOUNDS, "", "bar.sync 0;");
    assert!(judge(&scanned(&text), Some(&report(Usage::default()))).is_empty());
    if let Some((problems, report)) = assembled(&text) {
        assert!(problems.is_empty(), "{problems:?}");
        assert!(report.entries.contains_key("probe_x"));
    }
}

/// 64 values live at once, with 32 registers a thread.
fn spilling() -> String {
    let load: String = (0..64).map(|i| format!("ld.global.b32 %r{i}, [%rd2+{}];\n", 4 * i)).collect();
    let store: String = (0..64).map(|i| format!("st.global.b32 [%rd2+{}], %r{};\n", 4 * i, 63 - i)).collect();
    let body = format!("ld.param.b64 %rd1, [probe_x_param_0];\ncvta.to.global.u64 %rd2, %rd1;\n{load}bar.sync 0;\n{store}");
    kernel(&format!("{BOUNDS}\n.maxnreg 32"), ".reg .b32 %r<64>;\n.reg .b64 %rd<3>;", &body)
}

#[test]
fn a_spill_fails() {
    let text = spilling();
    let usage = Usage { registers: 32, spill_stores: 136, spill_loads: 136, stack: 136, barriers: 1, ..Usage::default() };
    let problems = judge(&scanned(&text), Some(&report(usage)));
    assert_eq!(problems, ["probe_x: spills 136 bytes out and 136 bytes in"]);
    if let Some((problems, _)) = assembled(&text.replace(".minnctapersm 1\n", "")) {
        assert!(problems.iter().any(|p| p.contains("spills")), "{problems:?}");
    }
}

#[test]
fn a_stack_frame_and_local_memory_fail() {
    let usage = Usage { stack: 16, ..Usage::default() };
    assert_eq!(judge(&scanned(&kernel(BOUNDS, "", "")), Some(&report(usage))), ["probe_x: a stack frame of 16 bytes"]);
    let local = kernel(BOUNDS, ".local .b8 x[16];\n.reg .b32 %r<2>;", "ld.local.b32 %r1, [x];");
    assert_eq!(judge(&scanned(&local), Some(&report(Usage::default()))), ["probe_x: uses .local memory"]);
}

#[test]
fn missing_launch_bounds_fail() {
    let text = kernel("", "", "setmaxnreg.inc.sync.aligned.u32 240;");
    let problems = judge(&scanned(&text), Some(&report(Usage::default())));
    assert!(problems[0].contains("no .maxntid") && problems[1].contains("no .minnctapersm"), "{problems:?}");
    if let Some((problems, report)) = assembled(&text) {
        assert!(problems.iter().any(|p| p.contains("C7508")), "{problems:?}");
        assert!(report.advisories.iter().any(|a| a.code == "C7508"));
    }
}

#[test]
fn bounds_other_than_the_tables_fail() {
    let text = kernel(".maxntid 256, 1, 1\n.minnctapersm 1", "", "");
    assert_eq!(judge(&scanned(&text), Some(&report(Usage::default()))), ["probe_x: .maxntid is 256, the table says 128"]);
}

/// A loop of one wgmma, with A from `a` and `after` executed while it is in flight.
fn in_flight(a: &str, after: &str) -> String {
    let registers = ".reg .pred p, q;\n.reg .f32 %f<4>;\n.reg .b32 %r<5>;\n.reg .b64 %rd<4>;";
    let zero: String = (0..4).map(|i| format!("mov.f32 %f{i}, 0f00000000;\nmov.b32 %r{}, 0;\n", i + 1)).collect();
    let body = format!(
        "ld.param.b64 %rd3, [probe_x_param_0];\n{zero}mov.b64 %rd1, %rd3;\nmov.b64 %rd2, %rd3;\nmov.b32 %r0, %tid.x;\nsetp.ne.b64 p, %rd3, 0;\n\
        LOOP:\nwgmma.fence.sync.aligned;\n\
        wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {{%f0, %f1, %f2, %f3}}, {a}, %rd2, p, 1, 1;\n\
        wgmma.commit_group.sync.aligned;\n{after}\nadd.s32 %r0, %r0, -1;\nsetp.ne.b32 q, %r0, 0;\n@q bra LOOP;\n\
        wgmma.wait_group.sync.aligned 0;\nst.global.f32 [%rd3], %f0;"
    );
    kernel(BOUNDS, registers, &body)
}

#[test]
fn registers_touched_while_a_wgmma_is_in_flight_fail() {
    let wait = "wgmma.wait_group.sync.aligned 0;";
    let cases = [
        ("C7513", in_flight("{%r1, %r2, %r3, %r4}", "add.s32 %r1, %r1, %r0;")),
        ("C7518", in_flight("%rd1", "add.f32 %f0, %f0, 0f3F800000;")),
        ("", in_flight("{%r1, %r2, %r3, %r4}", &format!("{wait}\nadd.s32 %r1, %r1, %r0;"))),
        ("", in_flight("%rd1", &format!("{wait}\nadd.f32 %f0, %f0, 0f3F800000;"))),
    ];
    for (code, text) in cases {
        let Some((problems, report)) = assembled(&text) else { return };
        if code.is_empty() {
            assert!(problems.is_empty(), "{problems:?}");
        } else {
            assert!(problems.iter().any(|p| p.contains(code)), "{code}: {problems:?} {report:?}");
        }
    }
}

#[test]
fn words_of_serialisation_fail() {
    for line in [
        "ptxas info    : (C7511) Potential Performance Loss: wgmma.mma_async instructions are serialized due to something",
        "ptxas info    : (C7515) Potential Performance Loss: wgmma.mma_async instructions are serialized due to something",
        "ptxas info    : (C7517) warpgroup.wait is injected in around line 26 by compiler to allow use of registers defined by GMMA",
    ] {
        let mut report = report(Usage::default());
        report.advisories = read_report(line).advisories;
        assert_eq!(judge(&scanned(&kernel(BOUNDS, "", "")), Some(&report)).len(), 1, "{line}");
    }
}

/// The snapshot of one probe kernel.
fn snapshot(text: &str, ptxas: Option<&str>, usage: Usage) -> Snapshot {
    let facts = scanned(text)["probe_x"].clone();
    let kernel = Kernel { declared: facts.declared, counts: facts.counted, usage: ptxas.map(|_| usage) };
    Snapshot { ptxas: ptxas.map(str::to_owned), kernels: [("probe_x".to_owned(), kernel)].into() }
}

/// Problems where `now` is not as `before`, without ptxas.
fn changes(before: &str, now: &str) -> Vec<String> {
    let of = |text| snapshot(text, None, Usage::default());
    let difference = compare(&of(before), &of(now));
    assert!(difference.notes.is_empty());
    difference.problems
}

#[test]
fn a_duplicated_barrier_fails() {
    let changed = |body| changes(&kernel(BOUNDS, "", "bar.sync 0;"), &kernel(BOUNDS, "", body));
    assert!(changed("bar.sync 0;").is_empty());
    let twice = changed("bar.sync 0;\nbar.sync 0;");
    assert_eq!(twice, ["probe_x: `bar.sync 0` occurs 2 times, expected 1: duplicated into a branch, or new in the source"]);
    assert_eq!(changed(""), ["probe_x: `bar.sync 0` occurs 0 times, expected 1"]);
    let wait = changed("bar.sync 0;\nwgmma.wait_group.sync.aligned 0;");
    assert!(wait[0].contains("`wgmma.wait_group.sync.aligned 0` occurs 1 times, expected 0"), "{wait:?}");
    let copy = changed("bar.sync 0;\ncp.async.wait_group 3;");
    assert!(copy[0].contains("`cp.async.wait_group 3` occurs 1 times"), "{copy:?}");
}

#[test]
fn other_declarations_fail() {
    let before = kernel(BOUNDS, "", "bar.sync 0;");
    let bounds = changes(&before, &before.replace(".minnctapersm 1", ".minnctapersm 2\n.maxnreg 64"));
    assert_eq!(
        bounds,
        ["probe_x: directives are [.maxnreg 64; .maxntid 128 1 1; .minnctapersm 2], in the snapshot [.maxntid 128 1 1; .minnctapersm 1]"]
    );
    let parameters = changes(&before, &before.replace(".param .u64 probe_x_param_0", ".param .align 8 .b8 probe_x_param_0[48]"));
    assert_eq!(parameters, ["probe_x: parameters are [.align 8 .b8 48], in the snapshot [.u64]"]);
    let own = changes(&before, &before.replace("bar.sync", ".shared .align 4 .b8 x[64];\nbar.sync"));
    assert_eq!(own, ["probe_x: shared variables are [.shared .align 4 .b8 x 64], in the snapshot []"]);
    let module = kernel(BOUNDS, "", "mov.u32 %r1, dyn_smem;").replace(".visible", ".extern .shared .align 1024 .b8 dyn_smem[];\n.visible");
    let aligned = changes(&module, &module.replace("1024", "16"));
    assert!(aligned[0].contains("[.extern .shared .align 16 .b8 dyn_smem]"), "{aligned:?}");
    assert!(changes(&module, &module).is_empty());
}

#[test]
fn what_one_ptxas_made_of_it_may_not_change_and_another_may_differ() {
    let text = kernel(BOUNDS, "", "");
    let usage = Usage { registers: 168, barriers: 3, ..Usage::default() };
    let more = Usage { registers: 170, shared: 64, ..usage.clone() };
    let before = snapshot(&text, Some("13.0"), usage.clone());
    assert_eq!(compare(&before, &snapshot(&text, Some("13.0"), usage.clone())), Default::default());
    let same = compare(&before, &snapshot(&text, Some("13.0"), more.clone()));
    assert_eq!(
        same.problems,
        ["probe_x: 170 registers, in the snapshot 168", "probe_x: 64 bytes of static shared memory, in the snapshot 0"]
    );
    assert!(same.notes.is_empty());
    let other = compare(&before, &snapshot(&text, Some("13.5"), more));
    assert!(other.problems.is_empty());
    assert!(other.notes.len() == 3 && other.notes[2].contains("ptxas is 13.5, the snapshot's 13.0"), "{:?}", other.notes);
    // Without a ptxas there is nothing to compare, and all else still is.
    assert_eq!(compare(&before, &snapshot(&text, None, usage.clone())), Default::default());
    assert_eq!(compare(&before, &snapshot(&kernel(BOUNDS, "", "bar.sync 0;"), None, usage)).problems.len(), 1);
}

#[test]
fn the_rules_hold_without_a_report() {
    assert!(judge(&scanned(&kernel(BOUNDS, "", "")), None).is_empty());
    assert_eq!(judge(&scanned(&kernel("", "", "")), None).len(), 2);
}

#[test]
fn entries_and_the_snapshot_must_agree() {
    let one = snapshot(&kernel(BOUNDS, "", ""), None, Usage::default());
    assert!(compare(&Snapshot::default(), &one).problems[0].contains("not in the snapshot"));
    assert!(compare(&one, &Snapshot::default()).problems[0].contains("not in host/ptx"));
}

#[test]
fn the_committed_snapshot_is_of_the_ptxas_that_is_fetched() {
    let table = sh::root().join("xtask/src/expected.json");
    let snapshot = Snapshot::read(&table).expect("the committed snapshot");
    let release = snapshot.ptxas.expect("made with a ptxas");
    let (_, wheel) = ptxas::WHEEL.split_once("==").expect("an exact release");
    assert!(release.ends_with(&format!("V{wheel}")), "{release} is not {wheel}: CI would compare no registers");
    assert!(snapshot.kernels.values().all(|k| k.usage.is_some()));
}

#[test]
fn refused_ptx_fails() {
    if let Some((problems, _)) = assembled(&kernel(BOUNDS, "", "frobnicate.b32;")) {
        assert!(problems.iter().any(|p| p.contains("fatal") || p.contains("error")), "{problems:?}");
    }
}

#[test]
fn reports_are_read() {
    let text = "ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored; unable to determine register count at entry.\n\
        ptxas info    : (C7519) warpgroup.arrive is injected in around line 12 by compiler to allow use of registers in GMMA in function 'probe_x'\n\
        ptxas warning : something odd\n\
        ptxas info    : 0 bytes gmem\n\
        ptxas info    : Compiling entry function 'probe_x' for 'sm_90a'\n\
        ptxas info    : Function properties for probe_x\n    \
            136 bytes stack frame, 132 bytes spill stores, 128 bytes spill loads\n\
        ptxas info    : Used 168 registers, used 9 barriers, 136 bytes cumulative stack size, 1040 bytes smem\n";
    let report = read_report(text);
    let fatal: Vec<_> = report.advisories.iter().map(|a| (a.code.as_str(), a.is_fatal())).collect();
    assert_eq!(fatal, [("C7508", true), ("C7519", false)]);
    assert_eq!(report.complaints, ["ptxas warning : something odd"]);
    insta::assert_snapshot!(serde_json::to_string_pretty(&report.entries).expect("plain data"));
}
