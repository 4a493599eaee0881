//! Times of both kernels, for the log.

use super::{choosy, gpu_again, setting};
use float8::F8E4M3;
use stem_attn::driver::{CudaSlice, EventTimer};
use stem_attn::fp8;
use stem_attn::geometry::Geometry;
use stem_attn::kv::PageLayout;
use stem_attn::ops::{self, Heads, Lists, Paged, Probe, ProbeMeans, Scales};
use stem_attn::reference::default_softmax_scale;
use stem_attn_tests::gpu::gpu;
use stem_attn_tests::stages::Bench;

/// Times, for the log: `cargo test --release --test probe_sel_gpu -- --ignored --nocapture`. 32 query heads, 4 KV heads.
#[test]
#[ignore = "a measurement"]
fn times() {
    let Some(gpu) = gpu() else { return };
    for tokens in [8192, 32_768, 131_072] {
        for query_pool in [8, 4] {
            let config = choosy(query_pool, true);
            let geometry = Geometry::new(&[0, tokens], &[0, tokens], &[tokens], true, Some(&config)).expect("a batch");
            let heads = Heads::new(32, 4).expect("heads");
            let bench = Bench::new(gpu_again(&gpu), &geometry, heads);
            let mut state = 1u32;
            // Sums of bytes of a simple generator: near enough to normal, and fast.
            let mut codes = |n: usize| -> Vec<F8E4M3> {
                (0..n)
                    .map(|_| {
                        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        let sum: u32 = state.to_le_bytes()[1..].iter().map(|&b| u32::from(b)).sum();
                        fp8::encode((sum as f32 - 382.5) / 64.0)
                    })
                    .collect()
            };
            let n = tokens as usize;
            let (q, k) = (codes(n * 32 * 128), codes(n * 4 * 128));
            let (q, k, table) = (bench.gpu.upload(&q), bench.gpu.upload(&k), bench.gpu.upload(&(0..tokens / 64).collect::<Vec<i32>>()));
            let (q_scale, one) = (bench.gpu.upload(&vec![1f32; n * 32]), bench.gpu.upload(&[1f32]));
            let desc = ops::PageDesc::dense(PageLayout::Nhd, 4, 64, n / 64, n / 64);
            let pages = bench.span(&k, n * 4 * 128);
            let kv = Paged { k_pages: pages, v_pages: pages, table: bench.span(&table, n / 64), desc };
            let scales = Scales { k: bench.span(&one, 1), v: bench.span(&one, 1), k_token: None };
            let tile_bytes = ops::key_tiles(&geometry, 4).iter().product();
            let tiles: CudaSlice<u8> = bench.gpu.poisoned(tile_bytes);
            let rows = 32 * geometry.total_qb();
            let lists: CudaSlice<i32> = bench.gpu.poisoned(rows * geometry.list_stride);
            let counts: CudaSlice<i32> = bench.gpu.poisoned(rows);
            let means = ProbeMeans { kv, k_tiles: bench.span(&tiles, tile_bytes), blocks: ops::Blocks::All };
            let args = Probe {
                q: bench.span(&q, n * 32 * 128),
                q_rows: ops::RowStrides::packed(32),
                q_scale: bench.span(&q_scale, n * 32),
                q_scale_rows: ops::ScaleStrides::packed(32),
                scales,
                k_tiles: means.k_tiles,
                lists: Lists {
                    lists: bench.span(&lists, rows * geometry.list_stride),
                    counts: bench.span(&counts, rows),
                    stride: geometry.list_stride,
                },
                scores: None,
                softmax_scale: default_softmax_scale() as f32,
            };
            let time = |launch: &dyn Fn()| {
                launch();
                let mut ms: Vec<f64> = (0..20)
                    .map(|_| {
                        let timer = EventTimer::new(&bench.gpu.device).expect("a timer");
                        timer.start(&bench.gpu.stream).expect("start");
                        launch();
                        timer.stop(&bench.gpu.stream).expect("stop");
                        timer.elapsed_ms().expect("a time")
                    })
                    .collect();
                ms.sort_by(f64::total_cmp);
                ms[10]
            };
            let means_ms = time(&|| ops::probe_means(&bench.at(), &means).expect("launch"));
            let probe_ms = time(&|| ops::probe(&bench.at(), &args, &setting(query_pool), &config).expect("launch"));
            let kept = bench.gpu.download(&counts, rows).iter().map(|&c| i64::from(c)).sum::<i64>();
            let groups = (n / query_pool as usize) as f64;
            let flops = 32.0 * groups * (n / 8) as f64 * 128.0;
            println!(
                "{tokens} tokens, pool {query_pool}: means {means_ms:.4} ms, probe {probe_ms:.4} ms, {:.0} TFLOP/s (causal), {kept} blocks kept",
                flops / probe_ms / 1e9
            );
            assert!(kept > 0);
        }
    }
}
