//! Device tensors of a run: typed views for everyday use, spans for captured graphs.

use crate::driver::{CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut};
use crate::error::{Error, Result};
use crate::ops::{Heads, PageDesc, Paged, RowStrides, ScaleStrides, Scales, Span};
use cudarc::driver::{DeviceSlice, SyncOnDrop};
use float8::F8E4M3;
use half::bf16;

/// Strides of a plan's tensors: views of larger ones, heads before tokens, padded rows. `None` is packed. Strides of rows of 128 are
/// multiples of 16 bytes; rows of `out` do not overlap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TensorRows {
    /// e4m3 queries.
    pub q: Option<RowStrides>,
    /// Scales of the queries. [`ScaleStrides::heads_first`] makes selection faster.
    pub q_scale: Option<ScaleStrides>,
    /// bf16 output.
    pub out: Option<RowStrides>,
    /// bf16 keys of [`super::Plan::append_kv`].
    pub k: Option<RowStrides>,
    /// bf16 values of [`super::Plan::append_kv`].
    pub v: Option<RowStrides>,
}

impl TensorRows {
    /// Checks what needs no buffer.
    pub(super) fn check(&self, tokens: usize, heads: Heads) -> Result<()> {
        self.q.map_or(Ok(()), |rows| rows.bytes::<F8E4M3>("q").map(|_| ()))?;
        self.q_scale.map_or(Ok(()), |rows| rows.bytes("q_scale").map(|_| ()))?;
        for (name, rows) in [("out", self.out), ("k", self.k), ("v", self.v)] {
            rows.map_or(Ok(()), |rows| rows.bytes::<bf16>(name).map(|_| ()))?;
        }
        self.out.map_or(Ok(()), |rows| rows.apart("out", tokens, heads.hq))
    }
}

/// Inputs of a run, borrowed from device memory.
#[derive(Debug)]
pub struct PrefillTensors<'a> {
    /// `[total_q, hq, 128]`.
    pub q: CudaView<'a, F8E4M3>,
    /// `[total_q, hq]` (or as [`TensorRows::q_scale`] says), positive and finite.
    pub q_scale: CudaView<'a, f32>,
    /// Pages of K.
    pub k_pages: CudaView<'a, F8E4M3>,
    /// Pages of V.
    pub v_pages: CudaView<'a, F8E4M3>,
    /// `[batch, table_stride]`: physical page of each logical page. An entry outside the pool reads as zeros.
    pub page_table: CudaView<'a, i32>,
    /// `[1]` or `[hkv]`.
    pub k_scale: CudaView<'a, f32>,
    /// `[1]` or `[hkv]`.
    pub v_scale: CudaView<'a, f32>,
    /// Scales of single keys, which multiply `k_scale`; where the plan's pages keep them in a tensor of their own.
    pub k_token_scale: Option<CudaView<'a, f32>>,
    /// Block lists, for a plan that takes the caller's.
    pub lists: Option<ListTensors<'a>>,
}

/// Block lists in device memory, as [`super::Plan::upload_lists`] makes them. The kernel keeps others inside the buffers; what
/// a row attends to whose list does not ascend, or holds a block that the row cannot see, is unspecified.
#[derive(Debug)]
pub struct ListTensors<'a> {
    /// `[hq, total_qb, stride]`: ascending key blocks of the row's request.
    pub lists: CudaView<'a, i32>,
    /// `[hq, total_qb]`: entries of each list: at most the stride and the blocks that the row can see; below 1, none.
    pub counts: CudaView<'a, i32>,
}

/// Outputs of a run, borrowed from device memory.
#[derive(Debug)]
pub struct PrefillOutputs<'a> {
    /// `[total_q, hq, 128]`.
    pub out: CudaViewMut<'a, bf16>,
    /// `[total_q, hq]` natural log-sum-exp, where asked for.
    pub lse: Option<CudaViewMut<'a, f32>>,
}

/// Inputs of a run as spans: for CUDA graphs, whose capture the views' events would disturb.
#[derive(Clone, Copy, Debug)]
pub struct RawTensors {
    /// `[total_q, hq, 128]`.
    pub q: Span<F8E4M3>,
    /// `[total_q, hq]`, or as [`TensorRows::q_scale`] says.
    pub q_scale: Span<f32>,
    /// Pages of K.
    pub k_pages: Span<F8E4M3>,
    /// Pages of V.
    pub v_pages: Span<F8E4M3>,
    /// `[batch, table_stride]`.
    pub page_table: Span<i32>,
    /// Dequantisation scales.
    pub scales: Scales,
    /// `[hq, total_qb, stride]` and `[hq, total_qb]`, for a plan that takes the caller's lists.
    pub lists: Option<[Span<i32>; 2]>,
}

/// Outputs of a run as spans.
#[derive(Clone, Copy, Debug)]
pub struct RawOutputs {
    /// `[total_q, hq, 128]`.
    pub out: Span<bf16>,
    /// `[total_q, hq]`, where asked for.
    pub lse: Option<Span<f32>>,
}

/// Record the reads and writes of a run when dropped, after its last launch.
#[must_use]
pub(super) struct Guards<'s> {
    _inputs: [SyncOnDrop<'s>; 7],
    _k_token: Option<SyncOnDrop<'s>>,
    _lists: Option<[SyncOnDrop<'s>; 2]>,
}

/// Record the writes of a run when dropped.
#[must_use]
pub(super) struct OutputGuards<'s> {
    _out: SyncOnDrop<'s>,
    _lse: Option<SyncOnDrop<'s>>,
}

impl PrefillTensors<'_> {
    /// Spans of the views. The guards must outlive the launches that use them.
    pub(super) fn spans<'s>(&'s self, stream: &'s CudaStream) -> Result<(RawTensors, Guards<'s>)> {
        let (q, g0) = read("q", &self.q, stream)?;
        let (q_scale, g1) = read("q_scale", &self.q_scale, stream)?;
        let (k_pages, g2) = read("k_pages", &self.k_pages, stream)?;
        let (v_pages, g3) = read("v_pages", &self.v_pages, stream)?;
        let (page_table, g4) = read("page_table", &self.page_table, stream)?;
        let (k, g5) = read("k_scale", &self.k_scale, stream)?;
        let (v, g6) = read("v_scale", &self.v_scale, stream)?;
        let (k_token, k_token_guard) = self.k_token_scale.as_ref().map(|s| read("k_token_scale", s, stream)).transpose()?.unzip();
        let (lists, list_guards) = match &self.lists {
            None => (None, None),
            Some(l) => {
                let (lists, g7) = read("lists", &l.lists, stream)?;
                let (counts, g8) = read("counts", &l.counts, stream)?;
                (Some([lists, counts]), Some([g7, g8]))
            }
        };
        let raw = RawTensors { q, q_scale, k_pages, v_pages, page_table, scales: Scales { k, v, k_token }, lists };
        Ok((raw, Guards { _inputs: [g0, g1, g2, g3, g4, g5, g6], _k_token: k_token_guard, _lists: list_guards }))
    }
}

impl RawTensors {
    pub(super) fn paged(&self, desc: PageDesc) -> Paged {
        Paged { k_pages: self.k_pages, v_pages: self.v_pages, table: self.page_table, desc }
    }
}

impl PrefillOutputs<'_> {
    /// Spans of the views. The guards must outlive the launches that use them.
    pub(super) fn spans<'s>(&'s mut self, stream: &'s CudaStream) -> Result<(RawOutputs, OutputGuards<'s>)> {
        let (out, out_guard) = write("out", &mut self.out, stream)?;
        let (lse, lse_guard) = match &mut self.lse {
            None => (None, None),
            Some(lse) => {
                let (span, guard) = write("lse", lse, stream)?;
                (Some(span), Some(guard))
            }
        };
        Ok((RawOutputs { out, lse }, OutputGuards { _out: out_guard, _lse: lse_guard }))
    }
}

/// A buffer that kernels on `stream` will read: waits for its writers, and records the read when the guard drops.
pub(super) fn read<'s, T, B: DevicePtr<T>>(name: &'static str, buffer: &'s B, stream: &'s CudaStream) -> Result<(Span<T>, SyncOnDrop<'s>)> {
    check_context(name, buffer, stream)?;
    let len = buffer.len();
    let (address, guard) = buffer.device_ptr(stream);
    // SAFETY: the view borrows the allocation. Its release is ordered behind the read that the guard records.
    Ok((unsafe { Span::from_raw(address, len) }, guard))
}

/// As [`read`], for a buffer that kernels will write.
pub(super) fn write<'s, T, B: DevicePtrMut<T>>(
    name: &'static str,
    buffer: &'s mut B,
    stream: &'s CudaStream,
) -> Result<(Span<T>, SyncOnDrop<'s>)> {
    check_context(name, buffer, stream)?;
    let len = buffer.len();
    let (address, guard) = buffer.device_ptr_mut(stream);
    // SAFETY: as in `read`; the borrow is exclusive.
    Ok((unsafe { Span::from_raw(address, len) }, guard))
}

fn check_context<T, B: DeviceSlice<T>>(name: &'static str, buffer: &B, stream: &CudaStream) -> Result<()> {
    let (of, want) = (buffer.stream().context(), stream.context());
    if of == want {
        Ok(())
    } else {
        let expected = format!("memory of the stream's context on device {}", want.ordinal());
        Err(Error::value(name, expected, format!("another context, on device {}", of.ordinal())))
    }
}
