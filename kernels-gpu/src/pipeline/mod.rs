//! Stage rings between the producer and the consumers, and the work they share.

pub mod kept;
pub mod key_scales;
pub mod lists;
pub mod probe;
pub mod ring;
pub mod scores;
pub mod shared;
pub mod stages;
pub mod store;
pub mod wide;
pub mod work;
