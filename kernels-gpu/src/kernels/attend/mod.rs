//! `attend_fp8_d128`: FP8 block-sparse and dense attention over a paged KV cache.
//!
//! A persistent grid: each block works through items of 128 query rows of one head. Of its producer warpgroup, one warp walks
//! an item's list of key blocks from its end (the diagonal block, the only one that needs a mask, comes first), turns each
//! into page boxes of K and one bulk copy of the transposed V tile, and fills a ring that runs on from item to item; two more
//! bring the next item's Q tile and prepare it. Two consumer warpgroups of 64 rows each run the products on the tensor core
//! while they turn scores into P in registers, in steps of 64 keys.

mod consume;
mod produce;
mod walk;

use crate::abi::AttendParams;
use crate::config::attend::{CONSUMER_REGS, CONSUMERS, PREPARERS, PRODUCER_REGS, Q_STAGES, STAGES, THREADS, smem as map};
use crate::config::{BLOCK, TILE_BYTES};
use crate::pipeline::key_scales::{KeyScales, NoScales};
use crate::pipeline::ring::{Cursor, Ring};
use crate::pipeline::work::{Slot, prefetch_first};
use crate::ptx::SmemAddr;
use crate::ptx::tma::{TensorMap, TensorMapPtr};
use crate::ptx::{barrier, fence, mbarrier, pdl, regs, smem, special, tma, warp};

const TILE: u32 = TILE_BYTES as u32;
/// Four e4m3 ones.
const ONES: u32 = 0x3838_3838;

/// Shared-memory rings and tiles.
#[derive(Clone, Copy)]
struct Shared {
    base: SmemAddr,
    q: Ring<Q_STAGES>,
    ready: Ring<Q_STAGES>,
    kv: Ring<STAGES>,
}

impl Shared {
    #[inline(always)]
    fn new() -> Self {
        let base = smem::base();
        let ring = |at| base.offset(at);
        Self { base, q: Ring::at(ring(map::Q_RING)), ready: Ring::at(ring(map::READY)), kv: Ring::at(ring(map::KV_RING)) }
    }
    #[inline(always)]
    fn q_tile(self, at: Cursor<Q_STAGES>) -> SmemAddr {
        self.base.offset(map::Q + at.stage() * TILE)
    }
    #[inline(always)]
    fn scales(self, at: Cursor<Q_STAGES>) -> SmemAddr {
        self.base.offset(map::WORK + at.stage() * map::WORK_STAGE)
    }
    #[inline(always)]
    fn slot(self, at: Cursor<Q_STAGES>) -> Slot {
        Slot(self.scales(at).offset(BLOCK as u32 * 4))
    }
    #[inline(always)]
    fn k_tile(self, at: Cursor<STAGES>) -> SmemAddr {
        self.base.offset(map::K + at.stage() * TILE)
    }
    #[inline(always)]
    fn key_scales(self) -> SmemAddr {
        self.base.offset(map::KEY_SCALES)
    }
    #[inline(always)]
    fn v_tile(self, at: Cursor<STAGES>) -> SmemAddr {
        self.base.offset(map::V + at.stage() * map::V_STAGE)
    }
}

/// Entry: see [`AttendParams`] for the grid, the tensors and the two tensor maps.
///
/// # Safety
/// Launched with the grid, block size and shared memory that the host crate's `ops::attend` computes, on buffers whose
/// extents it has checked.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn attend_fp8_d128(p: AttendParams, _q_map: TensorMap, _k_map: TensorMap) {
    let q_map = tma::tensor_map_param!(attend_fp8_d128, 1);
    let k_map = tma::tensor_map_param!(attend_fp8_d128, 2);
    // SAFETY: forwarded from the host.
    unsafe { attend(&p, NoScales, q_map, k_map) }
}

/// The body of both entries: barriers, then roles. `keys`: how scales of single keys get to the scores, if there are any.
///
/// # Safety
/// As the entry; called by all threads of the block.
#[inline(always)]
pub(super) unsafe fn attend<S: KeyScales>(p: &AttendParams, keys: S, q_map: TensorMapPtr, k_map: TensorMapPtr) {
    let shared = Shared::new();
    let tid = special::tid_x();
    // From lane 0: what comes out of a shuffle with one source lane is known to be the same in the whole warp, and lives in
    // the uniform registers with all that follows from it (descriptors, stages): 15 moves a tile less.
    // SAFETY: all threads of the block call it.
    let warpgroup = unsafe { warp::shfl_idx_u32(tid / 128, 0) };
    // SAFETY: maps of the launch; the host has checked the arrays.
    unsafe {
        tma::prefetch_map_if(k_map, (tid == 32) as u32);
        tma::prefetch_map_if(q_map, (tid == 64) as u32);
        prefetch_first(p, (tid == 96) as u32);
    }
    if tid == 0 {
        // SAFETY: one thread, before the block barrier below.
        unsafe {
            // Each warp gives an item back for itself: all of its lanes read the slot.
            shared.q.init(CONSUMERS * 4);
            shared.ready.init_for(PREPARERS, 1);
            shared.kv.init(CONSUMERS * S::RELEASES);
            keys.init(shared.key_scales());
            mbarrier::init_fence();
        }
    }
    // SAFETY: all threads of the block arrive; roles split on whole warpgroups after it. The ones lie behind the tiles,
    // where no copy writes.
    unsafe {
        let mut word = tid;
        while word < STAGES * map::ONES_BYTES / 4 {
            let (stage, word_in) = (word / (map::ONES_BYTES / 4), word % (map::ONES_BYTES / 4));
            // Row 2 c sums the keys of every fourth word from word c on; the swizzle leaves those where they are.
            let ones = if word_in / 32 == word_in % 4 * 2 { ONES } else { 0 };
            smem::st_u32(shared.base.offset(map::V + stage * map::V_STAGE + TILE + 4 * word_in), ones);
            word += THREADS;
        }
        fence::proxy_async_shared();
        barrier::sync_all();
        if warpgroup == 0 {
            regs::setmaxnreg_dec::<PRODUCER_REGS>();
            // Lists, V tiles and pages may come from the kernels before. The consumers only see what the producers bring.
            pdl::wait();
            if tid < 32 {
                produce::load(p, shared, k_map);
            } else if tid < 32 + PREPARERS {
                produce::prepare(p, shared, q_map);
            } else if S::PRESENT {
                keys.produce(p, shared.kv, shared.key_scales());
            }
        } else {
            regs::setmaxnreg_inc::<CONSUMER_REGS>();
            consume::consume(p, shared, keys, warpgroup - 1, tid % 128);
        }
    }
}
