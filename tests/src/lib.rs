//! Shared helpers of the integration tests.

pub mod batch;
pub mod budgets;
pub mod capture;
pub mod fuzz;
pub mod gpu;
pub mod oracle;
pub mod retrieval;
pub mod stages;
