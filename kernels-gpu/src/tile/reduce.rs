//! Sums over a block of eight warps, in a fixed order: the same bits every time.

use crate::config::select::value_bias::{SUM_BYTES, THREADS};
use crate::ptx::{SmemAddr, barrier, smem, warp};
use crate::unroll;

const _: () = assert!(THREADS == 256 && SUM_BYTES == 64, "the eight sums are read as four vectors");

#[inline(always)]
fn halves(x: f64) -> (u32, u32) {
    (x.to_bits() as u32, (x.to_bits() >> 32) as u32)
}

#[inline(always)]
fn joined(low: u32, high: u32) -> f64 {
    f64::from_bits(low as u64 | (high as u64) << 32)
}

/// The sum of every thread's `x`, for every thread. First the lanes of each warp, pairwise, then the warps in order.
///
/// # Safety
/// All 256 threads call it, converged; `scratch` is [`SUM_BYTES`] bytes of shared memory, 16-byte aligned, that nothing
/// else uses in this kernel (another sum included).
#[inline(always)]
pub unsafe fn block_sum(x: f64, scratch: SmemAddr, thread: u32) -> f64 {
    let mut sum = x;
    unroll!(B in [16 8 4 2 1] {
        let (low, high) = halves(sum);
        // SAFETY: whole warps, converged.
        sum += unsafe { joined(warp::shfl_bfly_u32(low, B as u32), warp::shfl_bfly_u32(high, B as u32)) };
    });
    let (low, high) = halves(sum);
    let first = thread.is_multiple_of(32) as u32;
    let slot = scratch.offset(thread / 32 * 8);
    let mut total = 0.0;
    // SAFETY: eight bytes a warp, written by its first lane; the barrier orders the reads after the writes.
    unsafe {
        smem::st_u32_if(slot, low, first);
        smem::st_u32_if(slot.offset(4), high, first);
        barrier::sync_all();
        unroll!(I < 4 {
            let [a, b, c, d] = smem::ld_v4(scratch.offset(16 * I as u32));
            total = total + joined(a, b) + joined(c, d);
        });
    }
    total
}
