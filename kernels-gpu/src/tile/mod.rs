//! Tiles: operand descriptors, the two products of attention, softmax in registers, the epilogue.

pub mod bitmap;
pub mod epilogue;
pub mod key_planes;
pub mod key_scales;
pub mod mma;
pub mod octet;
pub mod pages;
pub mod plan;
pub mod probe_pool;
pub mod probe_sel;
pub mod probe_strip;
pub mod queries;
pub mod reduce;
pub mod shrink;
pub mod softmax;
pub mod strip;
pub mod sums;
pub mod topk;
pub mod topk_list;
pub mod topk_long;
pub mod topk_rows;
#[macro_use]
pub mod unroll;
