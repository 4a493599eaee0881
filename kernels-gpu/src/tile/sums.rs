//! Group sums: eight tokens of a group added up in a fixed order, and stored as bf16.
//!
//! Order and roundings (one a token: the sum is fused with the product) are the CPU reference's, so that both give the same bits. A
//! token that does not exist takes part as zero, which leaves the sum alone.

use crate::abi::{Request, SelectParams};
use crate::config::select::QUERY_CODES;
use crate::config::{GROUP_TOKENS, GROUPS};
use crate::ptx::{SmemAddr, cp_async, cvt, global, math, smem};
use crate::unroll;

/// Sixteen dimensions of one group.
#[derive(Clone, Copy)]
pub struct GroupSum([f32; 16]);

impl GroupSum {
    /// The sum of no token.
    #[inline(always)]
    pub fn zero() -> Self {
        Self([0.0; 16])
    }

    /// Adds one token: 16 e4m3 codes times `scale`.
    #[inline(always)]
    pub fn add(&mut self, codes: [u32; 4], scale: f32) {
        unroll!(W < 4 {
            let x = cvt::e4m3x4_to_f32(codes[W]);
            self.0[4 * W] = math::fma_rn(scale, x[0], self.0[4 * W]);
            self.0[4 * W + 1] = math::fma_rn(scale, x[1], self.0[4 * W + 1]);
            self.0[4 * W + 2] = math::fma_rn(scale, x[2], self.0[4 * W + 2]);
            self.0[4 * W + 3] = math::fma_rn(scale, x[3], self.0[4 * W + 3]);
        });
    }

    /// The sum.
    #[inline(always)]
    pub fn values(&self) -> [f32; 16] {
        self.0
    }

    /// The sum as bf16, eight dimensions and the other eight.
    #[inline(always)]
    fn packed(&self) -> [[u32; 4]; 2] {
        let mut packed = [[0; 4]; 2];
        unroll!(H < 2 {
            unroll!(W < 4 { packed[H][W] = cvt::bf16x2(self.0[8 * H + 2 * W], self.0[8 * H + 2 * W + 1]); });
        });
        packed
    }

    /// Stores the sum at `to` ([`crate::layout::select::sum_offset`]) in shared memory.
    ///
    /// # Safety
    /// No other thread uses the 32 bytes at `to`.
    #[inline(always)]
    pub unsafe fn store_shared(&self, to: SmemAddr) {
        let packed = self.packed();
        // SAFETY: the caller's obligation; the swizzle leaves the lowest bit of the chunk to the second half.
        unroll!(H < 2 { unsafe { smem::st_v4(SmemAddr(to.0 ^ (16 * H as u32)), packed[H]) }; });
    }
}

/// Where one thread finds queries of one request and head: 16 bytes of every token.
#[derive(Clone, Copy)]
pub struct Queries {
    /// Address of the thread's 16 bytes of the request's first new token.
    q: u64,
    /// Address of that token's scale.
    scale: u64,
    /// Bytes from one token of `q` to the next.
    stride: u64,
    /// New tokens.
    len: i32,
    heads: u32,
}

/// A group of a query block: which new token is its first; negative for one before the chunk. Its eight tokens are 16 apart.
pub type Group = i32;

/// A group without a token: all of its positions lie far before the chunk.
pub const NO_TOKEN: Group = i32::MIN / 2;

/// Bytes of one token of all rows of a stage.
const TOKEN_BYTES: u32 = QUERY_CODES / GROUP_TOKENS as u32;

impl Queries {
    /// Dimensions `16 * chunk ..` of the new tokens of `request`.
    #[inline(always)]
    pub fn new(p: &SelectParams, request: &Request, head: i32, chunk: u32) -> Self {
        let row = request.q_start as u32 as u64 * p.hq as u32 as u64 + head as u32 as u64;
        let stride = p.q_rows.token as u64;
        let first = request.q_start as u32 as u64 * stride + head as u32 as u64 * p.q_rows.head as u64;
        Self { q: p.q.wrapping_add(first) + chunk as u64 * 16, scale: p.q_scale + row * 4, stride, len: request.q_len, heads: p.hq as u32 }
    }

    /// Whether there is such a new token.
    #[inline(always)]
    fn exists(&self, token: i32) -> bool {
        (token as u32) < self.len as u32
    }

    /// Fetches token `r` of a group into L2.
    ///
    /// # Safety
    /// The host has checked `q`.
    #[inline(always)]
    pub unsafe fn prefetch(&self, group: Group, r: u32) {
        let token = math::here(group) + (r * GROUPS as u32) as i32;
        // SAFETY: forwarded; the address is that of a new token where there is one.
        unsafe { global::prefetch_if(self.q.wrapping_add(self.offset(token)), self.exists(token) as u32) };
    }

    /// Bytes from the request's first new token to `token`, which need not exist.
    #[inline(always)]
    fn offset(&self, token: i32) -> u64 {
        (token as i64 as u64).wrapping_mul(self.stride)
    }

    /// Starts the copies of the thread's part of a group into a stage: its 16 bytes of each of the eight tokens, and the scale of
    /// token `chunk`. What is not one of the request's new tokens becomes zeros, scale and all.
    ///
    /// # Safety
    /// As [`Queries::prefetch`]; nobody writes `q` and `q_scale` while the kernel runs; `stage` is a stage of the ring of queries,
    /// of which the thread and, for the scale, the threads of its row are done.
    #[inline(always)]
    pub unsafe fn copy(&self, group: Group, thread: u32, stage: SmemAddr) {
        let codes = stage.offset(thread * 16);
        // Here: with the addresses of all copies computed ahead there are not enough registers.
        let first = math::here(group);
        let from = self.q.wrapping_add(self.offset(first));
        unroll!(R < 8 {
            let exists = self.exists(first + (R * GROUPS) as i32);
            let from = if exists { from.wrapping_add((R * GROUPS) as u64 * self.stride) } else { self.q };
            // SAFETY: the address is that of a new token, whether or not this one is; the rest is forwarded.
            unsafe { cp_async::copy_16(codes.offset(R as u32 * TOKEN_BYTES), from, if exists { 16 } else { 0 }) };
        });
        let token = first + (thread % 8 * GROUPS as u32) as i32;
        let (token, bytes) = if self.exists(token) { (token as u32, 4) } else { (0, 0) };
        let from = self.scale + token as u64 * self.heads as u64 * 4;
        // SAFETY: as above.
        unsafe { cp_async::copy_4(stage.offset(QUERY_CODES + thread * 4), from, bytes) };
    }
}

impl GroupSum {
    /// The sum of the group in a stage.
    ///
    /// # Safety
    /// The copies of this thread and of the others of its row are complete and visible.
    #[inline(always)]
    pub unsafe fn of_stage(thread: u32, stage: SmemAddr) -> Self {
        let mut sum = Self::zero();
        let (codes, scales) = (stage.offset(thread * 16), stage.offset(QUERY_CODES + thread / 8 * 32));
        unroll!(H < 2 {
            // SAFETY: forwarded.
            let scales = unsafe { smem::ld_v4(scales.offset(16 * H as u32)) };
            unroll!(I < 4 {
                // SAFETY: forwarded.
                let codes = unsafe { smem::ld_v4(codes.offset((4 * H + I) as u32 * TOKEN_BYTES)) };
                sum.add(codes, f32::from_bits(scales[I]));
                // LLVM would load all codes first, and has no registers for them.
                unroll!(D < 16 { math::pin(&mut sum.0[D]); });
            });
        });
        sum
    }
}

const _: () = assert!(GROUP_TOKENS == 8, "the tokens of a group, and the threads of a row");
