//! The order in which warps run.

use super::Run;
use std::collections::HashSet;
use stem_emulator::settings::{Mode, Settings};

/// Each of four warps takes sixteen tickets; which warp had which.
fn order(seed: u64, mode: Mode) -> Vec<u32> {
    let run = Run { threads: 128, out: 65, ..Run::default() }.under(Settings { seed, mode: Some(mode), ..Settings::default() });
    let mut out = run
        .run(
            "and.b32 %r1, %r0, 31; setp.ne.u32 %p0, %r1, 0; @%p0 ret;
            shr.u32 %r2, %r0, 5; mov.u32 %r3, 0;
            $loop: atom.global.add.u32 %r4, [%rd0], 1; add.u32 %r4, %r4, 2; mul.wide.u32 %rd5, %r4, 4; add.s64 %rd5, %rd5, %rd0;
            st.global.u32 [%rd5], %r2; add.u32 %r3, %r3, 1; setp.lt.u32 %p1, %r3, 16; @%p1 bra $loop;",
        )
        .unwrap();
    assert_eq!(out.remove(0), 63);
    out
}

#[test]
fn a_seed_gives_the_same_run_again_and_another_seed_another() {
    for mode in [Mode::One, Mode::Several, Mode::Changing] {
        let runs: Vec<_> = (0..8).map(|seed| order(seed, mode)).collect();
        assert_eq!(runs, (0..8).map(|seed| order(seed, mode)).collect::<Vec<_>>(), "{mode:?}");
        assert!(runs.iter().collect::<HashSet<_>>().len() > 4, "{mode:?}: {runs:?}");
    }
}

#[test]
fn a_warp_that_may_not_run_comes_last() {
    for seed in 0..8 {
        let order = order(seed, Mode::One);
        // Fifteen others' tickets come first, and nobody's after it.
        let last = order[63];
        assert!(order[48..].iter().all(|w| *w == last), "seed {seed}: {order:?}");
    }
}

#[test]
fn the_fair_schedule_lets_every_warp_start_before_one_ends() {
    let order = order(1, Mode::Fair);
    let first: HashSet<u32> = order[..48].iter().copied().collect();
    assert_eq!(first.len(), 4, "{order:?}");
}
