//! Which rustc can build for the GPU.
//!
//! `core` for `nvptx64-nvidia-cuda` must be built from its sources or come ready made. The pinned toolchain serves where
//! rustup could fetch either; Debian's `rustc-web` with `rust-web-src` serves where it could not.

use crate::sh;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The target all kernels are built for.
pub const TARGET: &str = "nvptx64-nvidia-cuda";
/// The only processor all kernels are built for: wgmma and setmaxnreg exist on `sm_90a` alone.
pub const CPU: &str = "sm_90a";
/// Debian's compiler.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// The oldest minor release whose `gpu-kernel` ABI and PTX assembly the kernels were built with.
const OLDEST_MINOR: u32 = 95;

/// A rustc that can build for the GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiler {
    /// The executable.
    pub rustc: PathBuf,
    /// Where its libraries are.
    pub sysroot: PathBuf,
    /// First line of `rustc -vV`.
    pub version: String,
    /// Its LLVM.
    pub llvm: String,
    /// Whether `core` must be built from source; otherwise it is there, built.
    pub build_std: bool,
    /// The clippy driver of the same release, if installed.
    pub clippy: Option<PathBuf>,
}

/// Debian packages of the compiler, its sources and its clippy.
pub const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "rust-web-src", "rust-web-clippy"];

/// The command that installs Debian's compiler.
pub fn install_command() -> String {
    format!("apt-get install -y --no-install-recommends {}", DEBIAN_PACKAGES.join(" "))
}

/// Installs Debian's compiler with `apt-get`.
///
/// # Errors
/// When there is no apt-get or it fails (another system, no rights).
pub fn install() -> Result<()> {
    sh::run(sh::command("apt-get").arg("update"))?;
    sh::run(sh::command("apt-get").args(["install", "-y", "--no-install-recommends"]).args(DEBIAN_PACKAGES))
}

/// Every usable compiler, the pinned toolchain's first.
pub fn find_all() -> Vec<Compiler> {
    [PathBuf::from("rustc"), PathBuf::from(DEBIAN_RUSTC)].iter().filter_map(|rustc| inspect(rustc).ok()).collect()
}

/// A usable compiler: the one whose version line is `preferred` if that is here, else the first.
///
/// # Errors
/// When there is none; the message says how to install one.
pub fn find(preferred: Option<&str>) -> Result<Compiler> {
    let mut all = find_all();
    let index = all.iter().position(|c| Some(c.version.as_str()) == preferred).unwrap_or(0);
    if all.is_empty() {
        bail!("no rustc here can build for {TARGET}. On Debian 12: `{}`; with rustup: `rustup component add rust-src`", install_command());
    }
    Ok(all.swap_remove(index))
}

/// As [`find`], after installing Debian's compiler if there was none and `install` allows it.
///
/// # Errors
/// As [`find`] and [`install`].
pub fn find_or_install(preferred: Option<&str>, may_install: bool) -> Result<Compiler> {
    if may_install && find_all().is_empty() {
        install()?;
    }
    find(preferred)
}

/// Looks at one rustc.
///
/// # Errors
/// When it does not run, is too old, or has no `core` for the GPU in any form.
pub fn inspect(rustc: &Path) -> Result<Compiler> {
    let sysroot = PathBuf::from(sh::capture(sh::command(rustc).args(["--print", "sysroot"]))?.trim());
    let verbose = sh::capture(sh::command(rustc).arg("-vV"))?;
    let version = verbose.lines().next().unwrap_or_default().to_owned();
    let llvm = verbose.lines().find_map(|l| l.strip_prefix("LLVM version: ")).unwrap_or_default().to_owned();
    let minor = minor(&version).with_context(|| format!("cannot read the version of `{version}`"))?;
    if minor < OLDEST_MINOR {
        bail!("`{version}` is older than 1.{OLDEST_MINOR}");
    }
    let build_std = sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file();
    if !build_std && !sysroot.join("lib/rustlib").join(TARGET).join("lib").is_dir() {
        bail!("`{version}` has neither rust-src nor {TARGET}");
    }
    // `rustc` may be rustup's proxy, which picks by the directory it starts in; name the real file.
    let real = sysroot.join("bin/rustc");
    let clippy = Some(sysroot.join("bin/clippy-driver")).filter(|p| p.is_file());
    Ok(Compiler { rustc: if real.is_file() { real } else { rustc.to_path_buf() }, sysroot, version, llvm, build_std, clippy })
}

/// The minor number of a version line such as `rustc 1.96.0 (...)`.
pub fn minor(version: &str) -> Option<u32> {
    version.split_whitespace().nth(1)?.split('.').nth(1)?.parse().ok()
}

impl Compiler {
    /// Flags for every crate of a device build. The remapping keeps paths of this machine out of the PTX.
    pub fn rustflags(&self, root: &Path) -> Vec<String> {
        vec![
            format!("-Ctarget-cpu={CPU}"),
            format!("--remap-path-prefix={}=/stem-attn", root.display()),
            format!("--remap-path-prefix={}=/rust", self.sysroot.join("lib/rustlib/src/rust").display()),
        ]
    }

    /// A cargo command that compiles the kernels package for the GPU with this compiler.
    ///
    /// The profile is given in the environment, so that the PTX does not change with the host's release profile.
    pub fn cargo(&self, subcommand: &str) -> Command {
        let root = sh::root();
        let mut cargo = sh::cargo();
        cargo
            .env("RUSTC", &self.rustc)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", self.rustflags(&root).join("\u{1f}"))
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
            .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3")
            .env_remove("RUSTC_WRAPPER")
            .env_remove("RUSTC_WORKSPACE_WRAPPER")
            .args([subcommand, "--locked", "--release", "--package", "stem-attn-kernels", "--lib"])
            .args(["--target", TARGET, "--target-dir", "target/nvptx"]);
        if self.build_std {
            cargo.arg("-Zbuild-std=core");
        }
        cargo
    }
}
