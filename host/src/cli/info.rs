//! `stem info`: driver, GPU, PTX manifest.

use super::table;
use anyhow::Result;

/// Prints the facts. Succeeds on a machine without a GPU: that is a fact too.
pub fn run() -> Result<()> {
    let mut rows = vec![("stem", env!("CARGO_PKG_VERSION").to_owned()), ("commit", crate::record::commit().unwrap_or_else(|| "unknown".into()))];
    rows.extend(gpu());
    rows.push(("cpu threads", rayon::current_num_threads().to_string()));
    println!("{}", table::facts(&rows));
    Ok(())
}

#[cfg(not(feature = "cuda"))]
fn gpu() -> Vec<(&'static str, String)> {
    vec![("gpu", "built without the feature `cuda`".into())]
}

#[cfg(feature = "cuda")]
fn gpu() -> Vec<(&'static str, String)> {
    match crate::Backend::open(crate::BackendKind::Cuda) {
        Ok(_) => vec![("gpu", "usable".into())],
        Err(e) => vec![("gpu", e.to_string())],
    }
}
