//! The warps that copy: key sums, queries, and, in a manner of speaking, the query sums.

use crate::abi::SelectParams;
use crate::config::GROUPS;
use crate::config::select::{
    CONSUMERS, QUERY_AHEAD, QUERY_BYTES, QUERY_STAGES, RING_TILES, SPAN, STEP, STEPS, SUM_TURNS, TILE, TILE_BYTES,
};
use crate::pipeline::kept::{keep, kept_alike};
use crate::pipeline::scores::Shared;
use crate::pipeline::stages::Turn;
use crate::ptx::tma::{self, TensorMapPtr};
use crate::ptx::{cluster, cp_async, fence, mbarrier, special, warp};
use crate::tile::queries::Queries;
use crate::tile::strip::Strips;
use crate::unroll;

/// The warp that copies key sums. Of the tiles of a stage each block of the cluster loads every `blocks`-th, for all of them.
///
/// # Safety
/// A whole warp, converged, after the barriers' initialisation; the summaries are complete.
#[inline(always)]
pub(super) unsafe fn copy_keys(p: &SelectParams, shared: Shared, k_map: TensorMapPtr, lane: u32) {
    let (rank, blocks, leader) = (cluster::rank(), cluster::blocks(), (lane == 0) as u32);
    let everyone = ((1u32 << blocks) - 1) as u16;
    let (mut strips, mut spans) = (Strips::new(p), 0u32);
    // SAFETY: barriers are initialised; a stage is waited for before it is overwritten, and the scores that lie over the ring
    // before its first one is; what lies outside the tensor is zero-filled.
    unsafe {
        while strips.any() {
            let strip = strips.current();
            strips.advance(&strip);
            if !strip.has_scores(p, lane) {
                continue;
            }
            let (_, request) = strip.block(p, 0);
            let (kb_start, kv_head) = (request.kb_start, strip.kv_head(p));
            let mut first = 0;
            while first < strip.keys {
                let span = strip.span(first);
                // The parity of the phase before the first is 1: the first span does not wait.
                mbarrier::wait(shared.done(), (spans & 1) ^ 1);
                let (chunks, stages) = (span.chunks(), span.stages());
                let (mut step, mut n) = (0, 0);
                while step < STEPS {
                    let mut chunk = 0;
                    while chunk < chunks {
                        let tiles = span.tiles(chunk);
                        let key = kb_start + first + (chunk * CONSUMERS * TILE) as i32;
                        let at = Turn::<RING_TILES>::of(n, stages);
                        shared.keys.wait_empty(at);
                        mbarrier::expect_tx_if(shared.keys.full(at), tiles * TILE_BYTES, leader);
                        unroll!(T < 4 {
                            let tile = T as u32;
                            let mine = leader & (tile < tiles) as u32 & (tile & (blocks - 1) == rank) as u32;
                            let coords = [(step * STEP) as i32, key + (tile * TILE) as i32, kv_head];
                            cluster::load_3d_if(shared.key_tile(at.stage(), stages, tile), k_map, shared.keys.full(at), coords, everyone, mine);
                        });
                        n += 1;
                        chunk += 1;
                    }
                    step += 1;
                }
                first += SPAN as i32;
                spans += 1;
            }
        }
    }
}

/// The warp that copies queries, a unit a stage, group by group, once a span.
///
/// # Safety
/// A whole warp, converged, after the barriers' initialisation.
#[inline(always)]
pub(super) unsafe fn copy_queries(p: &SelectParams, q_map: TensorMapPtr) {
    let mut at = Turn::<QUERY_STAGES>::START;
    let mut strips = Strips::new(p);
    // SAFETY: barriers are initialised; a stage is waited for before it is overwritten.
    unsafe {
        while strips.any() {
            let strip = strips.current();
            strips.advance(&strip);
            let octets = strip.scored_octets(p, special::tid_x_again() % 32);
            if octets.count == 0 {
                continue;
            }
            keep::<1>(Queries::of(p, &strip, octets.first).words());
            let [round, row] = strips.place();
            // Registers are short while queries are copied.
            keep::<0>([round, row, octets.count, strip.groups()]);
            let mut group = 0;
            while group < kept_alike::<0>()[3] + QUERY_AHEAD {
                let mut n = 0;
                while n < kept_alike::<0>()[2] {
                    n = special::no_unroll(n);
                    if group < kept_alike::<0>()[3] {
                        prefetch_unit(p, q_map, n, group);
                    }
                    if group >= QUERY_AHEAD {
                        copy_unit(p, q_map, n, group - QUERY_AHEAD, at);
                        at = at.next();
                    }
                    n += 1;
                }
                group += 1;
            }
            let [round, row, ..] = kept_alike::<0>();
            strips = Strips::at(p, [round, row]);
        }
    }
}

/// Fetches group `group` of the `n`-th octet into L2.
///
/// # Safety
/// As [`copy_queries`], of a strip whose queries the warp keeps.
#[inline(always)]
unsafe fn prefetch_unit(p: &SelectParams, q_map: TensorMapPtr, n: u32, group: u32) {
    // SAFETY: forwarded.
    unsafe {
        let queries = Queries::from_words(p, kept_alike::<1>());
        if let Some(coords) = queries.box_of(queries.unit(n, group % GROUPS as u32)) {
            tma::prefetch_4d_if(q_map, coords, special::tid_x_again().is_multiple_of(32) as u32);
        }
    }
}

/// Copies it to stage `at`.
///
/// # Safety
/// As [`prefetch_unit`].
#[inline(always)]
unsafe fn copy_unit(p: &SelectParams, q_map: TensorMapPtr, n: u32, group: u32, at: Turn<QUERY_STAGES>) {
    // SAFETY: forwarded.
    unsafe {
        Shared::again().queries.wait_empty(at);
        let (queries, shared, lane) = (Queries::from_words(p, kept_alike::<1>()), Shared::again(), special::tid_x_again() % 32);
        let unit = queries.unit(n, group % GROUPS as u32);
        let (full, leader) = (shared.queries.full(at), (lane == 0) as u32);
        if let Some(coords) = queries.box_of(unit) {
            mbarrier::expect_tx_if(full, QUERY_BYTES, leader);
            tma::load_4d_if(shared.unit(at), q_map, full, coords, leader);
        } else {
            queries.copy(unit, shared.unit(at), lane);
            cp_async::arrive(full);
            // The barrier expects an arrival of every lane before the leader's can complete it.
            warp::sync();
            mbarrier::arrive_if(full, leader);
        }
    }
}

/// The warp that hands query sums over to the products, which read through the async proxy. The fence between the two is a
/// whole memory barrier, and would make the threads that sum wait for the copies they have in flight; this warp has none.
///
/// # Safety
/// A whole warp, converged, after the barriers' initialisation.
#[inline(always)]
pub(super) unsafe fn hand_over_sums(p: &SelectParams, shared: Shared, lane: u32) {
    let mut at = Turn::<SUM_TURNS>::START;
    let mut strips = Strips::new(p);
    // SAFETY: barriers are initialised; the sums of a stage are written before its barrier completes, and not again before the
    // products have read them.
    unsafe {
        while strips.any() {
            let strip = strips.current();
            strips.advance(&strip);
            if !strip.has_scores(p, lane) {
                continue;
            }
            let groups = strip.groups();
            let mut group = 0;
            while group < groups {
                mbarrier::wait(shared.written(at), at.parity());
                fence::proxy_async_shared();
                warp::sync();
                mbarrier::arrive_if(shared.sums.full(at), (lane == 0) as u32);
                at = at.next();
                group += 1;
            }
        }
    }
}
