//! Streams, events and graphs. Work is done when it is queued, so there is nothing to wait for; and there is no time.

use super::{Code, INVALID_HANDLE, SUCCESS, give, state};
use std::ffi::{c_int, c_uint};
use std::sync::Arc;

/// Milliseconds between any two events.
const ELAPSED: f32 = 1.0;

#[unsafe(no_mangle)]
extern "C" fn cuStreamCreate(to: *mut u64, _: c_uint) -> Code {
    give!(to, state().handle())
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamCreateWithPriority(to: *mut u64, _: c_uint, _: c_int) -> Code {
    give!(to, state().handle())
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(stream: u64) -> Code {
    state().captures.remove(&stream);
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(_: u64) -> Code {
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitEvent(_: u64, _: u64, _: c_uint) -> Code {
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamIsCapturing(stream: u64, to: *mut c_int) -> Code {
    give!(to, c_int::from(state().captures.contains_key(&stream)))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamBeginCapture_v2(stream: u64, _: c_int) -> Code {
    state().captures.insert(stream, Vec::new());
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamEndCapture(stream: u64, to: *mut u64) -> Code {
    let mut state = state();
    let Some(jobs) = state.captures.remove(&stream) else { return INVALID_HANDLE };
    let handle = state.handle();
    state.graphs.insert(handle, Arc::new(jobs));
    give!(to, handle)
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphInstantiateWithFlags(to: *mut u64, graph: u64, _: u64) -> Code {
    let mut state = state();
    let Some(jobs) = state.graphs.get(&graph).cloned() else { return INVALID_HANDLE };
    let handle = state.handle();
    state.graphs.insert(handle, jobs);
    give!(to, handle)
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphUpload(_: u64, _: u64) -> Code {
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphLaunch(graph: u64, _: u64) -> Code {
    let jobs = state().graphs.get(&graph).cloned();
    let Some(jobs) = jobs else { return INVALID_HANDLE };
    jobs.iter().map(|job| job()).find(|code| *code != SUCCESS).unwrap_or(SUCCESS)
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphDestroy(graph: u64) -> Code {
    if state().graphs.remove(&graph).is_some() { SUCCESS } else { INVALID_HANDLE }
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphExecDestroy(graph: u64) -> Code {
    cuGraphDestroy(graph)
}

#[unsafe(no_mangle)]
extern "C" fn cuEventCreate(to: *mut u64, _: c_uint) -> Code {
    give!(to, state().handle())
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(_: u64, _: u64) -> Code {
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(_: u64) -> Code {
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cuEventQuery(_: u64) -> Code {
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(_: u64) -> Code {
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cuEventElapsedTime(to: *mut f32, _: u64, _: u64) -> Code {
    give!(to, ELAPSED)
}

#[unsafe(no_mangle)]
extern "C" fn cuEventElapsedTime_v2(to: *mut f32, _: u64, _: u64) -> Code {
    give!(to, ELAPSED)
}
