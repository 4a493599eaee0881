//! Good files: outputs, types, masks, both backends.

use super::{Case, Tensor, bytes, check_output, fp8_file, has_gpu, output_tensors, run, succeed};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use safetensors::Dtype;
use std::collections::BTreeMap;

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
fn the_probe_selector_keeps_other_blocks_within_the_same_budgets() {
    let (tokens, kv) = (600, 57 * 128);
    let file = fp8_file(tokens, kv);
    let [stem, probe, fine] = ["stem", "probe", "probe-fine"].map(|selector| {
        let case = Case::new(&bytes(&file));
        let text = succeed(&case.prefill(&["--alpha", "0.7", "--selector", selector]));
        assert_eq!(text.contains(&format!("hpc, {selector}")), selector != "stem", "{text}");
        let tensors = output_tensors(&case.output);
        check_output(&tensors, tokens, kv);
        tensors
    });
    let counts = |tensors: &[(Vec<usize>, Vec<u8>); 3]| -> Vec<i32> {
        tensors[2].1.as_chunks::<4>().0.iter().map(|count| i32::from_le_bytes(*count)).collect()
    };
    // Sinks and window come on top where they are not among the best.
    let near = |a: &_, b: &_| counts(a).into_iter().zip(counts(b)).all(|(a, b)| a.abs_diff(b) <= 8);
    assert!(near(&stem, &probe) && near(&probe, &fine), "budgets are the preset's");
    assert!(stem[1] != probe[1] && probe[1] != fine[1], "the blocks are the selector's");
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
fn errors_shown_are_those_of_fp8() {
    let text = succeed(&Case::new(&bytes(&fp8_file(200, 200))).prefill(&["--dense"]));
    let line = text.lines().find(|l| l.contains("relative to dense")).expect("the error line");
    let error: f64 = line.split_whitespace().find_map(|w| w.parse().ok()).expect("a number");
    assert!(error > 0.0 && error < 0.05, "{line}");
}

#[test]
fn info_succeeds_everywhere() {
    let text = succeed(&run(&["info"]));
    for word in ["gpu", "PTX", "sm_90a", "rustc", "attend_fp8_d128", "select_stem"] {
        assert!(text.contains(word), "{word} in {text}");
    }
}

#[test]
fn a_reader_who_hangs_up_is_no_panic() {
    let mut child = std::process::Command::new(crate::stem())
        .arg("info")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("run stem");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("wait for stem");
    assert!(output.status.success(), "{:?}: {}", output.status, String::from_utf8_lossy(&output.stderr));
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
