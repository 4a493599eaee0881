//! `cargo xtask package-gpu`: a folder of binaries that a GPU machine runs without Rust.

use crate::sh;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::fs;
use std::path::{Path, PathBuf};

/// Options.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Where to put it; emptied first
    #[arg(long, default_value = ".carry", value_name = "DIR")]
    pub out: PathBuf,
}

/// Largest folder that is sensible to copy to another machine.
const LIMIT: u64 = 128 << 20;

/// Files that mark a folder as one of ours, safe to empty.
const MARK: &str = "run.sh";

/// What cargo says of one executable (`--message-format=json`).
#[derive(Deserialize)]
struct Artifact {
    reason: String,
    #[serde(default)]
    executable: Option<PathBuf>,
    #[serde(default)]
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// When a build fails, the folder holds something else, or it grows too large.
pub fn run(args: &Args) -> Result<()> {
    let out = sh::root().join(&args.out);
    prepare(&out)?;
    let mut size = 0;
    let builds: [(&str, &[&str]); 3] = [
        ("tests", &["test", "--no-run", "--release", "--locked", "--package", "stem-attn-tests"]),
        ("benches", &["bench", "--no-run", "--locked", "--package", "stem-attn-benches", "--bench", "*"]),
        ("bin", &["build", "--release", "--locked", "--package", "stem-attn", "--bin", "stem"]),
    ];
    // The folder has no repository beside it; records made with it must name the source all the same.
    let commit = sh::capture(sh::command("git").args(["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]))?;
    for (folder, build) in builds {
        let mut cargo = sh::cargo();
        cargo.env("STEM_COMMIT", commit.trim()).args(build).arg("--message-format=json-render-diagnostics");
        let output = cargo.stderr(std::process::Stdio::inherit()).output()?;
        if !output.status.success() {
            bail!("`cargo {}` ended with {}", build.join(" "), output.status);
        }
        for (name, executable) in executables(&String::from_utf8_lossy(&output.stdout))? {
            let to = out.join(folder).join(name);
            size += copy_stripped(&executable, &to)?;
        }
    }
    // The peers' script is Python and reads which commit the binaries are of.
    size += copy_peers(&out.join("peers"))?;
    fs::write(out.join("commit"), commit)?;
    write_script(&out.join(MARK))?;
    say!("{}: {:.1} MiB; run {}/{MARK} on the GPU machine", out.display(), size as f64 / (1 << 20) as f64, args.out.display());
    if size > LIMIT {
        bail!("the folder is larger than {} MiB", LIMIT >> 20);
    }
    Ok(())
}

/// Makes `out` an empty folder, unless it holds what this command did not write.
fn prepare(out: &Path) -> Result<()> {
    if out.exists() {
        if fs::read_dir(out)?.next().is_some() && !out.join(MARK).is_file() {
            bail!("{} is not a package folder; remove it first", out.display());
        }
        fs::remove_dir_all(out)?;
    }
    fs::create_dir_all(out).with_context(|| format!("making {}", out.display()))
}

/// Name and path of every executable in cargo's messages. Library unit tests get the kind in front of the name.
fn executables(messages: &str) -> Result<Vec<(String, PathBuf)>> {
    let mut out = Vec::new();
    for line in messages.lines().filter(|l| l.starts_with('{')) {
        let artifact: Artifact = serde_json::from_str(line).context("a message of cargo")?;
        if let ("compiler-artifact", Some(executable), Some(target)) = (artifact.reason.as_str(), artifact.executable, artifact.target) {
            let library = target.kind.iter().any(|k| k.ends_with("lib"));
            out.push((if library { format!("lib-{}", target.name) } else { target.name }, executable));
        }
    }
    Ok(out)
}

/// Copies an executable without its symbols and returns its size.
fn copy_stripped(from: &Path, to: &Path) -> Result<u64> {
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::copy(from, to).with_context(|| format!("copying {}", from.display()))?;
    if sh::on_path("strip").is_some() {
        sh::run(sh::command("strip").arg(to))?;
    }
    Ok(fs::metadata(to)?.len())
}

/// Copies the script that measures the peers and returns its size.
fn copy_peers(to: &Path) -> Result<u64> {
    fs::create_dir_all(to)?;
    let mut size = 0;
    for entry in fs::read_dir(sh::root().join("benches/peers"))? {
        let from = entry?.path();
        if let (true, Some(name)) = (from.extension().is_some_and(|e| e == "py"), from.file_name()) {
            size += fs::copy(&from, to.join(name)).with_context(|| format!("copying {}", from.display()))?;
        }
    }
    Ok(size)
}

fn write_script(path: &Path) -> Result<()> {
    fs::write(path, include_str!("run.sh"))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_read_from_cargo_messages() -> Result<()> {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"stem_attn","kind":["lib"]},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"stem_attn_tests","kind":["lib"]},"executable":"/x/a-1"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"probe","kind":["test"]},"executable":"/x/probe-2"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        let expected = [("lib-stem_attn_tests".to_owned(), PathBuf::from("/x/a-1")), ("probe".to_owned(), PathBuf::from("/x/probe-2"))];
        assert_eq!(executables(messages)?, expected);
        Ok(())
    }

    #[test]
    fn a_folder_of_something_else_is_left_alone() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let out = dir.path().join("out");
        fs::create_dir(&out)?;
        fs::write(out.join("thesis.txt"), "")?;
        assert!(prepare(&out).is_err());
        assert!(out.join("thesis.txt").exists());
        fs::write(out.join(MARK), "")?;
        prepare(&out)?;
        assert_eq!(fs::read_dir(&out)?.count(), 0);
        Ok(())
    }
}
