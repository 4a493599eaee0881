//! Shared helpers of the integration tests.

pub mod batch;
pub mod gpu;
pub mod retrieval;
pub mod stages;
