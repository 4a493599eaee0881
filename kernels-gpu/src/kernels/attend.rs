//! `attend_fp8_d128`: FP8 block-sparse and dense attention over a paged KV cache.
//!
//! A persistent grid: each block works through items of 128 query rows of one head. A producer warp walks an item's list
//! of key blocks from its end (the diagonal block, the only one that needs a mask, comes first), turns each into page
//! boxes of K and one bulk copy of the transposed V tile, and fills rings that run on from item to item: the next item's Q,
//! scales and first tiles are there when the consumers come to it. Two consumer warpgroups of 64 rows each run
//! `S(i+1) = Q K(i+1)` and `O += P(i) V(i)` on the tensor core while they turn S into P in registers.

use crate::abi::AttendParams;
use crate::config::attend::{CONSUMER_REGS, CONSUMERS, PRODUCER_REGS, Q_STAGES, STAGES, smem as map};
use crate::config::{BLOCK, HEAD_DIM, P_SCALE_LOG2, TILE_BYTES};
use crate::pipeline::ring::{Cursor, Ring};
use crate::pipeline::work::{Item, Slot, item};
use crate::ptx::SmemAddr;
use crate::ptx::tma::{TensorMap, TensorMapPtr};
use crate::ptx::{barrier, math, mbarrier, regs, smem, special, tma, warp, wgmma};
use crate::tile::epilogue::{RowPair, store_lse, store_rows};
use crate::tile::mma::{Output, Probabilities, Scores, issue_pv, issue_qk, q_rows};
use crate::tile::softmax::{OnlineSoftmax, mask_columns, pack};

const TILE: u32 = TILE_BYTES as u32;
const LN_2: f32 = core::f32::consts::LN_2;

/// Shared-memory rings and tiles.
#[derive(Clone, Copy)]
struct Shared {
    base: SmemAddr,
    q: Ring<Q_STAGES>,
    k: Ring<STAGES>,
    v: Ring<STAGES>,
}

impl Shared {
    #[inline(always)]
    fn new() -> Self {
        let base = smem::base();
        let ring = |at| base.offset(at);
        Self { base, q: Ring::at(ring(map::Q_RING)), k: Ring::at(ring(map::K_RING)), v: Ring::at(ring(map::V_RING)) }
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
    fn v_tile(self, at: Cursor<STAGES>) -> SmemAddr {
        self.base.offset(map::V + at.stage() * TILE)
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
    unsafe { attend(&p, q_map, k_map) }
}

/// The kernel's body: barriers, then roles.
///
/// # Safety
/// As the entry; called by all threads of the block.
#[inline(always)]
unsafe fn attend(p: &AttendParams, q_map: TensorMapPtr, k_map: TensorMapPtr) {
    let shared = Shared::new();
    let tid = special::tid_x();
    // From lane 0: what comes out of a shuffle with one source lane is known to be the same in the whole warp, and lives in
    // the uniform registers with all that follows from it (descriptors, stages): 15 moves a tile less.
    // SAFETY: all threads of the block call it.
    let warpgroup = unsafe { warp::shfl_idx_u32(tid / 128, 0) };
    if tid == 0 {
        // SAFETY: one thread, before the block barrier below.
        unsafe {
            // Each warp gives an item back for itself: all of its lanes read the slot.
            shared.q.init(CONSUMERS * 4);
            shared.k.init(CONSUMERS);
            shared.v.init(CONSUMERS);
            mbarrier::init_fence();
        }
    }
    // SAFETY: all threads of the block arrive; roles split on whole warpgroups after it.
    unsafe {
        barrier::sync_all();
        if warpgroup == 0 {
            regs::setmaxnreg_dec::<PRODUCER_REGS>();
            if tid < 32 {
                produce(p, shared, q_map, k_map);
            }
        } else {
            regs::setmaxnreg_inc::<CONSUMER_REGS>();
            consume(p, shared, warpgroup - 1, tid % 128);
        }
    }
}

/// The producer warp, over all items of the block.
#[inline(always)]
unsafe fn produce(p: &AttendParams, shared: Shared, q_map: TensorMapPtr, k_map: TensorMapPtr) {
    let (mut k, mut tile) = (0, 0);
    // SAFETY: barriers are initialised; every stage is waited for before it is overwritten; addresses come from arrays
    // whose extents the host checked; rows outside a tensor are zero-filled by the copy engine.
    unsafe {
        while let Some(n) = item(p, k) {
            // Read again for every item: what hangs on the lane is cheaper to find anew than to keep in 40 registers.
            let lane = special::tid_x_again();
            let leader = (lane == 0) as u32;
            let work = Item::locate(p, n);
            let at = Cursor::at(k);
            shared.q.wait_empty(at);
            put_scales(p, &work, shared.scales(at), lane);
            shared.slot(at).fill(p, &work, leader);
            warp::sync();
            let any = leader & (work.count > 0) as u32;
            mbarrier::expect_tx_if(shared.q.full(at), if work.count > 0 { TILE } else { 0 }, leader);
            tma::load_3d_if(shared.q_tile(at), q_map, shared.q.full(at), [0, work.head, work.tile_row()], any);
            load_tiles(p, shared, &work, k_map, tile);
            tile += work.count as u32;
            k += 1;
        }
    }
}

/// Writes the scales of the tile's 128 rows: raw score to base-2 logit. Rows that are not the request's repeat a neighbour's.
#[inline(always)]
unsafe fn put_scales(p: &AttendParams, item: &Item, scales: SmemAddr, lane: u32) {
    // SAFETY: rows from..to lie inside `q_scale`; the K scale is per tensor or per head; the stage is the producer's.
    unsafe {
        let k = *(p.k_scale as *const f32).offset((item.kv_head * p.k_scale_stride) as isize) * p.softmax_scale_log2;
        let [from, to] = item.rows();
        let mut to_write = lane;
        while to_write < BLOCK as u32 {
            let row = to_write as i32;
            let row = if row < from { from } else { row };
            let row = if row < to { row } else { to - 1 };
            let at = (item.tile_row() + row) as u32 as i64 * p.hq as u32 as i64 + item.head as u32 as i64;
            let scale = *(p.q_scale as *const f32).offset(at as isize) * k;
            // Not 0, also where tiny scales underflow: times the minus infinity of a masked column that would be NaN.
            smem::st_f32(scales.offset(4 * to_write), math::fmax(scale, f32::MIN_POSITIVE));
            to_write += 32;
        }
    }
}

/// K boxes and one V tile for every key block of an item, into the rings from position `tile` on. Lane n carries box n of
/// a K tile.
#[inline(always)]
unsafe fn load_tiles(p: &AttendParams, shared: Shared, item: &Item, k_map: TensorMapPtr, tile: u32) {
    let lane = special::tid_x_again();
    let leader = (lane == 0) as u32;
    let page_log2 = math::here(p.page_size_log2) as u32;
    let box_log2 = if page_log2 < 7 { page_log2 } else { 7 };
    let boxes = (BLOCK as u32) >> box_log2;
    let carries = (lane < boxes) as u32;
    // Lanes without a box repeat the first one's address arithmetic and issue nothing.
    let my_box = if lane < boxes { lane } else { 0 };
    let table = p.page_table + (item.row.request as u32 as i64 * p.table_stride as u32 as i64 * 4) as u64;
    let tile_stride = math::here(p.hkv) as u32 as i64 * TILE as i64;
    let v_tiles = p.v_tiles + (item.request.kb_start as u32 as i64 * tile_stride + item.kv_head as u32 as i64 * TILE as i64) as u64;
    let mut i = 0;
    // SAFETY: as in `produce`.
    unsafe {
        while i < item.count {
            let at = Cursor::at(tile + i as u32);
            let j = item.key_block(i);
            // A box past the last token repeats the block's first page; its keys are masked.
            let token = j * BLOCK as i32 + ((my_box << box_log2) as i32);
            let token = if token < item.request.kv_len { token } else { j * BLOCK as i32 };
            let page = *(table as *const i32).offset((token >> page_log2) as isize);
            let in_page = token & ((1 << page_log2) - 1);
            shared.k.wait_empty(at);
            mbarrier::expect_tx_if(shared.k.full(at), TILE, leader);
            let rows = shared.k_tile(at).offset((my_box * HEAD_DIM as u32) << box_log2);
            tma::load_4d_if(rows, k_map, shared.k.full(at), [0, in_page, item.kv_head, page], carries);
            shared.v.wait_empty(at);
            mbarrier::expect_tx_if(shared.v.full(at), TILE, leader);
            tma::bulk_load_if(
                shared.v_tile(at),
                v_tiles.wrapping_add((j as u32 as i64 * tile_stride) as u64),
                TILE,
                shared.v.full(at),
                leader,
            );
            i += 1;
        }
    }
}

/// A consumer warpgroup, over all items of the block: 64 rows of each.
///
/// # Safety
/// All threads of the warpgroup call it converged, on the host-checked parameters.
#[inline(always)]
unsafe fn consume(p: &AttendParams, shared: Shared, wg: u32, thread: u32) {
    let (mut k, mut tile) = (0, 0);
    // SAFETY: forwarded from the caller; a slot is read between the wait for its barrier and the warp's release.
    unsafe {
        while item(p, k).is_some() {
            let at = Cursor::at(k);
            let mut output = Output::zero();
            let mut softmax = OnlineSoftmax::new([1.0; 2]);
            let mut sum = [0.0; 2];
            shared.q.wait_full(at);
            let count = warp::shfl_idx_u32(shared.slot(at).count() as u32, 0);
            if count > 0 {
                let row = tile_row(wg, thread);
                let scales = shared.scales(at).offset(4 * row);
                softmax.scale = [smem::ld_f32(scales), smem::ld_f32(scales.offset(32))];
                let slot = shared.slot(at);
                let limit = [slot.limit(p.causal != 0, row as i32), slot.limit(p.causal != 0, row as i32 + 8)];
                walk(shared, q_rows(shared.q_tile(at), wg), tile, count, thread, limit, &mut output, &mut softmax);
                sum = softmax.total();
            }
            write(p, shared.slot(at), &output, &softmax, sum);
            warp::sync();
            shared.q.release(at, special::tid_x_again().is_multiple_of(32) as u32);
            tile += count;
            k += 1;
        }
    }
}

/// The thread's first row of the tile; its second is 8 below.
#[inline(always)]
fn tile_row(wg: u32, thread: u32) -> u32 {
    wg * 64 + thread / 32 * 16 + thread % 32 / 4
}

/// The main loop: while the tensor core computes S(i+1) and P(i) V(i), turn S into P.
///
/// # Safety
/// All threads of the warpgroup call it converged; the rings are initialised; `work.count > 0`.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "inlined once; a struct of them would only rename them")]
unsafe fn walk(
    shared: Shared,
    q: SmemAddr,
    tile: u32,
    count: u32,
    thread: u32,
    limit: [i32; 2],
    output: &mut Output,
    softmax: &mut OnlineSoftmax,
) {
    let signal = (thread == 0) as u32;
    let mut probabilities = Probabilities([0; 16]);
    let end = tile + count;
    // SAFETY: all threads of the warpgroup run this converged; tiles are waited for before use and released after.
    unsafe {
        let at = Cursor::at(tile);
        shared.k.wait_full(at);
        let pending = issue_qk(q, shared.k_tile(at), Scores::zero());
        wgmma::wait::<0>();
        let mut scores = pending.landed();
        shared.k.release(at, signal);
        mask_columns(&mut scores, thread % 32, limit);
        // The output is still zero: whatever the factor is, it scales nothing.
        let mut factor = softmax.step(&mut scores);
        pack(&scores, &mut probabilities);
        shared.v.wait_full(at);
        let mut product = Output::zero();
        let mut i = tile + 1;
        while i != end {
            let (before, at) = (Cursor::at(i.wrapping_sub(1)), Cursor::at(i));
            shared.k.wait_full(at);
            let pending = issue_qk(q, shared.k_tile(at), scores);
            let pending_product = issue_pv(&probabilities, shared.v_tile(before), product);
            wgmma::wait::<1>();
            scores = pending.landed();
            shared.k.release(at, signal);
            let next_factor = softmax.step(&mut scores);
            softmax.pin();
            // Nothing in PTX keeps ptxas from waiting for P V before the softmax that should hide it, and it does so when
            // both stand in one basic block. This wait, due anyway, parts them.
            shared.v.wait_full(at);
            wgmma::wait::<0>();
            product = pending_product.landed();
            shared.v.release(before, signal);
            output.rescale_add(factor, &product);
            factor = next_factor;
            pack(&scores, &mut probabilities);
            i = i.wrapping_add(1);
        }
        let last = Cursor::at(i.wrapping_sub(1));
        let pending_product = issue_pv(&probabilities, shared.v_tile(last), product);
        wgmma::wait::<0>();
        shared.v.release(last, signal);
        output.rescale_add(factor, &pending_product.landed());
    }
}

/// Writes the thread's rows, and their log-sum-exp if asked for.
///
/// # Safety
/// The slot is readable; the host checked `out` and `lse`.
#[inline(always)]
unsafe fn write(p: &AttendParams, slot: Slot, output: &Output, softmax: &OnlineSoftmax, sum: [f32; 2]) {
    // SAFETY: forwarded from the caller; valid rows lie inside `out` and `lse`.
    unsafe {
        // Read again rather than kept: every register that lives through the main loop would be a spill.
        let tid = special::tid_x_again();
        let row = tile_row(tid / 128 - 1, tid % 128) as i32;
        let [tile_row, from, to] = slot.rows();
        let (head, v_scale) = slot.head();
        let valid = |row: i32| row >= from && row < to;
        let rows = RowPair {
            first: (tile_row + row) as i64,
            valid: [valid(row), valid(row + 8)],
            token_stride: p.hq as u32 as i64 * HEAD_DIM as i64 * 2,
        };
        // A row that sees no key has sum 0: zeros, and a log-sum-exp of minus infinity.
        let factor = |sum: f32| if sum > 0.0 { v_scale * math::rcp(sum) } else { 0.0 };
        let out = p.out + (head as u64) * (HEAD_DIM as u64 * 2);
        store_rows(output, [factor(sum[0]), factor(sum[1])], out, rows, tid % 32);
        if p.lse != 0 && tid.is_multiple_of(4) {
            let lse = [log_sum(softmax, sum, 0), log_sum(softmax, sum, 1)];
            store_lse(p.lse, p.hq as u32, head, rows, lse);
        }
    }
}

/// Natural log-sum-exp of row `k`: (max * scale + log2(sum) - 8) ln 2; minus infinity for an empty sum.
#[inline(always)]
fn log_sum(softmax: &OnlineSoftmax, sum: [f32; 2], k: usize) -> f32 {
    if sum[k] > 0.0 { math::fma(softmax.max[k], softmax.scale[k], math::lg2(sum[k]) - P_SCALE_LOG2) * LN_2 } else { f32::NEG_INFINITY }
}
