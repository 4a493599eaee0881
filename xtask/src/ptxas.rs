//! The assembler: where it is, how it is fetched, what its report says.

use crate::sh;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The wheel that carries ptxas: the release whose report and warnings this program knows and whose registers are in the
/// audit's snapshot.
pub const WHEEL: &str = "nvidia-cuda-nvcc==13.0.88";
/// Where the wheel is unpacked, below the workspace root.
const CACHE: &str = "target/ptxas";
/// ptxas inside the wheel.
const IN_WHEEL: &str = "nvidia/cu13/bin/ptxas";

/// Finds ptxas: the argument, `STEM_PTXAS`, `CUDA_HOME`, what [`fetch`] unpacked, `PATH`, Python's packages. None where it is
/// nowhere.
///
/// # Errors
/// When a place named on purpose does not have it.
pub fn find(explicit: Option<&Path>) -> Result<Option<PathBuf>> {
    let named = explicit.map(Path::to_path_buf).or_else(|| std::env::var_os("STEM_PTXAS").map(PathBuf::from));
    if let Some(path) = named {
        if path.is_file() {
            return Ok(Some(path));
        }
        bail!("no ptxas at {}", path.display());
    }
    let home = |var: &str| std::env::var_os(var).map(|dir| PathBuf::from(dir).join("bin/ptxas"));
    let places = [home("CUDA_HOME"), home("CUDA_PATH"), Some(sh::root().join(CACHE).join(IN_WHEEL)), sh::on_path("ptxas")];
    Ok(places.into_iter().flatten().find(|p| p.is_file()).or_else(in_python))
}

/// ptxas of a wheel that Python has installed.
fn in_python() -> Option<PathBuf> {
    let script = "import site, sys; print('\\n'.join(sys.path + site.getsitepackages()))";
    let folders = sh::capture(sh::command("python3").args(["-c", script])).ok()?;
    folders.lines().filter(|l| !l.is_empty()).map(|l| Path::new(l).join(IN_WHEEL)).find(|p| p.is_file())
}

/// Unpacks the wheel below target/ with pip.
///
/// # Errors
/// When there is no pip or no network.
pub fn fetch() -> Result<PathBuf> {
    let into = sh::root().join(CACHE);
    let mut pip = sh::command("python3");
    pip.env("PIP_ROOT_USER_ACTION", "ignore")
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--upgrade", "--target"])
        .arg(&into)
        .arg(WHEEL);
    sh::run(&mut pip).context("fetching ptxas (needs python3 with pip: `apt-get install -y --no-install-recommends python3-pip`)")?;
    let ptxas = into.join(IN_WHEEL);
    if !ptxas.is_file() {
        bail!("{WHEEL} has no {IN_WHEEL}");
    }
    Ok(ptxas)
}

/// The release in `ptxas --version`.
///
/// # Errors
/// When ptxas does not run.
pub fn version(ptxas: &Path) -> Result<String> {
    let text = sh::capture(sh::command(ptxas).arg("--version"))?;
    Ok(text.lines().find_map(|l| l.split_once("release ")).map_or("unknown", |(_, v)| v).to_owned())
}

/// What ptxas says of one entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Registers of a thread.
    pub registers: u32,
    /// Named barriers; 16 means that an id was not a constant.
    pub barriers: u32,
    /// Bytes of shared memory that the code itself declares; the launch's dynamic ones are not among them.
    pub shared: u32,
    /// Bytes of local memory.
    pub stack: u32,
    /// Bytes of registers stored to local memory.
    pub spill_stores: u32,
    /// Bytes of registers loaded back.
    pub spill_loads: u32,
}

/// One message with a number, such as `C7508`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Advisory {
    /// The number.
    pub code: String,
    /// The text after it.
    pub text: String,
}

impl Advisory {
    /// Whether it means slow or serialised code. ptxas calls most of these a potential performance loss; the numbers are
    /// named in case a release words them otherwise. C7517 is a wait that ptxas adds because registers of a wgmma in
    /// flight are used: the source forgot one. (C7519, an added `warpgroup.arrive`, costs nothing.)
    pub fn is_fatal(&self) -> bool {
        matches!(self.code.as_str(), "C7508" | "C7511" | "C7513" | "C7515" | "C7517" | "C7518")
            || (self.code.starts_with("C75") && self.text.to_ascii_lowercase().contains("performance loss"))
    }
}

/// The report of `ptxas -v`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// By entry.
    pub entries: BTreeMap<String, Usage>,
    /// Numbered messages.
    pub advisories: Vec<Advisory>,
    /// Errors and unnumbered warnings, as they came.
    pub complaints: Vec<String>,
}

/// Assembles `file` for sm_90a and reads the report.
///
/// # Errors
/// When ptxas cannot be started. Text that it refuses is no error here: see [`Report::complaints`].
pub fn assemble(ptxas: &Path, file: &Path) -> Result<Report> {
    let out = tempfile::NamedTempFile::new()?;
    let output = sh::command(ptxas)
        .args(["-arch=sm_90a", "-v"])
        .arg(file)
        .arg("-o")
        .arg(out.path())
        .output()
        .with_context(|| format!("cannot start {}", ptxas.display()))?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let mut report = read_report(&text);
    if !output.status.success() && report.complaints.is_empty() {
        report.complaints.push(format!("ptxas ended with {}", output.status));
    }
    Ok(report)
}

/// Reads the text of `ptxas -v`.
pub fn read_report(text: &str) -> Report {
    let mut report = Report::default();
    let mut entry: Option<String> = None;
    for line in text.lines() {
        if let Some((_, rest)) = line.split_once("(C7") {
            if let Some((digits, message)) = rest.split_once(')') {
                report.advisories.push(Advisory { code: format!("C7{digits}"), text: message.trim().to_owned() });
            }
        } else if line.contains("Compiling entry function") {
            entry = line.split('\'').nth(1).map(str::to_owned);
        } else if line.contains("error") || line.contains("fatal") || line.contains("warning") {
            report.complaints.push(line.trim().to_owned());
        } else if line.contains("Function properties for") {
            // A line of numbers of its own follows; it may belong to a device function, which has no usage line.
            entry = line.rsplit(' ').next().map(str::to_owned);
        } else if let Some(name) = &entry {
            let field = |label: &str| number_before(line, label);
            if let Some(stack) = field(" bytes stack frame") {
                let usage = report.entries.entry(name.clone()).or_default();
                usage.stack = stack;
                usage.spill_stores = field(" bytes spill stores").unwrap_or_default();
                usage.spill_loads = field(" bytes spill loads").unwrap_or_default();
            } else if let Some((_, used)) = line.split_once("Used ") {
                let usage = report.entries.entry(name.clone()).or_default();
                usage.registers = number_before(used, " registers").unwrap_or_default();
                usage.barriers = number_before(used, " barriers").unwrap_or_default();
                usage.shared = number_before(used, " bytes smem").unwrap_or_default();
            }
        }
    }
    report
}

/// The number right before `label` in `line`.
fn number_before(line: &str, label: &str) -> Option<u32> {
    line.split(label).next().filter(|before| before.len() < line.len())?.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
