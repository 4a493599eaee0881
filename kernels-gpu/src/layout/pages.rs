//! Where tokens live: pages, rows of the chunk's new tokens, and which of a block's 128 tokens exist.

use crate::abi::{PageStrides, Request, ScaleStrides};
use crate::config::BLOCK;

/// log2 of a page size, which is a power of two from 16 to 256. (A whole run of 16 tokens lies in one page.)
pub const fn page_shift(page_size: i32) -> u32 {
    (page_size as u32).trailing_zeros()
}

/// Whether a page-table entry names a page of the pool.
pub const fn is_page(entry: i32, pages: i32) -> bool {
    (entry as u32) < (pages as u32)
}

/// Byte offset, from the first page, of the 128-byte row of a token: page `page`, token `in_page` of it, KV head `head`.
pub const fn row_offset(strides: &PageStrides, page: i32, in_page: i32, head: i32) -> i64 {
    page as i64 * strides.page + in_page as i64 * strides.token + head as i64 * strides.head
}

/// log2 of the tokens in a chunk of [`ScaleStrides`].
const CHUNK_SHIFT: i32 = 5;

/// Byte offset, from the first, of the scale of token `in_page` of page `page` and KV head `head`.
pub const fn scale_offset(strides: &ScaleStrides, page: i32, in_page: i32, head: i32) -> i64 {
    let (chunk, token) = (in_page >> CHUNK_SHIFT, in_page & ((1 << CHUNK_SHIFT) - 1));
    page as i64 * strides.page + chunk as i64 * strides.chunk + token as i64 * strides.token + head as i64 * strides.head
}

/// Position in the sequence of token `t` (0..128) of block `block`.
pub const fn position(block: i32, t: i32) -> i32 {
    block * BLOCK as i32 + t
}

/// Which of the request's new tokens stands at `position`; negative or at least `q_len` when none does
/// ([`is_new`] tells).
pub const fn new_token(request: &Request, position: i32) -> i32 {
    position - (request.kv_len - request.q_len)
}

/// Whether `token`, from [`new_token`], is one of the request's new tokens.
pub const fn is_new(request: &Request, token: i32) -> bool {
    0 <= token && token < request.q_len
}

/// `value` held inside `0..len`, for loads that are issued whether or not their result is used. `len` is at least 1.
pub const fn clamped(value: i32, len: i32) -> i32 {
    if value < 0 {
        0
    } else if value < len {
        value
    } else {
        len - 1
    }
}

/// Key blocks that query block `block` of a request with `kb_len` key blocks can see: `0..` this.
pub const fn visible_blocks(block: i32, kb_len: i32, causal: bool) -> i32 {
    if causal && block < kb_len { block + 1 } else { kb_len }
}

/// Runs of 16 tokens that enter the statistics of the value term: all of the padded length, or those with a token.
pub const fn counted_runs(request: &Request, count_empty: bool) -> i32 {
    const RUN: i32 = crate::config::RUN as i32;
    if count_empty { request.kb_len * crate::config::RUNS as i32 } else { (request.kv_len + RUN - 1) / RUN }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(q_len: i32, kv_len: i32) -> Request {
        Request { q_len, kv_len, kb_len: (kv_len + 127) / 128, first_block: (kv_len - q_len) / 128, ..Request::default() }
    }

    #[test]
    fn shifts_of_all_page_sizes() {
        for (size, shift) in [(16, 4), (32, 5), (64, 6), (128, 7), (256, 8)] {
            assert_eq!(page_shift(size), shift);
        }
    }

    #[test]
    fn only_entries_of_the_pool_are_pages() {
        assert!(is_page(0, 1) && is_page(6, 7));
        assert!(!is_page(-1, 7) && !is_page(7, 7) && !is_page(0, 0) && !is_page(i32::MIN, i32::MAX));
    }

    #[test]
    fn offsets_follow_the_layout() {
        let (page_size, heads) = (32i64, 4i64);
        let nhd = PageStrides { page: page_size * heads * 128, token: heads * 128, head: 128 };
        let hnd = PageStrides { page: page_size * heads * 128, token: 128, head: page_size * 128 };
        assert_eq!(row_offset(&nhd, 3, 5, 2), ((3 * 32 + 5) * 4 + 2) * 128);
        assert_eq!(row_offset(&hnd, 3, 5, 2), ((3 * 4 + 2) * 32 + 5) * 128);
        assert_eq!(row_offset(&nhd, i32::MAX, 0, 0), i32::MAX as i64 * nhd.page, "no 32-bit overflow");
    }

    #[test]
    fn scales_lie_beside_the_pages_or_in_them() {
        let (page_size, heads) = (64i64, 4i64);
        // [pages, page_size, heads] and [pages, heads, page_size].
        let nhd = ScaleStrides { page: page_size * heads * 4, chunk: 32 * heads * 4, token: heads * 4, head: 4 };
        let hnd = ScaleStrides { page: page_size * heads * 4, chunk: 32 * 4, token: 4, head: page_size * 4 };
        assert_eq!(scale_offset(&nhd, 3, 37, 2), ((3 * 64 + 37) * 4 + 2) * 4);
        assert_eq!(scale_offset(&hnd, 3, 37, 2), ((3 * 4 + 2) * 64 + 37) * 4);
        // In pages [66, heads, 128 bytes]: tokens 0..32 in row 64 of each head, 32..64 in row 65.
        let inside = ScaleStrides { page: 66 * heads * 128, chunk: heads * 128, token: 4, head: 128 };
        assert_eq!(scale_offset(&inside, 3, 37, 2), ((3 * 66 + 1) * 4 + 2) * 128 + 5 * 4);
        assert_eq!(scale_offset(&inside, i32::MAX, 0, 0), i32::MAX as i64 * inside.page, "no 32-bit overflow");
    }

    #[test]
    fn every_new_token_is_met_once_over_the_blocks_of_an_unaligned_chunk() {
        for (q_len, kv_len) in [(1, 1), (127, 127), (128, 128), (129, 129), (300, 377), (5, 130), (1, 257), (256, 384)] {
            let r = request(q_len, kv_len);
            let mut seen = vec![0; q_len as usize];
            for block in r.first_block..r.kb_len {
                for t in 0..128 {
                    let token = new_token(&r, position(block, t));
                    if is_new(&r, token) {
                        seen[token as usize] += 1;
                        assert_eq!(position(block, t), kv_len - q_len + token);
                    }
                    assert_eq!(is_new(&r, token), clamped(token, q_len) == token);
                }
            }
            assert!(seen.iter().all(|&n| n == 1), "{q_len} of {kv_len}");
        }
    }

    #[test]
    fn clamped_stays_inside() {
        assert_eq!([clamped(-3, 4), clamped(0, 4), clamped(3, 4), clamped(4, 4), clamped(i32::MAX, 1)], [0, 0, 3, 3, 0]);
    }

    #[test]
    fn runs_counted_with_and_without_padding() {
        assert_eq!(counted_runs(&request(1, 129), true), 16);
        assert_eq!(counted_runs(&request(1, 129), false), 9);
        assert_eq!(counted_runs(&request(1, 128), false), 8);
        assert_eq!(counted_runs(&request(0, 0), true), 0);
    }
}
