//! The capture of two retrieval heads (tests/data), as a batch of prefixes, and what a selection keeps of it.

use float8::F8E4M3;
use rayon::prelude::*;
use safetensors::SafeTensors;
use stem_attn::geometry::Geometry;
use stem_attn::kv::layout::{PageLayout, PagedTensors};
use stem_attn::{BlockLists, Guards, Schedule, StemConfig, fp8};

/// See tests/data/README.md. Embedded, so that a test binary runs anywhere.
const CAPTURE: &[u8] = include_bytes!("../data/retrieval_layer4_16k.safetensors");

/// Tokens of the prompt.
pub const TOKENS: usize = 16_384;
/// Query heads.
pub const HEADS: usize = 2;

/// Some query blocks of one long prompt. Each is a request of its own: 128 new tokens at the end of a prefix of the same pages.
pub struct Retrieval {
    /// Index of each query block in the prompt, ascending.
    pub blocks: Vec<usize>,
    /// `[blocks * 128, 2, 128]`.
    pub q: Vec<F8E4M3>,
    /// `[blocks * 128, 2]`.
    pub q_scale: Vec<f32>,
    /// `[16384, 1, 128]`.
    pub k: Vec<F8E4M3>,
    /// `[1]`.
    pub k_scale: Vec<f32>,
    /// Block of each question's source, and block of its answer.
    pub questions: Vec<(usize, usize)>,
}

/// What a selection keeps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kept {
    /// Questions of each head whose source is in the list of the block that must give the answer.
    pub sources: [usize; HEADS],
    /// Attention mass of each head, averaged over the queries of the capture.
    pub mass: [f64; HEADS],
}

impl Retrieval {
    /// Reads the capture.
    ///
    /// # Panics
    /// When the embedded file is not what its README says.
    pub fn load() -> Self {
        let file = SafeTensors::deserialize(CAPTURE).expect("the capture");
        let data = |name: &str| file.tensor(name).expect(name).data().to_vec();
        let codes = |name: &str| data(name).into_iter().map(F8E4M3::from_bits).collect();
        let words = |name: &str| -> Vec<[u8; 4]> { data(name).chunks_exact(4).map(|w| [w[0], w[1], w[2], w[3]]).collect() };
        let floats = |name: &str| words(name).into_iter().map(f32::from_le_bytes).collect();
        let block_of =
            |name: &str| -> Vec<usize> { words(name).into_iter().step_by(2).map(|w| i32::from_le_bytes(w) as usize / 128).collect() };
        Self {
            blocks: words("blocks").into_iter().map(|w| i32::from_le_bytes(w) as usize).collect(),
            q: codes("q"),
            q_scale: floats("q_scale"),
            k: codes("k"),
            k_scale: floats("k_scale"),
            questions: block_of("pos_source").into_iter().zip(block_of("pos_answer")).collect(),
        }
    }

    /// The batch: one request a query block.
    pub fn geometry(&self, config: &StemConfig) -> Geometry {
        let n = self.blocks.len() as i32;
        let q: Vec<i32> = (0..=n).map(|i| i * 128).collect();
        let mut kv = vec![0];
        kv.extend(self.blocks.iter().scan(0, |end, block| {
            *end += (block + 1) as i32 * 128;
            Some(*end)
        }));
        Geometry::new(&q, &kv, &vec![TOKENS as i32; n as usize], true, Some(config)).expect("a batch")
    }

    /// K in pages of 128 tokens, which all requests share. V is K: selection by probes does not read it.
    pub fn pages(&self) -> PagedTensors {
        let mut paged = PagedTensors::build(&self.k, &self.k, 1, &[0, TOKENS as i32], 128, PageLayout::Nhd, None).expect("pages");
        paged.table = paged.table.repeat(self.blocks.len());
        paged
    }

    /// Attention mass `[head][block][key block]` of each key block, averaged over the queries of a query block; 64 MFLOP a block.
    pub fn mass(&self) -> Vec<Vec<Vec<f64>>> {
        let keys: Vec<f32> = self.k.iter().map(|&k| fp8::decode(k)).collect();
        let scale = f64::from(self.k_scale[0]) / 128f64.sqrt();
        let of_row = |head: usize, i: usize| {
            let visible = (self.blocks[i] + 1) * 128;
            let mut mass = vec![0f64; visible / 128];
            for t in 0..128 {
                let at = (i * 128 + t) * HEADS + head;
                let query: Vec<f32> = self.q[at * 128..(at + 1) * 128].iter().map(|&q| fp8::decode(q)).collect();
                let seen = visible - 127 + t;
                let logit = |key: &[f32]| dot(&query, key) as f64 * scale * f64::from(self.q_scale[at]);
                let logits: Vec<f64> = keys.chunks_exact(128).take(seen).map(logit).collect();
                let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = logits.iter().map(|l| (l - largest).exp()).collect();
                let total: f64 = weights.iter().sum();
                for (mass, weights) in mass.iter_mut().zip(weights.chunks(128)) {
                    *mass += weights.iter().sum::<f64>() / total / 128.0;
                }
            }
            mass
        };
        (0..HEADS).map(|head| (0..self.blocks.len()).into_par_iter().map(|i| of_row(head, i)).collect()).collect()
    }

    /// What `lists` keep.
    pub fn kept(&self, lists: &BlockLists, mass: &[Vec<Vec<f64>>]) -> Kept {
        let mut kept = Kept { sources: [0; HEADS], mass: [0.0; HEADS] };
        for head in 0..HEADS {
            for &(source, answer) in &self.questions {
                let row = self.blocks.binary_search(&answer).expect("answers are in the capture");
                kept.sources[head] += usize::from(lists.row(head, row).contains(&(source as i32)));
            }
            for (row, mass) in mass[head].iter().enumerate() {
                kept.mass[head] += lists.row(head, row).iter().map(|&j| mass[j as usize]).sum::<f64>() / self.blocks.len() as f64;
            }
        }
        kept
    }
}

/// Uniform budgets of `blocks` key blocks, of which 4 sink and 4 window blocks are part: over the 128 rows of the prompt 18
/// blocks are 26 % of the causal pairs (17 would be less than a quarter), 11 are 16 %.
///
/// # Panics
/// When `blocks` is less than 9.
pub fn uniform(blocks: u32, config: StemConfig) -> StemConfig {
    let free = blocks.checked_sub(8).filter(|&n| n > 0).expect("room for more than the guards");
    // The guards on top of a budget without them is the guards inside one with them, whatever they rank.
    let schedule = Schedule::Ratio { ratio: 1.0 / 256.0, floor: free };
    StemConfig { schedule, alpha: 1.0, sink: 4, window: 4, guards: Guards::OnTop, ..config }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 16];
    for (a, b) in a.chunks_exact(16).zip(b.chunks_exact(16)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum()
}
