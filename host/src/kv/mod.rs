//! Paged KV cache.
