//! CUDA backend.
use crate::{PrefillInputs, PrefillOptions, PrefillOutput, Result, Selection};
/// One Hopper GPU.
pub struct CudaBackend {}
impl CudaBackend {
    /// Opens device `ordinal`.
    ///
    /// # Errors
    /// Unavailable.
    pub fn open(_ordinal: usize) -> Result<Self> {
        Err(crate::Error::Unavailable("being built".into()))
    }
    /// Whole prefill.
    ///
    /// # Errors
    /// Validation and driver errors.
    pub fn prefill(&self, _inputs: &PrefillInputs<'_>, _selection: Selection<'_>, _options: &PrefillOptions) -> Result<PrefillOutput> {
        Err(crate::Error::Unavailable("being built".into()))
    }
}
