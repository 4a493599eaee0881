//! The warp that copies key sums, and the one that hands the query sums over.

use crate::abi::SelectParams;
use crate::config::select::{
    CHUNK, RING_TILES, SPAN, STEP, STEPS, SUM_BYTES, SUM_TURNS, TILE, TILE_BYTES, WIDE_PITCH, WIDE_STAGES, WIDE_TILES, WIDE_TURNS,
};
use crate::layout::wide::{WARPGROUP_PITCH, WideSpan};
use crate::pipeline::kept;
use crate::pipeline::shared::Shared;
use crate::pipeline::stages::Turn;
use crate::ptx::tma::{self, TensorMapPtr};
use crate::ptx::{cluster, fence, mbarrier, special, warp};
use crate::tile::strip::Strips;
use crate::unroll;

/// The warp that copies key sums. Each block of the cluster loads every `blocks`-th copy of a stage, for all of them: two tiles, or the
/// only one. This warp sets the pace where prompts are long, so a stage is as few instructions as can be.
///
/// # Safety
/// A whole warp, converged, after the barriers' initialisation; the summaries are complete. `maps` are of a tile and of two.
#[inline(always)]
pub(super) unsafe fn copy_keys(p: &SelectParams, shared: Shared, maps: [TensorMapPtr; 2], lane: u32) {
    let (rank, blocks, leader) = (cluster::rank(), cluster::blocks(), (lane == 0) as u32);
    let everyone = ((1u32 << blocks) - 1) as u16;
    let (mut strips, mut spans, mut before) = (Strips::new(p), 0u32, 0);
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
                let (chunks, stages) = (span.chunks(), span.stages());
                // Copies before the one that overwrites scores. Where stages are others than those of the span before, their barriers say
                // nothing about what lay there.
                let mut free = if (p.round_bf16 != 0) & (stages == before) { stages / 2 } else { 0 };
                before = stages;
                let (tiles, map) = if stages == RING_TILES { (1, maps[0]) } else { (2, maps[1]) };
                let (mut step, mut at) = (0, Turn::<RING_TILES>::START);
                while step < STEPS {
                    let mut chunk = 0;
                    while chunk < chunks {
                        let copies = span.tiles(chunk).div_ceil(tiles);
                        if free == 0 {
                            // The parity of the phase before the first is 1: the first span does not wait.
                            mbarrier::wait(shared.done(), (spans & 1) ^ 1);
                        }
                        free = free.wrapping_sub(1);
                        shared.keys.wait_empty(at);
                        mbarrier::expect_tx_if(shared.keys.full(at), copies * tiles * TILE_BYTES, leader);
                        let mut copy = rank;
                        while copy < copies {
                            let key = kb_start + first + (chunk * CHUNK + copy * tiles * TILE) as i32;
                            let to = shared.key_tile(at.stage(), stages, copy * tiles);
                            cluster::load_3d(to, map, shared.keys.full(at), [(step * STEP) as i32, key, kv_head], everyone);
                            copy += blocks;
                        }
                        at = at.next_of(stages);
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

/// One of the two warps that copy key sums of `select_stem_wide`, the block's own tiles, for itself: every second stage each. A step has a stage for
/// every warpgroup with a tile.
///
/// # Safety
/// As [`copy_keys`]; `map` is of a tile, followed by that of two.
#[inline(always)]
pub(super) unsafe fn copy_keys_wide(p: &SelectParams, shared: Shared, map: TensorMapPtr, which: u32) {
    // SAFETY: barriers are initialised; the scores that lie over the ring are waited for, and a stage is before it is overwritten, whose barrier
    // does not go on before this warp has filled it; what lies outside the tensor is zero-filled.
    unsafe {
        // Registers are short. The strips; of the present one the first key block that is not copied yet; where in the ring its stages begin, and
        // in bit 5 the parity of the spans before.
        kept::keep_copy(which, [0; 4]);
        loop {
            let [round, done, ..] = kept::copy_kept(which);
            let mut strips = Strips::at(p, [round, done]);
            if !strips.any() {
                break;
            }
            let strip = strips.current();
            let scored = strip.has_scores(p, special::tid_x_again() % 32);
            let [.., first, place] = kept::copy_kept(which);
            let first = first as i32;
            if !scored {
                strips.advance(&strip);
                let [round, done] = strips.place();
                kept::keep_copy(which, [round, done, 0, place]);
                continue;
            }
            let (rank, kv_head) = (cluster::rank_again(), strip.kv_head(p));
            let span = WideSpan::of(strip.span(first).count as u32, rank);
            let stages = span.warpgroups();
            let key = strip.block(p, 0).1.kb_start + first + (rank * TILE) as i32;
            let (ring, odd) = (place % 32, place / 32);
            let place = (ring + STEPS * stages) % (2 * WIDE_TURNS) + (odd ^ 1) * 32;
            let mut after = first + SPAN as i32;
            if after >= strip.keys {
                strips.advance(&strip);
                after = 0;
            }
            let [round, done] = strips.place();
            kept::keep_copy(which, [round, done, after as u32, place]);
            // The first key block of the last stage of a step, how many tiles it has, and how many come together: a map of two tiles ends where
            // both are in the tensor, and there they come one by one. Of stages before the last there is a tile behind.
            let (last, tiles) = (key + (stages.wrapping_sub(1) * WARPGROUP_PITCH) as i32, span.tiles(stages.wrapping_sub(1)));
            let together = if last + ((tiles - 1) * WIDE_PITCH + TILE) as i32 <= p.total_kb { tiles } else { 1 };
            // Without a tile there is nothing to copy.
            let (mut k, mut from) = (if stages > 0 { 0 } else { STEPS * STEP }, key + (which * WARPGROUP_PITCH) as i32);
            let mut at = Turn::<WIDE_TURNS>::at(ring + which);
            // The parity of the phase before the first is 1: the first span does not wait.
            mbarrier::wait(shared.done(), odd ^ 1);
            loop {
                // To the step of the stage.
                while (from > last) & (stages > 0) {
                    from -= (stages * WARPGROUP_PITCH) as i32;
                    k += STEP;
                }
                if k >= STEPS * STEP {
                    break;
                }
                let (tiles, together) = if from == last { (tiles, together) } else { (WIDE_TILES, WIDE_TILES) };
                let map = TensorMapPtr(map.0 + (128 * (together - 1)) as u64);
                let (to, full) = (shared.wide_stage(at), shared.wide_keys.full(at));
                // What was there before has a barrier of its own. The parity of the phase before the first is 1.
                let before = Turn::<WIDE_TURNS>::at(at.number() + 2 * WIDE_TURNS - WIDE_STAGES);
                mbarrier::wait(shared.wide_keys.empty(before), before.parity());
                mbarrier::expect_tx_if(full, tiles * TILE_BYTES, special::tid_x_again().is_multiple_of(32) as u32);
                let mut tile = 0;
                while tile < tiles {
                    tma::load_4d(to.offset(tile * TILE_BYTES), map, full, [k as i32, from + (tile * WIDE_PITCH) as i32, 0, kv_head]);
                    tile = special::no_unroll(tile + together);
                }
                at = at.next().next();
                from += (2 * WARPGROUP_PITCH) as i32;
            }
        }
    }
}

/// The warp that hands query sums over to the products, which read through the async proxy. The fence between the two is a
/// whole memory barrier, and would make the threads that sum wait for the copies they have in flight; this warp has none.
///
/// # Safety
/// A whole warp, converged, after the barriers' initialisation.
#[inline(always)]
pub(super) unsafe fn hand_over_sums<const WIDE: bool>(p: &SelectParams, shared: Shared, lane: u32) {
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
            let mut left = strip.groups();
            while left > 0 {
                mbarrier::wait(shared.written(at), at.parity());
                fence::proxy_async_shared();
                warp::sync();
                if WIDE {
                    // Half of a group comes from the other block, where this half goes. It was given back by both.
                    let (own, full) = (shared.group::<true>(at), shared.sums.full(at));
                    mbarrier::expect_tx_if(full, 2 * SUM_BYTES, (lane == 0) as u32);
                    let other = cluster::rank() ^ 1;
                    unroll!(H < 2 {
                        let from = own.offset(H as u32 * (2 * SUM_BYTES));
                        cluster::copy(cluster::place(from.offset(SUM_BYTES), other), from, SUM_BYTES, cluster::place(full, other));
                    });
                } else {
                    mbarrier::arrive_if(shared.sums.full(at), (lane == 0) as u32);
                }
                at = at.next();
                left -= 1;
            }
        }
    }
}
