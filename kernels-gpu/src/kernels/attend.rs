//! `attend_fp8_d128`: FP8 block-sparse and dense attention over a paged KV cache.
//!
//! A persistent grid: each block works through items of 128 query rows of one head. A producer warp walks an item's list
//! of key blocks from its end (the diagonal block, the only one that needs a mask, comes first), turns each into page
//! boxes of K and one bulk copy of the transposed V tile, and fills rings that run on from item to item: the next item's Q,
//! scales and first tiles are there when the consumers come to it. Two consumer warpgroups of 64 rows each run
//! `S(i+1) = Q K(i+1)` and `O += P(i) V(i)` on the tensor core while they turn S into P in registers.

use crate::abi::AttendParams;
use crate::config::attend::{CONSUMER_REGS, CONSUMERS, FLUSH_TILES, PREPARERS, PRODUCER_REGS, Q_STAGES, STAGES, THREADS, smem as map};
use crate::config::{BLOCK, HEAD_DIM, TILE_BYTES};
use crate::pipeline::key_scales::{KeyScales, NoScales, RowScales};
use crate::pipeline::ring::{Cursor, Ring};
use crate::pipeline::work::{Item, Slot, item};
use crate::ptx::SmemAddr;
use crate::ptx::tma::{TensorMap, TensorMapPtr};
use crate::ptx::{barrier, fence, math, mbarrier, regs, smem, special, tma, warp, wgmma};
use crate::tile::epilogue::{RowPair, store_lse, store_rows};
use crate::tile::mma::{FIRST, Output, Probabilities, Product, SECOND, Scores, issue_pv, issue_qk, q_rows};
use crate::tile::shrink::shrink_row;
use crate::tile::softmax::{FIRST_TARGET, NEXT_TARGET, OnlineSoftmax, mask_columns, pack, settle};

const TILE: u32 = TILE_BYTES as u32;
/// Four e4m3 ones.
const ONES: u32 = 0x3838_3838;
/// Bounds of a row's scale in f16.
const LARGEST_SCALE: f32 = 60_000.0;
const SMALLEST_SCALE: f32 = 1.0 / 16_777_216.0;
const LN_2: f32 = core::f32::consts::LN_2;

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
    if tid == 0 {
        // SAFETY: one thread, before the block barrier below.
        unsafe {
            // Each warp gives an item back for itself: all of its lanes read the slot.
            shared.q.init(CONSUMERS * 4);
            shared.ready.init_for(PREPARERS, 1);
            shared.kv.init_for(1 + S::ARRIVALS, CONSUMERS * S::RELEASES);
            mbarrier::init_fence();
        }
    }
    // SAFETY: all threads of the block arrive; roles split on whole warpgroups after it. The ones lie behind the tiles,
    // where no copy writes.
    unsafe {
        let mut word = tid;
        while word < STAGES * map::ONES_BYTES / 4 {
            let (stage, word_in) = (word / (map::ONES_BYTES / 4), word % (map::ONES_BYTES / 4));
            smem::st_u32(shared.base.offset(map::V + stage * map::V_STAGE + TILE + 4 * word_in), ONES);
            word += THREADS;
        }
        fence::proxy_async_shared();
        barrier::sync_all();
        if warpgroup == 0 {
            regs::setmaxnreg_dec::<PRODUCER_REGS>();
            if tid < 32 {
                produce(p, shared, k_map);
            } else if tid < 32 + PREPARERS {
                prepare(p, shared, q_map);
            } else if S::ARRIVALS > 0 {
                keys.produce(p, shared.kv, shared.key_scales());
            }
        } else {
            regs::setmaxnreg_inc::<CONSUMER_REGS>();
            consume(p, shared, keys, warpgroup - 1, tid % 128);
        }
    }
}

/// The producer warp: K and V of all items of the block.
#[inline(always)]
unsafe fn produce(p: &AttendParams, shared: Shared, k_map: TensorMapPtr) {
    let (mut k, mut stage) = (0, 0);
    // SAFETY: as in `load_tiles`.
    unsafe {
        while let Some(n) = item(p, k) {
            let work = Item::locate(p, n);
            if work.count > 0 {
                load_tiles(p, shared, &work, k_map, stage);
                stage += work.count as u32 + 1;
            }
            k += 1;
        }
    }
}

/// Warps 1 and 2: brings every item's Q tile and what the consumers need to know of it, one item ahead of them; shrinks
/// its rows, two a thread, so that their scores fit f16, and leaves each row's factor from such a score to a base-2 logit.
#[inline(always)]
unsafe fn prepare(p: &AttendParams, shared: Shared, q_map: TensorMapPtr) {
    let mut k = 0;
    // SAFETY: barriers are initialised; a stage is waited for before it is overwritten, is complete when its barrier says
    // so, and nobody else touches it before `ready`. Rows outside the tensor are zero-filled by the copy engine.
    unsafe {
        while let Some(n) = item(p, k) {
            let at = Cursor::at(k);
            // Read again for every item: what hangs on the thread is cheaper to find anew than to keep in 40 registers.
            let thread = special::tid_x_again() - 32;
            if warp::shfl_idx_u32(thread, 0) == 0 {
                let leader = (thread == 0) as u32;
                let work = Item::locate(p, n);
                let bytes = if work.count > 0 { TILE } else { 0 };
                shared.q.wait_empty(at);
                shared.slot(at).fill(p, &work, leader);
                warp::sync();
                mbarrier::expect_tx_if(shared.q.full(at), bytes, leader);
                let any = leader & (work.count > 0) as u32;
                tma::load_3d_if(shared.q_tile(at), q_map, shared.q.full(at), [0, work.head, work.tile_row()], any);
            }
            shared.q.wait_full(at);
            let mut row = thread;
            while row < BLOCK as u32 {
                let undo = shrink_row(shared.q_tile(at), row);
                smem::st_f32(shared.scales(at).offset(4 * row), undo * row_scale(p, shared.slot(at), row as i32));
                row += PREPARERS;
            }
            fence::proxy_async_shared();
            mbarrier::arrive_if(shared.ready.full(at), 1);
            k += 1;
        }
    }
}

/// From raw score to base-2 logit. Rows that are not the request's repeat a neighbour's.
///
/// # Safety
/// The slot is readable; the K scale is per tensor or per head; rows from..to lie inside `q_scale`.
#[inline(always)]
unsafe fn row_scale(p: &AttendParams, slot: Slot, row: i32) -> f32 {
    // SAFETY: forwarded from the caller.
    unsafe {
        let ([tile_row, from, to], (head, _)) = (slot.rows(), slot.head());
        core::hint::assert_unchecked(p.group > 0);
        let k = *(p.k_scale as *const f32).offset((head / p.group * p.k_scale_stride) as isize) * p.softmax_scale_log2;
        let row = if row < from { from } else { row };
        let row = if row < to { row } else { to - 1 };
        let at = (tile_row + row) as u32 as i64 * p.hq as u32 as i64 + head as u32 as i64;
        *(p.q_scale as *const f32).offset(at as isize) * k
    }
}

/// K boxes and a V tile for every key block of an item, into the ring from position `stage` on: K of the first block, then
/// V of each block with K of the next, then V of the last. Lane n carries box n of a K tile.
#[inline(always)]
unsafe fn load_tiles(p: &AttendParams, shared: Shared, item: &Item, k_map: TensorMapPtr, stage: u32) {
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
    let (mut i, mut before) = (0, 0);
    // SAFETY: barriers are initialised; every stage is waited for before it is overwritten; addresses come from arrays
    // whose extents the host checked; rows outside a tensor are zero-filled by the copy engine.
    unsafe {
        while i <= item.count {
            let at = Cursor::at(stage + i as u32);
            let more = (i < item.count) as u32;
            let j = if more != 0 { item.key_block(i) } else { before };
            // A box past the last token repeats the block's first page; its keys are masked.
            let token = j * BLOCK as i32 + ((my_box << box_log2) as i32);
            let token = if token < item.request.kv_len { token } else { j * BLOCK as i32 };
            let page = *(table as *const i32).offset((token >> page_log2) as isize);
            let in_page = token & ((1 << page_log2) - 1);
            shared.kv.wait_empty(at);
            mbarrier::expect_tx_if(shared.kv.full(at), if (i > 0) & (more != 0) { 2 * TILE } else { TILE }, leader);
            let rows = shared.k_tile(at).offset((my_box * HEAD_DIM as u32) << box_log2);
            tma::load_4d_if(rows, k_map, shared.kv.full(at), [0, in_page, item.kv_head, page], carries & more);
            tma::bulk_load_if(
                shared.v_tile(at),
                v_tiles.wrapping_add((before as u32 as i64 * tile_stride) as u64),
                TILE,
                shared.kv.full(at),
                leader & (i > 0) as u32,
            );
            before = j;
            i += 1;
        }
    }
}

/// A consumer warpgroup, over all items of the block: 64 rows of each.
///
/// # Safety
/// All threads of the warpgroup call it converged, on the host-checked parameters.
#[inline(always)]
unsafe fn consume<S: KeyScales>(p: &AttendParams, shared: Shared, keys: S, wg: u32, thread: u32) {
    let (mut k, mut stage) = (0, 0);
    // SAFETY: forwarded from the caller; a slot is read between the wait for its barrier and the warp's release.
    unsafe {
        while item(p, k).is_some() {
            let at = Cursor::at(k);
            let mut output = Output::zero();
            let mut bias = [0.0; 2];
            shared.ready.wait_full(at);
            let count = warp::shfl_idx_u32(shared.slot(at).count() as u32, 0);
            if count > 0 {
                let row = tile_row(wg, thread);
                let scales = shared.scales(at).offset(4 * row);
                let scale = |at| math::fmax(math::fmin(smem::ld_f32(at), LARGEST_SCALE), SMALLEST_SCALE);
                let (softmax_scale, keys) = keys.split([scale(scales), scale(scales.offset(32))]);
                let mut softmax = OnlineSoftmax::new(softmax_scale);
                let slot = shared.slot(at);
                let limit = [slot.limit(p.causal != 0, row as i32), slot.limit(p.causal != 0, row as i32 + 8)];
                walk(
                    shared,
                    keys,
                    q_rows(shared.q_tile(at), wg),
                    stage,
                    count,
                    thread,
                    p.reserved as u32,
                    limit,
                    &mut output,
                    &mut softmax,
                );
                bias = softmax.bias();
                stage += count + 1;
            }
            write(p, shared.slot(at), &output, bias);
            warp::sync();
            shared.q.release(at, special::tid_x_again().is_multiple_of(32) as u32);
            k += 1;
        }
    }
}

/// The thread's first row of the tile; its second is 8 below.
#[inline(always)]
fn tile_row(wg: u32, thread: u32) -> u32 {
    wg * 64 + thread / 32 * 16 + thread % 32 / 4
}

/// What the half tiles of one item hand on to each other.
struct Walk<'a, R> {
    shared: Shared,
    keys: R,
    q: SmemAddr,
    /// 0: see [`settle`] and [`Output::flush`].
    never: u32,
    output: &'a mut Output,
    softmax: &'a mut OnlineSoftmax,
    /// The half whose product is next.
    probabilities: Probabilities,
    product: Product,
    /// What the output must be multiplied by at the next flush.
    factor: [f32; 2],
    /// The bias before the half that comes next, and whether its own is another: then what is in `product` by the time that
    /// half's P is there must be flushed.
    old: u32,
    moved: bool,
}

/// All tiles of one item.
///
/// # Safety
/// All threads of the warpgroup call it converged; the rings are initialised; `count > 0`.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "inlined once; a struct of them would only rename them")]
unsafe fn walk<R: RowScales>(
    shared: Shared,
    keys: R,
    q: SmemAddr,
    first: u32,
    count: u32,
    thread: u32,
    never: u32,
    limit: [i32; 2],
    output: &mut Output,
    softmax: &mut OnlineSoftmax,
) {
    let signal = R::signals(thread);
    // SAFETY: all threads of the warpgroup run this converged; tiles are waited for before use and released after.
    unsafe {
        let at = Cursor::at(first);
        shared.kv.wait_full(at);
        wgmma::fence();
        let (a, b) = (issue_qk::<FIRST>(q, shared.k_tile(at), Scores::zero()), issue_qk::<SECOND>(q, shared.k_tile(at), Scores::zero()));
        wgmma::commit();
        wgmma::wait::<0>();
        let (mut a, mut b) = (a.landed(), b.landed());
        keys.apply::<FIRST>(&mut a, shared.key_scales(), at);
        keys.apply::<SECOND>(&mut b, shared.key_scales(), at);
        shared.kv.release(at, signal);
        mask_columns(&mut a, thread % 32, limit);
        mask_columns(&mut b, thread % 32, [limit[0] - 64, limit[1] - 64]);
        // The output is still zero: whatever it is scaled by.
        softmax.advance::<FIRST_TARGET>(&a);
        softmax.advance::<FIRST_TARGET>(&b);
        softmax.exponentiate::<0>(&mut a);
        softmax.exponentiate::<1>(&mut a);
        let mut probabilities = Probabilities([0; 8]);
        pack(&a, &mut probabilities);
        let mut walk = Walk {
            shared,
            keys,
            q,
            never,
            output,
            old: 0,
            moved: false,
            softmax,
            probabilities,
            product: Product::zero(),
            factor: [1.0; 2],
        };
        let (mut i, end) = (first.wrapping_add(1), first.wrapping_add(count));
        let mut there = shared.kv.is_full(Cursor::at(i));
        while i != end {
            let at = Cursor::at(i);
            if !there {
                shared.kv.wait_full(at);
            }
            let done = i.wrapping_sub(first) % FLUSH_TILES;
            a = walk.half::<FIRST>(at, &mut b, a, (done != 1) as u32, false);
            // Asked here and looked at a half later: the answer takes 40 clocks.
            there = shared.kv.is_full(Cursor::at(i.wrapping_add(1)));
            b = walk.half::<SECOND>(at, &mut a, b, 1, done == 0);
            shared.kv.release(at, signal);
            i = i.wrapping_add(1);
        }
        let at = Cursor::at(end);
        if !there {
            shared.kv.wait_full(at);
        }
        walk.last(shared.v_tile(at), b, (count % FLUSH_TILES != 1) as u32);
        shared.kv.release(at, signal);
    }
}

impl<R: RowScales> Walk<'_, R> {
    /// One half tile: while the tensor core multiplies P with its half of the V tile at `v` and computes the scores of the
    /// half after next, the next half's `scores` become P.
    /// `spent` gives its registers to those scores.
    ///
    /// # Safety
    /// As [`walk`]; `HALF` is the half that P belongs to, and also the one of the K tile at `k` after next.
    #[inline(always)]
    unsafe fn half<const HALF: u32>(&mut self, at: Cursor<STAGES>, scores: &mut Scores, spent: Scores, add: u32, flush: bool) -> Scores {
        // SAFETY: forwarded from the caller.
        unsafe {
            wgmma::fence();
            let product = issue_pv::<HALF>(&self.probabilities, self.shared.v_tile(at), self.product.take(), add);
            let pending = issue_qk::<HALF>(self.q, self.shared.k_tile(at), spent);
            wgmma::commit();
            self.softmax.part(self.never);
            self.softmax.exponentiate::<0>(scores);
            self.softmax.exponentiate::<1>(scores);
            settle(scores, self.never);
            wgmma::wait::<0>();
            self.product = product.landed();
            let mut next = pending.landed();
            self.keys.apply::<HALF>(&mut next, self.shared.key_scales(), at);
            self.hand_over(scores, flush);
            (self.old, self.moved) = self.softmax.advance::<NEXT_TARGET>(&next);
            next
        }
    }

    /// The last tile's products, and the item's last flush.
    ///
    /// # Safety
    /// As [`Walk::half`]; P is the first half's, `scores` are the second's.
    #[inline(always)]
    unsafe fn last(&mut self, v: SmemAddr, mut scores: Scores, add: u32) {
        // SAFETY: forwarded from the caller.
        unsafe {
            wgmma::fence();
            let product = issue_pv::<FIRST>(&self.probabilities, v, self.product.take(), add);
            wgmma::commit();
            self.softmax.part(self.never);
            self.softmax.exponentiate::<0>(&mut scores);
            self.softmax.exponentiate::<1>(&mut scores);
            settle(&scores, self.never);
            wgmma::wait::<0>();
            self.product = product.landed();
            self.hand_over(&scores, false);
            wgmma::fence();
            let product = issue_pv::<SECOND>(&self.probabilities, v, self.product.take(), 1);
            wgmma::commit();
            wgmma::wait::<0>();
            self.output.flush(self.factor, &product.landed());
        }
    }

    /// Between two halves: flushes the product where that is due, and packs the next P.
    #[inline(always)]
    fn hand_over(&mut self, scores: &Scores, flush: bool) {
        if self.moved {
            let factor = self.softmax.factors(self.old);
            self.product.rescale(factor);
            self.factor = [self.factor[0] * factor[0], self.factor[1] * factor[1]];
        }
        if flush {
            self.output.flush(self.factor, &self.product);
            self.factor = [1.0; 2];
        }
        pack(scores, &mut self.probabilities);
    }
}

/// Writes the thread's rows, and their log-sum-exp if asked for.
///
/// # Safety
/// The slot is readable; the host checked `out` and `lse`.
#[inline(always)]
unsafe fn write(p: &AttendParams, slot: Slot, output: &Output, bias: [f32; 2]) {
    let sum = output.sum;
    // SAFETY: forwarded from the caller; valid rows lie inside `out` and `lse`.
    unsafe {
        // Read again rather than kept: every register that lives through the main loop would be a spill.
        let tid = special::tid_x_again();
        let row = tile_row(tid / 128 - 1, tid % 128) as i32;
        let [tile_row, from, to] = slot.rows();
        let (head, v_scale) = slot.head();
        let valid = |row: i32| row >= from && row < to;
        let rows = RowPair { first: (tile_row + row) as i64, valid: [valid(row), valid(row + 8)], token_stride: p.out_rows.token };
        // A row that sees no key has sum 0: zeros, and a log-sum-exp of minus infinity.
        let factor = |sum: f32| if sum > 0.0 { v_scale * math::rcp(sum) } else { 0.0 };
        let out = p.out.wrapping_add((head as i64 * p.out_rows.head) as u64);
        store_rows(output, [factor(sum[0]), factor(sum[1])], out, rows, tid % 32);
        if p.lse != 0 && tid.is_multiple_of(4) {
            let lse = [log_sum(sum[0], bias[0]), log_sum(sum[1], bias[1])];
            store_lse(p.lse, p.hq as u32, head, rows, lse);
        }
    }
}

/// Natural log-sum-exp of a row from its sum of 2^(logit + bias); minus infinity for an empty sum.
#[inline(always)]
fn log_sum(sum: f32, bias: f32) -> f32 {
    if sum > 0.0 { (math::lg2(sum) - bias) * LN_2 } else { f32::NEG_INFINITY }
}
