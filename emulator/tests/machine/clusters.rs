//! What blocks of a cluster write to each other's shared memory.

use super::Run;
use super::races::race;
use stem_emulator::settings::Settings;

/// Two blocks of a warp, and a word of the output for each thread.
fn two_blocks() -> Run<'static> {
    Run { grid: 2, cluster: 2, out: 64, ..Run::default() }
}

/// An mbarrier at `%r1` for so many arrivals, which both blocks know; `%r2` is the other block, `%r3` 16 bytes for each thread before,
/// `%r4` a word of its own, `%r5` the other block's mbarrier, `%rd5` the thread's place in the output.
fn head(arrivals: u32) -> String {
    format!(
        "mov.u32 %r2, %cluster_ctarank; mad.lo.u32 %r4, %r2, 32, %r0; mul.wide.u32 %rd5, %r4, 4; add.s64 %rd5, %rd0, %rd5;
        add.u32 %r4, %r4, 1000; xor.b32 %r2, %r2, 1; shl.b32 %r3, %r0, 4;
        add.u32 %r1, %r63, 4096; setp.eq.u32 %p0, %r0, 0; @%p0 mbarrier.init.shared::cta.b64 [%r1], {arrivals};
        mapa.shared::cluster.u32 %r5, %r1, %r2; barrier.cluster.arrive; barrier.cluster.wait;"
    )
}

const RELEASE: &str = "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r5];";
const WAIT: &str = "$wait: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p7, [%r1], 0; @!%p7 bra $wait;";
const END: &str = "barrier.cluster.arrive; barrier.cluster.wait;";

/// Runs under some schedules.
fn runs(body: &str, want: &[u32]) {
    for seed in 0..8 {
        let settings = Settings { seed, mode: None, ..Settings::default() };
        assert_eq!(two_blocks().under(settings).run(body).unwrap(), want, "seed {seed}");
    }
}

/// What the other block's thread of the same number has in `%r4`.
fn swapped() -> Vec<u32> {
    (0..64).map(|i| 1000 + (i ^ 32)).collect()
}

/// Threads store in the other block, and read what its threads stored in theirs.
fn stores(arrive: &str, wait: &str) -> String {
    let head = head(32);
    format!(
        "{head} mapa.shared::cluster.u32 %r6, %r63, %r2; add.u32 %r6, %r6, %r3; st.shared::cluster.u32 [%r6+4], %r4; {arrive}
        {wait} add.u32 %r7, %r63, %r3; ld.shared.u32 %r8, [%r7+4]; st.global.u32 [%rd5], %r8; {END}"
    )
}

#[test]
fn stores_in_another_block() {
    runs(&stores(RELEASE, WAIT), &swapped());
}

#[test]
fn a_store_in_another_block_needs_a_release_and_an_acquire_of_the_cluster() {
    let plain = RELEASE.replace(".release.cluster", "");
    let block = WAIT.replace(".acquire.cluster", "");
    for (arrive, wait) in [(plain.as_str(), WAIT), (RELEASE, block.as_str()), (&plain, &block)] {
        let report = race(&two_blocks(), &stores(arrive, wait));
        assert!(report.contains("with no release and acquire of the cluster between block"), "{report}");
        assert!(report.contains("which writes it (line") && report.contains(": st.shared::cluster.u32 [%r6+4], %r4)"), "{report}");
    }
    // Who does not wait, or arrives before it stores.
    let store = "st.shared::cluster.u32 [%r6+4], %r4;";
    let late = stores(&format!("{RELEASE} {store}"), WAIT).replacen(store, "", 1);
    for body in [stores(RELEASE, ""), late] {
        let report = race(&two_blocks(), &body);
        assert!(report.contains("not ordered after"), "{report}");
    }
    // The barrier of the cluster, with and without a release.
    assert!(two_blocks().run(&stores("", END)).is_ok());
    let report = race(&two_blocks(), &stores("", &END.replace("arrive;", "arrive.relaxed;").replace("wait;", "wait.acquire;")));
    assert!(report.contains("with no release and acquire of the cluster between"), "{report}");
}

#[test]
fn one_thread_releases_for_its_block_and_one_acquires() {
    let one = |arrive: &str, wait: &str| {
        let (before, after) = (format!("bar.sync 0; @%p0 {arrive}"), format!("@!%p0 bra $others; {wait} $others: bar.sync 0;"));
        stores(&before, &after).replace(".b64 [%r1], 32;", ".b64 [%r1], 1;")
    };
    runs(&one(RELEASE, WAIT), &swapped());
    let report = race(&two_blocks(), &one(&RELEASE.replace(".release.cluster", ""), WAIT));
    assert!(report.contains("with no release and acquire of the cluster between"), "{report}");
}

/// Threads store 512 bytes, of which one copies `%r9` to the other block, where they are read.
fn copies(fence: &str, after: &str) -> String {
    let head = head(1);
    format!(
        "{head} add.u32 %r7, %r63, %r3; st.shared.v4.u32 [%r7], {{%r4, %r4, %r4, %r4}}; {fence} bar.warp.sync -1;
        add.u32 %r6, %r63, 1024; mapa.shared::cluster.u32 %r6, %r6, %r2; mov.u32 %r9, 512; mov.u32 %r10, %r63;
        @%p0 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 512;
        @%p0 cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r6], [%r10], %r9, [%r5];
        {after}"
    )
}

/// Waits for a phase of the copy as for one of device memory, reads, and meets.
fn read_copied() -> String {
    format!("{} ld.shared.u32 %r8, [%r7+1032]; st.global.u32 [%rd5], %r8; {END}", super::WAIT)
}

const FENCE: &str = "fence.proxy.async.shared::cta;";

#[test]
fn bytes_copied_to_another_block() {
    runs(&copies(FENCE, &read_copied()), &swapped());
}

#[test]
fn a_copy_of_what_stores_wrote_needs_a_proxy_fence() {
    let report = race(&two_blocks(), &copies("", &read_copied()));
    assert!(report.contains("a copy reads it") && report.contains("with no proxy fence between"), "{report}");
    let report = race(&two_blocks(), &copies(FENCE, &read_copied()).replace("bar.warp.sync -1;", ""));
    assert!(report.contains("a copy reads it") && report.contains("not ordered after"), "{report}");
}

#[test]
fn both_ends_of_a_copy_are_in_use_until_it_is_done() {
    // Read too early.
    race(&two_blocks(), &copies(FENCE, &read_copied().replace("$wait: ", "ld.shared.u32 %r8, [%r7+1032]; $wait: ")));
    // The own barrier says nothing of what the other block was sent; its arrival does, even one that releases to its block only.
    let back = |before: &str| {
        let init = format!("@%p0 mbarrier.init.shared::cta.b64 [%r1+8], 32; {END}");
        let after = format!("{} {before} st.shared.u32 [%r7], %r0; {END}", super::WAIT);
        copies(FENCE, &after).replacen(END, &init, 1)
    };
    let report = race(&two_blocks(), &back(""));
    assert!(report.contains("copy"), "{report}");
    let wait = super::WAIT.replace("[%r1]", "[%r1+8]").replace("$wait", "$back");
    assert!(two_blocks().run(&back(&format!("mbarrier.arrive.shared::cluster.b64 _, [%r5+8]; {wait}"))).is_ok());
}

#[test]
fn copies_between_blocks_are_checked() {
    let read = read_copied();
    for (from, to, what) in [
        ("%r9, 512", "%r9, 520", "a copy of 520 bytes"),
        ("%r10, %r63", "%r10, %r6", "as if it were the own"),
        ("add.u32 %r6, %r63, 1024", "add.u32 %r6, %r63, 1032", "not aligned"),
        ("add.u32 %r6, %r63, 1024", "add.u32 %r6, %r63, 7696", "past the end"),
        ("mov.u32 %r10, %r63", "add.u32 %r10, %r63, 7696", "past the end"),
        ("%r6, %r6, %r2", "%r6, %r6, 2", "block 2, which is not in the cluster"),
        ("%r9, [%r5]", "%r9, [%r1]", "that counts in block"),
        ("%r9, [%r5]", "%r9, [%r5+8]", "no mbarrier was initialised at 4104"),
    ] {
        let body = copies(FENCE, &read).replacen(from, to, 1);
        let report = two_blocks().fails(&body);
        assert!(report.contains(what), "{what}: {report}");
    }
}

#[test]
fn a_block_that_has_ended_has_no_shared_memory() {
    // Block 1 ends while block 0 spins.
    let gone = |last: &str| {
        let head = head(1);
        format!(
            "{head} mov.u32 %r6, 0; setp.eq.u32 %p1, %r2, 0; @%p1 ret; mapa.shared::cluster.u32 %r7, %r63, %r2;
            $spin: add.u32 %r6, %r6, 1; setp.lt.u32 %p4, %r6, 9999; @%p4 bra $spin; {last}"
        )
    };
    let copy = "@%p0 cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r7], [%r63], 16, [%r5];";
    for last in ["st.shared::cluster.u32 [%r7], %r0;", RELEASE, copy] {
        let report = two_blocks().fails(&gone(last));
        assert!(report.contains("block 1, which has exited"), "{report}");
    }
    // The copy's own block ends before it is done, as some schedule finds.
    let early = format!(
        "@%p0 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 16; setp.eq.u32 %p1, %r2, 0; @%p1 bra $wait; {copy} ret; {}",
        super::WAIT
    );
    let body = format!("{} mapa.shared::cluster.u32 %r7, %r63, %r2; {early}", head(1));
    let found = (0..16).filter_map(|seed| two_blocks().under(Settings { seed, ..Settings::default() }).run(&body).err());
    assert!(found.into_iter().any(|e| e.to_string().contains("a copy: shared memory of block 0, which has exited")));
}
