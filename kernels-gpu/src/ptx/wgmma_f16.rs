//! Products with f16 accumulators: two to a register, half the registers and half the instructions on what comes out.
//!
//! Order of a product and operand tiles as in [`super::wgmma`]. Register `2 j + h` of a thread holds, of its row `h` (of two:
//! [`crate::layout::accumulator_row`]), columns `8 j + 2 (thread % 4)` in the low half and the next in the high half.

use super::wgmma::with_indices;
use core::arch::asm;

macro_rules! keep {
    (() $($i:literal)*) => {
        /// Ties reads of a 64-register accumulator to this place: see [`super::wgmma::keep`]. Called by any thread.
        #[inline(always)]
        pub fn keep(acc: &mut [u32; 64]) {
            // SAFETY: an assembly comment. Not `pure`: its place after the wait is the purpose.
            unsafe {
                asm!(concat!("// {0}", $(" {", $i, "}"),*), inout(reg32) acc[0], $(inout(reg32) acc[$i],)* options(nostack));
            }
        }
    };
}
with_indices!(64, keep());

macro_rules! product_ss {
    (() $($i:literal)*) => {
        /// D (64 x 256, f16) = A (64 x 32, e4m3, shared) * B^T (256 x 32, e4m3, shared) + D where `ADD`.
        ///
        /// PTX: `wgmma.mma_async.sync.aligned.m64n256k32.f16.e4m3.e4m3 d, a-desc, b-desc, p, 1, 1`. Called by a warpgroup.
        ///
        /// # Safety
        /// As [`super::wgmma::e4m3_m64n128k32_ss`].
        #[inline(always)]
        pub unsafe fn e4m3_m64n256k32_ss<const ADD: u32>(acc: &mut [u32; 64], da: u64, db: u64) {
            // SAFETY: the caller's obligation. Every accumulator register is tied in place, because the product adds to
            // it and goes on writing it until the wait.
            unsafe {
                asm!(
                    concat!(
                        "{{ .reg .pred p; setp.ne.u32 p, {add}, 0; wgmma.mma_async.sync.aligned.m64n256k32.f16.e4m3.e4m3 {{{0}",
                        $(", {", $i, "}",)*
                        "}}, {da}, {db}, p, 1, 1; }}"
                    ),
                    inout(reg32) acc[0],
                    $(inout(reg32) acc[$i],)*
                    da = in(reg64) da,
                    db = in(reg64) db,
                    add = const ADD,
                );
            }
        }
    };
}
with_indices!(64, product_ss());
