//! Stage rings between the producer and the consumers.

pub mod ring;
