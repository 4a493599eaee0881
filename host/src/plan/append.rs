//! Writing a chunk's keys and values into the cache.

use super::Plan;
use super::tensors::{read, write};
use crate::driver::{CudaStream, CudaView, CudaViewMut};
use crate::error::Result;
use crate::ops::{self, AppendKv, Paged, RowStrides, Scales};
use float8::F8E4M3;
use half::bf16;
use std::sync::Arc;

/// Tensors of [`Plan::append_kv`], borrowed from device memory.
#[derive(Debug)]
pub struct AppendTensors<'a> {
    /// bf16 keys of the new tokens, `[total_q, hkv, 128]`.
    pub k: CudaView<'a, bf16>,
    /// bf16 values of the new tokens, `[total_q, hkv, 128]`.
    pub v: CudaView<'a, bf16>,
    /// Pages of K, to be written.
    pub k_pages: CudaViewMut<'a, F8E4M3>,
    /// Pages of V, to be written.
    pub v_pages: CudaViewMut<'a, F8E4M3>,
    /// `[batch, table_stride]`. Tokens of an entry outside the pool are dropped.
    pub page_table: CudaView<'a, i32>,
    /// `[1]` or `[hkv]`: code = e4m3(value / scale).
    pub k_scale: CudaView<'a, f32>,
    /// `[1]` or `[hkv]`.
    pub v_scale: CudaView<'a, f32>,
    /// Scales of single keys, to be written; where the plan's pages keep them in a tensor of their own.
    pub k_token_scale: Option<CudaViewMut<'a, f32>>,
}

impl Plan {
    /// Rounds the keys and values of the new tokens to e4m3 and writes them into their pages: queues one kernel on `stream`.
    /// Where keys have a scale each, it is the key's largest magnitude over `448 * k_scale`, and is written too.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] or [`crate::Error::Value`] naming the tensor, before anything is queued; [`crate::Error::Driver`].
    pub fn append_kv(&self, stream: &Arc<CudaStream>, tensors: &mut AppendTensors<'_>) -> Result<()> {
        let (k, _g0) = read("k", &tensors.k, stream)?;
        let (v, _g1) = read("v", &tensors.v, stream)?;
        let (table, _g2) = read("page_table", &tensors.page_table, stream)?;
        let (k_scale, _g3) = read("k_scale", &tensors.k_scale, stream)?;
        let (v_scale, _g4) = read("v_scale", &tensors.v_scale, stream)?;
        let (k_pages, _g5) = write("k_pages", &mut tensors.k_pages, stream)?;
        let (v_pages, _g6) = write("v_pages", &mut tensors.v_pages, stream)?;
        let (k_token, _g7) = tensors.k_token_scale.as_mut().map(|s| write("k_token_scale", s, stream)).transpose()?.unzip();
        let packed = RowStrides::packed(self.heads.hkv);
        let (k_rows, v_rows) = (self.rows.k.unwrap_or(packed), self.rows.v.unwrap_or(packed));
        let kv = Paged { k_pages, v_pages, table, desc: self.pages };
        ops::append_kv(&self.launcher(stream), &AppendKv { k, k_rows, v, v_rows, kv, scales: Scales { k: k_scale, v: v_scale, k_token } })
    }
}
