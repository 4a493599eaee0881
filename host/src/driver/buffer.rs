//! Device buffers: cudarc's slices with typed errors, and no allocation of zero bytes (which the driver refuses).

use super::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, driver_error};
use crate::error::{Error, Result};
use cudarc::driver::{ValidAsZeroBits, result};
use std::sync::Arc;

/// A buffer of at least `len` elements (one where `len` is 0), zeroed in stream order.
///
/// # Errors
/// [`Error::Driver`], also when memory runs out; [`Error::Value`] when the size does not fit the address space.
pub fn zeroed<T: DeviceRepr + ValidAsZeroBits>(stream: &Arc<CudaStream>, len: usize) -> Result<CudaSlice<T>> {
    stream.alloc_zeros(checked_len::<T>(len)?).map_err(driver_error("cuMemAllocAsync"))
}

/// A copy of `data` in device memory (one element, unset, where `data` is empty). The source may be reused at once.
///
/// # Errors
/// [`Error::Driver`].
pub fn upload<T: DeviceRepr>(stream: &Arc<CudaStream>, data: &[T]) -> Result<CudaSlice<T>> {
    // SAFETY: every element that `data` has is written below, and an empty source leaves one that nothing reads.
    let mut buffer = unsafe { stream.alloc::<T>(checked_len::<T>(data.len())?) }.map_err(driver_error("cuMemAllocAsync"))?;
    if !data.is_empty() {
        stream.memcpy_htod(data, &mut buffer).map_err(driver_error("cuMemcpyHtoDAsync"))?;
    }
    Ok(buffer)
}

/// The first `len` elements of `buffer` in host memory. Waits for the stream, so errors of earlier kernels show here.
///
/// # Errors
/// [`Error::Shape`] when the buffer is shorter; [`Error::Driver`].
pub fn download<T, B>(stream: &Arc<CudaStream>, buffer: &B, len: usize) -> Result<Vec<T>>
where
    T: DeviceRepr + ValidAsZeroBits + Copy,
    B: DevicePtr<T>,
{
    if buffer.len() < len {
        return Err(Error::shape("device buffer", format!("at least {len} elements"), buffer.len()));
    }
    let mut host: Vec<T> = Vec::with_capacity(len);
    if len > 0 {
        let (at, _guard) = buffer.device_ptr(stream);
        stream.context().bind_to_thread().map_err(driver_error("cuCtxSetCurrent"))?;
        // SAFETY: `ValidAsZeroBits + DeviceRepr` types are plain data; the spare capacity is exactly `len` elements and is
        // zeroed before it counts as initialised; the device range was checked above and the guard orders the copy.
        unsafe {
            host.as_mut_ptr().write_bytes(0, len);
            host.set_len(len);
            result::memcpy_dtoh_async(&mut host, at, stream.cu_stream())
        }
        .map_err(driver_error("cuMemcpyDtoHAsync"))?;
    }
    stream.synchronize().map_err(driver_error("cuStreamSynchronize"))?;
    Ok(host)
}

/// Sets every byte of `buffer` to `byte`, in stream order.
///
/// # Errors
/// [`Error::Driver`].
pub fn fill_bytes<T: DeviceRepr + ValidAsZeroBits, B: DevicePtrMut<T>>(stream: &Arc<CudaStream>, buffer: &mut B, byte: u8) -> Result<()> {
    stream.context().bind_to_thread().map_err(driver_error("cuCtxSetCurrent"))?;
    let bytes = buffer.num_bytes();
    let (at, _guard) = buffer.device_ptr_mut(stream);
    // SAFETY: the range is the buffer's own, and its element types are plain data.
    unsafe { result::memset_d8_async(at, byte, bytes, stream.cu_stream()) }.map_err(driver_error("cuMemsetD8Async"))
}

/// `len`, or 1 instead of 0, when that many elements fit the address space.
fn checked_len<T>(len: usize) -> Result<usize> {
    match len.checked_mul(size_of::<T>()) {
        Some(bytes) if isize::try_from(bytes).is_ok() => Ok(len.max(1)),
        _ => {
            Err(Error::value("device buffer", "a size that fits the address space", format!("{len} elements of {} bytes", size_of::<T>())))
        }
    }
}
