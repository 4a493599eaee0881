//! The main loop of a consumer warpgroup, in steps of 64 keys, half a tile.
//!
//! A step issues P V of one half and Q K of the half after next, and waits for both; in between, the scores of the half between
//! them become P. Everything in flight is waited for inside the step: ptxas serialises products that cross a loop's end.

use super::Shared;
use crate::config::attend::{FLUSH_TILES, STAGES};
use crate::pipeline::key_scales::RowScales;
use crate::pipeline::ring::Cursor;
use crate::ptx::{SmemAddr, wgmma};
use crate::tile::mma::{FIRST, Output, PendingProduct, Probabilities, Product, SECOND, Scores, issue_pv, issue_qk};
use crate::tile::softmax::{OnlineSoftmax, mask_columns, pack, settle};

/// What the half tiles of one item hand on to each other.
struct Walk<'a, R> {
    shared: Shared,
    keys: R,
    q: SmemAddr,
    /// 0: see [`settle`].
    never: u32,
    output: &'a mut Output,
    softmax: &'a mut OnlineSoftmax,
    /// The half whose product is next.
    probabilities: Probabilities,
    product: Product,
    /// What the output must be multiplied by at the next flush.
    factor: [f32; 2],
    /// The bias before the half that comes next, and whether its own is another: then `product` must be brought to that one
    /// before the half's own P V is added.
    old: u32,
    moved: bool,
}

/// All tiles of one item. `scores`: of the first tile, whose stage is not given back yet. What it
/// returns is still to be flushed into the output.
///
/// # Safety
/// All threads of the warpgroup call it converged; the rings are initialised; `count > 0`.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "inlined once; a struct of them would only rename them")]
pub(super) unsafe fn walk<R: RowScales>(
    shared: Shared,
    keys: R,
    q: SmemAddr,
    scores: [Scores; 2],
    first: u32,
    count: u32,
    thread: u32,
    never: u32,
    limit: [i32; 2],
    output: &mut Output,
    softmax: &mut OnlineSoftmax,
) -> ([f32; 2], PendingProduct) {
    let signal = R::signals(thread);
    // SAFETY: all threads of the warpgroup run this converged; tiles are waited for before use and released after.
    unsafe {
        let at = Cursor::at(first);
        let [mut a, mut b] = scores;
        keys.apply::<FIRST>(&mut a, shared.key_scales(), at);
        keys.apply::<SECOND>(&mut b, shared.key_scales(), at);
        shared.kv.release(at, signal);
        mask_columns(&mut a, thread % 32, limit);
        mask_columns(&mut b, thread % 32, [limit[0] - 64, limit[1] - 64]);
        softmax.start(&a, &b);
        softmax.exponentiate(&mut a);
        let mut probabilities = Probabilities([0; 8]);
        pack(&a, &mut probabilities);
        let mut walk = Walk {
            shared,
            keys,
            q,
            never,
            output,
            old: 0,
            moved: false,
            softmax,
            probabilities,
            product: Product::any(),
            factor: [1.0; 2],
        };
        let (mut i, end) = (first.wrapping_add(1), first.wrapping_add(count));
        let mut there = shared.kv.is_full(Cursor::at(i));
        while i != end {
            let at = Cursor::at(i);
            if !there {
                shared.kv.wait_full(at);
            }
            let done = i.wrapping_sub(first) % FLUSH_TILES;
            a = walk.half::<FIRST>(at, &mut b, a, (done != 1) as u32, false);
            // Asked here and looked at a half later: the answer takes 40 clocks.
            there = shared.kv.is_full(Cursor::at(i.wrapping_add(1)));
            b = walk.half::<SECOND>(at, &mut a, b, 1, done == 0);
            shared.kv.release(at, signal);
            i = i.wrapping_add(1);
        }
        let at = Cursor::at(end);
        if !there {
            shared.kv.wait_full(at);
        }
        walk.last(shared.v_tile(at), b, (count % FLUSH_TILES != 1) as u32)
    }
}

impl<R: RowScales> Walk<'_, R> {
    /// One half tile: while the tensor core multiplies P with its half of the V tile of stage `at` and computes the scores of
    /// the half after next, which `spent` gives its registers to, the next half's `scores` become P. `add`: 0 where the
    /// product starts anew, `flush` where it ends.
    ///
    /// # Safety
    /// As [`walk`]; `HALF` is the half that P belongs to, and also the one of the stage's K tile that the scores are of.
    #[inline(always)]
    unsafe fn half<const HALF: u32>(&mut self, at: Cursor<STAGES>, scores: &mut Scores, spent: Scores, add: u32, flush: bool) -> Scores {
        // SAFETY: forwarded from the caller.
        unsafe {
            wgmma::fence();
            let product = issue_pv::<HALF>(&self.probabilities, self.shared.v_tile(at), self.product.take(), add);
            let pending = issue_qk::<HALF>(self.q, self.shared.k_tile(at), spent);
            wgmma::commit();
            self.softmax.part(self.never);
            self.softmax.exponentiate(scores);
            settle(scores, self.never);
            wgmma::wait::<0>();
            self.product = product.landed();
            let mut next = pending.landed();
            self.keys.apply::<HALF>(&mut next, self.shared.key_scales(), at);
            self.hand_over(scores, flush);
            (self.old, self.moved) = self.softmax.advance(&next);
            next
        }
    }

    /// The last tile's products, and what the item's last flush takes.
    ///
    /// # Safety
    /// As [`Walk::half`]; P is the first half's, `scores` are the second's.
    #[inline(always)]
    unsafe fn last(&mut self, v: SmemAddr, mut scores: Scores, add: u32) -> ([f32; 2], PendingProduct) {
        // SAFETY: forwarded from the caller.
        unsafe {
            wgmma::fence();
            let product = issue_pv::<FIRST>(&self.probabilities, v, self.product.take(), add);
            wgmma::commit();
            self.softmax.part(self.never);
            self.softmax.exponentiate(&mut scores);
            settle(&scores, self.never);
            wgmma::wait::<0>();
            self.product = product.landed();
            self.hand_over(&scores, false);
            wgmma::fence();
            let product = issue_pv::<SECOND>(&self.probabilities, v, self.product.take(), 1);
            wgmma::commit();
            (self.factor, product)
        }
    }

    /// Between two halves: rescales the product, flushes it where that is due, and packs the next P.
    #[inline(always)]
    fn hand_over(&mut self, scores: &Scores, flush: bool) {
        if self.moved {
            let factor = self.softmax.factors(self.old);
            self.product.rescale(factor);
            self.factor = [self.factor[0] * factor[0], self.factor[1] * factor[1]];
        }
        if flush {
            self.output.flush(self.factor, &self.product);
            self.factor = [1.0; 2];
        }
        pack(scores, &mut self.probabilities);
    }
}
