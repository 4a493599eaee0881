//! Selection: which key blocks a row may keep, which it must keep, and in which order scores rank.

use super::swizzle_128;
use crate::config::select::SUM_BYTES;

/// Where the sum of row `row`, dimensions `16 * chunk ..` of a group, goes in the operand of one group of query sums, two steps of
/// 64 dimensions in rows of 128 bytes with the 128-byte swizzle. The upper eight of the dimensions lie at the offset with bit 4
/// flipped. `WIDE`: each step has 32 more rows behind these, of another head.
#[inline(always)]
pub const fn sum_offset<const WIDE: bool>(row: u32, chunk: u32) -> u32 {
    chunk / 4 * (SUM_BYTES << WIDE as u32) + swizzle_128((row * 128 + chunk % 4 * 32) as usize) as u32
}

/// Group and number of the octet of unit `k` of up to 64, where a group has `octets` of them, 1 to 4: group by group, without a division.
#[inline(always)]
pub const fn unit(k: u32, octets: u32) -> [u32; 2] {
    // 128 / octets, rounded up, a byte each.
    let group = (k * (0x202b_4080u32.wrapping_shr(8 * octets.wrapping_sub(1)) & 0xff)) >> 7;
    [group, k - group * octets]
}

/// Order-preserving key of a score given as f32 bits: larger scores have larger keys, -0 equals +0, and every NaN or
/// infinity gets 0, which is below the key of any finite score. Kernels make the keys of 32 scores at once ([`super::planes`]).
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GROUPS;
    use crate::config::select::OCTETS;

    /// Element (row, dimension) of a group, found the way the tensor core does: step, row, swizzled column.
    #[test]
    fn sums_land_where_the_products_read_them() {
        let mut seen = vec![false; 2 * SUM_BYTES as usize];
        let wide = |row, chunk| sum_offset::<true>(row, chunk) - chunk / 4 * SUM_BYTES;
        for row in 0..32u32 {
            for d in 0..128u32 {
                assert_eq!(sum_offset::<false>(row, d / 16), wide(row, d / 16));
                let at = (sum_offset::<false>(row, d / 16) ^ (d / 8 % 2 * 16)) + d % 8 * 2;
                let want = d / 64 * SUM_BYTES + swizzle_128((row * 128 + d % 64 * 2) as usize) as u32;
                assert_eq!(at, want, "row {row}, dimension {d}");
                assert!(!std::mem::replace(&mut seen[at as usize], true));
            }
        }
    }

    #[test]
    fn units_go_group_by_group() {
        for octets in 1..=OCTETS {
            for k in 0..GROUPS as u32 * octets {
                assert_eq!(unit(k, octets), [k / octets, k % octets], "{k} of {octets}");
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
}
