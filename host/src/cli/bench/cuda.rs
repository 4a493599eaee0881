//! The stages on a GPU, through a [`Plan`].

use super::engine::{Engine, Output, Stage};
use super::problem::Problem;
use crate::config::StemConfig;
use crate::cuda::CudaBackend;
use crate::driver::{CudaSlice, EventTimer, buffer};
use crate::error::Result;
use crate::kv::PageLayout;
use crate::mask::BlockLists;
use crate::ops::PageDesc;
use crate::plan::{
    AppendTensors, ListTensors, Plan, PlanDesc, PlanSelection, PrefillOutputs, PrefillTensors, Workspace, default_softmax_scale,
};
use float8::F8E4M3;
use half::bf16;

/// One stage of one problem, everything it touches in device memory.
pub struct CudaEngine<'a> {
    backend: &'a CudaBackend,
    stage: Stage,
    problem: &'a Problem,
    lists: Option<&'a BlockLists>,
    plan: Plan,
    tensors: Tensors,
    workspace: Workspace,
    out: CudaSlice<bf16>,
}

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
    /// Copies the problem to the GPU and runs what the stage reads. `lists`: blocks that `attend` attends to; `None` is
    /// every visible one.
    pub fn new(
        backend: &'a CudaBackend,
        stage: Stage,
        problem: &'a Problem,
        config: &'a StemConfig,
        lists: Option<&'a BlockLists>,
    ) -> Result<Self> {
        let (stream, paged, inputs) = (backend.stream(), &problem.paged, problem.inputs());
        let selection = match (stage, lists) {
            (Stage::Attend, Some(lists)) => PlanSelection::Lists { stride: lists.stride },
            (Stage::Attend | Stage::AppendKv, _) => PlanSelection::Dense,
            (Stage::Select | Stage::SummarizeKv | Stage::Prefill, _) => PlanSelection::Stem(*config),
        };
        let plan = Plan::new(
            backend.kernels(),
            stream,
            &PlanDesc {
                hq: inputs.hq,
                hkv: inputs.hkv,
                cu_seqlens_q: inputs.cu_seqlens_q,
                cu_seqlens_kv: inputs.cu_seqlens_kv,
                prompt_lens: inputs.prompt_lens,
                pages: PageDesc::dense(PageLayout::Nhd, inputs.hkv, paged.page_size, paged.pages, paged.table_stride),
                selection,
                causal: true,
                softmax_scale: default_softmax_scale(),
            },
        )?;
        let new_rows = match stage {
            Stage::AppendKv => {
                let (k, v) = problem.new_rows();
                Some((buffer::upload(stream, &k)?, buffer::upload(stream, &v)?))
            }
            _ => None,
        };
        let tensors = Tensors {
            q: buffer::upload(stream, inputs.q)?,
            q_scale: buffer::upload(stream, inputs.q_scale)?,
            k_pages: buffer::upload(stream, &paged.k_pages)?,
            v_pages: buffer::upload(stream, &paged.v_pages)?,
            page_table: buffer::upload(stream, &paged.table)?,
            one: buffer::upload(stream, &[1.0])?,
            lists: lists.map(|lists| plan.upload_lists(stream, lists)).transpose()?,
            new_rows,
        };
        let mut workspace = Workspace::new(stream, plan.workspace_bytes())?;
        // A chunk finds the summaries of its history in the workspace.
        let continues = problem.shape.history() > 0;
        if continues || matches!(stage, Stage::Select | Stage::Attend) {
            plan.summarize_kv(stream, &tensors.prefill(), &mut workspace)?;
        }
        let plan = plan.continuing(continues);
        let out = buffer::zeroed(stream, problem.q.len())?;
        Ok(Self { backend, stage, problem, lists, plan, tensors, workspace, out })
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
        match self.stage {
            Stage::SummarizeKv | Stage::AppendKv => self.plan.summarize_kv(stream, &tensors, &mut self.workspace),
            Stage::Select => self.plan.select(stream, &tensors, &mut self.workspace),
            Stage::Attend => self.plan.attend(stream, &tensors, &self.workspace, &mut outputs),
            Stage::Prefill => self.plan.run(stream, &tensors, &mut self.workspace, &mut outputs),
        }
    }
}

impl Engine for CudaEngine<'_> {
    fn time(&mut self, n: usize) -> Result<Vec<f64>> {
        let stream = self.backend.stream().clone();
        let timers = (0..n).map(|_| EventTimer::new(self.backend.device())).collect::<Result<Vec<_>>>()?;
        for timer in &timers {
            timer.start(&stream)?;
            self.launch()?;
            timer.stop(&stream)?;
        }
        timers.iter().map(EventTimer::elapsed_ms).collect()
    }

    fn output(&mut self) -> Result<Output> {
        let stream = self.backend.stream();
        let lists = || Ok(self.plan.download_lists(stream, &self.workspace)?.unwrap_or_default());
        Ok(match self.stage {
            Stage::Attend | Stage::Prefill => {
                let lists = match (self.stage, self.lists) {
                    (Stage::Prefill, _) => lists()?,
                    (_, Some(given)) => given.clone(),
                    (_, None) => BlockLists::dense(self.problem.shape.hq, self.plan.geometry())?,
                };
                Output::Attention { out: buffer::download(stream, &self.out, self.problem.q.len())?, lists }
            }
            Stage::Select => {
                // The lists first: they are those of the last launch, which kept its scores to itself.
                let lists = lists()?;
                let scores = self.plan.scores(stream, &self.tensors.prefill(), &mut self.workspace)?.unwrap_or_default();
                Output::Selection { scores, score_stride: self.plan.score_stride(), lists }
            }
            Stage::SummarizeKv => Output::Summaries(self.plan.download_summaries(stream, &self.workspace)?),
            Stage::AppendKv => {
                let len = self.problem.paged.k_pages.len();
                let download = |pages| buffer::download(stream, pages, len);
                Output::Pages { k: download(&self.tensors.k_pages)?, v: download(&self.tensors.v_pages)? }
            }
        })
    }
}
