//! `summarize_kv_fp8_d128`: what selection and attention want to know of a key block, from one reading of its pages:
//! group sums of the keys, largest value norm of each run of 16 tokens, and the values transposed for the tensor core.
//!
//! One block takes one key block of one KV head. A warp a run looks up its page and starts the copies of all of its values and
//! keys at once: nothing waits between the look-up and the last copy, and what is under way takes no registers. Then the
//! values, whose stores are most of what is written: norms by the warp that copied the run, and a warp a chunk of dimensions
//! transposes them (see [`crate::layout::transpose`]). Keys are summed last, beside those stores: thread (r, i) has bytes
//! 8 i .. 8 i + 8 of token r of every run, which together are group r.

use crate::abi::{KeyBlock, PageStrides, Request, SummarizeKvParams};
use crate::config::summarize_kv::{K, SCALES, V};
use crate::config::{GROUPS, HEAD_DIM, NORM_EPS, RUN, RUNS, SUM_LEN, TILE_BYTES};
use crate::layout::pages::{position, row_offset, scale_offset};
use crate::layout::transpose::{SPLIT, matrix_row, stage_offset, unit, unit_offset};
use crate::ptx::int::prmt;
use crate::ptx::{SmemAddr, barrier, cp_async, cvt, global, math, matrix, pdl, smem, special, warp};
use crate::tile::pages::{PageTable, Slot};
use crate::unroll;

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

/// As [`summarize_kv_fp8_d128`], for keys with a scale each.
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
    let (warp_index, lane) = (thread / 32, thread % 32);
    let head = special::ctaid_x() as i32;
    let shared = smem::base();
    // SAFETY: the grid is as large as the arrays; slots lead to pages of the pool only; what is shared is read after a barrier, to
    // which every thread comes or, where there is no such block, none.
    unsafe {
        // The next kernel's blocks start when the last of ours have: they cannot keep any of ours from its place.
        pdl::launch_dependents();
        let number = special::ctaid_z() * special::nctaid_y() + special::ctaid_y();
        if number >= p.count as u32 {
            return;
        }
        let (block, request) = look_up(p, number);
        if block.block >= request.kb_len {
            return;
        }
        // Not through the read-only path: such loads ptxas puts off until the pages are there.
        let k_scale = f32::from_bits(global::ld_u32(p.k_scale + (head * p.k_scale_stride) as u32 as u64 * 4));
        let v_scale = f32::from_bits(global::ld_u32(p.v_scale + (head * p.v_scale_stride) as u32 as u64 * 4));
        let run = Run::locate(p, block, &request, warp_index);
        run.copy(p.v_pages, &p.v_strides, head, lane, shared.offset(V));
        cp_async::commit();
        if p.k_sums != 0 {
            run.copy(p.k_pages, &p.k_strides, head, lane, shared.offset(K));
            if TOKEN_SCALES {
                run.copy_scales(p, head, lane, shared.offset(SCALES));
            }
        }
        cp_async::commit();

        let index = (request.kb_start + block.block) as u32 as u64;
        // Place of this (head, block) in the sums and norms.
        let place = head as u32 as u64 * p.total_kb as u32 as u64 + index;
        cp_async::wait::<1>();
        warp::sync();
        let square = run_square(shared.offset(V), warp_index, lane);
        barrier::sync_all();
        let tile = p.v_tiles + (index * p.hkv as u32 as u64 + head as u32 as u64) * TILE_BYTES as u64;
        unroll!(H < 2 { store_transposed(shared.offset(V), tile, warp_index, lane, H as u32); });
        if p.run_norms != 0 {
            let norm = math::sqrt_rn(square) * v_scale;
            let log = math::lg2(norm + NORM_EPS) * core::f32::consts::LN_2;
            let to = p.run_norms + (place * RUNS as u64 + warp_index as u64) * 4;
            global::st_u32_if(to, log.to_bits(), (lane == 0) as u32);
        }
        if p.k_sums != 0 {
            cp_async::wait::<0>();
            barrier::sync_all();
            let (r, piece) = (thread / 16, thread % 16);
            let sum = group_sum::<TOKEN_SCALES>(shared, r, piece, k_scale);
            let group = (GROUPS as u32 - 1 - r) * HEAD_DIM as u32 + piece * 8;
            global::st_v4(p.k_sums + (place * SUM_LEN as u64 + group as u64) * 2, sum);
        }
    }
}

/// Block `number` of the launch, and its request.
///
/// # Safety
/// There is such a block.
#[inline(always)]
unsafe fn look_up(p: &SummarizeKvParams, number: u32) -> (KeyBlock, Request) {
    if p.block_stride == 0 {
        return (KeyBlock { request: 0, block: p.first_block + number as i32 }, p.request);
    }
    // SAFETY: the host's tables.
    unsafe {
        let block = *(p.blocks.wrapping_add(number as u64 * p.block_stride as u32 as u64) as *const KeyBlock);
        (block, *(p.requests as *const Request).offset(block.request as isize))
    }
}

/// Where a run of 16 tokens lives.
#[derive(Clone, Copy)]
struct Run {
    /// Its first token.
    slot: Slot,
    /// Which of the block's runs.
    run: u32,
    /// How many of its tokens exist; may be negative.
    tokens: i32,
}

impl Run {
    /// Run `run` of a key block. Tokens past the request's last exist nowhere, nor do those of a page outside the pool.
    ///
    /// # Safety
    /// The block is one of the request's, and the request one of those that the host put into the arrays.
    #[inline(always)]
    unsafe fn locate(p: &SummarizeKvParams, block: KeyBlock, request: &Request, run: u32) -> Self {
        let table = PageTable::new(p.page_table, block.request, p.table_stride, p.page_size, p.pages);
        let at = position(block.block, (run * RUN as u32) as i32);
        // SAFETY: the request has a row in the table. A whole run lies in one page.
        let slot = unsafe { table.slot(at) };
        Self { slot, run, tokens: if slot.exists { request.kv_len - at } else { 0 } }
    }

    /// Starts the lane's copies of the run: 16 bytes of every fourth token. Tokens that do not exist become zeros.
    ///
    /// # Safety
    /// `strides` lead every slot into the pool at `pages`, 16-byte aligned; nobody uses the 16 KiB at `stage` before the copies are
    /// complete.
    #[inline(always)]
    unsafe fn copy(&self, pages: u64, strides: &PageStrides, head: i32, lane: u32, stage: SmemAddr) {
        let (r, chunk) = (lane / 8, lane % 8);
        let first = row_offset(strides, self.slot.page, self.slot.in_page + r as i32, head);
        let from = pages.wrapping_add(first as u64) + chunk as u64 * 16;
        let (step, to) = (4 * strides.token as u64, stage.offset(stage_offset(self.run, r, chunk)));
        unroll!(I < 4 {
            let exists = r as i32 + 4 * (I as i32) < self.tokens;
            // SAFETY: four tokens on the chunk has the same place in its row; the rest is forwarded.
            unsafe { cp_async::copy_16(to.offset(4 * HEAD_DIM as u32 * I as u32), from.wrapping_add(step * I as u64), if exists { 16 } else { 0 }) };
        });
    }

    /// Starts the copies of the scales of the run's keys, a lane each.
    ///
    /// # Safety
    /// As [`Run::copy`], for the strides of `p.k_token` and an f32 a token.
    #[inline(always)]
    unsafe fn copy_scales(&self, p: &SummarizeKvParams, head: i32, lane: u32, stage: SmemAddr) {
        let r = lane % RUN as u32;
        let offset = scale_offset(&p.k_token.strides, self.slot.page, self.slot.in_page + r as i32, head);
        let bytes = if (r as i32) < self.tokens { 4 } else { 0 };
        let to = stage.offset((self.run * RUN as u32 + r) * 4);
        // SAFETY: forwarded. The other half of the lanes has nothing to copy.
        unsafe { cp_async::copy_4_if(to, p.k_token.first.wrapping_add(offset as u64), bytes, (lane < RUN as u32) as u32) };
    }
}

/// Largest squared norm, in codes, of the tokens of run `run`: the diagonal of the products of its rows with each other, which take
/// fewer instructions than the squares. A NaN counts as nothing.
///
/// # Safety
/// Called by whole warps, converged; the run was staged and is visible to the warp.
#[inline(always)]
unsafe fn run_square(stage: SmemAddr, run: u32, lane: u32) -> f32 {
    // The lane has a quarter of tokens g and g + 8. Which quarter is its own affair: only the diagonal is wanted.
    let (g, t) = (lane / 4, lane % 4);
    let mut squares = [0.0; 2];
    unroll!(H < 2 {
        let (mut low, mut high) = ([0.0; 4], [0.0; 4]);
        // SAFETY: forwarded.
        unsafe {
            let x = smem::ld_v4(stage.offset(stage_offset(run, g, t + 4 * H as u32)));
            let y = smem::ld_v4(stage.offset(stage_offset(run, g + 8, t + 4 * H as u32)));
            unroll!(W < 4 {
                let ([x0, x1], [y0, y1]) = (cvt::e4m3x4_to_f16(x[W]), cvt::e4m3x4_to_f16(y[W]));
                matrix::product_f16(&mut low, [x0, y0, x1, y1], [x0, x1]);
                matrix::product_f16(&mut high, [x0, y0, x1, y1], [y0, y1]);
            });
        }
        // Columns 2 t and 2 t + 1 of rows g and g + 8.
        squares[0] += if g % 2 == 0 { low[0] } else { low[1] };
        squares[1] += if g % 2 == 0 { high[2] } else { high[3] };
    });
    let mut mine = math::fmax(math::fmax(squares[0], squares[1]), 0.0);
    // LLVM would compute it behind a branch, which has no place near warp-wide instructions.
    math::pin(&mut mine);
    // SAFETY: whole warps, converged. What is not negative ranks as its bits do.
    f32::from_bits(unsafe { warp::max_u32(if g / 2 == t { mine.to_bits() } else { 0 }) })
}

/// Transposes and stores 16 dimensions of four runs.
///
/// # Safety
/// Called by whole warps, converged; the block's values were staged before a block barrier; `tile` is the block's 16 KiB of output.
#[inline(always)]
unsafe fn store_transposed(stage: SmemAddr, tile: u64, chunk: u32, lane: u32, half: u32) {
    let load = |part| {
        let [run, token] = matrix_row(lane, part);
        // SAFETY: forwarded; offsets stay inside the staged block (tested with the CPU model of the layout).
        unsafe { matrix::load_x4_trans(stage.offset(stage_offset(4 * half + run, token, chunk))) }
    };
    let (low, high) = (load(0), load(1));
    let unit = unit(chunk, lane, half);
    unroll!(E < 2 {
        let mut row = [0; 4];
        unroll!(M < 4 { row[M] = prmt(low[M], high[M], SPLIT[E]); });
        // SAFETY: the offset stays inside the tile.
        unsafe { global::st_v4(tile + unit_offset(unit, E as u32) as u64, row) };
    });
}

/// Sum of group `r`, dimensions `8 * piece ..`, as bf16: its tokens in order, product and sum with one rounding, as on the CPU. A token
/// that does not exist takes part as zero, which leaves the sum alone.
///
/// # Safety
/// The block's keys (and scales) were staged before a block barrier.
#[inline(always)]
unsafe fn group_sum<const TOKEN_SCALES: bool>(shared: SmemAddr, r: u32, piece: u32, scale: f32) -> [u32; 4] {
    let mut sum = [0.0; 8];
    unroll!(R < 8 {
        let at = stage_offset(R as u32, r, piece / 2) + piece % 2 * 8;
        // SAFETY: forwarded.
        let codes = unsafe { smem::ld_v2_u32(shared.offset(K + at)) };
        // SAFETY: forwarded.
        let own = if TOKEN_SCALES { unsafe { smem::ld_f32(shared.offset(SCALES + (R as u32 * RUN as u32 + r) * 4)) } } else { 1.0 };
        unroll!(W < 2 {
            let x = cvt::e4m3x4_to_f32(codes[W]);
            unroll!(I < 4 { sum[4 * W + I] = math::fma_rn(scale * own, x[I], sum[4 * W + I]); });
        });
    });
    let mut packed = [0; 4];
    unroll!(W < 4 { packed[W] = cvt::bf16x2(sum[2 * W], sum[2 * W + 1]); });
    packed
}

const _: () = assert!(RUNS == 8 && HEAD_DIM == 128, "a warp a run, and a warp a chunk of 16 dimensions");
