//! The real capture that the demo runs on, and others of the same form: `STEM_ATTN_CAPTURES` names files, separated as in
//! `PATH`.

use super::Case;
use float8::F8E4M3;
use rstest::rstest;
use safetensors::SafeTensors;
use stem_attn::cuda::CudaBackend;
use stem_attn::reference;
use stem_attn::{Backend, PrefillOptions, Preset, Selection, StemConfig};
use stem_attn_tests::batch::Batch;
use stem_attn_tests::gpu::backend;

/// Layer 5 of a small language model, 8,192 tokens: see demo/README.md. Embedded, so that the test binary runs anywhere.
const CAPTURE: &[u8] = include_bytes!("../../../demo/qkv_layer5_8k.safetensors");

/// Error of the whole output, as the best peer's kernels have it on such data.
const REAL: f64 = 0.012;

/// The first `tokens` tokens of a capture, or all.
fn capture(bytes: &[u8], tokens: Option<usize>) -> Batch {
    let file = SafeTensors::deserialize(bytes).expect("the capture");
    let shape = |name: &str| file.tensor(name).expect(name).shape().to_vec();
    let (hq, hkv, tokens) = (shape("q")[1], shape("k")[1], tokens.unwrap_or(shape("q")[0]));
    assert_eq!(shape("q")[0], shape("k")[0], "a capture without history");
    let codes = |name: &str, row: usize| -> Vec<F8E4M3> {
        file.tensor(name).expect(name).data()[..tokens * row].iter().map(|&b| F8E4M3::from_bits(b)).collect()
    };
    let floats = |name: &str, n: usize| -> Vec<f32> {
        let data = file.tensor(name).expect(name).data();
        data.chunks_exact(4).take(n).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    };
    Batch {
        hq,
        hkv,
        q: codes("q", hq * 128),
        q_scale: floats("q_scale", tokens * hq),
        k: codes("k", hkv * 128),
        v: codes("v", hkv * 128),
        k_scale: floats("k_scale", shape("k_scale")[0]),
        v_scale: floats("v_scale", shape("v_scale")[0]),
        cu_seqlens_q: vec![0, tokens as i32],
        cu_seqlens_kv: vec![0, tokens as i32],
        prompt_lens: vec![tokens as i32],
    }
}

#[rstest]
fn real_rows_are_within_the_peers_error(#[values(8192, 7001)] tokens: usize, #[values(32, 64)] page_size: usize) {
    let Some(gpu) = backend() else { return };
    let batch = capture(CAPTURE, Some(tokens));
    // 64 blocks: past the first 55, where the schedule is dense.
    let config = StemConfig { alpha: 0.7, ..StemConfig::preset(Preset::Hpc) };
    Case { page_size, ..Case::new(&batch, Selection::Dense) }.check(gpu, REAL, f64::INFINITY);
    Case { page_size, ..Case::new(&batch, Selection::Stem(&config)) }.check(gpu, REAL, f64::INFINITY);
}

#[test]
fn the_backends_agree() {
    let Some(gpu) = backend() else { return };
    agree(gpu, &capture(CAPTURE, None));
    let others = std::env::var_os("STEM_ATTN_CAPTURES").unwrap_or_default();
    for path in std::env::split_paths(&others).filter(|path| !path.as_os_str().is_empty()) {
        println!("{}", path.display());
        agree(gpu, &capture(&std::fs::read(&path).expect("a capture"), None));
    }
}

/// Both backends on one capture: equal lists given equal scores, scores within bf16's rounding, outputs near the exact ones.
fn agree(gpu: &CudaBackend, batch: &Batch) {
    let config = StemConfig { alpha: 0.7, ..StemConfig::preset(Preset::Hpc) };
    Case::new(batch, Selection::Stem(&config)).check(gpu, REAL, f64::INFINITY);
    let options = PrefillOptions { lse: true, repeat: 3, ..PrefillOptions::default() };
    let cuda = gpu.prefill(&batch.inputs(), Selection::Stem(&config), &options).expect("prefill");
    let options = PrefillOptions { repeat: 1, ..options };
    let cpu = Backend::Cpu.prefill(&batch.inputs(), Selection::Stem(&config), &options).expect("prefill");
    assert_eq!(cuda.score_stride, cpu.score_stride);
    let geometry = batch.geometry(true, Some(&config));
    let scores = cuda.scores.as_deref().expect("scores");
    let lists = reference::topk(scores, cuda.score_stride, batch.hq, &geometry, &config).expect("top-k");
    assert_eq!(cuda.lists, lists, "equal lists given equal scores");

    let stride = cpu.score_stride;
    let rows = scores.chunks(stride).zip(cpu.scores.as_deref().expect("scores").chunks(stride));
    let mut common = 0;
    for (i, (got, want)) in rows.enumerate() {
        let (head, row) = (i / geometry.total_qb(), i % geometry.total_qb());
        let visible = geometry.candidates(row);
        // A sum on the edge of two bf16 values may round either way: 2^-7 of it apart. The tensor core adds in f32, so what
        // cancels is off by a share of the largest.
        let largest = want[..visible].iter().fold(0f32, |m, x| m.max(x.abs()));
        for (j, (got, want)) in got.iter().zip(want).enumerate().take(visible) {
            assert!((got - want).abs() <= largest / 128.0, "head {head}, row {row}, block {j}: score {got}, CPU {want}");
        }
        let other = cpu.lists.row(head, row);
        common += cuda.lists.row(head, row).iter().filter(|b| other.binary_search(b).is_ok()).count();
    }
    // Rounding may swap blocks whose scores are equal in bf16; few do.
    let total = cuda.lists.kept() as f64;
    assert!((total - cpu.lists.kept() as f64).abs() / total < 1e-3);
    assert!(common as f64 / total > 0.99, "{common} of {total} blocks in common");
    assert!(cuda.times.attend.ms > 0.0 && cuda.times.select.ms > 0.0 && cuda.times.summarize_kv.ms > 0.0);
    assert!(cuda.times.attend.p10 <= cuda.times.attend.ms && cuda.times.attend.ms <= cuda.times.attend.p90);
    assert!(cuda.lse.is_some_and(|lse| lse.iter().all(|l| l.is_finite())));
}
