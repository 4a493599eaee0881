//! `select_probe_means`: the mean of every eight keys in e4m3, in tiles that `select_probe_lists` multiplies as they lie.
//!
//! One block takes one key block of one KV head; thread (s, c) averages bytes 16 c .. 16 c + 16 of the eight tokens of
//! sub-block s. Sums of eight codes are exact in f32, so the rounding to e4m3 is the only one of a whole sub-block.

use crate::abi::{KeyBlock, ProbeMeansParams, Request};
use crate::config::probe_sel::{KEY_POOL, KEY_TILE_BYTES, TILE_BLOCKS};
use crate::layout::pages::{clamped, position, row_offset};
use crate::layout::probe_sel::{first_tile, mean_offset};
use crate::ptx::{cvt, global, special};
use crate::tile::pages::{PageTable, load_or_zero};
use crate::tile::sums::GroupSum;
use crate::unroll;

/// Entry: see [`ProbeMeansParams`] for the grid and the tensors.
///
/// # Safety
/// Launched with the grid and block size stated there, on buffers whose extents the host has checked; the pool has at least
/// one page; rows of the pages are 16-byte aligned.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn select_probe_means(p: ProbeMeansParams) {
    // SAFETY: forwarded from the host.
    unsafe { means(&p) }
}

/// The kernel's body.
///
/// # Safety
/// As the entry; called by all threads of the block.
#[inline(always)]
unsafe fn means(p: &ProbeMeansParams) {
    let (chunk, sub) = (special::tid_x() % 8, special::tid_x() / 8);
    let head = special::ctaid_y() as i32;
    // SAFETY: the grid is as large as the arrays; slots lead to pages of the pool only; a tile of the request's is inside
    // `k_tiles`, and so is each of its 16-byte pieces.
    unsafe {
        let block = *(p.blocks.wrapping_add(special::ctaid_x() as u64 * p.block_stride as u32 as u64) as *const KeyBlock);
        let request = *(p.requests as *const Request).offset(block.request as isize);
        // A request may have room for blocks that it has no token of yet.
        if block.block >= request.kb_len {
            return;
        }
        let table = PageTable::new(p.page_table, block.request, p.table_stride, p.page_size, p.pages);
        let first = position(block.block, sub as i32 * KEY_POOL as i32);
        let mut codes = [[0; 4]; 8];
        unroll!(R < 8 {
            let at = first + R as i32;
            let slot = table.slot(clamped(at, request.kv_len));
            let row = p.k_pages.wrapping_add(row_offset(&p.k_strides, slot.page, slot.in_page, head) as u64);
            codes[R] = load_or_zero(row + chunk as u64 * 16, slot.exists & (at < request.kv_len));
        });
        let mut sum = GroupSum::zero();
        unroll!(R < 8 { sum.add(codes[R], 1.0); });
        let left = request.kv_len - first;
        let count = clamped(left, KEY_POOL as i32 + 1);
        let inverse = 1.0 / (if count > 0 { count } else { 1 }) as f32;
        let x = sum.values();
        let mut packed = [0; 4];
        unroll!(W < 4 {
            packed[W] = cvt::e4m3x4(x[4 * W] * inverse, x[4 * W + 1] * inverse, x[4 * W + 2] * inverse, x[4 * W + 3] * inverse);
        });
        let tile = first_tile(block.request, request.kb_start) + block.block / TILE_BLOCKS as i32;
        let tile = p.k_tiles + (head as i64 * p.tiles as i64 + tile as i64) as u64 * KEY_TILE_BYTES as u64;
        let in_tile = (block.block % TILE_BLOCKS as i32) as usize;
        global::st_v4(tile + mean_offset(in_tile, sub as usize, chunk as usize * 16) as u64, packed);
    }
}
