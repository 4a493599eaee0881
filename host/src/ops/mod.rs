//! One launcher per kernel: fills the parameter block, checks the extent of every buffer against what the kernel touches,
//! encodes tensor maps, launches. Nothing is allocated on the device and nothing waits, so every launcher can be captured
//! in a CUDA graph.
//!
//! The launchers work on [`Span`]s, addresses with a length; [`crate::plan::Plan`] makes them from typed device views.

mod append_kv;
mod attend;
mod kernels;
mod lists;
mod select;
mod select_maps;
mod select_probe;
mod select_shape;
mod span;
mod summarize_kv;
mod tables;

pub use append_kv::{AppendKv, append_kv};
pub use attend::{Attend, attend};
pub use kernels::Kernels;
pub use lists::{CsrLists, Indptr, MaskLists, lists_from_csr, lists_from_mask};
pub(crate) use select::check_grid as check_select_grid;
pub use select::{Lists, ScoreSpace, Select, scratch_len, select};
pub use select_probe::{Probe, ProbeMeans, key_tiles, probe, probe_means};
pub(crate) use select_probe::{items as probe_items, require as require_probe};
pub use span::{Heads, PageDesc, Paged, RowStrides, ScaleStrides, Scales, Span};
pub use summarize_kv::{Blocks, SummarizeKv, summarize_kv};
pub use tables::DeviceGeometry;

use crate::driver::CudaStream;
use crate::error::{Error, Result};
use std::sync::Arc;

/// What every launch needs: kernels, stream, batch and head counts.
#[derive(Clone, Copy, Debug)]
pub struct Launcher<'a> {
    /// Loaded kernels.
    pub kernels: &'a Kernels,
    /// The stream the launch is queued on.
    pub stream: &'a Arc<CudaStream>,
    /// The batch's tables.
    pub geometry: &'a DeviceGeometry,
    /// Head counts.
    pub heads: Heads,
}

/// A count as a parameter block's i32.
fn int(name: &'static str, n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| Error::value(name, "at most 2,147,483,647", n))
}

/// Product of extents, or an error naming the tensor.
fn product(name: &'static str, extents: &[usize]) -> Result<usize> {
    let n = extents.iter().try_fold(1usize, |n, &extent| n.checked_mul(extent));
    n.ok_or_else(|| Error::shape(name, "a size that fits the address space", format!("{extents:?}")))
}
