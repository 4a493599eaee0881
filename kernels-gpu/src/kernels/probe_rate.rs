//! What an instruction costs, alone and beside the tensor core: `probe_rate_<op>` kernels, one block on one
//! multiprocessor. `benches/benches/rates.rs` makes a table of them.
//!
//! The first warpgroups stream the instruction over 16 registers; a warpgroup is one warp for each of the four schedulers.
//! The last ones run e4m3 products until warpgroup 0 is done. Two things make the clocks mean something: the number of
//! rounds is a parameter (ptxas moves clock reads across a loop whose length it knows), and every register ends in a word
//! that is stored (it removes chains that nobody reads).

use super::probe::{barrier_at, region, word};
use crate::abi_probe::{RATE_BATCH, RATE_CHAINS, RATE_E4M3_ROUNDS, RATE_THREADS, RATE_WARPS, REGION_BYTES, RateParams};
use crate::layout::descriptor_k128;
use crate::ptx::wgmma::{self, with_indices};
use crate::ptx::{barrier, cvt, fence, global, int, math, smem, special, warp};

/// e4m3 codes of 1/8 to 15/64: any finite operands do, the time of a product does not depend on them.
const CODES: u32 = 0x2721_2420;
/// Bits of 1.0: registers start between 1 and 2.
const ONE: u32 = 0x3f80_0000;
/// Barrier of warpgroup 1, where it runs products.
const MIDDLE: u32 = 1;
/// Barrier of warpgroup 2.
const LAST: u32 = 2;

/// One instruction on each of the 16 registers, with the next two as further operands.
macro_rules! round {
    ($x:ident, $op:ident: $($i:literal)*) => {
        $($x[$i] = $op($x[$i], $x[($i + 1) % 16], $x[($i + 2) % 16]);)*
    };
}

/// The sum of an accumulator.
macro_rules! total {
    (($acc:ident) $($i:literal)*) => { $acc[0] $(+ $acc[$i])* };
}

/// Streams `op` for `trips` times `ROUNDS` rounds. Returns the clocks and a word that depends on every register.
#[inline(always)]
fn stream<const ROUNDS: u32>(trips: u32, op: impl Fn(u32, u32, u32) -> u32) -> (u32, u32) {
    let mut x = [0u32; RATE_CHAINS as usize];
    let mut i = 0;
    while i < RATE_CHAINS {
        x[i as usize] = ONE + (special::tid_x() << 8 | i << 17);
        i += 1;
    }
    let start = special::clock32();
    let mut left = trips;
    while left != 0 {
        left = special::no_unroll(left) - 1;
        let mut round = 0;
        while round < ROUNDS {
            round!(x, op: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
            round += 1;
        }
    }
    let clocks = special::clock32().wrapping_sub(start);
    let mut fold = 0;
    let mut i = 0;
    while i < RATE_CHAINS as usize {
        fold ^= x[i].rotate_left(i as u32);
        i += 1;
    }
    (clocks, fold)
}

/// Runs batches of products until `done` is set or `limit` batches are through. Returns the clocks, the number of
/// products and a word that depends on the accumulator.
///
/// # Safety
/// All 128 threads of warpgroup 1 or 2 call it, converged; regions 0 and 1 are filled and handed over.
#[inline(always)]
unsafe fn products(warpgroup: u32, limit: u32) -> (u32, u32, u32) {
    let (da, db) = (descriptor_k128(region(0).0), descriptor_k128(region(1).0));
    let mut acc = [0f32; 64];
    let mut batches = 0;
    let start = special::clock32();
    // SAFETY: the accumulator is left alone between its products and the wait. The warps agree on the end by a barrier of
    // their own, because a product needs all four of them; they meet there while the products run, so it costs no time.
    unsafe {
        loop {
            wgmma::fence();
            wgmma::e4m3_m64n128k32_ss(&mut acc, da, db, 1);
            wgmma::e4m3_m64n128k32_ss(&mut acc, da + 2, db + 2, 1);
            wgmma::e4m3_m64n128k32_ss(&mut acc, da + 4, db + 4, 1);
            wgmma::e4m3_m64n128k32_ss(&mut acc, da + 6, db + 6, 1);
            wgmma::e4m3_m64n128k32_ss(&mut acc, da, db, 1);
            wgmma::e4m3_m64n128k32_ss(&mut acc, da + 2, db + 2, 1);
            wgmma::e4m3_m64n128k32_ss(&mut acc, da + 4, db + 4, 1);
            wgmma::e4m3_m64n128k32_ss(&mut acc, da + 6, db + 6, 1);
            wgmma::commit();
            batches += 1;
            let done = smem::ld_volatile_u32(barrier_at(0)) | (batches == limit) as u32;
            let end = if warpgroup == 1 { barrier::any::<MIDDLE, 128>(done) } else { barrier::any::<LAST, 128>(done) };
            wgmma::wait::<0>();
            if end {
                break;
            }
        }
        wgmma::keep(&mut acc);
    }
    let clocks = special::clock32().wrapping_sub(start);
    (clocks, batches * RATE_BATCH, with_indices!(64, total(acc)).to_bits())
}

/// The body of every entry: deals out the roles and stores what they return.
///
/// # Safety
/// Launched with one block of [`RATE_THREADS`], [`crate::abi_probe::SMEM_BYTES`] and parameters as their fields say.
#[inline(always)]
unsafe fn run<const ROUNDS: u32>(p: &RateParams, op: impl Fn(u32, u32, u32) -> u32) {
    let tid = special::tid_x();
    // SAFETY: every warp of the block is here, converged, and the writes to shared memory end before the barrier. The role
    // is uniform in a warpgroup. Each warp and thread stores to words of its own.
    unsafe {
        let warpgroup = warp::shfl_idx_u32(tid / 128, 0);
        let mut at = 0;
        while at < 2 * REGION_BYTES {
            smem::st_v4(region(0).offset(at + tid * 16), [CODES; 4]);
            at += RATE_THREADS * 16;
        }
        smem::st_u32_if(barrier_at(0), 0, (tid == 0) as u32);
        fence::proxy_async_shared();
        barrier::sync_all();
        let (clocks, count, fold) = if warpgroup < p.op_warpgroups {
            let (clocks, fold) = stream::<ROUNDS>(p.trips, op);
            if warpgroup == 0 {
                smem::st_volatile_u32(barrier_at(0), 1);
            }
            (clocks, 0, fold)
        } else if warpgroup >= 1 && warpgroup + p.wgmma_warpgroups >= 3 {
            // Without warpgroup 0 nobody ends the products but their number.
            products(warpgroup, if p.op_warpgroups == 0 { p.trips } else { u32::MAX })
        } else {
            (0, 0, 0)
        };
        let first = (special::lane_id() == 0) as u32;
        global::st_u32_if(word(p.out, tid / 32), clocks, first);
        global::st_u32_if(word(p.out, RATE_WARPS as u32 + tid / 32), count, first);
        global::st_u32(word(p.out, 2 * RATE_WARPS as u32 + tid), fold);
    }
}

/// An entry for an operation on the bits of three registers, so many rounds a trip; all are described by [`RateParams`].
macro_rules! entry {
    ($(#[$doc:meta])* $name:ident, $rounds:expr, |$x:ident, $y:pat_param, $z:pat_param| $op:expr) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// Launched with one block of [`RATE_THREADS`], [`crate::abi_probe::SMEM_BYTES`] and parameters as their fields say.
        #[unsafe(no_mangle)]
        pub unsafe extern "gpu-kernel" fn $name(p: RateParams) {
            // SAFETY: the caller's obligation.
            unsafe { run::<{ $rounds }>(&p, #[inline(always)] |$x: u32, $y: u32, $z: u32| -> u32 { $op }) };
        }
    };
}

/// The f32 with these bits.
#[inline(always)]
fn f(bits: u32) -> f32 {
    f32::from_bits(bits)
}

entry!(
    /// `ex2.approx.ftz.f32`.
    probe_rate_ex2_f32,
    1,
    |x, _, _| math::ex2(f(x)).to_bits()
);
entry!(
    /// `cvt.rn.satfinite.e4m3x2.f32`, two a register. ptxas merges the two halves within the conversion, as in the attention,
    /// except of the values that the loop carries on, which cost a PRMT each: hence more rounds.
    probe_rate_cvt_e4m3x2,
    RATE_E4M3_ROUNDS,
    |x, y, z| cvt::e4m3x4(f(x), f(y), f(z), f(x))
);
entry!(
    /// `cvt.rn.f16x2.f32`.
    probe_rate_cvt_f16x2,
    1,
    |x, y, _| cvt::f16x2(f(x), f(y))
);
entry!(
    /// `max.f32`.
    probe_rate_max_f32,
    1,
    |x, y, _| math::fmax(f(x), f(y)).to_bits()
);
entry!(
    /// `fma.rn.ftz.f32`.
    probe_rate_fma_f32,
    1,
    |x, y, z| math::fma(f(x), f(y), f(z)).to_bits()
);
entry!(
    /// `add.f32`.
    probe_rate_add_f32,
    1,
    |x, y, _| (f(x) + f(y)).to_bits()
);
entry!(
    /// `prmt.b32`.
    probe_rate_prmt,
    1,
    |x, y, _| int::prmt(x, y, 0x5140)
);
entry!(
    /// `mad.lo.u32`.
    probe_rate_mad_u32,
    1,
    |x, y, z| int::mad(x, y, z)
);
entry!(
    /// `lop3.b32`.
    probe_rate_lop3,
    1,
    |x, y, z| int::xor3(x, y, z)
);
