//! Batches, and a GPU with their tables, for the tests of single stages.

use crate::gpu::Gpu;
use float8::F8E4M3;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::StandardNormal;
use std::sync::{Arc, OnceLock};
use stem_attn::driver::{CudaSlice, DevicePtr};
use stem_attn::geometry::Geometry;
use stem_attn::kv::{KvTensor, PageLayout, PagedTensors};
use stem_attn::ops::{DeviceGeometry, Heads, Kernels, Launcher, PageDesc, Paged, RowStrides, ScaleStrides, Scales, Span};
use stem_attn::{StemConfig, fp8};
use stem_attn_kernels::config::HEAD_DIM;

/// New tokens and KV tokens of each request: the corner lengths alone, then ragged batches with unaligned history and
/// empty requests.
pub const BATCHES: [&[(i32, i32)]; 9] = [
    &[(1, 1)],
    &[(127, 127)],
    &[(128, 128)],
    &[(129, 129)],
    &[(4097, 4097)],
    &[(1, 4097)],
    &[(300, 777), (0, 130), (1, 1), (128, 256), (5, 1029)],
    &[(129, 131), (0, 0), (257, 4000), (127, 127)],
    &[(16_450, 16_500), (1000, 1001)],
];

/// Head counts, page size and layout of each batch, and whether scales are per head.
pub const SHAPES: [(usize, usize, usize, PageLayout, bool); 9] = [
    (1, 1, 16, PageLayout::Nhd, false),
    (4, 2, 32, PageLayout::Hnd, true),
    (2, 2, 64, PageLayout::Nhd, true),
    (8, 1, 128, PageLayout::Hnd, false),
    (4, 2, 256, PageLayout::Nhd, true),
    (2, 1, 256, PageLayout::Hnd, false),
    (6, 3, 16, PageLayout::Hnd, true),
    (4, 2, 64, PageLayout::Nhd, false),
    (2, 1, 128, PageLayout::Nhd, false),
];

/// Host tensors of one batch.
pub struct Batch {
    /// Tables.
    pub geometry: Geometry,
    /// Head counts.
    pub heads: Heads,
    /// `[total_q, hq, 128]`.
    pub q: Vec<F8E4M3>,
    /// `[total_q, hq]`.
    pub q_scale: Vec<f32>,
    /// K and V, pages in an order that is not theirs.
    pub paged: PagedTensors,
    /// `[1]` or `[hkv]`.
    pub k_scale: Vec<f32>,
    /// `[1]` or `[hkv]`.
    pub v_scale: Vec<f32>,
}

/// `n` numbers from N(0, 1).
pub fn normal(rng: &mut StdRng, n: usize) -> impl Iterator<Item = f32> {
    (0..n).map(move |_| rng.sample(StandardNormal))
}

fn codes(rng: &mut StdRng, n: usize) -> Vec<F8E4M3> {
    normal(rng, n).map(|x| fp8::encode(8.0 * x)).collect()
}

fn offsets(lengths: impl Iterator<Item = i32>) -> Vec<i32> {
    std::iter::once(0)
        .chain(lengths.scan(0, |sum, n| {
            *sum += n;
            Some(*sum)
        }))
        .collect()
}

/// The geometry of a batch of (new, KV) token counts whose prompts end with their KV.
pub fn cut(lengths: &[(i32, i32)], causal: bool, config: Option<&StemConfig>) -> Geometry {
    let kv: Vec<i32> = lengths.iter().map(|l| l.1).collect();
    Geometry::new(&offsets(lengths.iter().map(|l| l.0)), &offsets(kv.iter().copied()), &kv, causal, config).expect("a batch")
}

impl Batch {
    /// Batch `case` of [`BATCHES`] in shape `case` of [`SHAPES`], reproducible.
    pub fn new(case: usize, causal: bool, config: Option<&StemConfig>) -> Self {
        let rng = &mut StdRng::seed_from_u64(case as u64);
        let (hq, hkv, page_size, layout, per_head) = SHAPES[case];
        let lengths = BATCHES[case];
        let geometry = cut(lengths, causal, config);
        let kv = geometry.total_kv * hkv * HEAD_DIM;
        let (k, v) = (codes(rng, kv), codes(rng, kv));
        let needed: usize = lengths.iter().map(|l| (l.1 as usize).div_ceil(page_size)).sum();
        // Backwards, with pages that nobody owns in between and at the ends.
        let order: Vec<i32> = (0..needed as i32 + 3).rev().collect();
        let starts = offsets(lengths.iter().map(|l| l.1));
        let paged = PagedTensors::build(&k, &v, hkv, &starts, page_size, layout, Some(&order)).expect("pages");
        let mut scales = |n| (0..n).map(|_| rng.random_range(0.01..0.3)).collect::<Vec<f32>>();
        let n = if per_head { hkv } else { 1 };
        let (k_scale, v_scale) = (scales(n), scales(n));
        let q_scale = scales(geometry.total_q * hq);
        let q = codes(rng, geometry.total_q * hq * HEAD_DIM);
        Self { heads: Heads::new(hq, hkv).expect("heads"), geometry, q, q_scale, paged, k_scale, v_scale }
    }

    /// With a scale for every key, in rows of the pages or in a tensor of their own.
    pub fn with_token_scales(mut self, in_pages: bool) -> Self {
        let rng = &mut StdRng::seed_from_u64(self.geometry.total_kv as u64);
        let starts = offsets(self.geometry.requests.iter().map(|r| r.kv_len));
        let scales: Vec<f32> = (0..self.geometry.total_kv * self.heads.hkv).map(|_| rng.random_range(0.1..3.0)).collect();
        let layout = if self.paged.strides.token > self.paged.strides.head { PageLayout::Nhd } else { PageLayout::Hnd };
        self.paged = self.paged.with_token_scales(&scales, &starts, layout, in_pages).expect("a scale for every key");
        self
    }

    /// The batch's pages with `filler` in every element that no token owns.
    pub fn owned_pages(&self, filler: F8E4M3) -> PagedTensors {
        let mut paged = self.paged.clone();
        paged.k_pages.fill(filler);
        paged.v_pages.fill(filler);
        for (b, request) in self.geometry.requests.iter().enumerate() {
            for token in 0..request.kv_len as usize {
                for head in 0..self.heads.hkv {
                    paged.set_token_scale(b, head, token, self.paged.view().token_scale(b, head, token));
                    for tensor in [KvTensor::K, KvTensor::V] {
                        let from = self.paged.view().row(tensor, b, head, token).expect("a row");
                        paged.row_mut(tensor, b, head, token).expect("a row").copy_from_slice(from);
                    }
                }
            }
        }
        paged
    }
}

/// A GPU with the kernels and one batch's tables.
pub struct Bench {
    /// The GPU.
    pub gpu: Gpu,
    kernels: Arc<Kernels>,
    geometry: DeviceGeometry,
    heads: Heads,
}

impl Bench {
    /// Loads the kernels and uploads the tables.
    pub fn new(gpu: Gpu, geometry: &Geometry, heads: Heads) -> Self {
        // Loaded once for all tests: the driver's compiler takes its time.
        static KERNELS: OnceLock<Arc<Kernels>> = OnceLock::new();
        let kernels = KERNELS.get_or_init(|| Kernels::load(&gpu.device).expect("load the kernels")).clone();
        let geometry = DeviceGeometry::upload(&gpu.stream, geometry.clone()).expect("upload the tables");
        Self { gpu, kernels, geometry, heads }
    }

    /// What the launchers ask for.
    pub fn at(&self) -> Launcher<'_> {
        Launcher { kernels: &self.kernels, stream: &self.gpu.stream, geometry: &self.geometry, heads: self.heads }
    }

    /// The first `len` elements of a buffer, which must outlive the next download.
    pub fn span<T>(&self, buffer: &CudaSlice<T>, len: usize) -> Span<T> {
        assert!(len <= buffer.len());
        // SAFETY: the tests keep every buffer until they have waited for the stream, the only one they use.
        unsafe { Span::from_raw(buffer.device_ptr(&self.gpu.stream).0, len) }
    }
}

/// Pages, table and scales on the device.
pub struct DevicePages {
    /// Pages of K.
    pub k: CudaSlice<F8E4M3>,
    /// Pages of V.
    pub v: CudaSlice<F8E4M3>,
    table: CudaSlice<i32>,
    k_scale: CudaSlice<f32>,
    v_scale: CudaSlice<f32>,
    /// Scales of single keys, where they have a tensor of their own.
    pub k_token: Option<CudaSlice<f32>>,
}

impl DevicePages {
    /// Uploads `pages` with the table `table` in place of their own, and the batch's scales.
    pub fn new(bench: &Bench, batch: &Batch, pages: &PagedTensors, table: &[i32]) -> Self {
        let gpu = &bench.gpu;
        Self {
            k: gpu.upload(&pages.k_pages),
            v: gpu.upload(&pages.v_pages),
            table: gpu.upload(table),
            k_scale: gpu.upload(&batch.k_scale),
            v_scale: gpu.upload(&batch.v_scale),
            k_token: (!pages.k_token.is_empty()).then(|| gpu.upload(&pages.k_token)),
        }
    }

    /// Pages and table as the launchers see them.
    pub fn paged(&self, bench: &Bench, batch: &Batch) -> Paged {
        let host = &batch.paged;
        Paged {
            k_pages: bench.span(&self.k, host.k_pages.len()),
            v_pages: bench.span(&self.v, host.v_pages.len()),
            table: bench.span(&self.table, host.table.len()),
            desc: PageDesc {
                k_strides: host.strides,
                v_strides: host.strides,
                page_size: host.page_size,
                pages: host.pages,
                table_stride: host.table_stride,
                k_token_scales: host.k_token_scales,
            },
        }
    }

    /// Scales as the launchers see them.
    pub fn scales(&self, bench: &Bench, batch: &Batch) -> Scales {
        Scales {
            k: bench.span(&self.k_scale, batch.k_scale.len()),
            v: bench.span(&self.v_scale, batch.v_scale.len()),
            k_token: self.k_token.as_ref().map(|s| bench.span(s, s.len())),
        }
    }
}

/// A `[tokens, heads, 128]` tensor as it stands, or, where `odd`, heads before tokens with gaps of `vector` elements.
pub fn laid_out<T: Copy>(x: &[T], heads: usize, odd: bool, vector: usize, filler: T) -> (Vec<T>, RowStrides) {
    let tokens = x.len() / 128 / heads;
    if !odd {
        return (x.to_vec(), RowStrides::packed(heads));
    }
    let strides = RowStrides { token: 128 + vector, head: tokens * (128 + vector) + 2 * vector };
    let mut wide = vec![filler; strides.head * heads];
    for (i, row) in x.chunks_exact(128).enumerate() {
        wide[i / heads * strides.token + i % heads * strides.head..][..128].copy_from_slice(row);
    }
    (wide, strides)
}

/// The same of `[tokens, heads]` scales, with gaps of NaN.
pub fn scales_laid_out(x: &[f32], heads: usize, odd: bool) -> (Vec<f32>, ScaleStrides) {
    if !odd {
        return (x.to_vec(), ScaleStrides::packed(heads));
    }
    let strides = ScaleStrides { token: 2, ..ScaleStrides::heads_first(2 * (x.len() / heads) + 3) };
    let mut wide = vec![f32::NAN; strides.head * heads];
    for (i, &scale) in x.iter().enumerate() {
        wide[i / heads * strides.token + i % heads * strides.head] = scale;
    }
    (wide, strides)
}

/// Asserts that two tensors have the same bits; says how many elements differ and where the first is.
pub fn assert_bits<T: Copy, B: Eq + std::fmt::Debug>(what: &str, got: &[T], want: &[T], bits: impl Fn(T) -> B) {
    assert_eq!(got.len(), want.len(), "{what}");
    let wrong = got.iter().zip(want).filter(|&(&a, &b)| bits(a) != bits(b)).count();
    if let Some(i) = (0..got.len()).find(|&i| bits(got[i]) != bits(want[i])) {
        panic!("{what}: {wrong} of {} differ, first at {i}: {:?} instead of {:?}", got.len(), bits(got[i]), bits(want[i]));
    }
}

/// Asserts that every element is within `relative` of the wanted one's size plus `absolute`.
pub fn assert_close(what: &str, got: &[f32], want: &[f32], relative: f32, absolute: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (&a, &b)) in got.iter().zip(want).enumerate() {
        assert!((a - b).abs() <= relative * b.abs() + absolute, "{what} at {i}: {a} instead of {b}");
    }
}
