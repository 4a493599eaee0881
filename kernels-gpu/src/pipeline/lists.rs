//! The last part of a strip of `select_stem`: its rows' block lists.

use crate::abi::SelectParams;
use crate::config::select::{CONSUMER_WARPS, ROWS, SPAN};
use crate::layout::select::{Row, Rule};
use crate::pipeline::kept;
use crate::pipeline::shared::Shared;
use crate::ptx::{global, math, special, warp};
use crate::tile::strip::Strip;
use crate::tile::topk::{DeviceScores, List, PairedScores, Rows, Scores, SharedScores, select_row, select_rows};
use crate::unroll;
use core::marker::PhantomData;

/// Address of the scores of row `r` in device memory, if they go there.
#[inline(always)]
pub fn scores_at(p: &SelectParams, strip: &Strip, r: u32) -> u64 {
    let row = if p.scores_by_block != 0 {
        special::ctaid_x() as u64 * ROWS as u64 + r as u64
    } else {
        strip.head as u32 as u64 * p.total_qb as u32 as u64 + (strip.first as u32 + r) as u64
    };
    // Here: LLVM would keep what hangs on it in a register through the products.
    p.scores + row * math::here(p.score_stride) as u32 as u64 * 4
}

/// The calling warp's rows of the strip it is at, w and w + 16 of warp w, whose scores lie in shared memory. One that is not there has no
/// candidates. All is read again for every use: registers are short.
struct Pair<'a, S>(&'a SelectParams, PhantomData<S>);

/// Where the scores of a strip's rows lie in shared memory.
trait StripScores {
    type Scores: Scores;

    /// Those of row `r`.
    fn of(shared: Shared, r: u32) -> Self::Scores;
}

/// As f32.
struct Single;

impl StripScores for Single {
    type Scores = SharedScores<false>;

    #[inline(always)]
    fn of(shared: Shared, r: u32) -> Self::Scores {
        shared.scores(r)
    }
}

/// As bf16.
struct Paired<const WIDE: bool>;

impl<const WIDE: bool> StripScores for Paired<WIDE> {
    type Scores = PairedScores<WIDE>;

    #[inline(always)]
    fn of(shared: Shared, r: u32) -> Self::Scores {
        shared.paired::<WIDE>(r)
    }
}

/// The calling warp's `i`-th row.
#[inline(always)]
fn own_row(i: u32) -> u32 {
    special::tid_x_again() / 32 + i * CONSUMER_WARPS
}

impl<S: StripScores> Rows for Pair<'_, S> {
    type Scores = S::Scores;

    #[inline(always)]
    fn scores(&self, i: u32) -> Self::Scores {
        S::of(Shared::again(), own_row(i))
    }

    #[inline(always)]
    fn row(&self, i: u32) -> (Row, Rule) {
        // SAFETY: the plan is that of a strip, and written.
        unsafe { kept::plan().row(self.0, own_row(i)) }
    }

    #[inline(always)]
    fn list(&self, i: u32) -> List {
        // SAFETY: as above.
        unsafe { list(self.0, own_row(i)) }
    }
}

/// Where row `r` of the strip is among those of all heads.
///
/// # Safety
/// The warp keeps a place in a strip.
#[inline(always)]
unsafe fn place(p: &SelectParams, r: u32) -> u64 {
    // SAFETY: forwarded.
    let [head, first] = unsafe { kept::plan().first() };
    head as u64 * math::here(p.total_qb) as u32 as u64 + (first + r) as u64
}

/// Where the list of row `r` of the strip goes.
///
/// # Safety
/// As [`place`].
#[inline(always)]
unsafe fn list(p: &SelectParams, r: u32) -> List {
    let capacity = math::here(p.list_stride) as u32;
    // SAFETY: forwarded.
    List { at: p.lists + unsafe { place(p, r) } * capacity as u64 * 4, capacity }
}

/// Stores how long the list of row `r` of the strip is, if it has such a row.
///
/// # Safety
/// A whole warp calls it, converged, that keeps a place in a strip.
#[inline(always)]
unsafe fn store_count(p: &SelectParams, r: u32, count: u32) {
    let leader = special::tid_x_again().is_multiple_of(32);
    // SAFETY: of a row that is there.
    unsafe { global::st_u32_if(p.counts + place(p, r) * 4, count, (leader & (r < kept::plan().size()[0] as u32)) as u32) };
}

/// Decides what each row of the strip keeps: rows w and w + 16 of warp w, together where their scores lie in shared memory.
///
/// # Safety
/// All consumer threads call it, converged in warps, which keep a place in a strip; its scores are complete, if anybody asks for them:
/// they lie where nobody else writes until the warp says that it is done with them.
#[inline(always)]
pub unsafe fn write_lists<const WIDE: bool>(p: &SelectParams) {
    const { assert!(ROWS == 2 * CONSUMER_WARPS) };
    // SAFETY: rows of the strip, whose lists and counts lie inside their arrays; of what is past it nothing is written. Scores in
    // device memory were stored by the same warp.
    unsafe {
        // The same in all lanes, and known to be.
        let mut r = warp::shfl_idx_u32(own_row(0), 0);
        let plan = kept::plan();
        let ([rows, keys], scored) = (plan.size(), plan.scored());
        // Then it has no later one either.
        if r >= rows as u32 {
            return;
        }
        if scored & (keys <= SPAN as i32) {
            let lane = special::tid_x_again() % 32;
            let kept = if WIDE | (p.round_bf16 != 0) {
                select_rows::<_, 2>(&Pair::<Paired<WIDE>>(p, PhantomData), lane)
            } else {
                select_rows::<_, 2>(&Pair::<Single>(p, PhantomData), lane)
            };
            unroll!(I < 2 { store_count(p, own_row(I as u32), kept[I]); });
            return;
        }
        while r < kept::plan().size()[0] as u32 {
            let (row, rule) = kept::plan().row(p, r);
            let (strip, lane) = (kept::plan().strip(), special::tid_x_again() % 32);
            warp::sync();
            // Where nobody asks for scores every row keeps what it sees: where they would be in shared memory lies something else.
            let kept = select_row(DeviceScores(scores_at(p, &strip, r)), row, rule, list(p, r), lane);
            store_count(p, r, kept);
            r += CONSUMER_WARPS;
        }
    }
}
