//! The CPU backend as a whole: bad input, and the real capture.

use float8::F8E4M3;
use half::bf16;
use stem_attn::kv::layout::{PageLayout, PagedTensors};
use stem_attn::reference::{self, AttendInputs, error::relative};
use stem_attn::{BlockLists, Error, Geometry, PrefillInputs, PrefillOptions, Preset, Schedule, Selection, StemConfig};
use stem_attn_tests::batch::Batch;

/// Spoils one field of an otherwise valid call.
type Spoil = fn(&mut Batch, &mut PrefillOptions, &mut StemConfig);

/// What the error must name, and how to provoke it.
const BAD_INPUTS: &[(&str, Spoil)] = &[
    ("q", |b, _, _| {
        b.q.pop();
    }),
    ("q_scale", |b, _, _| {
        b.q_scale.pop();
    }),
    ("k", |b, _, _| {
        b.k.pop();
    }),
    ("v", |b, _, _| {
        b.v.truncate(5);
    }),
    ("heads", |b, _, _| b.hkv = 3),
    ("heads", |b, _, _| b.hkv = 0),
    ("q", |b, _, _| b.hq = 1 << 60),
    ("q_scale", |b, _, _| b.q_scale[7] = f32::NAN),
    ("k_scale", |b, _, _| b.k_scale[0] = f32::NAN),
    ("v_scale", |b, _, _| b.v_scale[0] = 0.0),
    ("v_scale", |b, _, _| b.v_scale[0] = f32::INFINITY),
    ("k_scale", |b, _, _| b.k_scale[0] = -1.0),
    ("k_scale", |b, _, _| b.k_scale = vec![1.0; 5]),
    ("v_scale", |b, _, _| b.v_scale.clear()),
    ("k", |b, _, _| {
        b.cu_seqlens_kv = vec![0, 100];
        b.k.truncate(100 * 256);
        b.v.truncate(100 * 256);
    }),
    ("cu_seqlens_q", |b, _, _| b.cu_seqlens_q = vec![]),
    ("cu_seqlens_kv", |b, _, _| b.cu_seqlens_kv = vec![0, -7]),
    ("cu_seqlens_kv", |b, _, _| b.cu_seqlens_kv = vec![0, 150, 150]),
    ("prompt_lens", |b, _, _| b.prompt_lens[0] = 149),
    ("prompt_lens", |b, _, _| b.prompt_lens.push(1)),
    ("page_size", |_, o, _| o.page_size = 48),
    ("repeat", |_, o, _| o.repeat = 0),
    ("causal", |_, o, _| o.causal = false),
    ("alpha", |_, _, c| c.alpha = 0.0),
    ("alpha", |_, _, c| c.alpha = f32::NAN),
    ("window", |_, _, c| c.window = 0),
    ("sink", |_, _, c| c.sink = u32::MAX),
    ("ratio", |_, _, c| c.schedule = Schedule::Ratio { ratio: 1.5, floor: 1 }),
    ("lambda", |_, _, c| c.oam.lambda = -0.1),
    ("qk_scale", |_, _, c| c.oam.qk_scale = f32::INFINITY),
];

#[test]
fn bad_input_is_named() {
    let prefill = |batch: &Batch, options: &PrefillOptions, config: &StemConfig| {
        reference::prefill(&batch.inputs(), Selection::Stem(config), options).map(|_| ())
    };
    for (i, (named, spoil)) in BAD_INPUTS.iter().enumerate() {
        let mut batch = Batch::random(13, 2, 2, &[(150, 150)]);
        let (mut options, mut config) = (PrefillOptions::default(), StemConfig::preset(Preset::Hpc));
        prefill(&batch, &options, &config).expect("valid before");
        spoil(&mut batch, &mut options, &mut config);
        match prefill(&batch, &options, &config) {
            Err(Error::Shape { tensor: name, .. } | Error::Value { name, .. }) => assert_eq!(name, *named, "case {i}"),
            other => panic!("case {i}, {named}: {other:?}"),
        }
    }
}

/// Scales whose product is 0 in f32 make all logits equal: the output is the mean of the visible values, not NaN.
#[test]
fn vanishing_scales_give_the_mean_of_the_values() {
    let mut batch = Batch::random(15, 2, 2, &[(150, 150)]);
    batch.q_scale.fill(f32::from_bits(1));
    batch.k_scale.fill(1e-3);
    let options = PrefillOptions { lse: true, ..PrefillOptions::default() };
    let output = reference::prefill(&batch.inputs(), Selection::Dense, &options).unwrap();
    let want = reference::dense_rows(&batch.inputs(), true, &(0..150).collect::<Vec<_>>()).unwrap();
    assert!(relative(&output.out, &want) < 0.03);
    let lse = output.lse.unwrap();
    assert!(lse.chunks(2).enumerate().all(|(t, lse)| lse.iter().all(|lse| (lse - (t as f32 + 1.0).ln()).abs() < 1e-3)));
}

/// A geometry whose fields were changed by hand must not lead any stage out of its tensors.
#[test]
fn tables_changed_by_hand_are_refused() {
    let batch = Batch::random(16, 2, 2, &[(150, 150)]);
    let paged = batch.paged(64, PageLayout::Nhd, None);
    let mut geometry = batch.geometry(true, None);
    geometry.requests[0].q_start = 1 << 30;
    let config = StemConfig::preset(Preset::Hpc);
    let refused = |name: &str, result: Result<(), Error>| {
        assert!(matches!(result, Err(Error::Value { name: "requests", .. })), "{name}: {result:?}");
    };
    refused("query_sums", reference::query_sums(&batch.q, &batch.q_scale, 2, &geometry).map(drop));
    refused("value_bias", reference::value_bias(&[0.0; 32], 2, &geometry, &config.oam).map(drop));
    refused("topk", reference::topk(&[0.0; 8], 2, 2, &geometry, &config).map(drop));
    refused("summarize_kv", reference::summarize_kv(&paged.view(), &geometry, &batch.k_scale, &batch.v_scale).map(drop));
    let inputs = AttendInputs {
        q: &batch.q,
        q_scale: &batch.q_scale,
        kv: paged.view(),
        k_scale: &batch.k_scale,
        v_scale: &batch.v_scale,
        hq: 2,
        geometry: &geometry,
        lists: None,
        softmax_scale: reference::default_softmax_scale(),
    };
    refused("attend", reference::attend_model(&inputs).map(drop));
}

#[test]
fn lists_of_another_batch_are_refused() {
    let batch = Batch::random(14, 2, 2, &[(150, 150)]);
    let geometry = batch.geometry(true, None);
    let prefill = |lists: &BlockLists| reference::prefill(&batch.inputs(), Selection::Lists(lists), &PrefillOptions::default());
    for lists in [BlockLists::dense(1, &geometry).unwrap(), BlockLists::from_rows(2, 1, 1, &[[0], [0]]).unwrap(), BlockLists::default()] {
        assert!(matches!(prefill(&lists), Err(Error::Shape { tensor: "lists", .. })));
    }
    let above = BlockLists::from_rows(2, 2, 1, &[[1], [0], [0], [0]]).unwrap();
    assert!(matches!(prefill(&above), Err(Error::Value { name: "lists", .. })));
}

/// Real queries, keys and values: 8,192 tokens, two heads of one layer of a trained model.
#[test]
fn the_capture_is_within_the_error_budget() {
    // Embedded, so that the test binary runs anywhere.
    let bytes = include_bytes!("../../demo/qkv_layer5_8k.safetensors");
    let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
    let codes = |name| file.tensor(name).unwrap().data().iter().map(|&x| F8E4M3::from_bits(x)).collect::<Vec<_>>();
    let floats = |name| {
        let data = file.tensor(name).unwrap().data().to_vec();
        data.chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect::<Vec<_>>()
    };
    let (q, k, v, q_scale, k_scale, v_scale) =
        (codes("q"), codes("k"), codes("v"), floats("q_scale"), floats("k_scale"), floats("v_scale"));
    let tokens = file.tensor("q").unwrap().shape()[0] as i32;
    let inputs = PrefillInputs {
        q: &q,
        q_scale: &q_scale,
        k: &k,
        v: &v,
        k_scale: &k_scale,
        v_scale: &v_scale,
        hq: 2,
        hkv: 1,
        cu_seqlens_q: &[0, tokens],
        cu_seqlens_kv: &[0, tokens],
        prompt_lens: &[tokens],
    };
    let config = StemConfig { alpha: 0.7, ..StemConfig::preset(Preset::Hpc) };
    let output = reference::prefill(&inputs, Selection::Stem(&config), &PrefillOptions::default()).unwrap();
    let geometry = Geometry::new(inputs.cu_seqlens_q, inputs.cu_seqlens_kv, inputs.prompt_lens, true, Some(&config)).unwrap();
    let density = output.lists.density(&geometry);
    assert!((0.7..0.9).contains(&density), "64 blocks with a budget of 42 falling to 29, and guards: {density}");
    let paged = PagedTensors::build(&k, &v, 1, inputs.cu_seqlens_kv, 64, PageLayout::Nhd, None).unwrap();
    let exact = reference::attend_f64(&AttendInputs {
        q: &q,
        q_scale: &q_scale,
        kv: paged.view(),
        k_scale: &k_scale,
        v_scale: &v_scale,
        hq: 2,
        geometry: &geometry,
        lists: Some(&output.lists),
        softmax_scale: reference::default_softmax_scale(),
    })
    .unwrap();
    for head in 0..2 {
        let got: Vec<bf16> = output.out.chunks(128).skip(head).step_by(2).flatten().copied().collect();
        let want: Vec<f64> = exact.out.chunks(128).skip(head).step_by(2).flatten().copied().collect();
        let error = relative(&got, &want);
        assert!(error < 0.012, "head {head}: {error}");
    }
}
