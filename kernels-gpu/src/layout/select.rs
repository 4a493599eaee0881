//! Selection: which key blocks a row may keep, which it must keep, and the arithmetic of the radix select.

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

/// Place of a digit in a histogram: the largest digit first.
#[inline(always)]
pub const fn bin_of_digit(digit: u32) -> u32 {
    0xff - (digit & 0xff)
}

/// One lane's part of the search for the bin that holds rank `rank` (from 1): `counts` are the lane's eight consecutive
/// bins and `before` what lies in the bins before them, less than `rank`. Gives the bin (0..8) and the rank inside it.
/// Right only if the eight bins reach the rank.
#[inline(always)]
pub const fn find_bin(counts: [u32; 8], before: u32, rank: u32) -> (u32, u32) {
    let mut found = (0, rank - before);
    let mut sum = before;
    macro_rules! step {
        ($($i:literal)*) => {$(
            sum += counts[$i];
            if sum < rank {
                found = ($i + 1, rank - sum);
            }
        )*};
    }
    step!(0 1 2 3 4 5 6);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

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

    /// A model of the kernel's radix select on one warp: lane l searches bins 8 l .. 8 l + 8.
    fn threshold(keys: &[u32], budget: u32) -> Threshold {
        let (mut prefix, mut rank) = (0u32, budget);
        for pass in 0..4 {
            let shift = 24 - 8 * pass;
            let decided = if pass == 0 { 0 } else { u32::MAX << (shift + 8) };
            let mut bins = [0u32; 256];
            for &key in keys.iter().filter(|&&key| key & decided == prefix) {
                bins[bin_of_digit(key >> shift) as usize] += 1;
            }
            let lanes: Vec<[u32; 8]> = bins.chunks(8).map(|c| c.try_into().unwrap()).collect();
            let before: Vec<u32> = (0..32).map(|l| bins[..8 * l].iter().sum()).collect();
            let lane = before.iter().rposition(|&b| b < rank).unwrap();
            let (bin, rest) = find_bin(lanes[lane], before[lane], rank);
            assert!(bin < 8);
            prefix |= bin_of_digit(8 * lane as u32 + bin) << shift;
            rank = rest;
        }
        Threshold { key: prefix, ties: rank }
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
                let t = threshold(&keys, budget);
                let mut ranked: Vec<(u32, usize)> = keys.iter().copied().zip(0..).collect();
                ranked.sort_by_key(|&(key, j)| (std::cmp::Reverse(key), j));
                let mut want: Vec<usize> = ranked[..budget as usize].iter().map(|&(_, j)| j).collect();
                want.sort();
                let mut ties = 0;
                let mut got = vec![];
                for (j, &key) in keys.iter().enumerate() {
                    if t.keeps(key, ties) {
                        got.push(j);
                    }
                    ties += (key == t.key) as u32;
                }
                assert_eq!(got, want, "budget {budget} of {n}");
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
