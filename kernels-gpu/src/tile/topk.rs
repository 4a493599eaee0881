//! Which blocks of one score row stay, and their list: the second half of every selector. One warp takes one row.
//!
//! In: the row's scores, in shared or in device memory ([`Scores`]), its candidates and guards ([`Row`]), budget and tie rule
//! ([`Rule`]). Out: the kept blocks in ascending order, and how many there are. Lane l has the keys of blocks l, l + 32, ..., as
//! bit planes ([`crate::layout::planes`]), so that a step of the search counts 32 of them at once. Rows of more than
//! [`IN_REGISTERS`] candidates are read again in every pass ([`crate::tile::topk_long`]).
//!
//! Exact: an order-preserving integer key for every score, counts without rounding, ties to the lower index. Nothing here
//! branches on a lane's own data: what a lane has no part in is no bit of a set.

use crate::layout::planes::{Half, Nested, ORDER, Places, Signs};
use crate::layout::select::{Row, Rule};
use crate::ptx::{global, warp};
use crate::tile::key_planes::planes_of;
pub use crate::tile::key_planes::{DeviceScores, IN_REGISTERS, Scores, SharedScores};
use crate::tile::topk_long::select_long;
use crate::unroll;

/// Where a list goes: i32 entries at a device address.
#[derive(Clone, Copy)]
pub struct List {
    /// Address of the first entry.
    pub at: u64,
    /// Entries there is room for; what does not fit is left out.
    pub capacity: u32,
}

/// Writes the list of a row and returns its length, for every lane. A row without candidates has an empty list.
///
/// # Safety
/// A whole warp calls it, converged, with the same row, rule and list; the row's candidates have scores; the list has room for
/// its capacity, and nobody else uses it.
#[inline(always)]
pub unsafe fn select_row<S: Scores>(scores: S, row: Row, rule: Rule, list: List, lane: u32) -> u32 {
    // SAFETY: forwarded; row and rule are the same for all lanes, so all take the same way.
    let kept = unsafe {
        let (row, rule) = lane_0s(row, rule);
        if row.count <= 0 {
            0
        } else if !rule.chooses(row) {
            write_all(row.count, list, lane)
        } else if !S::LONG || (S::SHORT && row.count <= IN_REGISTERS) {
            select_short(scores, row, rule, list, lane)
        } else {
            select_long(scores, row, rule, list, lane)
        }
    };
    if kept < list.capacity { kept } else { list.capacity }
}

/// Row and rule from lane 0: where they are known to be the same in the whole warp, ptxas needs no way for a divided one.
#[inline(always)]
unsafe fn lane_0s(row: Row, rule: Rule) -> (Row, Rule) {
    // SAFETY: a whole warp, converged.
    let [count, first_free, end_free, budget] =
        [row.count, row.first_free, row.end_free, rule.budget].map(|x| unsafe { warp::shfl_idx_u32(x as u32, 0) as i32 });
    (Row { count, first_free, end_free, ..row }, Rule { budget, ..rule })
}

/// The list of a row that keeps everything it sees.
#[inline(always)]
unsafe fn write_all(count: i32, list: List, lane: u32) -> u32 {
    let mut base = 0;
    while base < count as u32 {
        let j = base + lane;
        // SAFETY: below the capacity.
        unsafe { global::st_u32_if(list.at + j as u64 * 4, j, ((j < count as u32) & (j < list.capacity)) as u32) };
        base += 32;
    }
    count as u32
}

/// A row whose keys fit in registers.
#[inline(always)]
unsafe fn select_short<S: Scores>(scores: S, row: Row, rule: Rule, list: List, lane: u32) -> u32 {
    let places = Places::new(row, 0, lane);
    // SAFETY: forwarded; every condition around a warp-wide instruction is the same for all lanes.
    unsafe {
        let mut kept = places.guards;
        if rule.budget > 0 {
            let (start, budget) = (Nested::new(places.ranked), rule.budget as u32);
            let sets = if rule.low_bit == 0 {
                search_f32(scores, row.count, start, budget, lane)
            } else {
                search_bf16(scores, row.count, start, budget, lane)
            };
            kept |= if rule.keep_all_ties || size(sets.enough) == budget { sets.enough } else { first_ties(sets, budget, lane) };
        }
        write_places(kept, row.count, 0, list, lane)
    }
}

/// How many places a set has in all lanes.
///
/// # Safety
/// A whole warp calls it, converged.
#[inline(always)]
pub unsafe fn size(set: u32) -> u32 {
    // SAFETY: a whole warp, converged.
    unsafe { warp::add_u32(set.count_ones()) }
}

/// The ranked places at or above the `budget`-th key: scores that are bf16 values.
#[inline(always)]
unsafe fn search_bf16<S: Scores>(scores: S, count: i32, mut sets: Nested, budget: u32, lane: u32) -> Nested {
    // SAFETY: forwarded.
    unsafe {
        let mut planes = planes_of::<S, false>(scores, count, Half::HIGH, lane);
        let signs = Signs::new(&planes, true);
        planes[15] = Signs::TOP;
        unroll!(B < 16 { sets = step(sets, signs.key_plane(planes[15 - B]), budget).0; });
        sets
    }
}

/// The ranked places at or above the `budget`-th key: any scores. Mostly the high halves tell.
#[inline(always)]
unsafe fn search_f32<S: Scores>(scores: S, count: i32, sets: Nested, budget: u32, lane: u32) -> Nested {
    // SAFETY: forwarded.
    unsafe {
        let mut planes = planes_of::<S, true>(scores, count, Half::HIGH, lane);
        let signs = Signs::new(&planes, false);
        planes[15] = Signs::TOP;
        let (sets, exact) = search_half(sets, signs, planes, budget);
        if exact {
            return sets;
        }
        let planes = planes_of::<S, true>(scores, count, Half::LOW, lane);
        search_half(sets, signs, planes, budget).0
    }
}

/// Up to sixteen steps, and whether the larger set has just `budget` places after them. They end early if it has, but ask only
/// every four steps: a step too many changes nothing then.
#[inline(always)]
unsafe fn search_half(mut sets: Nested, signs: Signs, planes: [u32; 16], budget: u32) -> (Nested, bool) {
    let mut exact = false;
    unroll!(A < 4 {
        unroll!(B < 4 {
            // SAFETY: forwarded.
            let (next, now) = unsafe { step(sets, signs.key_plane(planes[15 - 4 * A - B]), budget) };
            sets = next;
            exact |= now;
        });
        if exact {
            return (sets, true);
        }
    });
    (sets, false)
}

/// A step of the search, and whether the larger set has just `budget` places after it.
#[inline(always)]
unsafe fn step(sets: Nested, plane: u32, budget: u32) -> (Nested, bool) {
    let between = sets.between(plane);
    // SAFETY: a whole warp, converged: the count is the same for all lanes.
    let reach = unsafe { size(between) };
    (sets.step(between, reach >= budget), reach == budget)
}

/// The smaller set, and of those between it and the larger the first, in order of their places, up to `budget` in all.
///
/// # Safety
/// A whole warp calls it, converged, with the same budget.
#[inline(always)]
pub unsafe fn first_ties(mut sets: Nested, budget: u32, lane: u32) -> u32 {
    // SAFETY: a whole warp, converged.
    unsafe {
        unroll!(B in [0 1 2 3 4] { sets = step(sets, ORDER[B], budget).0; });
        let tied = sets.tied();
        let before = warp::ballot(tied) & ((1 << lane) - 1);
        let stays = size(sets.too_few) + before.count_ones() < budget;
        if stays { sets.too_few | tied } else { sets.too_few }
    }
}

/// Writes the numbers `first + j` of places j, of `count` at most, in ascending order, and returns how many there are. What the
/// list has no room for is left out.
///
/// # Safety
/// A whole warp, converged; the list has room for its capacity, and nobody else uses it.
#[inline(always)]
pub unsafe fn write_places(mut set: u32, count: i32, first: u32, list: List, lane: u32) -> u32 {
    let before = (1 << lane) - 1;
    // SAFETY: forwarded; the length is the same for all lanes.
    unsafe {
        let mut length = size(set);
        if length > list.capacity {
            length = list.capacity;
            set = first_ties(Nested::new(set), length, lane);
        }
        let (mut base, mut at) = (0, list.at);
        while base < count {
            let mut kept = [0; 4];
            unroll!(U < 4 { kept[U] = warp::ballot(set & (1 << U)); });
            unroll!(U < 4 {
                let entry = at + (kept[U] & before).count_ones() as u64 * 4;
                global::st_u32_if(entry, first + base as u32 + 32 * U as u32 + lane, set & (1 << U));
                at += kept[U].count_ones() as u64 * 4;
            });
            set >>= 4;
            base += 128;
        }
        length
    }
}
