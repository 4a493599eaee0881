//! Probes of the matrix products: accumulators as the threads hold them. One block of one warpgroup.
//!
//! Operand tiles come as images of shared memory (rows of 128 bytes, 128-byte swizzle applied by the host), so that these
//! probes say nothing about TMA. All run four products along K, the descriptors advancing by 2.

use super::probe::{copy_in, region};
use crate::abi_probe::{ProbeParams, REGION_BYTES};
use crate::layout::descriptor_k128;
use crate::ptx::wgmma::{self, with_indices};
use crate::ptx::{barrier, cvt, fence, global, special};

/// Bytes of an image of 64 rows.
const ROWS64: u32 = 64 * 128;
/// Bytes of an image of 128 rows.
const ROWS128: u32 = 128 * 128;

macro_rules! dump {
    (($acc:ident, $out:expr, $n:literal) $($i:literal)*) => {{
        let row = ($out as *mut f32).add(special::tid_x() as usize * $n);
        row.write($acc[0]);
        $(row.add($i).write($acc[$i]);)*
    }};
}

/// Makes the images that threads wrote readable by the products.
///
/// # Safety
/// Called by all threads after their writes.
#[inline(always)]
unsafe fn hand_over() {
    // SAFETY: a fence and a block barrier.
    unsafe {
        fence::proxy_async_shared();
        barrier::sync_all();
    }
}

/// Four words of A of this thread for the 32 bytes number `step` along K. `a`: u32 `[128, 4, 4]`.
///
/// # Safety
/// The array has that size.
#[inline(always)]
unsafe fn a_registers(a: u64, step: u32) -> [u32; 4] {
    // SAFETY: the caller's obligation.
    unsafe { global::ld_nc_v4(a + (special::tid_x() * 4 + step) as u64 * 16) }
}

/// e4m3, both operands in shared memory. `a`: image of 64 rows; `b`: image of 128 rows; `x`: whether the first product
/// adds to the accumulator; `y`: bits of the f32 that every accumulator register starts with.
///
/// `out`: f32 `[128, 64]`, thread by thread.
///
/// # Safety
/// Launched with 128 threads, one block, [`crate::abi_probe::SMEM_BYTES`] and buffers of the sizes above.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_wgmma_e4m3_ss(p: ProbeParams) {
    // SAFETY: the images are handed over before the products, and the accumulator is read after the wait.
    unsafe {
        copy_in(region(0), p.a, ROWS64);
        copy_in(region(1), p.b, ROWS128);
        hand_over();
        let (da, db) = (descriptor_k128(region(0).0), descriptor_k128(region(1).0));
        let mut acc = [f32::from_bits(p.y as u32); 64];
        wgmma::fence();
        wgmma::e4m3_m64n128k32_ss(&mut acc, da, db, p.x as u32);
        wgmma::e4m3_m64n128k32_ss(&mut acc, da + 2, db + 2, 1);
        wgmma::e4m3_m64n128k32_ss(&mut acc, da + 4, db + 4, 1);
        wgmma::e4m3_m64n128k32_ss(&mut acc, da + 6, db + 6, 1);
        wgmma::commit();
        wgmma::wait::<0>();
        wgmma::keep(&mut acc);
        with_indices!(64, dump(acc, p.out, 64));
    }
}

/// bf16, both operands in shared memory: K = 64. Parameters and output as [`probe_wgmma_e4m3_ss`].
///
/// # Safety
/// As [`probe_wgmma_e4m3_ss`].
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_wgmma_bf16_ss(p: ProbeParams) {
    // SAFETY: as in probe_wgmma_e4m3_ss.
    unsafe {
        copy_in(region(0), p.a, ROWS64);
        copy_in(region(1), p.b, ROWS128);
        hand_over();
        let (da, db) = (descriptor_k128(region(0).0), descriptor_k128(region(1).0));
        let mut acc = [f32::from_bits(p.y as u32); 64];
        wgmma::fence();
        wgmma::bf16_m64n128k16_ss(&mut acc, da, db, p.x as u32);
        wgmma::bf16_m64n128k16_ss(&mut acc, da + 2, db + 2, 1);
        wgmma::bf16_m64n128k16_ss(&mut acc, da + 4, db + 4, 1);
        wgmma::bf16_m64n128k16_ss(&mut acc, da + 6, db + 6, 1);
        wgmma::commit();
        wgmma::wait::<0>();
        wgmma::keep(&mut acc);
        with_indices!(64, dump(acc, p.out, 64));
    }
}

/// bf16, both operands in shared memory, 32 columns: K = 64. `b`: image of 32 rows; `out`: f32 `[128, 16]`; the rest as
/// [`probe_wgmma_e4m3_ss`].
///
/// # Safety
/// As [`probe_wgmma_e4m3_ss`].
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_wgmma_bf16_ss_n32(p: ProbeParams) {
    // SAFETY: as in probe_wgmma_e4m3_ss.
    unsafe {
        copy_in(region(0), p.a, ROWS64);
        copy_in(region(1), p.b, 32 * 128);
        hand_over();
        let (da, db) = (descriptor_k128(region(0).0), descriptor_k128(region(1).0));
        let mut acc = [f32::from_bits(p.y as u32); 16];
        wgmma::fence();
        wgmma::bf16_m64n32k16_ss(&mut acc, da, db, p.x as u32);
        wgmma::bf16_m64n32k16_ss(&mut acc, da + 2, db + 2, 1);
        wgmma::bf16_m64n32k16_ss(&mut acc, da + 4, db + 4, 1);
        wgmma::bf16_m64n32k16_ss(&mut acc, da + 6, db + 6, 1);
        wgmma::commit();
        wgmma::wait::<0>();
        wgmma::keep(&mut acc);
        with_indices!(16, dump(acc, p.out, 16));
    }
}

/// bf16, both operands in shared memory, 64 columns: K = 64. `b`: image of 64 rows; `out`: f32 `[128, 32]`; the rest as
/// [`probe_wgmma_e4m3_ss`].
///
/// # Safety
/// As [`probe_wgmma_e4m3_ss`].
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_wgmma_bf16_ss_n64(p: ProbeParams) {
    // SAFETY: as in probe_wgmma_e4m3_ss.
    unsafe {
        copy_in(region(0), p.a, ROWS64);
        copy_in(region(1), p.b, ROWS64);
        hand_over();
        let (da, db) = (descriptor_k128(region(0).0), descriptor_k128(region(1).0));
        let mut acc = [f32::from_bits(p.y as u32); 32];
        wgmma::fence();
        wgmma::bf16_m64n64k16_ss(&mut acc, da, db, p.x as u32);
        wgmma::bf16_m64n64k16_ss(&mut acc, da + 2, db + 2, 1);
        wgmma::bf16_m64n64k16_ss(&mut acc, da + 4, db + 4, 1);
        wgmma::bf16_m64n64k16_ss(&mut acc, da + 6, db + 6, 1);
        wgmma::commit();
        wgmma::wait::<0>();
        wgmma::keep(&mut acc);
        with_indices!(32, dump(acc, p.out, 32));
    }
}

/// e4m3, A in registers. `a`: u32 `[128, 4, 4]`: thread, step along K, register; the rest as [`probe_wgmma_e4m3_ss`].
///
/// # Safety
/// As [`probe_wgmma_e4m3_ss`].
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_wgmma_e4m3_rs_n128(p: ProbeParams) {
    // SAFETY: as in probe_wgmma_e4m3_ss; the A registers are written before the fence and not after.
    unsafe {
        copy_in(region(1), p.b, ROWS128);
        hand_over();
        let a = [a_registers(p.a, 0), a_registers(p.a, 1), a_registers(p.a, 2), a_registers(p.a, 3)];
        let db = descriptor_k128(region(1).0);
        let mut acc = [f32::from_bits(p.y as u32); 64];
        wgmma::fence();
        wgmma::e4m3_m64n128k32_rs(&mut acc, a[0], db, p.x as u32);
        wgmma::e4m3_m64n128k32_rs(&mut acc, a[1], db + 2, 1);
        wgmma::e4m3_m64n128k32_rs(&mut acc, a[2], db + 4, 1);
        wgmma::e4m3_m64n128k32_rs(&mut acc, a[3], db + 6, 1);
        wgmma::commit();
        wgmma::wait::<0>();
        wgmma::keep(&mut acc);
        with_indices!(64, dump(acc, p.out, 64));
    }
}

/// e4m3, A in registers, 136 columns. `b`: image of 136 rows padded to [`REGION_BYTES`]; `out`: f32 `[128, 68]`; the rest
/// as [`probe_wgmma_e4m3_rs_n128`].
///
/// # Safety
/// As [`probe_wgmma_e4m3_ss`].
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_wgmma_e4m3_rs_n136(p: ProbeParams) {
    // SAFETY: as in probe_wgmma_e4m3_rs_n128.
    unsafe {
        copy_in(region(1), p.b, REGION_BYTES);
        hand_over();
        let a = [a_registers(p.a, 0), a_registers(p.a, 1), a_registers(p.a, 2), a_registers(p.a, 3)];
        let db = descriptor_k128(region(1).0);
        let mut acc = [f32::from_bits(p.y as u32); 68];
        wgmma::fence();
        wgmma::e4m3_m64n136k32_rs(&mut acc, a[0], db, p.x as u32);
        wgmma::e4m3_m64n136k32_rs(&mut acc, a[1], db + 2, 1);
        wgmma::e4m3_m64n136k32_rs(&mut acc, a[2], db + 4, 1);
        wgmma::e4m3_m64n136k32_rs(&mut acc, a[3], db + 6, 1);
        wgmma::commit();
        wgmma::wait::<0>();
        wgmma::keep(&mut acc);
        with_indices!(68, dump(acc, p.out, 68));
    }
}

/// Packs 16 accumulator registers from `$at` (a constant) as the four A registers of 32 tokens.
macro_rules! pack {
    ($s:ident, $at:literal, $scale:expr) => {
        [
            cvt::e4m3x4($s[$at] * $scale, $s[$at + 1] * $scale, $s[$at + 4] * $scale, $s[$at + 5] * $scale),
            cvt::e4m3x4($s[$at + 2] * $scale, $s[$at + 3] * $scale, $s[$at + 6] * $scale, $s[$at + 7] * $scale),
            cvt::e4m3x4($s[$at + 8] * $scale, $s[$at + 9] * $scale, $s[$at + 12] * $scale, $s[$at + 13] * $scale),
            cvt::e4m3x4($s[$at + 10] * $scale, $s[$at + 11] * $scale, $s[$at + 14] * $scale, $s[$at + 15] * $scale),
        ]
    };
}

/// The chain of the attention without its softmax: S = A B^T, P = e4m3(S * scale) packed in place, O = P C, with `c` a
/// transposed tile in the order of [`crate::layout::v_tile_offset`]. `a`: image of 64 rows; `b`, `c`: 16 KiB each;
/// `x`: bits of the f32 scale.
///
/// `out`: f32 `[128, 64]`, thread by thread: the accumulator of O.
///
/// # Safety
/// As [`probe_wgmma_e4m3_ss`].
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_wgmma_chain(p: ProbeParams) {
    // SAFETY: as in the probes above; P is packed after the wait for S and before the fence of O's products.
    unsafe {
        copy_in(region(0), p.a, ROWS64);
        copy_in(region(1), p.b, ROWS128);
        copy_in(region(2), p.c, ROWS128);
        hand_over();
        let (da, db, dc) = (descriptor_k128(region(0).0), descriptor_k128(region(1).0), descriptor_k128(region(2).0));
        let mut s = [0f32; 64];
        wgmma::fence();
        wgmma::e4m3_m64n128k32_ss(&mut s, da, db, 0);
        wgmma::e4m3_m64n128k32_ss(&mut s, da + 2, db + 2, 1);
        wgmma::e4m3_m64n128k32_ss(&mut s, da + 4, db + 4, 1);
        wgmma::e4m3_m64n128k32_ss(&mut s, da + 6, db + 6, 1);
        wgmma::commit();
        wgmma::wait::<0>();
        wgmma::keep(&mut s);
        let scale = f32::from_bits(p.x as u32);
        let packed = [pack!(s, 0, scale), pack!(s, 16, scale), pack!(s, 32, scale), pack!(s, 48, scale)];
        let mut o = [0f32; 64];
        wgmma::fence();
        wgmma::e4m3_m64n128k32_rs(&mut o, packed[0], dc, 0);
        wgmma::e4m3_m64n128k32_rs(&mut o, packed[1], dc + 2, 1);
        wgmma::e4m3_m64n128k32_rs(&mut o, packed[2], dc + 4, 1);
        wgmma::e4m3_m64n128k32_rs(&mut o, packed[3], dc + 6, 1);
        wgmma::commit();
        wgmma::wait::<0>();
        wgmma::keep(&mut o);
        with_indices!(64, dump(o, p.out, 64));
    }
}
