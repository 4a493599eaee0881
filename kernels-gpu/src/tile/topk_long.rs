//! Top-k of rows whose keys do not fit in registers: piece by piece, and again in every pass. A pass decides four bits of the
//! threshold, from how many keys reach each of its 15 candidates; a last one writes the list.

use crate::layout::digits::{DIGIT, Decided, candidates};
use crate::layout::planes::{Half, Nested, Places, Signs};
use crate::layout::select::{BF16_LOW_BIT, Row, Rule};
use crate::ptx::{global, math, warp};
use crate::tile::key_planes::{IN_REGISTERS, Scores, planes_of};
use crate::tile::topk::List;
use crate::tile::topk_rows::{first_ties, sizes};
use crate::unroll;

/// A row of any length.
///
/// # Safety
/// As [`crate::tile::topk::select_row`]; the row has candidates.
#[inline(always)]
pub unsafe fn select_long<S: Scores>(scores: S, row: Row, rule: Rule, list: List, lane: u32) -> u32 {
    let budget = if rule.budget > 0 { rule.budget as u32 } else { 0 };
    let mut decided = Decided::START;
    // SAFETY: forwarded; every condition around a warp-wide instruction is the same for all lanes.
    unsafe {
        while budget > 0 && !decided.exact && decided.digits < (32 - rule.low_bit) / DIGIT {
            let mut reach = [0; 15];
            let mut base = 0;
            while base < row.count {
                narrowed(scores, row, base, decided, Some(&mut reach), lane);
                base += IN_REGISTERS;
            }
            unroll!(V < 15 { reach[V] = warp::add_u32(reach[V]); });
            decided = decided.next(reach, budget);
        }
        let all_ties = rule.keep_all_ties || decided.exact;
        let (mut room, mut length, mut base) = (budget - decided.above, 0, 0);
        while base < row.count {
            let places = Places::new(row, base, lane);
            let mut kept = places.guards;
            if budget > 0 {
                let sets = narrowed(scores, row, base, decided, None, lane);
                let (mut ties, count) = (sets.tied(), sizes([sets.tied()])[0]);
                if !all_ties {
                    if count > room {
                        [ties] = first_ties([Nested::new(ties)], [room], lane);
                        room = 0;
                    } else {
                        room -= count;
                    }
                }
                kept |= sets.too_few | ties;
            }
            let rest = List { at: list.at + length as u64 * 4, capacity: list.capacity - length };
            let [size] = sizes([kept]);
            length += write_places(kept, size, piece(row, base), base as u32, rest, lane);
            base += IN_REGISTERS;
        }
        length
    }
}

/// Candidates in the piece from `base` on.
#[inline(always)]
fn piece(row: Row, base: i32) -> i32 {
    if row.count - base < IN_REGISTERS { row.count - base } else { IN_REGISTERS }
}

/// The piece from `base` on, after what is decided. With `reach`, also counts a lane's places that reach each next digit from 1 on.
#[inline(always)]
unsafe fn narrowed<S: Scores>(scores: S, row: Row, base: i32, decided: Decided, mut reach: Option<&mut [u32; 15]>, lane: u32) -> Nested {
    const HALF: u32 = BF16_LOW_BIT / DIGIT;
    let scores = scores.from(base as u32);
    let count = piece(row, base);
    let mut sets = Nested::new(Places::new(row, base, lane).ranked);
    // The high half first; the low one where it is reached.
    let (mut half, mut signs, mut first) = (Half::HIGH, Signs::NONE, 0);
    let last = if reach.is_some() { decided.digits + 1 } else { decided.digits };
    while first < last {
        // SAFETY: forwarded.
        let mut planes = unsafe { planes_of(scores, count, half, lane) };
        if first == 0 {
            signs = Signs::new(&planes);
            planes[15] = Signs::TOP;
        }
        unroll!(D < 4 {
            let digit = [planes[15 - 4 * D], planes[14 - 4 * D], planes[13 - 4 * D], planes[12 - 4 * D]];
            let digit = [signs.key_plane(digit[0]), signs.key_plane(digit[1]), signs.key_plane(digit[2]), signs.key_plane(digit[3])];
            let n = first + D as u32;
            if n < decided.digits {
                sets = decided.narrowed(n, sets, digit);
            } else if n == decided.digits && let Some(reach) = &mut reach {
                let sets = candidates(sets, digit);
                unroll!(V < 15 { reach[V] += sets[V].count_ones(); });
            }
        });
        half = Half::LOW;
        first += HALF;
    }
    sets
}

/// Writes the numbers `first + j` of places j, of `count` at most, in ascending order, and returns how many there are: `length`
/// in the set, of which the list leaves out what it has no room for.
///
/// # Safety
/// A whole warp, converged; the list has room for its capacity, and nobody else uses it.
#[inline(always)]
unsafe fn write_places(mut set: u32, mut length: u32, count: i32, first: u32, list: List, lane: u32) -> u32 {
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
