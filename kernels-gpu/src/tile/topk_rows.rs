//! Top-k of rows whose keys one warp holds in registers, one row or two together. A step of the search is a chain of slow
//! instructions on which the next step hangs; two rows take them side by side, and one sum over the lanes counts for both.

use crate::layout::choice::{Choice, packed, reached, unpacked};
use crate::layout::planes::{Half, Nested, ORDER, Signs};
use crate::layout::select::{BF16_LOW_BIT, Row, Rule};
use crate::ptx::int::mad;
use crate::ptx::{math, warp};
use crate::tile::key_planes::{Scores, planes_of};
use crate::tile::topk::{List, lane_0s};
use crate::tile::topk_list::write_sets;
use crate::unroll;
use core::array::from_fn as each;

/// One or two rows to decide. What there is to know of them is asked for again rather than kept in registers.
pub trait Rows {
    /// Their scores.
    type Scores: Scores;

    /// The scores of row `i`.
    fn scores(&self, i: u32) -> Self::Scores;

    /// Its candidates, [`crate::tile::topk::IN_REGISTERS`] at most (none: an empty list), and what it keeps.
    fn row(&self, i: u32) -> (Row, Rule);

    /// Where its list goes.
    fn list(&self, i: u32) -> List;
}

/// One row.
#[derive(Clone, Copy)]
pub struct Task<S> {
    /// Its scores.
    pub scores: S,
    /// Its candidates.
    pub row: Row,
    /// What it keeps.
    pub rule: Rule,
    /// Where its list goes.
    pub list: List,
}

impl<S: Scores> Rows for Task<S> {
    type Scores = S;

    #[inline(always)]
    fn scores(&self, _: u32) -> S {
        self.scores
    }

    #[inline(always)]
    fn row(&self, _: u32) -> (Row, Rule) {
        (self.row, self.rule)
    }

    #[inline(always)]
    fn list(&self, _: u32) -> List {
        self.list
    }
}

/// Writes the lists of one or two rows, and returns their lengths, for every lane. The scores of rows are overwritten.
///
/// # Safety
/// A whole warp calls it, converged, with the same rows; candidates of rows that choose have scores; there is room for as many scores as
/// there are candidates in any case; lists have room for their capacity, and nobody else uses any of them.
#[inline(always)]
pub unsafe fn select_rows<R: Rows, const N: usize>(rows: &R, lane: u32) -> [u32; N] {
    // SAFETY: forwarded; what decides about the way is the same for all lanes.
    unsafe {
        let found: [(Row, Rule); N] = each(|i| {
            let (row, rule) = rows.row(i as u32);
            lane_0s(row, rule)
        });
        let counts = found.map(|(row, _)| row.count);
        let choices = found.map(|(row, rule)| Choice::new(row, rule, lane));
        let mut kept = choices.map(|choice| choice.stay);
        if choices.iter().any(|choice| choice.budget > 0) {
            let budgets = choices.map(|choice| choice.budget);
            let (sets, exact) = search(rows, counts, choices, found.map(|(_, rule)| rule.low_bit), lane);
            let all: [bool; N] = each(|i| exact[i] | found[i].1.keep_all_ties);
            let mut chosen = sets.map(|sets| sets.enough);
            if all.contains(&false) {
                let first = first_ties(sets, budgets, lane);
                chosen = each(|i| if all[i] { chosen[i] } else { first[i] });
            }
            kept = each(|i| kept[i] | chosen[i]);
        }
        write_sets(rows, kept, counts, lane)
    }
}

/// Element `i` of one or two, not known when compiled: a loop over rows is shorter than its body twice.
#[inline(always)]
fn pick<T: Copy, const N: usize>(of: [T; N], i: i32) -> T {
    if i == 0 { of[0] } else { of[N - 1] }
}

/// The ranked places at or above the `budget`-th key, and whether they are just `budget`. Mostly the high halves tell.
#[inline(always)]
unsafe fn search<R: Rows, const N: usize>(
    rows: &R,
    counts: [i32; N],
    choices: [Choice; N],
    low_bits: [u32; N],
    lane: u32,
) -> ([Nested; N], [bool; N]) {
    let budgets = choices.map(|choice| choice.budget);
    let mut sets = choices.map(|choice| Nested::new(choice.ranked));
    let mut signs = [Signs::NONE; N];
    let (mut half, mut high) = (Half::HIGH, true);
    // SAFETY: forwarded.
    unsafe {
        loop {
            let mut planes = planes_of_all(rows, counts, budgets, half, lane);
            if high {
                signs = each(|i| if R::Scores::BF16 { Signs::of_bf16(&planes[i]) } else { Signs::new(&planes[i]) });
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
            let more: [bool; N] = each(|i| !exact[i] & (low_bits[i] < BF16_LOW_BIT));
            if R::Scores::BF16 || !high || !more.contains(&true) {
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
unsafe fn planes_of_all<R: Rows, const N: usize>(rows: &R, counts: [i32; N], budgets: [u32; N], half: Half, lane: u32) -> [[u32; 16]; N] {
    let mut planes = [[0; 16]; N];
    let mut i = 0;
    while i < N as i32 {
        // The row before makes room: registers have no index.
        planes[0] = planes[N - 1];
        if pick(budgets, i) > 0 {
            // SAFETY: forwarded.
            planes[N - 1] = unsafe { planes_of(rows.scores(i as u32), pick(counts, i), half, lane) };
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
