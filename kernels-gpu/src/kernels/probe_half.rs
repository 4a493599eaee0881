//! Probes of packed f16 arithmetic, of products with f16 accumulators, of the preparation of Q rows and of asking a barrier.

use super::probe::{barrier_at, copy_in, region, word};
use crate::abi_probe::{HALF_WORDS, ProbeParams, THREADS};
use crate::layout::descriptor_k128;
use crate::ptx::wgmma::{self, with_indices};
use crate::ptx::{barrier, fence, global, half, mbarrier, smem, special};
use crate::tile::shrink::shrink_row;

/// Packed arithmetic, one pair of halves a thread and round. `a`, `b`, `c`: u32 `[count]`, `count` a multiple of 128.
///
/// `out`: u32 `[count, 15]`: a b + c, the same clamped to 0..1, a - b, a b, |a| + b, the larger, the smaller, 2^a,
/// a > b ? c : a, whether any a > b, the low half of a twice, its high half twice, the low halves of a and b, their high
/// halves; the e4m3 codes of a and b.
///
/// # Safety
/// Launched with 128 threads, one block, and buffers of the sizes above.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_half(p: ProbeParams) {
    let mut done = 0;
    while done < p.count as u32 {
        let i = done + special::tid_x();
        // SAFETY: indices are below `count`.
        unsafe {
            let load = |base| global::ld_nc_u32(word(base, i));
            let (a, b, c) = (load(p.a), load(p.b), load(p.c));
            let mut at = i * HALF_WORDS as u32;
            let mut put = |x| {
                global::st_u32(word(p.out, at), x);
                at += 1;
            };
            put(half::fma2(a, b, c));
            put(half::fma2_sat(a, b, c));
            put(half::sub2(a, b));
            put(half::mul2(a, b));
            put(half::add_abs2(a, b));
            put(half::max2(a, b));
            put(half::min2(a, b));
            put(half::ex2_2(a));
            put(half::select_gt2(a, b, c, a));
            put(half::any_gt2(a, b));
            put(half::low2(a));
            put(half::high2(a));
            put(half::lows(a, b));
            put(half::highs(a, b));
            put(half::e4m3x4(a, b));
        }
        done += THREADS;
    }
}

macro_rules! dump {
    (($acc:ident, $out:expr, $n:literal) $($i:literal)*) => {{
        let row = ($out as *mut u32).add(special::tid_x() as usize * $n);
        row.write($acc[0]);
        $(row.add($i).write($acc[$i]);)*
    }};
}

/// e4m3 with f16 accumulators, N = 64. `a`, `b`: images of 64 rows; `x`: whether the first product adds to the accumulator;
/// `y`: what every accumulator register starts with.
///
/// `out`: u32 `[128, 16]`, thread by thread.
///
/// # Safety
/// Launched with 128 threads, one block, [`crate::abi_probe::SMEM_BYTES`] and buffers of the sizes above.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_wgmma_e4m3_f16(p: ProbeParams) {
    // SAFETY: the images are handed over before the products, and the accumulator is read after the wait.
    unsafe {
        copy_in(region(0), p.a, 64 * 128);
        copy_in(region(1), p.b, 64 * 128);
        fence::proxy_async_shared();
        barrier::sync_all();
        let (da, db) = (descriptor_k128(region(0).0), descriptor_k128(region(1).0));
        let mut acc = [p.y as u32; 16];
        wgmma::fence();
        wgmma::e4m3_f16_m64n64k32_ss(&mut acc, da, db, p.x as u32);
        wgmma::e4m3_f16_m64n64k32_ss(&mut acc, da + 2, db + 2, 1);
        wgmma::e4m3_f16_m64n64k32_ss(&mut acc, da + 4, db + 4, 1);
        wgmma::e4m3_f16_m64n64k32_ss(&mut acc, da + 6, db + 6, 1);
        wgmma::commit();
        wgmma::wait::<0>();
        wgmma::keep(&mut acc);
        with_indices!(16, dump(acc, p.out, 16));
    }
}

/// e4m3 with f16 accumulators, N = 256. `b`: image of 256 rows; `out`: u32 `[128, 64]`; the rest as [`probe_wgmma_e4m3_f16`].
///
/// # Safety
/// As [`probe_wgmma_e4m3_f16`].
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_wgmma_e4m3_f16_n256(p: ProbeParams) {
    // SAFETY: as above; the image of B ends in the last region.
    unsafe {
        copy_in(region(0), p.a, 64 * 128);
        copy_in(region(1), p.b, 256 * 128);
        fence::proxy_async_shared();
        barrier::sync_all();
        let (da, db) = (descriptor_k128(region(0).0), descriptor_k128(region(1).0));
        let mut acc = [p.y as u32; 64];
        wgmma::fence();
        wgmma::e4m3_f16_m64n256k32_ss(&mut acc, da, db, p.x as u32);
        wgmma::e4m3_f16_m64n256k32_ss(&mut acc, da + 2, db + 2, 1);
        wgmma::e4m3_f16_m64n256k32_ss(&mut acc, da + 4, db + 4, 1);
        wgmma::e4m3_f16_m64n256k32_ss(&mut acc, da + 6, db + 6, 1);
        wgmma::commit();
        wgmma::wait::<0>();
        wgmma::keep(&mut acc);
        with_indices!(64, dump(acc, p.out, 64));
    }
}

/// Shrinks the 128 rows of a Q tile, one a thread. `a`: image of 128 rows.
///
/// `out`: f32 `[128]`, the factors that undo it; then the image as it is then.
///
/// # Safety
/// Launched with 128 threads, one block, [`crate::abi_probe::SMEM_BYTES`] and buffers of the sizes above.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_shrink(p: ProbeParams) {
    let row = special::tid_x();
    // SAFETY: each thread has a row of its own; barriers stand between the copies and the rows.
    unsafe {
        copy_in(region(0), p.a, 128 * 128);
        barrier::sync_all();
        let undo = shrink_row(region(0), row);
        global::st_u32(word(p.out, row), undo.to_bits());
        barrier::sync_all();
        let mut chunk = 0;
        while chunk < 8 {
            let at = (chunk * THREADS + row) * 16;
            global::st_v4(p.out + 512 + at as u64, smem::ld_v4(region(0).offset(at)));
            chunk += 1;
        }
    }
}

/// Asks a barrier of one arrival without waiting. `out`: u32 `[128, 4]`: phase 0 before the arrival, after it, phase 1 then,
/// and the phase before the first.
///
/// # Safety
/// Launched with 128 threads, one block, [`crate::abi_probe::SMEM_BYTES`] and a buffer of the size above.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_test_wait(p: ProbeParams) {
    let (tid, bar) = (special::tid_x(), barrier_at(0));
    // SAFETY: the barrier is initialised before anyone asks; block barriers stand around the arrival.
    unsafe {
        mbarrier::init_if(bar, 1, (tid == 0) as u32);
        mbarrier::init_fence();
        barrier::sync_all();
        let before = [mbarrier::test_wait(bar, 0), mbarrier::test_wait(bar, 1)];
        barrier::sync_all();
        mbarrier::arrive_if(bar, (tid == 0) as u32);
        barrier::sync_all();
        let after = [mbarrier::test_wait(bar, 0), mbarrier::test_wait(bar, 1)];
        global::st_v4(p.out + tid as u64 * 16, [before[0] as u32, after[0] as u32, after[1] as u32, before[1] as u32]);
    }
}
