//! Selection: which key blocks a row may keep, which it must keep, and the arithmetic of the radix select.

use super::swizzle_128;
use crate::config::select::SUM_BYTES;

/// Where the sum of row `row`, dimensions `16 * chunk ..` of a group, goes in the operand of one group of query sums, two steps of
/// 64 dimensions in rows of 128 bytes with the 128-byte swizzle. The upper eight of the dimensions lie at the offset with bit 4
/// flipped, row 16 further on 2,048 bytes higher.
#[inline(always)]
pub const fn sum_offset(row: u32, chunk: u32) -> u32 {
    chunk / 4 * SUM_BYTES + swizzle_128((row * 128 + chunk % 4 * 32) as usize) as u32
}

/// Order-preserving key of a score given as f32 bits: larger scores have larger keys, -0 equals +0, and every NaN or
/// infinity gets 0, which is below the key of any finite score.
#[inline(always)]
pub const fn score_key(bits: u32) -> u32 {
    let magnitude = bits & 0x7fff_ffff;
    // Negative: all bits flipped, so that larger magnitudes come lower. A zero counts as positive whatever its sign.
    let key = if bits != magnitude && magnitude != 0 { !bits } else { magnitude | 0x8000_0000 };
    if magnitude >= 0x7f80_0000 { 0 } else { key }
}

/// The candidates of one row: key blocks `0..count`, of which `0..first_free` and `end_free..count` are guards (sink and
/// window blocks, always kept).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Candidates: up to and including the diagonal block when causal, all key blocks otherwise.
    pub count: i32,
    /// First block that is no sink.
    pub first_free: i32,
    /// First block of the window; at least `first_free`.
    pub end_free: i32,
    /// Whether guards take part in the ranking, and so use up budget.
    pub guards_rank: bool,
}

impl Row {
    /// The row of query block `block` of a request with `kb_len` key blocks. A window below 1 counts as 1: the diagonal
    /// always stays.
    #[inline(always)]
    pub const fn new(block: i32, kb_len: i32, causal: bool, sink: i32, window: i32, guards_on_top: bool) -> Self {
        let count = if causal && block < kb_len { block + 1 } else { kb_len };
        let window = if window < 1 { 1 } else { window };
        let first_free = if sink < 0 {
            0
        } else if sink < count {
            sink
        } else {
            count
        };
        let end_free = if window > count - first_free { first_free } else { count - window };
        Self { count, first_free, end_free, guards_rank: !guards_on_top }
    }

    /// Whether block `j` is kept whatever its score.
    #[inline(always)]
    pub const fn is_guard(self, j: i32) -> bool {
        (j < self.first_free) | (j >= self.end_free)
    }

    /// Whether block `j` takes part in the ranking.
    #[inline(always)]
    pub const fn ranks(self, j: i32) -> bool {
        self.guards_rank | !self.is_guard(j)
    }

    /// How many blocks take part in the ranking.
    #[inline(always)]
    pub const fn ranked(self) -> i32 {
        if self.guards_rank { self.count } else { self.end_free - self.first_free }
    }
}

/// What the ranking decided: blocks with a key above `key` stay, and of those at `key` the first `ties`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    /// The key at the threshold.
    pub key: u32,
    /// How many blocks with exactly that key stay.
    pub ties: u32,
}

impl Threshold {
    /// Everything stays.
    pub const ALL: Self = Self { key: 0, ties: u32::MAX };
    /// Nothing stays: no score has this key.
    pub const NONE: Self = Self { key: u32::MAX, ties: 0 };

    /// Whether a block stays that has this key and `ties_before` ties of lower index.
    #[inline(always)]
    pub const fn keeps(self, key: u32, ties_before: u32) -> bool {
        (key > self.key) | ((key == self.key) & (ties_before < self.ties))
    }
}

/// What a row keeps besides its guards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// How many of the ranked blocks stay.
    pub budget: i32,
    /// Whether every block with the score at the budget's edge stays.
    pub keep_all_ties: bool,
    /// Lowest bit in which two keys may differ: 0, or [`BF16_LOW_BIT`] where all scores are bf16 values.
    pub low_bit: u32,
}

/// Lowest bit that tells the keys of two finite bf16 values apart: what lies below is a copy of the sign.
pub const BF16_LOW_BIT: u32 = 16;

impl Rule {
    /// Whether the row has to choose, or keeps every block it sees.
    #[inline(always)]
    pub const fn chooses(self, row: Row) -> bool {
        self.budget < row.ranked()
    }
}

/// A radix select with digits of one bit: the search for the largest key that at least `budget` ranked blocks reach. Counting
/// costs an addition a block and step, and no memory that lanes would have to share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Search {
    /// The bits decided so far.
    key: u32,
    /// Ranked blocks above the last key that too few of them reach: in the end those above `key`.
    above: u32,
}

impl Search {
    /// Nothing decided.
    pub const START: Self = Self { key: 0, above: 0 };

    /// The key to count at for bit `bit` (31 first).
    #[inline(always)]
    pub const fn probe(self, bit: u32) -> u32 {
        self.key | (1 << bit)
    }

    /// Decides a bit: `reach` ranked blocks have at least the key `probe`.
    #[inline(always)]
    pub const fn decide(self, probe: u32, reach: u32, budget: u32) -> Self {
        if reach >= budget { Self { key: probe, ..self } } else { Self { above: reach, ..self } }
    }

    /// The threshold when all bits are decided.
    #[inline(always)]
    pub const fn threshold(self, rule: Rule) -> Threshold {
        Threshold { key: self.key, ties: if rule.keep_all_ties { u32::MAX } else { rule.budget as u32 - self.above } }
    }
}

impl Threshold {
    /// Blocks with at least the key `least` stay, and no other: the search may end where exactly the budget reaches a key.
    /// `least` is not 0.
    #[inline(always)]
    pub const fn at_least(least: u32) -> Self {
        Self { key: least - 1, ties: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Element (row, dimension) of a group, found the way the tensor core does: step, row, swizzled column.
    #[test]
    fn sums_land_where_the_products_read_them() {
        let mut seen = vec![false; 2 * SUM_BYTES as usize];
        for row in 0..32u32 {
            for d in 0..128u32 {
                let (low_row, high) = (row % 16, row / 16);
                let at = (sum_offset(low_row, d / 16) ^ (d / 8 % 2 * 16)) + high * 2048 + d % 8 * 2;
                let want = d / 64 * SUM_BYTES + swizzle_128((row * 128 + d % 64 * 2) as usize) as u32;
                assert_eq!(at, want, "row {row}, dimension {d}");
                assert!(!std::mem::replace(&mut seen[at as usize], true));
            }
        }
    }

    #[test]
    fn keys_follow_the_order_of_the_scores() {
        let rising = [f32::MIN, -1e10, -1.5, -1.0, -f32::MIN_POSITIVE, -1e-45, 0.0, 1e-45, f32::MIN_POSITIVE, 1.0, 1.5, 1e10, f32::MAX];
        for pair in rising.windows(2) {
            assert!(score_key(pair[0].to_bits()) < score_key(pair[1].to_bits()), "{pair:?}");
        }
        assert_eq!(score_key((-0.0f32).to_bits()), score_key(0));
        for x in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(score_key(x.to_bits()), 0);
        }
        assert!(score_key(f32::MIN.to_bits()) > 0);
        assert!(rising.iter().all(|x| score_key(x.to_bits()) < Threshold::NONE.key));
    }

    /// Against the rule in words, over every small row.
    #[test]
    fn guards_are_the_sink_and_the_window() {
        for (kb_len, block, sink, window) in
            (1..12).flat_map(|k| (0..14).flat_map(move |b| (0..14).flat_map(move |s| (0..14).map(move |w| (k, b, s, w)))))
        {
            for causal in [false, true] {
                let row = Row::new(block, kb_len, causal, sink, window, true);
                let diagonal = if causal { block.min(kb_len - 1) } else { kb_len - 1 };
                assert_eq!(row.count, diagonal + 1);
                let mut free = 0;
                for j in 0..row.count {
                    let guard = j < sink || j > diagonal - window.max(1);
                    assert_eq!(row.is_guard(j), guard, "{j} of {row:?}, sink {sink}, window {window}");
                    assert_eq!(row.ranks(j), !guard);
                    free += !guard as i32;
                }
                assert_eq!(row.ranked(), free);
                assert!(row.is_guard(diagonal), "a row is never empty");
                assert_eq!(Row::new(block, kb_len, causal, sink, window, false).ranked(), row.count);
            }
        }
        let hostile = Row::new(3, 9, true, i32::MIN, i32::MAX, false);
        assert_eq!((hostile.count, hostile.first_free, hostile.end_free), (4, 0, 0));
        assert_eq!(Row::new(5, 0, true, 4, 4, true).count, 0);
    }

    /// What the kernel does, one lane for all.
    fn threshold(keys: &[u32], rule: Rule, early: bool) -> Threshold {
        let mut search = Search::START;
        for bit in (rule.low_bit..32).rev() {
            let probe = search.probe(bit);
            let reach = keys.iter().filter(|&&key| key >= probe).count() as u32;
            if early && reach == rule.budget as u32 {
                return Threshold::at_least(probe);
            }
            search = search.decide(probe, reach, rule.budget as u32);
        }
        search.threshold(rule)
    }

    #[test]
    fn radix_select_finds_the_threshold() {
        let mut state = 12345u32;
        for case in 0..200 {
            let n = 1 + case * 7 % 300;
            // Few distinct values in odd cases: ties.
            let keys: Vec<u32> = (0..n)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let x = if case % 2 == 1 { (state >> 28) as f32 - 8.0 } else { f32::from_bits(state) };
                    score_key(x.to_bits())
                })
                .collect();
            for budget in [1, n / 3 + 1, n] {
                for (early, keep_all_ties, low_bit) in
                    [(false, false, 0), (true, false, 0), (false, true, 0), (true, true, 0), (true, false, 16)]
                {
                    let rule = Rule { budget, keep_all_ties, low_bit };
                    let keys: Vec<u32> = if low_bit == 0 { keys.clone() } else { keys.iter().map(|k| k & 0xffff_0000).collect() };
                    let t = threshold(&keys, rule, early);
                    let mut ranked: Vec<(u32, usize)> = keys.iter().copied().zip(0..).collect();
                    ranked.sort_by_key(|&(key, j)| (std::cmp::Reverse(key), j));
                    let mut kept = budget as usize;
                    while keep_all_ties && kept < ranked.len() && ranked[kept].0 == ranked[kept - 1].0 {
                        kept += 1;
                    }
                    let mut want: Vec<usize> = ranked[..kept].iter().map(|&(_, j)| j).collect();
                    want.sort();
                    let mut ties = 0;
                    let mut got = vec![];
                    for (j, &key) in keys.iter().enumerate() {
                        if t.keeps(key, ties) {
                            got.push(j);
                        }
                        ties += (key == t.key) as u32;
                    }
                    assert_eq!(got, want, "budget {budget} of {n}, {rule:?}");
                }
            }
        }
    }

    #[test]
    fn all_and_none() {
        for x in [f32::NAN, f32::MIN, 0.0, f32::MAX] {
            let key = score_key(x.to_bits());
            assert!(Threshold::ALL.keeps(key, 70_000));
            assert!(!Threshold::NONE.keeps(key, 0));
        }
    }
}
