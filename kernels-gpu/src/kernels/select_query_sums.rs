//! `select_query_sums`: group sums of the queries, each token with its own scale.
//!
//! One block takes one query block of one head; thread (r, c) sums bytes 16 c .. 16 c + 16 of the eight tokens of group
//! r. Tokens of the block that are not among the request's new tokens count as zero.

use crate::abi::{QueryBlock, QuerySumsParams, Request};
use crate::config::{GROUPS, HEAD_DIM, SUM_LEN};
use crate::layout::pages::{clamped, is_new, new_token, position};
use crate::ptx::special;
use crate::tile::pages::load_or_zero;
use crate::tile::sums::GroupSum;
use crate::unroll;

/// Entry: see [`QuerySumsParams`] for the grid and the tensors.
///
/// # Safety
/// Launched with the grid and block size stated there, on buffers whose extents the host has checked; rows of `q` are
/// 16-byte aligned.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn select_query_sums(p: QuerySumsParams) {
    // SAFETY: forwarded from the host.
    unsafe { query_sums(&p) }
}

/// The kernel's body.
///
/// # Safety
/// As the entry; called by all threads of the block.
#[inline(always)]
unsafe fn query_sums(p: &QuerySumsParams) {
    let (chunk, r) = (special::tid_x() % 8, special::tid_x() / 8);
    let (index, head) = (special::ctaid_x() as i64, special::ctaid_y() as i64);
    // SAFETY: the grid is as large as the arrays; a query block belongs to a request with at least one new token, so the
    // clamped row is one of the request's.
    unsafe {
        let block = *(p.query_blocks as *const QueryBlock).offset(index as isize);
        let request = *(p.requests as *const Request).offset(block.request as isize);
        let (mut codes, mut scales) = ([[0; 4]; 8], [0.0; 8]);
        unroll!(R < 8 {
            let token = new_token(&request, position(block.block, (R * GROUPS) as i32 + r as i32));
            let row = (request.q_start + clamped(token, request.q_len)) as i64;
            let new = is_new(&request, token);
            let at = row * p.q_rows.token + head * p.q_rows.head;
            codes[R] = load_or_zero(p.q.wrapping_add(at as u64) + chunk as u64 * 16, new);
            // A scale of another token must not meet the zeros: it could be anything.
            let scale = *(p.q_scale as *const f32).offset((row * p.hq as i64 + head) as isize);
            scales[R] = if new { scale } else { 0.0 };
        });
        let mut sum = GroupSum::zero();
        unroll!(R < 8 { sum.add(codes[R], scales[R]); });
        let place = (head * p.total_qb as i64 + index) as u64 * SUM_LEN as u64;
        sum.store(p.q_sums + (place + (r * HEAD_DIM as u32 + chunk * 16) as u64) * 2);
    }
}
