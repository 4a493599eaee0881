//! K scales of single tokens on their way to the scores: what `attend_fp8_d128_token_scales` does and `attend_fp8_d128` does
//! not. A type parameter of the kernel, so that the plain one pays nothing.
//!
//! The 128 scales of a key block lie wherever the cache keeps them, in no order that a bulk copy could fetch. A warp of its
//! own walks the items as the producer does; its 32 lanes load four scales each and store them into a row beside the K tile's
//! stage, with a barrier of its own: that of the tile counts bytes of copies, and `compute-sanitizer --tool racecheck` does not
//! follow what threads order by such a one. The loads of a block are under way while the addresses of the next one's are looked
//! up and while the stage is waited for. (In the producer warp itself they cost spills.)

use crate::abi::{AttendParams, TokenScales};
use crate::config::BLOCK;
use crate::config::attend::STAGES;
use crate::layout::pages::{is_page, scale_offset};
use crate::pipeline::ring::{Cursor, Ring};
use crate::pipeline::work::{Item, item};
use crate::ptx::{SmemAddr, global, mbarrier, smem, special};
use crate::tile::key_scales::scale_columns;
use crate::tile::mma::{FIRST, Scores};
use crate::unroll;

/// How a key's own scale gets to its scores.
pub trait KeyScales: Copy {
    /// Whether there are any.
    const PRESENT: bool;
    /// Arrivals of a consumer warpgroup on the "empty" barrier of a stage.
    const RELEASES: u32;
    /// With the scales of two rows.
    type Rows: RowScales;

    /// Initialises the barriers at `stages`.
    ///
    /// # Safety
    /// One thread, before any other use; followed by `mbarrier::init_fence` and a block barrier.
    unsafe fn init(self, stages: SmemAddr);

    /// The warp that fetches the scales, over all items of the block, as far as there are scales.
    ///
    /// # Safety
    /// Called by a whole warp, converged, on the host-checked parameters; `ring` is that of the K stages, initialised; `stages` are
    /// as many rows of 128 f32, which nobody else writes, and [`Self::init`]'s barriers.
    unsafe fn produce(self, p: &AttendParams, ring: Ring<STAGES>, stages: SmemAddr);

    /// Consumer: of the scales of two rows, what the softmax multiplies its scores by, and what is multiplied before.
    fn split(self, rows: [f32; 2]) -> ([f32; 2], Self::Rows);
}

/// [`KeyScales`] as one thread of a consumer uses them.
pub trait RowScales: Copy {
    /// Consumer: brings the scores of half `HALF` of the keys of stage `at` to what the softmax expects. What the warp needs
    /// of the stage has then been read.
    ///
    /// # Safety
    /// Called by whole warps, converged. The stage has arrived and is not given back yet; `stages` as in
    /// [`KeyScales::produce`].
    unsafe fn apply<const HALF: u32>(self, scores: &mut Scores, stages: SmemAddr, at: Cursor<STAGES>);

    /// Consumer: waits for the row of a stage that brings no K, before the stage is given back. Else nothing would keep the warp that
    /// fetches the scales from being a pass late there, and it would wait for a phase that is over.
    ///
    /// # Safety
    /// As [`RowScales::apply`].
    unsafe fn pass(stages: SmemAddr, at: Cursor<STAGES>);

    /// Whether thread `thread` of a consumer warpgroup is one that gives stages back.
    fn signals(thread: u32) -> u32;
}

/// Keys have no scale of their own.
#[derive(Clone, Copy)]
pub struct NoScales;

impl KeyScales for NoScales {
    const PRESENT: bool = false;
    const RELEASES: u32 = 1;
    type Rows = Self;

    #[inline(always)]
    unsafe fn init(self, _: SmemAddr) {}
    #[inline(always)]
    unsafe fn produce(self, _: &AttendParams, _: Ring<STAGES>, _: SmemAddr) {}
    #[inline(always)]
    fn split(self, rows: [f32; 2]) -> ([f32; 2], Self) {
        (rows, self)
    }
}

impl RowScales for NoScales {
    #[inline(always)]
    unsafe fn apply<const HALF: u32>(self, _: &mut Scores, _: SmemAddr, _: Cursor<STAGES>) {}
    #[inline(always)]
    unsafe fn pass(_: SmemAddr, _: Cursor<STAGES>) {}
    #[inline(always)]
    fn signals(thread: u32) -> u32 {
        (thread == 0) as u32
    }
}

/// Scales of two rows, to be multiplied by the scale of each key: in f32, because a score times one of them alone may leave
/// f16.
#[derive(Clone, Copy)]
pub struct TokenRows([f32; 2]);

/// Tokens a lane fetches: all in one page and one chunk of scales, because both are multiples of it.
const TOKENS: u32 = BLOCK as u32 / 32;

/// The barriers of the rows, of which only those that say "full" are used: a row is empty when its K stage is.
#[inline(always)]
fn barriers(stages: SmemAddr) -> Ring<STAGES> {
    Ring::at(stages.offset(STAGES * (BLOCK as u32 * 4)))
}

/// Row of scales of a stage.
#[inline(always)]
fn row(stages: SmemAddr, at: Cursor<STAGES>) -> SmemAddr {
    stages.offset(at.stage() * (BLOCK as u32 * 4))
}

impl KeyScales for &TokenScales {
    const PRESENT: bool = true;
    const RELEASES: u32 = 128;
    type Rows = TokenRows;

    #[inline(always)]
    unsafe fn init(self, stages: SmemAddr) {
        // SAFETY: forwarded; every lane of the warp that fetches arrives.
        unsafe { barriers(stages).init_for(32, 1) }
    }

    #[inline(always)]
    unsafe fn produce(self, p: &AttendParams, ring: Ring<STAGES>, stages: SmemAddr) {
        let lane = special::tid_x() % 32;
        let (mut k, mut stage) = (0, 0);
        // SAFETY: forwarded from the caller; a stage is waited for before it is overwritten.
        unsafe {
            while let Some(n) = item(p, k) {
                let work = Item::locate(p, n);
                if work.count > 0 {
                    let source = |i| find(p, self, &work, work.key_block(i) * BLOCK as i32, lane);
                    let mut values = load(self, source(0));
                    let mut i = 0;
                    while i < work.count {
                        let at = Cursor::at(stage + i as u32);
                        let more = i + 1 < work.count;
                        // Looked up before the stage is waited for and the values are needed.
                        let next = if more { source(i + 1) } else { (0, 0) };
                        ring.wait_empty(at);
                        smem::st_v4(row(stages, at).offset(lane * (TOKENS * 4)), values);
                        mbarrier::arrive(barriers(stages).full(at));
                        values = load(self, next);
                        i += 1;
                    }
                    // The stage of the last V, which brings no K and whose row nobody reads: the barrier goes on with the ring.
                    let at = Cursor::at(stage + work.count as u32);
                    ring.wait_empty(at);
                    mbarrier::arrive(barriers(stages).full(at));
                    stage += work.count as u32 + 1;
                }
                k += 1;
            }
        }
    }

    #[inline(always)]
    fn split(self, rows: [f32; 2]) -> ([f32; 2], TokenRows) {
        ([1.0; 2], TokenRows(rows))
    }
}

impl RowScales for TokenRows {
    #[inline(always)]
    unsafe fn apply<const HALF: u32>(self, scores: &mut Scores, stages: SmemAddr, at: Cursor<STAGES>) {
        // SAFETY: forwarded from the caller.
        unsafe {
            if HALF == FIRST {
                barriers(stages).wait_full(at);
            }
            scale_columns(scores, self.0, row(stages, at).offset(HALF * 256), special::tid_x_again() % 32);
        }
    }

    #[inline(always)]
    unsafe fn pass(stages: SmemAddr, at: Cursor<STAGES>) {
        // SAFETY: forwarded from the caller.
        unsafe { barriers(stages).wait_full(at) }
    }

    /// All: each has read scales of its own. (A lane could speak for its warp, but `compute-sanitizer --tool racecheck` follows an
    /// arrival only for the thread that arrives.)
    #[inline(always)]
    fn signals(_: u32) -> u32 {
        1
    }
}

/// The scales of the lane's tokens, from where [`find`] found them.
///
/// # Safety
/// The first of the pair is what [`find`] gave for these `scales`, or the second is 0.
#[inline(always)]
unsafe fn load(scales: &TokenScales, (from, exists): (u64, u32)) -> [u32; TOKENS as usize] {
    let mut values = [0; TOKENS as usize];
    // SAFETY: forwarded from the caller.
    unroll!(T < 4 { values[T] = unsafe { global::ld_u32_if(from.wrapping_add((T as i64 * scales.strides.token) as u64), exists) }; });
    values
}

/// Where the scales of the lane's tokens start, and 1, or 0 for tokens without a page, whose scale is 0 as their keys are.
/// `block`: the first token of the key block.
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
    (scales.first.wrapping_add(offset as u64), exists as u32)
}

const _: () = assert!(TOKENS == 4, "a lane's loads are written out, and stored as 16 bytes");
