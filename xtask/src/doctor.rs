//! `cargo xtask doctor`: what is here, what is not, and the command that mends it.

use crate::{ptxas, sh, test, toolchain};
use anyhow::{Result, bail};

/// One thing that some command needs.
struct Finding {
    /// What was looked for.
    what: &'static str,
    /// What was found, or the command that mends its absence.
    state: Result<String, String>,
    /// What it is for.
    wanted_by: &'static str,
    /// Whether the CPU tier needs it.
    vital: bool,
}

/// Runs the command.
///
/// # Errors
/// When something is missing that the CPU tier needs.
pub fn run() -> Result<()> {
    let findings = examine();
    let mut vital = 0;
    for f in &findings {
        match &f.state {
            Ok(found) => say!("found    {:<22} {found}", f.what),
            Err(cure) => {
                say!("missing  {:<22} {} needs it: {cure}", f.what, f.wanted_by);
                vital += u32::from(f.vital);
            }
        }
    }
    if vital > 0 {
        bail!("{vital} thing(s) missing that `cargo xtask test --tier cpu` needs");
    }
    Ok(())
}

fn examine() -> Vec<Finding> {
    let tool = |args: &[&str], cure: &str| sh::capture(sh::cargo().args(args)).map(|t| t.trim().to_owned()).map_err(|_| cure.to_owned());
    let compiler = toolchain::find(None);
    let install = toolchain::install_command();
    let gpu = test::gpu_name();
    vec![
        Finding { what: "rustc, pinned", state: pinned(), wanted_by: "everything", vital: true },
        Finding { what: "rustfmt", state: tool(&["fmt", "--version"], "`rustup component add rustfmt`"), wanted_by: "check", vital: false },
        Finding {
            what: "clippy",
            state: tool(&["clippy", "--version"], "`rustup component add clippy`"),
            wanted_by: "check",
            vital: false,
        },
        Finding {
            what: "rustc for the GPU",
            state: compiler
                .as_ref()
                .map(|c| format!("{} ({})", c.version, c.rustc.display()))
                .map_err(|_| format!("`{install}` on Debian 12, or `rustup component add rust-src` where rustup can fetch it")),
            wanted_by: "build-ptx, check, test --tier ptx",
            vital: false,
        },
        Finding {
            what: "clippy for the GPU",
            state: compiler
                .ok()
                .and_then(|c| c.clippy)
                .map(|p| p.display().to_string())
                .ok_or_else(|| format!("`{install}`; without it only rustc's lints run on the kernels")),
            wanted_by: "check",
            vital: false,
        },
        Finding {
            what: "ptxas",
            state: match ptxas::find(None) {
                Ok(Some(p)) => ptxas::version(&p).map(|v| format!("{v} ({})", p.display())).map_err(|e| format!("{e:#}")),
                Ok(None) => Err("`cargo xtask audit --fetch`".to_owned()),
                Err(e) => Err(format!("{e:#}")),
            },
            wanted_by: "audit (registers and spills)",
            vital: false,
        },
        Finding {
            what: "NVIDIA driver and GPU",
            state: gpu.clone().ok_or_else(|| {
                "install the NVIDIA driver (525 or newer: CUDA 12.0) on a machine with a GPU; the CPU backend works without".to_owned()
            }),
            wanted_by: "test --tier gpu, the cuda backend",
            vital: false,
        },
        Finding {
            what: "compute capability 9.0",
            state: gpu
                .filter(|g| g.split(',').nth(1).is_some_and(|cc| cc.trim() == "9.0"))
                .map(|_| "9.0".to_owned())
                .ok_or_else(|| "an H100, H200 or GH200; the kernels run on no other GPU".to_owned()),
            wanted_by: "test --tier gpu, the cuda backend",
            vital: false,
        },
    ]
}

/// The rustc that runs here, if it is the one of rust-toolchain.toml.
fn pinned() -> Result<String, String> {
    let file = std::fs::read_to_string(sh::root().join("rust-toolchain.toml")).unwrap_or_default();
    let channel = file.lines().find_map(|l| l.strip_prefix("channel = \"")?.strip_suffix('"')).unwrap_or("unknown").to_owned();
    let cure = format!("`rustup toolchain install {channel}`");
    let version = sh::capture(sh::command("rustc").arg("--version")).map_err(|_| cure.clone())?;
    if version.split_whitespace().nth(1) == Some(channel.as_str()) {
        Ok(version.trim().to_owned())
    } else {
        Err(format!("{cure} (here is {})", version.trim()))
    }
}
