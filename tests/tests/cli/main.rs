//! The `stem` program, run as a user runs it: good files, and every kind of bad one.
//!
//! The binary is `STEM_BIN` where that is set (a packaged folder), else the one cargo builds here.

mod bad;
mod good;
mod records;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use stem_attn_tests::gpu::REQUIRE;

fn stem() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("STEM_BIN") {
            return path.into();
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args(["build", "--locked", "--package", "stem-attn", "--bin", "stem", "--message-format=json"])
            // The profile of this test: built already, or at least of use to the next.
            .args((!cfg!(debug_assertions)).then_some("--release"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("run cargo");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .find_map(|message| message["executable"].as_str().map(PathBuf::from))
            .expect("cargo names the executable")
    })
}

fn run(arguments: &[&str]) -> Output {
    Command::new(stem()).args(arguments).output().expect("run stem")
}

/// A tensor of a file under construction.
#[derive(Clone)]
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl Tensor {
    fn f32(shape: &[usize], values: &[f32]) -> Self {
        Self { dtype: Dtype::F32, shape: shape.to_vec(), data: values.iter().flat_map(|x| x.to_le_bytes()).collect() }
    }
}

type File = BTreeMap<&'static str, Tensor>;

fn bytes(file: &File) -> Vec<u8> {
    let views = file.iter().map(|(name, t)| (*name, TensorView::new(t.dtype, t.shape.clone(), &t.data).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

/// Random finite e4m3 codes.
fn codes(shape: [usize; 3], rng: &mut StdRng) -> Tensor {
    let data = (0..shape.iter().product()).map(|_| rng.random::<u8>() & 0xbf).collect();
    Tensor { dtype: Dtype::F8_E4M3, shape: shape.to_vec(), data }
}

/// A file of FP8 tensors with every scale: `tokens` queries, `kv` keys, 4 query heads on 2 KV heads.
fn fp8_file(tokens: usize, kv: usize) -> File {
    let mut rng = StdRng::seed_from_u64((tokens * 100_003 + kv) as u64);
    let scales: Vec<f32> = (0..tokens * 4).map(|_| rng.random_range(0.5..1.5)).collect();
    BTreeMap::from([
        ("q", codes([tokens, 4, 128], &mut rng)),
        ("k", codes([kv, 2, 128], &mut rng)),
        ("v", codes([kv, 2, 128], &mut rng)),
        ("q_scale", Tensor::f32(&[tokens, 4], &scales)),
        ("k_scale", Tensor::f32(&[1], &[0.5])),
        ("v_scale", Tensor::f32(&[2], &[0.75, 1.25])),
    ])
}

struct Case {
    dir: tempfile::TempDir,
    input: PathBuf,
    output: PathBuf,
}

impl Case {
    fn new(contents: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (input, output) = (dir.path().join("in.safetensors"), dir.path().join("out.safetensors"));
        std::fs::write(&input, contents).unwrap();
        Self { dir, input, output }
    }

    fn prefill(&self, more: &[&str]) -> Output {
        let mut arguments = vec!["prefill", "--input", self.input.to_str().unwrap(), "--output", self.output.to_str().unwrap()];
        if !more.contains(&"--backend") {
            arguments.extend(["--backend", "cpu"]);
        }
        arguments.extend(more);
        run(&arguments)
    }

    /// Expects exit code 2, one line on stderr with every word, and a folder with nothing but the input.
    fn refuses(&self, more: &[&str], words: &[&str]) {
        let output = self.prefill(more);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert_eq!(message.trim_end().lines().count(), 1, "{message}");
        assert!(message.starts_with("error: ") && !message.contains("panicked"), "{message}");
        for word in words {
            assert!(message.contains(word), "no `{word}` in: {message}");
        }
        let files: Vec<_> = std::fs::read_dir(self.dir.path()).unwrap().map(|f| f.unwrap().file_name()).collect();
        assert_eq!(files, ["in.safetensors"], "nothing may be left behind");
    }
}

fn succeed(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// (shape, data) of a tensor of an output file.
fn read(file: &[u8], name: &str, dtype: Dtype) -> (Vec<usize>, Vec<u8>) {
    let tensors = SafeTensors::deserialize(file).unwrap();
    let tensor = tensors.tensor(name).unwrap();
    assert_eq!(tensor.dtype(), dtype);
    (tensor.shape().to_vec(), tensor.data().to_vec())
}

fn output_tensors(path: &Path) -> [(Vec<usize>, Vec<u8>); 3] {
    let file = std::fs::read(path).unwrap();
    [read(&file, "out", Dtype::BF16), read(&file, "block_mask", Dtype::U8), read(&file, "block_counts", Dtype::I32)]
}

fn check_output(tensors: &[(Vec<usize>, Vec<u8>); 3], tokens: usize, kv: usize) {
    let [(out_shape, out), (mask_shape, mask), (counts_shape, counts)] = tensors;
    let (kb, first) = (kv.div_ceil(128), (kv - tokens) / 128);
    assert_eq!(out_shape, &[tokens, 4, 128]);
    assert_eq!(mask_shape, &[4, kb - first, kb]);
    assert_eq!(counts_shape, &[4, kb - first]);
    assert!(out.chunks(2).all(|b| half::bf16::from_le_bytes([b[0], b[1]]).is_finite()));
    for (i, (row, count)) in mask.chunks(kb).zip(counts.chunks(4)).enumerate() {
        let diagonal = first + i % (kb - first);
        assert_eq!(row.iter().filter(|b| **b == 1).count(), i32::from_le_bytes(count.try_into().unwrap()) as usize);
        assert!(row.iter().all(|b| *b <= 1) && row[diagonal] == 1 && row[diagonal + 1..].iter().all(|b| *b == 0));
    }
}

/// Whether `stem info` finds a usable GPU.
///
/// # Panics
/// When it does not and the test run is meant to have one.
fn has_gpu() -> bool {
    let text = String::from_utf8_lossy(&run(&["info"]).stdout).into_owned();
    let found = text.contains("SMs");
    assert!(found || std::env::var_os(REQUIRE).is_none(), "{REQUIRE} is set, and: {text}");
    found
}
