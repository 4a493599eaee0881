//! How far scores may be from the reference's because query sums are added in another way: an element whose true sum lies near a
//! rounding edge of bf16 may come out a unit apart.

use float8::F8E4M3;
use half::bf16;
use stem_attn::geometry::Geometry;
use stem_attn::reference::{self, ScoreInputs};
use stem_attn::{OamConfig, fp8};
use stem_attn_kernels::config::{BLOCK, GROUPS, HEAD_DIM, SUM_LEN};

/// What two ways of adding a group may differ by, as parts of its terms' magnitudes: 2^-19 on the tensor core, eight roundings to f32
/// on the CPU.
const TERMS: f64 = 1.0 / (1u64 << 19) as f64 + 8.0 / (1u64 << 24) as f64;
/// As parts of the group's largest scale times the magnitudes of its codes: what the two f16 of a scale leave of it.
const SCALES: f64 = 1.0 / (1u64 << 39) as f64;

/// By how much each query sum may differ from the reference's, in the order of `reference::query_sums`.
fn query_sums(q: &[F8E4M3], q_scale: &[f32], hq: usize, geometry: &Geometry) -> Vec<bf16> {
    let total_qb = geometry.total_qb();
    let mut slack = vec![bf16::ZERO; hq * total_qb * SUM_LEN];
    for (i, slack) in slack.chunks_mut(SUM_LEN).enumerate() {
        let (head, row) = (i / total_qb, i % total_qb);
        let Some((block, request)) = geometry.row(row) else { continue };
        let mut sums = vec![[0f64; 3]; SUM_LEN];
        let mut largest = [0f64; GROUPS];
        let history = (request.kv_len - request.q_len) as usize;
        for t in geometry.tokens(row) {
            let (at, group) = ((request.q_start as usize + t) * hq + head, (history + t - block.block as usize * BLOCK) % GROUPS);
            let scale = f64::from(q_scale[at]);
            largest[group] = largest[group].max(scale.abs());
            for ([sum, terms, codes], &code) in sums[group * HEAD_DIM..].iter_mut().zip(&q[at * HEAD_DIM..][..HEAD_DIM]) {
                let code = f64::from(fp8::decode(code));
                *sum += scale * code;
                *terms += (scale * code).abs();
                *codes += code.abs();
            }
        }
        for (d, (slack, [sum, terms, codes])) in slack.iter_mut().zip(sums).enumerate() {
            let error = terms * TERMS + codes * largest[d / HEAD_DIM] * SCALES;
            let edges = [sum - error, sum + error].map(|x| bf16::from_f64(x).to_f32());
            // Neighbours among bf16, or nearly: their distance is one, too.
            *slack = bf16::from_f32(edges[1] - edges[0]);
        }
    }
    slack
}

/// By how much each of the scores that `inputs` lead to may differ, before they are rounded, in the order of `reference::scores`.
///
/// # Panics
/// Where the inputs do not fit the geometry.
pub fn scores(q: &[F8E4M3], q_scale: &[f32], inputs: &ScoreInputs<'_>, geometry: &Geometry, oam: &OamConfig) -> Vec<f32> {
    let slack = query_sums(q, q_scale, inputs.hq, geometry);
    let magnitudes: Vec<bf16> = inputs.k_sums.iter().map(|x| bf16::from_bits(x.to_bits() & 0x7fff)).collect();
    let inputs = ScoreInputs { q_sums: &slack, k_sums: &magnitudes, v_bias: &vec![0.0; inputs.v_bias.len()], ..*inputs };
    let oam = OamConfig { qk_scale: oam.qk_scale.abs(), round_bf16: false, ..*oam };
    reference::scores(&inputs, geometry, &oam).expect("inputs of the geometry")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    #[test]
    fn few_sums_are_near_an_edge_and_integers_are_not() {
        let rng = &mut StdRng::seed_from_u64(3);
        let geometry = Geometry::new(&[0, 300], &[0, 500], &[500], true, None).expect("a geometry");
        let q: Vec<F8E4M3> = (0..300 * HEAD_DIM).map(|_| fp8::encode(rng.random_range(-9.0..9.0))).collect();
        let scales: Vec<f32> = (0..300).map(|_| rng.random_range(0.01..0.3)).collect();
        let slack = query_sums(&q, &scales, 1, &geometry);
        let near = slack.iter().filter(|x| **x != bf16::ZERO).count();
        assert!((1..slack.len() / 100).contains(&near), "{near} of {}", slack.len());
        let whole: Vec<F8E4M3> = q.iter().map(|&x| fp8::encode(fp8::decode(x).round())).collect();
        // Where they cancel, what is left of the true sum may be anything as small as its error.
        assert!(query_sums(&whole, &[0.5; 300], 1, &geometry).iter().all(|x| x.to_f32() < 1e-3));
    }
}
