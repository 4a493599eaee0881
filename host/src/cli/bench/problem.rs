//! Random tensors, permuted pages and random block lists of one benchmark.

use crate::cli::work::Shape;
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::kv::layout::{PageLayout, PagedTensors};
use crate::mask::BlockLists;
use crate::tensor::PrefillInputs;
use float8::F8E4M3;
use half::bf16;
use rand::seq::{SliceRandom, index};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rand_distr::StandardNormal;
use rayon::prelude::*;
use stem_attn_kernels::config::HEAD_DIM;

/// Random draws from which every tensor is filled.
const POOL: usize = 1 << 16;

/// One request of random data: q, k and v are N(0, 1) rounded to e4m3 with all scales 1, so logits `q.k / sqrt(128)` are
/// about N(0, 1) too.
pub struct Problem {
    pub shape: Shape,
    pub q: Vec<F8E4M3>,
    pub q_scale: Vec<f32>,
    pub k: Vec<F8E4M3>,
    pub v: Vec<F8E4M3>,
    /// The same K and V in pages of a random order.
    pub paged: PagedTensors,
    cu_q: [i32; 2],
    cu_kv: [i32; 2],
}

impl Problem {
    /// Draws a problem; the same seed gives the same one.
    pub fn new(shape: Shape, page_size: usize, seed: u64) -> Result<Self> {
        let mut rng = StdRng::seed_from_u64(seed);
        let pool: Vec<F8E4M3> = (0..POOL).map(|_| crate::fp8::encode(rng.sample(StandardNormal))).collect();
        let (q, k, v) = (
            fill("q", &pool, shape.tokens * shape.hq, rng.random())?,
            fill("k", &pool, shape.kv_tokens * shape.hkv, rng.random())?,
            fill("v", &pool, shape.kv_tokens * shape.hkv, rng.random())?,
        );
        let mut order: Vec<i32> = (0..shape.kv_tokens.div_ceil(page_size) as i32).collect();
        order.shuffle(&mut rng);
        let (cu_q, cu_kv) = ([0, shape.tokens as i32], [0, shape.kv_tokens as i32]);
        let paged = PagedTensors::build(&k, &v, shape.hkv, &cu_kv, page_size, PageLayout::Nhd, Some(&order))?;
        Ok(Self { shape, q_scale: vec![1.0; shape.tokens * shape.hq], q, k, v, paged, cu_q, cu_kv })
    }

    /// The same keys and values with the last `tokens` queries only: a chunk that continues the rest.
    pub fn last(&self, tokens: usize) -> Self {
        let first = self.shape.tokens.saturating_sub(tokens) * self.shape.hq;
        let tokens = tokens.min(self.shape.tokens);
        Self {
            shape: Shape { tokens, ..self.shape },
            q: self.q[first * HEAD_DIM..].to_vec(),
            q_scale: self.q_scale[first..].to_vec(),
            k: self.k.clone(),
            v: self.v.clone(),
            paged: self.paged.clone(),
            cu_q: [0, tokens as i32],
            cu_kv: self.cu_kv,
        }
    }

    /// The packed form.
    pub fn inputs(&self) -> PrefillInputs<'_> {
        PrefillInputs {
            q: &self.q,
            q_scale: &self.q_scale,
            k: &self.k,
            v: &self.v,
            k_scale: &[1.0],
            v_scale: &[1.0],
            hq: self.shape.hq,
            hkv: self.shape.hkv,
            cu_seqlens_q: &self.cu_q,
            cu_seqlens_kv: &self.cu_kv,
            prompt_lens: std::slice::from_ref(&self.cu_kv[1]),
        }
    }

    /// New K and V for `append_kv`: bf16 `[tokens, hkv, 128]`, values that e4m3 has to round.
    pub fn new_rows(&self) -> (Vec<bf16>, Vec<bf16>) {
        let rows = |from: &[F8E4M3], factor: f32| {
            let codes = from.par_iter().take(self.shape.tokens * self.shape.hkv * HEAD_DIM);
            codes.map(|&code| bf16::from_f32(factor * crate::fp8::decode(code))).collect()
        };
        (rows(&self.v, 1.37), rows(&self.k, -0.71))
    }

    /// Blocks and, with a configuration, budgets.
    pub fn geometry(&self, config: Option<&crate::StemConfig>) -> Result<Geometry> {
        Geometry::new(&self.cu_q, &self.cu_kv, &self.cu_kv[1..], true, config)
    }
}

/// `rows` rows of 128 draws. Four 16-bit indices a random word; each row has its own generator, so threads do not matter.
fn fill(name: &'static str, pool: &[F8E4M3], rows: usize, seed: u64) -> Result<Vec<F8E4M3>> {
    let mut codes = Vec::new();
    let bytes = rows * HEAD_DIM;
    codes.try_reserve_exact(bytes).map_err(|_| Error::shape(name, "a size that memory holds", format!("{bytes} bytes")))?;
    codes.resize(bytes, F8E4M3::from_bits(0));
    codes.par_chunks_mut(HEAD_DIM).enumerate().for_each(|(row, codes)| {
        let mut rng = StdRng::seed_from_u64(seed ^ (row as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        for codes in codes.chunks_mut(4) {
            let word: u64 = rng.random();
            codes.iter_mut().enumerate().for_each(|(i, code)| *code = pool[(word >> (16 * i)) as usize % POOL]);
        }
    });
    Ok(codes)
}

/// Lists of random blocks: each row keeps its diagonal and, drawn without replacement, as many others as make the kept
/// share of all causal blocks `1 - skip`. The rounding of a row is carried to the next, so the share is exact to one block
/// a head (unless the diagonals alone are more).
pub fn random_lists(geometry: &Geometry, hq: usize, skip: f64, seed: u64) -> Result<BlockLists> {
    let total_qb = geometry.total_qb();
    let mut rows = Vec::with_capacity(hq * total_qb);
    for head in 0..hq {
        let mut rng = StdRng::seed_from_u64(seed ^ ((head as u64) << 32));
        let mut owed = 0.0;
        for row in 0..total_qb {
            let candidates = geometry.candidates(row);
            owed += (1.0 - skip) * candidates as f64;
            let keep = (owed.round().max(1.0) as usize).min(candidates);
            owed -= keep as f64;
            let mut list: Vec<i32> = index::sample(&mut rng, candidates - 1, keep - 1).into_iter().map(|j| j as i32).collect();
            list.push(candidates as i32 - 1);
            list.sort_unstable();
            rows.push(list);
        }
    }
    BlockLists::from_rows(hq, total_qb, 1, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn share_of_random_lists_is_exact_and_the_diagonal_stays() {
        for (tokens, history, skip) in [(4096, 0, 0.5), (4096, 0, 0.8), (1000, 5000, 0.9), (128, 0, 0.5), (2048, 0, 0.0)] {
            let shape = Shape { tokens, kv_tokens: tokens + history, hq: 3, hkv: 1 };
            let geometry = shape.geometry().unwrap();
            let lists = random_lists(&geometry, 3, skip, 7).unwrap();
            lists.validate(3, &geometry).unwrap();
            for row in 0..shape.qb() {
                assert_eq!(lists.row(1, row).last(), Some(&((shape.first_block() + row) as i32)));
            }
            let wanted = (1.0 - skip) * shape.causal_blocks() as f64;
            let kept = lists.kept() as f64 / 3.0;
            assert!((kept - wanted.max(shape.qb() as f64)).abs() <= 1.0, "{kept} of {wanted}");
        }
    }

    #[test]
    fn a_chunk_has_the_last_queries_and_every_key() {
        let shape = Shape { tokens: 300, kv_tokens: 500, hq: 2, hkv: 1 };
        let problem = Problem::new(shape, 64, 3).unwrap();
        let chunk = problem.last(70);
        assert_eq!((chunk.shape, chunk.q_scale.len()), (Shape { tokens: 70, ..shape }, 140));
        assert!(chunk.q == problem.q[230 * 2 * HEAD_DIM..] && chunk.k == problem.k && chunk.paged.table == problem.paged.table);
        chunk.inputs().validate(true).unwrap();
        assert_eq!(problem.last(300).shape, shape);
    }

    #[test]
    fn data_is_normal_and_repeats() {
        let shape = Shape { tokens: 300, kv_tokens: 500, hq: 2, hkv: 1 };
        let problem = Problem::new(shape, 64, 3).unwrap();
        let values: Vec<f64> = problem.q.iter().map(|c| c.to_f64()).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.03, "{mean} {variance}");
        assert!(problem.q == Problem::new(shape, 64, 3).unwrap().q);
        assert!(problem.q != Problem::new(shape, 64, 4).unwrap().q);
        assert_ne!(problem.paged.table[..8], [0, 1, 2, 3, 4, 5, 6, 7]);
        problem.inputs().validate(true).unwrap();
    }
}
