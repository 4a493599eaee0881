//! Top-k of rows whose keys one warp holds in registers, one row or two together. A step of the search is a chain of slow
//! instructions on which the next step hangs; two rows take them side by side, and one sum over the lanes counts for both.

use crate::layout::choice::{Choice, packed, unpacked};
use crate::layout::planes::{Half, Nested, ORDER, Signs};
use crate::layout::select::{BF16_LOW_BIT, Row, Rule};
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

/// Writes the lists of one or two rows and returns their lengths, for every lane.
///
/// # Safety
/// A whole warp calls it, converged, with the same tasks; candidates of rows that choose have scores; lists have room for their
/// capacity, and nobody else uses them.
#[inline(always)]
pub unsafe fn select_rows<S: Scores, const N: usize>(tasks: [Task<S>; N], lane: u32) -> [u32; N] {
    // SAFETY: forwarded; what decides about the way is the same for all lanes.
    unsafe {
        let tasks = tasks.map(|task| {
            let (row, rule) = lane_0s(task.row, task.rule);
            Task { row, rule, ..task }
        });
        let choices: [Choice; N] = each(|i| Choice::new(tasks[i].row, tasks[i].rule, lane));
        let mut kept = choices.map(|choice| choice.stay);
        if choices.iter().any(|choice| choice.budget > 0) {
            let (sets, exact) = search(&tasks, &choices, lane);
            let all: [bool; N] = each(|i| exact[i] | tasks[i].rule.keep_all_ties);
            let mut chosen = sets.map(|sets| sets.enough);
            if all.contains(&false) {
                let first = first_ties(sets, choices.map(|choice| choice.budget), lane);
                chosen = each(|i| if all[i] { chosen[i] } else { first[i] });
            }
            kept = each(|i| kept[i] | chosen[i]);
        }
        let lengths = sizes(kept);
        let (counts, lists) = (tasks.map(|task| task.row.count), tasks.map(|task| task.list));
        let mut i = 0;
        while i < N as i32 {
            write_places(pick(kept, i), pick(lengths, i), pick(counts, i), 0, pick(lists, i), lane);
            i = math::here(i + 1);
        }
        each(|i| if lengths[i] < lists[i].capacity { lengths[i] } else { lists[i].capacity })
    }
}

/// Element `i` of one or two, not known when compiled: a loop over rows is shorter than its body twice.
#[inline(always)]
fn pick<T: Copy, const N: usize>(of: [T; N], i: i32) -> T {
    if i == 0 { of[0] } else { of[N - 1] }
}

/// The ranked places at or above the `budget`-th key, and whether they are just `budget`. Mostly the high halves tell.
#[inline(always)]
unsafe fn search<S: Scores, const N: usize>(tasks: &[Task<S>; N], choices: &[Choice; N], lane: u32) -> ([Nested; N], [bool; N]) {
    let mut sets = choices.map(|choice| Nested::new(choice.ranked));
    let mut exact = [false; N];
    let mut signs = [Signs::NONE; N];
    let (mut half, mut high) = (Half::HIGH, true);
    // SAFETY: forwarded.
    unsafe {
        loop {
            let mut planes = planes_of_all(tasks, choices, half, lane);
            if high {
                signs = each(|i| Signs::new(&planes[i]));
                unroll!(I < 2 { if I < N { planes[I][15] = Signs::TOP; } });
            }
            unroll!(A < 4 {
                // Asked every four steps: a step too many changes nothing.
                if A > 0 && !exact.contains(&false) {
                    return (sets, exact);
                }
                unroll!(B < 4 {
                    let plane = each(|i| signs[i].key_plane(planes[i][15 - 4 * A - B]));
                    let (next, now) = step(sets, plane, choices.map(|choice| choice.budget));
                    sets = next;
                    exact = each(|i| exact[i] | now[i]);
                });
            });
            let more: [bool; N] = each(|i| !exact[i] & (tasks[i].rule.low_bit < BF16_LOW_BIT));
            if !high || !more.contains(&true) {
                return (sets, exact);
            }
            (half, high) = (Half::LOW, false);
        }
    }
}

/// Planes of one half of the scores of rows that choose, one row after the other.
#[inline(always)]
unsafe fn planes_of_all<S: Scores, const N: usize>(tasks: &[Task<S>; N], choices: &[Choice; N], half: Half, lane: u32) -> [[u32; 16]; N] {
    let (scores, counts) = (tasks.map(|task| task.scores), tasks.map(|task| task.row.count));
    let budgets = choices.map(|choice| choice.budget);
    let mut planes = [[0; 16]; N];
    let mut i = 0;
    while i < N as i32 {
        // The row before makes room: registers have no index.
        planes[0] = planes[N - 1];
        if pick(budgets, i) > 0 {
            // SAFETY: forwarded.
            planes[N - 1] = unsafe { planes_of(pick(scores, i), pick(counts, i), half, lane) };
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
    // SAFETY: a whole warp, converged.
    unpacked(unsafe { warp::add_u32(packed(sets.map(u32::count_ones))) })
}

/// A step of the search, and whether the larger set has just `budget` places after it.
#[inline(always)]
unsafe fn step<const N: usize>(sets: [Nested; N], planes: [u32; N], budgets: [u32; N]) -> ([Nested; N], [bool; N]) {
    let between: [u32; N] = each(|i| sets[i].between(planes[i]));
    // SAFETY: a whole warp, converged: counts are the same for all lanes.
    let reach = unsafe { sizes(between) };
    (each(|i| sets[i].step(between[i], reach[i] >= budgets[i])), each(|i| reach[i] == budgets[i]))
}

/// The smaller set, and of those between it and the larger the first, in order of their places, up to `budget` in all.
///
/// # Safety
/// A whole warp calls it, converged, with the same budgets.
#[inline(always)]
pub unsafe fn first_ties<const N: usize>(mut sets: [Nested; N], budgets: [u32; N], lane: u32) -> [u32; N] {
    // SAFETY: a whole warp, converged.
    unsafe {
        unroll!(B in [0 1 2 3 4] { sets = step(sets, [ORDER[B]; N], budgets).0; });
        let tied = sets.map(|sets| sets.tied());
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
    // Lanes up to this one, and with it.
    let through = u32::MAX >> (31 - lane);
    // SAFETY: forwarded; the length is the same for all lanes.
    unsafe {
        if length > list.capacity {
            length = list.capacity;
            [set] = first_ties([Nested::new(set)], [length], lane);
        }
        // The entry before the next: ranks count from 1.
        let (mut base, mut at) = (0, list.at.wrapping_sub(4));
        while base < count {
            let mut rank = [0; 4];
            unroll!(U < 4 { rank[U] = (warp::ballot(set & (1 << U)) & through).count_ones(); });
            unroll!(U < 4 {
                global::st_u32_if(at.wrapping_add(rank[U] as u64 * 4), first + base as u32 + 32 * U as u32 + lane, set & (1 << U));
                // The last lane's rank counts all of them, at a fraction of what counting again costs.
                at = at.wrapping_add(warp::shfl_idx_u32(rank[U], 31) as u64 * 4);
            });
            set >>= 4;
            base += 128;
        }
        length
    }
}
