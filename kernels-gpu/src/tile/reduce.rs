//! The value term: mean and deviation of the value norms of a request and KV head, and what they make of each key block.
//!
//! Sums are f64, merged in a fixed order (Chan, Golub and LeVeque), so that the same norms always give the same bits.

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

/// Count, mean, and sum of the squared distances from the mean.
#[derive(Clone, Copy)]
struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Moments {
    /// Of every `step`-th of `count` norms at `norms`, from the `first` on.
    ///
    /// # Safety
    /// The norms lie in readable memory, and there is one.
    #[inline(always)]
    unsafe fn of(norms: *const f32, count: i32, first: i32, step: i32) -> Self {
        // Distances are taken from a value of the thread's own: the mean then loses nothing to cancellation, however far from
        // zero the norms are and however little they differ.
        // SAFETY: the index is held inside the norms.
        let pivot = unsafe { *norms.offset(clamped(first, count) as isize) } as f64;
        let (mut n, mut sum, mut squares) = (0.0, 0.0, 0.0);
        let mut u = first;
        while u < count {
            // SAFETY: as above.
            let x = unsafe { *norms.offset(u as isize) } as f64 - pivot;
            n += 1.0;
            sum += x;
            squares += x * x;
            u += step;
        }
        let mean = if n > 0.0 { sum / n } else { 0.0 };
        let squares = squares - sum * mean;
        Self { count: n, mean: pivot + mean, squares: if squares > 0.0 { squares } else { 0.0 } }
    }

    /// Of both together.
    #[inline(always)]
    fn merged(self, other: Self) -> Self {
        let count = self.count + other.count;
        let share = if count > 0.0 { other.count / count } else { 0.0 };
        let distance = other.mean - self.mean;
        Self { count, mean: self.mean + distance * share, squares: self.squares + other.squares + distance * distance * self.count * share }
    }

    /// Those of lane `lane ^ mask`.
    ///
    /// # Safety
    /// A whole warp, converged.
    #[inline(always)]
    unsafe fn exchanged(self, mask: u32) -> Self {
        // SAFETY: forwarded.
        let exchanged = |x: f64| unsafe {
            let (low, high) = halves(x);
            joined(warp::shfl_bfly_u32(low, mask), warp::shfl_bfly_u32(high, mask))
        };
        Self { count: exchanged(self.count), mean: exchanged(self.mean), squares: exchanged(self.squares) }
    }

    /// Of the first `2 * 16` or fewer lanes together, right in lane 0 (elsewhere merged in another order).
    ///
    /// # Safety
    /// A whole warp, converged.
    #[inline(always)]
    unsafe fn of_lanes(self) -> Self {
        let mut all = self;
        // SAFETY: forwarded.
        unroll!(B in [16 8 4 2 1] { all = all.merged(unsafe { all.exchanged(B as u32) }); });
        all
    }

    #[inline(always)]
    unsafe fn store_if(self, at: SmemAddr, on: u32) {
        let [count, mean, squares] = [halves(self.count), halves(self.mean), halves(self.squares)];
        // SAFETY: forwarded from the callers.
        unsafe {
            smem::st_u32_if(at, count.0, on);
            smem::st_u32_if(at.offset(4), count.1, on);
            smem::st_u32_if(at.offset(8), mean.0, on);
            smem::st_u32_if(at.offset(12), mean.1, on);
            smem::st_u32_if(at.offset(16), squares.0, on);
            smem::st_u32_if(at.offset(20), squares.1, on);
        }
    }

    #[inline(always)]
    unsafe fn load(at: SmemAddr) -> Self {
        // SAFETY: forwarded from the callers.
        let ([a, b, c, d], [e, f, ..]) = unsafe { (smem::ld_v4(at), smem::ld_v4(at.offset(16))) };
        Self { count: joined(a, b), mean: joined(c, d), squares: joined(e, f) }
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
        // SAFETY: a strip has a row; the runs of a request lie inside the array; a request with queries has keys. Each warp stores one entry, and the
        // barrier orders the loads after the stores.
        unsafe {
            let (_, request) = strip.block(p, 0);
            let counted = counted_runs(&request, p.count_empty_runs != 0);
            let first = (strip.kv_head(p) as i64 * p.total_kb as i64 + request.kb_start as i64) * RUNS as i64;
            let norms = (p.run_norms as *const f32).offset(first as isize);
            let own = Moments::of(norms, counted, thread as i32, CONSUMER_THREADS as i32).of_lanes();
            own.store_if(scratch.offset(thread / 32 * MOMENT_BYTES), thread.is_multiple_of(32) as u32);
            barrier::sync::<CONSUMER_BARRIER, CONSUMER_THREADS>();
            let lane = thread % 32;
            let mut all = Moments::load(scratch.offset(lane % CONSUMER_WARPS * MOMENT_BYTES));
            // The upper lanes hold copies, which count for nothing.
            all.count = if lane < CONSUMER_WARPS { all.count } else { 0.0 };
            all.squares = if lane < CONSUMER_WARPS { all.squares } else { 0.0 };
            let all = all.of_lanes();
            let variance = if counted > 1 { all.squares / (counted - 1) as f64 } else { 0.0 };
            let divisor = math::sqrt_rn(variance as f32) + DEVIATION_EPS;
            let (low, high) = halves(all.mean);
            Self {
                norms,
                counted,
                mean: joined(warp::shfl_idx_u32(low, 0), warp::shfl_idx_u32(high, 0)),
                divisor: f32::from_bits(warp::shfl_idx_u32(divisor.to_bits(), 0)),
                lambda: p.lambda,
            }
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
            let mut sum = 0.0;
            unroll!(U < 8 {
                let u = (span.first + j) * RUNS as i32 + U as i32;
                // SAFETY: the index is held inside the runs.
                let norm = unsafe { *self.norms.offset(clamped(u, self.counted) as isize) };
                // The difference is taken in f64: norms that hardly differ would lose it in f32.
                let z = (norm as f64 - self.mean) as f32 / self.divisor;
                // A NaN counts as nothing, like everything below the mean.
                sum += if (u < self.counted) & (z > 0.0) { z } else { 0.0 };
            });
            // SAFETY: one word of the span.
            unsafe { smem::st_f32(bias.offset(j as u32 * 4), self.lambda * (sum / RUNS as f32)) };
            j += CONSUMER_THREADS as i32;
        }
    }
}

const _: () = assert!(CONSUMER_WARPS <= 32 && MOMENT_BYTES >= 24 && MOMENT_BYTES.is_multiple_of(16));
