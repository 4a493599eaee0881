//! `stem info`: driver, GPU, PTX manifest.

use super::table;
use anyhow::Result;

/// Prints the facts. Succeeds on a machine without a GPU: that is a fact too.
pub fn run() -> Result<()> {
    let mut rows = vec![("stem", env!("CARGO_PKG_VERSION").to_owned())];
    rows.push(("commit", crate::record::commit().unwrap_or_else(|| "unknown".into())));
    rows.push(("cpu", format!("{} threads", rayon::current_num_threads())));
    rows.extend(gpu());
    println!("{}", table::facts(&rows));
    Ok(())
}

#[cfg(not(feature = "cuda"))]
fn gpu() -> Vec<(&'static str, String)> {
    vec![("gpu", "this program was built without the feature `cuda`".into())]
}

#[cfg(feature = "cuda")]
fn gpu() -> Vec<(&'static str, String)> {
    match crate::driver::Device::open(0) {
        Err(e) => vec![("gpu", e.to_string())],
        Ok(device) => {
            let info = device.info();
            vec![
                ("gpu", info.name.clone()),
                ("driver", format!("{}, CUDA {}", info.driver_version.as_deref().unwrap_or("version unknown"), info.cuda_version)),
                ("SMs", format!("{} at {} MHz peak", info.sm_count, info.sm_clock_mhz)),
                (
                    "memory",
                    format!(
                        "{:.1} GiB at {} MHz, L2 {} MiB",
                        info.memory_bytes as f64 / (1u64 << 30) as f64,
                        info.memory_clock_mhz,
                        info.l2_bytes >> 20
                    ),
                ),
                ("shared memory", format!("{} KiB a block", info.shared_bytes_per_block >> 10)),
            ]
        }
    }
}
