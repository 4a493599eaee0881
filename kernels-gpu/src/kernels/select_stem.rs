//! `select_stem`: from FP8 queries and the summaries of the key blocks to the block lists that attention reads.
//!
//! Persistent: a block of threads takes strip after strip of up to 32 query blocks of one head. Two warpgroups sum queries (each
//! read once a span, by copies of their own), one warp hands the sums over, one copies key sums (of a cluster of two each block
//! loads a half and sends it to both), four warpgroups multiply and, with the scores of the strip in shared memory, decide what
//! each row keeps, a row a warp. Rows of more than 1,024 key blocks are scored a span at a time, and their scores go through
//! device memory.
//!
//! What the kernel before it in the stream writes (key sums, norms) is read after `griddepcontrol.wait`; queries are not.

use crate::abi::SelectParams;
use crate::config::select::{
    CONSUMER_BARRIER, CONSUMER_REGS, CONSUMER_THREADS, CONSUMER_WARPS, CONSUMERS, COPY_REGS, QUERY_AHEAD, QUERY_STAGES, ROWS, SPAN, STAGES,
    STEP, STEPS, SUM_REGS, SUM_ROWS, SUM_STAGES, SUM_TURNS, SUM_WARPS, SUMMERS, TILE, TILE_BYTES,
};
use crate::config::{BLOCK, GROUPS, HEAD_DIM};
use crate::layout::pages::new_token;
use crate::layout::select::{Row, sum_offset};
use crate::pipeline::lists::{scores_at, write_lists};
use crate::pipeline::scores::{Consumer, Shared};
use crate::pipeline::stages::Turn;
use crate::ptx::tma::{TensorMap, TensorMapPtr, tensor_map_param};
use crate::ptx::{barrier, cluster, cp_async, fence, global, math, mbarrier, pdl, regs, smem, special, warp};
use crate::tile::reduce::ValueTerm;
use crate::tile::strip::{Span, Strip, Strips, noted, wants_scores};
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
            let mut at = Turn::START;
            unroll!(_S < 4 {
                mbarrier::init(shared.written(at), 32 * SUM_WARPS);
                at = at.next();
            });
            mbarrier::init(shared.done(), CONSUMER_WARPS * blocks);
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
            consume(p, shared, consumer);
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
    let mut at = Turn::<STAGES>::START;
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
                let chunks = span.chunks();
                let mut step = 0;
                while step < STEPS {
                    let mut chunk = 0;
                    while chunk < chunks {
                        let tiles = span.tiles(chunk);
                        let key = kb_start + first + (chunk * CONSUMERS * TILE) as i32;
                        shared.keys.wait_empty(at);
                        mbarrier::expect_tx_if(shared.keys.full(at), tiles * TILE_BYTES, leader);
                        unroll!(T < 4 {
                            let tile = T as u32;
                            let mine = leader & (tile < tiles) as u32 & (tile & (blocks - 1) == rank) as u32;
                            let coords = [(step * STEP) as i32, key + (tile * TILE) as i32, kv_head];
                            cluster::load_3d_if(shared.key_tile(at, tile), k_map, shared.keys.full(at), coords, everyone, mine);
                        });
                        at = at.next();
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
                shared.sums.wait_empty(Turn::at(group + SUM_STAGES));
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

/// The consumer warpgroups: scores, then lists.
///
/// # Safety
/// All consumer threads call it, converged in warps; theirs are the first of the block.
#[inline(always)]
unsafe fn consume(p: &SelectParams, shared: Shared, consumer: Consumer) {
    let mut at = 0;
    let mut strips = Strips::new(p);
    // SAFETY: forwarded; all consumers take the same way, which depends on the strip alone.
    unsafe {
        while strips.any() {
            let thread = special::tid_x_again();
            let scored = strips.current().note_rows(p, shared.notes(), thread / 32, thread % 32);
            let mut first = if scored { 0 } else { strips.current().keys };
            while first < strips.current().keys {
                if first > 0 {
                    release_scores(shared, consumer);
                }
                let strip = strips.current();
                let span = strip.span(first);
                // Again for every span: the statistics would take registers that the products need.
                let thread = special::tid_x_again();
                ValueTerm::new(p, &strip, shared.moments(), thread).write(span, shared.bias(), thread);
                consumer.score(p, shared, span, &mut at, || barrier::sync::<CONSUMER_BARRIER, CONSUMER_THREADS>());
                barrier::sync::<CONSUMER_BARRIER, CONSUMER_THREADS>();
                // As above: looked up again rather than kept.
                let strip = strips.current();
                copy_out(p, shared, &strip, strip.span(first));
                first += SPAN as i32;
            }
            let strip = strips.current();
            write_lists(p, shared, &strip);
            if scored {
                release_scores(shared, consumer);
            }
            strips.advance(&strip);
        }
    }
}

/// Tells every block of the cluster that the warp is done with the scores, so that copies may overwrite them.
#[inline(always)]
unsafe fn release_scores(shared: Shared, consumer: Consumer) {
    let lane = special::tid_x_again() % 32;
    // SAFETY: forwarded from `consume`; the fence orders the warp's accesses before the copies.
    unsafe {
        fence::proxy_async_shared();
        warp::sync();
        cluster::release_if(shared.done(), lane, (lane < consumer.blocks) as u32);
    }
}

/// Copies what the strip's rows see of a span to device memory, if the caller wants the scores or more spans follow.
#[inline(always)]
unsafe fn copy_out(p: &SelectParams, shared: Shared, strip: &Strip, span: Span) {
    if !(wants_scores(p) | (strip.keys > SPAN as i32)) {
        return;
    }
    let thread = special::tid_x_again();
    let (mut r, lane) = (thread / 32, thread % 32);
    // SAFETY: rows of the strip; the host has checked the extents of `scores`.
    unsafe {
        while r < strip.rows as u32 {
            let (Row { count, .. }, _) = noted(p, shared.notes(), r);
            let to = scores_at(p, strip, r) + span.first as u32 as u64 * 4;
            let from = shared.scores(r).0;
            let mut base = 0;
            while base < span.count {
                let j = base + lane as i32;
                // Up to 31 words past the span are read, which lie in shared memory, too.
                let score = smem::ld_u32(from.offset(j as u32 * 4));
                global::st_u32_if(to + j as u32 as u64 * 4, score, ((j < span.count) & (span.first + j < count)) as u32);
                base += 32;
            }
            r += CONSUMER_WARPS;
        }
    }
}

const _: () = assert!(SUM_TURNS == 4 && SUM_TURNS - SUM_STAGES == SUM_STAGES, "barriers of the written sums, and of those before");
const _: () = assert!(HEAD_DIM == 128 && SUMMERS == 2 && ROWS == 2 * SUM_ROWS, "a row of 8 chunks, half of the rows a warpgroup");
