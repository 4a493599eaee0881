//! `select_probe_lists`: which key blocks each query block attends to, from means of neighbouring queries and of neighbouring keys.
//!
//! One block of threads takes a strip of 256 query groups of one head: 16 query blocks with means of 8 queries. Its warps
//! pool their queries into e4m3 rows in shared memory; a producer warp streams tiles of 256 key means, from the diagonal
//! towards the first; four consumer warpgroups multiply 64 groups each and keep of every 16 logits the largest, of every
//! tile one score a key block and warp ([`crate::tile::probe_sel`]). No logit leaves the registers, and only score rows
//! stay in shared memory. At the end each row is corrected by what its groups have seen since, and one warp selects from it.

use crate::abi::{QueryBlock, Request, SelectProbeParams};
use crate::config::HEAD_DIM;
use crate::config::probe_sel::{
    CONSUMER_BARRIER, CONSUMER_REGS, CONSUMER_THREADS, CONSUMERS, GROUPS, KEY_POOL, KEY_TILE_BYTES, LEAST_SCALE, PART_GROUPS,
    PRODUCER_REGS, STAGES, TILE_BLOCKS, smem as map,
};
use crate::layout::pages::{clamped, is_new, new_token, position};
use crate::layout::probe_sel::{first_tile, strip_blocks_log2};
use crate::layout::select::{Row, Rule};
use crate::layout::{descriptor_k128, swizzle_128};
use crate::pipeline::ring::{Cursor, Ring};
use crate::ptx::{SmemAddr, barrier, cvt, fence, global, math, mbarrier, regs, smem, special, tma, warp, wgmma};
use crate::tile::pages::load_or_zero;
use crate::tile::probe_sel::{Groups, corrected, masked_maxima, maxima};
use crate::tile::sums::GroupSum;
use crate::tile::topk::{List, SharedScores, select_row};
use crate::unroll;

const KEY_TILE: u32 = KEY_TILE_BYTES as u32;
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

/// What a block of threads works on.
#[derive(Clone, Copy)]
struct Strip {
    head: i32,
    kv_head: i32,
    request: Request,
    /// Absolute index of its first query block, which may lie before the request's first.
    first: i32,
    /// The request's tile with the last key block that any of its groups may see.
    last_tile: i32,
    /// Address of the request's first tile.
    tiles: u64,
}

impl Strip {
    /// Finds the block's strip; `None` where there is none: the grid is sized for the longest request.
    ///
    /// # Safety
    /// The block's coordinates lie in the grid that the host sized from the arrays of `p`.
    #[inline(always)]
    unsafe fn locate(p: &SelectProbeParams) -> Option<Self> {
        let (head, batch) = (special::ctaid_x() as i32, special::ctaid_z() as i32);
        // SAFETY: forwarded; a group has at least one head.
        unsafe {
            core::hint::assert_unchecked(p.group > 0 && head >= 0);
            let request = *(p.requests as *const Request).offset(batch as isize);
            let (kv_head, shift) = (head / p.group, strip_blocks_log2(p.query_pool_log2));
            // The longest rows first: what is left over at the end is short.
            let strip = ((request.first_block + request.qb_len - 1) >> shift) - special::ctaid_y() as i32;
            if request.qb_len <= 0 || strip < request.first_block >> shift {
                return None;
            }
            let last_block = if p.causal != 0 { ((strip + 1) << shift) - 1 } else { i32::MAX };
            let last_block = clamped(last_block, request.kb_len);
            let first_tile = kv_head as i64 * p.tiles as i64 + first_tile(batch, request.kb_start) as i64;
            Some(Self {
                head,
                kv_head,
                request,
                first: strip << shift,
                last_tile: last_block / TILE_BLOCKS as i32,
                tiles: p.k_tiles + first_tile as u64 * KEY_TILE_BYTES as u64,
            })
        }
    }

    /// Position in the sequence of the first query of group `group` (0..256).
    #[inline(always)]
    fn position(&self, p: &SelectProbeParams, group: u32) -> i32 {
        position(self.first, (group << p.query_pool_log2) as i32)
    }

    /// Last key that group `group` may see.
    #[inline(always)]
    fn limit(&self, p: &SelectProbeParams, group: u32) -> i32 {
        let last = self.position(p, group) + (1 << p.query_pool_log2) - 1;
        clamped(if p.causal != 0 { last } else { i32::MAX }, self.request.kv_len)
    }
}

/// The kernel's body: barriers, then roles.
///
/// # Safety
/// As the entry; called by all threads of the block.
#[inline(always)]
unsafe fn probe(p: &SelectProbeParams) {
    let thread = special::tid_x();
    let shared = smem::base();
    let ring = Ring::<STAGES>::at(shared.offset(map::RING));
    // SAFETY: the block's threads take the same way to the block barrier; roles split on whole warps, and the consumers'
    // barriers count the consumers.
    unsafe {
        let Some(strip) = Strip::locate(p) else { return };
        // From lane 0: the same in the whole warp for ptxas too, so that what follows from it lives in uniform registers.
        let warp = warp::shfl_idx_u32(thread / 32, 0);
        if thread == 0 {
            ring.init(CONSUMERS);
            mbarrier::init_fence();
        }
        barrier::sync_all();
        if warp >= WARPS {
            regs::setmaxnreg_dec::<PRODUCER_REGS>();
            if warp == WARPS {
                produce(&strip, shared, ring, thread % 32);
            }
        } else {
            regs::setmaxnreg_inc::<CONSUMER_REGS>();
            pool(p, &strip, shared, warp, thread % 32);
            fence::proxy_async_shared();
            barrier::sync::<CONSUMER_BARRIER, CONSUMER_THREADS>();
            consume(p, &strip, shared, ring, warp, thread % 32);
            // The score rows and what was seen, of all warps.
            barrier::sync::<CONSUMER_BARRIER, CONSUMER_THREADS>();
            // Looked up again: registers are short while tiles go by.
            let Some(strip) = Strip::locate(p) else { return };
            finish(p, &strip, shared, warp, thread % 32);
        }
    }
}

/// The producer warp: every tile, from the last to the first.
///
/// # Safety
/// Called by a whole warp, converged; the ring is initialised.
#[inline(always)]
unsafe fn produce(strip: &Strip, shared: SmemAddr, ring: Ring<STAGES>, lane: u32) {
    let leader = (lane == 0) as u32;
    let mut step = 0;
    while step <= strip.last_tile as u32 {
        let at = Cursor::at(step);
        // SAFETY: the stage is free before it is written; the tile is one of the request's.
        unsafe {
            ring.wait_empty(at);
            let from = strip.tiles + (strip.last_tile as u32 - step) as u64 * KEY_TILE as u64;
            mbarrier::expect_tx_if(ring.full(at), KEY_TILE, leader);
            tma::bulk_load_if(shared.offset(map::KEYS + at.stage() * KEY_TILE), from, KEY_TILE, ring.full(at), leader);
        }
        step += 1;
    }
}

/// Means of the warp's 16 groups as e4m3 rows in shared memory, with their scales. Eight lanes share a group, 16 dimensions
/// each; four groups a round.
///
/// # Safety
/// Called by a whole warp, converged; the host checked `q` and `q_scale` for the strip's request.
#[inline(always)]
unsafe fn pool(p: &SelectProbeParams, strip: &Strip, shared: SmemAddr, warp: u32, lane: u32) {
    let (chunk, request) = (lane % 8, &strip.request);
    let queries = 1 << p.query_pool_log2;
    let mut round = 0;
    while round < PART_GROUPS as u32 / 4 {
        let group = warp * PART_GROUPS as u32 + round * 4 + lane / 8;
        let first = new_token(request, strip.position(p, group));
        let (mut codes, mut scales) = ([[0; 4]; 8], [0.0; 8]);
        let mut count = 0;
        // SAFETY: a strip belongs to a request with at least one new token, so the clamped row is one of the request's. A
        // whole warp, converged: how many queries a group has is the same for all.
        unsafe {
            unroll!(A < 2 {
                if 4 * A as i32 <= (queries - 1) {
                    unroll!(B < 4 {
                        const R: usize = 4 * A + B;
                        let token = first + R as i32;
                        let row = (request.q_start + clamped(token, request.q_len)) as i64;
                        let new = is_new(request, token) & ((R as i32) < queries);
                        let at = row * p.q_rows.token + strip.head as i64 * p.q_rows.head;
                        codes[R] = load_or_zero(p.q.wrapping_add(at as u64) + chunk as u64 * 16, new);
                        // A scale of another token must not meet the zeros: it could be anything.
                        let scale = *(p.q_scale as *const f32).offset((row * p.hq as i64 + strip.head as i64) as isize);
                        scales[R] = if new { scale } else { 0.0 };
                        count += new as i32;
                    });
                }
            });
            let mut sum = GroupSum::zero();
            unroll!(R < 8 { sum.add(codes[R], scales[R]); });
            let mut x = sum.values();
            let inverse = 1.0 / (if count > 0 { count } else { 1 }) as f32;
            let mut largest = LEAST_SCALE;
            unroll!(I < 16 {
                x[I] *= inverse;
                largest = math::fmax(largest, f32::from_bits(x[I].to_bits() & 0x7fff_ffff));
            });
            unroll!(B in [1 2 4] { largest = math::fmax(largest, warp::shfl_bfly_f32(largest, B as u32)); });
            let factor = 1.0 / largest;
            let mut packed = [0; 4];
            unroll!(W < 4 {
                packed[W] = cvt::e4m3x4(x[4 * W] * factor, x[4 * W + 1] * factor, x[4 * W + 2] * factor, x[4 * W + 3] * factor);
            });
            let at = swizzle_128((group as usize) * HEAD_DIM + chunk as usize * 16) as u32;
            smem::st_v4(shared.offset(map::QUERIES + at), packed);
            let scale = if count > 0 { largest } else { 0.0 };
            smem::st_u32_if(shared.offset(map::SCALES + group * 4), scale.to_bits(), (chunk == 0) as u32);
        }
        round += 1;
    }
}

/// The consumer warps: logits of every tile, one score a key block and warp, and what each group has seen.
///
/// # Safety
/// Called by whole warpgroups, converged; the query rows are in shared memory and visible to the async proxy.
#[inline(always)]
unsafe fn consume(p: &SelectProbeParams, strip: &Strip, shared: SmemAddr, ring: Ring<STAGES>, warp: u32, lane: u32) {
    let rows = [warp * PART_GROUPS as u32 + lane / 4, warp * PART_GROUPS as u32 + lane / 4 + 8];
    let queries = shared.offset(map::QUERIES + warp / 4 * 64 * HEAD_DIM as u32);
    let scores = shared.offset(map::SCORES + warp * map::SCORE_BYTES + Groups::block(lane) * 4);
    let (leader, writes) = ((warp.is_multiple_of(4) & (lane == 0)) as u32, (lane & 4 == 0) as u32);
    let mut acc = [0; 64];
    // SAFETY: forwarded; scales were written before the last barrier; the tile's place is inside the warp's score row.
    unsafe {
        let k_scale = *(p.k_scale as *const f32).offset((strip.kv_head * p.k_scale_stride) as isize);
        let scale = |row: u32| smem::ld_f32(shared.offset(map::SCALES + row * 4));
        let mut groups = Groups::new([scale(rows[0]), scale(rows[1])], k_scale * p.softmax_scale_log2);
        let mut tile = strip.last_tile as u32;
        multiply(&mut acc, queries, shared, ring, 0, leader);
        let limits = [strip.limit(p, rows[0]), strip.limit(p, rows[1])];
        let largest = masked_maxima(&acc, limits, (tile * TILE_BLOCKS as u32) as i32, lane);
        let score = groups.fold::<true>(&largest, lane);
        smem::st_u32_if(scores.offset(tile * TILE_BLOCKS as u32 * 4), score.to_bits(), writes);
        let mut step = 1;
        while tile > 0 {
            tile -= 1;
            multiply(&mut acc, queries, shared, ring, step, leader);
            let score = groups.fold::<false>(&maxima(&acc), lane);
            smem::st_u32_if(scores.offset(tile * TILE_BLOCKS as u32 * 4), score.to_bits(), writes);
            step += 1;
        }
        let first_of_quad = lane.is_multiple_of(4) as u32;
        unroll!(H < 2 { smem::st_u32_if(shared.offset(map::SEEN + rows[H] * 4), groups.seen()[H].to_bits(), first_of_quad); });
    }
}

/// Logits of the warpgroup's 64 groups and tile number `step`, which is given back.
///
/// # Safety
/// Called by a whole warpgroup, converged, with one lane `leader`; the query rows are complete.
#[inline(always)]
unsafe fn multiply(acc: &mut [u32; 64], queries: SmemAddr, shared: SmemAddr, ring: Ring<STAGES>, step: u32, leader: u32) {
    let at = Cursor::at(step);
    // SAFETY: forwarded; the stage is complete after the wait, and given back after the products that read it.
    unsafe {
        ring.wait_full(at);
        let q = descriptor_k128(queries.0);
        let k = descriptor_k128(shared.0 + map::KEYS + at.stage() * KEY_TILE);
        wgmma::fence();
        wgmma::e4m3_f16_m64n256k32_ss(acc, q, k, 0);
        wgmma::e4m3_f16_m64n256k32_ss(acc, q + 2, k + 2, 1);
        wgmma::e4m3_f16_m64n256k32_ss(acc, q + 4, k + 4, 1);
        wgmma::e4m3_f16_m64n256k32_ss(acc, q + 6, k + 6, 1);
        wgmma::commit();
        wgmma::wait::<0>();
        wgmma::keep(acc);
        ring.release(at, leader);
    }
}

/// Corrects the score rows of one query block, joins those of several warps, and selects. One warp a query block.
///
/// # Safety
/// Called by whole warps, converged; all score rows are complete since a barrier.
#[inline(always)]
unsafe fn finish(p: &SelectProbeParams, strip: &Strip, shared: SmemAddr, warp: u32, lane: u32) {
    let request = &strip.request;
    let parts_log2 = (KEY_POOL.trailing_zeros() as i32 - p.query_pool_log2) as u32;
    let parts = 1 << parts_log2;
    let index = strip.first - request.first_block + (warp >> parts_log2) as i32;
    if warp & (parts - 1) != 0 || index < 0 || index >= request.qb_len {
        return;
    }
    // SAFETY: a query block of the request, so every address below is inside the host's arrays; rows and what was seen are
    // complete. Each lane overwrites only scores that it alone reads; the warp barrier comes before anyone else does.
    unsafe {
        let place = (request.qb_start + index) as i64;
        let block = *(p.query_blocks as *const QueryBlock).offset(place as isize);
        let place = strip.head as i64 * p.total_qb as i64 + place;
        let row = Row::new(block.block, request.kb_len, p.causal != 0, p.sink, p.window, p.guards_on_top != 0);
        let scores = shared.offset(map::SCORES + warp * map::SCORE_BYTES);
        let export = p.scores.wrapping_add((place * p.score_stride as i64) as u64 * 4);
        let mut j = lane;
        while j < row.count as u32 {
            let score = joined(shared, warp, parts, j).to_bits();
            smem::st_u32(scores.offset(j * 4), score);
            global::st_u32_if(export + j as u64 * 4, score, (p.scores != 0) as u32);
            j += 32;
        }
        warp::sync();
        let rule = Rule { budget: block.budget, keep_all_ties: p.keep_all_ties != 0, low_bit: 0 };
        let list = List { at: p.lists + (place * p.list_stride as i64) as u64 * 4, capacity: p.list_stride as u32 };
        let kept = select_row(SharedScores(scores), row, rule, list, lane);
        global::st_u32_if(p.counts + place as u64 * 4, kept, (lane == 0) as u32);
    }
}

/// Score of key block `j`: the 3-norm over `parts` warps from `warp` on.
///
/// # Safety
/// The rows of those warps and what their groups have seen are complete.
#[inline(always)]
unsafe fn joined(shared: SmemAddr, warp: u32, parts: u32, j: u32) -> f32 {
    let part = |n: u32| {
        let seen = shared.offset(map::SEEN + (warp + n) * PART_GROUPS as u32 * 4);
        let at = shared.offset(map::SCORES + (warp + n) * map::SCORE_BYTES + j * 4);
        // SAFETY: forwarded.
        corrected(unsafe { smem::ld_f32(at) }, |group| unsafe { smem::ld_f32(seen.offset(group * 4)) })
    };
    if parts == 1 {
        return part(0);
    }
    let (mut largest, mut n) = (part(0), 1);
    while n < parts {
        largest = math::fmax(largest, part(n));
        n += 1;
    }
    let mut cubes = 0.0;
    n = 0;
    while n < parts {
        cubes += math::ex2(3.0 * (part(n) - largest));
        n += 1;
    }
    largest + math::lg2(cubes) * (1.0 / 3.0)
}

const _: () = assert!(GROUPS == WARPS * PART_GROUPS as u32 && KEY_TILE == GROUPS * HEAD_DIM as u32);
