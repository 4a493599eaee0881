//! Files that are either whole or absent.

use crate::error::{Error, Result};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Folder a file goes to; "." for a bare name.
fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// Checks before any work that a file can come to lie at each of `paths`, and that no two are one file: the later would
/// destroy the earlier. What lies there may be replaced if it is a regular file; a device, say, must not be renamed away.
pub fn check_targets(paths: &[(&'static str, Option<&Path>)], input: Option<&Path>) -> Result<()> {
    let mut taken: Vec<(&str, PathBuf)> = input.map(|path| ("input", resolved(path))).into_iter().collect();
    for &(name, path) in paths {
        let Some(path) = path else { continue };
        check_target(name, path)?;
        let path = resolved(path);
        if let Some((other, _)) = taken.iter().find(|(_, taken)| *taken == path) {
            return Err(Error::value(name, format!("another file than --{other}"), path.display()));
        }
        taken.push((name, path));
    }
    Ok(())
}

fn check_target(name: &'static str, path: &Path) -> Result<()> {
    if path.is_dir() || path.file_name().is_none() {
        return Err(Error::value(name, "the path of a file", format!("{}, a folder", path.display())));
    }
    if path.exists() && !path.is_file() {
        return Err(Error::value(name, "the path of a regular file", format!("{}, something else", path.display())));
    }
    let folder = folder(path);
    if !folder.is_dir() {
        return Err(Error::value(name, "a path in a folder that exists", path.display()));
    }
    Ok(())
}

/// One name for each file, as far as its folder exists.
fn resolved(path: &Path) -> PathBuf {
    let whole = || Some(folder(path).canonicalize().ok()?.join(path.file_name()?));
    path.canonicalize().ok().or_else(whole).unwrap_or_else(|| path.to_path_buf())
}

/// Writes `bytes` beside `path` and renames: readers see the old file or the whole new one.
pub fn write_atomic(name: &'static str, path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |e: std::io::Error| Error::value(name, "a file that can be written", format!("{}: {e}", path.display()));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".stem-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // What `File::create` would ask for; the umask still applies.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let mut temp = builder.tempfile_in(folder(path)).map_err(failed)?;
    temp.write_all(bytes).and_then(|()| temp.as_file().sync_all()).map_err(failed)?;
    temp.persist(path).map_err(|e| failed(e.error))?;
    Ok(())
}

/// Appends whole lines; where that fails, what was written of them is taken back.
pub fn append_lines(name: &'static str, path: &Path, lines: &str) -> Result<()> {
    let failed = |e: std::io::Error| Error::value(name, "a file that can be written", format!("{}: {e}", path.display()));
    let mut file = OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
    let before = file.metadata().map_err(failed)?.len();
    file.write_all(lines.as_bytes()).map_err(|e| {
        // A file on a full disk can still be cut. Where it cannot, the first error is the one to show.
        let _ = file.set_len(before);
        failed(e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_whole_or_absent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_atomic("output", &path, b"one").unwrap();
        write_atomic("output", &path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
        assert!(write_atomic("output", &dir.path().join("missing/x"), b"x").is_err());
    }

    #[test]
    fn targets_are_regular_files_in_folders_that_exist() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check_target("output", dir.path()).is_err());
        assert!(check_target("output", &dir.path().join("missing/x")).is_err());
        assert!(check_target("output", Path::new("bare-name")).is_ok());
        #[cfg(unix)]
        assert!(check_target("output", Path::new("/dev/null")).is_err(), "a rename would remove the device");
    }

    #[test]
    fn no_two_targets_are_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let (a, same, b) = (dir.path().join("a"), dir.path().join("./a"), dir.path().join("b"));
        let check = |output: &Path, report: &Path, input: &Path| {
            check_targets(&[("output", Some(output)), ("mask", None), ("report", Some(report))], Some(input))
        };
        for exists in [false, true] {
            if exists {
                std::fs::write(&a, b"x").unwrap();
            }
            assert!(check(&a, &b, Path::new("c")).is_ok());
            assert!(matches!(check(&a, &same, Path::new("c")), Err(Error::Value { name: "report", .. })));
            assert!(matches!(check(&a, &b, &same), Err(Error::Value { name: "output", .. })));
        }
    }

    #[test]
    fn lines_are_appended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r");
        append_lines("report", &path, "a\nb\n").unwrap();
        append_lines("report", &path, "c\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"a\nb\nc\n");
        assert!(append_lines("report", dir.path(), "x").is_err());
    }
}
