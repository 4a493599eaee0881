//! What the selection works on: strips of query blocks of one head, against spans of key blocks.
//!
//! The query blocks of the batch are cut into windows ([`crate::layout::windows`]), whatever request they belong to; the part of a window
//! that one request owns is a strip. Every role of a block walks the same strips for itself: they are a few loads away, and
//! nothing has to be handed over. Items (a window of a head) are numbered from the longest rows, at the end of a causal prompt,
//! to the shortest, and by head within: the blocks of a cluster work on the same strip of neighbouring heads. A grid that is smaller
//! than the items goes over them to and fro, so that the block with the longest item of a round has the shortest of the next.

use crate::abi::{QueryBlock, Request, SelectParams};
use crate::config::GROUPS;
use crate::config::select::{CHUNK, CONSUMERS, OCTET, RING_TILES, SPAN, TILE};
use crate::layout::select::{BF16_LOW_BIT, Row, Rule};
use crate::layout::windows::Windows;
use crate::ptx::{special, warp};

/// Some query blocks of one request and head. What else there is to know of them is looked up where it is needed: registers
/// are short around the products.
#[derive(Clone, Copy)]
pub struct Strip {
    /// Query head.
    pub head: i32,
    /// Index of the first query block among all query blocks.
    pub first: i32,
    /// Query blocks.
    pub rows: i32,
    /// Key blocks that the last row may see; no row sees more.
    pub keys: i32,
    /// Key blocks of the request.
    pub(super) kb_len: i32,
    /// Whether it is the last of its window.
    pub(super) ends_window: bool,
}

/// The strips of one block of the grid.
#[derive(Clone, Copy)]
pub struct Strips<'a> {
    p: &'a SelectParams,
    /// The round: as many items as there are blocks, in every second one backwards.
    round: u32,
    /// Query blocks of its window that are done.
    done: i32,
}

impl<'a> Strips<'a> {
    /// All of them.
    #[inline(always)]
    pub fn new(p: &'a SelectParams) -> Self {
        Self { p, round: 0, done: 0 }
    }

    /// Where in them this is, for [`Strips::at`].
    #[inline(always)]
    pub fn place(&self) -> [u32; 2] {
        [self.round, self.done as u32]
    }

    /// Those whose [`place`](Strips::place) this is.
    #[inline(always)]
    pub fn at(p: &'a SelectParams, [round, done]: [u32; 2]) -> Self {
        Self { p, round, done: done as i32 }
    }

    /// Whether there is one.
    #[inline(always)]
    pub fn any(&self) -> bool {
        self.item() < (self.p.windows * self.p.hq) as u32
    }

    /// The item. At most the number of items and two rounds: `ops::select` launches no grid of more than 2^31 blocks, and none
    /// larger than the items.
    #[inline(always)]
    fn item(&self) -> u32 {
        let (block, blocks) = (special::ctaid_x(), special::nctaid_x());
        self.round * blocks + if self.round.is_multiple_of(2) { block } else { blocks - 1 - block }
    }

    /// The present one, looked up anew: it need not be kept.
    ///
    /// # Safety
    /// A whole warp calls it, converged, while there is [`any`](Strips::any); the host has checked the arrays that the parameters
    /// name.
    #[inline(always)]
    pub unsafe fn current(&self) -> Strip {
        let p = self.p;
        // SAFETY: a model has heads; the query block is one of the batch's.
        unsafe {
            core::hint::assert_unchecked(p.hq > 0);
            let item = self.item();
            let head = (item % p.hq as u32) as i32;
            let windows = Windows { blocks: p.total_qb, long: p.long_windows, rows: p.window_rows };
            let [start, end] = windows.range((item / p.hq as u32) as i32);
            let first = start + self.done;
            let QueryBlock { request, block, .. } = *(p.query_blocks as *const QueryBlock).offset(first as isize);
            let request = *(p.requests as *const Request).offset(request as isize);
            // At least one row: the first block is the request's.
            let rows = uniform(smaller(end, request.qb_start + request.qb_len) - first);
            let keys = uniform(if p.causal != 0 { smaller(block + rows, request.kb_len) } else { request.kb_len });
            Strip { head, first, rows, keys, kb_len: request.kb_len, ends_window: first + rows >= end }
        }
    }

    /// Goes on to the strip after `strip`, the present one.
    #[inline(always)]
    pub fn advance(&mut self, strip: &Strip) {
        self.done = if strip.ends_window { 0 } else { self.done + strip.rows };
        self.round += strip.ends_window as u32;
    }
}

impl Strip {
    /// KV head.
    #[inline(always)]
    pub fn kv_head(&self, p: &SelectParams) -> i32 {
        // SAFETY: a KV head has query heads.
        unsafe { core::hint::assert_unchecked(p.group > 0) };
        self.head / p.group
    }

    /// Query block of row `r`, and the request.
    ///
    /// # Safety
    /// `0 <= r < rows`; the strip is one of `p`'s.
    #[inline(always)]
    pub unsafe fn block(&self, p: &SelectParams, r: i32) -> (QueryBlock, Request) {
        // SAFETY: the row is one of the batch's query blocks.
        unsafe {
            let block = *(p.query_blocks as *const QueryBlock).offset((self.first + r) as isize);
            (block, *(p.requests as *const Request).offset(block.request as isize))
        }
    }

    /// Whether anybody asks for the strip's scores: some row has to choose, or the caller wants them.
    ///
    /// # Safety
    /// A whole warp calls it, converged; the strip is one of `p`'s.
    #[inline(always)]
    pub unsafe fn has_scores(&self, p: &SelectParams, lane: u32) -> bool {
        // SAFETY: forwarded.
        unsafe { self.scored_rows(p, lane) != 0 }
    }

    /// The rows of which somebody asks for scores, bit r for row r.
    ///
    /// # Safety
    /// As [`Strip::has_scores`].
    #[inline(always)]
    pub unsafe fn scored_rows(&self, p: &SelectParams, lane: u32) -> u32 {
        // SAFETY: forwarded.
        unsafe {
            let (row, rule) = self.lane_row(p, lane);
            warp::ballot(self.asks(p, row, rule, lane))
        }
    }

    /// Candidates and guards of row `lane`, and what it keeps; anything where the strip has not as many.
    ///
    /// # Safety
    /// The strip is one of `p`'s.
    #[inline(always)]
    pub(super) unsafe fn lane_row(&self, p: &SelectParams, lane: u32) -> (Row, Rule) {
        // Of whatever request: the load need not wait for how many rows there are, nor another one for the request.
        let at = smaller(self.first + lane as i32, p.total_qb - 1);
        // SAFETY: one of the batch's query blocks.
        let block = unsafe { *(p.query_blocks as *const QueryBlock).offset(at as isize) };
        let row = Row::new(block.block, self.kb_len, p.causal != 0, p.sink, p.window, p.guards_on_top != 0);
        (row, rule(p, block.budget))
    }

    /// Whether somebody asks for the scores of row `lane`.
    #[inline(always)]
    pub(super) fn asks(&self, p: &SelectParams, row: Row, rule: Rule, lane: u32) -> u32 {
        ((rule.chooses(row) | wants_scores(p)) & ((lane as i32) < self.rows)) as u32
    }

    /// The octets with the rows of which somebody asks for scores.
    ///
    /// # Safety
    /// As [`Strip::has_scores`].
    #[inline(always)]
    pub unsafe fn scored_octets(&self, p: &SelectParams, lane: u32) -> Octets {
        // SAFETY: forwarded.
        let rows = unsafe { self.scored_rows(p, lane) };
        let first = rows.trailing_zeros() / OCTET;
        Octets { first, count: if rows == 0 { 0 } else { (32 - rows.leading_zeros()).div_ceil(OCTET) - first } }
    }

    /// Groups of query sums that its products take: those of a query block once a span.
    #[inline(always)]
    pub fn groups(&self) -> u32 {
        GROUPS as u32 * (self.keys as u32).div_ceil(SPAN)
    }

    /// The span that starts at key block `first`, which the strip sees.
    #[inline(always)]
    pub fn span(&self, first: i32) -> Span {
        Span { first, count: smaller(self.keys - first, SPAN as i32) }
    }
}

/// Some octets of a strip, one after another.
#[derive(Clone, Copy)]
pub struct Octets {
    /// The first.
    pub first: u32,
    /// How many; 0 where nobody asks for a score of the strip.
    pub count: u32,
}

/// The rule of a row with this budget.
#[inline(always)]
pub(super) fn rule(p: &SelectParams, budget: i32) -> Rule {
    Rule { budget, keep_all_ties: p.keep_all_ties != 0, low_bit: if p.round_bf16 != 0 { BF16_LOW_BIT } else { 0 } }
}

/// Whether the caller wants all scores.
#[inline(always)]
pub fn wants_scores(p: &SelectParams) -> bool {
    (p.scores != 0) & (p.scores_by_block == 0)
}

/// At most 1,024 consecutive key blocks.
#[derive(Clone, Copy)]
pub struct Span {
    /// The first, counted in the request.
    pub first: i32,
    /// How many; at least 1.
    pub count: i32,
}

impl Span {
    /// Stages of a step.
    #[inline(always)]
    pub fn chunks(self) -> u32 {
        (self.count as u32).div_ceil(CHUNK)
    }

    /// Stages of the ring of key sums.
    #[inline(always)]
    pub fn stages(self) -> u32 {
        match (self.count as u32).div_ceil(TILE) {
            0 | 1 => RING_TILES,
            2 => RING_TILES / 2,
            _ => RING_TILES / CONSUMERS,
        }
    }

    /// Tiles of chunk `chunk` that hold a key block of the span.
    #[inline(always)]
    pub fn tiles(self, chunk: u32) -> u32 {
        let left = (self.count as u32 - chunk * CHUNK).div_ceil(TILE);
        if left < CHUNK / TILE { left } else { CHUNK / TILE }
    }
}

#[inline(always)]
fn smaller(a: i32, b: i32) -> i32 {
    if a < b { a } else { b }
}

/// `x`, which all lanes hold alike, in a form ptxas knows to be so: it can then live in a uniform register.
///
/// # Safety
/// Called by a whole warp, converged.
#[inline(always)]
pub(super) unsafe fn uniform(x: i32) -> i32 {
    // SAFETY: forwarded.
    unsafe { warp::shfl_idx_u32(x as u32, 0) as i32 }
}
