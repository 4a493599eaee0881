//! The one error type, its variants split by who can mend it.

/// Result of every fallible call of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong. Every message names the tensor or parameter, what was expected and what came.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no driver, no GPU, or none that can run the kernels: use another machine or the CPU backend.
    #[error("no usable GPU: {0}")]
    Unavailable(String),
    /// A combination that is valid but not built.
    #[error("unsupported {what}: {got}")]
    Unsupported {
        /// What kind of thing is not supported.
        what: &'static str,
        /// What came.
        got: String,
    },
    /// A tensor has the wrong rank, extent, dtype or length.
    #[error("{tensor}: expected {expected}, got {got}")]
    Shape {
        /// Name of the tensor.
        tensor: &'static str,
        /// What was expected.
        expected: String,
        /// What came.
        got: String,
    },
    /// A parameter or an element has a value outside its range.
    #[error("{name}: expected {expected}, got {got}")]
    Value {
        /// Name of the parameter or tensor.
        name: &'static str,
        /// What was expected.
        expected: String,
        /// What came.
        got: String,
    },
    /// The page pool has no page left.
    #[error("out of KV pages: {needed} needed, {free} free of {total}")]
    OutOfPages {
        /// Pages the call needed.
        needed: usize,
        /// Pages free.
        free: usize,
        /// Pages of the pool.
        total: usize,
    },
    /// The CUDA driver refused a call.
    #[error("CUDA driver, {call}: {message}")]
    Driver {
        /// The driver call.
        call: &'static str,
        /// The driver's own words.
        message: String,
    },
    /// The driver could not compile or load a kernel.
    #[error("loading {module}: {message}\n{log}")]
    Jit {
        /// PTX module.
        module: String,
        /// The driver's own words.
        message: String,
        /// The JIT's log.
        log: String,
    },
}

impl Error {
    /// A [`Error::Shape`].
    pub fn shape(tensor: &'static str, expected: impl ToString, got: impl ToString) -> Self {
        Self::Shape { tensor, expected: expected.to_string(), got: got.to_string() }
    }
    /// A [`Error::Value`].
    pub fn value(name: &'static str, expected: impl ToString, got: impl ToString) -> Self {
        Self::Value { name, expected: expected.to_string(), got: got.to_string() }
    }
}
