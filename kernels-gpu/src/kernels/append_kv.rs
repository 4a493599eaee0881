//! `append_kv_bf16_d128`: the bf16 K and V of the chunk's new tokens become e4m3 codes in their pages.
//!
//! One block takes the new tokens of one query block and one KV head. Sixteen lanes share a row: 16 bytes of bf16 in,
//! 8 bytes of codes out. Where keys have a scale each, those lanes find it first. Four rows of K and of V are loaded before any is converted, to keep enough loads in flight.

use crate::abi::{AppendKvParams, QueryBlock, Request, RowStrides};
use crate::config::append_kv::THREADS;
use crate::config::{BLOCK, HEAD_DIM};
use crate::layout::pages::{clamped, is_new, new_token, position, row_offset, scale_offset};
use crate::layout::row_scale;
use crate::ptx::{cvt, global, math, special, warp};
use crate::tile::pages::PageTable;
use crate::unroll;

/// Lanes of a row, 8 elements each.
const LANES: u32 = HEAD_DIM as u32 / 8;
/// Rows that the block handles side by side.
const ROWS: i32 = (THREADS / LANES) as i32;

/// Entry: see [`AppendKvParams`] for the grid and the tensors. Tokens whose page-table entry is outside the pool are skipped.
///
/// # Safety
/// Launched with the grid and block size stated there, on buffers whose extents the host has checked; rows of `k`, `v`
/// and of the pages are 16-byte aligned.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn append_kv_bf16_d128(p: AppendKvParams) {
    // SAFETY: forwarded from the host.
    unsafe { append(&p) }
}

/// The kernel's body.
///
/// # Safety
/// As the entry; called by all threads of the block.
#[inline(always)]
unsafe fn append(p: &AppendKvParams) {
    let (lane, row) = (special::tid_x() % LANES, (special::tid_x() / LANES) as i32);
    let head = special::ctaid_y() as i32;
    // SAFETY: the grid is as large as the arrays; rows and pages are clamped or checked before use.
    unsafe {
        let block = *(p.query_blocks as *const QueryBlock).add(special::ctaid_x() as usize);
        let request = *(p.requests as *const Request).offset(block.request as isize);
        let table = PageTable::new(p.page_table, block.request, p.table_stride, p.page_size, p.pages);
        let k_inverse = 1.0 / *(p.k_scale as *const f32).offset((head * p.k_scale_stride) as isize);
        let v_inverse = 1.0 / *(p.v_scale as *const f32).offset((head * p.v_scale_stride) as isize);
        let mut first = row;
        while first < BLOCK as i32 {
            let (mut k, mut v) = ([[0; 4]; 4], [[0; 4]; 4]);
            unroll!(I < 4 {
                let token = new_token(&request, position(block.block, first + I as i32 * ROWS));
                let row = (request.q_start + clamped(token, request.q_len)) as i64;
                k[I] = global::ld_nc_v4(source(p.k, p.k_rows, row, head, lane));
                v[I] = global::ld_nc_v4(source(p.v, p.v_rows, row, head, lane));
            });
            let mut k_own = [1.0; 4];
            if p.k_token.first != 0 {
                // Rows of the last pass may have parted the warp.
                warp::sync();
                unroll!(I < 4 { k_own[I] = own_scale(k[I], k_inverse); });
            }
            unroll!(I < 4 {
                let at = position(block.block, first + I as i32 * ROWS);
                if is_new(&request, new_token(&request, at)) {
                    let slot = table.slot(at);
                    if slot.exists {
                        // Every lane of the row writes the same scale.
                        if p.k_token.first != 0 {
                            let at = scale_offset(&p.k_token.strides, slot.page, slot.in_page, head);
                            *(p.k_token.first.wrapping_add(at as u64) as *mut f32) = k_own[I];
                        }
                        let k_row = p.k_pages.wrapping_add(row_offset(&p.k_strides, slot.page, slot.in_page, head) as u64);
                        let v_row = p.v_pages.wrapping_add(row_offset(&p.v_strides, slot.page, slot.in_page, head) as u64);
                        *((k_row + lane as u64 * 8) as *mut u64) = codes(k[I], k_inverse, 1.0 / k_own[I]);
                        *((v_row + lane as u64 * 8) as *mut u64) = codes(v[I], v_inverse, 1.0);
                    }
                }
            });
            first += 4 * ROWS;
        }
    }
}

/// The lane's 16 bytes of a row of new tokens.
#[inline(always)]
fn source(tensor: u64, strides: RowStrides, row: i64, head: i32, lane: u32) -> u64 {
    tensor.wrapping_add((row * strides.token + head as i64 * strides.head) as u64) + lane as u64 * 16
}

/// Scale of a row that 16 lanes share, of its values times `inverse`.
///
/// # Safety
/// Called by whole warps, converged.
#[inline(always)]
unsafe fn own_scale(bf16: [u32; 4], inverse: f32) -> f32 {
    let mut largest = 0.0;
    unroll!(W < 4 {
        let (a, b) = cvt::bf16x2_to_f32(bf16[W]);
        largest = math::fmax(largest, math::fmax((a * inverse).abs(), (b * inverse).abs()));
    });
    // SAFETY: forwarded from the caller. The 16 lanes of a row are neighbours.
    unroll!(B in [1 2 4 8] { largest = math::fmax(largest, unsafe { warp::shfl_bfly_f32(largest, B as u32) }); });
    row_scale(largest)
}

/// Eight bf16 times `inverse`, times `own`, rounded to e4m3 (nearest even, saturating; NaN stays NaN).
#[inline(always)]
fn codes(bf16: [u32; 4], inverse: f32, own: f32) -> u64 {
    let four = |a: u32, b: u32| {
        let ((a0, a1), (b0, b1)) = (cvt::bf16x2_to_f32(a), cvt::bf16x2_to_f32(b));
        cvt::e4m3x4(a0 * inverse * own, a1 * inverse * own, b0 * inverse * own, b1 * inverse * own) as u64
    };
    four(bf16[0], bf16[1]) | four(bf16[2], bf16[3]) << 32
}
