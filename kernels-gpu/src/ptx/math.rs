//! One-instruction f32 arithmetic. `ftz`: subnormal inputs and results count as zero.

use super::pure32;

/// 2^x, relative error about 2^-22. PTX: `ex2.approx.ftz.f32 d, x`. Called by any thread.
#[inline(always)]
pub fn ex2(x: f32) -> f32 {
    pure32!(f32, "ex2.approx.ftz.f32 {}, {};", x)
}

/// log2(x), absolute error about 2^-22 near 1 and relative elsewhere; `lg2(0)` is minus infinity.
/// PTX: `lg2.approx.ftz.f32 d, x`. Called by any thread.
#[inline(always)]
pub fn lg2(x: f32) -> f32 {
    pure32!(f32, "lg2.approx.ftz.f32 {}, {};", x)
}

/// 1/x, error at most one unit in the last place. PTX: `rcp.approx.ftz.f32 d, x`. Called by any thread.
#[inline(always)]
pub fn rcp(x: f32) -> f32 {
    pure32!(f32, "rcp.approx.ftz.f32 {}, {};", x)
}

/// Square root, correctly rounded. PTX: `sqrt.rn.f32 d, x`. Called by any thread.
#[inline(always)]
pub fn sqrt_rn(x: f32) -> f32 {
    pure32!(f32, "sqrt.rn.f32 {}, {};", x)
}

/// The larger of two values; a NaN loses against a number. PTX: `max.f32 d, a, b`. Called by any thread.
#[inline(always)]
pub fn fmax(a: f32, b: f32) -> f32 {
    pure32!(f32, "max.f32 {}, {}, {};", a, b)
}

/// The smaller of two values; a NaN loses against a number. PTX: `min.f32 d, a, b`. Called by any thread.
#[inline(always)]
pub fn fmin(a: f32, b: f32) -> f32 {
    pure32!(f32, "min.f32 {}, {}, {};", a, b)
}

/// `a * b + c` with one rounding. PTX: `fma.rn.ftz.f32 d, a, b, c`. Called by any thread.
#[inline(always)]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    pure32!(f32, "fma.rn.ftz.f32 {}, {}, {}, {};", a, b, c)
}

/// `a * b + c` with one rounding, subnormals and all: bit for bit what `f32::mul_add` gives. PTX: `fma.rn.f32 d, a, b, c`. Called by any
/// thread.
#[inline(always)]
pub fn fma_rn(a: f32, b: f32, c: f32) -> f32 {
    pure32!(f32, "fma.rn.f32 {}, {}, {}, {};", a, b, c)
}

/// Has `x` computed before this point: LLVM may otherwise sink arithmetic past a wait to its first use. Emits nothing but
/// a comment. Called by any thread.
#[inline(always)]
pub fn pin(x: &mut f32) {
    // SAFETY: no instruction; the value comes out as it went in.
    unsafe { core::arch::asm!("// pin {0}", inout(reg32) * x, options(nomem, nostack)) };
}

/// [`pin`] of packed values.
#[inline(always)]
pub fn pin_u32(x: &mut u32) {
    // SAFETY: as there.
    unsafe { core::arch::asm!("// pin {0}", inout(reg32) * x, options(nomem, nostack)) };
}

/// `x`, with what hangs on it computed here and not above a loop, where LLVM would keep it in a register meanwhile. Emits
/// nothing but a comment. Called by any thread.
#[inline(always)]
pub fn here(x: i32) -> i32 {
    let mut x = x;
    // SAFETY: no instruction; the value comes out as it went in.
    unsafe { core::arch::asm!("// here {0}", inout(reg32) x, options(nomem, nostack)) };
    x
}

/// Any value: what the register happens to hold. For what is overwritten before it counts; a zero would cost an instruction. Emits
/// nothing but a comment. Called by any thread.
#[inline(always)]
pub fn any() -> f32 {
    let x: f32;
    // SAFETY: no instruction; every bit pattern is an f32.
    unsafe { core::arch::asm!("// any {0}", out(reg32) x, options(nomem, nostack)) };
    x
}

/// 0, put into its register here and not, as a constant would be, on every way that leads here or away. PTX: `mov.f32 d, 0`. Called by any thread.
#[inline(always)]
pub fn zero_here() -> f32 {
    let x: f32;
    // SAFETY: a move.
    unsafe { core::arch::asm!("mov.f32 {0}, 0f00000000;", out(reg32) x, options(nomem, nostack)) };
    x
}
