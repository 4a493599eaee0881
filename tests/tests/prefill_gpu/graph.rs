//! Runs without allocation or waiting: captured in a CUDA graph, replayed on new data; and bad tensors, before a launch.

use super::{Case, choosy};
use half::bf16;
use stem_attn::driver::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use stem_attn::driver::{CudaSlice, CudaStream, DevicePtr, buffer};
use stem_attn::ops::{Scales, Span};
use stem_attn::plan::{PrefillOutputs, PrefillTensors, RawOutputs, RawTensors, Workspace};
use stem_attn::{Error, Selection};
use stem_attn_tests::batch::Batch;
use stem_attn_tests::gpu::{POISON, backend};

fn whole(out: &mut CudaSlice<bf16>) -> PrefillOutputs<'_> {
    PrefillOutputs { out: out.as_view_mut(), lse: None }
}

fn span<T, B: DevicePtr<T>>(stream: &CudaStream, buffer: &B) -> Span<T> {
    let len = buffer.len();
    let (address, _guard) = buffer.device_ptr(stream);
    // SAFETY: one stream, and the test keeps its buffers until the graph is gone.
    unsafe { Span::from_raw(address, len) }
}

fn raw(stream: &CudaStream, t: &PrefillTensors<'_>) -> RawTensors {
    RawTensors {
        q: span(stream, &t.q),
        q_scale: span(stream, &t.q_scale),
        k_pages: span(stream, &t.k_pages),
        v_pages: span(stream, &t.v_pages),
        page_table: span(stream, &t.page_table),
        scales: Scales {
            k: span(stream, &t.k_scale),
            v: span(stream, &t.v_scale),
            k_token: t.k_token_scale.as_ref().map(|s| span(stream, s)),
        },
        lists: None,
    }
}

#[test]
fn a_captured_run_replays() {
    let Some(gpu) = backend() else { return };
    let stream = gpu.stream();
    let batch = Batch::random(31, 4, 2, &[(300, 1000), (129, 517)]);
    let config = choosy(0.7);
    let case = Case::new(&batch, Selection::Stem(&config));
    // Also loads every kernel: the driver may not do that while capturing.
    let want = case.run(gpu);

    let inputs = case.upload(gpu);
    let plan = case.plan(gpu, &inputs);
    let mut workspace = Workspace::new(stream, plan.workspace_bytes()).expect("workspace");
    let rows = batch.q_scale.len();
    let mut out: CudaSlice<bf16> = buffer::zeroed(stream, rows * 128).expect("out");
    let tensors = raw(stream, &inputs.tensors());
    let scratch = span(stream, workspace.buffer());
    let outputs = RawOutputs { out: span(stream, &out), lse: None };
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("begin");
    let queued = plan.run_raw(stream, &tensors, scratch, &outputs);
    let graph = stream.end_capture(CUgraphInstantiate_flags(0)).expect("end").expect("a graph");
    queued.expect("a run that can be captured");
    for _ in 0..3 {
        buffer::fill_bytes(stream, workspace.buffer_mut(), POISON).expect("poison");
        buffer::fill_bytes(stream, &mut out, POISON).expect("poison");
        graph.launch().expect("replay");
        assert_eq!(buffer::download(stream, &out, rows * 128).expect("out"), want.out);
    }
    drop(graph);
}

#[test]
fn tensors_that_do_not_fit_are_named_and_nothing_runs() {
    let Some(gpu) = backend() else { return };
    let stream = gpu.stream();
    let batch = Batch::random(32, 4, 2, &[(300, 1000)]);
    let case = Case::new(&batch, Selection::Dense);
    let inputs = case.upload(gpu);
    let plan = case.plan(gpu, &inputs);
    let rows = batch.q_scale.len();
    let mut small = Workspace::new(stream, 1024).expect("workspace");
    let mut large = Workspace::new(stream, plan.workspace_bytes()).expect("workspace");
    buffer::fill_bytes(stream, large.buffer_mut(), POISON).expect("poison");
    let mut out: CudaSlice<bf16> = buffer::zeroed(stream, rows * 128).expect("out");
    let mut short: CudaSlice<bf16> = buffer::zeroed(stream, rows * 128 - 1).expect("out");
    let named = |result: stem_attn::Result<()>, name: &str| match result {
        Err(Error::Shape { tensor, .. }) => assert_eq!(tensor, name),
        other => panic!("{name}: {other:?}"),
    };
    let tensors = inputs.tensors();
    named(plan.run(stream, &tensors, &mut small, &mut whole(&mut out)), "workspace");
    named(plan.run(stream, &tensors, &mut large, &mut whole(&mut short)), "out");
    let cut = PrefillTensors { q: tensors.q.slice(..rows * 128 - 1), ..inputs.tensors() };
    named(plan.run(stream, &cut, &mut large, &mut whole(&mut out)), "q");
    let cut = PrefillTensors { page_table: tensors.page_table.slice(..3), ..inputs.tensors() };
    named(plan.run(stream, &cut, &mut large, &mut whole(&mut out)), "page_table");
    let bytes = buffer::download(stream, large.buffer(), plan.workspace_bytes()).expect("workspace");
    assert!(bytes.iter().all(|&b| b == POISON), "nothing was launched");
}
