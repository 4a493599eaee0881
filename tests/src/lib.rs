//! Shared helpers of the integration tests.
pub mod gpu;
pub mod stages;
