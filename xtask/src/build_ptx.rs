//! `cargo xtask build-ptx`: kernels-gpu to host/ptx, and the check that what is committed is what the sources give.

use crate::manifest::{self, Manifest};
use crate::ptx::post::{self, Family};
use crate::toolchain::{self, Compiler};
use crate::{hash, sh};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// Options.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Build again and compare with the committed files; write nothing into host/ptx.
    #[arg(long)]
    pub check: bool,
    /// Install Debian's compiler when no usable one is found (implied by CI=1).
    #[arg(long)]
    pub install: bool,
}

/// Where rustc leaves the assembly. Relative, so that the crate's symbol hashes do not depend on the checkout.
const ASSEMBLY: &str = "target/nvptx/stem_attn_kernels.s";

/// Folder of the committed PTX.
pub fn ptx_dir() -> PathBuf {
    sh::root().join("host/ptx")
}

/// Runs the command.
///
/// # Errors
/// When there is no compiler, the build fails, or `--check` finds a difference.
pub fn run(args: &Args) -> Result<()> {
    let may_install = args.install || sh::in_ci();
    if args.check {
        say!("{}", check(may_install)?);
        return Ok(());
    }
    let compiler = toolchain::find_or_install(None, may_install)?;
    say!("building with {} ({})", compiler.version, compiler.rustc.display());
    let (manifest, families) = generate(&compiler)?;
    if families.is_empty() {
        bail!("kernels-gpu has no entry: nothing to write");
    }
    write(&ptx_dir(), &manifest, &families)?;
    for file in &manifest.files {
        say!("host/ptx/{}: {}", file.name, file.entries.iter().map(|e| e.name.as_str()).collect::<Vec<_>>().join(", "));
    }
    Ok(())
}

/// Compares the committed PTX with a fresh build and returns a line that says what was compared.
///
/// With another compiler than the manifest's the text differs for no fault of ours; then only the hashes count.
///
/// # Errors
/// When a committed file was edited, the sources changed since, or the same compiler gives another text.
pub fn check(may_install: bool) -> Result<String> {
    let dir = ptx_dir();
    let committed = Manifest::read(&dir)?;
    let stale = stale(&committed, &dir, &hash::kernel_sources(&sh::root())?);
    if !stale.is_empty() {
        bail!("host/ptx is out of date; run `cargo xtask build-ptx`:\n  {}", stale.join("\n  "));
    }
    let compiler = toolchain::find_or_install(Some(&committed.compiler), may_install)?;
    if (&compiler.version, &compiler.llvm) != (&committed.compiler, &committed.llvm) {
        return Ok(format!(
            "PTX hashes and source hash agree; text not compared: it was built by `{}`, here is `{}`",
            committed.compiler, compiler.version
        ));
    }
    let (manifest, families) = generate(&compiler)?;
    let fresh = sh::root().join("target/ptx-check");
    if fresh.exists() {
        fs::remove_dir_all(&fresh)?;
    }
    write(&fresh, &manifest, &families)?;
    let differences = compare(&dir, &fresh)?;
    if !differences.is_empty() {
        bail!("host/ptx differs from a fresh build (kept in target/ptx-check):\n  {}", differences.join("\n  "));
    }
    Ok(format!("host/ptx is what the sources give: {} files, {}", manifest.files.len(), manifest.compiler))
}

/// What the hashes alone can tell: files edited or missing, sources changed.
fn stale(committed: &Manifest, dir: &Path, sources: &str) -> Vec<String> {
    let mut out = Vec::new();
    if committed.sources_sha256 != sources {
        out.push("the sources of kernels-gpu changed since it was built".to_owned());
    }
    for file in &committed.files {
        match fs::read(dir.join(&file.name)) {
            Err(_) => out.push(format!("{} is missing", file.name)),
            Ok(bytes) if hash::hex(&bytes) != file.sha256 => out.push(format!("{} is not the file that the manifest names", file.name)),
            Ok(_) => {}
        }
    }
    out
}

/// Builds the kernels and runs the post-pass.
///
/// # Errors
/// When the build fails, the post-pass refuses the text, or a path of this machine is in it.
pub fn generate(compiler: &Compiler) -> Result<(Manifest, Vec<Family>)> {
    let root = sh::root();
    forget_last_build(&root)?;
    let mut cargo = compiler.cargo("rustc");
    cargo.args(["--quiet", "--", &format!("--emit=asm={ASSEMBLY}")]);
    sh::run(&mut cargo).context("building the kernels")?;
    let text = fs::read_to_string(root.join(ASSEMBLY)).with_context(|| format!("rustc left no {ASSEMBLY}"))?;
    let (module, families) = post::process(&text)?;
    let here = root.display().to_string();
    if let Some(family) = families.iter().find(|f| f.text.contains(&here)) {
        bail!("{}.ptx contains the path of this checkout", family.name);
    }
    Ok((Manifest::new(compiler, &module, &families, &root)?, families))
}

/// Makes cargo compile the crate anew: it does not know of the assembly file, so it could not tell that it is stale.
fn forget_last_build(root: &Path) -> Result<()> {
    let assembly = root.join(ASSEMBLY);
    if assembly.exists() {
        fs::remove_file(assembly)?;
    }
    let fingerprints = root.join("target/nvptx").join(toolchain::TARGET).join("release/.fingerprint");
    let Ok(entries) = fs::read_dir(fingerprints) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("stem-attn-kernels-") {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Writes the modules and the manifest into `dir` and removes modules that are no longer made.
fn write(dir: &Path, manifest: &Manifest, families: &[Family]) -> Result<()> {
    fs::create_dir_all(dir)?;
    for old in hash::files_below(dir, "ptx")? {
        fs::remove_file(old)?;
    }
    for family in families {
        fs::write(dir.join(format!("{}.ptx", family.name)), &family.text)?;
    }
    fs::write(dir.join(manifest::FILE), manifest.to_json()?)?;
    Ok(())
}

/// Names the files in which two PTX folders differ, with the first line that does.
fn compare(committed: &Path, fresh: &Path) -> Result<Vec<String>> {
    let names = |dir: &Path| -> Result<Vec<PathBuf>> {
        let mut files = hash::files_below(dir, "ptx")?;
        files.extend(hash::files_below(dir, "json")?);
        files.iter().map(|f| Ok(f.strip_prefix(dir)?.to_path_buf())).collect()
    };
    let mut all = names(committed)?;
    all.extend(names(fresh)?);
    all.sort();
    all.dedup();
    let mut out = Vec::new();
    for name in all {
        let shown = name.display();
        match (fs::read_to_string(committed.join(&name)), fs::read_to_string(fresh.join(&name))) {
            (Ok(a), Ok(b)) if a == b => {}
            (Ok(a), Ok(b)) => out.push(format!("{shown}: {}", first_difference(&a, &b))),
            (Ok(_), Err(_)) => out.push(format!("{shown}: committed, but no longer generated")),
            (Err(_), _) => out.push(format!("{shown}: generated, but not committed")),
        }
    }
    Ok(out)
}

/// The first line in which two different texts differ.
fn first_difference(committed: &str, fresh: &str) -> String {
    let (mut a, mut b) = (committed.lines(), fresh.lines());
    let mut line = 0;
    loop {
        line += 1;
        match (a.next(), b.next()) {
            (Some(x), Some(y)) if x == y => {}
            (None, None) => return "line ends differ".to_owned(),
            (x, y) => {
                let show = |l: Option<&str>| l.map_or_else(|| "the end".to_owned(), |l| format!("`{}`", l.trim()));
                return format!("line {line} is {}, a fresh build gives {}", show(x), show(y));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(sources: &str, text: &str) -> Manifest {
        Manifest {
            schema: 1,
            compiler: "rustc 1.96.0".into(),
            llvm: "22".into(),
            flags: vec![],
            ptx_version: "8.0".into(),
            target: "sm_90a".into(),
            sources_sha256: sources.into(),
            files: vec![manifest::File { name: "attend.ptx".into(), sha256: hash::hex(text.as_bytes()), entries: vec![] }],
        }
    }

    #[test]
    fn an_edited_module_and_changed_sources_are_stale() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let committed = manifest("aa", "text\n");
        assert_eq!(stale(&committed, dir.path(), "aa"), ["attend.ptx is missing"]);
        fs::write(dir.path().join("attend.ptx"), "text\n")?;
        assert!(stale(&committed, dir.path(), "aa").is_empty());
        assert_eq!(stale(&committed, dir.path(), "bb").len(), 1);
        fs::write(dir.path().join("attend.ptx"), "text!\n")?;
        assert_eq!(stale(&committed, dir.path(), "aa"), ["attend.ptx is not the file that the manifest names"]);
        Ok(())
    }

    #[test]
    fn comparison_names_file_and_line() -> Result<()> {
        let (a, b) = (tempfile::tempdir()?, tempfile::tempdir()?);
        fs::write(a.path().join("x.ptx"), "one\ntwo\n")?;
        fs::write(b.path().join("x.ptx"), "one\n2\n")?;
        fs::write(a.path().join("old.ptx"), "")?;
        fs::write(b.path().join("new.ptx"), "")?;
        let found = compare(a.path(), b.path())?;
        assert_eq!(
            found,
            [
                "new.ptx: generated, but not committed",
                "old.ptx: committed, but no longer generated",
                "x.ptx: line 2 is `two`, a fresh build gives `2`"
            ]
        );
        assert!(compare(a.path(), a.path())?.is_empty());
        Ok(())
    }

    #[test]
    fn manifest_survives_json() -> Result<()> {
        let m = manifest("aa", "t");
        assert_eq!(serde_json::from_str::<Manifest>(&m.to_json()?)?, m);
        Ok(())
    }
}
