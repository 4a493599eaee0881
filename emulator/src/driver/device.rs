//! The driver, its one device and its one context.

use super::{Code, INVALID_DEVICE, INVALID_VALUE, SUCCESS, give, settings};
use crate::machine::{SHARED_BYTES, THREADS};
use std::ffi::{c_char, c_int, c_uint};

/// CUDA 12.8.
const VERSION: c_int = 12080;
/// Memory that the device claims to have.
const MEMORY: usize = 8 << 30;
/// The context.
const CONTEXT: u64 = 0x77;

#[unsafe(no_mangle)]
extern "C" fn cuInit(_: c_uint) -> Code {
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cuDriverGetVersion(to: *mut c_int) -> Code {
    give!(to, VERSION)
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetCount(to: *mut c_int) -> Code {
    give!(to, 1)
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGet(to: *mut c_int, ordinal: c_int) -> Code {
    if ordinal == 0 { give!(to, 0) } else { INVALID_DEVICE }
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetName(to: *mut c_char, len: c_int, _: c_int) -> Code {
    let name = c"emulated sm_90a".to_bytes_with_nul();
    if to.is_null() || usize::try_from(len).is_ok_and(|len| len < name.len()) || len < 0 {
        return INVALID_VALUE;
    }
    // SAFETY: the caller's place has `len` bytes, which are enough.
    unsafe { std::ptr::copy_nonoverlapping(name.as_ptr(), to.cast(), name.len()) };
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetUuid_v2(to: *mut [u8; 16], _: c_int) -> Code {
    give!(to, *b"stem-attn-emulat")
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceTotalMem_v2(to: *mut usize, _: c_int) -> Code {
    give!(to, MEMORY)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Code {
    match give!(free, MEMORY) {
        SUCCESS => give!(total, MEMORY),
        code => code,
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetAttribute(to: *mut c_int, attribute: c_int, _: c_int) -> Code {
    let value = match attribute {
        // Threads of a block; shared memory without and with the opt-in; threads of a warp.
        1 => THREADS as c_int,
        8 => 48 << 10,
        97 => SHARED_BYTES as c_int,
        10 => 32,
        // Clocks in kHz, bits of the memory bus, bytes of L2: those of an H100.
        13 => 1_980_000,
        36 => 2_619_000,
        37 => 5120,
        38 => 50 << 20,
        16 => settings().multiprocessors as c_int,
        // Compute capability, and cooperative launches of clusters.
        75 => 9,
        120 => 1,
        // What is not there has the number 0.
        _ => 0,
    };
    give!(to, value)
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRetain(to: *mut u64, _: c_int) -> Code {
    give!(to, CONTEXT)
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(_: c_int) -> Code {
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(_: u64) -> Code {
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetCurrent(to: *mut u64) -> Code {
    give!(to, CONTEXT)
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> Code {
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) -> Code {
    match give!(least, 0) {
        SUCCESS => give!(greatest, 0),
        code => code,
    }
}
