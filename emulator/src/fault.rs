//! What a kernel does that hardware would not forgive.

use std::fmt;

/// An error of a kernel, or of the text it is made from, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault(String);

impl Fault {
    /// An error with its description.
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fault {}

/// A result whose error is a [`Fault`].
pub type Result<T> = std::result::Result<T, Fault>;

/// Returns a [`Fault`] with a formatted description.
macro_rules! fault {
    ($($text:tt)*) => {
        return Err($crate::fault::Fault::new(format!($($text)*)))
    };
}
pub(crate) use fault;
