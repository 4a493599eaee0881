//! The warps that sum queries.

use crate::abi::SelectParams;
use crate::config::GROUPS;
use crate::config::select::{OCTET_BYTES, OCTETS, PARTS, QUERY_BYTES, SUM_STAGES, SUM_TURNS, SUM_WARPS};
use crate::layout::octet::{sums_at, sums_of_part};
use crate::layout::select::unit;
use crate::pipeline::kept::{keep, kept_alike};
use crate::pipeline::shared::Shared;
use crate::pipeline::stages::Turn;
use crate::ptx::tma::{self, TensorMapPtr};
use crate::ptx::{SmemAddr, cp_async, fence, mbarrier, smem, special, warp};
use crate::tile::octet::{Weights, sum_octet};
use crate::tile::queries::{Queries, Scales};
use crate::tile::strip::Strips;
use crate::unroll;

/// A warp that sums: every seventh unit of the block's. It has two stages of queries for itself, and fills one while it sums the other.
///
/// # Safety
/// A whole warp, converged, after the barriers' initialisation; one of the [`SUM_WARPS`] behind the consumers.
#[inline(always)]
pub(super) unsafe fn sum_queries<const WIDE: bool>(p: &SelectParams, shared: Shared, q_map: TensorMapPtr, number: u32) {
    let (mut strips, mut done, mut turn) = (Strips::new(p), 0u32, 0u32);
    // SAFETY: barriers are initialised.
    unsafe {
        while strips.any() {
            let strip = strips.current();
            strips.advance(&strip);
            let octets = strip.scored_octets(p, special::tid_x_again() % 32);
            if octets.count == 0 {
                continue;
            }
            let groups = strip.groups();
            // Registers are short until the next one.
            let [round, row] = strips.place();
            keep::<0>([round, row, (done + groups * octets.count) % SUM_WARPS, groups]);
            keep::<1>(Queries::of(p, &strip, octets.first).words());
            keep::<2>([octets.first, octets.count, 0, 0]);
            turn = sum_strip::<WIDE>(p, shared, q_map, number, [(SUM_WARPS + number - done) % SUM_WARPS, turn]);
            let [round, row, after, _] = kept_alike::<0>();
            (strips, done) = (Strips::at(p, [round, row]), after);
        }
    }
}

/// Bit of a unit that tells whether its first half was copied by threads; the next bit is the second's.
const COPIED: u32 = 30;

/// A unit of a strip, in one word.
#[derive(Clone, Copy)]
struct Unit(u32);

impl Unit {
    /// Of group `group`, counted through all spans, and the `n`-th octet; `turn` is the parity of the number of units that the warp has
    /// summed.
    #[inline(always)]
    fn new([group, n]: [u32; 2], turn: u32) -> Self {
        Self(group << 4 | n << 1 | turn)
    }

    /// Group.
    #[inline(always)]
    fn group(self) -> u32 {
        self.0 << PARTS >> (4 + PARTS)
    }

    /// Which of the octets.
    #[inline(always)]
    fn n(self) -> u32 {
        self.0 >> 1 & 7
    }

    /// Parity of the warp's stage.
    #[inline(always)]
    fn turn(self) -> u32 {
        self.0 & 1
    }

    /// The warp's next one, where a group has `octets` units.
    #[inline(always)]
    fn after(self, octets: u32) -> Self {
        let [groups, rest] = unit(SUM_WARPS, octets);
        let (group, n) = (self.group() + groups, self.n() + rest);
        Self::new(if n < octets { [group, n] } else { [group + 1, n - octets] }, self.turn() ^ 1)
    }

    /// The same, of which these halves, a bit each, were copied by threads.
    #[inline(always)]
    fn with_copied(self, parts: u32) -> Self {
        Self(self.0 | parts << COPIED)
    }

    /// Whether threads copied half `part`, and not the tensor map.
    #[inline(always)]
    fn copied(self, part: u32) -> bool {
        self.0 >> COPIED >> part & 1 != 0
    }
}

/// Has half `part` of a unit that exists come to the warp's stage for it. Returns whether threads copy it.
///
/// # Safety
/// In [`sum_strip`], by the whole warp, converged, of which no lane reads the stage any more.
#[inline(always)]
unsafe fn fill(queries: &Queries, shared: Shared, q_map: TensorMapPtr, number: u32, at: Unit, part: u32) -> bool {
    // SAFETY: forwarded; the stage is the warp's.
    unsafe {
        let half = queries.half(at.n(), at.group() % GROUPS as u32, part);
        let stage = number * PARTS + part;
        let (to, full) = (shared.unit(stage), shared.unit_full(stage));
        let (coords, there) = queries.box_of(half);
        if there {
            mbarrier::expect_tx(full, QUERY_BYTES);
            tma::load_4d_once(to, q_map, full, coords);
        } else {
            let lane = special::tid_x_again() % 32;
            queries.copy(half, to, lane);
            cp_async::arrive(full);
            // The barrier expects an arrival of every lane before the leader's can complete it.
            warp::sync();
            mbarrier::arrive_if(full, (lane == 0) as u32);
        }
        !there
    }
}

/// The warp's units of the strip that it has kept, of which the first is number `first`. Returns the parity of the number of units that
/// the warp has summed, `turn` before.
///
/// # Safety
/// As [`sum_queries`].
#[inline(always)]
unsafe fn sum_strip<const WIDE: bool>(p: &SelectParams, shared: Shared, q_map: TensorMapPtr, number: u32, [first, turn]: [u32; 2]) -> u32 {
    // SAFETY: queries are waited for before they are read, and the place of a group's sums before it is written: the products have
    // then read what was there.
    unsafe {
        // Groups are checked where scales are loaded: past the last there are none.
        let queries = Queries::from_words(p, kept_alike::<1>());
        let ([first_octet, octets, ..], groups) = (kept_alike::<2>(), kept_alike::<0>()[3]);
        let exists = |at: Unit| at.group() < groups;
        let load = |at: Unit, on| {
            let lane = special::tid_x_again() % 32;
            Scales::of(&queries).load(p, at.n(), at.group() % GROUPS as u32, lane, on)
        };
        let mut at = Unit(warp::shfl_idx_u32(Unit::new(unit(first, octets), turn).0, 0));
        let mut more = warp::any(exists(at) as u32);
        let mut scales = load(at, more);
        if more {
            // What the strip before was copied by threads must not come after what the tensor map brings.
            fence::proxy_async_shared();
            warp::sync();
            let (mut part, mut copied) = (0, 0);
            while part < PARTS {
                part = special::no_unroll(part);
                copied |= (fill(&queries, shared, q_map, number, at, part) as u32) << part;
                part += 1;
            }
            at = at.with_copied(copied);
        }
        while more {
            let weights = Weights::new(shared.weights(number), special::tid_x_again() % 32, scales);
            let after = Unit(warp::shfl_idx_u32(at.after(octets).0, 0));
            more = warp::any(exists(after) as u32);
            // On their way while this unit is summed.
            scales = load(after, more);
            // A span has an even number of passes over the turns: every strip finds them as the first one did. The stage is free when the
            // group has been read that many before: its barrier is the one that comes as many after.
            shared.sums.wait_empty(Turn::at(at.group() + SUM_STAGES));
            let lane = special::tid_x_again() % 32;
            let place = sums_at::<WIDE>(lane) + (first_octet + at.n()) * OCTET_BYTES;
            let to = shared.group::<WIDE>(Turn::at(at.group())).offset(place).0;
            let stage = |part| {
                let stage = number * PARTS + part;
                mbarrier::wait(shared.unit_full(stage), at.turn());
                shared.unit(stage)
            };
            let mut copied = 0;
            sum_octet(stage, weights, lane, |part, values| {
                let to = sums_of_part(to, part);
                unroll!(H < 2 { smem::st_v4(SmemAddr(to ^ (16 * H as u32)), values[H]); });
                if at.copied(part) {
                    fence::proxy_async_shared();
                }
                // All lanes have read the stage.
                warp::sync();
                if more {
                    copied |= (fill(&queries, shared, q_map, number, after, part) as u32) << part;
                }
            });
            // Every lane for itself: `compute-sanitizer --tool racecheck` does not follow what one lane says for others. Every barrier is told
            // as often: the last octet speaks for those that are not there.
            mbarrier::arrive_times(shared.written(Turn::at(at.group())), if at.n() + 1 == octets { OCTETS - at.n() } else { 1 });
            at = after.with_copied(copied);
        }
        at.turn()
    }
}

const _: () = assert!(OCTETS <= 4 && SUM_TURNS == 2 * SUM_STAGES, "octets of a unit's word, and barriers of the groups before");
