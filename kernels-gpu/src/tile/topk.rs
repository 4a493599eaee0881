//! Which blocks of one score row stay, and their list: the second half of every selector. One warp takes one row.
//!
//! In: the row's scores, in shared or in device memory ([`Scores`]), its candidates and guards ([`Row`]), budget and tie rule
//! ([`Rule`]). Out: the kept blocks in ascending order, and how many there are. Up to [`IN_REGISTERS`] candidates, lane l holds
//! the keys of blocks l, l + 32, ... in registers; longer rows are read again in every pass, two bits a pass.
//!
//! Exact: an order-preserving integer key for every score, counts without rounding, ties to the lower index. Nothing here
//! branches on a lane's own data: what a lane has no part in is blanked or predicated.

use crate::layout::pages::clamped;
use crate::layout::select::{Row, Rule, Search, Threshold, score_key};
use crate::ptx::{SmemAddr, global, math, smem, warp};
use crate::unroll;

/// Candidates whose keys one warp holds: 32 a lane.
pub const IN_REGISTERS: i32 = 1024;

/// A row of scores.
pub trait Scores: Copy {
    /// The bits of score `j`, an f32.
    ///
    /// # Safety
    /// The row has a score `j`, complete and visible to the caller.
    unsafe fn bits(self, j: i32) -> u32;
}

/// Scores one after another in shared memory.
#[derive(Clone, Copy)]
pub struct SharedScores(pub SmemAddr);

/// Scores one after another in device memory.
#[derive(Clone, Copy)]
pub struct DeviceScores(pub u64);

impl Scores for SharedScores {
    #[inline(always)]
    unsafe fn bits(self, j: i32) -> u32 {
        // SAFETY: forwarded.
        unsafe { smem::ld_u32(self.0.offset(j as u32 * 4)) }
    }
}

impl Scores for DeviceScores {
    #[inline(always)]
    unsafe fn bits(self, j: i32) -> u32 {
        // SAFETY: forwarded.
        unsafe { global::ld_u32(self.0.wrapping_add(j as u32 as u64 * 4)) }
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
        if row.count <= 0 {
            0
        } else if !rule.chooses(row) {
            write_all(row.count, list, lane)
        } else if row.count <= IN_REGISTERS {
            select_short(scores, row, rule, list, lane)
        } else {
            select_long(scores, row, rule, list, lane)
        }
    };
    if kept < list.capacity { kept } else { list.capacity }
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
    let key = score_key(unsafe { scores.bits(clamped(j, row.count)) }) & (u32::MAX << rule.low_bit);
    if (j < row.count) & row.ranks(j) { key } else { 0 }
}

/// A row whose keys fit in registers.
#[inline(always)]
unsafe fn select_short<S: Scores>(scores: S, row: Row, rule: Rule, list: List, lane: u32) -> u32 {
    let mut keys = [0; 32];
    // SAFETY: forwarded; every condition around a warp-wide instruction is the same for all lanes.
    unsafe {
        unroll!(A < 4 {
            if 256 * (A as i32) < row.count {
                // Here: LLVM would keep all of these indices in registers from row to row.
                let lane = math::here(lane as i32);
                unroll!(B < 8 { keys[8 * A + B] = ranked_key(scores, row, rule, (256 * A + 32 * B) as i32 + lane); });
            }
        });
        let threshold = threshold_short(&keys, row.count, rule);
        let mut walk = Walk::new(row, threshold, list, lane);
        unroll!(A < 4 {
            if 256 * (A as i32) < row.count {
                unroll!(B < 8 { walk.step((256 * A + 32 * B) as i32, keys[8 * A + B]); });
            }
        });
        walk.kept
    }
}

/// The threshold of a row whose keys are in registers.
#[inline(always)]
unsafe fn threshold_short(keys: &[u32; 32], count: i32, rule: Rule) -> Threshold {
    if rule.budget <= 0 {
        return Threshold::NONE;
    }
    let budget = rule.budget as u32;
    let mut search = Search::START;
    let mut bit = 32;
    while bit > rule.low_bit {
        bit -= 1;
        let probe = search.probe(bit);
        let mut mine = 0;
        unroll!(A < 4 {
            if 256 * (A as i32) < count {
                unroll!(B < 8 { mine += (keys[8 * A + B] >= probe) as u32; });
            }
        });
        // SAFETY: a whole warp, converged: the count is the same for all lanes.
        let reach = unsafe { warp::add_u32(mine) };
        if reach == budget {
            return Threshold::at_least(probe);
        }
        search = search.decide(probe, reach, budget);
    }
    search.threshold(rule)
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
