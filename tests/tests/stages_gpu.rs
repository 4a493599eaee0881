//! Every stage before attention, GPU against CPU reference: sums, tiles and codes bit for bit, lists entry for entry
//! given the same scores, norms and scores within their roundings. Skipped, with a printed reason, where there is no GPU.

use float8::F8E4M3;
use half::bf16;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::StandardNormal;
use rstest::rstest;
use stem_attn::ops::{self, Heads};
use stem_attn::reference::{self, ScoreInputs};
use stem_attn::{Guards, OamConfig, Preset, Schedule, StemConfig, TieRule};
use stem_attn_kernels::config::{HEAD_DIM, RUNS, SUM_LEN, TILE_BYTES};
use stem_attn_tests::gpu::gpu;
use stem_attn_tests::stages::{Batch, Bench, DevicePages, assert_bits, assert_close, cut, normal};

/// A `[tokens, heads, 128]` tensor as it stands, or, where `odd`, heads before tokens with gaps of `vector` elements.
fn laid_out<T: Copy>(x: &[T], heads: usize, odd: bool, vector: usize, filler: T) -> (Vec<T>, ops::RowStrides) {
    let tokens = x.len() / 128 / heads;
    if !odd {
        return (x.to_vec(), ops::RowStrides::packed(heads));
    }
    let strides = ops::RowStrides { token: 128 + vector, head: tokens * (128 + vector) + 2 * vector };
    let mut wide = vec![filler; strides.head * heads];
    for (i, row) in x.chunks_exact(128).enumerate() {
        wide[i / heads * strides.token + i % heads * strides.head..][..128].copy_from_slice(row);
    }
    (wide, strides)
}

/// With scales of single keys: none, in a tensor of their own, in rows of the pages.
fn scaled(batch: Batch, own_scales: Option<bool>) -> Batch {
    match own_scales {
        Some(in_pages) => batch.with_token_scales(in_pages),
        None => batch,
    }
}

#[rstest]
fn new_tokens_land_in_their_pages(
    #[values(0, 1, 2, 3, 4, 5, 6, 7, 8)] case: usize,
    #[values(false, true)] broken_table: bool,
    #[values(None, Some(false), Some(true))] own_scales: Option<bool>,
) {
    let Some(gpu) = gpu() else { return };
    let mut batch = scaled(Batch::new(case, true, None), own_scales);
    if broken_table {
        // Entries outside the pool: their tokens are skipped, and nothing else is touched.
        for (i, entry) in batch.paged.table.iter_mut().enumerate() {
            *entry = match i % 5 {
                1 => -1,
                2 => batch.paged.pages as i32,
                3 => i32::MAX,
                _ => *entry,
            };
        }
    }
    let bench = Bench::new(gpu, &batch.geometry, batch.heads);
    let rng = &mut StdRng::seed_from_u64(100 + case as u64);
    let n = batch.geometry.total_q * batch.heads.hkv * HEAD_DIM;
    // Values that saturate, that are subnormal, zeros of both signs, infinities and NaN among the normal ones.
    let special = [0.0, -0.0, 1e6, -1e6, 1e-3, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    let mut values = || -> Vec<bf16> {
        let mut x: Vec<bf16> = normal(rng, n).map(bf16::from_f32).collect();
        x.iter_mut().step_by(7).zip(special.iter().cycle()).for_each(|(x, s)| *x = bf16::from_f32(*s));
        x
    };
    let (k, v) = (values(), values());
    let pages = DevicePages::new(&bench, &batch, &batch.paged, &batch.paged.table);
    let (wide_k, k_rows) = laid_out(&k, batch.heads.hkv, case % 2 == 1, 8, bf16::ONE);
    let (wide_v, v_rows) = laid_out(&v, batch.heads.hkv, case % 3 == 1, 8, bf16::ONE);
    let (device_k, device_v) = (bench.gpu.upload(&wide_k), bench.gpu.upload(&wide_v));
    let args = ops::AppendKv {
        k: bench.span(&device_k, wide_k.len()),
        k_rows,
        v: bench.span(&device_v, wide_v.len()),
        v_rows,
        kv: pages.paged(&bench, &batch),
        scales: pages.scales(&bench, &batch),
    };
    ops::append_kv(&bench.at(), &args).expect("launch");
    let got = [&pages.k, &pages.v].map(|p| bench.gpu.download(p, batch.paged.k_pages.len()));
    reference::append_kv(&k, &v, &batch.geometry, &batch.k_scale, &batch.v_scale, &mut batch.paged).expect("reference");
    // A NaN's sign is no value.
    let bits = |x: F8E4M3| if x.to_bits() & 0x7f == 0x7f { 0x7f } else { x.to_bits() };
    assert_bits("K pages", &got[0], &batch.paged.k_pages, bits);
    assert_bits("V pages", &got[1], &batch.paged.v_pages, bits);
    if let Some(k_token) = &pages.k_token {
        assert_bits("scales", &bench.gpu.download(k_token, batch.paged.k_token.len()), &batch.paged.k_token, f32::to_bits);
    }
}

#[rstest]
fn summaries_match(
    #[values(0, 1, 2, 3, 4, 5, 6, 7, 8)] case: usize,
    #[values(false, true)] broken_table: bool,
    #[values(None, Some(false), Some(true))] own_scales: Option<bool>,
) {
    let Some(gpu) = gpu() else { return };
    let mut batch = scaled(Batch::new(case, true, None), own_scales);
    let mut table = batch.paged.table.clone();
    if broken_table {
        // A page that is not in the pool reads as zeros: the reference gets a table without that fault and zeros there.
        let page_bytes = batch.paged.strides.page as usize;
        for (i, entry) in table.iter_mut().enumerate().filter(|(i, entry)| i % 3 == 1 && **entry >= 0) {
            let at = *entry as usize * page_bytes;
            batch.paged.k_pages[at..at + page_bytes].fill(F8E4M3::from_bits(0));
            batch.paged.v_pages[at..at + page_bytes].fill(F8E4M3::from_bits(0));
            *entry = if i % 2 == 0 { -7 } else { batch.paged.pages as i32 };
        }
    }
    let want = reference::summarize_kv(&batch.paged.view(), &batch.geometry, &batch.k_scale, &batch.v_scale).expect("reference");
    // What no token owns is NaN: it must not show anywhere.
    let pages = batch.owned_pages(F8E4M3::from_bits(0x7f));
    let bench = Bench::new(gpu, &batch.geometry, batch.heads);
    let pages = DevicePages::new(&bench, &batch, &pages, &table);
    let (hkv, total_kb) = (batch.heads.hkv, batch.geometry.total_kb());
    let k_sums = bench.gpu.poisoned::<bf16>(hkv * total_kb * SUM_LEN);
    let run_norms = bench.gpu.poisoned::<f32>(hkv * total_kb * RUNS);
    let v_tiles = bench.gpu.poisoned::<u8>(total_kb * hkv * TILE_BYTES);
    let mut args = ops::SummarizeKv {
        kv: pages.paged(&bench, &batch),
        scales: pages.scales(&bench, &batch),
        k_sums: Some(bench.span(&k_sums, hkv * total_kb * SUM_LEN)),
        run_norms: Some(bench.span(&run_norms, hkv * total_kb * RUNS)),
        v_tiles: bench.span(&v_tiles, total_kb * hkv * TILE_BYTES),
    };
    ops::summarize_kv(&bench.at(), &args).expect("launch");
    let tiles: Vec<u8> = want.v_tiles.iter().map(|x| x.to_bits()).collect();
    assert_bits("key sums", &bench.gpu.download(&k_sums, want.k_sums.len()), &want.k_sums, bf16::to_bits);
    assert_bits("V tiles", &bench.gpu.download(&v_tiles, tiles.len()), &tiles, |x| x);
    // 1e-5 where the logarithm is near zero: the norm itself is relative to 1e-6.
    assert_close("run norms", &bench.gpu.download(&run_norms, want.run_norms.len()), &want.run_norms, 1e-5, 1e-5);

    // Without sums and norms: the same tiles.
    let again = bench.gpu.poisoned::<u8>(tiles.len());
    (args.k_sums, args.run_norms, args.v_tiles) = (None, None, bench.span(&again, tiles.len()));
    ops::summarize_kv(&bench.at(), &args).expect("launch");
    assert_bits("V tiles alone", &bench.gpu.download(&again, tiles.len()), &tiles, |x| x);
}

#[rstest]
fn query_sums_match(#[values(0, 1, 2, 3, 4, 5, 6, 7, 8)] case: usize) {
    let Some(gpu) = gpu() else { return };
    let batch = Batch::new(case, true, None);
    let bench = Bench::new(gpu, &batch.geometry, batch.heads);
    let want = reference::query_sums(&batch.q, &batch.q_scale, batch.heads.hq, &batch.geometry).expect("reference");
    let (wide, q_rows) = laid_out(&batch.q, batch.heads.hq, case % 2 == 1, 16, F8E4M3::from_bits(0x7f));
    let (q, q_scale) = (bench.gpu.upload(&wide), bench.gpu.upload(&batch.q_scale));
    let q_sums = bench.gpu.poisoned::<bf16>(want.len());
    let args = ops::QuerySums {
        q: bench.span(&q, wide.len()),
        q_rows,
        q_scale: bench.span(&q_scale, batch.q_scale.len()),
        q_sums: bench.span(&q_sums, want.len()),
    };
    ops::query_sums(&bench.at(), &args).expect("launch");
    assert_bits("query sums", &bench.gpu.download(&q_sums, want.len()), &want, bf16::to_bits);
}

#[rstest]
fn value_bias_matches(#[values(0, 1, 2, 3, 4, 5, 6, 7, 8)] case: usize, #[values(Preset::Hpc, Preset::Paper)] preset: Preset) {
    let Some(gpu) = gpu() else { return };
    let batch = Batch::new(case, true, None);
    let oam = StemConfig::preset(preset).oam;
    let hkv = batch.heads.hkv;
    let norms = reference::summarize_kv(&batch.paged.view(), &batch.geometry, &batch.k_scale, &batch.v_scale).expect("reference").run_norms;
    let want = reference::value_bias(&norms, hkv, &batch.geometry, &oam).expect("reference");
    let bench = Bench::new(gpu, &batch.geometry, batch.heads);
    let run_norms = bench.gpu.upload(&norms);
    let launch = || {
        let v_bias = bench.gpu.poisoned::<f32>(want.len());
        let args = ops::ValueBias { run_norms: bench.span(&run_norms, norms.len()), v_bias: bench.span(&v_bias, want.len()) };
        ops::value_bias(&bench.at(), &args, &oam).expect("launch");
        bench.gpu.download(&v_bias, want.len())
    };
    let got = launch();
    assert_close("value bias", &got, &want, 1e-5, 1e-6);
    assert_bits("value bias, again", &launch(), &got, f32::to_bits);
}

#[rstest]
fn scores_match(
    #[values(0, 1, 3, 4, 6, 7, 8)] case: usize,
    #[values(false, true)] causal: bool,
    #[values(Preset::Hpc, Preset::Paper)] preset: Preset,
) {
    let Some(gpu) = gpu() else { return };
    let batch = Batch::new(case, causal, None);
    let oam: OamConfig = StemConfig::preset(preset).oam;
    let (geometry, Heads { hq, hkv }) = (&batch.geometry, batch.heads);
    let sums = reference::summarize_kv(&batch.paged.view(), geometry, &batch.k_scale, &batch.v_scale).expect("reference");
    let q_sums = reference::query_sums(&batch.q, &batch.q_scale, hq, geometry).expect("reference");
    let v_bias = reference::value_bias(&sums.run_norms, hkv, geometry, &oam).expect("reference");
    let stride = geometry.max_kb + 3;
    let inputs = ScoreInputs { q_sums: &q_sums, k_sums: &sums.k_sums, v_bias: &v_bias, hq, hkv, score_stride: stride };
    let exact = OamConfig { round_bf16: false, ..oam };
    let want = reference::scores(&inputs, geometry, &exact).expect("reference");

    let bench = Bench::new(gpu, geometry, batch.heads);
    let (device_q, device_k, device_bias) = (bench.gpu.upload(&q_sums), bench.gpu.upload(&sums.k_sums), bench.gpu.upload(&v_bias));
    let scores = bench.gpu.poisoned::<f32>(want.len());
    let args = ops::Scores {
        q_sums: bench.span(&device_q, q_sums.len()),
        k_sums: bench.span(&device_k, sums.k_sums.len()),
        v_bias: bench.span(&device_bias, v_bias.len()),
        scores: bench.span(&scores, want.len()),
        stride,
    };
    ops::scores(&bench.at(), &args, &oam).expect("launch");
    let got = bench.gpu.download(&scores, want.len());
    let largest = want.iter().filter(|x| x.is_finite()).fold(0f32, |m, x| m.max(x.abs()));
    // Half a unit of bf16 where the score is rounded; else the order of 2,048 f32 additions.
    let relative = if oam.round_bf16 { 1.0 / 256.0 } else { 0.0 };
    for (i, (got, want)) in got.chunks(stride).zip(want.chunks(stride)).enumerate() {
        let row = i % geometry.total_qb();
        let visible = geometry.candidates(row);
        assert_close(&format!("scores of row {i}"), &got[..visible], &want[..visible], relative, 1e-4 * largest);
        if oam.round_bf16 {
            assert!(got[..visible].iter().all(|x| bf16::from_f32(*x).to_f32() == *x), "row {i} is not rounded");
        }
        let (_, request) = geometry.row(row).expect("a row");
        assert!(got[request.kb_len as usize..].iter().all(|x| x.to_bits() == u32::MAX), "row {i} wrote past its last block");
    }
}

/// Score rows that are hard to rank: few distinct values, NaN and infinities, all equal, all NaN, ordinary ones.
fn hard_scores(rng: &mut StdRng, rows: usize, stride: usize) -> Vec<f32> {
    let mut scores = Vec::with_capacity(rows * stride);
    for row in 0..rows {
        for _ in 0..stride {
            let x: f32 = rng.sample(StandardNormal);
            scores.push(match row % 6 {
                0 => x,
                1 => bf16::from_f32(x * 0.01).to_f32(),
                2 => (x * 1.5).round(),
                3 => [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 0.0, x, f32::MIN, f32::MAX][rng.random_range(0..8)],
                4 => 1.25,
                _ => f32::NAN,
            });
        }
    }
    scores
}

#[rstest]
fn lists_are_exactly_the_references(
    #[values(Guards::InsideBudget, Guards::OnTop)] guards: Guards,
    #[values(TieRule::LowestIndex, TieRule::KeepAll)] ties: TieRule,
    #[values(false, true)] causal: bool,
    #[values((4, 4), (0, 1), (7, 40), (300, 1))] (sink, window): (u32, u32),
) {
    let batches: [&[(i32, i32)]; 3] = [
        &[(1, 1), (0, 300), (4097, 4097), (129, 131)],
        &[(3000, 40_000), (260, 33_000)],
        // 65,536 candidates.
        &[(140, 8_388_608)],
    ];
    for (n, lengths) in batches.into_iter().enumerate() {
        for schedule in [Schedule::Ratio { ratio: 0.01, floor: 1 }, Schedule::Ratio { ratio: 0.3, floor: 5 }, Schedule::Hpc] {
            let Some(gpu) = gpu() else { return };
            let config = StemConfig { guards, ties, causal, sink, window, schedule, ..StemConfig::preset(Preset::Hpc) };
            let geometry = cut(lengths, causal, Some(&config));
            let heads = Heads::new(6, 1).expect("heads");
            let (hq, total_qb, stride) = (heads.hq, geometry.total_qb(), geometry.max_kb + 1);
            let scores = hard_scores(&mut StdRng::seed_from_u64(n as u64), hq * total_qb, stride);
            let want = reference::topk(&scores, stride, hq, &geometry, &config).expect("reference");

            let bench = Bench::new(gpu, &geometry, heads);
            let device_scores = bench.gpu.upload(&scores);
            let capacity = geometry.list_stride;
            let (lists, counts) = (bench.gpu.poisoned::<i32>(hq * total_qb * capacity), bench.gpu.poisoned::<i32>(hq * total_qb));
            let args = ops::Topk {
                scores: bench.span(&device_scores, scores.len()),
                score_stride: stride,
                lists: ops::Lists {
                    lists: bench.span(&lists, hq * total_qb * capacity),
                    counts: bench.span(&counts, hq * total_qb),
                    stride: capacity,
                },
            };
            ops::topk(&bench.at(), &args, &config).expect("launch");
            let counts = bench.gpu.download(&counts, hq * total_qb);
            let lists = bench.gpu.download(&lists, hq * total_qb * capacity);
            for head in 0..hq {
                for row in 0..total_qb {
                    let (at, expected) = (head * total_qb + row, want.row(head, row));
                    let list = &lists[at * capacity..(at + 1) * capacity];
                    assert_eq!(counts[at] as usize, expected.len(), "count of head {head}, row {row}");
                    assert_eq!(&list[..expected.len()], expected, "head {head}, row {row}");
                    assert!(list[expected.len()..].iter().all(|&j| j == -1), "head {head}, row {row} wrote past its count");
                }
            }
        }
    }
}
