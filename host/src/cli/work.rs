//! Shape of one request and the work in it. FLOPs count visible (query, key) pairs only: 2 x 128 for q.k and 2 x 128
//! for P.V of each, so what a kernel computes above the diagonal of a diagonal block is not credited.

use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::mask::BlockLists;
use stem_attn_kernels::config::{BLOCK, HEAD_DIM};

/// One causal request: the last `tokens` of `kv_tokens` are queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// New tokens T.
    pub tokens: usize,
    /// Visible tokens Tk, at least T.
    pub kv_tokens: usize,
    /// Query heads.
    pub hq: usize,
    /// KV heads.
    pub hkv: usize,
}

impl Shape {
    /// Tokens before the first query.
    pub fn history(&self) -> usize {
        self.kv_tokens.saturating_sub(self.tokens)
    }

    /// Absolute index of the first query block.
    pub fn first_block(&self) -> usize {
        self.history() / BLOCK
    }

    /// Visible tokens of the blocks with a new token.
    pub fn new_block_tokens(&self) -> usize {
        if self.tokens == 0 { 0 } else { self.kv_tokens - self.first_block() * BLOCK }
    }

    /// Key blocks.
    pub fn kb(&self) -> usize {
        self.kv_tokens.div_ceil(BLOCK)
    }

    /// Query blocks, cut at absolute multiples of 128.
    pub fn qb(&self) -> usize {
        if self.tokens == 0 { 0 } else { self.kb() - self.first_block() }
    }

    /// The library's form of it, without budgets.
    pub fn geometry(&self) -> Result<Geometry> {
        let length = |name, n: usize| i32::try_from(n).map_err(|_| Error::shape(name, "at most 2,147,483,647 tokens", n));
        let (q, kv) = (length("q", self.tokens)?, length("k", self.kv_tokens)?);
        Geometry::new(&[0, q], &[0, kv], &[kv], true, None)
    }

    /// Query tokens of block row `row` as absolute positions.
    pub fn row_tokens(&self, row: usize) -> std::ops::Range<usize> {
        let block = self.first_block() + row;
        (block * BLOCK).max(self.history())..((block + 1) * BLOCK).min(self.kv_tokens)
    }

    /// (query block, key block) pairs of one head with a visible pair.
    pub fn causal_blocks(&self) -> usize {
        (0..self.qb()).map(|row| self.first_block() + row + 1).sum()
    }

    /// Visible (query, key) pairs over all heads.
    pub fn visible_pairs(&self) -> u64 {
        let per_head: u64 = (self.history()..self.kv_tokens).map(|at| at as u64 + 1).sum();
        per_head * self.hq as u64
    }

    /// Visible pairs inside the selected blocks, over all heads.
    pub fn selected_pairs(&self, lists: &BlockLists) -> u64 {
        let mut pairs = 0;
        for head in 0..self.hq.min(lists.hq) {
            for row in 0..self.qb().min(lists.total_qb) {
                let tokens = self.row_tokens(row);
                for &block in lists.row(head, row) {
                    pairs += pairs_in(&tokens, block.max(0) as usize);
                }
            }
        }
        pairs
    }

    /// Kept blocks over all heads, and their share of the causal blocks (1 when there are none).
    pub fn kept(&self, lists: &BlockLists) -> (usize, f64) {
        let kept: usize = lists.counts.iter().map(|&n| n.max(0) as usize).sum();
        let all = self.causal_blocks() * self.hq;
        (kept, if all == 0 { 1.0 } else { kept as f64 / all as f64 })
    }
}

fn pairs_in(tokens: &std::ops::Range<usize>, block: usize) -> u64 {
    let first = block * BLOCK;
    if first + BLOCK <= tokens.start {
        return (tokens.len() * BLOCK) as u64;
    }
    tokens.clone().map(|at| (at + 1).saturating_sub(first).min(BLOCK) as u64).sum()
}

/// TFLOP/s of `pairs` visible pairs in `ms` milliseconds.
pub fn tflops(pairs: u64, ms: f64) -> f64 {
    if ms > 0.0 { (4 * HEAD_DIM) as f64 * pairs as f64 / (ms * 1e9) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_blocks_selected_is_all_visible_pairs() {
        for (tokens, kv_tokens) in [(0, 5), (1, 1), (127, 127), (128, 128), (129, 129), (300, 1000), (1, 4097), (130, 256)] {
            let g = Shape { tokens, kv_tokens, hq: 4, hkv: 2 };
            let lists = BlockLists::dense(g.hq, &g.geometry().unwrap()).unwrap();
            assert_eq!(g.selected_pairs(&lists), g.visible_pairs(), "{tokens} of {kv_tokens}");
            assert_eq!(g.kept(&lists).1, 1.0);
        }
    }

    #[test]
    fn counts_of_a_small_case() {
        let g = Shape { tokens: 256, kv_tokens: 256, hq: 1, hkv: 1 };
        assert_eq!((g.qb(), g.kb(), g.causal_blocks()), (2, 2, 3));
        assert_eq!(g.visible_pairs(), 256 * 257 / 2);
        let diagonal = BlockLists { hq: 1, total_qb: 2, stride: 1, counts: vec![1, 1], lists: vec![0, 1] };
        assert_eq!(g.selected_pairs(&diagonal), 2 * 128 * 129 / 2);
        assert_eq!(g.kept(&diagonal), (2, 2.0 / 3.0));
        assert_eq!(tflops(1_000_000_000, 1.0), 512.0);
    }
}
