//! What the probe selector works on: strips of 256 query groups of one head.
//!
//! A strip is cut at absolute positions of its request, so that only the last tile of keys that it sees has a diagonal in it. Every
//! role of a block walks the same strips for itself: they are a load away, and nothing has to be handed over.

use crate::abi::{QueryBlock, Request, SelectProbeParams};
use crate::config::probe_sel::{GROUPS, KEY_TILE_BYTES, TILE_BLOCKS};
use crate::layout::pages::{clamped, new_token, position};
use crate::layout::probe_sel::{Place, first_tile, item, strip_blocks_log2, strips};
use crate::layout::select::{Row, Rule};
use crate::ptx::{special, warp};

/// Some query groups of one request and head.
#[derive(Clone, Copy)]
pub struct Strip {
    /// Query head.
    pub head: i32,
    /// KV head.
    pub kv_head: i32,
    /// The request.
    pub request: Request,
    /// Absolute index of the first query block, which may lie before the request's first.
    pub first: i32,
    /// The request's tile with the last key block that any of the groups may see.
    pub last_tile: u32,
    /// Address of the request's first tile.
    pub tiles: u64,
}

impl Strip {
    /// Position in the sequence of the first query of group `group` (0..256).
    #[inline(always)]
    pub fn position(&self, p: &SelectProbeParams, group: u32) -> i32 {
        position(self.first, (group << p.query_pool_log2) as i32)
    }

    /// New token of the request that the first query of group `group` is; less than 0 or too large where it is none.
    #[inline(always)]
    pub fn token(&self, p: &SelectProbeParams, group: u32) -> i32 {
        new_token(&self.request, self.position(p, group))
    }

    /// Last key that group `group` may see.
    #[inline(always)]
    pub fn limit(&self, p: &SelectProbeParams, group: u32) -> i32 {
        let last = self.position(p, group) + (1 << p.query_pool_log2) - 1;
        clamped(if p.causal != 0 { last } else { i32::MAX }, self.request.kv_len)
    }

    /// Whether anybody asks for the strip's scores: some row has to choose, or the caller wants them.
    ///
    /// # Safety
    /// Called by a whole warp, converged; the host has checked the arrays that the parameters name.
    #[inline(always)]
    pub unsafe fn has_scores(&self, p: &SelectProbeParams, lane: u32) -> bool {
        // The strip's query blocks, of which there are at most 16, that are the request's.
        let index = self.first - self.request.first_block + lane as i32;
        let there = (lane < 1 << strip_blocks_log2(p.query_pool_log2)) & (index >= 0) & (index < self.request.qb_len);
        let place = self.request.qb_start + if there { index } else { 0 };
        // SAFETY: a query block of the request, which has one; the rest is forwarded.
        unsafe {
            let block = *(p.query_blocks as *const QueryBlock).offset(place as isize);
            let row = Row::new(block.block, self.request.kb_len, p.causal != 0, p.sink, p.window, p.guards_on_top != 0);
            let rule = Rule { budget: block.budget, keep_all_ties: p.keep_all_ties != 0, low_bit: 0 };
            warp::any(((there & rule.chooses(row)) | (p.scores != 0)) as u32)
        }
    }

    /// Addresses of the strip's 128 bytes of new token `token`, and of its scale.
    #[inline(always)]
    pub fn query(&self, p: &SelectProbeParams, token: i32) -> (u64, u64) {
        let row = (self.request.q_start + token) as i64;
        let codes = row * p.q_rows.token + self.head as i64 * p.q_rows.head;
        let scale = row * p.q_scale_rows.token + self.head as i64 * p.q_scale_rows.head;
        (p.q.wrapping_add(codes as u64), p.q_scale.wrapping_add(scale as u64))
    }
}

/// The strips of one block of the grid.
#[derive(Clone, Copy)]
pub struct Strips<'a> {
    p: &'a SelectProbeParams,
    round: u32,
    place: Place,
}

impl<'a> Strips<'a> {
    /// All of them.
    #[inline(always)]
    pub fn new(p: &'a SelectProbeParams) -> Self {
        Self { p, round: 0, place: Place::START }
    }

    /// The present one, looked up anew: it need not be kept.
    ///
    /// # Safety
    /// A whole warp calls it, converged; the host has checked the arrays that the parameters name.
    #[inline(always)]
    pub unsafe fn current(&mut self) -> Option<Strip> {
        let p = self.p;
        let request = |index: i32| {
            // SAFETY: the index is below the number of requests.
            unsafe { *(p.requests as *const Request).offset(index as isize) }
        };
        let items = |index: i32| {
            let request = request(index);
            strips(request.first_block, request.qb_len, p.query_pool_log2) * p.hq as u32
        };
        let n = item(self.round, special::ctaid_x(), special::nctaid_x());
        let own = self.place.seek(n, p.batch, items)?;
        let request = request(self.place.request);
        // SAFETY: a model has heads, and a KV head query heads.
        unsafe { core::hint::assert_unchecked(p.hq > 0 && p.group > 0) };
        let (head, shift) = ((own % p.hq as u32) as i32, strip_blocks_log2(p.query_pool_log2));
        let kv_head = head / p.group;
        // The longest rows first: what is left over at the end is short.
        let strip = ((request.first_block + request.qb_len - 1) >> shift) - (own / p.hq as u32) as i32;
        let last_block = if p.causal != 0 { ((strip + 1) << shift) - 1 } else { i32::MAX };
        // The same in the whole warp for ptxas too, so that what follows from it lives in uniform registers.
        // SAFETY: forwarded.
        let last_tile = unsafe { warp::shfl_idx_u32(clamped(last_block, request.kb_len) as u32 / TILE_BLOCKS as u32, 0) };
        let first_tile = kv_head as i64 * p.tiles as i64 + first_tile(self.place.request, request.kb_start) as i64;
        let tiles = p.k_tiles + first_tile as u64 * KEY_TILE_BYTES as u64;
        Some(Strip { head, kv_head, request, first: strip << shift, last_tile, tiles })
    }

    /// Goes on to the next.
    #[inline(always)]
    pub fn advance(&mut self) {
        self.round += 1;
    }
}

/// Queries of a strip, in parts of one token a lane.
#[inline(always)]
pub fn query_parts(p: &SelectProbeParams) -> u32 {
    (GROUPS / 32) << p.query_pool_log2
}
