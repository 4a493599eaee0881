//! The kernels of the probe selector against their models on the CPU, stage by stage: key means bit for bit, scores within the
//! f16 accumulator's error of an f64 model of the one-pass score, lists exactly those of the scores.
//!
//! Outputs start as 0xFF bytes, so that what a kernel leaves out is found.

mod capture;
mod model;
mod strips;
mod times;

use float8::F8E4M3;
use model::check_scores;
use rstest::rstest;
use stem_attn::config::{Guards, ProbeConfig, Schedule, Selector};
use stem_attn::driver::CudaSlice;
use stem_attn::geometry::Geometry;
use stem_attn::ops::{self, Blocks, Heads, Lists, Paged, Probe, ProbeMeans, RowStrides, ScaleStrides, Scales};
use stem_attn::reference::{self, KeyMeans, default_softmax_scale};
use stem_attn::{BlockLists, Preset, StemConfig, TieRule, fp8};
use stem_attn_kernels::config::probe_sel::{KEY_TILE_BYTES, SUB_BLOCKS, TILE_BLOCKS};
use stem_attn_kernels::layout::probe_sel::{first_tile, mean_offset};
use stem_attn_tests::gpu::{Gpu, POISON, gpu};
use stem_attn_tests::stages::{Batch, Bench, DevicePages, assert_bits, laid_out};

fn setting(query_pool: u32) -> ProbeConfig {
    ProbeConfig { query_pool, ..ProbeConfig::default() }
}

/// Small prompts that still have to choose.
fn choosy(query_pool: u32, causal: bool) -> StemConfig {
    let schedule = Schedule::Ratio { ratio: 0.3, floor: 2 };
    let selector = Selector::Probe(setting(query_pool));
    StemConfig { selector, schedule, alpha: 0.8, sink: 1, window: 2, causal, ..StemConfig::preset(Preset::Hpc) }
}

#[rstest]
fn means_are_the_references_bit_for_bit(#[values(0, 1, 2, 3, 4, 5, 6, 7, 8)] case: usize) {
    let Some(gpu) = gpu() else { return };
    let batch = Batch::new(case, true, None);
    let bench = Bench::new(gpu, &batch.geometry, batch.heads);
    // The rest of a page, which belongs to nobody, must not be read as keys.
    let pages = batch.owned_pages(F8E4M3::from_bits(0x7e));
    let device = DevicePages::new(&bench, &batch, &pages, &pages.table);
    let [hkv, tiles, bytes] = ops::key_tiles(&batch.geometry, batch.heads.hkv);
    let k_tiles: CudaSlice<u8> = bench.gpu.poisoned(hkv * tiles * bytes);
    let args = ProbeMeans { kv: device.paged(&bench, &batch), k_tiles: bench.span(&k_tiles, hkv * tiles * bytes), blocks: Blocks::All };
    ops::probe_means(&bench.at(), &args).expect("launch");
    let got = bench.gpu.download(&k_tiles, hkv * tiles * bytes);
    let keys = reference::key_means(&batch.paged.view(), &batch.geometry, &setting(8)).expect("reference");
    assert_bits("k_tiles", &got, &expected_tiles(&batch.geometry, &keys, tiles), |x| x);
}

/// The reference's means where the kernel puts them.
fn expected_tiles(geometry: &Geometry, keys: &KeyMeans, tiles: usize) -> Vec<u8> {
    let mut want = vec![POISON; keys.hkv * tiles * KEY_TILE_BYTES];
    for head in 0..keys.hkv {
        for (index, block) in geometry.key_blocks.iter().enumerate() {
            let request = &geometry.requests[block.request as usize];
            let tile = first_tile(block.request, request.kb_start) as usize + block.block as usize / TILE_BLOCKS;
            let tile = &mut want[(head * tiles + tile) * KEY_TILE_BYTES..][..KEY_TILE_BYTES];
            for sub in 0..SUB_BLOCKS {
                let mean = &keys.means[((head * geometry.total_kb() + index) * SUB_BLOCKS + sub) * 128..][..128];
                for (d, &x) in mean.iter().enumerate() {
                    tile[mean_offset(block.block as usize % TILE_BLOCKS, sub, d)] = fp8::encode(x).to_bits();
                }
            }
        }
    }
    want
}

/// Scores and lists of the kernels.
struct Done {
    scores: Vec<f32>,
    lists: BlockLists,
}

/// A batch with everything in device memory that both kernels read.
struct Case<'a> {
    bench: &'a Bench,
    heads: Heads,
    geometry: &'a Geometry,
    q: &'a [F8E4M3],
    q_rows: RowStrides,
    q_scale: &'a [f32],
    q_scale_rows: ScaleStrides,
    kv: Paged,
    scales: Scales,
}

impl<'a> Case<'a> {
    fn new(bench: &'a Bench, batch: &'a Batch, device: &DevicePages) -> Self {
        Self {
            bench,
            heads: batch.heads,
            geometry: &batch.geometry,
            q: &batch.q,
            q_rows: RowStrides::packed(batch.heads.hq),
            q_scale: &batch.q_scale,
            q_scale_rows: ScaleStrides::packed(batch.heads.hq),
            kv: device.paged(bench, batch),
            scales: device.scales(bench, batch),
        }
    }

    /// Both kernels, into poisoned buffers. `scores` says whether scores are asked for.
    fn run(&self, config: &StemConfig, scores: bool) -> Done {
        let Selector::Probe(probe) = &config.selector else { panic!("a probe selector") };
        self.with_args(scores, |bench, args, download| {
            ops::probe_means(&bench.at(), &ProbeMeans { kv: self.kv, k_tiles: args.k_tiles, blocks: Blocks::All }).expect("launch");
            ops::probe(&bench.at(), args, probe, config).expect("launch");
            download()
        })
    }

    /// Hands `f` the arguments of [`ops::probe`], on poisoned buffers, and what downloads its outputs.
    fn with_args<T>(&self, scores: bool, f: impl FnOnce(&Bench, &Probe, &dyn Fn() -> Done) -> T) -> T {
        let (bench, gpu, geometry) = (self.bench, &self.bench.gpu, self.geometry);
        let (hq, total_qb, stride) = (self.heads.hq, geometry.total_qb(), geometry.max_kb.max(1));
        let tile_bytes = ops::key_tiles(geometry, self.heads.hkv).iter().product();
        let k_tiles: CudaSlice<u8> = gpu.poisoned(tile_bytes);
        let out_scores: CudaSlice<f32> = gpu.poisoned(hq * total_qb * stride);
        let lists: CudaSlice<i32> = gpu.poisoned(hq * total_qb * geometry.list_stride);
        let counts: CudaSlice<i32> = gpu.poisoned(hq * total_qb);
        let (q, q_scale) = (gpu.upload(self.q), gpu.upload(self.q_scale));
        let args = Probe {
            q: bench.span(&q, self.q.len()),
            q_rows: self.q_rows,
            q_scale: bench.span(&q_scale, self.q_scale.len()),
            q_scale_rows: self.q_scale_rows,
            scales: self.scales,
            k_tiles: bench.span(&k_tiles, tile_bytes),
            lists: Lists {
                lists: bench.span(&lists, hq * total_qb * geometry.list_stride),
                counts: bench.span(&counts, hq * total_qb),
                stride: geometry.list_stride,
            },
            scores: scores.then(|| (bench.span(&out_scores, hq * total_qb * stride), stride)),
            softmax_scale: default_softmax_scale() as f32,
        };
        f(bench, &args, &|| Done {
            scores: gpu.download(&out_scores, hq * total_qb * stride),
            lists: BlockLists {
                hq,
                total_qb,
                stride: geometry.list_stride,
                counts: gpu.download(&counts, hq * total_qb),
                lists: gpu.download(&lists, hq * total_qb * geometry.list_stride),
            },
        })
    }
}

/// Asserts that the used entries of two lists are equal, and that unused ones were left alone.
fn assert_lists(got: &BlockLists, want: &BlockLists) {
    assert_eq!(got.counts, want.counts, "counts");
    for head in 0..got.hq {
        for row in 0..got.total_qb {
            assert_eq!(got.row(head, row), want.row(head, row), "list of head {head}, row {row}");
        }
    }
}

#[rstest]
fn scores_are_the_models_and_lists_are_those_of_the_scores(
    #[values(0, 1, 2, 3, 4, 5, 6, 7, 8)] case: usize,
    #[values(8, 4, 2, 1)] query_pool: u32,
    #[values(true, false)] causal: bool,
) {
    let Some(gpu) = gpu() else { return };
    let config = choosy(query_pool, causal);
    let batch = Batch::new(case, causal, Some(&config));
    let bench = Bench::new(gpu, &batch.geometry, batch.heads);
    let device = DevicePages::new(&bench, &batch, &batch.paged, &batch.paged.table);
    let case = Case::new(&bench, &batch, &device);
    let done = case.run(&config, true);
    check_scores(&batch, &done.scores, query_pool);
    let stride = batch.geometry.max_kb.max(1);
    let want = reference::topk(&done.scores, stride, batch.heads.hq, &batch.geometry, &config).expect("top-k");
    assert_lists(&done.lists, &want);
    // The same without scores asked for.
    let quiet = case.run(&config, false);
    assert_lists(&quiet.lists, &want);
    assert!(quiet.scores.iter().all(|s| s.to_bits() == u32::MAX), "scores that nobody asked for");
}

/// Queries of any strides give the same scores and lists as packed ones, bit for bit.
#[rstest]
fn strides_of_q_change_nothing(#[values(3, 6, 7)] case: usize, #[values(8, 1)] query_pool: u32) {
    let Some(gpu) = gpu() else { return };
    let config = choosy(query_pool, true);
    let batch = Batch::new(case, true, Some(&config));
    let bench = Bench::new(gpu, &batch.geometry, batch.heads);
    let device = DevicePages::new(&bench, &batch, &batch.paged, &batch.paged.table);
    let packed = Case::new(&bench, &batch, &device);
    let (q, q_rows) = laid_out(&batch.q, batch.heads.hq, true, 16, F8E4M3::from_bits(0x7f));
    let apart = Case { q: &q, q_rows, ..Case::new(&bench, &batch, &device) };
    let (want, got) = (packed.run(&config, true), apart.run(&config, true));
    assert_bits("scores", &got.scores, &want.scores, f32::to_bits);
    assert_lists(&got.lists, &want.lists);
}

/// Guards on top, ties kept, windows longer than the row, budgets of one.
#[rstest]
fn rules_are_the_references(
    #[values(Guards::InsideBudget, Guards::OnTop)] guards: Guards,
    #[values(TieRule::LowestIndex, TieRule::KeepAll)] ties: TieRule,
) {
    let Some(gpu) = gpu() else { return };
    for (sink, window, floor) in [(0, 1, 1), (4, 4, 1), (1, 1 << 20, 3), (3, 2, 9)] {
        let schedule = Schedule::Ratio { ratio: 0.01, floor };
        let config = StemConfig { guards, ties, sink, window, schedule, ..choosy(8, true) };
        let batch = Batch::new(4, true, Some(&config));
        let bench = Bench::new(gpu_again(&gpu), &batch.geometry, batch.heads);
        let device = DevicePages::new(&bench, &batch, &batch.paged, &batch.paged.table);
        let zeros = vec![F8E4M3::from_bits(0); batch.q.len()];
        // Queries of zeros: all shares are equal, and every row is one tie.
        for q in [&batch.q, &zeros] {
            let done = Case { q, ..Case::new(&bench, &batch, &device) }.run(&config, true);
            let want = reference::topk(&done.scores, batch.geometry.max_kb, batch.heads.hq, &batch.geometry, &config).expect("top-k");
            assert_lists(&done.lists, &want);
        }
    }
}

fn gpu_again(gpu: &Gpu) -> Gpu {
    Gpu { device: gpu.device.clone(), stream: gpu.stream.clone() }
}
