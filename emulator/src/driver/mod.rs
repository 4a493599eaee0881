//! The entry points of libcuda that cudarc calls, by area. Work is done when it is queued, or joins the graph that its stream
//! captures.
//!
//! Every function here is called from C with the driver's own contract: places for results are the caller's to write, arrays
//! have the lengths that their counts say, handles came from here. Handles are numbers, so a wrong one is an error and not a fault.

// The driver chose these names.
#![allow(non_snake_case)]

mod device;
mod launch;
mod memory;
mod module;
mod stream;
mod tensor_map;

use crate::isa::Kernel;
use crate::settings::Settings;
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};

/// A result of the driver.
type Code = c_int;
const SUCCESS: Code = 0;
const INVALID_VALUE: Code = 1;
const OUT_OF_MEMORY: Code = 2;
const INVALID_DEVICE: Code = 101;
const INVALID_PTX: Code = 218;
const INVALID_HANDLE: Code = 400;
const NOT_FOUND: Code = 500;
const LAUNCH_FAILED: Code = 719;
const UNKNOWN: Code = 999;

/// Writes a result where the caller wants it; a null place is an invalid value.
macro_rules! give {
    ($to:expr, $value:expr) => {{
        let (to, value) = ($to, $value);
        if to.is_null() {
            $crate::driver::INVALID_VALUE
        } else {
            // SAFETY: not null, and by the driver's contract the caller's to write.
            unsafe { to.write(value) };
            $crate::driver::SUCCESS
        }
    }};
}
use give;

/// Work that a stream does.
type Job = Arc<dyn Fn() -> Code + Send + Sync>;

/// A kernel of a module that was loaded.
struct Function {
    kernel: Kernel,
    /// Bytes of shared memory that a launch may ask for.
    shared_bytes: AtomicU32,
}

/// What handles stand for.
#[derive(Default)]
struct State {
    /// The last handle, and how many launches there were.
    last: u64,
    launches: u64,
    /// Names of kernels with their handles, and addresses of tables, of each module.
    modules: HashMap<u64, (HashMap<String, u64>, Vec<u64>)>,
    functions: HashMap<u64, Arc<Function>>,
    /// Work of streams that capture.
    captures: HashMap<u64, Vec<Job>>,
    graphs: HashMap<u64, Arc<Vec<Job>>>,
}

impl State {
    fn handle(&mut self) -> u64 {
        // No pointer that a caller might have is as small.
        self.last += 16;
        self.last
    }
}

fn state() -> MutexGuard<'static, State> {
    static STATE: LazyLock<Mutex<State>> = LazyLock::new(Mutex::default);
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn settings() -> &'static Settings {
    static SETTINGS: OnceLock<Settings> = OnceLock::new();
    SETTINGS.get_or_init(Settings::from_env)
}

/// `STEM_EMULATOR_WITHOUT`: a kernel and a line of its text that is left out, written `kernel:line`.
fn left_out() -> Option<(String, u32)> {
    let text = std::env::var("STEM_EMULATOR_WITHOUT").ok()?;
    let (name, line) = text.split_once(':')?;
    Some((name.to_owned(), line.parse().ok()?))
}

/// Does a job, or adds it to what its stream captures.
fn queue(stream: u64, job: impl Fn() -> Code + Send + Sync + 'static) -> Code {
    if let Some(jobs) = state().captures.get_mut(&stream) {
        jobs.push(Arc::new(job));
        return SUCCESS;
    }
    job()
}

/// Does what may hold a mistake of the emulator's own, as far as the caller is concerned without a panic: the panic's message is
/// printed, as any is.
fn guarded(work: impl FnOnce() -> Code) -> Code {
    // What a panic leaves half done belongs to the launch or module that failed; locks forget that they were poisoned.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| complain(UNKNOWN, &"a mistake in the emulator"))
}

/// Prints what went wrong, where the caller of a driver gets no more than a number.
fn complain(code: Code, what: &dyn std::fmt::Display) -> Code {
    eprintln!("emulator: {what}");
    code
}

fn name(code: Code) -> &'static CStr {
    match code {
        SUCCESS => c"CUDA_SUCCESS",
        INVALID_VALUE => c"CUDA_ERROR_INVALID_VALUE",
        OUT_OF_MEMORY => c"CUDA_ERROR_OUT_OF_MEMORY",
        INVALID_DEVICE => c"CUDA_ERROR_INVALID_DEVICE",
        INVALID_PTX => c"CUDA_ERROR_INVALID_PTX",
        INVALID_HANDLE => c"CUDA_ERROR_INVALID_HANDLE",
        NOT_FOUND => c"CUDA_ERROR_NOT_FOUND",
        LAUNCH_FAILED => c"CUDA_ERROR_LAUNCH_FAILED",
        _ => c"CUDA_ERROR_UNKNOWN",
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorName(code: Code, to: *mut *const c_char) -> Code {
    give!(to, name(code).as_ptr())
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorString(code: Code, to: *mut *const c_char) -> Code {
    let text = match code {
        LAUNCH_FAILED => c"the kernel failed; the emulator printed why",
        INVALID_PTX => c"the text of the module cannot be read; the emulator printed why",
        _ => name(code),
    };
    give!(to, text.as_ptr())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_result() {
        assert_eq!(guarded(|| SUCCESS), SUCCESS);
        assert_eq!(guarded(|| panic!("on purpose")), UNKNOWN);
    }
}
