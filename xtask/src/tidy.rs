//! House rules that neither rustfmt nor clippy knows.

use crate::sh;
use anyhow::Result;
use std::path::Path;

/// Longest kernel file: past it a piece belongs in `tile` or `pipeline`.
const KERNEL_LINES: usize = 350;

/// Device layers, lowest first. A layer may use those before it.
const LAYERS: [&str; 4] = ["ptx", "tile", "pipeline", "kernels"];

/// Checks every tracked file and returns what breaks a rule.
///
/// # Errors
/// When git cannot list the files.
pub fn check() -> Result<Vec<String>> {
    let root = sh::root();
    let listed = sh::capture(sh::command("git").args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"]))?;
    let mut out = Vec::new();
    for name in listed.split('\0').filter(|n| !n.is_empty()) {
        let path = root.join(name);
        if path.is_file() {
            let text = std::fs::read(&path)?;
            out.extend(file(name, &String::from_utf8_lossy(&text)));
        }
    }
    Ok(out)
}

/// What breaks a rule in one file. `name` is its path from the root, with `/`.
pub fn file(name: &str, text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let extension = Path::new(name).extension().and_then(|e| e.to_str()).unwrap_or_default();
    match extension {
        "tmp" => out.push(format!("{name}: a working note; delete it before it is committed")),
        "rs" => rust(name, text, &mut out),
        "jsonl" => records(name, text, &mut out),
        _ => {}
    }
    if matches!(extension, "rs" | "toml" | "md" | "json" | "jsonl" | "ptx" | "sh" | "svg") || name.starts_with(".ci/") {
        for (i, line) in text.lines().enumerate() {
            if let Some(path) = machine_path(line) {
                out.push(format!("{name}:{}: a path of one machine: {path}", i + 1));
            }
        }
    }
    out
}

fn rust(name: &str, text: &str, out: &mut Vec<String>) {
    let layer = LAYERS.iter().position(|l| name.strip_prefix("kernels-gpu/src/").is_some_and(|rest| in_layer(rest, l)));
    if name.starts_with("kernels-gpu/src/kernels/") && text.lines().count() > KERNEL_LINES {
        out.push(format!("{name}: {} lines; a kernel file has at most {KERNEL_LINES}", text.lines().count()));
    }
    for (i, line) in text.lines().enumerate() {
        // Enough for these words: none of them stands in a string of this workspace with `//` before it.
        let code = line.split("//").next().unwrap_or_default();
        let mut broken = |rule: &str| out.push(format!("{name}:{}: {rule}", i + 1));
        if layer != Some(0) && (calls(code, "asm") || calls(code, "global_asm")) {
            broken("inline assembly outside kernels-gpu/src/ptx");
        }
        if ["todo", "unimplemented", "dbg"].iter().any(|m| calls(code, m)) {
            broken("a macro of unfinished code");
        }
        let above = layer.map_or(&[][..], |l| LAYERS.get(l + 1..).unwrap_or_default());
        if let Some(upper) = above.iter().find(|upper| code.contains(&format!("crate::{upper}::"))) {
            broken(&format!("uses the layer `{upper}` above its own"));
        }
    }
}

/// Whether `rest` (a path below kernels-gpu/src) lies in `layer`.
fn in_layer(rest: &str, layer: &str) -> bool {
    rest.strip_prefix(layer).is_some_and(|r| r.starts_with('/') || r == ".rs")
}

/// Whether `code` invokes the macro `name`, not one whose name only ends so.
fn calls(code: &str, name: &str) -> bool {
    let invocation = format!("{name}!");
    code.match_indices(&invocation).any(|(at, _)| {
        let before = code.get(..at).and_then(|b| b.chars().next_back());
        let after = code.get(at + invocation.len()..).and_then(|a| a.trim_start().chars().next());
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '"') && matches!(after, Some('(' | '{' | '['))
    })
}

/// A home or checkout folder of some machine in `line`.
fn machine_path(line: &str) -> Option<&'static str> {
    // Written in halves, so that this file keeps its own rule.
    const PLACES: [&str; 4] = [concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/Us", "ers/"), concat!("/wo", "rk/")];
    PLACES.into_iter().find(|place| {
        line.match_indices(place)
            .any(|(at, _)| !line.get(..at).and_then(|b| b.chars().next_back()).is_some_and(|c| c.is_alphanumeric() || "._-})/".contains(c)))
    })
}

/// Every line of a record file is one JSON object.
fn records(name: &str, text: &str, out: &mut Vec<String>) {
    for (i, line) in text.lines().enumerate() {
        match serde_json::from_str::<serde_json::Value>(line) {
            Ok(value) if value.is_object() => {}
            Ok(_) => out.push(format!("{name}:{}: a record is a JSON object", i + 1)),
            Err(e) => out.push(format!("{name}:{}: {e}", i + 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assembly_belongs_to_the_lowest_layer() {
        let line = ["core::arch::", "asm", "!(\"nop;\");"].concat();
        assert!(file("kernels-gpu/src/ptx/fence.rs", &line).is_empty());
        assert_eq!(file("kernels-gpu/src/kernels/attend.rs", &line).len(), 1);
        assert_eq!(file("kernels-gpu/src/ptxas.rs", &line).len(), 1);
        assert_eq!(file("host/src/lib.rs", &line).len(), 1);
        assert!(file("host/src/lib.rs", &format!("// {line}")).is_empty());
    }

    #[test]
    fn unfinished_code_is_found_and_its_namesakes_are_not() {
        let with = |m: &str| file("host/src/lib.rs", &format!("    {m}!(x);"));
        assert_eq!(with("todo").len(), 1);
        assert_eq!(with("dbg").len(), 1);
        assert!(with("my_dbg").is_empty());
        assert!(with("println").is_empty());
    }

    #[test]
    fn layers_import_one_way() {
        assert_eq!(file("kernels-gpu/src/ptx/tma.rs", "use crate::tile::Swizzle;").len(), 1);
        assert!(file("kernels-gpu/src/tile/mod.rs", "use crate::ptx::tma;").is_empty());
    }

    #[test]
    fn machine_paths_and_notes_are_found() {
        let path = concat!("see /ho", "me/someone/x");
        assert_eq!(file("README.md", path).len(), 1);
        assert!(file("README.md", concat!("$PREFIX}/ho", "me/x and a.b/wo", "rk/y")).is_empty());
        assert_eq!(file("docs/note.tmp", "").len(), 1);
    }

    #[test]
    fn records_are_objects() {
        assert!(file("benches/records/a.jsonl", "{\"bench\":\"attend\"}\n{}\n").is_empty());
        assert_eq!(file("benches/records/a.jsonl", "{\"bench\":\n[]\n").len(), 2);
    }

    #[test]
    fn long_kernel_files_are_found() {
        let long = "\n".repeat(KERNEL_LINES + 1);
        assert_eq!(file("kernels-gpu/src/kernels/attend.rs", &long).len(), 1);
        assert!(file("kernels-gpu/src/tile/mma.rs", &long).is_empty());
    }
}
