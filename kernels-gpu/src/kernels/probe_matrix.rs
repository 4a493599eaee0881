//! Probe of matrices that a warp holds, of pairs of words from shared memory, and of the largest word of a warp.

use super::probe::{region, word};
use crate::abi_probe::{MATRIX_WORDS, ProbeParams};
use crate::ptx::{global, matrix, smem, special, warp};
use crate::unroll;

/// Every warp for itself. `a`: u32 `[128, 4]`: what a thread has of a 16 x 16 matrix A of f16, as a fragment of a product.
///
/// `out`: u32 `[128, 11]`. Of the warp's `[32, 4]` words: as four matrices of 8 rows of eight 16-bit elements, what the lane gets of
/// a transposing load whose rows are named in reverse; the lane's four f32 of A B + 1, where words 1 and 2 of the threads are the
/// fragments of B; the largest word 0; words 2 and 3 of the next lane.
///
/// # Safety
/// Launched with 128 threads, one block, [`crate::abi_probe::SMEM_BYTES`] and buffers of the sizes above.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_matrix(p: ProbeParams) {
    let thread = special::tid_x();
    let lane = thread % 32;
    let rows = region(0).offset((thread - lane) * 16);
    // SAFETY: a warp writes and reads its own 512 bytes; whole warps, converged; indices are inside the buffers.
    unsafe {
        let a = global::ld_nc_v4(word(p.a, thread * 4));
        smem::st_v4(rows.offset(lane * 16), a);
        warp::sync();
        let transposed = matrix::load_x4_trans(rows.offset((31 - lane) * 16));
        let mut sum = [1.0; 4];
        matrix::product_f16(&mut sum, a, [a[1], a[2]]);
        let largest = warp::max_u32(a[0]);
        let pair = smem::ld_v2_u32(rows.offset((lane + 1) % 32 * 16 + 8));
        let at = thread * MATRIX_WORDS as u32;
        unroll!(I < 4 {
            global::st_u32(word(p.out, at + I as u32), transposed[I]);
            global::st_u32(word(p.out, at + 4 + I as u32), sum[I].to_bits());
        });
        global::st_u32(word(p.out, at + 8), largest);
        unroll!(I < 2 { global::st_u32(word(p.out, at + 9 + I as u32), pair[I]); });
    }
}
