//! Random batches, owned, with the views the library takes.

use float8::F8E4M3;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::StandardNormal;
use stem_attn::kv::layout::{PageLayout, PagedTensors};
use stem_attn::{Geometry, PrefillInputs, StemConfig, fp8};

/// A ragged batch of N(0, 1) queries, keys and values in e4m3, with scales of every kind.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Query heads.
    pub hq: usize,
    /// KV heads.
    pub hkv: usize,
    /// `[total_q, hq, 128]`.
    pub q: Vec<F8E4M3>,
    /// `[total_q, hq]`.
    pub q_scale: Vec<f32>,
    /// `[total_kv, hkv, 128]`.
    pub k: Vec<F8E4M3>,
    /// `[total_kv, hkv, 128]`.
    pub v: Vec<F8E4M3>,
    /// `[hkv]`, or `[total_kv, hkv]`.
    pub k_scale: Vec<f32>,
    /// `[hkv]`.
    pub v_scale: Vec<f32>,
    /// `[batch + 1]`.
    pub cu_seqlens_q: Vec<i32>,
    /// `[batch + 1]`.
    pub cu_seqlens_kv: Vec<i32>,
    /// `[batch]`.
    pub prompt_lens: Vec<i32>,
}

/// Offsets of consecutive lengths.
pub fn offsets(lens: impl IntoIterator<Item = usize>) -> Vec<i32> {
    let mut offsets = vec![0];
    for len in lens {
        offsets.push(offsets[offsets.len() - 1] + len as i32);
    }
    offsets
}

impl Batch {
    /// A batch with requests of (new tokens, visible KV tokens); the prompt ends with the KV.
    pub fn random(seed: u64, hq: usize, hkv: usize, lens: &[(usize, usize)]) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let total_q: usize = lens.iter().map(|l| l.0).sum();
        let total_kv: usize = lens.iter().map(|l| l.1).sum();
        let mut normal = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.sample::<f32, _>(StandardNormal)).collect() };
        let (q, q_scale) = fp8::quantize_per_token_head("q", &normal(total_q * hq * 128)).expect("finite");
        let quantize = |x: &[f32], scale: f32| -> Vec<F8E4M3> { x.iter().map(|x| fp8::encode(x / scale)).collect() };
        let k = quantize(&normal(total_kv * hkv * 128), 0.01);
        let v = quantize(&normal(total_kv * hkv * 128), 0.02);
        Self {
            hq,
            hkv,
            q,
            q_scale,
            k,
            v,
            k_scale: (0..hkv).map(|h| 0.01 * (1.0 + h as f32 / 8.0)).collect(),
            v_scale: (0..hkv).map(|h| 0.02 * (1.0 + h as f32 / 4.0)).collect(),
            cu_seqlens_q: offsets(lens.iter().map(|l| l.0)),
            cu_seqlens_kv: offsets(lens.iter().map(|l| l.1)),
            prompt_lens: lens.iter().map(|l| l.1 as i32).collect(),
        }
    }

    /// The borrowed form.
    pub fn inputs(&self) -> PrefillInputs<'_> {
        PrefillInputs {
            q: &self.q,
            q_scale: &self.q_scale,
            k: &self.k,
            v: &self.v,
            k_scale: &self.k_scale,
            v_scale: &self.v_scale,
            hq: self.hq,
            hkv: self.hkv,
            cu_seqlens_q: &self.cu_seqlens_q,
            cu_seqlens_kv: &self.cu_seqlens_kv,
            prompt_lens: &self.prompt_lens,
        }
    }

    /// Its blocks.
    pub fn geometry(&self, causal: bool, config: Option<&StemConfig>) -> Geometry {
        Geometry::new(&self.cu_seqlens_q, &self.cu_seqlens_kv, &self.prompt_lens, causal, config).expect("a valid batch")
    }

    /// With a scale for every key, around its head's.
    pub fn with_token_scales(self, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let tokens = self.k.len() / 128;
        Self { k_scale: (0..tokens).map(|i| self.k_scale[i % self.hkv] * rng.random_range(0.5..2.0)).collect(), ..self }
    }

    /// Its K and V in pages.
    pub fn paged(&self, page_size: usize, layout: PageLayout, order: Option<&[i32]>) -> PagedTensors {
        let paged = PagedTensors::build(&self.k, &self.v, self.hkv, &self.cu_seqlens_kv, page_size, layout, order).expect("a valid batch");
        match self.inputs().k_token_scale() {
            Some(scales) => paged.with_token_scales(scales, &self.cu_seqlens_kv, layout, false).expect("a scale for every key"),
            None => paged,
        }
    }
}
