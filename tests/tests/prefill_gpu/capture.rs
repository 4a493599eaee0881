//! The real capture that the demo runs on.

use super::Case;
use float8::F8E4M3;
use rstest::rstest;
use safetensors::SafeTensors;
use stem_attn::reference;
use stem_attn::{Backend, BackendKind, PrefillOptions, Preset, Selection, StemConfig};
use stem_attn_tests::batch::Batch;
use stem_attn_tests::gpu::backend;

/// Layer 5 of a small language model, 8,192 tokens: see demo/README.md. Embedded, so that the test binary runs anywhere.
const CAPTURE: &[u8] = include_bytes!("../../../demo/qkv_layer5_8k.safetensors");

/// Error of the whole output, as the best peer's kernels have it on such data.
const REAL: f64 = 0.012;

fn capture(tokens: usize) -> Batch {
    let file = SafeTensors::deserialize(CAPTURE).expect("the capture");
    let codes = |name: &str, row: usize| -> Vec<F8E4M3> {
        file.tensor(name).expect(name).data()[..tokens * row].iter().map(|&b| F8E4M3::from_bits(b)).collect()
    };
    let floats = |name: &str, n: usize| -> Vec<f32> {
        let data = file.tensor(name).expect(name).data();
        data.chunks_exact(4).take(n).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    };
    Batch {
        hq: 2,
        hkv: 1,
        q: codes("q", 256),
        q_scale: floats("q_scale", tokens * 2),
        k: codes("k", 128),
        v: codes("v", 128),
        k_scale: floats("k_scale", 1),
        v_scale: floats("v_scale", 1),
        cu_seqlens_q: vec![0, tokens as i32],
        cu_seqlens_kv: vec![0, tokens as i32],
        prompt_lens: vec![tokens as i32],
    }
}

#[rstest]
fn real_rows_are_within_the_peers_error(#[values(8192, 7001)] tokens: usize, #[values(32, 64)] page_size: usize) {
    let Some(gpu) = backend() else { return };
    let batch = capture(tokens);
    // 64 blocks: past the first 55, where the schedule is dense.
    let config = StemConfig { alpha: 0.7, ..StemConfig::preset(Preset::Hpc) };
    Case { page_size, ..Case::new(&batch, Selection::Dense) }.check(gpu, REAL, f64::INFINITY);
    Case { page_size, ..Case::new(&batch, Selection::Stem(&config)) }.check(gpu, REAL, f64::INFINITY);
}

#[test]
fn the_backends_agree() {
    if backend().is_none() {
        return;
    }
    let batch = capture(8192);
    let config = StemConfig { alpha: 0.7, ..StemConfig::preset(Preset::Hpc) };
    let options = PrefillOptions { lse: true, repeat: 3, ..PrefillOptions::default() };
    let run = |kind| {
        let backend = Backend::open(kind).expect("a backend");
        backend.prefill(&batch.inputs(), Selection::Stem(&config), &options).expect("prefill")
    };
    let (cuda, cpu) = (run(BackendKind::Cuda), run(BackendKind::Cpu));
    assert_eq!(cuda.score_stride, cpu.score_stride);
    let geometry = batch.geometry(true, Some(&config));
    let scores = cuda.scores.as_deref().expect("scores");
    let lists = reference::topk(scores, cuda.score_stride, 2, &geometry, &config).expect("top-k");
    assert_eq!(cuda.lists, lists, "equal lists given equal scores");
    // Rounding may swap blocks whose scores are equal in bf16; few do.
    let total = cuda.lists.kept() as f64;
    assert!((total - cpu.lists.kept() as f64).abs() / total < 1e-3);
    let common: usize = (0..2 * geometry.total_qb())
        .map(|i| {
            let (head, row) = (i / geometry.total_qb(), i % geometry.total_qb());
            let other = cpu.lists.row(head, row);
            cuda.lists.row(head, row).iter().filter(|b| other.binary_search(b).is_ok()).count()
        })
        .sum();
    assert!(common as f64 / total > 0.99, "{common} of {total} blocks in common");
    assert!(cuda.times.attend.ms > 0.0 && cuda.times.select.ms > 0.0 && cuda.times.summarize_kv.ms > 0.0);
    assert!(cuda.times.attend.p10 <= cuda.times.attend.ms && cuda.times.attend.ms <= cuda.times.attend.p90);
    assert!(cuda.lse.is_some_and(|lse| lse.iter().all(|l| l.is_finite())));
}
