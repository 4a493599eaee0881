//! Top-k of rows whose keys one warp holds in registers, one row or two together. A step of the search is a chain of slow
//! instructions on which the next step hangs; two rows take them side by side, and one sum over the lanes counts for both.

use crate::layout::choice::{Choice, packed, reached, unpacked};
use crate::layout::planes::{Half, Nested, ORDER, Signs};
use crate::layout::select::{BF16_LOW_BIT, Row, Rule};
use crate::ptx::int::mad;
use crate::ptx::{global, math, warp};
use crate::tile::key_planes::{Scores, planes_of};
use crate::tile::topk::{List, lane_0s};
use crate::unroll;
use core::array::from_fn as each;

/// A row to decide.
#[derive(Clone, Copy)]
pub struct Task<S> {
    /// Its scores.
    pub scores: S,
    /// Its candidates, [`crate::tile::topk::IN_REGISTERS`] at most; none: an empty list.
    pub row: Row,
    /// What it keeps.
    pub rule: Rule,
    /// Where its list goes.
    pub list: List,
}

/// Writes the lists of one or two rows, `task(0)` and `task(1)`, and returns their lengths, for every lane. Tasks are asked for
/// again rather than kept in registers.
///
/// # Safety
/// A whole warp calls it, converged, with the same tasks; candidates of rows that choose have scores; lists have room for their
/// capacity, and nobody else uses them.
#[inline(always)]
pub unsafe fn select_rows<S: Scores, const N: usize>(task: impl Fn(u32) -> Task<S>, lane: u32) -> [u32; N] {
    // SAFETY: forwarded; what decides about the way is the same for all lanes.
    unsafe {
        let choices: [(Choice, Rule); N] = each(|i| {
            let Task { row, rule, .. } = task(i as u32);
            let (row, rule) = lane_0s(row, rule);
            (Choice::new(row, rule, lane), rule)
        });
        let mut kept = choices.map(|(choice, _)| choice.stay);
        if choices.iter().any(|(choice, _)| choice.budget > 0) {
            let budgets = choices.map(|(choice, _)| choice.budget);
            let (sets, exact) = search(&task, choices, lane);
            let all: [bool; N] = each(|i| exact[i] | choices[i].1.keep_all_ties);
            let mut chosen = sets.map(|sets| sets.enough);
            if all.contains(&false) {
                let first = first_ties(sets, budgets, lane);
                chosen = each(|i| if all[i] { chosen[i] } else { first[i] });
            }
            kept = each(|i| kept[i] | chosen[i]);
        }
        let mut lengths = sizes(kept);
        let mut i = 0;
        while i < N as i32 {
            let (Task { row, list, .. }, length) = (task(i as u32), pick(lengths, i));
            let count = warp::shfl_idx_u32(row.count as u32, 0) as i32;
            let length = write_places(pick(kept, i), length, count, 0, list, lane);
            lengths = each(|k| if k as i32 == i { length } else { lengths[k] });
            i = math::here(i + 1);
        }
        lengths
    }
}

/// Element `i` of one or two, not known when compiled: a loop over rows is shorter than its body twice.
#[inline(always)]
fn pick<T: Copy, const N: usize>(of: [T; N], i: i32) -> T {
    if i == 0 { of[0] } else { of[N - 1] }
}

/// The ranked places at or above the `budget`-th key, and whether they are just `budget`. Mostly the high halves tell.
#[inline(always)]
unsafe fn search<S: Scores, const N: usize>(
    task: &impl Fn(u32) -> Task<S>,
    choices: [(Choice, Rule); N],
    lane: u32,
) -> ([Nested; N], [bool; N]) {
    let budgets = choices.map(|(choice, _)| choice.budget);
    let mut sets = choices.map(|(choice, _)| Nested::new(choice.ranked));
    let mut signs = [Signs::NONE; N];
    let (mut half, mut high) = (Half::HIGH, true);
    // SAFETY: forwarded.
    unsafe {
        loop {
            let mut planes = planes_of_all(task, budgets, half, lane);
            if high {
                signs = each(|i| Signs::new(&planes[i]));
                unroll!(I < 2 { if I < N { planes[I][15] = Signs::TOP; } });
            }
            unroll!(B < 8 { sets = step(sets, each(|i| signs[i].key_plane(planes[i][15 - B])), budgets); });
            // Low halves tell soon: a step too many changes nothing, but takes its time.
            if !high {
                let exact = exact(sets, budgets);
                if !exact.contains(&false) {
                    return (sets, exact);
                }
            }
            unroll!(B < 8 { sets = step(sets, each(|i| signs[i].key_plane(planes[i][7 - B])), budgets); });
            let exact = exact(sets, budgets);
            let more: [bool; N] = each(|i| !exact[i] & (choices[i].1.low_bit < BF16_LOW_BIT));
            if !high || !more.contains(&true) {
                return (sets, exact);
            }
            (half, high) = (Half::LOW, false);
        }
    }
}

/// Whether the larger sets have just their budgets.
#[inline(always)]
unsafe fn exact<const N: usize>(sets: [Nested; N], budgets: [u32; N]) -> [bool; N] {
    // SAFETY: a whole warp, converged.
    let sizes = unsafe { sizes(sets.map(|sets| sets.enough)) };
    each(|i| sizes[i] == budgets[i])
}

/// Planes of one half of the scores of rows that choose, one row after the other.
#[inline(always)]
unsafe fn planes_of_all<S: Scores, const N: usize>(
    task: &impl Fn(u32) -> Task<S>,
    budgets: [u32; N],
    half: Half,
    lane: u32,
) -> [[u32; 16]; N] {
    let mut planes = [[0; 16]; N];
    let mut i = 0;
    while i < N as i32 {
        // The row before makes room: registers have no index.
        planes[0] = planes[N - 1];
        if pick(budgets, i) > 0 {
            let Task { scores, row, .. } = task(i as u32);
            // SAFETY: forwarded.
            planes[N - 1] = unsafe { planes_of(scores, warp::shfl_idx_u32(row.count as u32, 0) as i32, half, lane) };
        }
        i = math::here(i + 1);
    }
    planes
}

/// How many places sets of at most 1,024 have in all lanes.
///
/// # Safety
/// A whole warp calls it, converged.
#[inline(always)]
pub unsafe fn sizes<const N: usize>(sets: [u32; N]) -> [u32; N] {
    // SAFETY: forwarded.
    unpacked(unsafe { packed_sizes(sets) })
}

/// As [`sizes`], in one word.
#[inline(always)]
unsafe fn packed_sizes<const N: usize>(sets: [u32; N]) -> u32 {
    // SAFETY: a whole warp, converged.
    unsafe { warp::add_u32(packed(sets.map(u32::count_ones), mad)) }
}

/// A step of the search.
#[inline(always)]
unsafe fn step<const N: usize>(sets: [Nested; N], planes: [u32; N], budgets: [u32; N]) -> [Nested; N] {
    let between: [u32; N] = each(|i| sets[i].between(planes[i]));
    // SAFETY: a whole warp, converged: counts are the same for all lanes.
    let enough = reached(unsafe { packed_sizes(between) }, budgets);
    each(|i| sets[i].step(between[i], enough[i]))
}

/// The smaller set, and of those between it and the larger the first, in order of their places, up to `budget` in all.
///
/// # Safety
/// A whole warp calls it, converged, with the same budgets.
#[inline(always)]
pub unsafe fn first_ties<const N: usize>(mut sets: [Nested; N], budgets: [u32; N], lane: u32) -> [u32; N] {
    // SAFETY: a whole warp, converged.
    unsafe {
        unroll!(B in [0 1 2 3 4] { sets = step(sets, [ORDER[B]; N], budgets); });
        let tied = sets.map(|sets| sets.tied());
        let lane = math::here(lane as i32);
        let before = tied.map(|tied| (warp::ballot(tied) & ((1 << lane) - 1)).count_ones());
        let sure = sizes(sets.map(|sets| sets.too_few));
        each(|i| if sure[i] + before[i] < budgets[i] { sets[i].too_few | tied[i] } else { sets[i].too_few })
    }
}

/// Writes the numbers `first + j` of places j, of `count` at most, in ascending order, and returns how many there are: `length`
/// in the set, of which the list leaves out what it has no room for.
///
/// # Safety
/// A whole warp, converged; the list has room for its capacity, and nobody else uses it.
#[inline(always)]
pub unsafe fn write_places(mut set: u32, mut length: u32, count: i32, first: u32, list: List, lane: u32) -> u32 {
    // Lanes up to this one, and with it. Here, as in the loops of rows below it: what hangs on the lane takes registers.
    let lane = math::here(lane as i32) as u32;
    let through = u32::MAX >> (31 - lane);
    // SAFETY: forwarded; the length is the same for all lanes.
    unsafe {
        if length > list.capacity {
            length = list.capacity;
            [set] = first_ties([Nested::new(set)], [length], lane);
        }
        // Ranks count from 1.
        let (mut base, mut before) = (0, list.at.wrapping_sub(4));
        while base < count {
            let (mut rank, mut all) = ([0; 4], [0; 4]);
            unroll!(U < 4 { rank[U] = (warp::ballot(set & (1 << U)) & through).count_ones(); });
            // The last lane's rank counts them all, at a fraction of what counting again costs.
            unroll!(U < 4 { all[U] = warp::shfl_idx_u32(rank[U], 31); });
            let mut done = 0;
            unroll!(U < 4 {
                let entry = before.wrapping_add(u64::from(rank[U] + done) * 4);
                global::st_u32_if(entry, first + base as u32 + 32 * U as u32 + lane, set & (1 << U));
                done += all[U];
            });
            before = before.wrapping_add(u64::from(done) * 4);
            set >>= 4;
            base += 128;
        }
        length
    }
}
