//! Matrix products of a warpgroup (`wgmma`): 64 rows, accumulators in f32 or packed f16 spread over the registers of 128 threads.
//!
//! Order of a product: [`fence`], any number of products, [`commit`], [`wait`], [`keep`], then read the accumulator.
//! Which element register i of a thread holds: [`crate::layout::accumulator_row`], [`crate::layout::accumulator_col`].
//! Operand tiles in shared memory are K-major with rows of 128 bytes and the 128-byte swizzle, named by a descriptor
//! ([`crate::layout::descriptor_k128`]); +2 on a descriptor moves 32 bytes along K.
//!
//! Accumulators are arrays indexed with constants only, so that they stay in registers.

use core::arch::asm;

/// Makes registers and accumulators written so far visible to the products that follow.
/// PTX: `wgmma.fence.sync.aligned`. Called by a warpgroup, converged, before its first product and after changing an
/// accumulator or a register operand.
///
/// # Safety
/// - All 128 threads of the warpgroup call it, converged.
#[inline(always)]
pub unsafe fn fence() {
    // SAFETY: the caller's obligation.
    unsafe { asm!("wgmma.fence.sync.aligned;") };
}

/// Closes the group of products issued so far. PTX: `wgmma.commit_group.sync.aligned`. Called by a warpgroup.
///
/// # Safety
/// - All 128 threads of the warpgroup call it, converged.
#[inline(always)]
pub unsafe fn commit() {
    // SAFETY: the caller's obligation.
    unsafe { asm!("wgmma.commit_group.sync.aligned;") };
}

/// Waits until at most `N` of the latest groups are still running. PTX: `wgmma.wait_group.sync.aligned N`. Called by a warpgroup.
///
/// # Safety
/// - All 128 threads of the warpgroup call it, converged.
#[inline(always)]
pub unsafe fn wait<const N: u32>() {
    const { assert!(N <= 7) };
    // SAFETY: the caller's obligation.
    unsafe { asm!("wgmma.wait_group.sync.aligned {};", const N) };
}

/// Accumulator registers of one thread: N / 2 of f32, N / 4 of packed f16.
pub trait Accumulator {
    /// See [`keep`].
    fn keep(&mut self);
}

/// Ties reads of an accumulator to this place: a product's registers change until [`wait`], and without this the compiler
/// may move arithmetic on them above it (the wait names no register). Emits nothing but a comment. Called by any thread.
#[inline(always)]
pub fn keep<A: Accumulator>(acc: &mut A) {
    acc.keep();
}

/// Hands the indices of a 16-, 64- or 68-register accumulator to another macro: `with_indices!(64, then(args))` expands to
/// `then! { (args) 1 2 .. 63 }`. Index 0 is left to the other macro, which often wants no comma before it.
macro_rules! with_indices {
    (16, $then:ident $args:tt) => {
        $then! { $args 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 }
    };
    (32, $then:ident $args:tt) => {
        $then! { $args 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 }
    };
    (64, $then:ident $args:tt) => {
        $then! { $args 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31
        32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63 }
    };
    (68, $then:ident $args:tt) => {
        $then! { $args 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31
        32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63 64 65 66 67 }
    };
}

pub(crate) use with_indices;

macro_rules! keep_impl {
    (($ty:ty, $n:literal) $($i:literal)*) => {
        impl Accumulator for [$ty; $n] {
            #[inline(always)]
            fn keep(&mut self) {
                // SAFETY: an assembly comment. Not `pure`: its place after the wait is the purpose.
                unsafe {
                    asm!(
                        concat!("// {0}", $(" {", $i, "}"),*),
                        inout(reg32) self[0],
                        $(inout(reg32) self[$i],)*
                        options(nostack)
                    );
                }
            }
        }
    };
}
with_indices!(16, keep_impl(u32, 16));
with_indices!(16, keep_impl(f32, 16));
with_indices!(32, keep_impl(f32, 32));
with_indices!(64, keep_impl(u32, 64));
with_indices!(64, keep_impl(f32, 64));
with_indices!(68, keep_impl(f32, 68));

/// One product with both operands in shared memory.
macro_rules! product_ss {
    (($(#[$doc:meta])* $name:ident, $ty:ty, $n:literal, $instruction:literal, $modifiers:literal) $($i:literal)*) => {
        $(#[$doc])*
        #[inline(always)]
        pub unsafe fn $name(acc: &mut [$ty; $n], da: u64, db: u64, scale_d: u32) {
            // SAFETY: the caller's obligation. Every accumulator register is tied in place, because the product
            // adds to it and goes on writing it until the wait.
            unsafe {
                asm!(
                    concat!(
                        "{{ .reg .pred p; setp.ne.u32 p, {scale_d}, 0; ", $instruction, " {{{0}", $(", {", $i, "}",)*
                        "}}, {da}, {db}, p, ", $modifiers, "; }}"
                    ),
                    inout(reg32) acc[0],
                    $(inout(reg32) acc[$i],)*
                    da = in(reg64) da,
                    db = in(reg64) db,
                    scale_d = in(reg32) scale_d,
                );
            }
        }
    };
}

/// One product with A in registers and B in shared memory.
macro_rules! product_rs {
    (($(#[$doc:meta])* $name:ident, $n:literal, $instruction:literal, $modifiers:literal) $($i:literal)*) => {
        $(#[$doc])*
        #[inline(always)]
        pub unsafe fn $name(acc: &mut [f32; $n], a: [u32; 4], db: u64, scale_d: u32) {
            let [a0, a1, a2, a3] = a;
            // SAFETY: the caller's obligation. Every accumulator register is tied in place, because the product
            // adds to it and goes on writing it until the wait.
            unsafe {
                asm!(
                    concat!(
                        "{{ .reg .pred p; setp.ne.u32 p, {scale_d}, 0; ", $instruction, " {{{0}", $(", {", $i, "}",)*
                        "}}, {{{a0}, {a1}, {a2}, {a3}}}, {db}, p, ", $modifiers, "; }}"
                    ),
                    inout(reg32) acc[0],
                    $(inout(reg32) acc[$i],)*
                    a0 = in(reg32) a0,
                    a1 = in(reg32) a1,
                    a2 = in(reg32) a2,
                    a3 = in(reg32) a3,
                    db = in(reg64) db,
                    scale_d = in(reg32) scale_d,
                );
            }
        }
    };
}

with_indices!(
    64,
    product_ss(
        /// D (64 x 128, f32) = A (64 x 32, e4m3, shared) * B^T (128 x 32, e4m3, shared) + D where `scale_d` is not 0.
        ///
        /// PTX: `wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 d, a-desc, b-desc, p, 1, 1`. Called by a warpgroup.
        ///
        /// # Safety
        /// - All 128 threads of the warpgroup call it, converged, with the same descriptors and `scale_d`, after [`fence`].
        /// - The descriptors name tiles inside the block's shared memory, written and visible to the async proxy, and not
        ///   overwritten before the [`wait`] for this product.
        /// - `acc` is not touched before that wait, except by further products.
        e4m3_m64n128k32_ss,
        f32,
        64,
        "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3",
        "1, 1"
    )
);
with_indices!(
    16,
    product_ss(
        /// D (64 x 64, f16) = A (64 x 32, e4m3, shared) * B^T (64 x 32, e4m3, shared) + D where `scale_d` is not 0.
        ///
        /// Register 2 i + h of a thread holds elements 4 i + 2 h and the next of the f32 form, packed: half the registers
        /// and half the register traffic, at 11 bits of mantissa and a largest value of 65,504.
        ///
        /// PTX: `wgmma.mma_async.sync.aligned.m64n64k32.f16.e4m3.e4m3 d, a-desc, b-desc, p, 1, 1`. Called by a warpgroup.
        ///
        /// # Safety
        /// As [`e4m3_m64n128k32_ss`].
        e4m3_f16_m64n64k32_ss,
        u32,
        16,
        "wgmma.mma_async.sync.aligned.m64n64k32.f16.e4m3.e4m3",
        "1, 1"
    )
);
with_indices!(
    64,
    product_ss(
        /// D (64 x 256, f16) = A (64 x 32, e4m3, shared) * B^T (256 x 32, e4m3, shared) + D where `scale_d` is not 0. Accumulators
        /// packed as in [`e4m3_f16_m64n64k32_ss`].
        ///
        /// PTX: `wgmma.mma_async.sync.aligned.m64n256k32.f16.e4m3.e4m3 d, a-desc, b-desc, p, 1, 1`. Called by a warpgroup.
        ///
        /// # Safety
        /// As [`e4m3_m64n128k32_ss`].
        e4m3_f16_m64n256k32_ss,
        u32,
        64,
        "wgmma.mma_async.sync.aligned.m64n256k32.f16.e4m3.e4m3",
        "1, 1"
    )
);
with_indices!(
    64,
    product_ss(
        /// D (64 x 128, f32) = A (64 x 16, bf16, shared) * B^T (128 x 16, bf16, shared) + D where `scale_d` is not 0.
        ///
        /// PTX: `wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 d, a-desc, b-desc, p, 1, 1, 0, 0` (both K-major).
        /// Called by a warpgroup.
        ///
        /// # Safety
        /// As [`e4m3_m64n128k32_ss`].
        bf16_m64n128k16_ss,
        f32,
        64,
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16",
        "1, 1, 0, 0"
    )
);
with_indices!(
    16,
    product_ss(
        /// D (64 x 32, f32) = A (64 x 16, bf16, shared) * B^T (32 x 16, bf16, shared) + D where `scale_d` is not 0.
        ///
        /// PTX: `wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 d, a-desc, b-desc, p, 1, 1, 0, 0` (both K-major).
        /// Called by a warpgroup.
        ///
        /// # Safety
        /// As [`e4m3_m64n128k32_ss`].
        bf16_m64n32k16_ss,
        f32,
        16,
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16",
        "1, 1, 0, 0"
    )
);
with_indices!(
    32,
    product_ss(
        /// D (64 x 64, f32) = A (64 x 16, bf16, shared) * B^T (64 x 16, bf16, shared) + D where `scale_d` is not 0.
        ///
        /// PTX: `wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 d, a-desc, b-desc, p, 1, 1, 0, 0` (both K-major).
        /// Called by a warpgroup.
        ///
        /// # Safety
        /// As [`e4m3_m64n128k32_ss`].
        bf16_m64n64k16_ss,
        f32,
        32,
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16",
        "1, 1, 0, 0"
    )
);
with_indices!(
    64,
    product_rs(
        /// D (64 x 128, f32) = A (64 x 32, e4m3, registers) * B^T (128 x 32, e4m3, shared) + D where `scale_d` is not 0.
        ///
        /// Which elements of A a thread gives: [`crate::layout::a_fragment_e4m3`].
        ///
        /// PTX: `wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 d, {a0, a1, a2, a3}, b-desc, p, 1, 1`. Called by a warpgroup.
        ///
        /// # Safety
        /// As [`e4m3_m64n128k32_ss`]; and the registers of `a` are not written before the wait (ptxas serialises the products
        /// where it cannot prove that, and says so as C7513).
        e4m3_m64n128k32_rs,
        64,
        "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3",
        "1, 1"
    )
);
with_indices!(
    68,
    product_rs(
        /// D (64 x 136, f32) = A (64 x 32, e4m3, registers) * B^T (136 x 32, e4m3, shared) + D where `scale_d` is not 0.
        ///
        /// Eight rows of ones behind a 128-row tile of B make columns 128..136 of D the row sums of A.
        ///
        /// PTX: `wgmma.mma_async.sync.aligned.m64n136k32.f32.e4m3.e4m3 d, {a0, a1, a2, a3}, b-desc, p, 1, 1`. Called by a warpgroup.
        ///
        /// # Safety
        /// As [`e4m3_m64n128k32_rs`].
        e4m3_m64n136k32_rs,
        68,
        "wgmma.mma_async.sync.aligned.m64n136k32.f32.e4m3.e4m3",
        "1, 1"
    )
);
