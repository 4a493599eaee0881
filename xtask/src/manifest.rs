//! `host/ptx/manifest.json`: where the committed PTX came from.

use crate::ptx::post::Family;
use crate::ptx::scan::Module;
use crate::toolchain::Compiler;
use crate::{hash, toolchain};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// File name inside the PTX folder.
pub const FILE: &str = "manifest.json";

/// The manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this format.
    pub schema: u32,
    /// First line of `rustc -vV`.
    pub compiler: String,
    /// LLVM of the compiler.
    pub llvm: String,
    /// Compiler flags, without those that only rename paths.
    pub flags: Vec<String>,
    /// `.version` of the modules.
    pub ptx_version: String,
    /// `.target` of the modules.
    pub target: String,
    /// SHA-256 over the sources of kernels-gpu.
    pub sources_sha256: String,
    /// The modules.
    pub files: Vec<File>,
}

/// One generated module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Name inside the PTX folder.
    pub name: String,
    /// SHA-256 of its text.
    pub sha256: String,
    /// Its kernels.
    pub entries: Vec<Entry>,
}

/// One kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Symbol.
    pub name: String,
    /// Threads of a block: launch with exactly these.
    pub threads: u32,
    /// Blocks per SM the registers allow for.
    pub blocks_per_sm: u32,
}

impl Manifest {
    /// Describes a build.
    ///
    /// # Errors
    /// When the kernel sources cannot be read.
    pub fn new(compiler: &Compiler, module: &Module, families: &[Family], root: &Path) -> Result<Self> {
        let entry = |(name, b): &(String, crate::ptx::bounds::Bounds)| Entry {
            name: name.clone(),
            threads: b.threads,
            blocks_per_sm: b.blocks_per_sm,
        };
        let file = |f: &Family| File {
            name: format!("{}.ptx", f.name),
            sha256: hash::hex(f.text.as_bytes()),
            entries: f.entries.iter().map(entry).collect(),
        };
        let mut flags = vec![format!("--target {}", toolchain::TARGET)];
        flags.extend(compiler.rustflags(root).into_iter().filter(|f| !f.starts_with("--remap-path-prefix")));
        flags.extend(["-Copt-level=3".to_owned(), "-Ccodegen-units=1".to_owned()]);
        if compiler.build_std {
            flags.push("-Zbuild-std=core".to_owned());
        }
        Ok(Self {
            schema: 1,
            compiler: compiler.version.clone(),
            llvm: compiler.llvm.clone(),
            flags,
            ptx_version: module.version.clone(),
            target: module.target.clone(),
            sources_sha256: hash::kernel_sources(root)?,
            files: families.iter().map(file).collect(),
        })
    }

    /// Reads the manifest of a PTX folder.
    ///
    /// # Errors
    /// When it is missing or not a manifest.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("reading {}; `cargo xtask build-ptx` writes it", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is not a PTX manifest", path.display()))
    }

    /// The text of the file.
    ///
    /// # Errors
    /// Never in practice; serialisation is fallible by type.
    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}
