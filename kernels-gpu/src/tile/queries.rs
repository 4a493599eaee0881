//! Units of queries: the tokens of one group of an octet of query blocks, for one head.
//!
//! Half a unit is 32 tokens, 16 apart, and rows of 128 bytes of a tensor map that counts tokens in sixteens; where all of them exist one
//! copy by that map brings it. At the ends of a request, and in the last tokens of the batch, which the map does not reach, a warp
//! copies what is there.

use super::strip::Strip;
use crate::abi::SelectParams;
use crate::config::select::{OCTET, PART_TOKENS, PARTS};
use crate::config::{BLOCK, GROUP_TOKENS, GROUPS};
use crate::layout::pages::new_token;
use crate::ptx::{SmemAddr, cp_async, global, math};
use crate::unroll;

/// New tokens of a request, from the first query block of an octet on.
#[derive(Clone, Copy)]
pub struct Queries<'a> {
    p: &'a SelectParams,
    head: i32,
    /// Row of the request's first new token.
    start: i32,
    /// New tokens.
    len: i32,
    /// Which of them is the first of the octet; negative for one before the chunk.
    first: i32,
}

impl<'a> Queries<'a> {
    /// Those of a strip from octet `octet` on, which then counts as the first.
    ///
    /// # Safety
    /// The strip is one of `p`'s.
    #[inline(always)]
    pub unsafe fn of(p: &'a SelectParams, strip: &Strip, octet: u32) -> Self {
        // SAFETY: a strip has a row; forwarded.
        let (block, request) = unsafe { strip.block(p, 0) };
        let first = new_token(&request, (block.block + (octet * OCTET) as i32) * BLOCK as i32);
        Self { p, head: strip.head, start: request.q_start, len: request.q_len, first }
    }

    /// All that tells them from others, for [`Queries::from_words`].
    #[inline(always)]
    pub fn words(&self) -> [u32; 4] {
        [self.head, self.start, self.len, self.first].map(|x| x as u32)
    }

    /// Those whose [`words`](Queries::words) these are.
    #[inline(always)]
    pub fn from_words(p: &'a SelectParams, words: [u32; 4]) -> Self {
        let [head, start, len, first] = words.map(|x| x as i32);
        Self { p, head, start, len, first }
    }

    /// The first token of half `part` of group `group` of octet `octet`; the half's others follow in steps of 16.
    #[inline(always)]
    pub fn half(&self, octet: u32, group: u32, part: u32) -> i32 {
        self.first + (unit_offset(octet, group) + part * (PART_TOKENS * GROUPS as u32)) as i32
    }

    /// Coordinates of a half in the tensor map, and whether all of it is new tokens that the map reaches.
    #[inline(always)]
    pub fn box_of(&self, half: i32) -> ([i32; 4], bool) {
        let reached = self.p.q_mapped - self.start;
        let end = (if reached < self.len { reached } else { self.len }) - (PART_TOKENS as i32 - 1) * GROUPS as i32;
        let row = self.start + half;
        ([0, row & (GROUPS as i32 - 1), row >> GROUPS.trailing_zeros(), self.head], (half >= 0) & (half < end))
    }

    /// Whether there is such a new token.
    #[inline(always)]
    fn exists(&self, token: i32) -> bool {
        (token as u32) < self.len as u32
    }

    /// The row of `token`, or of the request's first new token if there is none.
    #[inline(always)]
    fn row(&self, token: i32) -> u64 {
        (self.start + if self.exists(token) { token } else { 0 }) as u32 as u64
    }

    /// Starts a warp's copies of a half to `stage`, as the tensor map would place it: rows of 128 bytes with the 128-byte swizzle.
    /// What is not one of the request's new tokens becomes zeros.
    ///
    /// # Safety
    /// All lanes of a warp call it; the host has checked `q`, which nobody writes while the kernel runs; nobody uses the stage.
    #[inline(always)]
    pub unsafe fn copy(&self, half: i32, stage: SmemAddr, lane: u32) {
        let (mut r, chunk) = (lane / 8, lane % 8);
        while r < PART_TOKENS {
            let token = half + (r * GROUPS as u32) as i32;
            let from = self.row(token) * self.p.q_rows.token as u64 + self.head as u32 as u64 * self.p.q_rows.head as u64;
            let to = stage.offset(r * 128 + ((chunk ^ (r % 8)) * 16));
            // SAFETY: the address is that of a new token, whether or not this one is; the rest is forwarded.
            unsafe { cp_async::copy_16(to, self.p.q.wrapping_add(from) + chunk as u64 * 16, if self.exists(token) { 16 } else { 0 }) };
            r += 4;
        }
    }
}

/// Tokens from the first of a strip to the first of group `group` of octet `octet`.
#[inline(always)]
fn unit_offset(octet: u32, group: u32) -> u32 {
    octet * (PARTS * PART_TOKENS * GROUPS as u32) + group
}

/// Where the scales of a strip's queries are.
#[derive(Clone, Copy)]
pub struct Scales {
    /// Address of the first token's, were it there.
    at: u64,
    /// That token.
    first: u32,
    /// New tokens of the request.
    len: u32,
}

impl Scales {
    /// Those of these queries.
    #[inline(always)]
    pub fn of(queries: &Queries) -> Self {
        let &Queries { p, head, start, len, first } = queries;
        let offset = (start as i64 + first as i64) * p.q_scale_rows.token + head as i64 * p.q_scale_rows.head;
        Self { at: p.q_scale.wrapping_add(offset as u64), first: first as u32, len: len as u32 }
    }

    /// The scales of the lane's two tokens of a unit, numbers `lane % 4` and the fourth after it of query block `lane / 4`; 0 of a
    /// token that is not there, and where `on` is not true.
    ///
    /// # Safety
    /// The host has checked `q_scale`.
    #[inline(always)]
    pub unsafe fn load(&self, p: &SelectParams, octet: u32, group: u32, lane: u32, on: bool) -> [f32; 2] {
        let offset = unit_offset(octet, group) + (lane / 4 * 8 + lane % 4) * GROUPS as u32;
        // Below 2^31, which the product of two words needs.
        let pitch = math::here(p.q_scale_rows.token as i32) as u32;
        let mut scales = [0.0; 2];
        unroll!(I < 2 {
            let offset = offset + (4 * I * GROUPS) as u32;
            let exists = self.first.wrapping_add(offset) < self.len;
            // SAFETY: the scale of a new token, or not loaded.
            let scale = unsafe { global::ld_u32_if(self.at.wrapping_add(offset as u64 * pitch as u64), (exists & on) as u32) };
            scales[I] = f32::from_bits(scale);
        });
        scales
    }
}

const _: () = assert!(GROUP_TOKENS == 8 && BLOCK == GROUP_TOKENS * GROUPS, "four lanes a query block; the blocks' units follow each other");
