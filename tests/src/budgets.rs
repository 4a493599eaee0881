//! Token Position Decay in exact integers: what the f32 schedules of the host crate are held against.

use std::ops::RangeInclusive;

/// The start value of `Schedule::Hpc` for a prompt of `blocks` blocks, in integers.
pub fn hpc_start_value(blocks: u64) -> u64 {
    match blocks {
        0..56 => blocks,
        56..160 => blocks / 5 + 30,
        _ => blocks / 10 + 30,
    }
}

/// The budgets that f32 arithmetic may give the query block `block` of a prompt of `blocks` blocks, with start value `k` and
/// `alpha = permille / 1000`: one number, or two where the value before the floor lies within the roundings of an integer.
///
/// Between alpha and the floor lie six roundings of at most 2^-24 of a value that is at most k: 2^-20 of k holds them all.
pub fn decayed_budget(k: u64, blocks: u64, block: u64, permille: u64) -> RangeInclusive<u64> {
    if block < k || blocks - k <= 1 {
        return k..=k;
    }
    // k - (p - k)/(Pb - k - 1) * (1 - alpha) * k, over the common denominator.
    let denominator = 1000 * (blocks - k - 1);
    let value = k * denominator - (block - k) * (1000 - permille) * k;
    // Rounded up: below 1 it would let an integer through only if f32 met it exactly.
    let slack = (k * denominator).div_ceil(1 << 20);
    (value.saturating_sub(slack) / denominator).max(1)..=((value + slack) / denominator).clamp(1, k)
}
