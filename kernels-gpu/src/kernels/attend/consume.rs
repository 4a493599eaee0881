//! A consumer warpgroup: its 64 rows of every item, from the main loop to the output.

use super::Shared;
use super::walk::walk;
use crate::abi::AttendParams;
use crate::pipeline::key_scales::{KeyScales, RowScales};
use crate::pipeline::ring::Cursor;
use crate::pipeline::work::{Place, Slot, item};
use crate::ptx::{SmemAddr, math, smem, special, warp, wgmma};
use crate::tile::epilogue::{RowPair, store_lse, store_rows};
use crate::tile::mma::{FIRST, Output, PendingProduct, PendingScores, SECOND, Scores, issue_qk, q_rows};
use crate::tile::softmax::OnlineSoftmax;

/// Bounds of a row's scale in f16.
const LARGEST_SCALE: f32 = 60_000.0;
const SMALLEST_SCALE: f32 = 1.0 / 16_777_216.0;
const LN_2: f32 = core::f32::consts::LN_2;

/// A consumer warpgroup, over all items of the block: 64 rows of each.
///
/// # Safety
/// All threads of the warpgroup call it converged, on the host-checked parameters.
#[inline(always)]
pub(super) unsafe fn consume<S: KeyScales>(p: &AttendParams, shared: Shared, keys: S, wg: u32, thread: u32) {
    // SAFETY: forwarded from the caller; a slot is read between the wait for its barrier and the warp's release.
    unsafe {
        let (mut k, mut stage) = (0, 0);
        if item(p, k).is_none() {
            return;
        }
        let mut count = announced(p, shared, k, stage);
        let mut scores = issue_first(shared, wg, k, first_tile(shared, k, stage, count), [Scores::zero(), Scores::zero()]).landed();
        loop {
            let at = Cursor::at(k);
            let (mut output, mut rest);
            let mut bias = [0.0; 2];
            // Stage of the last V tile, which is given back when its product has landed.
            let mut last = None;
            if count > 0 {
                let row = tile_row(wg, thread);
                let scales = shared.scales(at).offset(4 * row);
                let scale = |at| math::fmax(math::fmin(smem::ld_f32(at), LARGEST_SCALE), SMALLEST_SCALE);
                let (softmax_scale, keys) = keys.split([scale(scales), scale(scales.offset(32))]);
                let mut softmax = OnlineSoftmax::new(softmax_scale);
                let limit = shared.slot(at).limits(p.causal != 0, row as i32);
                output = Output::zero();
                rest = walk(
                    shared,
                    keys,
                    q_rows(shared.q_tile(at), wg),
                    scores,
                    stage,
                    count,
                    thread,
                    p.reserved as u32,
                    limit,
                    &mut output,
                    &mut softmax,
                );
                bias = softmax.bias();
                last = Some(Cursor::at(stage + count));
                stage += count + 1;
            } else {
                (output, rest) = (Output::zero(), ([0.0; 2], PendingProduct::nothing()));
            }
            count = announced(p, shared, k + 1, stage);
            // Also where nothing comes, or no keys: nobody looks at the scores then, and products on a condition would be serialised.
            let pending = issue_first(shared, wg, k + 1, first_tile(shared, k + 1, stage, count), [Scores::zero(), Scores::zero()]);
            // All but the products just issued.
            wgmma::wait::<1>();
            let product = rest.1.landed();
            if let Some(at) = last {
                S::Rows::pass(shared.key_scales(), at);
                shared.kv.release(at, S::Rows::signals(thread));
            }
            part(&mut rest.0, p.reserved as u32);
            output.flush(rest.0, &product);
            write(p, shared.slot(at), &output, bias);
            scores = pending.landed();
            warp::sync();
            shared.q.release(at, special::tid_x_again().is_multiple_of(32) as u32);
            k += 1;
            if item(p, k).is_none() {
                return;
            }
        }
    }
}

/// Waits for what the first product of item `k` needs; its key blocks, none where there is no such item.
///
/// # Safety
/// Called by whole warps, converged; `stage` is where the item's keys start.
#[inline(always)]
unsafe fn announced(p: &AttendParams, shared: Shared, k: u32, stage: u32) -> u32 {
    // SAFETY: forwarded from the caller.
    unsafe {
        if item(p, k).is_none() {
            return 0;
        }
        let at = Cursor::at(k);
        shared.ready.wait_full(at);
        let count = warp::shfl_idx_u32(shared.slot(at).count() as u32, 0);
        if count > 0 {
            shared.kv.wait_full(Cursor::at(stage));
        }
        count
    }
}

/// Has what depends on `factor` computed behind this point, as `OnlineSoftmax::part` does: ptxas otherwise mixes the flush with the
/// issue of the products.
///
/// # Safety
/// `never` is 0, the same in all threads.
#[inline(always)]
unsafe fn part(factor: &mut [f32; 2], never: u32) {
    if never != 0 {
        // SAFETY: does not happen. A loop, because ptxas would make predicated instructions of anything shorter.
        unsafe {
            while smem::ld_volatile_u32(smem::base()) != never {}
            *factor = [smem::ld_f32(smem::base()), smem::ld_f32(smem::base())];
        }
    }
}

/// Scores of an item's first tile, under way.
struct First(PendingScores, PendingScores);

impl First {
    /// Waits for them.
    ///
    /// # Safety
    /// Called by a warpgroup, converged.
    #[inline(always)]
    unsafe fn landed(self) -> [Scores; 2] {
        // SAFETY: forwarded from the caller.
        unsafe {
            wgmma::wait::<0>();
            [self.0.landed(), self.1.landed()]
        }
    }
}

/// The first K tile of item `k`, in stage `stage`. Where it has no keys, its Q tile: a copy may be writing to the stage.
#[inline(always)]
fn first_tile(shared: Shared, k: u32, stage: u32, count: u32) -> SmemAddr {
    if count > 0 { shared.k_tile(Cursor::at(stage)) } else { shared.q_tile(Cursor::at(k)) }
}

/// Issues Q K of item `k`'s first tile, whose keys are at `keys`. `reuse` gives its registers.
///
/// # Safety
/// Called by a warpgroup, converged. Unless somebody has waited for both tiles, nobody may use what comes out.
#[inline(always)]
unsafe fn issue_first(shared: Shared, wg: u32, k: u32, keys: SmemAddr, reuse: [Scores; 2]) -> First {
    let q = q_rows(shared.q_tile(Cursor::at(k)), wg);
    let [a, b] = reuse;
    // SAFETY: forwarded from the caller.
    unsafe {
        wgmma::fence();
        let first = First(issue_qk::<FIRST>(q, keys, a), issue_qk::<SECOND>(q, keys, b));
        wgmma::commit();
        first
    }
}

/// The thread's first row of the tile; its second is 8 below.
#[inline(always)]
fn tile_row(wg: u32, thread: u32) -> u32 {
    wg * 64 + thread / 32 * 16 + thread % 32 / 4
}

/// Writes the thread's rows, and their log-sum-exp if asked for.
///
/// # Safety
/// The slot is readable; the host checked `out` and `lse`.
#[inline(always)]
unsafe fn write(p: &AttendParams, slot: Slot, output: &Output, bias: [f32; 2]) {
    // SAFETY: forwarded from the caller; valid rows lie inside `out` and `lse`.
    unsafe {
        // Read again rather than kept: every register that lives through the main loop would be a spill.
        let tid = special::tid_x_again();
        let sum = [quad_sum(output.sum[0]), quad_sum(output.sum[1])];
        let row = tile_row(tid / 128 - 1, tid % 128) as i32;
        let (Place { tile_row, rows: [from, to], head }, v_scale) = (slot.place(), slot.v_scale());
        let valid = |row: i32| row >= from && row < to;
        let rows = RowPair { first: (tile_row + row) as i64, valid: [valid(row), valid(row + 8)], token_stride: p.out_rows.token };
        // A row that sees no key has sum 0: zeros, and a log-sum-exp of minus infinity.
        let factor = |sum: f32| if sum > 0.0 { v_scale * math::rcp(sum) } else { 0.0 };
        let out = p.out.wrapping_add((head as i64 * p.out_rows.head) as u64);
        store_rows(output, [factor(sum[0]), factor(sum[1])], out, rows, tid % 32);
        if p.lse != 0 && tid.is_multiple_of(4) {
            let lse = [log_sum(sum[0], bias[0]), log_sum(sum[1], bias[1])];
            store_lse(p.lse, p.hq as u32, head, rows, lse);
        }
    }
}

/// Sum over the four lanes that share a row.
///
/// # Safety
/// Called by whole warps, converged.
#[inline(always)]
unsafe fn quad_sum(x: f32) -> f32 {
    // SAFETY: forwarded from the caller.
    unsafe {
        let x = x + f32::from_bits(warp::shfl_bfly_u32(x.to_bits(), 1));
        x + f32::from_bits(warp::shfl_bfly_u32(x.to_bits(), 2))
    }
}

/// Natural log-sum-exp of a row from its sum of 2^(logit + bias); minus infinity for an empty sum.
#[inline(always)]
fn log_sum(sum: f32, bias: f32) -> f32 {
    if sum > 0.0 { (math::lg2(sum) - bias) * LN_2 } else { f32::NEG_INFINITY }
}
