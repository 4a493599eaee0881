//! Paged KV cache.

pub mod layout;
