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

/// Checks before any work that a file can come to lie at `path`.
pub fn check_target(name: &'static str, path: &Path) -> Result<()> {
    if path.is_dir() || path.file_name().is_none() {
        return Err(Error::value(name, "the path of a file", format!("{}, a folder", path.display())));
    }
    let folder = folder(path);
    if !folder.is_dir() {
        return Err(Error::value(name, "a path in a folder that exists", path.display()));
    }
    Ok(())
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

/// Appends whole lines with one write.
pub fn append_lines(name: &'static str, path: &Path, lines: &str) -> Result<()> {
    let failed = |e: std::io::Error| Error::value(name, "a file that can be written", format!("{}: {e}", path.display()));
    let mut file = OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
    file.write_all(lines.as_bytes()).map_err(failed)
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
        assert!(check_target("output", dir.path()).is_err());
        assert!(check_target("output", &dir.path().join("missing/x")).is_err());
        assert!(check_target("output", Path::new("bare-name")).is_ok());
        assert!(write_atomic("output", &dir.path().join("missing/x"), b"x").is_err());
    }
}
