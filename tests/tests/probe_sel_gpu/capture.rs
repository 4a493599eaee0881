//! What matters of it all: the sources that retrieval heads look for, and attention over the lists.

use super::{Case, assert_lists, choosy, setting};
use half::bf16;
use rstest::rstest;
use stem_attn::config::Selector;
use stem_attn::ops::{self, Heads, Paged, Scales};
use stem_attn::reference::{self, AttendInputs, default_softmax_scale};
use stem_attn::{Backend, PrefillOptions, Preset, Selection, StemConfig};
use stem_attn_tests::batch;
use stem_attn_tests::gpu::{backend, gpu};
use stem_attn_tests::retrieval::{HEADS, Retrieval, uniform};
use stem_attn_tests::stages::Bench;

/// What the retrieval heads look for is kept by the kernels too: the targets of the CPU test.
#[rstest]
fn the_capture_keeps_its_sources_and_mass(#[values(8, 4)] query_pool: u32) {
    let Some(gpu) = gpu() else { return };
    let capture = Retrieval::load();
    let mass = capture.mass();
    let config = StemConfig { selector: Selector::Probe(setting(query_pool)), ..StemConfig::preset(Preset::Hpc) };
    let quarter = uniform(18, config);
    let geometry = capture.geometry(&quarter);
    let heads = Heads::new(HEADS, 1).expect("heads");
    let bench = Bench::new(gpu, &geometry, heads);
    let paged = capture.pages();
    let (k, table, scale) = (bench.gpu.upload(&paged.k_pages), bench.gpu.upload(&paged.table), bench.gpu.upload(&capture.k_scale));
    let span = bench.span(&k, paged.k_pages.len());
    let desc = ops::PageDesc {
        k_strides: paged.strides,
        v_strides: paged.strides,
        page_size: paged.page_size,
        pages: paged.pages,
        table_stride: paged.table_stride,
        k_token_scales: paged.k_token_scales,
    };
    let kv = Paged { k_pages: span, v_pages: span, table: bench.span(&table, paged.table.len()), desc };
    let scales = Scales { k: bench.span(&scale, 1), v: bench.span(&scale, 1), k_token: None };
    let case = Case {
        bench: &bench,
        heads,
        geometry: &geometry,
        q: &capture.q,
        q_rows: ops::RowStrides::packed(HEADS),
        q_scale: &capture.q_scale,
        q_scale_rows: ops::ScaleStrides::packed(HEADS),
        kv,
        scales,
    };
    let done = case.run(&quarter, true);
    let want = reference::topk(&done.scores, 128, HEADS, &geometry, &quarter).expect("top-k");
    assert_lists(&done.lists, &want);
    let at_quarter = capture.kept(&done.lists, &mass);
    let seventh = uniform(11, config);
    let lists = reference::topk(&done.scores, 128, HEADS, &capture.geometry(&seventh), &seventh).expect("top-k");
    let at_seventh = capture.kept(&lists, &mass);
    println!("pool {query_pool}: {at_quarter:?}, {at_seventh:?}");
    assert_eq!(at_quarter.sources, [12, 12]);
    assert!(at_seventh.sources.iter().all(|&n| n >= 10));
    let best: Vec<f64> = mass
        .iter()
        .map(|rows| {
            let row = |row: &Vec<f64>| {
                let scores: Vec<f32> = row.iter().map(|&m| m as f32).collect();
                reference::topk_row(&scores, 10, row.len() - 1, &quarter).iter().map(|&j| row[j as usize]).sum::<f64>()
            };
            rows.iter().map(row).sum::<f64>() / rows.len() as f64
        })
        .collect();
    for head in 0..HEADS {
        assert!(at_quarter.mass[head] >= 0.975 * best[head], "head {head}: {at_quarter:?}, at best {best:?}");
    }
}

/// Through the backend: lists nearly the CPU's, output near exact attention over them.
#[rstest]
fn the_backends_agree(#[values(8, 4)] query_pool: u32) {
    let Some(gpu) = backend() else { return };
    let batch = batch::Batch::random(31, 4, 2, &[(200, 333), (0, 100), (1, 1), (3000, 5000)]);
    let config = choosy(query_pool, true);
    let options = PrefillOptions::default();
    let cuda = gpu.prefill(&batch.inputs(), Selection::Stem(&config), &options).expect("prefill");
    let cpu = Backend::Cpu.prefill(&batch.inputs(), Selection::Stem(&config), &options).expect("prefill");
    let geometry = batch.geometry(true, Some(&config));
    let scores = cuda.scores.as_ref().expect("scores");
    let want = reference::topk(scores, cuda.score_stride, batch.hq, &geometry, &config).expect("top-k");
    assert_lists(&cuda.lists, &want);
    cuda.lists.validate(batch.hq, &geometry).expect("lists that the rows may have");
    let mut common = 0;
    for head in 0..batch.hq {
        for row in 0..geometry.total_qb() {
            let other = cpu.lists.row(head, row);
            // All of a tie are kept, and rounding makes and breaks ties.
            let difference = cuda.lists.row(head, row).len().abs_diff(other.len());
            assert!(difference <= 1, "head {head}, row {row}: {difference} blocks more or fewer");
            common += cuda.lists.row(head, row).iter().filter(|b| other.binary_search(b).is_ok()).count();
        }
    }
    let total = cuda.lists.kept() as f64;
    // Random data has no clear order; where scores nearly tie, rounding decides.
    assert!(common as f64 / total > 0.97, "{common} of {total} blocks in common");
    let paged = batch.paged(64, Default::default(), None);
    let exact = reference::attend_f64(&AttendInputs {
        q: &batch.q,
        q_scale: &batch.q_scale,
        kv: paged.view(),
        k_scale: &batch.k_scale,
        v_scale: &batch.v_scale,
        hq: batch.hq,
        geometry: &geometry,
        lists: Some(&cuda.lists),
        softmax_scale: default_softmax_scale(),
    })
    .expect("the reference");
    let out: Vec<f32> = cuda.out.iter().map(|x: &bf16| x.to_f32()).collect();
    let error = reference::error::relative(&out, &exact.out);
    assert!(error < 0.03, "relative error {error}");
}
