//! The real capture that the demo runs on, and others of the same form: `STEM_ATTN_CAPTURES` names files, separated as in
//! `PATH`.

use super::Case;
use rstest::rstest;
use stem_attn::cuda::CudaBackend;
use stem_attn::reference;
use stem_attn::{Backend, PrefillOptions, Preset, Selection, StemConfig};
use stem_attn_tests::batch::Batch;
use stem_attn_tests::capture::{CAPTURE, capture, others};
use stem_attn_tests::gpu::backend;

/// Error of the whole output, as the best peer's kernels have it on such data.
const REAL: f64 = 0.012;

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
    for (name, batch) in others() {
        println!("{name}");
        agree(gpu, &batch);
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
