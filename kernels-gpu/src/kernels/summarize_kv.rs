//! `summarize_kv_fp8_d128`: what selection and attention want to know of a key block, from one reading of its pages:
//! group sums of the keys, largest value norm of each run of 16 tokens, and the values transposed for the tensor core.
//!
//! One block takes one key block of one KV head. Thread (r, c) loads bytes 16 c .. 16 c + 16 of token r of each of the
//! eight runs. Those tokens are group r, so the thread sums keys alone; norms join eight lanes by shuffles; the values
//! go through shared memory to be transposed (see [`crate::layout::transpose`]).

use crate::abi::{KeyBlock, Request, SummarizeKvParams, TokenScales};
use crate::config::summarize_kv::NORMS;
use crate::config::{GROUPS, HEAD_DIM, NORM_EPS, RUN, RUNS, SUM_LEN, TILE_BYTES};
use crate::layout::pages::{clamped, position, row_offset, scale_offset};
use crate::layout::transpose::{stage_offset, transpose_4x4, unit, unit_offset, unit_source, word_tokens};
use crate::ptx::{SmemAddr, barrier, global, math, pdl, smem, special, warp};
use crate::tile::pages::{PageTable, Slot, load_or_zero};
use crate::tile::sums::{GroupSum, square_sum};
use crate::unroll;

/// Sixteen bytes of a token of each run.
type Rows = [[u32; 4]; 8];

/// Entry: see [`SummarizeKvParams`] for the grid and the tensors.
///
/// # Safety
/// Launched with the grid, block size and shared memory of [`crate::config::summarize_kv`], on buffers whose extents the
/// host has checked; the pool has at least one page; rows of the pages are 16-byte aligned.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn summarize_kv_fp8_d128(p: SummarizeKvParams) {
    // SAFETY: forwarded from the host.
    unsafe { summarize::<false>(&p) }
}

/// As [`summarize_kv_fp8_d128`], for keys with a scale each; of its own, because it takes a third more registers.
///
/// # Safety
/// As [`summarize_kv_fp8_d128`]; `p.k_token` has scales.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn summarize_kv_fp8_d128_token_scales(p: SummarizeKvParams) {
    // SAFETY: forwarded from the host.
    unsafe { summarize::<true>(&p) }
}

/// The kernel's body.
///
/// # Safety
/// As the entry; called by all threads of the block.
#[inline(always)]
unsafe fn summarize<const TOKEN_SCALES: bool>(p: &SummarizeKvParams) {
    let thread = special::tid_x();
    let (chunk, r) = (thread % 8, thread / 8);
    let head = special::ctaid_y() as i32;
    let shared = smem::base();
    // SAFETY: the grid is as large as the arrays; slots lead to pages of the pool only; every thread reaches the barrier, or,
    // where the block is past the request's last, none.
    unsafe {
        pdl::launch_dependents();
        let block = *(p.blocks.wrapping_add(special::ctaid_x() as u64 * p.block_stride as u32 as u64) as *const KeyBlock);
        let request = *(p.requests as *const Request).offset(block.request as isize);
        if block.block >= request.kb_len {
            return;
        }
        let index = (request.kb_start + block.block) as i64;
        let slots = locate(p, block, &request, r);
        let v = load(p.v_pages + chunk as u64 * 16, &slots, |s| row_offset(&p.v_strides, s.page, s.in_page, head));
        // Place of this (head, block) in the sums and norms.
        let place = head as i64 * p.total_kb as i64 + index;
        if p.k_sums != 0 {
            let k = load(p.k_pages + chunk as u64 * 16, &slots, |s| row_offset(&p.k_strides, s.page, s.in_page, head));
            let scale = *(p.k_scale as *const f32).offset((head * p.k_scale_stride) as isize);
            let scales = if TOKEN_SCALES { token_scales(&p.k_token, &slots, head) } else { [1.0; 8] };
            let mut sum = GroupSum::zero();
            unroll!(R < 8 { sum.add(k[R], scale * scales[R]); });
            let group = (GROUPS as u32 - 1 - r) * HEAD_DIM as u32 + chunk * 16;
            sum.store(p.k_sums + (place as u64 * SUM_LEN as u64 + group as u64) * 2);
        }
        unroll!(R < 8 { smem::st_v4(shared.offset(stage_offset(R as u32 * RUN as u32 + r, chunk)), v[R]); });
        smem::st_f32(shared.offset(NORMS + thread * 4), warp_norm(&v, chunk));
        barrier::sync_all();
        let tile = p.v_tiles + (index * p.hkv as i64 + head as i64) as u64 * TILE_BYTES as u64;
        store_transposed(shared, tile, thread, 0);
        store_transposed(shared, tile, thread, 1);
        if p.run_norms != 0 && thread < RUNS as u32 {
            let scale = *(p.v_scale as *const f32).offset((head * p.v_scale_stride) as isize);
            let norm = math::sqrt_rn(run_norm(shared, thread)) * scale;
            let log = math::lg2(norm + NORM_EPS) * core::f32::consts::LN_2;
            *((p.run_norms + (place as u64 * RUNS as u64 + thread as u64) * 4) as *mut f32) = log;
        }
    }
}

/// Where token `r` of each run of a key block lives. Tokens past the request's last exist nowhere.
///
/// # Safety
/// The block is one of the request's, and the request one of those that the host put into the arrays.
#[inline(always)]
unsafe fn locate(p: &SummarizeKvParams, block: KeyBlock, request: &Request, r: u32) -> [Slot; 8] {
    let mut slots = [Slot { page: 0, in_page: 0, exists: false }; 8];
    let table = PageTable::new(p.page_table, block.request, p.table_stride, p.page_size, p.pages);
    unroll!(R < 8 {
        let at = position(block.block, (R * RUN) as i32 + r as i32);
        // SAFETY: the request has a row in the table, and a token.
        let slot = unsafe { table.slot(clamped(at, request.kv_len)) };
        slots[R] = Slot { exists: slot.exists & (at < request.kv_len), ..slot };
    });
    slots
}

/// The thread's 16 bytes of its eight tokens; zeros for those that do not exist.
///
/// # Safety
/// `offset` leads every slot into the pool at `base`, 16-byte aligned.
#[inline(always)]
unsafe fn load(base: u64, slots: &[Slot; 8], offset: impl Fn(Slot) -> i64) -> Rows {
    let mut rows = [[0; 4]; 8];
    unroll!(R < 8 {
        // SAFETY: a slot that does not exist points into a page of the pool all the same.
        rows[R] = unsafe { load_or_zero(base.wrapping_add(offset(slots[R]) as u64), slots[R].exists) };
    });
    rows
}

/// The keys' own scales; 1 for tokens that do not exist, whose scales could be anything.
///
/// # Safety
/// The strides of `scales` lead every slot to an f32.
#[inline(always)]
unsafe fn token_scales(scales: &TokenScales, slots: &[Slot; 8], head: i32) -> [f32; 8] {
    let mut own = [1.0; 8];
    unroll!(R < 8 {
        let offset = scale_offset(&scales.strides, slots[R].page, slots[R].in_page, head);
        // SAFETY: a slot that does not exist points into a page of the pool all the same.
        let scale = unsafe { global::ld_nc_u32(scales.first.wrapping_add(offset as u64)) };
        own[R] = if slots[R].exists { f32::from_bits(scale) } else { 1.0 };
    });
    own
}

/// Largest squared norm, in codes, of the warp's four tokens of run `chunk` (every lane ends up with one run).
///
/// # Safety
/// Called by whole warps, converged (shuffles).
#[inline(always)]
unsafe fn warp_norm(v: &Rows, chunk: u32) -> f32 {
    let mut mine = 0.0;
    unroll!(R < 8 {
        let mut square = square_sum(v[R]);
        // SAFETY: whole warps, converged. The eight lanes of a token are neighbours.
        unroll!(B in [1 2 4] { square += unsafe { warp::shfl_bfly_f32(square, B as u32) }; });
        mine = if chunk == R as u32 { square } else { mine };
    });
    // SAFETY: as above; lanes 8 and 16 apart hold other tokens of the same run.
    unroll!(B in [8 16] { mine = math::fmax(mine, unsafe { warp::shfl_bfly_f32(mine, B as u32) }); });
    mine
}

/// Largest squared norm of run `run`, from the four warps' shares.
///
/// # Safety
/// The four warps' shares were written before a block barrier.
#[inline(always)]
unsafe fn run_norm(shared: SmemAddr, run: u32) -> f32 {
    let mut largest = 0.0;
    unroll!(W < 4 {
        // SAFETY: written before the barrier; lane `run` of warp W holds its share.
        largest = math::fmax(largest, unsafe { smem::ld_f32(shared.offset(NORMS + (W as u32 * 32 + run) * 4)) });
    });
    largest
}

/// Transposes and stores piece `pass` of the thread: one run of tokens for four dimensions.
///
/// # Safety
/// The block's values were staged before a block barrier; `tile` is the block's 16 KiB of output.
#[inline(always)]
unsafe fn store_transposed(shared: SmemAddr, tile: u64, thread: u32, pass: u32) {
    let unit = unit(thread, pass);
    let mut rows = [[0; 4]; 4];
    // SAFETY: offsets stay inside the staged block and the tile (tested with the CPU model of the layout).
    unsafe {
        unroll!(M < 4 {
            let [a, b, c, d] = word_tokens(M as u32);
            let word = |i| smem::ld_u32(shared.offset(unit_source(unit, i)));
            let [e0, e1, e2, e3] = transpose_4x4([word(a), word(b), word(c), word(d)]);
            rows[0][M] = e0;
            rows[1][M] = e1;
            rows[2][M] = e2;
            rows[3][M] = e3;
        });
        unroll!(E < 4 { global::st_v4(tile + unit_offset(unit, E as u32) as u64, rows[E]); });
    }
}
