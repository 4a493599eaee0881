//! `select_value_bias`: z-scores of the run norms of one (request, KV head), averaged per key block.
//!
//! One block takes one request and KV head: mean, then deviation, then the blocks. Sums are f64 and in a fixed order, so
//! that the same norms always give the same bias.

use crate::abi::{Request, ValueBiasParams};
use crate::config::RUNS;
use crate::config::select::value_bias::{SUM_BYTES, THREADS};
use crate::layout::pages::{clamped, counted_runs};
use crate::ptx::{math, smem, special};
use crate::tile::reduce::block_sum;
use crate::unroll;

/// Added to the deviation before the division (stem.md, section 1).
const DEVIATION_EPS: f32 = 1e-6;

/// Entry: see [`ValueBiasParams`] for the grid and the tensors.
///
/// # Safety
/// Launched with the grid, block size and shared memory of [`crate::config::select::value_bias`], on buffers whose
/// extents the host has checked.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn select_value_bias(p: ValueBiasParams) {
    // SAFETY: forwarded from the host.
    unsafe { value_bias(&p) }
}

/// The norms of one request and KV head.
#[derive(Clone, Copy)]
struct Norms {
    first: *const f32,
    /// Runs that enter mean and deviation; at least 1.
    counted: i32,
}

impl Norms {
    /// The sum of `term` over all counted runs, for every thread.
    ///
    /// # Safety
    /// All threads of the block call it; `scratch` is unused; the runs lie inside their array.
    #[inline(always)]
    unsafe fn sum(self, term: impl Fn(f64) -> f64, scratch: u32, thread: u32) -> f64 {
        let mut sum = 0.0;
        let mut base = 0;
        while base < self.counted {
            let u = base + thread as i32;
            // SAFETY: the index is held inside the runs.
            let x = term(unsafe { *self.first.offset(clamped(u, self.counted) as isize) } as f64);
            sum += if u < self.counted { x } else { 0.0 };
            base += THREADS as i32;
        }
        // SAFETY: all threads of the block are here together; each sum has its own scratch.
        unsafe { block_sum(sum, smem::base().offset(scratch), thread) }
    }
}

/// The kernel's body.
///
/// # Safety
/// As the entry; called by all threads of the block.
#[inline(always)]
unsafe fn value_bias(p: &ValueBiasParams) {
    let thread = special::tid_x();
    // SAFETY: the grid is as large as the batch; blocks of a request lie inside the arrays.
    unsafe {
        let request = *(p.requests as *const Request).add(special::ctaid_x() as usize);
        let counted = counted_runs(&request, p.count_empty_runs != 0);
        if counted <= 0 {
            return;
        }
        let place = special::ctaid_y() as isize * p.total_kb as isize + request.kb_start as isize;
        let first = (p.run_norms as *const f32).offset(place * RUNS as isize);
        let norms = Norms { first, counted };
        let mean = norms.sum(|x| x, 0, thread) / counted as f64;
        let squares = norms.sum(|x| (x - mean) * (x - mean), SUM_BYTES, thread);
        let variance = if counted > 1 { squares / (counted - 1) as f64 } else { 0.0 };
        let divisor = math::sqrt_rn(variance as f32) + DEVIATION_EPS;
        let mut j = thread as i32;
        while j < request.kb_len {
            let mut sum = 0.0;
            unroll!(U < 8 {
                let u = j * RUNS as i32 + U as i32;
                // The difference is taken in f64: norms that hardly differ would lose it in f32.
                let z = (*first.offset(u as isize) as f64 - mean) as f32 / divisor;
                // A NaN counts as nothing, like everything below the mean.
                sum += if (u < counted) & (z > 0.0) { z } else { 0.0 };
            });
            *(p.v_bias as *mut f32).offset(place + j as isize) = p.lambda * (sum / RUNS as f32);
            j += THREADS as i32;
        }
    }
}
