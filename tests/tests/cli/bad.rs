//! Bad tensors, arguments and files: one line, exit code 2, and nothing left behind.

use super::{Case, File, Tensor, bytes, fp8_file, has_gpu, run};
use safetensors::Dtype;

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
        ("NaN codes in q", |f| f.get_mut("q").unwrap().data[5] = 0x7F, &["q:", "finite", "NaN at 5"]),
        ("negative NaN codes in v", |f| f.get_mut("v").unwrap().data[0] = 0xFF, &["v:", "finite", "NaN at 0"]),
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
        (&["--mask", "/dev/null"], &["mask:", "regular file"]),
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
    // Two results in one file, or a result in place of the input.
    let input = case.input.to_str().unwrap();
    case.refuses(&["--report", case.output.to_str().unwrap()], &["report:", "--output"]);
    case.refuses(&["--mask", input], &["mask:", "--input"]);
    assert!(std::fs::read(&case.input).unwrap() == good, "the input is as it was");
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

#[test]
fn cuda_asked_for_without_a_gpu_is_refused() {
    if has_gpu() {
        println!("skipped: there is a GPU");
        return;
    }
    Case::new(&bytes(&fp8_file(10, 10))).refuses(&["--backend", "cuda"], &["no usable GPU"]);
}

/// A named pipe has no length and nobody may ever write to it: refused, not waited for.
#[cfg(unix)]
#[test]
fn a_pipe_is_no_input() {
    let case = Case::new(b"");
    let pipe = case.dir.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.is_ok_and(|status| status.success()), "mkfifo");
    let output = run(&["prefill", "--input", pipe.to_str().unwrap(), "--backend", "cpu"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("regular file"));
}
