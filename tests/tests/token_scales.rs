//! K scales per token and head on the CPU: equal to scales folded into the codes, wherever they are kept.

use float8::F8E4M3;
use half::bf16;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rstest::rstest;
use stem_attn::config::{ProbeConfig, Selector};
use stem_attn::kv::{KvTensor, PageLayout};
use stem_attn::reference::{self, AttendInputs};
use stem_attn::{Error, PrefillOptions, Preset, Schedule, Selection, StemConfig, fp8};
use stem_attn_tests::batch::Batch;

const RAGGED: [(usize, usize); 5] = [(200, 200), (0, 130), (1, 1), (129, 517), (300, 700)];

/// A batch whose keys have scales of 1, 2 or 4, and the same with those scales in the codes. Both are exact: no code is
/// subnormal or near the largest.
fn folded(seed: u64) -> (Batch, Batch) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut own = Batch { k_scale: vec![1.0], ..Batch::random(seed, 4, 2, &RAGGED) };
    let mut code = |x: &mut F8E4M3| *x = fp8::encode(rng.random_range(1.0..16.0) * if rng.random() { 0.01 } else { -0.01 } * 16.0);
    own.k.iter_mut().for_each(&mut code);
    let mut in_codes = own.clone();
    own.k_scale = (0..own.k.len() / 128).map(|_| [1.0, 2.0, 4.0][rng.random_range(0..3)]).collect();
    for (row, scale) in in_codes.k.chunks_exact_mut(128).zip(&own.k_scale) {
        row.iter_mut().for_each(|x| *x = fp8::encode(fp8::decode(*x) * scale));
    }
    (own, in_codes)
}

#[rstest]
fn scales_of_keys_are_as_good_as_larger_keys(#[values(16, 64, 256)] page_size: usize, #[values(true, false)] causal: bool) {
    let (own, in_codes) = folded(1);
    let options = PrefillOptions { page_size, causal, lse: true, ..PrefillOptions::default() };
    let config =
        StemConfig { schedule: Schedule::Ratio { ratio: 0.3, floor: 1 }, sink: 1, window: 1, causal, ..StemConfig::preset(Preset::Hpc) };
    for selection in [Selection::Dense, Selection::Stem(&config)] {
        let run = |batch: &Batch| reference::prefill(&batch.inputs(), selection, &options).expect("prefill");
        let (a, b) = (run(&own), run(&in_codes));
        assert_eq!(a.out, b.out);
        assert_eq!((a.lse, a.lists, a.scores), (b.lse, b.lists, b.scores));
    }
    let rows = [0, 3, own.q_scale.len() / 4 - 1];
    let dense = |batch: &Batch| reference::dense_rows(&batch.inputs(), causal, &rows).expect("rows");
    assert_eq!(dense(&own), dense(&in_codes));
}

#[test]
fn the_probe_selector_takes_no_scale_per_key() {
    let (own, in_codes) = folded(4);
    let config = StemConfig { selector: Selector::Probe(ProbeConfig::default()), ..StemConfig::preset(Preset::Hpc) };
    let run = |batch: &Batch| reference::prefill(&batch.inputs(), Selection::Stem(&config), &PrefillOptions::default());
    assert!(matches!(run(&own), Err(Error::Unsupported { what: "probe selector", .. })));
    run(&in_codes).expect("prefill");
}

#[rstest]
fn scales_in_rows_of_the_pages_are_the_same_scales(
    #[values(16, 32, 64, 128, 256)] page_size: usize,
    #[values(PageLayout::Nhd, PageLayout::Hnd)] layout: PageLayout,
) {
    let batch = Batch::random(2, 4, 2, &RAGGED).with_token_scales(3);
    let geometry = batch.geometry(true, None);
    let beside = batch.paged(page_size, layout, None);
    let heads = Batch { k_scale: vec![1.0], ..batch.clone() };
    let inside = heads.paged(page_size, layout, None).with_token_scales(&batch.k_scale, &batch.cu_seqlens_kv, layout, true).expect("pages");
    let attend = |kv| {
        let inputs = AttendInputs {
            q: &batch.q,
            q_scale: &batch.q_scale,
            kv,
            k_scale: &[1.0],
            v_scale: &batch.v_scale,
            hq: batch.hq,
            geometry: &geometry,
            lists: None,
            softmax_scale: reference::default_softmax_scale(),
        };
        reference::attend_model(&inputs).expect("attention")
    };
    assert_eq!(attend(beside.view()), attend(inside.view()));
    let summarize = |kv| reference::summarize_kv(&kv, &geometry, &[1.0], &batch.v_scale).expect("summaries");
    let (a, b) = (summarize(beside.view()), summarize(inside.view()));
    assert_eq!((a.k_sums, a.run_norms, a.v_tiles), (b.k_sums, b.run_norms, b.v_tiles));
}

#[rstest]
fn appended_keys_bring_their_scales(
    #[values(16, 64)] page_size: usize,
    #[values(false, true)] in_pages: bool,
    #[values(1.0, 0.25)] k_scale: f32,
) {
    let batch = Batch::random(4, 4, 2, &RAGGED).with_token_scales(5);
    let geometry = batch.geometry(true, None);
    let mut rng = StdRng::seed_from_u64(6);
    let mut values = || -> Vec<bf16> { (0..geometry.total_q * 2 * 128).map(|_| bf16::from_f32(rng.random_range(-3.0..3.0))).collect() };
    let (mut k, v) = (values(), values());
    k[..128].fill(bf16::ZERO);
    k[128] = bf16::INFINITY;
    k[129] = bf16::NAN;
    let blank = Batch { k_scale: vec![1.0], ..batch.clone() }.paged(page_size, PageLayout::Hnd, None);
    let mut pages = blank.with_token_scales(&batch.k_scale, &batch.cu_seqlens_kv, PageLayout::Hnd, in_pages).expect("pages");
    reference::append_kv(&k, &v, &geometry, &[k_scale], &batch.v_scale, &mut pages).expect("append");
    let view = pages.view();
    let mut rows = 0;
    for (b, request) in geometry.requests.iter().enumerate() {
        let history = (request.kv_len - request.q_len) as usize;
        for t in 0..request.kv_len as usize {
            for head in 0..2 {
                let own = view.token_scale(b, head, t);
                let Some(new) = t.checked_sub(history) else {
                    let first = batch.cu_seqlens_kv[b] as usize;
                    assert_eq!(own, batch.k_scale[(first + t) * 2 + head], "history keeps its scales");
                    continue;
                };
                let row = (request.q_start as usize + new) * 2 + head;
                let x = &k[row * 128..][..128];
                let codes = view.row(KvTensor::K, b, head, t).expect("a row");
                match row {
                    0 => assert!(own == 1.0 && codes.iter().all(|c| c.to_bits() == 0)),
                    1 => assert!(own.is_finite() && codes[0].to_bits() == 0x7e && codes[1].to_bits() == 0x7f, "{own}, {codes:?}"),
                    _ => {
                        let scaled: Vec<f32> = x.iter().map(|x| x.to_f32() / k_scale).collect();
                        let (want, scale) = fp8::quantize_per_token_head("k", &scaled).expect("finite");
                        assert_eq!((codes.as_slice(), own), (want.as_slice(), scale[0]));
                        rows += 1;
                    }
                }
            }
        }
    }
    assert_eq!(rows, geometry.total_q * 2 - 2);
}

#[test]
fn wrong_numbers_of_scales_are_named() {
    let batch = Batch::random(7, 4, 2, &[(10, 20)]);
    for n in [0, 3, 39, 41, 20] {
        let wrong = Batch { k_scale: vec![1.0; n], ..batch.clone() };
        assert!(matches!(wrong.inputs().validate(true), Err(Error::Shape { tensor: "k_scale", .. })), "{n}");
        let wrong = Batch { v_scale: vec![1.0; 40], ..batch.clone() };
        assert!(matches!(wrong.inputs().validate(true), Err(Error::Shape { tensor: "v_scale", .. })));
    }
    let zero = Batch { k_scale: [vec![1.0; 39], vec![0.0]].concat(), ..batch.clone() };
    assert!(matches!(zero.inputs().validate(true), Err(Error::Value { name: "k_scale", .. })));
    let paged = batch.paged(16, PageLayout::Nhd, None);
    let short = paged.with_token_scales(&[1.0; 39], &batch.cu_seqlens_kv, PageLayout::Nhd, false);
    assert!(matches!(short, Err(Error::Shape { tensor: "k_scale", .. })));
}
