//! Which blocks of one score row stay, and their list: the second half of every selector. One warp takes one row, or two
//! together ([`crate::tile::topk_rows`]).
//!
//! In: the row's scores, in shared or in device memory ([`Scores`]), its candidates and guards ([`Row`]), budget and tie rule
//! ([`Rule`]). Out: the kept blocks in ascending order, and how many there are. Lane l has the keys of blocks l, l + 32, ..., as
//! bit planes ([`crate::layout::planes`]), so that a step of the search counts 32 of them at once. Rows of more than
//! [`IN_REGISTERS`] candidates are read again in every pass ([`crate::tile::topk_long`]).
//!
//! Exact: an order-preserving integer key for every score, counts without rounding, ties to the lower index. Nothing here
//! branches on a lane's own data: what a lane has no part in is no bit of a set.

use crate::layout::select::{Row, Rule};
use crate::ptx::{global, warp};
pub use crate::tile::key_planes::{DeviceScores, IN_REGISTERS, PairedScores, Scores, SharedScores};
use crate::tile::topk_long::select_long;
pub use crate::tile::topk_rows::{Rows, Task, select_rows};

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
            select_rows::<_, 1>(&Task { scores, row, rule, list }, lane)[0]
        } else {
            select_long(scores, row, rule, list, lane)
        }
    };
    if kept < list.capacity { kept } else { list.capacity }
}

/// Row and rule from lane 0: where they are known to be the same in the whole warp, ptxas needs no way for a divided one.
///
/// # Safety
/// A whole warp calls it, converged.
#[inline(always)]
pub unsafe fn lane_0s(row: Row, rule: Rule) -> (Row, Rule) {
    // SAFETY: a whole warp, converged.
    let [count, first_free, end_free, budget] =
        [row.count, row.first_free, row.end_free, rule.budget].map(|x| unsafe { warp::shfl_idx_u32(x as u32, 0) as i32 });
    (Row { count, first_free, end_free, ..row }, Rule { budget, ..rule })
}

/// Writes the list of a row that keeps everything it sees, `count` blocks, and returns that number: more, maybe, than there is room for.
///
/// # Safety
/// A whole warp calls it, converged; the list has room for its capacity, and nobody else uses it.
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
