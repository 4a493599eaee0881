//! A random problem on the GPU, through a plan.

use super::{Case, Form};
use crate::batch::offsets;
use crate::gpu::POISON;
use float8::F8E4M3;
use half::bf16;
use std::sync::Arc;
use stem_attn::cuda::CudaBackend;
use stem_attn::driver::{CudaSlice, CudaStream, buffer};
use stem_attn::ops::{RowStrides, ScaleStrides};
use stem_attn::plan::{
    CsrTensors, IndptrView, ListOutputs, ListTensors, Plan, PlanDesc, PlanSelection, PrefillOutputs, PrefillTensors, TensorRows, Workspace,
};
use stem_attn::{BlockLists, Error};

/// Where row (token, head) of a tensor starts.
fn at(strides: RowStrides, token: usize, head: usize) -> usize {
    token * strides.token + head * strides.head
}

/// Elements of a tensor with these strides.
fn size(strides: RowStrides, tokens: usize, heads: usize) -> usize {
    if tokens == 0 { 0 } else { at(strides, tokens - 1, heads - 1) + 128 }
}

impl Case {
    /// Output and, where asked for, log-sum-exp, `[total_q, hq, 128]` and `[total_q, hq]`.
    ///
    /// # Errors
    /// The library's error, lists that differ from the case's after their conversion, or bytes between the rows of the output
    /// that were written.
    pub fn run_cuda(&self, gpu: &CudaBackend, stream: &Arc<CudaStream>) -> Result<(Vec<bf16>, Option<Vec<f32>>), String> {
        self.run_plan(gpu, stream).map_err(|e| format!("{}\n{e}", self.describe()))?
    }

    fn plan(&self, gpu: &CudaBackend, stream: &Arc<CudaStream>) -> Result<Plan, Error> {
        let cu_kv = offsets(self.lens.iter().map(|l| l.1));
        let prompt_lens: Vec<i32> = self.lens.iter().map(|l| l.1 as i32).collect();
        let desc = PlanDesc {
            hq: self.hq,
            hkv: self.hkv,
            cu_seqlens_q: &offsets(self.lens.iter().map(|l| l.0)),
            cu_seqlens_kv: &cu_kv,
            prompt_lens: &prompt_lens,
            pages: self.cache.desc,
            selection: match self.form {
                Form::Dense => PlanSelection::Dense,
                _ => PlanSelection::Lists { stride: self.lists.stride },
            },
            causal: self.causal,
            softmax_scale: self.softmax_scale,
        };
        Plan::new(gpu.kernels(), stream, &desc)?.with_rows(TensorRows {
            q: self.rows[0],
            q_scale: self.scale_rows,
            out: self.rows[1],
            ..TensorRows::default()
        })
    }

    /// The library's errors outside, what is wrong with its results inside.
    #[expect(clippy::type_complexity, reason = "two kinds of failure, told apart once")]
    fn run_plan(&self, gpu: &CudaBackend, stream: &Arc<CudaStream>) -> Result<Result<(Vec<bf16>, Option<Vec<f32>>), String>, Error> {
        let plan = self.plan(gpu, stream)?;
        let (total_q, hq) = (plan.geometry().total_q, self.hq);
        let [q_rows, out_rows] = self.rows.map(|rows| rows.unwrap_or(RowStrides::packed(hq)));
        let mut wide = vec![F8E4M3::from_bits(POISON); size(q_rows, total_q, hq)];
        for (i, row) in self.q.chunks_exact(128).enumerate() {
            wide[at(q_rows, i / hq, i % hq)..][..128].copy_from_slice(row);
        }
        let q = buffer::upload(stream, &wide)?;
        let scale_rows = self.scale_rows.unwrap_or(ScaleStrides::packed(hq));
        let scale_at = |i: usize| i / hq * scale_rows.token + i % hq * scale_rows.head;
        let mut scales = vec![f32::from_bits(u32::MAX); self.q_scale.len().checked_sub(1).map_or(0, |last| scale_at(last) + 1)];
        for (i, &scale) in self.q_scale.iter().enumerate() {
            scales[scale_at(i)] = scale;
        }
        let q_scale = buffer::upload(stream, &scales)?;
        let (k_pages, v_pages) = (buffer::upload(stream, &self.cache.k)?, buffer::upload(stream, &self.cache.v)?);
        let page_table = buffer::upload(stream, &self.cache.table)?;
        let (k_scale, v_scale) = (buffer::upload(stream, &self.k_scale)?, buffer::upload(stream, &self.v_scale)?);
        let own = if self.cache.k_token.is_empty() { None } else { Some(buffer::upload(stream, &self.cache.k_token)?) };
        let lists = self.device_lists(&plan, stream)?;
        if let Some(lists) = &lists {
            let got = self.download_lists(lists, stream)?;
            if got != self.lists {
                return Ok(Err(format!("{}\nconverted lists differ", self.describe())));
            }
        }
        let tensors = PrefillTensors {
            q: q.as_view(),
            q_scale: q_scale.as_view(),
            k_pages: k_pages.as_view(),
            v_pages: v_pages.as_view(),
            page_table: page_table.as_view(),
            k_scale: k_scale.as_view(),
            v_scale: v_scale.as_view(),
            k_token_scale: own.as_ref().map(|own| own.as_view()),
            lists: lists.as_ref().map(|[lists, counts]| ListTensors { lists: lists.as_view(), counts: counts.as_view() }),
        };
        let mut workspace = Workspace::new(stream, plan.workspace_bytes())?;
        let out_size = size(out_rows, total_q, hq);
        let mut out = buffer::zeroed::<bf16>(stream, out_size)?;
        let mut lse = if self.lse { Some(buffer::zeroed::<f32>(stream, total_q * hq)?) } else { None };
        buffer::fill_bytes(stream, workspace.buffer_mut(), POISON)?;
        buffer::fill_bytes(stream, &mut out, POISON)?;
        if let Some(lse) = &mut lse {
            buffer::fill_bytes(stream, lse, POISON)?;
        }
        let mut outputs = PrefillOutputs { out: out.as_view_mut(), lse: lse.as_mut().map(|lse| lse.as_view_mut()) };
        plan.run(stream, &tensors, &mut workspace, &mut outputs)?;
        let wide = buffer::download(stream, &out, out_size)?;
        let lse = lse.map(|lse| buffer::download(stream, &lse, total_q * hq)).transpose()?;
        Ok(self.gather(wide, out_rows, total_q).map(|out| (out, lse)))
    }

    /// The rows of an output, once nothing between them has been written and nothing in them left out.
    fn gather(&self, mut wide: Vec<bf16>, strides: RowStrides, tokens: usize) -> Result<Vec<bf16>, String> {
        let poison = bf16::from_bits(u16::from_le_bytes([POISON; 2]));
        let mut out = Vec::with_capacity(tokens * self.hq * 128);
        for i in 0..tokens * self.hq {
            let row = &mut wide[at(strides, i / self.hq, i % self.hq)..][..128];
            if row.iter().any(|x| x.is_nan()) {
                return Err(format!("{}\nNaN in token {}, head {}", self.describe(), i / self.hq, i % self.hq));
            }
            out.extend_from_slice(row);
            row.fill(poison);
        }
        match wide.iter().position(|x| x.to_bits() != poison.to_bits()) {
            None => Ok(out),
            Some(i) => Err(format!("{}\nelement {i}, between the rows of the output, was written", self.describe())),
        }
    }

    /// The lists on the device, converted there from the form the case gives them in.
    fn device_lists(&self, plan: &Plan, stream: &Arc<CudaStream>) -> Result<Option<[CudaSlice<i32>; 2]>, Error> {
        if self.form == Form::Dense {
            return Ok(None);
        }
        if self.form == Form::Lists {
            let (lists, counts) = plan.upload_lists(stream, &self.lists)?;
            return Ok(Some([lists, counts]));
        }
        let mut lists = buffer::zeroed::<i32>(stream, self.lists.lists.len())?;
        let mut counts = buffer::zeroed::<i32>(stream, self.lists.counts.len())?;
        buffer::fill_bytes(stream, &mut lists, POISON)?;
        buffer::fill_bytes(stream, &mut counts, POISON)?;
        let mut outputs = ListOutputs { lists: lists.as_view_mut(), counts: counts.as_view_mut() };
        match self.form {
            Form::Mask(spare) => {
                let columns = self.geometry.max_kb + spare;
                let mut mask = self.lists.to_mask(columns)?;
                // Bytes that a row cannot see count for nothing.
                for (i, row) in mask.chunks_exact_mut(columns.max(1)).enumerate() {
                    row[self.geometry.candidates(i % self.geometry.total_qb())..].fill(0xa5);
                }
                let mask = buffer::upload(stream, &mask)?;
                plan.lists_from_mask(stream, &mask.as_view(), columns, &mut outputs)?;
            }
            _ => {
                let csr = self.csr();
                let indices = buffer::upload(stream, &csr.indices)?;
                let indices = indices.slice(..csr.indices.len());
                if self.form == Form::Csr(true) {
                    let indptr = buffer::upload(stream, &csr.indptr)?;
                    plan.lists_from_csr(stream, &CsrTensors { indptr: IndptrView::I64(indptr.as_view()), indices }, &mut outputs)?;
                } else {
                    let narrow: Vec<i32> = csr.indptr.iter().map(|&at| at as i32).collect();
                    let indptr = buffer::upload(stream, &narrow)?;
                    plan.lists_from_csr(stream, &CsrTensors { indptr: IndptrView::I32(indptr.as_view()), indices }, &mut outputs)?;
                }
            }
        }
        Ok(Some([lists, counts]))
    }

    fn download_lists(&self, [lists, counts]: &[CudaSlice<i32>; 2], stream: &Arc<CudaStream>) -> Result<BlockLists, Error> {
        Ok(BlockLists {
            lists: buffer::download(stream, lists, self.lists.lists.len())?,
            counts: buffer::download(stream, counts, self.lists.counts.len())?,
            ..self.lists
        })
    }
}
