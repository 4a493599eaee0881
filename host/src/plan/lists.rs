//! Block masks of the caller's, in device memory, to lists that a run takes.

use super::tensors::{read, write};
use super::{Plan, PlanSelection};
use crate::driver::{CudaStream, CudaView, CudaViewMut};
use crate::error::{Error, Result};
use crate::ops::{self, CsrLists, Indptr, Lists, MaskLists};
use std::sync::Arc;

/// Lists to be written, for [`super::ListTensors`] of a run.
#[derive(Debug)]
pub struct ListOutputs<'a> {
    /// `[hq, total_qb, stride]`, the plan's capacity.
    pub lists: CudaViewMut<'a, i32>,
    /// `[hq, total_qb]`.
    pub counts: CudaViewMut<'a, i32>,
}

/// Row offsets `[hq * total_qb + 1]` of compressed sparse rows, borrowed from device memory.
#[derive(Debug)]
pub enum IndptrView<'a> {
    /// 32 bits.
    I32(CudaView<'a, i32>),
    /// 64 bits.
    I64(CudaView<'a, i64>),
}

/// Compressed sparse rows of a block mask: row `head * total_qb + query block` is `indices[indptr[row]..indptr[row + 1]]`. The
/// pattern of a block-sparse matrix (BSR) with blocks of 128 x 128 is the same thing.
#[derive(Debug)]
pub struct CsrTensors<'a> {
    /// Where each row starts and ends.
    pub indptr: IndptrView<'a>,
    /// Key blocks of the row's request.
    pub indices: CudaView<'a, i32>,
}

impl Plan {
    /// Lists from a byte mask `[hq, total_qb, columns]` in device memory, for a plan with [`PlanSelection::Lists`]: queues one kernel
    /// on `stream`. A key block is kept where its byte is not 0 and the row can see it; of a row that keeps more than the
    /// plan's capacity, the first are.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a plan that does not take lists; [`Error::Shape`] or [`Error::Value`] naming the tensor, before
    /// anything is queued; [`Error::Driver`].
    pub fn lists_from_mask(
        &self,
        stream: &Arc<CudaStream>,
        mask: &CudaView<'_, u8>,
        columns: usize,
        outputs: &mut ListOutputs<'_>,
    ) -> Result<()> {
        let stride = self.list_capacity()?;
        let (mask, _g0) = read("block_mask", mask, stream)?;
        let (lists, _g1) = write("lists", &mut outputs.lists, stream)?;
        let (counts, _g2) = write("counts", &mut outputs.counts, stream)?;
        ops::lists_from_mask(&self.launcher(stream), &MaskLists { mask, columns, lists: Lists { lists, counts, stride } })
    }

    /// Lists from compressed sparse rows in device memory, as [`Self::lists_from_mask`]. Indices may stand in any order; what a row
    /// cannot see or names twice is left out, and nothing outside the tensors is read whatever they hold.
    ///
    /// # Errors
    /// As [`Self::lists_from_mask`].
    pub fn lists_from_csr(&self, stream: &Arc<CudaStream>, csr: &CsrTensors<'_>, outputs: &mut ListOutputs<'_>) -> Result<()> {
        let stride = self.list_capacity()?;
        let (indices, _g0) = read("indices", &csr.indices, stream)?;
        let (lists, _g1) = write("lists", &mut outputs.lists, stream)?;
        let (counts, _g2) = write("counts", &mut outputs.counts, stream)?;
        let lists = Lists { lists, counts, stride };
        let at = self.launcher(stream);
        match &csr.indptr {
            IndptrView::I32(view) => {
                let (indptr, _g3) = read("indptr", view, stream)?;
                ops::lists_from_csr(&at, &CsrLists { indptr: Indptr::I32(indptr), indices, lists })
            }
            IndptrView::I64(view) => {
                let (indptr, _g3) = read("indptr", view, stream)?;
                ops::lists_from_csr(&at, &CsrLists { indptr: Indptr::I64(indptr), indices, lists })
            }
        }
    }

    fn list_capacity(&self) -> Result<usize> {
        match self.selection {
            PlanSelection::Lists { stride } => Ok(stride),
            _ => Err(Error::Unsupported { what: "lists", got: "a plan that does not take them".into() }),
        }
    }
}
