//! `append_kv`: bf16 K and V of the new tokens into FP8 pages.

use super::{Launcher, Paged, RowStrides, Scales, Span, int};
use crate::driver::{Arg, Launch};
use crate::error::Result;
use half::bf16;
use stem_attn_kernels::abi::AppendKvParams;

/// Buffers of [`append_kv`].
#[derive(Clone, Copy, Debug)]
pub struct AppendKv {
    /// `[total_q, hkv, 128]`.
    pub k: Span<bf16>,
    /// Strides of `k`.
    pub k_rows: RowStrides,
    /// `[total_q, hkv, 128]`.
    pub v: Span<bf16>,
    /// Strides of `v`.
    pub v_rows: RowStrides,
    /// Pages and page table; the pages are written.
    pub kv: Paged,
    /// Code = e4m3(value / scale). Those of single keys, where keys have any, are written: the key's largest magnitude over
    /// `448 * k_scale`, by which its codes are divided too.
    pub scales: Scales,
}

/// Rounds the new tokens of every request into their pages.
///
/// # Errors
/// [`crate::Error::Shape`] or [`crate::Error::Value`] naming the tensor, before anything is launched; [`crate::Error::Driver`].
pub fn append_kv(at: &Launcher<'_>, args: &AppendKv) -> Result<()> {
    let geometry = at.geometry.host();
    let hkv = at.heads.hkv;
    let k_rows = args.k.require_rows("k", args.k_rows, geometry.total_q, hkv)?;
    let v_rows = args.v.require_rows("v", args.v_rows, geometry.total_q, hkv)?;
    args.kv.check(geometry.requests.len(), at.geometry.longest(), hkv)?;
    let [k_scale_stride, v_scale_stride] = args.scales.strides(hkv)?;
    let k_token = args.kv.token_scales(&args.scales, hkv)?;
    let params = AppendKvParams {
        k: args.k.address(),
        v: args.v.address(),
        k_pages: args.kv.k_pages.address(),
        v_pages: args.kv.v_pages.address(),
        page_table: args.kv.table.address(),
        requests: at.geometry.requests().address(),
        query_blocks: at.geometry.query_blocks().address(),
        k_scale: args.scales.k.address(),
        v_scale: args.scales.v.address(),
        k_strides: args.kv.desc.k_strides,
        v_strides: args.kv.desc.v_strides,
        k_rows,
        v_rows,
        k_token,
        k_scale_stride,
        v_scale_stride,
        page_size: int("page_size", args.kv.desc.page_size)?,
        table_stride: int("table_stride", args.kv.desc.table_stride)?,
        pages: int("pages", args.kv.desc.pages)?,
        reserved: 0,
    };
    let grid = Launch::grid(geometry.total_qb(), hkv, 1);
    // SAFETY: the kernel takes this one block; every extent it touches was checked above, the spans promise the memory, and
    // it skips page-table entries outside `0..pages`.
    unsafe { at.kernels.append_kv.launch(at.stream, &grid, &[Arg::of(&params)]) }
}
