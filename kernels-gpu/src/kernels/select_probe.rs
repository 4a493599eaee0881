//! `select_probe_lists`: which key blocks each query block attends to, from means of neighbouring queries and of neighbouring keys.
//!
//! Persistent: one block of threads takes strip after strip of 256 query groups of one head, 16 query blocks with means of 8
//! queries. Four consumer warpgroups pool 64 groups each into e4m3 rows in shared memory and multiply them by tiles of 256 key
//! means, from the diagonal towards the first, of every 16 logits keep the largest, and of every tile one score a key block and
//! warp ([`crate::tile::probe_sel`]). No logit leaves the registers, and only score rows stay in shared memory. At the end each row
//! is corrected by what its groups have seen since, and one warp selects from it.
//!
//! A producer warp streams the tiles through a ring, across strips, and fetches the queries of the next strip into L2. Nothing
//! but the ring ties the warpgroups together: while one selects or pools, the others multiply what lies in the ring.

use crate::abi::{QueryBlock, SelectProbeParams};
use crate::config::HEAD_DIM;
use crate::config::probe_sel::{
    CONSUMER_REGS, CONSUMER_THREADS, CONSUMERS, GROUPS, KEY_POOL, PAIR_BARRIER, PART_GROUPS, PRODUCER_REGS, TILE_BLOCKS, WARPGROUP_BARRIER,
    smem as map,
};
use crate::layout::descriptor_k128;
use crate::layout::probe_sel::selected_block;
use crate::layout::select::{Row, Rule};
use crate::pipeline::probe::{KEY_TILE, Shared};
use crate::ptx::{SmemAddr, barrier, fence, global, math, mbarrier, regs, smem, special, tma, warp, wgmma};
use crate::tile::probe_pool::{Ahead, pool};
use crate::tile::probe_sel::{Groups, masked_maxima, maxima};
use crate::tile::probe_strip::{Strip, Strips};
use crate::tile::topk::{List, SharedScores, select_row};
use crate::unroll;

/// Consumer warps; each owns the score row of 16 groups.
const WARPS: u32 = CONSUMER_THREADS / 32;

/// Entry: see [`SelectProbeParams`] for the grid and the tensors.
///
/// # Safety
/// Launched with the grid, block size and shared memory of [`crate::config::probe_sel`], on buffers whose extents the host has
/// checked; rows of `q` and tiles are 16-byte aligned.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn select_probe_lists(p: SelectProbeParams) {
    // SAFETY: forwarded from the host.
    unsafe { probe(&p) }
}

/// The kernel's body: barriers, then roles.
///
/// # Safety
/// As the entry; called by all threads of the block.
#[inline(always)]
unsafe fn probe(p: &SelectProbeParams) {
    let shared = Shared::of_block(p);
    // SAFETY: the block's threads take the same way to the block barrier; roles split on whole warps.
    unsafe {
        let (warp, lane) = warp_and_lane();
        if (warp == 0) & (lane == 0) {
            shared.ring.init(CONSUMERS);
            mbarrier::init_fence();
        }
        barrier::sync_all();
        if warp >= WARPS {
            regs::setmaxnreg_dec::<PRODUCER_REGS>();
            if warp == WARPS {
                produce(p, shared, lane);
            }
        } else {
            regs::setmaxnreg_inc::<CONSUMER_REGS>();
            consume(p, shared);
        }
    }
}

/// The producer warp: every tile of every strip, from the last to the first, and beside them the queries of the next strip.
///
/// # Safety
/// Called by a whole warp, converged; the ring is initialised.
#[inline(always)]
unsafe fn produce(p: &SelectProbeParams, shared: Shared, lane: u32) {
    let (leader, ring) = ((lane == 0) as u32, shared.ring);
    let mut strips = Strips::new(p);
    let mut step = 0;
    // SAFETY: a stage is free before it is written; the tiles are the request's.
    unsafe {
        let mut current = strips.current();
        while let Some(strip) = current {
            strips.advance();
            current = strips.current();
            if !strip.has_scores(p, lane) {
                continue;
            }
            let mut ahead = Ahead::new(p, current, strip.last_tile + 1);
            let mut left = strip.last_tile + 1;
            while left > 0 {
                left -= 1;
                let at = shared.at(step);
                ring.wait_empty(at);
                mbarrier::expect_tx_if(ring.full(at), KEY_TILE, leader);
                tma::bulk_load_if(shared.stage(at), strip.tiles + left as u64 * KEY_TILE as u64, KEY_TILE, ring.full(at), leader);
                step += 1;
                if let Some(ahead) = &mut ahead {
                    ahead.step(p, lane);
                }
            }
        }
    }
}

/// A consumer warp: pools, multiplies and selects, strip after strip.
///
/// # Safety
/// Called by whole warpgroups, converged; the ring is initialised.
#[inline(always)]
unsafe fn consume(p: &SelectProbeParams, shared: Shared) {
    let mut strips = Strips::new(p);
    let mut step = 0;
    // SAFETY: all warps that meet at a barrier take the same way, which depends on the strip alone. Between the first barrier and
    // the second nobody pools or selects, and so nobody else uses what the warpgroup reads and writes there; the score rows and
    // what was seen are complete at the second.
    unsafe {
        // Strip, warp and lane are looked up again at every stage: registers are short while tiles go by.
        while let Some(strip) = strips.current() {
            let (warp, lane) = warp_and_lane();
            let scored = strip.has_scores(p, lane);
            if scored {
                pool(p, &strip, shared.base, warp, lane);
                fence::proxy_async_shared();
                meet(p, warp / 4);
                if let Some(strip) = strips.current() {
                    let (warp, lane) = warp_and_lane();
                    step = score(p, &strip, shared, step, warp, lane);
                }
                let (warp, _) = warp_and_lane();
                meet(p, warp / 4);
            }
            if let Some(strip) = strips.current() {
                let (warp, lane) = warp_and_lane();
                finish(p, &strip, shared, scored, warp, lane);
            }
            strips.advance();
        }
    }
}

/// The warp, the same in all its lanes for ptxas too, and the lane.
///
/// # Safety
/// Called by a whole warp, converged.
#[inline(always)]
unsafe fn warp_and_lane() -> (u32, u32) {
    let thread = special::tid_x_again();
    // SAFETY: forwarded.
    (unsafe { warp::shfl_idx_u32(thread / 32, 0) }, thread % 32)
}

/// Waits for all warps that have groups of the warp's query block: the warpgroup, or a pair of them with means of single queries.
///
/// # Safety
/// Called by all warps of the warpgroup, converged, and with means of single queries by those of its neighbour.
#[inline(always)]
unsafe fn meet(p: &SelectProbeParams, warpgroup: u32) {
    // SAFETY: forwarded; the identifiers are distinct.
    unsafe {
        if p.query_pool_log2 == 0 {
            match warpgroup / 2 {
                0 => barrier::sync::<PAIR_BARRIER, 256>(),
                _ => barrier::sync::<{ PAIR_BARRIER + 1 }, 256>(),
            }
        } else {
            match warpgroup {
                0 => barrier::sync::<WARPGROUP_BARRIER, 128>(),
                1 => barrier::sync::<{ WARPGROUP_BARRIER + 1 }, 128>(),
                2 => barrier::sync::<{ WARPGROUP_BARRIER + 2 }, 128>(),
                _ => barrier::sync::<{ WARPGROUP_BARRIER + 3 }, 128>(),
            }
        }
    }
}

/// One strip's tiles, the first of which has number `step`: logits, one score a key block and warp, and what each group has seen.
/// Returns the number of the next strip's first tile.
///
/// # Safety
/// Called by a whole warpgroup, converged; its query rows are in shared memory and visible to the async proxy.
#[inline(always)]
unsafe fn score(p: &SelectProbeParams, strip: &Strip, shared: Shared, step: u32, warp: u32, lane: u32) -> u32 {
    let quad = lane / 4;
    let queries = shared.base.offset(map::QUERIES + warp / 4 * 64 * HEAD_DIM as u32);
    let scores = shared.scores(warp).offset(Groups::block(lane) * 4);
    let (leader, writes) = ((warp.is_multiple_of(4) & (lane == 0)) as u32, (lane & 4 == 0) as u32);
    let mut acc = [0; 64];
    // SAFETY: forwarded; scales were written before the last barrier; the tile's place is inside the warp's score row.
    unsafe {
        let rows = [warp * PART_GROUPS as u32 + quad, warp * PART_GROUPS as u32 + quad + 8];
        let mut step = step;
        let mut tile = strip.last_tile;
        multiply(&mut acc, queries, shared, step, leader);
        // Behind the product, because registers are short beside it.
        let k_scale = *(p.k_scale as *const f32).offset((strip.kv_head * math::here(p.k_scale_stride)) as isize);
        let scale = |row: u32| smem::ld_f32(shared.base.offset(map::SCALES + row * 4));
        let mut groups = Groups::new([scale(rows[0]), scale(rows[1])], k_scale * p.softmax_scale_log2);
        let limits = [strip.limit(p, rows[0]), strip.limit(p, rows[1])];
        let largest = masked_maxima(&acc, limits, (tile * TILE_BLOCKS as u32) as i32, lane);
        let score = groups.fold::<true>(&largest, lane);
        smem::st_u32_if(scores.offset(tile * TILE_BLOCKS as u32 * 4), score.to_bits(), writes);
        step += 1;
        while tile > 0 {
            tile -= 1;
            multiply(&mut acc, queries, shared, step, leader);
            let score = groups.fold::<false>(&maxima(&acc), lane);
            smem::st_u32_if(scores.offset(tile * TILE_BLOCKS as u32 * 4), score.to_bits(), writes);
            step += 1;
        }
        let first_of_quad = lane.is_multiple_of(4) as u32;
        unroll!(H < 2 { smem::st_u32_if(shared.seen(warp, quad + 8 * H as u32), groups.seen()[H].to_bits(), first_of_quad); });
        step
    }
}

/// Logits of the warpgroup's 64 groups and tile number `step`, which is given back.
///
/// # Safety
/// Called by a whole warpgroup, converged, with one lane `leader`; the query rows are complete.
#[inline(always)]
unsafe fn multiply(acc: &mut [u32; 64], queries: SmemAddr, shared: Shared, step: u32, leader: u32) {
    let at = shared.at(step);
    // SAFETY: forwarded; the stage is complete after the wait, and given back after the products that read it.
    unsafe {
        shared.ring.wait_full(at);
        let q = descriptor_k128(queries.0);
        let k = descriptor_k128(shared.stage(at).0);
        wgmma::fence();
        wgmma::e4m3_f16_m64n256k32_ss(acc, q, k, 0);
        wgmma::e4m3_f16_m64n256k32_ss(acc, q + 2, k + 2, 1);
        wgmma::e4m3_f16_m64n256k32_ss(acc, q + 4, k + 4, 1);
        wgmma::e4m3_f16_m64n256k32_ss(acc, q + 6, k + 6, 1);
        wgmma::commit();
        wgmma::wait::<0>();
        wgmma::keep(acc);
        shared.ring.release(at, leader);
    }
}

/// Corrects the score rows of one query block if they were `scored`, joins those of several warps, and selects. One warp a query
/// block; a warp without one returns at once.
///
/// # Safety
/// Called by whole warps, converged; the score rows of the warpgroup, or of the pair, are complete since a barrier.
#[inline(always)]
unsafe fn finish(p: &SelectProbeParams, strip: &Strip, shared: Shared, scored: bool, warp: u32, lane: u32) {
    let request = &strip.request;
    // Here: LLVM would work all of this out before the first strip, and keep it while tiles go by.
    let [pool_log2, total_qb] = [p.query_pool_log2, p.total_qb].map(math::here);
    let [score_stride, list_stride] = [p.score_stride, p.list_stride].map(math::here);
    let parts_log2 = (KEY_POOL.trailing_zeros() as i32 - pool_log2) as u32;
    let Some(in_strip) = selected_block(warp, parts_log2) else { return };
    let index = strip.first - request.first_block + in_strip as i32;
    if index < 0 || index >= request.qb_len {
        return;
    }
    let (first, parts) = (in_strip << parts_log2, 1 << parts_log2);
    // SAFETY: a query block of the request, so every address below is inside the host's arrays; rows and what was seen are
    // complete. Each lane overwrites only scores that it alone reads; the warp barrier comes before anyone else does.
    unsafe {
        let place = (request.qb_start + index) as i64;
        let block = *(p.query_blocks as *const QueryBlock).offset(place as isize);
        let place = strip.head as i64 * total_qb as i64 + place;
        let row = Row::new(block.block, request.kb_len, p.causal != 0, p.sink, p.window, p.guards_on_top != 0);
        let scores = shared.scores(first);
        let export = p.scores.wrapping_add((place * score_stride as i64) as u64 * 4);
        let count = row.count as u32;
        let put = |j: u32, score: f32| {
            let on = (j < count) as u32;
            smem::st_u32_if(scores.offset(j * 4), score.to_bits(), on);
            global::st_u32_if(export + j as u64 * 4, score.to_bits(), on & (p.scores != 0) as u32);
        };
        // Where nothing was scored every row keeps all that it sees.
        let mut j = if scored { lane } else { count };
        if parts == 1 {
            // Four at a time, each a few loads that depend on one another. The row has room for whole steps; what lies behind its
            // candidates is read and left alone.
            while j < count {
                let mut four = [0.0; 4];
                unroll!(A < 4 { four[A] = shared.score(first, j + 32 * A as u32); });
                unroll!(A < 4 { put(j + 32 * A as u32, four[A]); });
                j += 128;
            }
        } else {
            while j < count {
                put(j, shared.joined(first, parts, j));
                j += 32;
            }
        }
        warp::sync();
        let rule = Rule { budget: block.budget, keep_all_ties: p.keep_all_ties != 0, low_bit: 0 };
        let list = List { at: p.lists + (place * list_stride as i64) as u64 * 4, capacity: list_stride as u32 };
        let kept = select_row(SharedScores::<true>(scores), row, rule, list, lane);
        global::st_u32_if(p.counts + place as u64 * 4, kept, (lane == 0) as u32);
    }
}

const _: () = assert!(GROUPS == WARPS * PART_GROUPS as u32 && KEY_TILE == GROUPS * HEAD_DIM as u32);
