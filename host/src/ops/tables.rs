//! A batch's tables in device memory.

use super::Span;
use crate::driver::{CudaSlice, CudaStream, DevicePtr, DeviceRepr, buffer, driver_error};
use crate::error::Result;
use crate::geometry::Geometry;
use std::sync::Arc;
use stem_attn_kernels::abi::{KeyBlock, QueryBlock, Request};

/// A table entry, so that cudarc may copy it.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
struct Entry<T>(T);

// SAFETY: `#[repr(C)]` blocks of i32, the device's own type.
unsafe impl DeviceRepr for Entry<Request> {}
// SAFETY: as above.
unsafe impl DeviceRepr for Entry<QueryBlock> {}
// SAFETY: as above.
unsafe impl DeviceRepr for Entry<KeyBlock> {}

/// A [`Geometry`] and its copy in device memory. Dropping it waits for the device, because kernels on any stream may read it.
#[derive(Debug)]
pub struct DeviceGeometry {
    host: Geometry,
    requests: CudaSlice<Entry<Request>>,
    query_blocks: CudaSlice<Entry<QueryBlock>>,
    key_blocks: CudaSlice<Entry<KeyBlock>>,
    /// Addresses of the three, taken once the copies had landed: reading them later needs no event of theirs, which keeps
    /// launches capturable.
    addresses: [u64; 3],
    longest: usize,
}

impl DeviceGeometry {
    /// Copies the tables and waits for the copies.
    ///
    /// # Errors
    /// [`crate::Error::Value`] naming a table that is not what [`Geometry::new`] makes; [`crate::Error::Driver`].
    pub fn upload(stream: &Arc<CudaStream>, geometry: Geometry) -> Result<Self> {
        geometry.check()?;
        let requests = buffer::upload(stream, &entries(&geometry.requests))?;
        let query_blocks = buffer::upload(stream, &entries(&geometry.query_blocks))?;
        let key_blocks = buffer::upload(stream, &entries(&geometry.key_blocks))?;
        stream.synchronize().map_err(driver_error("cuStreamSynchronize"))?;
        let addresses = [requests.device_ptr(stream).0, query_blocks.device_ptr(stream).0, key_blocks.device_ptr(stream).0];
        let longest = geometry.requests.iter().map(|r| r.kv_len.max(0) as usize).max().unwrap_or(0);
        Ok(Self { host: geometry, requests, query_blocks, key_blocks, addresses, longest })
    }

    /// The tables in host memory.
    pub fn host(&self) -> &Geometry {
        &self.host
    }

    /// KV tokens of the longest request.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }

    pub(super) fn requests(&self) -> Span<Request> {
        // SAFETY: the slice lives as long as `self`, is never written again, and outlives its readers (see Drop).
        unsafe { Span::from_raw(self.addresses[0], self.requests.len()) }
    }

    pub(super) fn query_blocks(&self) -> Span<QueryBlock> {
        // SAFETY: as above.
        unsafe { Span::from_raw(self.addresses[1], self.query_blocks.len()) }
    }

    pub(super) fn key_blocks(&self) -> Span<KeyBlock> {
        // SAFETY: as above.
        unsafe { Span::from_raw(self.addresses[2], self.key_blocks.len()) }
    }
}

impl Drop for DeviceGeometry {
    fn drop(&mut self) {
        let context = self.requests.context();
        context.record_err(context.synchronize());
    }
}

fn entries<T: Copy>(table: &[T]) -> Vec<Entry<T>> {
    table.iter().map(|&entry| Entry(entry)).collect()
}
