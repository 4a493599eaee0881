//! Time between two points of a stream.

use super::{CudaStream, Device, driver_error};
use crate::error::Result;
use cudarc::driver::{CudaEvent, sys};

/// A pair of CUDA events. Recording is asynchronous and cheap; only [`EventTimer::elapsed_ms`] waits.
#[derive(Debug)]
pub struct EventTimer {
    start: CudaEvent,
    stop: CudaEvent,
}

impl EventTimer {
    /// Creates both events.
    ///
    /// # Errors
    /// [`crate::Error::Driver`].
    pub fn new(device: &Device) -> Result<Self> {
        let event = || device.context().new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).map_err(driver_error("cuEventCreate"));
        Ok(Self { start: event()?, stop: event()? })
    }

    /// Marks the first point.
    ///
    /// # Errors
    /// [`crate::Error::Driver`], also when the stream is of another context.
    pub fn start(&self, stream: &CudaStream) -> Result<()> {
        self.start.record(stream).map_err(driver_error("cuEventRecord"))
    }

    /// Marks the second point.
    ///
    /// # Errors
    /// [`crate::Error::Driver`], also when the stream is of another context.
    pub fn stop(&self, stream: &CudaStream) -> Result<()> {
        self.stop.record(stream).map_err(driver_error("cuEventRecord"))
    }

    /// Waits for the second point and gives the milliseconds between the two.
    ///
    /// # Errors
    /// [`crate::Error::Driver`]: a point was not marked, or work before it failed.
    pub fn elapsed_ms(&self) -> Result<f64> {
        self.start.elapsed_ms(&self.stop).map(f64::from).map_err(driver_error("cuEventElapsedTime"))
    }
}
