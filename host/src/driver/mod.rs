//! Thin layer over cudarc: what its safe interface leaves out.
//!
//! - [`available`]: is there a driver and a Hopper GPU, as an error value (cudarc panics where libcuda is missing).
//! - [`Device`]: one GPU, checked once, with the facts the plans and reports need.
//! - [`Module`] and [`Kernel`]: PTX loading with the JIT's log, the shared-memory opt-in, launches with attributes.
//! - [`TensorMap`]: checked descriptors of the Tensor Memory Accelerator.
//! - [`buffer`]: uploads, downloads and fills with typed errors.
//! - [`EventTimer`]: time between two points of a stream.
//!
//! Buffers and streams are [`cudarc`]'s own ([`CudaSlice`], [`CudaView`], [`CudaStream`]), so that they can be shared with
//! other crates. Every call takes the stream it works on.

pub mod buffer;
mod device;
mod launch;
mod module;
mod tensor_map;
mod timer;

pub use cudarc;
pub use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceRepr, DriverError, ValidAsZeroBits,
};
pub use device::{Device, DeviceInfo, available};
pub use launch::{Arg, Launch};
pub use module::{Kernel, Module};
pub use tensor_map::{ElementType, Swizzle, TensorMap, TensorMapDesc};
pub use timer::EventTimer;

use crate::error::Error;

/// Turns a refused driver call into [`Error::Driver`], with the driver's name and description of the code.
pub(crate) fn driver_error(call: &'static str) -> impl Fn(DriverError) -> Error {
    move |e| Error::Driver { call, message: describe(e) }
}

/// The driver's own words: `CUDA_ERROR_X: description`.
pub(crate) fn describe(e: DriverError) -> String {
    match (e.error_name(), e.error_string()) {
        (Ok(name), Ok(text)) => format!("{}: {}", name.to_string_lossy(), text.to_string_lossy()),
        _ => format!("code {}", e.0 as u32),
    }
}
