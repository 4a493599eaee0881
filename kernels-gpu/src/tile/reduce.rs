//! The value term: mean and deviation of the value norms of a request and KV head, and what they make of each key block.
//!
//! Sums are f64, of distances from the request's first norm, added in a fixed order, so that the same norms always give the same bits.
//! The first norm is one of those that the deviation is of: its distance d from the mean makes the variance at least d^2 / n, so the
//! cancellation in `squares - sum^2 / n` costs no more than a factor of n, some 17 bits of 53.
//!
//! One warp does it, beside the products.

use super::strip::{Span, Strip};
use crate::abi::SelectParams;
use crate::config::RUNS;
use crate::config::select::smem::MOMENTS_BYTES;
use crate::config::select::{MOMENTS_HEADS, NORM_BYTES, NORM_STAGES};
use crate::layout::pages::counted_runs;
use crate::ptx::{SmemAddr, cp_async, global, math, smem, special, warp};
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
    /// Of the norms that a lane takes: fours and fours again, of `count` norms at `norms`. They go through `stages`, so that copies are
    /// under way for which there are no registers.
    ///
    /// # Safety
    /// There is a norm; the norms are those of whole blocks of a request, aligned for vectors, in readable memory that nobody writes;
    /// all lanes of a warp call it with the same norms; nobody else uses the stages.
    #[inline(always)]
    unsafe fn of(norms: u64, count: i32, pivot: f64, stages: SmemAddr) -> Self {
        let lane = special::tid_x_again() % 32;
        let own = stages.offset(lane * 16);
        let mut all = Self { sum: 0.0, squares: 0.0 };
        // The same number of times in all lanes: they exchange what they have right after.
        let mut u = 4 * lane as i32;
        let mut left = count;
        while left > 0 {
            unroll!(S in [0 1 2 3 4 5] {
                let at = u + S as i32 * FOURS;
                let at = if at < count { at as u32 } else { 0 };
                // SAFETY: four norms of a block, which has room for all its runs.
                unsafe { cp_async::copy_16(own.offset(S as u32 * NORM_BYTES), norms + at as u64 * 4, 16) };
            });
            // SAFETY: the thread's own copies, complete then; it has read them when it starts the next.
            unsafe {
                cp_async::commit();
                cp_async::wait::<0>();
            }
            let mut stage = 0;
            while stage < NORM_STAGES && left > 0 {
                stage = special::no_unroll(stage);
                // SAFETY: as above.
                let batch = unsafe { smem::ld_v4(own.offset(stage * NORM_BYTES)) };
                unroll!(I < 4 {
                    let x = if u + (I as i32) < count { f32::from_bits(batch[I]) as f64 - pivot } else { 0.0 };
                    all.sum += x;
                    all.squares += x * x;
                });
                u += FOURS;
                left -= FOURS;
                stage += 1;
            }
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
}

#[inline(always)]
fn halves(x: f64) -> (u32, u32) {
    (x.to_bits() as u32, (x.to_bits() >> 32) as u32)
}

#[inline(always)]
fn joined(low: u32, high: u32) -> f64 {
    f64::from_bits(low as u64 | (high as u64) << 32)
}

/// 1 / n to an f64's last digit or two; anything for 0. Two steps of Newton's double the digits that f32 gives twice. A division takes
/// more registers than the threads have that need it.
#[inline(always)]
fn inverse(n: i32) -> f64 {
    let near = math::rcp(n as f32) as f64;
    let nearer = near * (2.0 - n as f64 * near);
    nearer * (2.0 - n as f64 * nearer)
}

/// Norms of a stage: four a lane.
const FOURS: i32 = 4 * 32;

/// The value term of one request and KV head.
#[derive(Clone, Copy)]
pub struct ValueTerm {
    norms: u64,
    /// Runs that enter mean and deviation; at least 1.
    counted: i32,
    mean: f64,
    divisor: f32,
    lambda: f32,
}

impl ValueTerm {
    /// Makes `known` say that no moments are.
    ///
    /// # Safety
    /// A whole warp calls it, converged; [`MOMENTS_HEADS`] times [`MOMENTS_BYTES`] of shared memory are its own.
    #[inline(always)]
    pub unsafe fn forget(known: SmemAddr) {
        let lane = special::tid_x_again() % 32;
        // SAFETY: forwarded.
        unsafe {
            smem::st_v4_if(known.offset(lane % MOMENTS_HEADS * MOMENTS_BYTES), [0; 4], (lane < MOMENTS_HEADS) as u32);
            warp::sync();
        }
    }

    /// Mean and deviation over the strip's request. The norms go through `stages`, unless the moments are `known` from a strip of the same
    /// request and KV head.
    ///
    /// # Safety
    /// A whole warp calls it, converged; [`NORM_STAGES`] times [`NORM_BYTES`] of shared memory are its own, and what [`ValueTerm::forget`]
    /// says; the host has checked the norms, which are complete.
    #[inline(always)]
    pub unsafe fn new(p: &SelectParams, strip: &Strip, stages: SmemAddr, known: SmemAddr) -> Self {
        // SAFETY: a strip has a row; the runs of a request lie inside the array; a request with queries has keys.
        unsafe {
            let (block, request) = strip.block(p, 0);
            let kv_head = strip.kv_head(p) as u32;
            let known = known.offset(kv_head % MOMENTS_HEADS * MOMENTS_BYTES);
            let name = block.request as u32 * p.hq as u32 + kv_head + 1;
            let counted = counted_runs(&request, p.count_empty_runs != 0);
            let first = (kv_head as i64 * p.total_kb as i64 + request.kb_start as i64) * RUNS as i64;
            let norms = p.run_norms.wrapping_add((first * 4) as u64);
            let [low, high, divisor, whose] = smem::ld_v4(known);
            if warp::any((whose == name) as u32) {
                return Self { norms, counted, mean: joined(low, high), divisor: f32::from_bits(divisor), lambda: p.lambda };
            }
            let pivot = f32::from_bits(global::ld_u32(norms)) as f64;
            let all = Moments::of(norms, counted, pivot, stages).of_lanes();
            let distance = all.sum * inverse(counted);
            let squares = all.squares - all.sum * distance;
            let variance = if (counted > 1) & (squares > 0.0) { squares * inverse(counted - 1) } else { 0.0 };
            let divisor = math::sqrt_rn(variance as f32) + DEVIATION_EPS;
            let mean = pivot + distance;
            let (low, high) = halves(mean);
            // All lanes have looked.
            warp::sync();
            smem::st_v4_if(known, [low, high, divisor.to_bits(), name], special::tid_x_again().is_multiple_of(32) as u32);
            warp::sync();
            Self { norms, counted, mean, divisor, lambda: p.lambda }
        }
    }

    /// Writes the terms of a span's key blocks, f32 one after another.
    ///
    /// # Safety
    /// As [`ValueTerm::new`]; `bias` is shared memory for as many terms, which nobody reads until a barrier.
    #[inline(always)]
    pub unsafe fn write(&self, span: Span, stages: SmemAddr, bias: SmemAddr) {
        // The run that is block `j`'s first; of a block that is not there, the span's first.
        let run = |j: i32| (span.first + if j < span.count { j } else { 0 }) * RUNS as i32;
        let own = |base: i32| stages.offset(special::tid_x_again() % 32 * 16 + base as u32 / 32 % BLOCK_STAGES * (2 * NORM_BYTES));
        let start = |base: i32| {
            let from = self.norms + run(base + (special::tid_x_again() % 32) as i32) as u32 as u64 * 4;
            // SAFETY: the block is one of the request's, with room for all its runs, which are aligned for vectors; the thread has read
            // what it copied there before.
            unsafe {
                cp_async::copy_16(own(base), from, 16);
                cp_async::copy_16(own(base).offset(NORM_BYTES), from + 16, 16);
                cp_async::commit();
            }
        };
        let mut base = 0;
        while base < 32 * (BLOCK_STAGES as i32 - 1) {
            start(base);
            base += 32;
        }
        // The same number of times in all lanes: a barrier follows.
        base = 0;
        while base < span.count {
            start(base + 32 * (BLOCK_STAGES as i32 - 1));
            let j = base + (special::tid_x_again() % 32) as i32;
            let (on, at) = (j < span.count, run(j));
            // SAFETY: the thread's own copies, of which the first two are complete.
            let norms = unsafe {
                cp_async::wait::<{ BLOCK_STAGES - 1 }>();
                [smem::ld_v4(own(base)), smem::ld_v4(own(base).offset(NORM_BYTES))]
            };
            let mut sum = 0.0;
            unroll!(H < 2 {
                let norms = norms[H].map(f32::from_bits);
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
            unsafe { smem::st_u32_if(bias.offset(j as u32 * 4), term.to_bits(), on as u32) };
            base += 32;
        }
        // SAFETY: what is still under way.
        unsafe { cp_async::wait::<0>() };
    }
}

/// Blocks of a lane whose norms are under way or in use: each takes two stages.
const BLOCK_STAGES: u32 = NORM_STAGES / 2;

const _: () = assert!(RUNS.is_multiple_of(4) && NORM_STAGES == 6);
