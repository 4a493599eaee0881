//! One call over more than a million tokens: offsets past 2^32 in queries, outputs and tables, and the error at that length.

use super::{GROWTH, QUERIES, RANDOM, heads, measure, random, report, run};
use float8::F8E4M3;
use half::bf16;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rayon::prelude::*;
use stem_attn::cuda::CudaBackend;
use stem_attn::driver::{CudaSlice, buffer};
use stem_attn::kv::PageLayout;
use stem_attn::ops::PageDesc;
use stem_attn::plan::{ListTensors, Plan, PlanDesc, PlanSelection, PrefillOutputs, PrefillTensors, Workspace, default_softmax_scale};
use stem_attn::{BlockLists, Geometry};
use stem_attn_tests::fuzz::cache::normal_codes;
use stem_attn_tests::gpu::{POISON, backend};
use stem_attn_tests::oracle::attend_row;

/// More than 2^20, and no multiple of 128.
const TOKENS: usize = 1_050_000;
/// Query heads: 4.3e9 elements of q, 8.6e9 bytes of output.
const HQ: usize = 32;
const PAGE: usize = 64;
/// Blocks of a row: 98 % of the blocks are skipped.
const KEPT: usize = 64;
/// Rows of 128 that q repeats: a prime, so that no power of two leads from one row to an equal one.
const PERIOD: usize = 524_287;
/// Scale of q, k and v: N(0, 1).
const SCALE: f32 = 0.01;

const _: () = assert!(TOKENS * HQ * 128 > 1 << 32, "offsets of q past 32 bits");

/// Row `row` of `q_scale`.
fn q_scale(row: usize) -> f32 {
    SCALE * (1.0 + (row % 11) as f32 / 16.0)
}

/// `KEPT` blocks of every row, spread over what it can see, the last among them.
fn lists(geometry: &Geometry) -> BlockLists {
    let rows: Vec<Vec<i32>> = (0..HQ * geometry.total_qb())
        .into_par_iter()
        .map(|i| {
            let visible = geometry.candidates(i % geometry.total_qb());
            let n = visible.min(KEPT);
            let mut rng = StdRng::seed_from_u64(i as u64);
            let end = |part: usize| part * visible / n;
            (0..n).map(|part| if part + 1 == n { visible - 1 } else { rng.random_range(end(part)..end(part + 1)) } as i32).collect()
        })
        .collect();
    BlockLists::from_rows(HQ, geometry.total_qb(), KEPT, &rows).expect("lists")
}

/// q on the device: `template` over and over.
fn repeat(gpu: &CudaBackend, template: &[F8E4M3]) -> CudaSlice<F8E4M3> {
    let stream = gpu.stream();
    let device = buffer::upload(stream, template).expect("template");
    let mut q = buffer::zeroed::<F8E4M3>(stream, TOKENS * HQ * 128).expect("q");
    for first in (0..TOKENS * HQ * 128).step_by(template.len()) {
        let n = template.len().min(TOKENS * HQ * 128 - first);
        stream.memcpy_dtod(&device.slice(..n), &mut q.slice_mut(first..first + n)).expect("copy");
    }
    stream.synchronize().expect("copies");
    q
}

/// Tokens around every power of two that an offset in bytes or elements of q, out or lse passes, the ends, and others.
fn sample(rng: &mut StdRng) -> Vec<usize> {
    let mut tokens = vec![0, 1, 127, 128, TOKENS - 1, TOKENS - 64, TOKENS - 200];
    for shift in 16..=20 {
        let token = 1usize << shift;
        tokens.extend([token - 1, token, token + 1]);
    }
    tokens.extend((0..40).map(|_| rng.random_range(0..TOKENS)));
    tokens.retain(|&t| t < TOKENS);
    tokens
}

#[test]
fn a_million_tokens_in_one_call() {
    let Some(gpu) = backend() else { return };
    let (stream, rng) = (gpu.stream(), &mut StdRng::seed_from_u64(1));
    let pages = TOKENS.div_ceil(PAGE);
    let mut table: Vec<i32> = (0..pages as i32).collect();
    table.shuffle(rng);
    let (k, v) = (normal_codes(rng, pages * PAGE * 128, 1.0 / SCALE), normal_codes(rng, pages * PAGE * 128, 1.0 / SCALE));
    let template = normal_codes(rng, PERIOD * 128, 1.0 / SCALE);
    let lens = [0, TOKENS as i32];
    let desc = PlanDesc {
        hq: HQ,
        hkv: 1,
        cu_seqlens_q: &lens,
        cu_seqlens_kv: &lens,
        prompt_lens: &lens[1..],
        pages: PageDesc::dense(PageLayout::Nhd, 1, PAGE, pages, pages),
        selection: PlanSelection::Lists { stride: KEPT },
        causal: true,
        softmax_scale: default_softmax_scale(),
    };
    let plan = Plan::new(gpu.kernels(), stream, &desc).expect("a plan");
    let lists = lists(plan.geometry());
    let (device_lists, counts) = plan.upload_lists(stream, &lists).expect("lists");
    let q = repeat(gpu, &template);
    let scales: Vec<f32> = (0..TOKENS * HQ).map(q_scale).collect();
    let q_scales = buffer::upload(stream, &scales).expect("scales");
    let (k_pages, v_pages) = (buffer::upload(stream, &k).expect("k"), buffer::upload(stream, &v).expect("v"));
    let (page_table, scale) = (buffer::upload(stream, &table).expect("table"), buffer::upload(stream, &[SCALE]).expect("scale"));
    let mut out = buffer::zeroed::<bf16>(stream, TOKENS * HQ * 128).expect("out");
    let mut lse = buffer::zeroed::<f32>(stream, TOKENS * HQ).expect("lse");
    buffer::fill_bytes(stream, &mut out, POISON).expect("poison");
    buffer::fill_bytes(stream, &mut lse, POISON).expect("poison");
    let mut workspace = Workspace::new(stream, plan.workspace_bytes()).expect("workspace");
    let tensors = PrefillTensors {
        q: q.as_view(),
        q_scale: q_scales.as_view(),
        k_pages: k_pages.as_view(),
        v_pages: v_pages.as_view(),
        page_table: page_table.as_view(),
        k_scale: scale.as_view(),
        v_scale: scale.as_view(),
        k_token_scale: None,
        lists: Some(ListTensors { lists: device_lists.as_view(), counts: counts.as_view() }),
    };
    let mut outputs = PrefillOutputs { out: out.as_view_mut(), lse: Some(lse.as_view_mut()) };
    plan.run(stream, &tensors, &mut workspace, &mut outputs).expect("run");

    let lse = buffer::download(stream, &lse, TOKENS * HQ).expect("lse");
    assert!(lse.iter().all(|lse| lse.is_finite()), "every row is written");
    let rows: Vec<(usize, Vec<bf16>)> = sample(rng)
        .into_iter()
        .flat_map(|token| [0, HQ - 1, token % HQ].map(|head| token * HQ + head))
        .map(|row| (row, buffer::download(stream, &out.slice(row * 128..(row + 1) * 128), 128).expect("a row")))
        .collect();
    let wrong: Vec<String> = rows
        .par_iter()
        .filter_map(|(row, got)| {
            let (token, head) = (row / HQ, row % HQ);
            let keys: Vec<usize> = lists.row(head, token / 128).iter().flat_map(|&j| j as usize * 128..(j as usize + 1) * 128).collect();
            let keys = keys.iter().filter(|&&key| key <= token).map(|&key| {
                let at = (table[key / PAGE] as usize * PAGE + key % PAGE) * 128;
                (&k[at..at + 128], &v[at..at + 128], 1.0)
            });
            let at = row % PERIOD * 128;
            let scale = f64::from(scales[*row]) * f64::from(SCALE) * f64::from(default_softmax_scale());
            let exact = attend_row(&template[at..at + 128], scale, f64::from(SCALE), keys);
            exact.check(got, Some(lse[*row])).err().map(|e| format!("token {token}, head {head}: {e}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {} rows, first: {}", wrong.len(), rows.len(), wrong[0]);
}

#[test]
fn the_error_at_a_million_tokens_is_that_of_a_thousand() {
    let Some(gpu) = backend() else { return };
    heads();
    let mut shortest = None;
    for (tokens, step) in [(1 << 10, 8), (1 << 20, 16)] {
        let batch = random(tokens, QUERIES, 1.0);
        let errors = measure(&batch, &run(Some(gpu), &batch.inputs()), step);
        report(Some(gpu), "random", &batch, &errors);
        let shortest = *shortest.get_or_insert(errors.relative);
        assert!(errors.relative <= RANDOM && errors.relative <= GROWTH * shortest, "{tokens} tokens: {errors:?}, {shortest}");
    }
}
