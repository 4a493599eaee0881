//! Probe of the second half of the selectors: lists of rows whose scores the test makes up.

use super::probe::word;
use crate::abi_probe::{PROBE_PAIR_ROWS, PROBE_ROWS, ProbeParams, REGIONS_AT, RowParams, THREADS};
use crate::layout::select::{Row, Rule};
use crate::ptx::{SmemAddr, global, smem, special, warp};
use crate::tile::topk::{DeviceScores, IN_REGISTERS, List, Rows, SharedScores, select_row, select_rows};
use crate::unroll;

/// Lists of `count` rows. `a`: f32 rows of `x` scores; `b`: [`RowParams`] of each row; out: `b`'s lists of `y` entries in `out`,
/// their lengths in `c`. With `z` 1 a warp selects rows of at most 1,024 scores from shared memory, all others from device memory;
/// with 0 all of them from device memory. With `z` 2 a warp has two rows that follow one another and selects them together from
/// shared memory; all have at most 1,024 scores. Grid: [`PROBE_ROWS`] rows a block, or [`PROBE_PAIR_ROWS`].
///
/// # Safety
/// Launched with [`THREADS`] threads and the probes' shared memory on buffers of these sizes.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_select_rows(p: ProbeParams) {
    let (warp, lane, pairs) = (special::ctaid_x() * PROBE_ROWS + special::tid_x() / 32, special::tid_x() % 32, p.z == 2);
    let index = if pairs { 2 * warp } else { warp };
    if index >= p.count as u32 {
        return;
    }
    // SAFETY: the row is one of `count`; whole warps take the same way.
    unsafe {
        if pairs {
            select_pair(&p, index, lane);
            return;
        }
        let (row, rule, list) = row(&p, index);
        let kept = if p.z != 0 && row.count <= IN_REGISTERS {
            select_row(SharedScores::<true>(copied(&p, index, row.count, special::tid_x() / 32, lane)), row, rule, list, lane)
        } else {
            select_row(DeviceScores(scores(&p, index)), row, rule, list, lane)
        };
        global::st_u32_if(word(p.c, index), kept, (lane == 0) as u32);
    }
}

/// Rows `index` and `index + 1`, if there is one, together.
#[inline(always)]
unsafe fn select_pair(p: &ProbeParams, index: u32, lane: u32) {
    let there = |i: u32| index + i < p.count as u32;
    let place = 2 * (special::tid_x() / 32);
    // SAFETY: rows of `count`; of another nothing is read, and nothing of it written.
    unsafe {
        unroll!(I < 2 {
            if there(I as u32) {
                copied(p, index + I as u32, row(p, index + I as u32).0.count, place + I as u32, lane);
            }
        });
        let kept = select_rows::<_, 2>(&Pair { p, index, place }, lane);
        unroll!(I < 2 { global::st_u32_if(word(p.c, index + I as u32), kept[I], ((lane == 0) & there(I as u32)) as u32); });
    }
}

/// Rows `index` and `index + 1`, and where their scores are; one that is not there has no candidates.
struct Pair<'a> {
    p: &'a ProbeParams,
    index: u32,
    place: u32,
}

impl Pair<'_> {
    #[inline(always)]
    fn there(&self, i: u32) -> bool {
        self.index + i < self.p.count as u32
    }

    #[inline(always)]
    fn at(&self, i: u32) -> (Row, Rule, List) {
        // SAFETY: one of `count` rows.
        unsafe { row(self.p, if self.there(i) { self.index + i } else { self.index }) }
    }
}

impl Rows for Pair<'_> {
    type Scores = SharedScores<false>;

    fn scores(&self, i: u32) -> Self::Scores {
        SharedScores(shared_row(self.place + i))
    }

    fn row(&self, i: u32) -> (Row, Rule) {
        let (row, rule, _) = self.at(i);
        (if self.there(i) { row } else { Row { count: 0, first_free: 0, end_free: 0, ..row } }, rule)
    }

    fn list(&self, i: u32) -> List {
        self.at(i).2
    }
}

/// What decides about row `index`, and its list.
#[inline(always)]
unsafe fn row(p: &ProbeParams, index: u32) -> (Row, Rule, List) {
    // SAFETY: forwarded.
    let RowParams { count, first_free, end_free, guards_rank, budget, keep_all_ties, low_bit, .. } =
        unsafe { *(p.b as *const RowParams).add(index as usize) };
    let row = Row { count, first_free, end_free, guards_rank: guards_rank != 0 };
    let rule = Rule { budget, keep_all_ties: keep_all_ties != 0, low_bit: low_bit as u32 };
    (row, rule, List { at: p.out + index as u64 * p.y as u32 as u64 * 4, capacity: p.y as u32 })
}

/// Its scores.
#[inline(always)]
fn scores(p: &ProbeParams, index: u32) -> u64 {
    p.a + index as u64 * p.x as u32 as u64 * 4
}

/// Room for the scores of a row in shared memory.
#[inline(always)]
fn shared_row(place: u32) -> SmemAddr {
    smem::base().offset(REGIONS_AT + place * IN_REGISTERS as u32 * 4)
}

/// Its scores, `count`, copied to place `place` of shared memory by a warp; past them lies its first.
#[inline(always)]
unsafe fn copied(p: &ProbeParams, index: u32, count: i32, place: u32, lane: u32) -> SmemAddr {
    let (from, to) = (scores(p, index), shared_row(place));
    let mut j = lane;
    // SAFETY: forwarded.
    unsafe {
        while j < IN_REGISTERS as u32 {
            let at = if (j as i32) < count { j } else { 0 };
            let score = if count > 0 { global::ld_u32(from + at as u64 * 4) } else { 0 };
            smem::st_u32(to.offset(j * 4), score);
            j += 32;
        }
        warp::sync();
    }
    to
}

const _: () = assert!(THREADS == 32 * PROBE_ROWS && PROBE_PAIR_ROWS == 2 * PROBE_ROWS);
