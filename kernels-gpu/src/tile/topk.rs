//! Which blocks of one score row stay, and their list: the second half of every selector. One warp takes one row.
//!
//! In: the row's scores, in shared or in device memory ([`Scores`]), its candidates and guards ([`Row`]), budget and tie rule
//! ([`Rule`]). Out: the kept blocks in ascending order, and how many there are. Up to [`IN_REGISTERS`] candidates in shared memory,
//! lane l holds the keys of blocks l, l + 32, ... in registers, as bit planes ([`crate::layout::planes`]): a step of the search, its
//! walk through 1,024 keys included, is seven instructions. Longer rows are read again in every pass, two bits a pass.
//!
//! Exact: an order-preserving integer key for every score, counts without rounding, ties to the lower index. Nothing here
//! branches on a lane's own data: what a lane has no part in is blanked or predicated.

use crate::layout::pages::clamped;
use crate::layout::planes::{Blend, Half, Nested, ORDER, Signs, half_planes, joined_planes, places_below};
use crate::layout::select::{Row, Rule, Search, Threshold, score_key};
use crate::ptx::int::{merge, prmt};
use crate::ptx::{SmemAddr, global, math, smem, warp};
use crate::unroll;

/// Candidates whose keys one warp holds: 32 a lane.
pub const IN_REGISTERS: i32 = 1024;

/// A row of scores.
pub trait Scores: Copy {
    /// Whether rows of at most [`IN_REGISTERS`] have code of their own.
    const SHORT: bool;

    /// The bits of score `j`, an f32; anything where `j >= count`.
    ///
    /// # Safety
    /// The row has `count` scores, at least one, complete and visible to the caller; `0 <= j`, and `j < IN_REGISTERS` or `j < count`.
    unsafe fn bits(self, j: i32, count: i32) -> u32;
}

/// Scores one after another in shared memory, which has room for [`IN_REGISTERS`] from the first on.
#[derive(Clone, Copy)]
pub struct SharedScores(pub SmemAddr);

/// Scores one after another in device memory.
#[derive(Clone, Copy)]
pub struct DeviceScores(pub u64);

impl Scores for SharedScores {
    const SHORT: bool = true;

    #[inline(always)]
    unsafe fn bits(self, j: i32, _count: i32) -> u32 {
        // SAFETY: forwarded; past the row's end there is shared memory still.
        unsafe { smem::ld_u32(self.0.offset(j as u32 * 4)) }
    }
}

// Only rows too long for shared memory lie here, and a few of the same strips.
impl Scores for DeviceScores {
    const SHORT: bool = false;

    #[inline(always)]
    unsafe fn bits(self, j: i32, count: i32) -> u32 {
        // SAFETY: forwarded; the index is held inside the row.
        unsafe { global::ld_u32(self.0.wrapping_add(clamped(j, count) as u32 as u64 * 4)) }
    }
}

/// How the planes are made.
struct Instructions;

impl Blend for Instructions {
    #[inline(always)]
    fn bytes(a: u32, b: u32, selector: u32) -> u32 {
        prmt(a, b, selector)
    }

    #[inline(always)]
    fn bits(a: u32, b: u32, mask: u32) -> u32 {
        merge(a, b, mask)
    }
}

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
        } else if S::SHORT && row.count <= IN_REGISTERS {
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

/// The key of place `j` where it is ranked, with the bits below the rule's lowest blanked; else 0, which no probe counts.
#[inline(always)]
unsafe fn ranked_key<S: Scores>(scores: S, row: Row, rule: Rule, j: i32) -> u32 {
    // SAFETY: the index is held inside the candidates.
    let key = score_key(unsafe { scores.bits(clamped(j, row.count), row.count) }) & (u32::MAX << rule.low_bit);
    if (j < row.count) & row.ranks(j) { key } else { 0 }
}

/// A row whose keys fit in registers, as bit planes.
#[inline(always)]
unsafe fn select_short<S: Scores>(scores: S, row: Row, rule: Rule, list: List, lane: u32) -> u32 {
    let free = places_below(row.end_free, lane) & !places_below(row.first_free, lane);
    let seen = places_below(row.count, lane);
    let ranked = if row.guards_rank { seen } else { seen & free };
    // SAFETY: forwarded; every condition around a warp-wide instruction is the same for all lanes.
    unsafe {
        let mut kept = seen & !free;
        if rule.budget > 0 {
            let (start, budget) = (Nested::new(ranked), rule.budget as u32);
            let sets = if rule.low_bit == 0 {
                search_f32(scores, row.count, start, budget, lane)
            } else {
                search_bf16(scores, row.count, start, budget, lane)
            };
            kept |= if rule.keep_all_ties || size(sets.enough) == budget { sets.enough } else { first_ties(sets, budget, lane) };
        }
        let mut length = size(kept);
        if length > list.capacity {
            kept = first_ties(Nested::new(kept), list.capacity, lane);
            length = list.capacity;
        }
        write_places(kept, row.count, list.at, lane);
        length
    }
}

/// How many places a set has in all lanes.
#[inline(always)]
unsafe fn size(set: u32) -> u32 {
    // SAFETY: a whole warp, converged.
    unsafe { warp::add_u32(set.count_ones()) }
}

/// Planes of one half of a row's scores, of which there are at most [`IN_REGISTERS`]. With `NORMAL`, minus zero counts as zero.
#[inline(always)]
unsafe fn planes_of<S: Scores, const NORMAL: bool>(scores: S, count: i32, half: Half, lane: u32) -> [u32; 16] {
    const MIDDLE: i32 = IN_REGISTERS / 2;
    // SAFETY: forwarded.
    unsafe {
        let low = planes_from::<S, NORMAL>(scores, count, 0, half, lane);
        let high = if count > MIDDLE { planes_from::<S, NORMAL>(scores, count, MIDDLE, half, lane) } else { [0; 8] };
        joined_planes::<Instructions>(low, high)
    }
}

/// Planes of 512 scores from `first` on.
#[inline(always)]
unsafe fn planes_from<S: Scores, const NORMAL: bool>(scores: S, count: i32, first: i32, half: Half, lane: u32) -> [u32; 8] {
    // Here: LLVM would keep all of these indices in registers from row to row.
    let first = first + math::here(lane as i32);
    let mut words = [0; 16];
    unroll!(U < 16 {
        // SAFETY: forwarded.
        let score = unsafe { scores.bits(first + 32 * U as i32, count) };
        words[U] = if NORMAL { (f32::from_bits(score) + 0.0).to_bits() } else { score };
    });
    half_planes::<Instructions>(words, half)
}

/// The ranked places at or above the `budget`-th key: scores that are bf16 values.
#[inline(always)]
unsafe fn search_bf16<S: Scores>(scores: S, count: i32, start: Nested, budget: u32, lane: u32) -> Nested {
    // SAFETY: forwarded.
    unsafe {
        let planes = planes_of::<S, false>(scores, count, Half::HIGH, lane);
        let signs = Signs::new(&planes, true);
        let mut sets = step(start, signs.top_plane(), budget).0;
        unroll!(B < 15 { sets = step(sets, signs.key_plane(planes[14 - B]), budget).0; });
        sets
    }
}

/// The ranked places at or above the `budget`-th key: any scores. Mostly the upper halves tell.
#[inline(always)]
unsafe fn search_f32<S: Scores>(scores: S, count: i32, start: Nested, budget: u32, lane: u32) -> Nested {
    // SAFETY: forwarded.
    unsafe {
        let planes = planes_of::<S, true>(scores, count, Half::HIGH, lane);
        let signs = Signs::new(&planes, false);
        // Looks at what has become of it every four steps: a step too many changes nothing.
        let (mut sets, mut exact) = step(start, signs.top_plane(), budget);
        unroll!(A < 4 {
            unroll!(B < 4 {
                if 4 * A + B > 0 {
                    let now;
                    (sets, now) = step(sets, signs.key_plane(planes[15 - 4 * A - B]), budget);
                    exact |= now;
                }
            });
            if exact {
                return sets;
            }
        });
        let planes = planes_of::<S, true>(scores, count, Half::LOW, lane);
        unroll!(A < 4 {
            unroll!(B < 4 {
                let now;
                (sets, now) = step(sets, signs.key_plane(planes[15 - 4 * A - B]), budget);
                exact |= now;
            });
            if exact {
                return sets;
            }
        });
        sets
    }
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
#[inline(always)]
unsafe fn first_ties(mut sets: Nested, budget: u32, lane: u32) -> u32 {
    // SAFETY: a whole warp, converged.
    unsafe {
        unroll!(B in [0 1 2 3 4] { sets = step(sets, ORDER[B], budget).0; });
        let tied = sets.tied();
        let before = warp::ballot(tied) & ((1 << lane) - 1);
        let stays = size(sets.too_few) + before.count_ones() < budget;
        if stays { sets.too_few | tied } else { sets.too_few }
    }
}

/// Writes the numbers of places from `at` on, in ascending order.
#[inline(always)]
unsafe fn write_places(mut set: u32, count: i32, mut at: u64, lane: u32) {
    let before = (1 << lane) - 1;
    let mut base = 0;
    while base < count {
        // SAFETY: a whole warp, converged; there is room for the set.
        unsafe {
            let mut kept = [0; 4];
            unroll!(U < 4 { kept[U] = warp::ballot(set & (1 << U)); });
            unroll!(U < 4 {
                let entry = at + (kept[U] & before).count_ones() as u64 * 4;
                global::st_u32_if(entry, (base + 32 * U as i32) as u32 + lane, set & (1 << U));
                at += kept[U].count_ones() as u64 * 4;
            });
        }
        set >>= 4;
        base += 128;
    }
}

/// A row of any length.
#[inline(always)]
unsafe fn select_long<S: Scores>(scores: S, row: Row, rule: Rule, list: List, lane: u32) -> u32 {
    // SAFETY: forwarded.
    unsafe {
        let threshold = threshold_long(scores, row, rule, lane);
        let mut walk = Walk::new(row, threshold, list, lane);
        let mut base = 0;
        while base < row.count {
            walk.step(base, ranked_key(scores, row, rule, base + lane as i32));
            base += 32;
        }
        walk.kept
    }
}

/// The threshold of a row of any length: two bits a pass, from the counts at three keys.
#[inline(always)]
unsafe fn threshold_long<S: Scores>(scores: S, row: Row, rule: Rule, lane: u32) -> Threshold {
    const _: () = assert!(crate::layout::select::BF16_LOW_BIT.is_multiple_of(2));
    if rule.budget <= 0 {
        return Threshold::NONE;
    }
    let budget = rule.budget as u32;
    let mut search = Search::START;
    let mut bit = 32;
    while bit > rule.low_bit {
        bit -= 2;
        let high = search.probe(bit + 1);
        let (both, low) = (high | (1 << bit), search.probe(bit));
        let mut mine = [0; 3];
        let mut base = 0;
        while base < row.count {
            // SAFETY: forwarded.
            let key = unsafe { ranked_key(scores, row, rule, base + lane as i32) };
            mine[0] += (key >= both) as u32;
            mine[1] += (key >= high) as u32;
            mine[2] += (key >= low) as u32;
            base += 32;
        }
        // SAFETY: a whole warp, converged.
        let [at_both, at_high, at_low] = unsafe { [warp::add_u32(mine[0]), warp::add_u32(mine[1]), warp::add_u32(mine[2])] };
        let upper = search.decide(high, at_high, budget);
        let (probe, reach) = if at_high >= budget { (both, at_both) } else { (low, at_low) };
        search = upper.decide(probe, reach, budget);
    }
    search.threshold(rule)
}

/// The walk that writes a list: 32 places a step, in ascending order.
#[derive(Clone, Copy)]
struct Walk {
    row: Row,
    threshold: Threshold,
    list: List,
    lane: i32,
    /// The lanes below.
    before: u32,
    ties: u32,
    kept: u32,
}

impl Walk {
    #[inline(always)]
    fn new(row: Row, threshold: Threshold, list: List, lane: u32) -> Self {
        Self { row, threshold, list, lane: lane as i32, before: (1 << lane) - 1, ties: 0, kept: 0 }
    }

    /// Places `base .. base + 32`; `key` is the lane's own.
    ///
    /// # Safety
    /// A whole warp, converged; the list has room for its capacity.
    #[inline(always)]
    unsafe fn step(&mut self, base: i32, key: u32) {
        let j = base + math::here(self.lane);
        let candidate = j < self.row.count;
        let ranked = candidate & self.row.ranks(j);
        // SAFETY: forwarded.
        unsafe {
            let ties = warp::ballot((ranked & (key == self.threshold.key)) as u32);
            let rank = self.ties + (ties & self.before).count_ones();
            let stays = (candidate & self.row.is_guard(j)) | (ranked & self.threshold.keeps(key, rank));
            let kept = warp::ballot(stays as u32);
            let at = self.kept + (kept & self.before).count_ones();
            global::st_u32_if(self.list.at + at as u64 * 4, j as u32, (stays & (at < self.list.capacity)) as u32);
            self.ties += ties.count_ones();
            self.kept += kept.count_ones();
        }
    }
}
