//! K scales of single tokens on their way to the scores: what `attend_fp8_d128_token_scales` does and `attend_fp8_d128` does
//! not. A type parameter of the kernel, so that the plain one pays nothing.
//!
//! The 128 scales of a key block lie wherever the cache keeps them, in no order that a bulk copy could fetch. A warp of its
//! own walks the items as the producer does; its 32 lanes fetch four scales each, asynchronously, into the stage of the K
//! tile, whose "full" barrier waits for them too. (In the producer warp itself they cost spills.)

use crate::abi::{AttendParams, TokenScales};
use crate::config::BLOCK;
use crate::config::attend::STAGES;
use crate::layout::pages::{is_page, scale_offset};
use crate::pipeline::ring::{Cursor, Ring};
use crate::pipeline::work::{Item, item};
use crate::ptx::{SmemAddr, cp_async, special, warp};
use crate::tile::key_scales::scale_columns;
use crate::tile::mma::Scores;
use crate::unroll;

/// How a key's own scale gets to its scores.
pub trait KeyScales: Copy {
    /// Arrivals on the "full" barrier of a K stage besides the leader's.
    const ARRIVALS: u32;
    /// Arrivals of a consumer warpgroup on the "empty" barrier of a K stage.
    const RELEASES: u32;

    /// The warp that fetches the scales, over all items of the block, as far as there are scales.
    ///
    /// # Safety
    /// Called by a whole warp, converged, on the host-checked parameters; `ring` is that of the K stages, initialised with
    /// [`Self::ARRIVALS`]; `stages` are as many rows of 128 f32, which nobody else writes.
    unsafe fn produce(self, p: &AttendParams, ring: Ring<STAGES>, stages: SmemAddr);

    /// Consumer: multiplies the scores of the keys of stage `at`. What the warp needs of it has then been read.
    ///
    /// # Safety
    /// Called by whole warps, converged. The stage has arrived and is not given back yet; `stages` as in [`Self::produce`].
    unsafe fn apply(self, scores: &mut Scores, stages: SmemAddr, at: Cursor<STAGES>, lane: u32);

    /// Whether thread `thread` of a consumer warpgroup is one that gives stages back.
    fn signals(thread: u32) -> u32;
}

/// Keys have no scale of their own.
#[derive(Clone, Copy)]
pub struct NoScales;

impl KeyScales for NoScales {
    const ARRIVALS: u32 = 0;
    const RELEASES: u32 = 1;

    #[inline(always)]
    unsafe fn produce(self, _: &AttendParams, _: Ring<STAGES>, _: SmemAddr) {}
    #[inline(always)]
    unsafe fn apply(self, _: &mut Scores, _: SmemAddr, _: Cursor<STAGES>, _: u32) {}
    #[inline(always)]
    fn signals(thread: u32) -> u32 {
        (thread == 0) as u32
    }
}

/// Tokens a lane fetches: all in one page and one chunk of scales, because both are multiples of it.
const TOKENS: u32 = BLOCK as u32 / 32;

/// Row of scales of a stage.
#[inline(always)]
fn row(stages: SmemAddr, at: Cursor<STAGES>) -> SmemAddr {
    stages.offset(at.stage() * (BLOCK as u32 * 4))
}

impl KeyScales for &TokenScales {
    const ARRIVALS: u32 = 32;
    const RELEASES: u32 = 4;

    #[inline(always)]
    unsafe fn produce(self, p: &AttendParams, ring: Ring<STAGES>, stages: SmemAddr) {
        let lane = special::tid_x() % 32;
        let (mut k, mut tile) = (0, 0);
        // SAFETY: forwarded from the caller; a stage is waited for before it is overwritten.
        unsafe {
            while let Some(n) = item(p, k) {
                let work = Item::locate(p, n);
                let mut i = 0;
                while i < work.count {
                    let at = Cursor::at(tile + i as u32);
                    let (from, bytes) = find(p, self, &work, work.key_block(i) * BLOCK as i32, lane);
                    let to = row(stages, at).offset(lane * (TOKENS * 4));
                    ring.wait_empty(at);
                    unroll!(T < 4 {
                        cp_async::copy_4(to.offset(4 * T as u32), from.wrapping_add((T as i64 * self.strides.token) as u64), bytes);
                    });
                    cp_async::arrive(ring.full(at));
                    i += 1;
                }
                tile += work.count as u32;
                k += 1;
            }
        }
    }

    #[inline(always)]
    unsafe fn apply(self, scores: &mut Scores, stages: SmemAddr, at: Cursor<STAGES>, lane: u32) {
        // SAFETY: forwarded from the caller.
        unsafe {
            scale_columns(scores, row(stages, at), lane);
            warp::sync();
        }
    }

    /// A lane of each warp: unlike the product, the scales were read by every warp for itself.
    #[inline(always)]
    fn signals(thread: u32) -> u32 {
        thread.is_multiple_of(32) as u32
    }
}

/// Where the scales of the lane's tokens start, and the bytes to copy of each: 4, or 0 for tokens without a page, whose
/// scale is 0 as their keys are. `block`: the first token of the key block.
///
/// # Safety
/// A key block of the item's request; the host has checked the arrays.
#[inline(always)]
unsafe fn find(p: &AttendParams, scales: &TokenScales, item: &Item, block: i32, lane: u32) -> (u64, u32) {
    let token = block + (lane * TOKENS) as i32;
    // Past the last token the table may end: those lanes repeat the block's first, and their columns are masked.
    let token = if token < item.request.kv_len { token } else { block };
    let table = p.page_table + (item.row.request as u32 as i64 * p.table_stride as u32 as i64 * 4) as u64;
    // SAFETY: a token of the request has an entry.
    let page = unsafe { *(table as *const i32).offset((token >> p.page_size_log2) as isize) };
    let exists = is_page(page, scales.pages);
    let in_page = token & ((1 << p.page_size_log2) - 1);
    let offset = scale_offset(&scales.strides, if exists { page } else { 0 }, in_page, item.kv_head);
    (scales.first.wrapping_add(offset as u64), if exists { 4 } else { 0 })
}

const _: () = assert!(TOKENS == 4, "a lane's copies are written out");
