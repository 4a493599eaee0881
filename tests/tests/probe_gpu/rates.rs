//! Instruction rates: plausible, which is all that can be asked of a clock.

use rstest::rstest;
use stem_attn_benches::rates::{OPS, Rates, TRIPS};
use stem_attn_tests::gpu::gpu;

/// The kernels on the GPU, or `None` after printing why the test is skipped.
fn rates() -> Option<Rates> {
    gpu().map(|_| Rates::open(0).expect("load the kernels"))
}

#[rstest]
fn products_alone_run_at_the_rate_of_the_tensor_core(#[values(1, 2)] warpgroups: u32) {
    let Some(rates) = rates() else { return };
    let rate = rates.measure(None, 0, warpgroups, TRIPS).expect("measure");
    let clocks = rate.clocks_per_wgmma.expect("products");
    // 64 x 128 x 32 multiplications at 4,096 a clock; a lone warpgroup shows its waits. The ends of two overlap not quite.
    assert!((63.5..110.0).contains(&clocks), "{clocks} clocks a product");
    assert_eq!(rate.clocks_per_instruction, None);
}

#[test]
fn exponentials_alone_run_at_the_rate_of_their_unit() {
    let Some(rates) = rates() else { return };
    let rate = rates.measure(Some(&OPS[0]), 1, 0, TRIPS).expect("measure");
    let clocks = rate.clocks_per_instruction.expect("instructions");
    assert!((7.0..10.0).contains(&clocks), "{clocks} clocks an exponential of a warp; 4 lanes a clock make 8");
    assert_eq!(rate.clocks_per_wgmma, None);
}

#[test]
fn no_instruction_was_optimised_away() {
    let Some(rates) = rates() else { return };
    for op in &OPS {
        for (warps, warpgroups) in [(1, 0), (2, 0), (1, 1), (2, 1), (1, 2)] {
            let rate = rates.measure(Some(op), warps, warpgroups, TRIPS).expect("measure");
            let clocks = rate.clocks_per_instruction.expect("instructions");
            // A scheduler issues one instruction a clock, of whichever warp.
            assert!((f64::from(warps)..50.0).contains(&clocks), "{op:?}, {warps} warps: {clocks} clocks");
            assert_eq!(rate.clocks_per_wgmma.is_some(), warpgroups > 0, "{op:?}");
            // No upper bound: two warps of multiply-adds a scheduler take the registers' ports before the products do, which
            // then hardly get on (13,000 clocks each).
            assert!(rate.clocks_per_wgmma.is_none_or(|c| c >= 63.0), "{op:?}: {rate:?}");
        }
    }
}

#[rstest]
#[case::four_warpgroups(2, 2, 1)]
#[case::three_warps(3, 0, 1)]
#[case::instruction_without_warps(0, 1, 1)]
#[case::no_trips(1, 0, 0)]
#[case::clock_wraps(1, 0, u32::MAX)]
fn what_cannot_be_measured_is_refused(#[case] warps: u32, #[case] warpgroups: u32, #[case] trips: u32) {
    let Some(rates) = rates() else { return };
    rates.measure(Some(&OPS[0]), warps, warpgroups, trips).expect_err("refused");
}
