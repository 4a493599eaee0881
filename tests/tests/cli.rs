//! The `stem` program, run as a user runs it: good files, and every kind of bad one.
//!
//! The binary is `STEM_BIN` where that is set (a packaged folder), else the one cargo builds here.

use rand::{RngExt, SeedableRng, rngs::StdRng};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

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

#[test]
fn output_holds_attention_mask_and_counts() {
    for (tokens, kv) in [(1, 1), (300, 300), (129, 500), (100, 333)] {
        let case = Case::new(&bytes(&fp8_file(tokens, kv)));
        let text = succeed(&case.prefill(&[]));
        assert!(text.contains("cpu") && text.contains("attend"), "{text}");
        check_output(&output_tensors(&case.output), tokens, kv);
    }
}

#[test]
fn selection_is_sparse_on_a_long_prompt_and_its_mask_gives_the_same_output_again() {
    let (tokens, kv) = (600, 57 * 128);
    let mut file = fp8_file(tokens, kv);
    let case = Case::new(&bytes(&file));
    let text = succeed(&case.prefill(&["--alpha", "0.7"]));
    assert!(text.contains("hpc"), "{text}");
    let first = output_tensors(&case.output);
    check_output(&first, tokens, kv);
    assert!(first[1].1.contains(&0), "57 blocks are above the dense limit of the hpc schedule");

    file.insert("block_mask", Tensor { dtype: Dtype::U8, shape: first[1].0.clone(), data: first[1].1.clone() });
    let again = Case::new(&bytes(&file));
    assert!(succeed(&again.prefill(&[])).contains("block_mask"));
    assert!(output_tensors(&again.output) == first, "the same blocks give the same output");

    // Dense attends to more, so its output is another.
    let dense = Case::new(&bytes(&fp8_file(tokens, kv)));
    succeed(&dense.prefill(&["--dense"]));
    let dense = output_tensors(&dense.output);
    check_output(&dense, tokens, kv);
    assert!(dense[0] != first[0]);
}

#[test]
fn blocks_of_a_mask_above_the_diagonal_are_dropped() {
    let mut file = fp8_file(300, 300);
    file.insert("block_mask", Tensor { dtype: Dtype::U8, shape: vec![4, 3, 3], data: vec![1; 36] });
    let case = Case::new(&bytes(&file));
    succeed(&case.prefill(&[]));
    let masked = output_tensors(&case.output);
    check_output(&masked, 300, 300);
    let dense = Case::new(&bytes(&fp8_file(300, 300)));
    succeed(&dense.prefill(&["--dense"]));
    assert!(output_tensors(&dense.output) == masked);
}

#[test]
fn wider_types_are_quantised() {
    let mut rng = StdRng::seed_from_u64(9);
    let mut values = |n: usize| (0..n).map(|_| rng.random_range(-2f32..2.0)).collect::<Vec<_>>();
    let (q, k, v) = (values(200 * 4 * 128), values(200 * 2 * 128), values(200 * 2 * 128));
    let mut outputs = Vec::new();
    for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
        let tensor = |shape: &[usize], values: &[f32]| match dtype {
            Dtype::BF16 => {
                Tensor { dtype, shape: shape.to_vec(), data: values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect() }
            }
            Dtype::F16 => {
                Tensor { dtype, shape: shape.to_vec(), data: values.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect() }
            }
            _ => Tensor::f32(shape, values),
        };
        let file =
            BTreeMap::from([("q", tensor(&[200, 4, 128], &q)), ("k", tensor(&[200, 2, 128], &k)), ("v", tensor(&[200, 2, 128], &v))]);
        let case = Case::new(&bytes(&file));
        assert!(succeed(&case.prefill(&[])).contains(&format!("{dtype:?}")));
        let (_, out) = &output_tensors(&case.output)[0];
        outputs.push(out.chunks(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect::<Vec<_>>());
    }
    for other in &outputs[1..] {
        let error: f32 = outputs[0].iter().zip(other).map(|(a, b)| (a - b) * (a - b)).sum();
        let size: f32 = outputs[0].iter().map(|a| a * a).sum();
        assert!(size > 0.0 && (error / size).sqrt() < 0.05, "{}", (error / size).sqrt());
    }
}

#[test]
fn report_and_picture() {
    let case = Case::new(&bytes(&fp8_file(300, 700)));
    let (report, mask) = (case.dir.path().join("r.json"), case.dir.path().join("m.svg"));
    let more = ["--repeat", "2", "--page-size", "32", "--report", report.to_str().unwrap(), "--mask", mask.to_str().unwrap()];
    succeed(&case.prefill(&more));
    succeed(&case.prefill(&more));
    let text = std::fs::read_to_string(&report).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let benches: Vec<_> = lines.iter().map(|line| line["bench"].as_str().unwrap()).collect();
    let stages = ["summarize_kv", "select", "attend", "prefill"];
    assert_eq!(benches, [stages, stages].concat(), "two runs, one record per stage each");
    for line in &lines {
        for field in [
            "bench",
            "gpu",
            "driver",
            "sm_clock_mhz",
            "power_w",
            "hq",
            "hkv",
            "d",
            "seq",
            "history",
            "page",
            "skip",
            "softmax",
            "preset",
            "ms",
            "p10",
            "p90",
            "tflops_selected",
            "tflops_dense_equiv",
            "cycles_per_tile",
            "peer",
            "command",
            "commit",
            "date",
        ] {
            assert!(line.get(field).is_some(), "{field} in {line}");
        }
        assert_eq!((&line["hq"], &line["hkv"], &line["d"]), (&4.into(), &2.into(), &128.into()));
        assert_eq!((&line["seq"], &line["history"], &line["page"]), (&300.into(), &400.into(), &32.into()));
        let number = |field: &str| line[field].as_f64().unwrap();
        assert!(number("ms") > 0.0 && number("p10") <= number("ms") && number("ms") <= number("p90"), "{line}");
        let skip = (line["bench"] != "summarize_kv").then_some(0.0);
        assert_eq!(line["skip"].as_f64(), skip, "six blocks are below the dense limit");
        assert!(line["command"].as_str().unwrap().starts_with("stem prefill"));
    }
    let picture = std::fs::read_to_string(mask).unwrap();
    assert!(picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"));
    for head in 0..4 {
        assert!(picture.contains(&format!("head {head}:")));
    }
}

#[test]
fn bench_checks_measures_and_records() {
    let dir = tempfile::tempdir().unwrap();
    let records = dir.path().join("r.jsonl");
    let shape = ["--hq", "4", "--hkv", "2", "--page", "32", "--repeat", "2", "--backend", "cpu", "--records", records.to_str().unwrap()];
    for (stage, more) in [
        ("attend", &["--seq", "300,512", "--history", "100", "--skip", "0,0.5", "--dense"][..]),
        ("select", &["--seq", "300"]),
        ("summarize_kv", &["--seq", "129"]),
        ("append_kv", &["--seq", "129", "--history", "77"]),
        ("prefill", &["--seq", "300", "--preset", "paper"]),
    ] {
        let text = succeed(&run(&[&["bench", "--bench", stage][..], more, &shape].concat()));
        assert!(text.contains("checked") && text.contains("cpu"), "{text}");
    }
    let text = std::fs::read_to_string(&records).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let found: Vec<_> = lines.iter().map(|l| (l["bench"].as_str().unwrap(), l["preset"].as_str(), l["skip"].as_f64())).collect();
    assert_eq!(
        found[..3],
        [("attend", Some("dense"), Some(0.0)), ("attend", Some("random"), Some(0.0)), ("attend", Some("random"), found[2].2)]
    );
    assert!((found[2].2.unwrap() - 0.5).abs() < 0.1, "{found:?}");
    assert_eq!(
        found[6..],
        [
            ("select", Some("hpc"), Some(0.0)),
            ("summarize_kv", None, None),
            ("append_kv", None, None),
            ("prefill", Some("paper"), Some(0.0))
        ]
    );
    for bad in [
        &["--seq", "0"][..],
        &["--seq", "99999999999"],
        &["--seq", "128", "--skip", "1"],
        &["--seq", "128", "--hq", "5", "--hkv", "2"],
        &["--seq", "128", "--page", "8"],
    ] {
        let output = run(&[&["bench", "--bench", "attend", "--backend", "cpu"][..], bad].concat());
        assert_eq!(output.status.code(), Some(2), "{bad:?}");
        assert!(output.stdout.is_empty() && !String::from_utf8_lossy(&output.stderr).contains("panicked"));
    }
}

#[test]
fn errors_shown_are_those_of_fp8() {
    let text = succeed(&Case::new(&bytes(&fp8_file(200, 200))).prefill(&["--dense"]));
    let line = text.lines().find(|l| l.contains("relative to dense")).expect("the error line");
    let error: f64 = line.split_whitespace().find_map(|w| w.parse().ok()).expect("a number");
    assert!(error > 0.0 && error < 0.05, "{line}");
}

#[test]
fn info_succeeds_everywhere() {
    let text = succeed(&run(&["info"]));
    for word in ["gpu", "PTX", "sm_90a", "rustc", "attend_fp8_d128", "select_topk"] {
        assert!(text.contains(word), "{word} in {text}");
    }
}

/// One change to a good file, and the words its refusal must have.
type Bad = (&'static str, fn(&mut File), &'static [&'static str]);

#[test]
fn bad_tensors_are_refused() {
    let cases: &[Bad] = &[
        ("no v", |f| drop(f.remove("v")), &["v:", "[Tk, Hkv, 128]"]),
        ("rank of q", |f| f.get_mut("q").unwrap().shape = vec![200 * 4, 128], &["q:", "[tokens, heads, 128]", "[800, 128]"]),
        ("head dimension", |f| f.get_mut("k").unwrap().shape = vec![300, 4, 64], &["k:", "128]", "[300, 4, 64]"]),
        (
            "dtype of q",
            |f| {
                let q = f.get_mut("q").unwrap();
                q.dtype = Dtype::I8;
            },
            &["q:", "F8_E4M3", "I8"],
        ),
        ("e5m2", |f| f.get_mut("v").unwrap().dtype = Dtype::F8_E5M2, &["v:", "F8_E4M3", "F8_E5M2"]),
        ("head ratio", |f| f.get_mut("q").unwrap().shape = vec![800, 1, 128], &["q:", "multiple", "1 heads"]),
        ("k and v differ", |f| f.get_mut("v").unwrap().shape = vec![150, 4, 128], &["v:", "[300, 2, 128]", "[150, 4, 128]"]),
        (
            "fewer keys than queries",
            |f| *f = fp8_file(200, 300).into_iter().chain(fp8_file(400, 400).into_iter().filter(|(n, _)| n.starts_with('q'))).collect(),
            &["k:", "400", "300"],
        ),
        ("NaN scale", |f| drop(f.insert("k_scale", Tensor::f32(&[1], &[f32::NAN]))), &["k_scale:", "finite", "NaN"]),
        ("negative scale", |f| drop(f.insert("v_scale", Tensor::f32(&[2], &[1.0, -1.0]))), &["v_scale:", "positive", "-1"]),
        (
            "NaN in q_scale",
            |f| f.get_mut("q_scale").unwrap().data[4..8].copy_from_slice(&f32::NAN.to_le_bytes()),
            &["q_scale:", "NaN at 1"],
        ),
        ("shape of q_scale", |f| f.get_mut("q_scale").unwrap().shape = vec![4, 200], &["q_scale:", "[200, 4]", "[4, 200]"]),
        ("shape of k_scale", |f| drop(f.insert("k_scale", Tensor::f32(&[3], &[1.0; 3]))), &["k_scale:", "[1] or [2]", "[3]"]),
        ("dtype of a scale", |f| f.get_mut("q_scale").unwrap().dtype = Dtype::I32, &["q_scale:", "F32", "I32"]),
        (
            "scale of a BF16 tensor",
            |f| drop(f.insert("k", Tensor { dtype: Dtype::BF16, shape: vec![300, 2, 128], data: vec![0; 300 * 512] })),
            &["k_scale:", "BF16"],
        ),
        (
            "infinity",
            |f| {
                f.remove("k_scale");
                f.insert("k", Tensor::f32(&[300, 2, 128], &[f32::INFINITY; 300 * 256]));
            },
            &["k:", "finite", "inf"],
        ),
        (
            "dtype of the mask",
            |f| drop(f.insert("block_mask", Tensor { dtype: Dtype::I8, shape: vec![4, 3, 3], data: vec![1; 36] })),
            &["block_mask:", "U8", "I8"],
        ),
        (
            "shape of the mask",
            |f| drop(f.insert("block_mask", Tensor { dtype: Dtype::U8, shape: vec![4, 2, 3], data: vec![1; 24] })),
            &["block_mask:", "[4, 3, 3]", "[4, 2, 3]"],
        ),
        (
            "no heads",
            |f| f.get_mut("k").unwrap().clone_from(&Tensor { dtype: Dtype::F8_E4M3, shape: vec![300, 0, 128], data: vec![] }),
            &["k"],
        ),
    ];
    for (what, change, words) in cases {
        let mut file = fp8_file(200, 300);
        change(&mut file);
        println!("{what}");
        Case::new(&bytes(&file)).refuses(&[], words);
    }
}

#[test]
fn bad_arguments_are_refused() {
    let good = bytes(&fp8_file(10, 10));
    for (more, words) in [
        (&["--alpha", "0"][..], &["alpha:"][..]),
        (&["--alpha", "nan"], &["alpha:", "NaN"]),
        (&["--page-size", "48"], &["page_size:", "48"]),
        (&["--mask", "/no/such/folder/m.svg"], &["mask:", "folder"]),
        (&["--report", "/"], &["report:"]),
    ] {
        Case::new(&good).refuses(more, words);
    }
    let case = Case::new(&good);
    for usage in [&["--repeat", "0"][..], &["--preset", "other"], &["--backend", "tpu"], &["--unknown"]] {
        assert_eq!(case.prefill(usage).status.code(), Some(2));
    }
    let mut masked = fp8_file(10, 10);
    masked.insert("block_mask", Tensor { dtype: Dtype::U8, shape: vec![4, 1, 1], data: vec![1; 4] });
    Case::new(&bytes(&masked)).refuses(&["--dense"], &["block_mask:", "--dense"]);
    let missing = run(&["prefill", "--input", "/no/such/file.safetensors"]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&missing.stderr).starts_with("error: input:"));
    assert_eq!(run(&["prefill", "--input", "/"]).status.code(), Some(2));
}

#[test]
fn hostile_files_are_refused() {
    let good = bytes(&fp8_file(10, 10));
    let header = |length: u64, json: &str, data: usize| [&length.to_le_bytes()[..], json.as_bytes(), &vec![0; data]].concat();
    let exact = |json: &str, data: usize| header(json.len() as u64, json, data);
    let mut files = vec![
        Vec::new(),
        vec![1, 2, 3],
        b"this is no safetensors file at all".to_vec(),
        good[..good.len() - 1].to_vec(),
        good[..good.len() / 2].to_vec(),
        [&good[..], b"x"].concat(),
        header(u64::MAX, "{}", 0),
        header(1 << 40, "{}", 0),
        header(3, "{}", 0),
        exact("[]", 0),
        exact("{}", 0),
        exact("{\"q\":1}", 0),
        exact("{\"q\":{\"dtype\":\"F9\",\"shape\":[1,1,128],\"data_offsets\":[0,128]}}", 128),
        exact("{\"q\":{\"dtype\":\"U8\",\"shape\":[1,1,128],\"data_offsets\":[128,0]}}", 128),
        exact("{\"q\":{\"dtype\":\"U8\",\"shape\":[1,1,64],\"data_offsets\":[0,128]}}", 128),
        exact("{\"q\":{\"dtype\":\"U8\",\"shape\":[-1,1,128],\"data_offsets\":[0,128]}}", 128),
        exact("{\"q\":{\"dtype\":\"F8_E4M3\",\"shape\":[18446744073709551615,2,128],\"data_offsets\":[0,0]}}", 0),
        // Overlapping tensors, and offsets whose sum wraps around 2^64.
        exact(
            "{\"q\":{\"dtype\":\"U8\",\"shape\":[128],\"data_offsets\":[0,128]},\"k\":{\"dtype\":\"U8\",\"shape\":[128],\"data_offsets\":[64,192]}}",
            192,
        ),
        exact("{\"q\":{\"dtype\":\"U8\",\"shape\":[2305843009213693951],\"data_offsets\":[0,2305843009213693951]}}", 8),
        exact(&format!("{{\"q\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000)), 0),
        // A gigantic head count that needs no data.
        exact(
            "{\"q\":{\"dtype\":\"F8_E4M3\",\"shape\":[0,1099511627776,128],\"data_offsets\":[0,0]},\"k\":{\"dtype\":\"F8_E4M3\",\"shape\":[1,1,128],\"data_offsets\":[0,128]},\"v\":{\"dtype\":\"F8_E4M3\",\"shape\":[1,1,128],\"data_offsets\":[128,256]}}",
            256,
        ),
    ];
    let mut eight = String::from("{");
    let step = 2305843009213693951u64;
    for i in 0..8u64 {
        eight += &format!("\"t{i}\":{{\"dtype\":\"U8\",\"shape\":[{step}],\"data_offsets\":[{},{}]}},", i * step, (i + 1) * step);
    }
    files.push(exact(&(eight.trim_end_matches(',').to_owned() + "}"), 64));
    for (i, file) in files.iter().enumerate() {
        println!("hostile file {i}");
        Case::new(file).refuses(&[], &[]);
    }
    // Every cut of the header, and a flipped byte in every tenth place of it, must end in a message or a result.
    let length = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    for at in (0..length).step_by(29) {
        Case::new(&good[..at]).refuses(&[], &[]);
        let mut flipped = good.clone();
        flipped[at] ^= 0x10;
        let case = Case::new(&flipped);
        let code = case.prefill(&[]).status.code();
        assert!(matches!(code, Some(0 | 2)), "flipped byte {at}: {code:?}");
    }
}

fn has_gpu() -> bool {
    String::from_utf8_lossy(&run(&["info"]).stdout).contains("SMs")
}

#[test]
fn cuda_and_cpu_agree() {
    if !has_gpu() {
        println!("skipped: `stem info` finds no usable GPU");
        return;
    }
    for (tokens, kv) in [(1, 1), (129, 500), (600, 57 * 128)] {
        let file = bytes(&fp8_file(tokens, kv));
        let outputs = ["cuda", "cpu"].map(|backend| {
            let case = Case::new(&file);
            assert!(succeed(&case.prefill(&["--backend", backend])).contains(backend));
            output_tensors(&case.output)
        });
        let [cuda, cpu] = &outputs;
        check_output(cuda, tokens, kv);
        // A score on the edge of two bf16 values may round either way and swap one block of a row for another.
        let swapped = cuda[1].1.iter().zip(&cpu[1].1).filter(|(a, b)| a != b).count();
        assert!(swapped * 100 <= cpu[1].1.len(), "{swapped} of {} blocks differ", cpu[1].1.len());
        let values =
            |t: &(Vec<usize>, Vec<u8>)| t.1.chunks(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect::<Vec<_>>();
        let error = stem_attn::reference::error::relative(&values(&cuda[0]), &values(&cpu[0]));
        assert!(error < 0.05, "{tokens} of {kv}: {error}");
    }
}

#[test]
fn cuda_asked_for_without_a_gpu_is_refused() {
    if has_gpu() {
        println!("skipped: there is a GPU");
        return;
    }
    Case::new(&bytes(&fp8_file(10, 10))).refuses(&["--backend", "cuda"], &["no usable GPU"]);
}
