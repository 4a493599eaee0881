//! What selection loses on captures of a real model, and how the error of attention grows with length, as records.
//!
//!     fidelity [--capture FILE]... [--records FILE] [--budgets B,..] [--mask-budget B] [--lengths N,..]
//!
//! Without `--capture` it takes the demo's. Mass, sources and masks come from the CPU; errors at growing lengths are those of
//! the backend there is, on the first tokens of the capture, against f64.

use serde::Serialize;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use stem_attn::cli::input::Input;
use stem_attn::reference::dense_rows;
use stem_attn::{Backend, PrefillInputs, PrefillOptions, Selection, record};
use stem_attn_benches::fidelity::{Capture, Fidelity, Mask, SELECTORS, runs};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Query rows whose output is compared with f64, at each length.
const ROWS: usize = 512;

struct Args {
    captures: Vec<PathBuf>,
    records: Option<PathBuf>,
    budgets: Vec<f64>,
    mask_budget: f64,
    lengths: Vec<usize>,
}

/// Attention's error at one length: a line of a record file.
#[derive(Serialize)]
struct LengthError {
    bench: &'static str,
    backend: &'static str,
    gpu: Option<String>,
    capture: String,
    tokens: usize,
    head: usize,
    preset: &'static str,
    /// Relative error (2-norm) against f64 attention on the same FP8 values.
    error: f64,
    /// Rows compared.
    rows: usize,
    command: String,
    commit: Option<String>,
    date: String,
}

fn main() -> ExitCode {
    let args = match arguments(std::env::args_os().skip(1)) {
        Ok(args) => args,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

fn arguments(mut words: impl Iterator<Item = OsString>) -> std::result::Result<Args, String> {
    let mut args = Args {
        captures: Vec::new(),
        records: None,
        budgets: vec![0.15, 0.2, 0.25, 0.3, 0.35, 0.5, 0.75],
        mask_budget: 0.25,
        lengths: vec![1024, 2048, 4096, 8192, 16_384],
    };
    while let Some(word) = words.next() {
        let name = word.to_string_lossy().into_owned();
        let mut value = || words.next().ok_or(format!("{name} wants a value"));
        let number = |text: &str| text.parse::<f64>().ok().filter(|b| (0.0..=1.0).contains(b)).ok_or(format!("{text} is no share"));
        match name.as_str() {
            "--capture" => args.captures.push(value()?.into()),
            "--records" => args.records = Some(value()?.into()),
            "--budgets" => args.budgets = value()?.to_string_lossy().split(',').map(number).collect::<std::result::Result<_, _>>()?,
            "--mask-budget" => args.mask_budget = number(&value()?.to_string_lossy())?,
            "--lengths" => {
                let text = value()?.to_string_lossy().into_owned();
                args.lengths =
                    text.split(',').map(|n| n.parse().map_err(|_| format!("{n} is no length"))).collect::<std::result::Result<_, _>>()?;
            }
            "--bench" => {} // cargo's own
            _ => return Err(format!("unknown argument {name}")),
        }
    }
    if args.captures.is_empty() {
        args.captures.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/qkv_layer5_8k.safetensors"));
    }
    Ok(args)
}

fn run(args: &Args) -> Result<()> {
    // Opened first: a file that cannot be written should not cost the computation.
    let open = |path: &PathBuf| std::fs::OpenOptions::new().create(true).append(true).open(path);
    let mut out = Out { file: args.records.as_ref().map(open).transpose()?, commit: record::commit(), command: command() };
    let backend = Backend::auto();
    for path in &args.captures {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let capture = Capture::new(Input::read(path)?, questions(path)?)?;
        println!("{name}: {} tokens, {} heads, {} questions", capture.input.shape.tokens, capture.heads(), capture.questions.len());
        selectors(args, &name, &capture, &mut out)?;
        lengths(args, &name, &capture, &backend, &mut out)?;
    }
    Ok(())
}

fn selectors(args: &Args, name: &str, capture: &Capture, out: &mut Out) -> Result<()> {
    println!("{:<28}{:>8}{:>8}{:>6}{:>8}{:>10}{:>10}", "selector", "budget", "kept", "head", "mass", "sources", "error");
    let mass = capture.mass()?;
    let tokens = capture.input.shape.tokens;
    let causal = (capture.blocks() * (capture.blocks() + 1) / 2) as f64;
    for selector in &SELECTORS {
        let scores = selector.scores(capture)?;
        for &budget in &args.budgets {
            let lists = capture.lists(&scores, budget)?;
            for head in 0..capture.heads() {
                let kept = (0..capture.blocks()).map(|block| lists.row(head, block).len()).sum::<usize>() as f64 / causal;
                let line = Fidelity {
                    bench: "fidelity",
                    capture: name.into(),
                    tokens,
                    head,
                    selector: selector.name,
                    setting: selector.setting,
                    budget,
                    kept,
                    mass: capture.mass_kept(&mass, &lists, head),
                    sources_kept: capture.sources_kept(&lists, head),
                    sources: capture.questions.len(),
                    error: capture.output_error(&lists, head),
                    command: out.command.clone(),
                    commit: out.commit.clone(),
                    date: record::now(),
                };
                println!(
                    "{:<28}{budget:>8}{:>8.3}{head:>6}{:>8.3}{:>7}/{:<2}{:>10.4}",
                    format!("{} {}", selector.name, selector.setting),
                    line.kept,
                    line.mass,
                    line.sources_kept,
                    line.sources,
                    line.error
                );
                out.write(&line)?;
            }
        }
        let lists = capture.lists(&scores, args.mask_budget)?;
        for head in 0..capture.heads() {
            out.write(&Mask {
                bench: "mask",
                capture: name.into(),
                tokens,
                head,
                selector: selector.name,
                setting: selector.setting,
                budget: args.mask_budget,
                rows: (0..capture.blocks()).map(|block| runs(lists.row(head, block))).collect(),
                command: out.command.clone(),
                commit: out.commit.clone(),
                date: record::now(),
            })?;
        }
    }
    Ok(())
}

/// Dense attention of the first tokens of a capture.
fn lengths(args: &Args, name: &str, capture: &Capture, backend: &Backend, out: &mut Out) -> Result<()> {
    let gpu = match backend {
        Backend::Cuda(cuda) => Some(cuda.info().name.clone()),
        _ => None,
    };
    println!("error of dense attention, {}", gpu.as_deref().unwrap_or("CPU reference with the kernel's roundings"));
    let (whole, shape) = (capture.input.inputs(), capture.input.shape);
    for &tokens in args.lengths.iter().filter(|&&n| n > 0 && n <= shape.tokens) {
        let lens = [0, tokens as i32];
        let (q, kv) = (tokens * shape.hq, tokens * shape.hkv * 128);
        let inputs = PrefillInputs {
            q: &whole.q[..q * 128],
            q_scale: &whole.q_scale[..q],
            k: &whole.k[..kv],
            v: &whole.v[..kv],
            cu_seqlens_q: &lens,
            cu_seqlens_kv: &lens,
            prompt_lens: &lens[1..],
            ..whole
        };
        let result = backend.prefill(&inputs, Selection::Dense, &PrefillOptions::default())?;
        let rows: Vec<usize> = (0..tokens).rev().step_by(tokens.div_ceil(ROWS)).collect();
        let exact = dense_rows(&inputs, true, &rows)?;
        for head in 0..shape.hq {
            let (mut error, mut norm) = (0f64, 0f64);
            for (i, &row) in rows.iter().enumerate() {
                let got = result.out[(row * shape.hq + head) * 128..].iter().take(128);
                for (got, want) in got.zip(&exact[(i * shape.hq + head) * 128..]) {
                    error += (got.to_f64() - want).powi(2);
                    norm += want * want;
                }
            }
            let error = (error / norm).sqrt();
            println!("{tokens:>8} tokens, head {head}: {error:.5}");
            out.write(&LengthError {
                bench: "length_error",
                backend: backend.name(),
                gpu: gpu.clone(),
                capture: name.into(),
                tokens,
                head,
                preset: "dense",
                error,
                rows: rows.len(),
                command: out.command.clone(),
                commit: out.commit.clone(),
                date: record::now(),
            })?;
        }
    }
    Ok(())
}

/// First tokens of sources and answers, where the file has `pos_source` and `pos_answer`, I32 `[questions, 2]` token ranges.
fn questions(path: &Path) -> Result<Vec<(usize, usize)>> {
    let bytes = std::fs::read(path)?;
    let file = safetensors::SafeTensors::deserialize(&bytes)?;
    let starts = |name: &str| -> Option<Vec<usize>> {
        let tensor = file.tensor(name).ok().filter(|t| t.dtype() == safetensors::Dtype::I32 && t.shape().len() == 2)?;
        Some(tensor.data().chunks(8).filter_map(|range| Some(i32::from_le_bytes(*range.first_chunk()?) as usize)).collect())
    };
    Ok(starts("pos_source").unwrap_or_default().into_iter().zip(starts("pos_answer").unwrap_or_default()).collect())
}

/// The command line, files by their last names.
fn command() -> String {
    let name = |word: String| if word.contains('/') { word.rsplit('/').next().unwrap_or_default().to_owned() } else { word };
    let words = std::env::args().skip(1).filter(|word| word != "--bench").map(name);
    std::iter::once("cargo bench --package stem-attn-benches --bench fidelity --".to_owned()).chain(words).collect::<Vec<_>>().join(" ")
}

struct Out {
    file: Option<std::fs::File>,
    commit: Option<String>,
    command: String,
}

impl Out {
    fn write(&mut self, line: &impl Serialize) -> Result<()> {
        if let Some(file) = &mut self.file {
            file.write_all((serde_json::to_string(line)? + "\n").as_bytes())?;
        }
        Ok(())
    }
}
