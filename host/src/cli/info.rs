//! `stem info`: driver, GPU, PTX manifest.

use super::table;
use anyhow::Result;

/// Prints the facts. Succeeds on a machine without a GPU: that is a fact too.
pub fn run() -> Result<()> {
    let mut rows = vec![("stem", env!("CARGO_PKG_VERSION").to_owned())];
    rows.push(("commit", crate::record::commit().unwrap_or_else(|| "unknown".into())));
    rows.push(("cpu", format!("{} threads", rayon::current_num_threads())));
    rows.extend(gpu());
    #[cfg(feature = "cuda")]
    rows.extend(ptx(crate::ptx::MANIFEST));
    say!("{}", table::facts(&rows));
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

/// What made the embedded PTX, and the kernels in it. A field that the manifest lacks shows as "?".
#[cfg(feature = "cuda")]
fn ptx(manifest: &str) -> Vec<(&'static str, String)> {
    let manifest: serde_json::Value = serde_json::from_str(manifest).unwrap_or_default();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or("?").to_owned();
    let short = |value: &serde_json::Value| text(value).chars().take(12).collect::<String>();
    let mut rows = vec![
        (
            "PTX",
            format!(
                "{} for {}, of sources {}",
                text(&manifest["ptx_version"]),
                text(&manifest["target"]),
                short(&manifest["sources_sha256"])
            ),
        ),
        ("PTX compiler", format!("{}, LLVM {}", text(&manifest["compiler"]), text(&manifest["llvm"]))),
    ];
    for module in crate::ptx::PtxModule::ALL {
        let name = format!("{}.ptx", module.name());
        let files = manifest["files"].as_array().map_or(&[][..], Vec::as_slice);
        let hash = files.iter().find(|f| f["name"] == name).map_or_else(|| "?".into(), |f| short(&f["sha256"]));
        let kernels = crate::ptx::KernelId::ALL.into_iter().filter(|k| k.module() == module).map(|k| k.entry());
        rows.push(("PTX file", format!("{name} {hash}: {}", kernels.collect::<Vec<_>>().join(", "))));
    }
    rows
}
