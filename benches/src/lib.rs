//! Inputs of the benches: random N(0, 1) data in e4m3, drawn once per shape.

use float8::F8E4M3;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rand_distr::StandardNormal;
use stem_attn::{PrefillInputs, fp8};

/// One request whose tokens are all new; all scales are 1.
pub struct Layer {
    q: Vec<F8E4M3>,
    k: Vec<F8E4M3>,
    v: Vec<F8E4M3>,
    q_scale: Vec<f32>,
    lens: [i32; 2],
    heads: [usize; 2],
}

impl Layer {
    /// `tokens` tokens, `hq` query heads on `hkv` KV heads.
    pub fn random(tokens: usize, hq: usize, hkv: usize) -> Self {
        let mut rng = StdRng::seed_from_u64(tokens as u64);
        let mut draw = |heads: usize| (0..tokens * heads * 128).map(|_| fp8::encode(rng.sample(StandardNormal))).collect();
        let (q, k, v) = (draw(hq), draw(hkv), draw(hkv));
        Self { q, k, v, q_scale: vec![1.0; tokens * hq], lens: [0, tokens as i32], heads: [hq, hkv] }
    }

    /// The form that backends take.
    pub fn inputs(&self) -> PrefillInputs<'_> {
        PrefillInputs {
            q: &self.q,
            q_scale: &self.q_scale,
            k: &self.k,
            v: &self.v,
            k_scale: &[1.0],
            v_scale: &[1.0],
            hq: self.heads[0],
            hkv: self.heads[1],
            cu_seqlens_q: &self.lens,
            cu_seqlens_kv: &self.lens,
            prompt_lens: &self.lens[1..],
        }
    }
}
