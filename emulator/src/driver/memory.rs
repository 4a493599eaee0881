//! Allocations, copies and fills.

use super::{Code, INVALID_VALUE, OUT_OF_MEMORY, SUCCESS, complain, give, queue};
use crate::memory;
use std::ffi::c_uint;

#[unsafe(no_mangle)]
extern "C" fn cuMemAlloc_v2(to: *mut u64, bytes: usize) -> Code {
    match memory::allocate(bytes) {
        Some(at) => give!(to, at),
        None => OUT_OF_MEMORY,
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAllocAsync(to: *mut u64, bytes: usize, _: u64) -> Code {
    cuMemAlloc_v2(to, bytes)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostAlloc(to: *mut u64, bytes: usize, _: c_uint) -> Code {
    cuMemAlloc_v2(to, bytes)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(at: u64) -> Code {
    if memory::free(at) { SUCCESS } else { INVALID_VALUE }
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeAsync(at: u64, _: u64) -> Code {
    cuMemFree_v2(at)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeHost(at: u64) -> Code {
    cuMemFree_v2(at)
}

/// Copies between any two places; those in device memory are checked.
fn copy(stream: u64, to: u64, from: u64, bytes: usize, device: [Option<u64>; 2]) -> Code {
    queue(stream, move || {
        if bytes == 0 {
            return SUCCESS;
        }
        for at in device.into_iter().flatten() {
            if let Err(error) = memory::extent(at, bytes as u64) {
                return complain(INVALID_VALUE, &error);
            }
        }
        // SAFETY: what lies in device memory was checked; what does not is the caller's, with at least as many bytes.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
        SUCCESS
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) -> Code {
    copy(stream, to, from, bytes, [Some(to), None])
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoD_v2(to: u64, from: u64, bytes: usize) -> Code {
    copy(0, to, from, bytes, [Some(to), None])
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoHAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) -> Code {
    copy(stream, to, from, bytes, [None, Some(from)])
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoH_v2(to: u64, from: u64, bytes: usize) -> Code {
    copy(0, to, from, bytes, [None, Some(from)])
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) -> Code {
    copy(stream, to, from, bytes, [Some(to), Some(from)])
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8Async(at: u64, value: u8, bytes: usize, stream: u64) -> Code {
    queue(stream, move || {
        if bytes == 0 {
            return SUCCESS;
        }
        if let Err(error) = memory::extent(at, bytes as u64) {
            return complain(INVALID_VALUE, &error);
        }
        // SAFETY: these bytes lie in one allocation.
        unsafe { std::ptr::write_bytes(at as *mut u8, value, bytes) };
        SUCCESS
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8_v2(at: u64, value: u8, bytes: usize) -> Code {
    cuMemsetD8Async(at, value, bytes, 0)
}
