//! `attend_fp8_d128`: FP8 block-sparse and dense attention over a paged KV cache.
//!
//! One block computes 128 query rows of one head. A producer warp walks the row's list of key blocks from its end (the
//! diagonal block, the only one that needs a mask, comes first), turns each into page boxes of K and one bulk copy of the
//! transposed V tile, and fills two rings. Two consumer warpgroups of 64 rows each run
//! `S(i+1) = Q K(i+1)` and `O += P(i) V(i)` on the tensor core while they turn S into P in registers.

use crate::abi::{AttendParams, QueryBlock, Request};
use crate::config::attend::{CONSUMER_REGS, CONSUMERS, PRODUCER_REGS, STAGES, smem as map};
use crate::config::{BLOCK, HEAD_DIM, P_SCALE_LOG2, TILE_BYTES};
use crate::pipeline::ring::{Cursor, Ring};
use crate::ptx::SmemAddr;
use crate::ptx::tma::{TensorMap, TensorMapPtr};
use crate::ptx::{barrier, math, mbarrier, regs, smem, special, tma, warp, wgmma};
use crate::tile::epilogue::{RowPair, store_lse, store_rows};
use crate::tile::mma::{Output, Probabilities, Scores, issue_pv, issue_qk, q_rows};
use crate::tile::softmax::{OnlineSoftmax, mask_columns, pack};

const TILE: u32 = TILE_BYTES as u32;
const LN_2: f32 = core::f32::consts::LN_2;

/// What this block works on.
#[derive(Clone, Copy)]
struct Work {
    head: i32,
    kv_head: i32,
    row: QueryBlock,
    request: Request,
    /// Key blocks the row may see.
    visible: i32,
    /// Key blocks to attend to, walked from index `count - 1` down to 0.
    count: i32,
    /// Address of the row's list, or 0: block index = list index.
    list: u64,
}

/// Shared-memory rings and tiles.
#[derive(Clone, Copy)]
struct Shared {
    base: SmemAddr,
    k: Ring<STAGES>,
    v: Ring<STAGES>,
}

impl Shared {
    #[inline(always)]
    fn new() -> Self {
        let base = smem::base();
        Self { base, k: Ring::at(base.offset(map::K_RING)), v: Ring::at(base.offset(map::V_RING)) }
    }
    #[inline(always)]
    fn q_full(self) -> SmemAddr {
        self.base.offset(map::Q_FULL)
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
            mbarrier::init(shared.q_full(), 1);
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
                // Each role finds the work for itself: values that live across the split would cost the producer, with its
                // few registers, a spill.
                produce(p, shared, &locate(p), q_map, k_map, tid);
            }
        } else {
            regs::setmaxnreg_inc::<CONSUMER_REGS>();
            consume(p, shared, warpgroup - 1, tid % 128);
        }
    }
}

/// Finds the block's work. The longest rows (the end of a causal prompt) start first, so the tail of the grid is short
/// rows; the heads of one query block run side by side and share their KV tiles in L2.
///
/// # Safety
/// The block's coordinates lie in the grid the host sized from these arrays.
#[inline(always)]
unsafe fn locate(p: &AttendParams) -> Work {
    let head = special::ctaid_x() as i32;
    let index = p.total_qb - 1 - special::ctaid_y() as i32;
    // SAFETY: index < total_qb; the host checked the arrays.
    unsafe {
        let row = *(p.query_blocks as *const QueryBlock).add(index as usize);
        let request = *(p.requests as *const Request).add(row.request as usize);
        let at = (head as i64) * (p.total_qb as i64) + index as i64;
        let visible = if p.causal != 0 { (row.block + 1).min(request.kb_len) } else { request.kb_len };
        let (count, list) = if p.lists == 0 {
            (visible, 0)
        } else {
            // Lists may come straight from device memory, unseen by the host: what they say is kept inside the row's arrays.
            let most = if visible < p.list_stride { visible } else { p.list_stride };
            let count = *(p.counts as *const i32).offset(at as isize);
            (if count < most { count } else { most }, p.lists + (at * p.list_stride as i64 * 4) as u64)
        };
        core::hint::assert_unchecked(p.group > 0);
        Work { head, kv_head: head / p.group, row, request, visible, count, list }
    }
}

/// Key block number `i` of the walk.
///
/// # Safety
/// `0 <= i < work.count`.
#[inline(always)]
unsafe fn key_block(work: &Work, i: i32) -> i32 {
    let at = work.count - 1 - i;
    if work.list == 0 {
        at
    } else {
        // SAFETY: 0 <= at < count, which is no more than the list's capacity.
        let j = unsafe { *(work.list as *const i32).offset(at as isize) };
        // A block the row cannot see becomes one that it can.
        if (j as u32) < work.visible as u32 { j } else { work.visible - 1 }
    }
}

/// The producer warp: Q once, then K boxes and one V tile for every key block. Lane n carries box n of a K tile.
///
/// # Safety
/// Called by the whole first warp; the rings are initialised; the host checked what `p` and the maps name.
#[inline(always)]
unsafe fn produce(p: &AttendParams, shared: Shared, work: &Work, q_map: TensorMapPtr, k_map: TensorMapPtr, lane: u32) {
    let leader = (lane == 0) as u32;
    let page_log2 = p.page_size_log2 as u32;
    let box_log2 = if page_log2 < 7 { page_log2 } else { 7 };
    let boxes = (BLOCK as u32) >> box_log2;
    let carries = (lane < boxes) as u32;
    // Lanes without a box repeat the first one's address arithmetic and issue nothing.
    let my_box = if lane < boxes { lane } else { 0 };
    let any_rows = (work.count > 0) as u32;
    let table = p.page_table + (work.row.request as i64 * p.table_stride as i64 * 4) as u64;
    let tile_stride = p.hkv as i64 * TILE as i64;
    let v_tiles = p.v_tiles + (work.request.kb_start as i64 * tile_stride + work.kv_head as i64 * TILE as i64) as u64;
    let q_row = work.request.q_start + (work.row.block * BLOCK as i32 - (work.request.kv_len - work.request.q_len));
    // SAFETY: barriers are initialised; every stage is waited for before it is overwritten; addresses come from arrays
    // whose extents the host checked; rows outside a tensor are zero-filled by the copy engine.
    unsafe {
        mbarrier::expect_tx_if(shared.q_full(), TILE, leader & any_rows);
        tma::load_3d_if(shared.base.offset(map::Q), q_map, shared.q_full(), [0, work.head, q_row], leader & any_rows);
        let mut i = 0;
        while i < work.count {
            let at = Cursor::at(i as u32);
            let j = key_block(work, i);
            // A box past the last token repeats the block's first page; its keys are masked.
            let token = j * BLOCK as i32 + ((my_box << box_log2) as i32);
            let token = if token < work.request.kv_len { token } else { j * BLOCK as i32 };
            let page = *(table as *const i32).offset((token >> page_log2) as isize);
            let in_page = token & ((1 << page_log2) - 1);
            shared.k.wait_empty(at);
            mbarrier::expect_tx_if(shared.k.full(at), TILE, leader);
            tma::load_4d_if(
                shared.k_tile(at).offset((my_box * HEAD_DIM as u32) << box_log2),
                k_map,
                shared.k.full(at),
                [0, in_page, work.kv_head, page],
                carries,
            );
            shared.v.wait_empty(at);
            mbarrier::expect_tx_if(shared.v.full(at), TILE, leader);
            tma::bulk_load_if(shared.v_tile(at), v_tiles.wrapping_add((j as i64 * tile_stride) as u64), TILE, shared.v.full(at), leader);
            i += 1;
        }
    }
}

/// A consumer warpgroup: 64 rows of the query block.
///
/// # Safety
/// All threads of the warpgroup call it converged, on the host-checked parameters.
#[inline(always)]
unsafe fn consume(p: &AttendParams, shared: Shared, wg: u32, thread: u32) {
    // SAFETY: forwarded from the caller; see each stage.
    unsafe {
        let work = locate(p);
        let mut output = Output::zero();
        let mut softmax = OnlineSoftmax::new([1.0; 2]);
        let mut sum = [0.0; 2];
        if work.count > 0 {
            softmax.scale = row_scales(p, &work, rows_of(p, &work, wg, thread));
            walk(p, shared, &work, wg, thread, &mut output, &mut softmax);
            sum = softmax.total();
        }
        // Found again rather than kept: every register that lives through the main loop would be a spill.
        let tid = special::tid_x_again();
        let (wg, thread) = (tid / 128 - 1, tid % 128);
        let work = locate(p);
        let rows = rows_of(p, &work, wg, thread);
        let v_scale = *(p.v_scale as *const f32).offset((work.kv_head * p.v_scale_stride) as isize);
        // A row that sees no key has sum 0: zeros, and a log-sum-exp of minus infinity.
        let factor = |sum: f32| if sum > 0.0 { v_scale * math::rcp(sum) } else { 0.0 };
        let out = p.out + (work.head as u64) * (HEAD_DIM as u64 * 2);
        store_rows(&output, [factor(sum[0]), factor(sum[1])], out, rows, thread % 32);
        if p.lse != 0 && thread % 4 == 0 {
            let lse = [log_sum(&softmax, sum, 0), log_sum(&softmax, sum, 1)];
            store_lse(p.lse, p.hq as u32, work.head, rows, lse);
        }
    }
}

/// The two rows of a thread: row `thread / 4` of its warp's sixteen, and the one 8 below.
#[inline(always)]
fn rows_of(p: &AttendParams, work: &Work, wg: u32, thread: u32) -> RowPair {
    let history = work.request.kv_len - work.request.q_len;
    let token = first_token(work, wg, thread);
    let valid = |t: i32| t >= history && t < work.request.kv_len;
    RowPair {
        first: (work.request.q_start + token - history) as i64,
        valid: [valid(token), valid(token + 8)],
        token_stride: p.hq as u32 as i64 * HEAD_DIM as i64 * 2,
    }
}

/// Position in the sequence of the thread's first row.
#[inline(always)]
fn first_token(work: &Work, wg: u32, thread: u32) -> i32 {
    work.row.block * BLOCK as i32 + (wg * 64 + thread / 32 * 16 + thread % 32 / 4) as i32
}

/// Natural log-sum-exp of row `k`: (max * scale + log2(sum) - 8) ln 2; minus infinity for an empty sum.
#[inline(always)]
fn log_sum(softmax: &OnlineSoftmax, sum: [f32; 2], k: usize) -> f32 {
    if sum[k] > 0.0 { math::fma(softmax.max[k], softmax.scale[k], math::lg2(sum[k]) - P_SCALE_LOG2) * LN_2 } else { f32::NEG_INFINITY }
}

/// Raw score to base-2 logit for the thread's two rows; 1 for rows that are not the request's.
///
/// # Safety
/// Valid rows lie inside `q_scale`.
#[inline(always)]
unsafe fn row_scales(p: &AttendParams, work: &Work, rows: RowPair) -> [f32; 2] {
    // SAFETY: valid rows lie inside `q_scale`; the K scale is per tensor or per head.
    unsafe {
        let k = *(p.k_scale as *const f32).offset((work.kv_head * p.k_scale_stride) as isize) * p.softmax_scale_log2;
        let q = (p.q_scale as *const f32).offset((rows.first * p.hq as u32 as i64 + work.head as i64) as isize);
        // Not 0, also where tiny scales underflow: times the minus infinity of a masked column that would be NaN.
        let positive = |scale: f32| math::fmax(scale, f32::MIN_POSITIVE);
        let mut scale = [1.0, 1.0];
        if rows.valid[0] {
            scale[0] = positive(*q * k);
        }
        if rows.valid[1] {
            scale[1] = positive(*q.offset(8 * p.hq as u32 as isize) * k);
        }
        scale
    }
}

/// The main loop: while the tensor core computes S(i+1) and P(i) V(i), turn S into P.
///
/// # Safety
/// All threads of the warpgroup call it converged; the rings are initialised; `work.count > 0`.
#[inline(always)]
unsafe fn walk(p: &AttendParams, shared: Shared, work: &Work, wg: u32, thread: u32, output: &mut Output, softmax: &mut OnlineSoftmax) {
    let signal = (thread == 0) as u32;
    let q = q_rows(shared.base.offset(map::Q), wg);
    let mut probabilities = Probabilities([0; 16]);
    // SAFETY: all threads of the warpgroup run this converged; tiles are waited for before use and released after.
    unsafe {
        let first = key_block(work, 0) * BLOCK as i32;
        let token = first_token(work, wg, thread);
        let limit = |t: i32| if p.causal != 0 && t < work.request.kv_len - 1 { t - first } else { work.request.kv_len - 1 - first };
        mbarrier::wait(shared.q_full(), 0);
        let at = Cursor::at(0);
        shared.k.wait_full(at);
        let pending = issue_qk(q, shared.k_tile(at), Scores::zero());
        wgmma::wait::<0>();
        let mut scores = pending.landed();
        shared.k.release(at, signal);
        mask_columns(&mut scores, thread % 32, [limit(token), limit(token + 8)]);
        // The output is still zero: whatever the factor is, it scales nothing.
        let mut factor = softmax.step(&mut scores);
        pack(&scores, &mut probabilities);
        shared.v.wait_full(at);
        let mut tile = Output::zero();
        let count = warp::shfl_idx_u32(work.count as u32, 0) as i32;
        let mut i = 1;
        while i < count {
            let (before, at) = (Cursor::at(i as u32 - 1), Cursor::at(i as u32));
            shared.k.wait_full(at);
            let pending = issue_qk(q, shared.k_tile(at), scores);
            let product = issue_pv(&probabilities, shared.v_tile(before), tile);
            wgmma::wait::<1>();
            scores = pending.landed();
            shared.k.release(at, signal);
            let next_factor = softmax.step(&mut scores);
            softmax.pin();
            // Nothing in PTX keeps ptxas from waiting for P V before the softmax that should hide it, and it does so when
            // both stand in one basic block. This wait, due anyway, parts them.
            shared.v.wait_full(at);
            wgmma::wait::<0>();
            tile = product.landed();
            shared.v.release(before, signal);
            output.rescale_add(factor, &tile);
            factor = next_factor;
            pack(&scores, &mut probabilities);
            i += 1;
        }
        let product = issue_pv(&probabilities, shared.v_tile(Cursor::at(i as u32 - 1)), tile);
        wgmma::wait::<0>();
        output.rescale_add(factor, &product.landed());
    }
}
