//! Launches.

use super::{Code, Function, INVALID_HANDLE, INVALID_VALUE, LAUNCH_FAILED, SUCCESS, complain, give, guarded, queue, settings, state};
use crate::machine::{self, Launch};
use std::ffi::{c_int, c_uint, c_void};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// `CUlaunchAttribute`.
#[repr(C)]
struct Attribute {
    id: c_uint,
    pad: [u8; 4],
    value: [u32; 16],
}

/// The attribute that holds the extents of a cluster.
const CLUSTER: c_uint = 4;

/// `CUlaunchConfig`.
#[repr(C)]
struct Config {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared_bytes: c_uint,
    stream: u64,
    attributes: *const Attribute,
    count: c_uint,
}

impl Config {
    /// Blocks of a cluster, along x; nothing where they extend along others.
    fn cluster(&self) -> Option<u32> {
        if self.count == 0 || self.attributes.is_null() {
            return Some(1);
        }
        // SAFETY: the driver's contract: so many attributes.
        let all = unsafe { std::slice::from_raw_parts(self.attributes, self.count as usize) };
        match all.iter().find(|a| a.id == CLUSTER).map(|a| a.value) {
            Some([x, 1, 1, ..]) => Some(x.max(1)),
            Some(_) => None,
            None => Some(1),
        }
    }
}

/// Alignment of parameters: that of a tensor map.
const ALIGN: usize = 64;

/// The parameters of a launch in the kernel's layout.
///
/// # Safety
/// `args` points to as many places as the kernel has parameters, each with the parameter's bytes.
unsafe fn parameters(function: &Function, args: *const *const u8) -> Vec<u8> {
    let mut out = vec![0; function.kernel.param_bytes()];
    for (i, param) in function.kernel.params.iter().enumerate() {
        // SAFETY: the caller's promise.
        let from = unsafe { std::slice::from_raw_parts(*args.add(i), param.bytes) };
        out[param.offset..param.offset + param.bytes].copy_from_slice(from);
    }
    out
}

/// Runs a launch, and says what went wrong.
fn run(launch: Launch, params: &[u8]) -> Code {
    let mut room = vec![0; params.len() + ALIGN - 1];
    let skip = room.as_ptr().align_offset(ALIGN);
    let Some(aligned) = room.get_mut(skip..).and_then(|r| r.get_mut(..params.len())) else { return INVALID_VALUE };
    aligned.copy_from_slice(params);
    let serial = {
        let mut state = state();
        state.launches += 1;
        state.launches
    };
    let start = Instant::now();
    let result = machine::run(&Launch { params: aligned, serial, ..launch });
    if launch.settings.log {
        let Launch { kernel, grid, cluster, .. } = launch;
        eprintln!("emulator: {} grid {grid:?} cluster {cluster} {:.3} s", kernel.name, start.elapsed().as_secs_f64());
    }
    match result {
        Ok(()) => SUCCESS,
        Err(error) => complain(LAUNCH_FAILED, &error),
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuLaunchKernelEx(config: *const Config, function: u64, args: *const *const u8, _: *mut c_void) -> Code {
    // SAFETY: the driver's contract: a valid configuration.
    let Some(config) = (unsafe { config.as_ref() }) else { return INVALID_VALUE };
    let function: Option<Arc<Function>> = state().functions.get(&function).cloned();
    let Some(function) = function else { return INVALID_HANDLE };
    let limit = function.shared_bytes.load(Ordering::Relaxed);
    let Config { grid, block: [threads, y, z], shared_bytes, .. } = *config;
    let Some(cluster) = config.cluster().filter(|_| y == 1 && z == 1 && shared_bytes <= limit) else {
        return complain(
            INVALID_VALUE,
            &format!("{}: blocks of {threads} x {y} x {z}, {shared_bytes} bytes of {limit}", function.kernel.name),
        );
    };
    if args.is_null() && !function.kernel.params.is_empty() {
        return INVALID_VALUE;
    }
    // SAFETY: the driver's contract: a place for each parameter.
    let params = unsafe { parameters(&function, args) };
    queue(config.stream, move || {
        let launch =
            Launch { kernel: &function.kernel, grid, cluster, threads, shared_bytes, params: &[], settings: settings(), serial: 0 };
        guarded(|| run(launch, &params))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuOccupancyMaxActiveClusters(to: *mut c_int, _: u64, config: *const Config) -> Code {
    // SAFETY: the driver's contract: a valid configuration.
    let cluster = unsafe { config.as_ref() }.and_then(Config::cluster);
    let Some(cluster) = cluster else { return INVALID_VALUE };
    give!(to, (settings().multiprocessors / cluster).max(1) as c_int)
}
