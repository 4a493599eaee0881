//! What there is to do, and how the consumers hear of it.
//!
//! An item is one query block of one head. Items are numbered from the longest rows (the end of a causal prompt) to the
//! shortest, heads side by side so that they share K and V in L2. Every block of the grid takes one of each round of as many
//! items as there are blocks, in turns from the front and from the back.
//! The producer, which runs ahead, looks an item up in global memory and leaves what the consumers need in shared memory
//! beside the Q tile, so that their look-ups cost no time.

use crate::abi::{AttendParams, QueryBlock, Request};
use crate::config::BLOCK;
use crate::ptx::{SmemAddr, global, math, smem, special, warp};

/// One item as the producer sees it.
#[derive(Clone, Copy)]
pub struct Item {
    /// Query head.
    pub head: i32,
    /// KV head.
    pub kv_head: i32,
    /// The query block.
    pub row: QueryBlock,
    /// Its request.
    pub request: Request,
    /// Key blocks the row may see.
    visible: i32,
    /// Key blocks to attend to, walked from index `count - 1` down to 0.
    pub count: i32,
    /// Address of the row's list, or 0: block index = list index.
    list: u64,
    /// The lane's own of the list's first [`WINDOW`] entries.
    entry: i32,
}

/// Entries of a list that are loaded while its count is: one a lane.
const WINDOW: i32 = 32;

/// Number of the block's `k`-th item, if there is one.
#[inline(always)]
pub fn item(p: &AttendParams, k: u32) -> Option<u32> {
    let (block, blocks) = (special::ctaid_x(), special::nctaid_x());
    // There and back again: in a round of falling lengths the first block always gets the longest row, 1.6 % too much work
    // over a dense prompt of 32 K.
    let n = k * blocks + if k.is_multiple_of(2) { block } else { blocks - 1 - block };
    if n < p.hq as u32 * p.total_qb as u32 { Some(n) } else { None }
}

/// Asks for what the look-up of the block's first item reads, where `on` is not 0: one miss instead of one after the other. Only
/// into L2, so what a kernel still running is about to write does no harm.
///
/// # Safety
/// As [`Item::locate`]; the block has an item.
#[inline(always)]
pub unsafe fn prefetch_first(p: &AttendParams, on: u32) {
    // SAFETY: forwarded from the caller; a batch with a query block has a first request, which is a guess.
    unsafe {
        let (head, index) = split(p, special::ctaid_x());
        let at = list_index(p, head, index);
        let listed = on & (p.lists != 0) as u32;
        global::prefetch_if(p.query_blocks + index as u32 as u64 * size_of::<QueryBlock>() as u64, on);
        global::prefetch_if(p.requests, on);
        global::prefetch_if(p.counts + at as u64 * 4, listed);
        global::prefetch_if(p.lists + at as u64 * p.list_stride as u32 as u64 * 4, listed);
        global::prefetch_if(p.k_scale, on);
        global::prefetch_if(p.v_scale, on);
    }
}

/// Head and query block of item `n`.
///
/// # Safety
/// As [`Item::locate`].
#[inline(always)]
unsafe fn split(p: &AttendParams, n: u32) -> (i32, i32) {
    // SAFETY: the host checked it.
    unsafe { core::hint::assert_unchecked(p.hq > 0) };
    ((n % p.hq as u32) as i32, p.total_qb - 1 - (n / p.hq as u32) as i32)
}

/// Which list is that of query block `index` and head `head`.
#[inline(always)]
fn list_index(p: &AttendParams, head: i32, index: i32) -> i64 {
    (head as u32 as i64) * (p.total_qb as u32 as i64) + index as i64
}

impl Item {
    /// Looks item `n` up. What does not depend on each other is asked for together: an answer takes 300 clocks, 1,000 from memory.
    ///
    /// # Safety
    /// Called by a whole warp, converged; `n < hq * total_qb`; the host has checked the arrays that `p` names.
    #[inline(always)]
    pub unsafe fn locate(p: &AttendParams, n: u32) -> Self {
        // SAFETY: forwarded from the caller.
        unsafe {
            core::hint::assert_unchecked(p.group > 0);
            let (head, index) = split(p, n);
            let at = list_index(p, head, index);
            let listed = (p.lists != 0) as u32;
            let stride = math::here(p.list_stride) as u32;
            let list = if p.lists == 0 { 0 } else { p.lists + (at * stride as i64 * 4) as u64 };
            let count = global::ld_u32_if(p.counts + (at * 4) as u64, listed) as i32;
            let lane = special::lane_id();
            let entry = global::ld_u32_if(list + lane as u64 * 4, listed & (lane < stride) as u32) as i32;
            let row = *(p.query_blocks as *const QueryBlock).add(index as usize);
            let request = *(p.requests as *const Request).add(row.request as usize);
            // Up to the diagonal, or, where the calls are not causal (2^30 blocks further), up to the end.
            let visible = (row.block + 1 + ((1 - math::here(p.causal)) << 30)).min(request.kb_len);
            // Lists may come straight from device memory, unseen by the host: what they say is kept inside the arrays.
            let most = if visible < stride as i32 { visible } else { stride as i32 };
            let count = if listed == 0 {
                visible
            } else if count < most {
                count
            } else {
                most
            };
            let count = if count > 0 { count } else { 0 };
            let count = uniform(count);
            let request = Request {
                q_start: uniform(request.q_start),
                q_len: uniform(request.q_len),
                kv_len: uniform(request.kv_len),
                kb_start: uniform(request.kb_start),
                ..request
            };
            let row = QueryBlock { request: uniform(row.request), block: uniform(row.block), ..row };
            let visible = uniform(visible);
            Self { head, kv_head: head / p.group, row, request, visible, count, list, entry }
        }
    }

    /// Key block number `i` of the walk.
    ///
    /// # Safety
    /// Called by the warp that looked the item up, converged; `0 <= i < count`.
    #[inline(always)]
    pub unsafe fn key_block(&self, i: i32) -> i32 {
        let at = self.count - 1 - i;
        if self.list == 0 {
            return at;
        }
        // SAFETY: 0 <= at < count, which is no more than the list's capacity.
        let j = unsafe {
            if at < WINDOW {
                warp::shfl_idx_u32(self.entry as u32, at as u32) as i32
            } else {
                *(self.list as *const i32).offset(at as isize)
            }
        };
        // A block the row cannot see becomes one that it can.
        if (j as u32) < self.visible as u32 { j } else { self.visible - 1 }
    }

    /// Tokens before the request's new ones.
    #[inline(always)]
    fn history(&self) -> i32 {
        self.request.kv_len - self.request.q_len
    }

    /// Row of `q` and `out` of the tile's first row; less than the request's first where the block starts before the chunk.
    #[inline(always)]
    pub fn tile_row(&self) -> i32 {
        self.request.q_start + self.row.block * BLOCK as i32 - self.history()
    }

    /// Rows of the tile that are the request's new tokens: from, to.
    #[inline(always)]
    pub fn rows(&self) -> [i32; 2] {
        let start = self.row.block * BLOCK as i32;
        [self.history() - start, self.request.kv_len - start]
    }
}

/// `x`, which all lanes hold alike, in a form ptxas knows to be so: it can then live in a uniform register.
///
/// # Safety
/// Called by a whole warp.
#[inline(always)]
unsafe fn uniform(x: i32) -> i32 {
    // SAFETY: forwarded from the caller.
    unsafe { warp::shfl_idx_u32(x as u32, 0) as i32 }
}

/// What the consumers know of an item: eight words in shared memory, read in pairs and fours.
#[derive(Clone, Copy)]
pub struct Slot(pub SmemAddr);

/// Words of a slot: the count; the V scale; keys as seen from the tile, the first one of the walk's first block and the end of the
/// sequence; then a [`Place`].
const COUNT: u32 = 0;
const V_SCALE: u32 = 1;
const KEYS: u32 = 2;
const PLACE: u32 = 4;

/// Where a tile lies.
#[derive(Clone, Copy)]
pub struct Place {
    /// Row of `q` and `out` of the tile's first row.
    pub tile_row: i32,
    /// The tile's rows that are the request's: from, to.
    pub rows: [i32; 2],
    /// Query head.
    pub head: i32,
}

impl Slot {
    /// Fills the slot where `on` is 1 (one lane).
    ///
    /// # Safety
    /// As [`Item::key_block`]; nobody reads the slot until the barrier that announces it; `p`'s arrays are the host's.
    #[inline(always)]
    pub unsafe fn fill(self, p: &AttendParams, item: &Item, on: u32) {
        let start = item.row.block * BLOCK as i32;
        // SAFETY: forwarded from the caller.
        unsafe {
            let first = if item.count > 0 { item.key_block(0) * BLOCK as i32 } else { 0 };
            let v_scale = *(p.v_scale as *const u32).offset((item.kv_head * p.v_scale_stride) as isize);
            let [from, to] = item.rows();
            let keys = [(first - start) as u32, (item.request.kv_len - start) as u32];
            smem::st_v4_if(self.0, [item.count as u32, v_scale, keys[0], keys[1]], on);
            smem::st_v4_if(self.word(PLACE), [item.tile_row() as u32, from as u32, to as u32, item.head as u32], on);
        }
    }

    #[inline(always)]
    fn word(self, word: u32) -> SmemAddr {
        self.0.offset(4 * word)
    }

    /// Key blocks to attend to.
    ///
    /// # Safety
    /// The slot's barrier has completed and the slot has not been given back; so for every reader below.
    #[inline(always)]
    pub unsafe fn count(self) -> i32 {
        // SAFETY: forwarded.
        unsafe { smem::ld_u32(self.word(COUNT)) as i32 }
    }

    /// Last visible column of the walk's first block for rows `row` and `row + 8` of the tile; 128 or more where none is masked.
    ///
    /// # Safety
    /// As [`Slot::count`].
    #[inline(always)]
    pub unsafe fn limits(self, causal: bool, row: i32) -> [i32; 2] {
        // SAFETY: forwarded.
        let [first, end] = unsafe { smem::ld_v2_u32(self.word(KEYS)) }.map(|word| word as i32);
        let limit = |row: i32| (if causal && row < end - 1 { row } else { end - 1 }) - first;
        [limit(row), limit(row + 8)]
    }

    /// Where the tile lies.
    ///
    /// # Safety
    /// As [`Slot::count`].
    #[inline(always)]
    pub unsafe fn place(self) -> Place {
        // SAFETY: forwarded.
        let [tile_row, from, to, head] = unsafe { smem::ld_v4(self.word(PLACE)) }.map(|word| word as i32);
        Place { tile_row, rows: [from, to], head }
    }

    /// The V scale.
    ///
    /// # Safety
    /// As [`Slot::count`].
    #[inline(always)]
    pub unsafe fn v_scale(self) -> f32 {
        // SAFETY: forwarded.
        unsafe { smem::ld_f32(self.word(V_SCALE)) }
    }
}
