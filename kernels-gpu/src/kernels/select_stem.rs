//! `select_stem`: from FP8 queries and the summaries of the key blocks to the block lists that attention reads.
//!
//! Persistent: a block of threads takes strip after strip of up to 32 query blocks of one head. Seven warps copy and sum queries (each read once
//! a span), one warp hands the sums over, one copies key sums (of a cluster of two each block loads a half
//! and sends it to both), one makes the value terms, one looks strips up ahead, four warpgroups multiply and, with the scores of the
//! strip in shared memory, decide what each row keeps, two rows a warp. Rows of more than 1,024 key blocks are scored a span at a time,
//! and their scores go through device memory.
//!
//! What the kernel before it in the stream writes (key sums, norms) is read after `griddepcontrol.wait`; queries are not.

mod copy;
mod decide;
mod sum;

use crate::abi::SelectParams;
use crate::config::select::{
    CONSUMER_REGS, CONSUMER_THREADS, CONSUMER_WARPS, CONSUMERS, COPY_REGS, OCTETS, PLANS, QUERY_STAGES, SIDE_WARPS, SPAN, SUM_REGS,
    SUM_TURNS, SUM_WARPS, THREADS,
};
use crate::pipeline::scores::Consumer;
use crate::pipeline::shared::Shared;
use crate::pipeline::stages::Turn;
use crate::ptx::tma::{TensorMap, TensorMapPtr, tensor_map_param};
use crate::ptx::{cluster, mbarrier, pdl, regs, special, warp};
use crate::tile::reduce::ValueTerm;
use crate::tile::strip::Strips;

/// Entry: see [`SelectParams`] for the grid, the tensors and the tensor maps.
///
/// # Safety
/// Launched with the grid, cluster, block size and shared memory that the host crate's `ops::select` computes, on buffers whose
/// extents it has checked; the blocks of a cluster have heads of one KV head.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn select_stem(p: SelectParams, _tile: TensorMap, _tiles: TensorMap, _queries: TensorMap) {
    let k_maps = [tensor_map_param!(select_stem, 1), tensor_map_param!(select_stem, 2)];
    let q_map = tensor_map_param!(select_stem, 3);
    // SAFETY: forwarded from the host.
    unsafe { select::<false>(&p, k_maps, q_map) }
}

/// As [`select_stem`], in clusters of two that share the products of their heads ([`crate::pipeline::wide`]), where scores are rounded to bf16.
///
/// # Safety
/// As [`select_stem`]; the clusters have two blocks, and `round_bf16` is set.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn select_stem_wide(p: SelectParams, _tile: TensorMap, _tiles: TensorMap, _queries: TensorMap) {
    let k_maps = [tensor_map_param!(select_stem_wide, 1), tensor_map_param!(select_stem_wide, 2)];
    let q_map = tensor_map_param!(select_stem_wide, 3);
    // SAFETY: forwarded from the host.
    unsafe { select::<true>(&p, k_maps, q_map) }
}

/// The kernel's body: barriers, then roles.
///
/// # Safety
/// As the entry; called by all threads of the block.
#[inline(always)]
unsafe fn select<const WIDE: bool>(p: &SelectParams, k_maps: [TensorMapPtr; 2], q_map: TensorMapPtr) {
    let shared = Shared::of_block();
    let thread = special::tid_x();
    let blocks = cluster::blocks();
    // SAFETY: one thread initialises before all threads of the cluster meet; roles split on whole warps; a block ends only when
    // all of its cluster have, so that no signal or copy of theirs finds it gone.
    unsafe {
        if thread == 0 {
            init::<WIDE>(shared, blocks);
        }
        cluster::meet();
        pdl::launch_dependents();
        // From lane 0: known to be the same in the whole warp.
        let warp_index = warp::shfl_idx_u32(thread / 32, 0);
        if warp_index < CONSUMER_WARPS {
            regs::setmaxnreg_inc::<CONSUMER_REGS>();
            pdl::wait();
            let consumer = Consumer { warpgroup: warp_index / 4, thread: thread % 128, blocks };
            decide::consume::<WIDE>(p, consumer);
        } else if warp_index < CONSUMER_WARPS + SIDE_WARPS {
            regs::setmaxnreg_dec::<SUM_REGS>();
            if warp_index < CONSUMER_WARPS + SUM_WARPS {
                sum::sum_queries::<WIDE>(p, shared, q_map, warp_index - CONSUMER_WARPS);
            } else {
                pdl::wait();
                make_terms(p, shared);
            }
        } else {
            regs::setmaxnreg_dec::<COPY_REGS>();
            let copies = warp_index == CONSUMER_WARPS + SIDE_WARPS;
            if copies | WIDE & (special::no_unroll(warp_index) > CONSUMER_WARPS + SIDE_WARPS + 2) {
                pdl::wait();
                if WIDE {
                    copy::copy_keys_wide(p, shared, k_maps[0], !copies as u32);
                } else {
                    copy::copy_keys(p, shared, k_maps, thread % 32);
                }
            } else if warp_index == CONSUMER_WARPS + SIDE_WARPS + 1 {
                copy::hand_over_sums::<WIDE>(p, shared, thread % 32);
            } else if warp_index == CONSUMER_WARPS + SIDE_WARPS + 2 {
                plan_strips(p, shared, thread % 32);
            }
        }
        cluster::sync();
    }
}

/// Initialises the barriers.
///
/// # Safety
/// One thread, before any other use; a barrier of the cluster follows.
#[inline(always)]
unsafe fn init<const WIDE: bool>(shared: Shared, blocks: u32) {
    // SAFETY: forwarded.
    unsafe {
        if WIDE {
            shared.wide_keys.init(1, 1);
            shared.sums.init(1, CONSUMERS * blocks);
            mbarrier::init(shared.made(), CONSUMER_WARPS * blocks);
            mbarrier::init(shared.stored(), CONSUMER_WARPS * blocks);
        } else {
            shared.keys.init(1, CONSUMERS * blocks);
            shared.sums.init(1, CONSUMERS);
        }
        shared.plans.init(32, CONSUMER_THREADS);
        let (mut at, mut turn) = (Turn::START, 0);
        while turn < SUM_TURNS {
            // The arrivals of a warp for each octet.
            mbarrier::init(shared.written(at), 32 * OCTETS);
            at = at.next();
            turn += 1;
        }
        let mut stage = 0;
        while stage < QUERY_STAGES {
            mbarrier::init(shared.unit_full(stage), 1);
            stage += 1;
        }
        mbarrier::init(shared.done(), if WIDE { CONSUMER_WARPS } else { CONSUMER_WARPS * blocks });
        mbarrier::init(shared.terms(), 32);
        mbarrier::init(shared.terms_read(), CONSUMER_THREADS);
        mbarrier::init_fence();
    }
}

/// The warp that makes the value terms, those of a span while the products on it run. For a strip's mean and deviation all norms of the
/// request are read, which may take longer: it is done while the consumers still need the terms of the strip before.
#[inline(always)]
unsafe fn make_terms(p: &SelectParams, shared: Shared) {
    let (mut strips, mut pass) = (Strips::new(p), 0u32);
    // SAFETY: the moments are the warp's own.
    unsafe { ValueTerm::forget(shared.moments()) };
    // SAFETY: terms are overwritten when the consumers have read those of the span before, which they do not before these are written, so
    // that neither barrier is ever two phases ahead.
    unsafe {
        while strips.any() {
            let strip = strips.current();
            strips.advance(&strip);
            if !strip.has_scores(p, special::tid_x_again() % 32) {
                continue;
            }
            let value = ValueTerm::new(p, &strip, shared.norms(), shared.moments());
            let mut first = 0;
            while first < strip.keys {
                // The parity of the phase before the first is 1: the first span does not wait.
                mbarrier::wait(shared.terms_read(), pass ^ 1);
                value.write(strip.span(first), shared.norms(), shared.bias());
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

const _: () = assert!(32 * (CONSUMER_WARPS + SIDE_WARPS + 4) == THREADS, "the last warp is there for the warpgroup's registers");
