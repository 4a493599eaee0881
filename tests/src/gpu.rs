//! The GPU of the test run, where there is one.

use std::sync::{Arc, OnceLock};
use stem_attn::Error;
use stem_attn::cuda::CudaBackend;
use stem_attn::driver::{CudaSlice, CudaStream, Device, DeviceRepr, Kernel, Module, ValidAsZeroBits, available, buffer};

/// Set to anything, a missing GPU fails a test instead of skipping it: for the machine that is meant to have one.
pub const REQUIRE: &str = "STEM_ATTN_REQUIRE_GPU";

/// Byte that outputs are filled with before a kernel writes them: NaN in f32, bf16 and e4m3, -1 in integers.
pub const POISON: u8 = 0xff;

/// A Hopper GPU and a stream of its own.
pub struct Gpu {
    /// The device.
    pub device: Device,
    /// The stream all helpers work on.
    pub stream: Arc<CudaStream>,
}

/// The GPU, or `None` after printing why the test is skipped.
///
/// # Panics
/// When there is none and [`REQUIRE`] is set, or when one that is there cannot be opened.
pub fn gpu() -> Option<Gpu> {
    match available() {
        Ok(()) => {
            let device = Device::open(0).expect("open the GPU");
            let stream = device.context().new_stream().expect("create a stream");
            Some(Gpu { device, stream })
        }
        Err(reason) => skip(&reason),
    }
}

impl Gpu {
    /// A copy of `data` on the device.
    pub fn upload<T: DeviceRepr>(&self, data: &[T]) -> CudaSlice<T> {
        buffer::upload(&self.stream, data).expect("upload")
    }

    /// A buffer whose every byte is [`POISON`].
    pub fn poisoned<T: DeviceRepr + ValidAsZeroBits>(&self, len: usize) -> CudaSlice<T> {
        let mut out = buffer::zeroed(&self.stream, len).expect("allocate");
        buffer::fill_bytes(&self.stream, &mut out, POISON).expect("poison");
        out
    }

    /// The first `len` elements of a device buffer, after everything queued has run.
    pub fn download<T: DeviceRepr + ValidAsZeroBits + Copy>(&self, from: &CudaSlice<T>, len: usize) -> Vec<T> {
        buffer::download(&self.stream, from, len).expect("download")
    }

    /// One entry of a PTX text.
    pub fn kernel(&self, ptx: &str, entry: &'static str, threads: u32, shared_bytes: u32) -> Kernel {
        Module::load(&self.device, entry, ptx).and_then(|m| m.kernel(entry, threads, shared_bytes)).expect("load the kernel")
    }
}

/// The CUDA backend, opened once for all tests of a binary, or `None` after printing why the test is skipped.
///
/// # Panics
/// As [`gpu`].
pub fn backend() -> Option<&'static CudaBackend> {
    static BACKEND: OnceLock<CudaBackend> = OnceLock::new();
    match available() {
        Ok(()) => Some(BACKEND.get_or_init(|| CudaBackend::open(0).expect("open the CUDA backend"))),
        Err(reason) => skip(&reason),
    }
}

/// Prints why there is nothing to test.
fn skip<T>(reason: &Error) -> Option<T> {
    assert!(std::env::var_os(REQUIRE).is_none(), "{REQUIRE} is set, and {reason}");
    println!("skipped: {reason}");
    None
}
