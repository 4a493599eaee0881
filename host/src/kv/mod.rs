//! Paged KV cache: layouts and host views, the pool that hands out pages, and page tables.

pub mod layout;
pub mod pool;
pub mod scales;
pub mod table;

pub use layout::{KvTensor, PageLayout, PagedKv, PagedTensors, check_page_size};
pub use pool::{PagePool, Sequence};
pub use scales::TokenScaleLayout;
pub use table::PageTable;
