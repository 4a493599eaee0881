//! Probe of the sums of an octet.

use super::probe::{load_f32, region, word};
use crate::abi_probe::{ProbeParams, REGION_BYTES, THREADS};
use crate::config::select::WEIGHTS_BYTES;
use crate::layout::octet::{BYTES, PART_BYTES, block, chunk};
use crate::layout::swizzle_128;
use crate::ptx::{global, smem, special, warp};
use crate::tile::octet::{Weights, sum_octet};
use crate::unroll;

/// Sums octets, a warp each. `a`: codes, e4m3 `[count, 8, 8, 128]` (octet, block, token, dimension); `b`: scales, f32 `[count, 8, 8]`.
///
/// `out`: bf16 `[count, 8, 128]`.
///
/// # Safety
/// Launched with 128 threads, one block, [`crate::abi_probe::SMEM_BYTES`] and buffers of the sizes above.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_octet(p: ProbeParams) {
    let (thread, lane) = (special::tid_x(), special::tid_x() % 32);
    let stage = region(0).offset(thread / 32 * BYTES);
    let mut octet = thread / 32;
    while octet < p.count as u32 {
        // SAFETY: a warp writes and reads a stage and weights of its own; whole warps, converged; indices are below `count`.
        unsafe {
            warp::sync();
            let mut done = lane * 16;
            while done < BYTES {
                let codes = global::ld_nc_v4(p.a + octet as u64 * BYTES as u64 + done as u64);
                smem::st_v4(stage.offset(swizzle_128(done as usize) as u32), codes);
                done += 512;
            }
            warp::sync();
            let first = octet * 64 + lane / 4 * 8 + lane % 4;
            let weights =
                Weights::new(region(2).offset(thread / 32 * WEIGHTS_BYTES), lane, [load_f32(p.b, first), load_f32(p.b, first + 4)]);
            sum_octet(
                |part| stage.offset(part * PART_BYTES),
                weights,
                lane,
                |part, values| {
                    let to = (octet * 8 + block(lane, part)) * 64 + chunk(lane) * 8;
                    unroll!(H < 2 { global::st_v4(word(p.out, to + 4 * H as u32), values[H]); });
                },
            );
        }
        octet += THREADS / 32;
    }
}

const _: () = assert!(THREADS / 32 * BYTES <= 2 * REGION_BYTES && REGION_BYTES.is_multiple_of(1024));
const _: () = assert!(THREADS / 32 * WEIGHTS_BYTES <= REGION_BYTES && WEIGHTS_BYTES.is_multiple_of(16));
