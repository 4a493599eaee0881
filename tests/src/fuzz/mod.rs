//! Random attention problems of every shape and configuration, and the check of a sample of their rows.
//!
//! A case is its seed. What it draws: ragged batches with empty requests and history that is aligned or not, head counts and
//! ratios, page sizes, strides of every tensor, scales of every kind, causal or not, every visible block or lists (given as
//! lists, as a byte mask or as compressed rows), the log-sum-exp or none.

pub mod cache;
pub mod cuda;

use crate::batch::offsets;
use crate::oracle::attend_row;
use cache::{Cache, OwnScales, Source, normal_codes};
use float8::F8E4M3;
use half::bf16;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::ops::Range;
use stem_attn::mask::Csr;
use stem_attn::ops::{RowStrides, ScaleStrides};
use stem_attn::reference::{self, AttendInputs};
use stem_attn::{BlockLists, Geometry};

/// Tokens of a request.
const LONGEST: usize = 3000;
/// Query rows over all heads: bounds the time and memory of a case.
const MOST_ROWS: usize = 40_000;
/// Rows of a case that are checked.
const SAMPLE: usize = 40;

/// How the blocks are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Every visible block.
    Dense,
    /// Index lists.
    Lists,
    /// A byte mask with so many columns to spare.
    Mask(usize),
    /// Compressed sparse rows, with offsets of 64 bits or 32.
    Csr(bool),
}

/// A problem.
#[derive(Debug)]
pub struct Case {
    /// What it was drawn from.
    pub seed: u64,
    /// Query heads.
    pub hq: usize,
    /// KV heads.
    pub hkv: usize,
    /// New tokens and visible tokens of each request.
    pub lens: Vec<(usize, usize)>,
    /// Whether keys after a query are masked.
    pub causal: bool,
    /// How the blocks are given.
    pub form: Form,
    /// Whether the log-sum-exp is asked for.
    pub lse: bool,
    /// `[total_q, hq, 128]`, packed.
    pub q: Vec<F8E4M3>,
    /// `[total_q, hq]`.
    pub q_scale: Vec<f32>,
    /// `[1]` or `[hkv]`.
    pub k_scale: Vec<f32>,
    /// `[1]` or `[hkv]`.
    pub v_scale: Vec<f32>,
    /// Multiplies the logits.
    pub softmax_scale: f32,
    /// K and V in pages.
    pub cache: Cache,
    /// Strides of q and out.
    pub rows: [Option<RowStrides>; 2],
    /// Strides of q's scales.
    pub scale_rows: Option<ScaleStrides>,
    /// The batch's blocks.
    pub geometry: Geometry,
    /// Blocks of every row.
    pub lists: BlockLists,
    k: Vec<F8E4M3>,
    v: Vec<F8E4M3>,
    own: Vec<f32>,
}

/// A request of (new, visible) tokens.
fn request(rng: &mut StdRng) -> (usize, usize) {
    let kv = match rng.random_range(0..8) {
        0 => rng.random_range(0..3),
        1 => 128 * rng.random_range(0..6) + [0, 1, 127][rng.random_range(0..3)],
        2..5 => rng.random_range(0..400),
        _ => rng.random_range(0..=LONGEST),
    };
    let q = match rng.random_range(0..6) {
        0 => 0,
        1 => kv.min(1),
        2 => kv,
        // History that is a multiple of 128.
        3 => kv - (kv / 128 * rng.random_range(0..4) / 4) * 128,
        _ => rng.random_range(0..=kv),
    };
    (q, kv)
}

/// Scales around `size`, one for all heads or one each.
fn head_scales(rng: &mut StdRng, hkv: usize, size: f32) -> Vec<f32> {
    let n = if rng.random() { hkv } else { 1 };
    (0..n).map(|_| size * rng.random_range(0.5..2.0)).collect()
}

/// Strides of a `[tokens, heads, 128]` tensor, `None` when packed: heads or tokens outermost, rows apart by multiples of
/// `vector` elements.
fn row_strides(rng: &mut StdRng, tokens: usize, heads: usize, vector: usize) -> Option<RowStrides> {
    let mut gap = || vector * rng.random_range(0..3);
    let (inner, outer) = (128 + gap(), gap());
    match rng.random_range(0..3) {
        0 => None,
        1 => Some(RowStrides { token: heads * inner + outer, head: inner }),
        _ => Some(RowStrides { token: inner, head: tokens.max(1) * inner + outer }),
    }
}

/// The same of `[tokens, heads]` scales.
fn scale_strides(rng: &mut StdRng, tokens: usize, heads: usize) -> Option<ScaleStrides> {
    let (inner, outer) = (rng.random_range(1..3), rng.random_range(0..3));
    match rng.random_range(0..3) {
        0 => None,
        1 => Some(ScaleStrides { token: heads * inner + outer, head: inner }),
        _ => Some(ScaleStrides { token: inner, head: tokens.max(1) * inner + outer }),
    }
}

impl Case {
    /// The problem of a seed.
    pub fn new(seed: u64) -> Self {
        let rng = &mut StdRng::seed_from_u64(seed);
        let hkv = rng.random_range(1..=4);
        let hq = hkv * [1, 2, 3, 4, 5, 7, 8, 16][rng.random_range(0..8)];
        let batch = rng.random_range(0..=5);
        let mut lens: Vec<(usize, usize)> = (0..batch).map(|_| request(rng)).collect();
        let mut rows = 0;
        for (q, _) in &mut lens {
            *q = (*q).min((MOST_ROWS - rows) / hq);
            rows += *q * hq;
        }
        let kv_lens: Vec<usize> = lens.iter().map(|l| l.1).collect();
        let (total_q, total_kv) = (lens.iter().map(|l| l.0).sum::<usize>(), kv_lens.iter().sum::<usize>());
        let causal = rng.random_range(0..4) > 0;
        // Logits of N(0, sharpness^2), but for the heads' and tokens' own scales.
        let sharpness = [0.1, 0.5, 1.0, 2.0][rng.random_range(0..4)];
        let (k, v) = (normal_codes(rng, total_kv * hkv * 128, 8.0), normal_codes(rng, total_kv * hkv * 128, 32.0));
        let own: Vec<f32> = (0..total_kv * hkv).map(|_| rng.random_range(0.5..1.5)).collect();
        let scales = [OwnScales::None, OwnScales::Separate, OwnScales::InPages][rng.random_range(0..3)];
        let source = Source { k: &k, v: &v, own: &own, scales, hkv, kv_lens: &kv_lens };
        let page_size = [16, 32, 64, 128, 256][rng.random_range(0..5)];
        let cache = Cache::random(rng, &source, page_size);
        let (cu_q, cu_kv) = (offsets(lens.iter().map(|l| l.0)), offsets(kv_lens.iter().copied()));
        let prompts: Vec<i32> = kv_lens.iter().map(|&n| n as i32).collect();
        let geometry = Geometry::new(&cu_q, &cu_kv, &prompts, causal, None).expect("a batch");
        let form = match rng.random_range(0..5) {
            0 | 1 => Form::Dense,
            2 => Form::Lists,
            3 => Form::Mask(rng.random_range(0..40)),
            _ => Form::Csr(rng.random()),
        };
        let lists = Self::lists(rng, hq, &geometry, form);
        Self {
            seed,
            hq,
            hkv,
            causal,
            form,
            lse: rng.random(),
            q: normal_codes(rng, total_q * hq * 128, 16.0),
            q_scale: (0..total_q * hq).map(|_| sharpness / 16.0 * rng.random_range(0.5..1.5)).collect(),
            k_scale: head_scales(rng, hkv, 0.125),
            v_scale: head_scales(rng, hkv, 0.03),
            softmax_scale: (if rng.random() { 1.0 } else { 1.3 }) / 128f32.sqrt(),
            rows: [row_strides(rng, total_q, hq, 16), row_strides(rng, total_q, hq, 8)],
            scale_rows: scale_strides(rng, total_q, hq),
            own: if scales == OwnScales::None { vec![1.0; own.len()] } else { own },
            lens,
            cache,
            geometry,
            lists,
            k,
            v,
        }
    }

    /// Every visible block, or lists of random lengths with empty ones among them.
    fn lists(rng: &mut StdRng, hq: usize, geometry: &Geometry, form: Form) -> BlockLists {
        if form == Form::Dense {
            return BlockLists::dense(hq, geometry).expect("lists");
        }
        let rows: Vec<Vec<i32>> = (0..hq * geometry.total_qb())
            .map(|i| {
                let share = [0.0, 0.1, 0.5, 0.9, 1.0][rng.random_range(0..5)];
                (0..geometry.candidates(i % geometry.total_qb()) as i32).filter(|_| rng.random_bool(share)).collect()
            })
            .collect();
        BlockLists::from_rows(hq, geometry.total_qb(), rng.random_range(1..4), &rows).expect("lists")
    }

    /// The lists in compressed form: rows in a random order, some indices twice, and some that no row can see.
    pub fn csr(&self) -> Csr {
        use rand::seq::SliceRandom;
        let rng = &mut StdRng::seed_from_u64(!self.seed);
        let mut csr = Csr { indptr: vec![0], indices: Vec::new() };
        for i in 0..self.hq * self.geometry.total_qb() {
            let row = i % self.geometry.total_qb();
            let mut list = self.lists.row(i / self.geometry.total_qb(), row).to_vec();
            // No more than the row can see: the kernel reads no further.
            while list.len() < self.geometry.candidates(row) && rng.random_bool(0.3) {
                let other = [i32::MIN, -1, self.geometry.candidates(row) as i32, i32::MAX];
                list.push(if list.is_empty() || rng.random() {
                    other[rng.random_range(0..4)]
                } else {
                    list[rng.random_range(0..list.len())]
                });
            }
            list.shuffle(rng);
            csr.indices.extend(list);
            csr.indptr.push(csr.indices.len() as i64);
        }
        csr
    }

    /// The problem in a line.
    pub fn describe(&self) -> String {
        let Self { seed, hq, hkv, lens, causal, form, lse, rows, scale_rows, .. } = self;
        let desc = self.cache.desc;
        format!(
            "seed {seed}: {hq}/{hkv} heads, lengths {lens:?}, causal {causal}, {form:?}, lse {lse}, q and out {rows:?}, q_scale {scale_rows:?}, k_scale [{}], v_scale [{}], {desc:?}",
            self.k_scale.len(),
            self.v_scale.len()
        )
    }

    /// The CPU backend's output and log-sum-exp, `[total_q, hq, 128]` and `[total_q, hq]`.
    ///
    /// # Errors
    /// What the backend says.
    pub fn run_cpu(&self, lists: Option<&BlockLists>) -> Result<(Vec<bf16>, Vec<f32>), String> {
        let inputs = AttendInputs {
            q: &self.q,
            q_scale: &self.q_scale,
            kv: self.cache.view(),
            k_scale: &self.k_scale,
            v_scale: &self.v_scale,
            hq: self.hq,
            geometry: &self.geometry,
            lists,
            softmax_scale: f64::from(self.softmax_scale),
        };
        let done = reference::attend_model(&inputs).map_err(|e| e.to_string())?;
        Ok((done.out, done.lse.into_iter().map(|lse| lse as f32).collect()))
    }

    /// Compares a sample of rows with the definition. Gives the largest error as a share of what is allowed.
    ///
    /// # Errors
    /// The first row that is wrong.
    pub fn check(&self, out: &[bf16], lse: Option<&[f32]>) -> Result<f64, String> {
        let rng = &mut StdRng::seed_from_u64(self.seed ^ 0x5eed);
        let mut worst = 0f64;
        for row in 0..self.geometry.total_qb() {
            let (block, request) = self.geometry.row(row).ok_or("no such row")?;
            let tokens = self.geometry.tokens(row);
            let n = if tokens.is_empty() { 0 } else { SAMPLE.div_ceil(self.geometry.total_qb()) };
            for i in 0..n {
                // The first and the last of a block among them.
                let t = [tokens.start, tokens.end - 1, rng.random_range(tokens.clone())][i.min(2)];
                let head = rng.random_range(0..self.hq);
                let at = (request.q_start as usize + t) * self.hq + head;
                let position = (request.kv_len - request.q_len) as usize + t;
                let exact = self.exact(block.request as usize, row, at, position);
                let got = out.get(at * 128..(at + 1) * 128).ok_or("short output")?;
                let share = exact
                    .check(got, lse.map(|lse| lse[at]))
                    .map_err(|e| format!("{}\nrequest {}, token {t}, head {head}: {e}", self.describe(), block.request))?;
                worst = worst.max(share);
            }
        }
        Ok(worst)
    }

    /// The definition's result for row `at` of q, which stands at `position` of its request.
    fn exact(&self, request: usize, row: usize, at: usize, position: usize) -> crate::oracle::Exact {
        let (head, kv_head) = (at % self.hq, at % self.hq / (self.hq / self.hkv));
        let first: usize = self.lens[..request].iter().map(|l| l.1).sum();
        let kv_len = self.lens[request].1;
        let end = if self.causal { position + 1 } else { kv_len };
        let blocks = self.lists.row(head, row).iter().map(|&j| span(j as usize, end.min(kv_len)));
        let keys: Vec<usize> = blocks.flatten().map(|t| (first + t) * self.hkv + kv_head).collect();
        let rows = keys.iter().map(|&key| (&self.k[key * 128..][..128], &self.v[key * 128..][..128], f64::from(self.own[key])));
        let of = |scales: &[f32]| f64::from(scales[if scales.len() == 1 { 0 } else { kv_head }]);
        let scale = f64::from(self.q_scale[at]) * of(&self.k_scale) * f64::from(self.softmax_scale);
        attend_row(&self.q[at * 128..][..128], scale, of(&self.v_scale), rows)
    }
}

/// Tokens of key block `j` that lie below `end`.
fn span(j: usize, end: usize) -> Range<usize> {
    (j * 128).min(end)..((j + 1) * 128).min(end)
}
