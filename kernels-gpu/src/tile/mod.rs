//! Tiles: operand descriptors, the two products of attention, softmax in registers, the epilogue.

pub mod epilogue;
pub mod mma;
pub mod softmax;
#[macro_use]
pub mod unroll;
