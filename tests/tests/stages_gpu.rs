//! Pages and summaries, GPU against CPU reference: sums, tiles and codes bit for bit, norms within their roundings. Skipped,
//! with a printed reason, where there is no GPU. The selection has select_gpu.rs.

use float8::F8E4M3;
use half::bf16;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rstest::rstest;
use stem_attn::{ops, reference};
use stem_attn_kernels::config::{HEAD_DIM, RUNS, SUM_LEN, TILE_BYTES};
use stem_attn_tests::gpu::gpu;
use stem_attn_tests::stages::{Batch, Bench, DevicePages, assert_bits, assert_close, laid_out, normal};

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
        blocks: ops::Blocks::All,
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
