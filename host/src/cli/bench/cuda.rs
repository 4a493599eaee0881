//! The stages on a GPU, through a [`Plan`].

use super::engine::{Engine, Job, L2, Output, QScaleOrder, Stage};
use crate::cuda::CudaBackend;
use crate::driver::{CudaSlice, EventTimer, buffer, driver_error};
use crate::error::{Error, Result};
use crate::kv::PageLayout;
use crate::mask::BlockLists;
use crate::ops::{PageDesc, ScaleStrides};
use crate::plan::{
    AppendTensors, ListTensors, Plan, PlanDesc, PlanSelection, PrefillOutputs, PrefillTensors, TensorRows, Workspace, default_softmax_scale,
};
use float8::F8E4M3;
use half::bf16;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// One stage of one problem, everything it touches in device memory.
pub struct CudaEngine<'a> {
    backend: &'a CudaBackend,
    job: Job<'a>,
    plan: Plan,
    tensors: Tensors,
    workspace: Workspace,
    out: CudaSlice<bf16>,
    /// Overwritten before each launch, where the cache is to be flushed.
    flush: Option<CudaSlice<u8>>,
}

/// Bytes overwritten to flush the L2 cache, at least. Also the time in which the host queues what is timed next, so that
/// the first kernel does not wait for it.
const FLUSH: usize = 256 << 20;

/// Device copies of a problem's tensors.
struct Tensors {
    q: CudaSlice<F8E4M3>,
    q_scale: CudaSlice<f32>,
    k_pages: CudaSlice<F8E4M3>,
    v_pages: CudaSlice<F8E4M3>,
    page_table: CudaSlice<i32>,
    one: CudaSlice<f32>,
    lists: Option<(CudaSlice<i32>, CudaSlice<i32>)>,
    /// bf16 K and V of `append_kv`.
    new_rows: Option<(CudaSlice<bf16>, CudaSlice<bf16>)>,
}

impl Tensors {
    fn prefill(&self) -> PrefillTensors<'_> {
        PrefillTensors {
            q: self.q.as_view(),
            q_scale: self.q_scale.as_view(),
            k_pages: self.k_pages.as_view(),
            v_pages: self.v_pages.as_view(),
            page_table: self.page_table.as_view(),
            k_scale: self.one.as_view(),
            v_scale: self.one.as_view(),
            k_token_scale: None,
            lists: self.lists.as_ref().map(|(lists, counts)| ListTensors { lists: lists.as_view(), counts: counts.as_view() }),
        }
    }
}

impl<'a> CudaEngine<'a> {
    /// Copies the problem to the GPU and runs what the stage reads.
    pub fn new(backend: &'a CudaBackend, job: Job<'a>) -> Result<Self> {
        let (stream, problem) = (backend.stream(), job.problem);
        if job.stage == Stage::ProbeMeans {
            super::probe(job.config)?;
        }
        let (paged, inputs) = (&problem.paged, problem.inputs());
        let (shape, plan) = (problem.shape, plan(backend, &job)?);
        let new_rows = match job.stage {
            Stage::AppendKv => {
                let (k, v) = problem.new_rows();
                Some((buffer::upload(stream, &k)?, buffer::upload(stream, &v)?))
            }
            _ => None,
        };
        let tensors = Tensors {
            q: buffer::upload(stream, inputs.q)?,
            q_scale: match job.q_scale {
                QScaleOrder::TokensFirst => buffer::upload(stream, inputs.q_scale)?,
                QScaleOrder::HeadsFirst => buffer::upload(stream, &heads_first(inputs.q_scale, inputs.hq))?,
            },
            k_pages: buffer::upload(stream, &paged.k_pages)?,
            v_pages: buffer::upload(stream, &paged.v_pages)?,
            page_table: buffer::upload(stream, &paged.table)?,
            one: buffer::upload(stream, &[1.0])?,
            lists: job.lists.map(|lists| plan.upload_lists(stream, lists)).transpose()?,
            new_rows,
        };
        // A chunk finds the summaries of its history in the workspace, and none of its own.
        let before = match shape.history() {
            0 => None,
            history => Some(plan_of(backend, &job, history, history)?),
        };
        let bytes = before.as_ref().map_or(0, Plan::workspace_bytes).max(plan.workspace_bytes());
        let mut workspace = Workspace::new(stream, bytes)?;
        if let Some(before) = &before {
            before.summarize_kv(stream, &tensors.prefill(), &mut workspace)?;
        }
        let plan = plan.continuing(before.is_some());
        if matches!(job.stage, Stage::Select | Stage::Attend) {
            plan.summarize_kv(stream, &tensors.prefill(), &mut workspace)?;
        }
        let out = buffer::zeroed(stream, problem.q.len())?;
        let flush = match job.l2 {
            L2::Flushed => Some(buffer::zeroed(stream, FLUSH.max(2 * backend.info().l2_bytes))?),
            L2::Warm => None,
        };
        Ok(Self { backend, job, plan, tensors, workspace, out, flush })
    }

    fn launch(&mut self) -> Result<()> {
        let stream = self.backend.stream();
        let mut outputs = PrefillOutputs { out: self.out.as_view_mut(), lse: None };
        if let Some((k, v)) = &self.tensors.new_rows {
            let mut append = AppendTensors {
                k: k.as_view(),
                v: v.as_view(),
                k_pages: self.tensors.k_pages.as_view_mut(),
                v_pages: self.tensors.v_pages.as_view_mut(),
                page_table: self.tensors.page_table.as_view(),
                k_scale: self.tensors.one.as_view(),
                v_scale: self.tensors.one.as_view(),
                k_token_scale: None,
            };
            return self.plan.append_kv(stream, &mut append);
        }
        let tensors = self.tensors.prefill();
        match self.job.stage {
            Stage::SummarizeKv | Stage::SummarizeChunk | Stage::AppendKv => self.plan.summarize_kv(stream, &tensors, &mut self.workspace),
            Stage::Selection => self.plan.summarize_and_select(stream, &tensors, &mut self.workspace),
            Stage::ProbeMeans => self.plan.probe_means(stream, &tensors, &mut self.workspace),
            Stage::Select => self.plan.select(stream, &tensors, &mut self.workspace),
            Stage::Attend => self.plan.attend(stream, &tensors, &self.workspace, &mut outputs),
            Stage::Prefill | Stage::HostPlan | Stage::HostRun => self.plan.run(stream, &tensors, &mut self.workspace, &mut outputs),
        }
    }
}

/// `[heads, tokens]` from `[tokens, heads]`.
fn heads_first(scales: &[f32], heads: usize) -> Vec<f32> {
    (0..heads).flat_map(|head| scales.iter().skip(head).step_by(heads)).copied().collect()
}

/// A plan of the stage's batch.
fn plan(backend: &CudaBackend, job: &Job<'_>) -> Result<Plan> {
    plan_of(backend, job, job.problem.shape.tokens, job.problem.shape.kv_tokens)
}

/// The same of `tokens` new tokens, the last of the first `kv_tokens` of the prompt.
fn plan_of(backend: &CudaBackend, job: &Job<'_>, tokens: usize, kv_tokens: usize) -> Result<Plan> {
    let length = |n: usize| i32::try_from(n).map_err(|_| Error::shape("k", "at most 2,147,483,647 tokens", n));
    let (paged, inputs) = (&job.problem.paged, job.problem.inputs());
    let selection = match (job.stage, job.lists) {
        (Stage::Attend, Some(lists)) => PlanSelection::Lists { stride: lists.stride },
        (Stage::Attend | Stage::AppendKv, _) => PlanSelection::Dense,
        _ => PlanSelection::Stem(*job.config),
    };
    let plan = Plan::new(
        backend.kernels(),
        backend.stream(),
        &PlanDesc {
            hq: inputs.hq,
            hkv: inputs.hkv,
            cu_seqlens_q: &[0, length(tokens)?],
            cu_seqlens_kv: &[0, length(kv_tokens)?],
            prompt_lens: inputs.prompt_lens,
            pages: PageDesc::dense(PageLayout::Nhd, inputs.hkv, paged.page_size, paged.pages, paged.table_stride),
            selection,
            causal: true,
            softmax_scale: default_softmax_scale(),
        },
    )?;
    // A history's plan has fewer tokens than the tensor, and does not read it.
    let q_scale = (job.q_scale == QScaleOrder::HeadsFirst).then(|| ScaleStrides::heads_first(job.problem.shape.tokens));
    plan.with_rows(TensorRows { q_scale, ..TensorRows::default() })
}

impl CudaEngine<'_> {
    /// Milliseconds of the device.
    fn time_device(&mut self, n: usize) -> Result<Vec<f64>> {
        let stream = self.backend.stream().clone();
        let timers = (0..n).map(|_| EventTimer::new(self.backend.device())).collect::<Result<Vec<_>>>()?;
        for timer in &timers {
            if self.job.pause > 0 {
                stream.synchronize().map_err(driver_error("cuStreamSynchronize"))?;
                sleep(Duration::from_millis(self.job.pause.into()));
            }
            if let Some(flush) = &mut self.flush {
                buffer::fill_bytes(&stream, flush, 0)?;
            }
            timer.start(&stream)?;
            for _ in 0..self.job.in_a_row {
                self.launch()?;
            }
            timer.stop(&stream)?;
        }
        timers.iter().map(|timer| Ok(timer.elapsed_ms()? / f64::from(self.job.in_a_row))).collect()
    }

    /// Milliseconds of the host. The device is idle at each start and what it does meanwhile is not waited for.
    fn time_host(&mut self, n: usize) -> Result<Vec<f64>> {
        let stream = self.backend.stream().clone();
        let mut samples = Vec::with_capacity(n);
        for _ in 0..n {
            stream.synchronize().map_err(driver_error("cuStreamSynchronize"))?;
            let start = Instant::now();
            if self.job.stage == Stage::HostPlan {
                let plan = plan(self.backend, &self.job)?;
                samples.push(start.elapsed());
                drop(plan);
            } else {
                self.launch()?;
                samples.push(start.elapsed());
            }
        }
        Ok(samples.into_iter().map(|d| d.as_secs_f64() * 1e3).collect())
    }
}

impl Engine for CudaEngine<'_> {
    fn time(&mut self, n: usize) -> Result<Vec<f64>> {
        if self.job.stage.on_host() { self.time_host(n) } else { self.time_device(n) }
    }

    fn output(&mut self) -> Result<Output> {
        let (stream, problem) = (self.backend.stream(), self.job.problem);
        let lists = || Ok(self.plan.download_lists(stream, &self.workspace)?.unwrap_or_default());
        Ok(match self.job.stage {
            Stage::Attend | Stage::Prefill | Stage::HostRun => {
                let lists = match (self.job.stage, self.job.lists) {
                    (Stage::Attend, Some(given)) => given.clone(),
                    (Stage::Attend, None) => BlockLists::dense(problem.shape.hq, self.plan.geometry())?,
                    _ => lists()?,
                };
                Output::Attention { out: buffer::download(stream, &self.out, problem.q.len())?, lists }
            }
            Stage::Select | Stage::Selection => {
                // The lists first: they are those of the last launch, which kept its scores to itself.
                let lists = lists()?;
                let scores = self.plan.scores(stream, &self.tensors.prefill(), &mut self.workspace)?.unwrap_or_default();
                Output::Selection { scores, score_stride: self.plan.score_stride(), lists }
            }
            Stage::SummarizeKv | Stage::SummarizeChunk => Output::Summaries(self.plan.download_summaries(stream, &self.workspace)?),
            Stage::ProbeMeans => Output::KeyMeans(self.plan.download_key_means(stream, &self.workspace)?),
            Stage::AppendKv => {
                let len = problem.paged.k_pages.len();
                let download = |pages| buffer::download(stream, pages, len);
                Output::Pages { k: download(&self.tensors.k_pages)?, v: download(&self.tensors.v_pages)? }
            }
            Stage::HostPlan => Output::Geometry(self.plan.geometry().clone()),
        })
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn scales_of_a_head_side_by_side() {
        assert_eq!(super::heads_first(&[0.0, 10.0, 1.0, 11.0, 2.0, 12.0], 2), [0.0, 1.0, 2.0, 10.0, 11.0, 12.0]);
        assert!(super::heads_first(&[], 3).is_empty());
    }
}
