//! Block masks in other forms to the lists that `attend` walks, on the device and without waiting.

use super::{Launcher, Lists, Span, int, product};
use crate::driver::{Arg, Launch};
use crate::error::{Error, Result};
use stem_attn_kernels::abi::{CsrListsParams, ListRows, MaskListsParams};

/// Buffers of [`lists_from_mask`].
#[derive(Clone, Copy, Debug)]
pub struct MaskLists {
    /// `[hq, total_qb, columns]`: a key block of the row's request is kept where its byte is not 0.
    pub mask: Span<u8>,
    /// Bytes of a row, at least the most key blocks of one request.
    pub columns: usize,
    /// Out.
    pub lists: Lists,
}

/// Row offsets of compressed sparse rows, `[hq * total_qb + 1]`.
#[derive(Clone, Copy, Debug)]
pub enum Indptr {
    /// 32 bits.
    I32(Span<i32>),
    /// 64 bits.
    I64(Span<i64>),
}

/// Buffers of [`lists_from_csr`].
#[derive(Clone, Copy, Debug)]
pub struct CsrLists {
    /// Where each row's indices start and end.
    pub indptr: Indptr,
    /// Key blocks of the row's request.
    pub indices: Span<i32>,
    /// Out.
    pub lists: Lists,
}

/// Lists from a byte mask. Key blocks that a row cannot see are left out; of a row that keeps more than the capacity, the
/// first.
///
/// # Errors
/// [`Error::Shape`] or [`Error::Value`] naming the tensor, before anything is launched; [`Error::Driver`].
pub fn lists_from_mask(at: &Launcher<'_>, args: &MaskLists) -> Result<()> {
    let geometry = at.geometry.host();
    let extents = [at.heads.hq, geometry.total_qb(), args.columns];
    if args.columns < geometry.max_kb {
        return Err(Error::shape("block_mask", format!("at least {} columns", geometry.max_kb), args.columns));
    }
    args.mask.require("block_mask", &extents)?;
    let params =
        MaskListsParams { mask: args.mask.address(), rows: rows(at, &args.lists)?, columns: int("columns", args.columns)?, reserved: 0 };
    let grid = Launch::grid(geometry.total_qb(), at.heads.hq, 1);
    // SAFETY: the kernel takes this one block; every extent it touches was checked above, the spans promise the memory. A row
    // has a column: none is visible, and none is read, where no request has a key block.
    unsafe { at.kernels.lists_from_mask.launch(at.stream, &grid, &[Arg::of(&params)]) }
}

/// Lists from compressed sparse rows in any order: the list of a row ascends, and what the row cannot see or names twice is left
/// out. Of a row with more indices than key blocks it can see, only as many are read; of one that keeps more than the
/// capacity, the first are kept. Offsets that fall or leave the indices are held inside them.
///
/// # Errors
/// As [`lists_from_mask`].
pub fn lists_from_csr(at: &Launcher<'_>, args: &CsrLists) -> Result<()> {
    let geometry = at.geometry.host();
    let rows_of_all = product("indptr", &[at.heads.hq, geometry.total_qb()])?;
    let offsets = [rows_of_all.checked_add(1).ok_or_else(|| Error::shape("indptr", "a size that fits the address space", rows_of_all))?];
    let (indptr, wide) = match args.indptr {
        Indptr::I32(span) => {
            span.require("indptr", &offsets)?;
            (span.address(), 0)
        }
        Indptr::I64(span) => {
            span.require("indptr", &offsets)?;
            (span.address(), 1)
        }
    };
    args.indices.require("indices", &[args.indices.len()])?;
    let entries = i64::try_from(args.indices.len()).map_err(|_| Error::shape("indices", "at most 2^63 - 1", args.indices.len()))?;
    let params = CsrListsParams { indptr, indices: args.indices.address(), rows: rows(at, &args.lists)?, entries, wide, reserved: 0 };
    let grid = Launch::grid(geometry.total_qb(), at.heads.hq, 1);
    // SAFETY: the kernel takes this one block; every extent it touches was checked above, the spans promise the memory, and
    // it holds the offsets inside the indices.
    unsafe { at.kernels.lists_from_csr.launch(at.stream, &grid, &[Arg::of(&params)]) }
}

/// The lists as the kernels take them.
fn rows(at: &Launcher<'_>, lists: &Lists) -> Result<ListRows> {
    lists.check(at)?;
    let geometry = at.geometry.host();
    Ok(ListRows {
        query_blocks: at.geometry.query_blocks().address(),
        requests: at.geometry.requests().address(),
        lists: lists.lists.address(),
        counts: lists.counts.address(),
        list_stride: int("list_stride", lists.stride)?,
        total_qb: int("total_qb", geometry.total_qb())?,
        causal: geometry.causal.into(),
        reserved: 0,
    })
}
