//! Lists of the sets of places that a warp holds, of one row or two together.
//!
//! A lane gets a run of places that follow one another, and puts the numbers of those in the set where they come in the list: as many
//! steps as the fullest run has places in the set, mostly few. Lists are put together where the scores were, in shared memory, and then
//! copied in whole sectors.

use crate::layout::choice::{packed, unpacked};
use crate::layout::runs::{Round, Runs};
use crate::ptx::int::{highest_bit, mad, merge};
use crate::ptx::{global, math, warp};
use crate::tile::key_planes::Scores;
use crate::tile::topk::List;
use crate::tile::topk_rows::Rows;
use crate::unroll;
use core::array::from_fn as each;

/// Writes the lists of rows of `counts` candidates, at most 1,024, from the sets of their places, and returns their lengths: as much of
/// them as there is room for.
///
/// # Safety
/// As [`crate::tile::topk_rows::select_rows`]; nobody reads the scores any more.
#[inline(always)]
pub unsafe fn write_sets<R: Rows, const N: usize>(rows: &R, mut sets: [u32; N], counts: [i32; N], lane: u32) -> [u32; N] {
    // Here: what hangs on the lane takes registers.
    let lane = math::here(lane as i32) as u32;
    // SAFETY: forwarded; what decides about the way is the same for all lanes.
    unsafe {
        unroll!(B in [16 8 4 2 1] {
            let round = Round::new(B as u32, lane);
            sets = sets.map(|set| round.traded(set, warp::shfl_bfly_u32(set, B as u32), merge));
        });
        let runs = counts.map(|count| Runs::new(count as u32));
        let mut words: [u32; N] = each(|i| runs[i].of(warp::shfl_idx_u32(sets[i], runs[i].source(lane)), lane));
        let sizes = words.map(u32::count_ones);
        // Of this lane and those before it.
        let mut through = packed(sizes, mad);
        unroll!(D in [1 2 4 8 16] {
            let below = warp::shfl_up_u32(through, D as u32);
            through += if lane >= D as u32 { below } else { 0 };
        });
        let lengths: [u32; N] = unpacked(warp::shfl_idx_u32(through, 31));
        // From the last of a run to the first.
        let mut ends: [u32; N] = unpacked(through).map(|end| math::here(end as i32) as u32);
        let mut left = warp::max_u32(sizes.into_iter().fold(0, |most, size| if size > most { size } else { most }));
        let scores: [R::Scores; N] = each(|i| rows.scores(i as u32));
        // All lanes have read their scores.
        warp::sync();
        while left > 0 {
            // One by one: LLVM would make a vector of them, for which there are no instructions.
            ends = ends.map(|end| math::here(end as i32 - 1) as u32);
            let last = words.map(highest_bit);
            unroll!(I < 2 { if I < N { scores[I].put(ends[I], runs[I].first(lane).wrapping_add(last[I]), words[I]); } });
            words = each(|i| words[i] & !1u32.wrapping_shl(last[i]));
            left -= 1;
        }
        warp::sync();
        let mut i = 0;
        let mut written = lengths;
        while i < N as i32 {
            let (row, list) = (i as u32, rows.list(i as u32));
            let length = if i == 0 { lengths[0] } else { lengths[N - 1] };
            let length = if length < list.capacity { length } else { list.capacity };
            copy(rows.scores(row), list, length, lane);
            written = each(|k| if k as i32 == i { length } else { written[k] });
            i = math::here(i + 1);
        }
        written
    }
}

/// Copies a list of `length` entries from where the scores were to where it goes.
#[inline(always)]
unsafe fn copy<S: Scores>(from: S, list: List, length: u32, lane: u32) {
    let mut base = 0;
    while base < length {
        let mut entries = [0; 4];
        // SAFETY: places of the row; of what lies past the list nothing is stored.
        unsafe {
            unroll!(U < 4 { entries[U] = from.entry(base + 32 * U as u32 + lane, base + 32 * U as u32 + lane < length); });
            unroll!(U < 4 {
                let n = base + 32 * U as u32 + lane;
                global::st_u32_if(list.at.wrapping_add(n as u64 * 4), entries[U], (n < length) as u32);
            });
        }
        base += 128;
    }
}
