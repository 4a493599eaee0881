//! One function per instruction: the only layer with `asm!`.
//!
//! Every function is `#[inline(always)]` (no linker sees this crate) and its doc gives the purpose, the PTX text, who
//! must call it, and what the caller has to guarantee.
//!
//! Two rules hold everywhere:
//! - Anything that touches memory, a barrier, or another thread keeps the default `asm!` options: side effects and
//!   memory, so the compiler neither drops nor reorders it. `pure, nomem` is for arithmetic and special registers.
//! - `asm!` is not convergent: after a branch that only some lanes of a warp take, LLVM may copy a following `.aligned`
//!   or `.sync` instruction into both arms, and the warp then runs it twice in halves. So a per-lane choice near such an
//!   instruction is a predicate inside the assembly (the `_if` forms, whose `on` is 0 or not), never a Rust branch.

pub mod barrier;
pub mod cluster;
pub mod cp_async;
pub mod cvt;
pub mod fence;
pub mod global;
pub mod half;
pub mod int;
pub mod math;
pub mod matrix;
pub mod mbarrier;
pub mod pdl;
pub mod regs;
pub mod smem;
pub mod special;
pub mod tma;
pub mod warp;
pub mod wgmma;

/// A byte address in the shared memory of the block (the 32-bit shared window).
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct SmemAddr(pub u32);

impl SmemAddr {
    /// The address `bytes` further on.
    #[inline(always)]
    #[must_use]
    pub const fn offset(self, bytes: u32) -> SmemAddr {
        SmemAddr(self.0.wrapping_add(bytes))
    }
}

/// An `asm!` of arithmetic only: one 32-bit result from operands of the same class.
macro_rules! pure32 {
    ($ty:ty, $text:literal, $($operand:expr),*) => {{
        let result: $ty;
        // SAFETY: arithmetic on registers: no memory, no stack, no effect but the result.
        unsafe { core::arch::asm!($text, out(reg32) result, $(in(reg32) $operand,)* options(pure, nomem, nostack)) };
        result
    }};
}
pub(crate) use pure32;
