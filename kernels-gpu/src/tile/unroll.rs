//! Unrolling by macro: register arrays may be indexed only with constants.
//!
//! In a `for` or `while` loop LLVM gives up on keeping a 64-element array in registers before it unrolls, and the array
//! lands in local memory. Here every index is a `const` from the start.

/// Expands the block once per literal, with `const $i: usize` in scope.
#[macro_export]
#[doc(hidden)]
macro_rules! unroll {
    ($i:ident in [$($n:literal)*] $body:block) => {{ $( { const $i: usize = $n; $body } )* }};
    ($i:ident < 2 $body:block) => { $crate::unroll!($i in [0 1] $body) };
    ($i:ident < 4 $body:block) => { $crate::unroll!($i in [0 1 2 3] $body) };
    ($i:ident < 8 $body:block) => { $crate::unroll!($i in [0 1 2 3 4 5 6 7] $body) };
    ($i:ident < 15 $body:block) => { $crate::unroll!($i in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14] $body) };
    ($i:ident < 16 $body:block) => { $crate::unroll!($i in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15] $body) };
}
