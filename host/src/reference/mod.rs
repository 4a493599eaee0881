//! CPU reference of every stage.
use crate::{PrefillInputs, PrefillOptions, PrefillOutput, Result, Selection};
/// Whole prefill on the CPU.
///
/// # Errors
/// Validation errors.
pub fn prefill(_inputs: &PrefillInputs<'_>, _selection: Selection<'_>, _options: &PrefillOptions) -> Result<PrefillOutput> {
    Err(crate::Error::Unavailable("being built".into()))
}
