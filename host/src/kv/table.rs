//! The page table of a batch: `[batch, stride]`, physical page of each logical page.

use super::layout::check_table;
use super::pool::Sequence;
use crate::error::Result;
use crate::geometry::Geometry;
use stem_attn_kernels::config::BLOCK;

/// A page table in host memory. Unused entries are -1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageTable {
    /// `[batch, stride]`.
    pub entries: Vec<i32>,
    /// Entries of one request.
    pub stride: usize,
}

impl PageTable {
    /// The table of a batch of sequences in pages of `page_size` tokens, its rows long enough for whole 128-token blocks.
    pub fn new(sequences: &[&Sequence], page_size: usize) -> Self {
        let per_block = BLOCK.div_ceil(page_size.max(1));
        let longest = sequences.iter().map(|s| s.pages().len()).max().unwrap_or(0);
        let stride = longest.next_multiple_of(per_block).max(1);
        let mut entries = vec![-1; sequences.len() * stride];
        for (row, sequence) in entries.chunks_exact_mut(stride).zip(sequences) {
            row[..sequence.pages().len()].copy_from_slice(sequence.pages());
        }
        Self { entries, stride }
    }

    /// Checks every entry that a request of `geometry` uses, for a pool of `pages` pages of `page_size` tokens. Worth its
    /// time for a table that was not made by [`PageTable::new`]: on a GPU a page outside the pool reads as zeros.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] or [`crate::Error::Value`] naming `page_table` when a row is too short or an entry lies
    /// outside `0..pages`; [`crate::Error::Value`] for a page size that is not supported.
    pub fn validate(&self, geometry: &Geometry, page_size: usize, pages: usize) -> Result<()> {
        check_table(&self.entries, self.stride, geometry, page_size, pages)
    }

    /// A copy in device memory.
    ///
    /// # Errors
    /// [`crate::Error::Driver`].
    #[cfg(feature = "cuda")]
    pub fn upload(&self, stream: &std::sync::Arc<crate::driver::CudaStream>) -> Result<crate::driver::CudaSlice<i32>> {
        crate::driver::buffer::upload(stream, &self.entries)
    }
}
