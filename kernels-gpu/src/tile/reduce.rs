//! The value term: mean and deviation of the value norms of a request and KV head, and what they make of each key block.
//!
//! Sums are f64, of distances from the request's first norm, added in a fixed order, so that the same norms always give the same bits.
//! The first norm is one of those that the deviation is of: its distance d from the mean makes the variance at least d^2 / n, so the
//! cancellation in `squares - sum^2 / n` costs no more than a factor of n, some 17 bits of 53.

use super::strip::{Span, Strip};
use crate::abi::SelectParams;
use crate::config::RUNS;
use crate::config::select::smem::MOMENT_BYTES;
use crate::config::select::{CONSUMER_BARRIER, CONSUMER_THREADS, CONSUMER_WARPS};
use crate::layout::pages::{clamped, counted_runs};
use crate::ptx::{SmemAddr, barrier, math, smem, warp};
use crate::unroll;

/// Added to the deviation before the division (stem.md, section 1).
const DEVIATION_EPS: f32 = 1e-6;

/// Sum of distances from a pivot, and of their squares.
#[derive(Clone, Copy)]
struct Moments {
    sum: f64,
    squares: f64,
}

impl Moments {
    /// Of every `step`-th of `count` norms at `norms`, from the `first` on.
    ///
    /// # Safety
    /// The norms lie in readable memory, and there is one.
    #[inline(always)]
    unsafe fn of(norms: *const f32, count: i32, pivot: f64, first: i32, step: i32) -> Self {
        // SAFETY: the index is held inside the norms.
        let norm = |u: i32| unsafe { *norms.offset(clamped(u, count) as isize) };
        let mut all = Self { sum: 0.0, squares: 0.0 };
        let mut u = first;
        while u < count {
            // All eight are under way before the first is used.
            let mut batch = [0.0; 8];
            unroll!(I < 8 { batch[I] = norm(u + I as i32 * step); });
            unroll!(I < 8 {
                let x = if u + I as i32 * step < count { batch[I] as f64 - pivot } else { 0.0 };
                all.sum += x;
                all.squares += x * x;
            });
            u += 8 * step;
        }
        all
    }

    /// Of all lanes together, the same in every lane.
    ///
    /// # Safety
    /// A whole warp, converged.
    #[inline(always)]
    unsafe fn of_lanes(self) -> Self {
        let mut all = self;
        unroll!(B in [16 8 4 2 1] {
            // SAFETY: forwarded.
            let exchanged = |x: f64| unsafe {
                let (low, high) = halves(x);
                joined(warp::shfl_bfly_u32(low, B as u32), warp::shfl_bfly_u32(high, B as u32))
            };
            all = Self { sum: all.sum + exchanged(all.sum), squares: all.squares + exchanged(all.squares) };
        });
        all
    }

    #[inline(always)]
    unsafe fn store_if(self, at: SmemAddr, on: u32) {
        let (sum, squares) = (halves(self.sum), halves(self.squares));
        // SAFETY: forwarded from the callers.
        unsafe {
            smem::st_u32_if(at, sum.0, on);
            smem::st_u32_if(at.offset(4), sum.1, on);
            smem::st_u32_if(at.offset(8), squares.0, on);
            smem::st_u32_if(at.offset(12), squares.1, on);
        }
    }

    #[inline(always)]
    unsafe fn load(at: SmemAddr) -> Self {
        // SAFETY: forwarded from the callers.
        let [a, b, c, d] = unsafe { smem::ld_v4(at) };
        Self { sum: joined(a, b), squares: joined(c, d) }
    }
}

#[inline(always)]
fn halves(x: f64) -> (u32, u32) {
    (x.to_bits() as u32, (x.to_bits() >> 32) as u32)
}

#[inline(always)]
fn joined(low: u32, high: u32) -> f64 {
    f64::from_bits(low as u64 | (high as u64) << 32)
}

/// Norms of four runs, read at once.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct Four([f32; 4]);

/// The value term of one request and KV head.
#[derive(Clone, Copy)]
pub struct ValueTerm {
    norms: *const f32,
    /// Runs that enter mean and deviation; at least 1.
    counted: i32,
    mean: f64,
    divisor: f32,
    lambda: f32,
}

impl ValueTerm {
    /// Mean and deviation over the strip's request. `scratch` holds an entry of [`MOMENT_BYTES`] for every consumer warp.
    ///
    /// # Safety
    /// All consumer threads call it, converged, with their index among them; a barrier of theirs follows before the next call;
    /// the host has checked the norms, which are complete.
    #[inline(always)]
    pub unsafe fn new(p: &SelectParams, strip: &Strip, scratch: SmemAddr, thread: u32) -> Self {
        // SAFETY: a strip has a row; the runs of a request lie inside the array; a request with queries has keys. Each warp stores
        // one entry, and the barrier orders the loads after the stores.
        unsafe {
            let (_, request) = strip.block(p, 0);
            let counted = counted_runs(&request, p.count_empty_runs != 0);
            let first = (strip.kv_head(p) as i64 * p.total_kb as i64 + request.kb_start as i64) * RUNS as i64;
            let norms = (p.run_norms as *const f32).offset(first as isize);
            let pivot = *norms as f64;
            let own = Moments::of(norms, counted, pivot, thread as i32, CONSUMER_THREADS as i32).of_lanes();
            own.store_if(scratch.offset(thread / 32 * MOMENT_BYTES), thread.is_multiple_of(32) as u32);
            barrier::sync::<CONSUMER_BARRIER, CONSUMER_THREADS>();
            let lane = thread % 32;
            let all = Moments::load(scratch.offset(lane % CONSUMER_WARPS * MOMENT_BYTES));
            // The upper lanes hold copies, which count for nothing.
            let zero = Moments { sum: 0.0, squares: 0.0 };
            let all = if lane < CONSUMER_WARPS { all } else { zero }.of_lanes();
            let distance = all.sum / counted as f64;
            let squares = all.squares - all.sum * distance;
            let variance = if (counted > 1) & (squares > 0.0) { squares / (counted - 1) as f64 } else { 0.0 };
            let divisor = math::sqrt_rn(variance as f32) + DEVIATION_EPS;
            Self { norms, counted, mean: pivot + distance, divisor, lambda: p.lambda }
        }
    }

    /// Writes the terms of a span's key blocks, f32 one after another.
    ///
    /// # Safety
    /// All consumer threads call it; `bias` is shared memory for as many terms, which nobody reads until a barrier.
    #[inline(always)]
    pub unsafe fn write(&self, span: Span, bias: SmemAddr, thread: u32) {
        let mut j = thread as i32;
        while j < span.count {
            let at = (span.first + j) * RUNS as i32;
            let mut sum = 0.0;
            unroll!(H < 2 {
                // SAFETY: the block is one of the request's, with room for all its runs, which are aligned for vectors.
                let Four(norms) = unsafe { *self.norms.offset((at + 4 * H as i32) as isize).cast::<Four>() };
                unroll!(I < 4 {
                    // The difference is taken in f64: norms that hardly differ would lose it in f32.
                    let above = (norms[I] as f64 - self.mean) as f32;
                    // A NaN counts as nothing, like everything below the mean.
                    sum += if (self.counted > at + (4 * H + I) as i32) & (above > 0.0) { above } else { 0.0 };
                });
            });
            let z = sum / self.divisor;
            let z = if z > 0.0 { z } else { 0.0 };
            let term = self.lambda * (z / RUNS as f32);
            // SAFETY: one word of the span.
            unsafe { smem::st_f32(bias.offset(j as u32 * 4), term) };
            j += CONSUMER_THREADS as i32;
        }
    }
}

const _: () = assert!(CONSUMER_WARPS <= 32 && MOMENT_BYTES == 16);
