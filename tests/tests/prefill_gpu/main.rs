//! The whole pipeline on a GPU against the CPU reference, on random batches and on a real capture.
//!
//! Buffers are filled with 0xFF before a run, so that what a kernel forgets to write is NaN or -1 and fails.

mod capture;
mod chunks;
mod graph;
mod lists;
mod pipeline;
mod stages;

use half::bf16;
use stem_attn::cuda::{CudaBackend, DeviceInputs};
use stem_attn::driver::buffer;
use stem_attn::kv::PageLayout;
use stem_attn::plan::{Plan, PlanDesc, PlanSelection, PrefillOutputs, PrefillTensors, Workspace, default_softmax_scale};
use stem_attn::reference::error::relative;
use stem_attn::reference::{self, AttendInputs, AttendOutput};
use stem_attn::{BlockLists, Geometry, Preset, Schedule, Selection, StemConfig};
use stem_attn_tests::batch::Batch;
use stem_attn_tests::gpu::POISON;
use stem_attn_tests::oracle::lse_tolerance_of_keys;

/// A batch and how it is run.
struct Case<'a> {
    batch: &'a Batch,
    page_size: usize,
    layout: PageLayout,
    causal: bool,
    selection: Selection<'a>,
}

/// What came back.
struct Done {
    geometry: Geometry,
    out: Vec<bf16>,
    lse: Vec<f32>,
    lists: BlockLists,
    scores: Vec<f32>,
    score_stride: usize,
}

impl<'a> Case<'a> {
    fn new(batch: &'a Batch, selection: Selection<'a>) -> Self {
        Self { batch, page_size: 64, layout: PageLayout::Nhd, causal: true, selection }
    }

    fn geometry(&self) -> Geometry {
        let config = if let Selection::Stem(config) = self.selection { Some(config) } else { None };
        self.batch.geometry(self.causal, config)
    }

    fn plan(&self, backend: &CudaBackend, inputs: &DeviceInputs) -> Plan {
        let batch = self.batch;
        let desc = PlanDesc {
            hq: batch.hq,
            hkv: batch.hkv,
            cu_seqlens_q: &batch.cu_seqlens_q,
            cu_seqlens_kv: &batch.cu_seqlens_kv,
            prompt_lens: &batch.prompt_lens,
            pages: inputs.pages(),
            selection: match self.selection {
                Selection::Dense => PlanSelection::Dense,
                Selection::Stem(config) => PlanSelection::Stem(*config),
                Selection::Lists(lists) => PlanSelection::Lists { stride: lists.stride },
            },
            causal: self.causal,
            softmax_scale: default_softmax_scale(),
        };
        Plan::new(backend.kernels(), backend.stream(), &desc).expect("a plan")
    }

    fn upload(&self, backend: &CudaBackend) -> DeviceInputs {
        DeviceInputs::upload(backend.stream(), &self.batch.inputs(), self.page_size, self.layout).expect("upload")
    }

    /// One run into poisoned buffers.
    fn run(&self, backend: &CudaBackend) -> Done {
        let mut inputs = self.upload(backend);
        let plan = self.plan(backend, &inputs);
        if let Selection::Lists(lists) = self.selection {
            inputs.set_lists(Some(plan.upload_lists(backend.stream(), lists).expect("valid lists")));
        }
        self.launch(backend, &plan, &inputs)
    }

    /// One run into poisoned buffers, on tensors already uploaded.
    fn launch(&self, backend: &CudaBackend, plan: &Plan, inputs: &DeviceInputs) -> Done {
        self.launch_on(backend, plan, &inputs.tensors())
    }

    /// As [`Self::launch`], on any tensors of the plan.
    fn launch_on(&self, backend: &CudaBackend, plan: &Plan, tensors: &PrefillTensors<'_>) -> Done {
        let stream = backend.stream();
        let mut workspace = Workspace::new(stream, plan.workspace_bytes()).expect("workspace");
        buffer::fill_bytes(stream, workspace.buffer_mut(), POISON).expect("poison");
        let rows = self.batch.q_scale.len();
        let mut out = buffer::zeroed::<bf16>(stream, rows * 128).expect("out");
        let mut lse = buffer::zeroed::<f32>(stream, rows).expect("lse");
        buffer::fill_bytes(stream, &mut out, POISON).expect("poison");
        buffer::fill_bytes(stream, &mut lse, POISON).expect("poison");
        let mut outputs = PrefillOutputs { out: out.as_view_mut(), lse: Some(lse.as_view_mut()) };
        plan.run(stream, tensors, &mut workspace, &mut outputs).expect("run");
        let lists = match self.selection {
            Selection::Dense => BlockLists::dense(self.batch.hq, plan.geometry()).expect("lists"),
            Selection::Lists(lists) => lists.clone(),
            Selection::Stem(_) => plan.download_lists(stream, &workspace).expect("lists").expect("a selecting plan"),
        };
        Done {
            geometry: plan.geometry().clone(),
            out: buffer::download(stream, &out, rows * 128).expect("out"),
            lse: buffer::download(stream, &lse, rows).expect("lse"),
            lists,
            scores: plan.scores(stream, tensors, &mut workspace).expect("scores").unwrap_or_default(),
            score_stride: plan.score_stride(),
        }
    }

    /// Exact attention over the blocks of `lists`.
    fn exact(&self, lists: &BlockLists) -> AttendOutput<f64> {
        let batch = self.batch;
        let paged = batch.paged(self.page_size, self.layout, None);
        let inputs = AttendInputs {
            q: &batch.q,
            q_scale: &batch.q_scale,
            kv: paged.view(),
            k_scale: batch.inputs().k_head_scale(),
            v_scale: &batch.v_scale,
            hq: batch.hq,
            geometry: &self.geometry(),
            lists: Some(lists),
            softmax_scale: reference::default_softmax_scale(),
        };
        reference::attend_f64(&inputs).expect("the reference")
    }

    /// Keys in the lists of every token and head, `[total_q, hq]`; those that a token does not see yet included.
    fn keys(&self, done: &Done) -> Vec<usize> {
        let mut keys = vec![0; done.lse.len()];
        for row in 0..done.geometry.total_qb() {
            let (_, request) = done.geometry.row(row).expect("a row");
            for (t, head) in done.geometry.tokens(row).flat_map(|t| (0..self.batch.hq).map(move |head| (t, head))) {
                keys[(request.q_start as usize + t) * self.batch.hq + head] = 128 * done.lists.row(head, row).len();
            }
        }
        keys
    }

    /// Runs, and compares outputs, log-sum-exps and lists with the CPU. `tolerance` bounds the relative error of all rows
    /// together; `row_tolerance` that of each row.
    fn check(&self, backend: &CudaBackend, tolerance: f64, row_tolerance: f64) -> Done {
        let done = self.run(backend);
        done.lists.validate(self.batch.hq, &done.geometry).expect("lists that the rows may have");
        if let Selection::Stem(config) = self.selection {
            let want = reference::topk(&done.scores, done.score_stride, self.batch.hq, &done.geometry, config).expect("top-k");
            assert_eq!(done.lists, want, "lists differ from the CPU's top-k of the same scores");
        }
        let exact = self.exact(&done.lists);
        let out: Vec<f32> = done.out.iter().map(|x| x.to_f32()).collect();
        let error = relative(&out, &exact.out);
        println!("relative error {error:.5}");
        assert!(error <= tolerance, "relative error {error} of the output");
        for (row, (got, want)) in out.chunks_exact(128).zip(exact.out.chunks_exact(128)).enumerate() {
            let error = relative(got, want);
            assert!(error <= row_tolerance, "row {row}: relative error {error}");
        }
        let keys = self.keys(&done);
        for (row, (&got, &want)) in done.lse.iter().zip(&exact.lse).enumerate() {
            let got = f64::from(got);
            let tolerance = lse_tolerance_of_keys(keys[row], want);
            assert!(got == want || (got - want).abs() <= tolerance, "row {row}: log-sum-exp {got}, exactly {want}");
        }
        done
    }
}

/// Random data: P in e4m3 alone gives 0.026.
const RANDOM: f64 = 0.03;
/// One row of random data. The CPU model of the kernel stays below 0.04; a wrong block or mask gives far more than this.
const RANDOM_ROW: f64 = 0.08;

/// A configuration that has to choose in short prompts.
fn choosy(alpha: f32) -> StemConfig {
    StemConfig { schedule: Schedule::Ratio { ratio: 0.3, floor: 2 }, alpha, sink: 1, window: 1, ..StemConfig::preset(Preset::Hpc) }
}
