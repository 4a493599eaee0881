//! `select_stem`: from FP8 queries and the summaries of the key blocks to the block lists that attention reads.
//!
//! Persistent: a block of threads takes strip after strip of up to 32 query blocks of one head. Two warpgroups sum queries (each
//! read once a span, by copies of their own), one warp hands the sums over, one copies key sums (of a cluster of two each block
//! loads a half and sends it to both), one makes the value terms, one looks strips up ahead, four warpgroups multiply and, with the
//! scores of the strip in shared memory, decide what each row keeps, two rows a warp. Rows of more than 1,024 key blocks are scored a
//! span at a time, and their scores go through device memory.
//!
//! What the kernel before it in the stream writes (key sums, norms) is read after `griddepcontrol.wait`; queries are not.

mod decide;

use self::decide::consume;
use crate::abi::SelectParams;
use crate::config::select::{
    CONSUMER_REGS, CONSUMER_THREADS, CONSUMER_WARPS, CONSUMERS, COPY_REGS, PLANS, QUERY_AHEAD, QUERY_STAGES, RING_TILES, ROWS, SPAN, STEP,
    STEPS, SUM_REGS, SUM_ROWS, SUM_STAGES, SUM_TURNS, SUM_WARPS, SUMMERS, THREADS, TILE, TILE_BYTES,
};
use crate::config::{BLOCK, GROUPS, HEAD_DIM};
use crate::layout::pages::new_token;
use crate::layout::select::sum_offset;
use crate::pipeline::scores::{Consumer, Shared};
use crate::pipeline::stages::Turn;
use crate::ptx::tma::{TensorMap, TensorMapPtr, tensor_map_param};
use crate::ptx::{cluster, cp_async, fence, math, mbarrier, pdl, regs, special, warp};
use crate::tile::reduce::ValueTerm;
use crate::tile::strip::Strips;
use crate::tile::sums::{GroupSum, NO_TOKEN, Queries};
use crate::unroll;

/// Entry: see [`SelectParams`] for the grid, the tensors and the tensor map.
///
/// # Safety
/// Launched with the grid, cluster, block size and shared memory that the host crate's `ops::select` computes, on buffers whose
/// extents it has checked; the blocks of a cluster have heads of one KV head.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn select_stem(p: SelectParams, _k_sums: TensorMap) {
    let k_map = tensor_map_param!(select_stem, 1);
    // SAFETY: forwarded from the host.
    unsafe { select(&p, k_map) }
}

/// The kernel's body: barriers, then roles.
///
/// # Safety
/// As the entry; called by all threads of the block.
#[inline(always)]
unsafe fn select(p: &SelectParams, k_map: TensorMapPtr) {
    let shared = Shared::of_block();
    let thread = special::tid_x();
    let blocks = cluster::blocks();
    // SAFETY: one thread initialises before all threads of the cluster meet; roles split on whole warps; a block ends only when
    // all of its cluster have, so that no signal or copy of theirs finds it gone.
    unsafe {
        if thread == 0 {
            shared.keys.init(1, CONSUMERS * blocks);
            shared.sums.init(1, CONSUMERS);
            shared.plans.init(32, CONSUMER_THREADS);
            let mut at = Turn::START;
            unroll!(_S < 4 {
                mbarrier::init(shared.written(at), 32 * SUM_WARPS);
                at = at.next();
            });
            mbarrier::init(shared.done(), CONSUMER_WARPS * blocks);
            mbarrier::init(shared.terms(), 32);
            mbarrier::init(shared.terms_read(), CONSUMER_THREADS);
            mbarrier::init_fence();
        }
        cluster::sync();
        pdl::launch_dependents();
        // From lane 0: known to be the same in the whole warp.
        let warp_index = warp::shfl_idx_u32(thread / 32, 0);
        if warp_index < CONSUMER_WARPS {
            regs::setmaxnreg_inc::<CONSUMER_REGS>();
            pdl::wait();
            let consumer = Consumer { warpgroup: warp_index / 4, thread: thread % 128, blocks };
            consume(p, consumer);
        } else if warp_index < CONSUMER_WARPS + SUM_WARPS {
            regs::setmaxnreg_dec::<SUM_REGS>();
            sum_queries(p, shared, warp_index - CONSUMER_WARPS, thread % 128);
        } else {
            regs::setmaxnreg_dec::<COPY_REGS>();
            if warp_index == CONSUMER_WARPS + SUM_WARPS {
                pdl::wait();
                copy_keys(p, shared, k_map, thread % 32);
            } else if warp_index == CONSUMER_WARPS + SUM_WARPS + 1 {
                hand_over_sums(p, shared, thread % 32);
            } else if warp_index == CONSUMER_WARPS + SUM_WARPS + 2 {
                plan_strips(p, shared, thread % 32);
            } else {
                pdl::wait();
                make_terms(p, shared);
            }
        }
        cluster::sync();
    }
}

/// The warp that copies key sums. Of the tiles of a stage each block of the cluster loads every `blocks`-th, for all of them.
#[inline(always)]
unsafe fn copy_keys(p: &SelectParams, shared: Shared, k_map: TensorMapPtr, lane: u32) {
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

/// A warpgroup that sums queries: once a span, group by group. In strips of more than 16 rows each of the two takes every group, of
/// the lower or of the higher rows; in those of more than 8 it takes every other group; in others two of every four, of 8 rows each.
/// Thread (r, c) has bytes 16 c .. 16 c + 16 of the r-th row. It copies them itself to shared memory, some groups ahead; of what other
/// threads copy it reads only scales, which come from its own warp.
#[inline(always)]
unsafe fn sum_queries(p: &SelectParams, shared: Shared, warp: u32, thread: u32) {
    let summer = warp / 4;
    let (chunk, lane) = (thread % 8, thread % 32);
    let mut strips = Strips::new(p);
    // SAFETY: barriers are initialised; a stage of the sums is waited for before it is overwritten, and one of the queries is
    // read by all of the warp before any of it starts the next copies to it.
    unsafe {
        while strips.any() {
            let strip = strips.current();
            strips.advance(&strip);
            let scored = strip.scored_rows(p, lane);
            if scored == 0 {
                continue;
            }
            // A warp's four rows are of one group.
            let step = strip.groups_at_once();
            let row_of = |thread: u32| ((summer * SUM_ROWS + thread / 8) & (SUMMERS * SUM_ROWS / step - 1)) as i32;
            let row = row_of(thread);
            let mut group = warp * step / SUM_WARPS;
            let (block, request) = strip.block(p, 0);
            let queries = Queries::new(p, &request, strip.head, chunk);
            let first = new_token(&request, (block.block + row) * BLOCK as i32);
            // Rows whose scores nobody looks at get the sums of no token.
            let first = if (row < strip.rows) & ((scored >> (row as u32 % 32)) & 1 != 0) { first } else { NO_TOKEN };
            let place = |group: u32| first + (group % GROUPS as u32) as i32;
            let groups = GROUPS as u32 * (strip.keys as u32).div_ceil(SPAN);
            let mut n = 0;
            queries.copy(place(group), thread, shared.queries(summer, 0));
            cp_async::commit();
            while n < QUERY_AHEAD {
                n += 1;
                queries.prefetch(place(group + n * step), chunk);
            }
            n = 0;
            while group < groups {
                let next = group + step;
                if next < groups {
                    queries.copy(place(next), thread, shared.queries(summer, n + 1));
                    // Past the strip's last group it is one of its first, which are there.
                    queries.prefetch(place(next + QUERY_AHEAD * step), chunk);
                }
                // Groups are counted, whether or not there is another one.
                cp_async::commit();
                cp_async::wait::<{ QUERY_STAGES - 1 }>();
                warp::sync();
                let sum = GroupSum::of_stage(thread, shared.queries(summer, n));
                // A span has an even number of passes over the ring: every strip finds it as the first one did. The stage is free
                // when the group has been read that many before: its barrier is the one that comes as many after.
                let to = Turn::<SUM_TURNS>::at(group);
                shared.sums.wait_empty(Turn::<SUM_TURNS>::at(group + SUM_STAGES));
                let thread = math::here(thread as i32) as u32;
                sum.store_shared(shared.group(to).offset(sum_offset(row_of(thread) as u32, thread % 8)));
                // Which also says that the warp has read its queries.
                warp::sync();
                // Every barrier is told as often: where fewer warps have the group, each speaks for more.
                // And every lane for itself: `compute-sanitizer --tool racecheck` does not follow what one says for others.
                mbarrier::arrive_times(shared.written(to), step);
                group = next;
                n += 1;
            }
        }
    }
}

/// The warp that hands query sums over to the products, which read through the async proxy. The fence between the two is a
/// whole memory barrier, and would make the threads that sum wait for the copies they have in flight; this warp has none.
#[inline(always)]
unsafe fn hand_over_sums(p: &SelectParams, shared: Shared, lane: u32) {
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
            let groups = GROUPS as u32 * (strip.keys as u32).div_ceil(SPAN);
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

/// The warp that makes the value terms, those of a span while the products on it run. For a strip's mean and deviation all norms of the
/// request are read, which may take longer: it is done while the consumers still need the terms of the strip before.
#[inline(always)]
unsafe fn make_terms(p: &SelectParams, shared: Shared) {
    let (mut strips, mut pass) = (Strips::new(p), 0u32);
    // SAFETY: terms are overwritten when the consumers have read those of the span before, which they do not before these are written, so
    // that neither barrier is ever two phases ahead.
    unsafe {
        while strips.any() {
            let strip = strips.current();
            strips.advance(&strip);
            if !strip.has_scores(p, special::tid_x_again() % 32) {
                continue;
            }
            let value = ValueTerm::new(p, &strip, shared.norms());
            let mut first = 0;
            while first < strip.keys {
                // The parity of the phase before the first is 1: the first span does not wait.
                mbarrier::wait(shared.terms_read(), pass ^ 1);
                value.write(strip.span(first), shared.bias());
                // Every lane for itself, after its own stores.
                mbarrier::arrive(shared.terms());
                first += SPAN as i32;
                pass ^= 1;
            }
        }
    }
}

/// The warp that looks strips up for the consumers, and writes their plans ([`crate::tile::plan`]), after them that there are no more.
#[inline(always)]
unsafe fn plan_strips(p: &SelectParams, shared: Shared, lane: u32) {
    let mut at = Turn::<PLANS>::START;
    let mut strips = Strips::new(p);
    // SAFETY: barriers are initialised; a plan is waited for before it is overwritten. All lanes arrive for themselves, as where sums
    // are written.
    unsafe {
        while strips.any() {
            let strip = strips.current();
            strips.advance(&strip);
            shared.plans.wait_empty(at);
            shared.plan(at.stage()).write(p, &strip, lane);
            mbarrier::arrive(shared.plans.full(at));
            at = at.next();
        }
        shared.plans.wait_empty(at);
        shared.plan(at.stage()).write_end(lane);
        mbarrier::arrive(shared.plans.full(at));
    }
}

const _: () = assert!(SUM_TURNS == 4 && SUM_TURNS - SUM_STAGES == SUM_STAGES, "barriers of the written sums, and of those before");
const _: () = assert!(32 * (CONSUMER_WARPS + SUM_WARPS + 4) == THREADS, "every warp of the last warpgroup has a part");
const _: () = assert!(HEAD_DIM == 128 && SUMMERS == 2 && ROWS == 2 * SUM_ROWS, "a row of 8 chunks, half of the rows a warpgroup");
