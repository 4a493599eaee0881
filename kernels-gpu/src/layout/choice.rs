//! What a warp looks for in a row of at most 1,024 candidates, and how it counts in two of them at once.

use super::planes::Places;
use super::select::{Row, Rule};

/// A lane's part of a row that one warp holds, and what the row chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Places that stay whatever their score: all, where the row keeps what it sees.
    pub stay: u32,
    /// Places to choose from; none where there is nothing to choose.
    pub ranked: u32,
    /// How many of these stay, in all lanes. Fewer than there are, or 0 of none.
    pub budget: u32,
}

impl Choice {
    /// That of lane `lane`.
    #[inline(always)]
    pub const fn new(row: Row, rule: Rule, lane: u32) -> Self {
        let places = Places::new(row, 0, lane);
        let stay = if rule.chooses(row) { places.guards } else { places.seen };
        if rule.chooses(row) && rule.budget > 0 {
            Self { stay, ranked: places.ranked, budget: rule.budget as u32 }
        } else {
            Self { stay, ranked: 0, budget: 0 }
        }
    }
}

/// Bits of a count in a word of two.
const FIELD: u32 = 16;

/// One count, or two, of at most 1,024, in a word: words of that kind may be added. `mad` is `a * b + c`.
#[inline(always)]
pub fn packed<const N: usize>(counts: [u32; N], mad: impl Fn(u32, u32, u32) -> u32) -> u32 {
    const { assert!(N == 1 || N == 2) };
    if N == 1 { counts[0] } else { mad(counts[N - 1], 1 << FIELD, counts[0]) }
}

/// The counts of such a word.
#[inline(always)]
pub fn unpacked<const N: usize>(word: u32) -> [u32; N] {
    const { assert!(N == 1 || N == 2) };
    core::array::from_fn(|i| if N == 1 { word } else { word >> (i as u32 * FIELD) & ((1 << FIELD) - 1) })
}

/// Which counts of such a word are at least these. What lies below a count in the word does not matter, what lies above does: less
/// work than to unpack them.
#[inline(always)]
pub fn reached<const N: usize>(word: u32, least: [u32; N]) -> [bool; N] {
    const { assert!(N == 1 || N == 2) };
    let top = (N as u32 - 1) * FIELD;
    core::array::from_fn(|i| word << (top - i as u32 * FIELD) >= least[i] << top)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::planes::tests::random;

    #[test]
    fn counts_of_all_lanes_stay_apart() {
        let mad = |a, b, c| a * b + c;
        for counts in [[0, 0], [1024, 0], [0, 1024], [1024, 1024], [3, 999], [1, 1]] {
            // As lanes add them up.
            let word: u32 = (0..32).map(|lane| packed(counts.map(|count| count / 32 + (lane < count % 32) as u32), mad)).sum();
            assert_eq!(unpacked(word), counts);
            assert_eq!(unpacked(packed([counts[0]], mad)), [counts[0]]);
            for least in [[0, 0], [1, 1], [0, 1023], [1023, 0], [3, 999], [4, 998], [2, 1000], [1023, 1023]] {
                assert_eq!(reached(word, least), [counts[0] >= least[0], counts[1] >= least[1]], "{counts:?}, {least:?}");
                assert_eq!(reached(counts[0], [least[0]]), [counts[0] >= least[0]]);
            }
        }
    }

    /// Rows that choose, rows that keep everything, rows with budget for guards only: place by place, and the budget against the
    /// places.
    #[test]
    fn choices_are_those_of_the_rule() {
        let mut state = 17;
        let mut kinds = [0; 3];
        for case in 0..4000 {
            let count = (random(&mut state) % 1025) as i32;
            let [sink, window] = [0, 1].map(|_| (random(&mut state) % [3, 50, 1100][case % 3]) as i32);
            let row = Row::new(count - 1, count, true, sink, window, case % 2 == 0);
            let budget = [-1, 0, 1, count - 1, count, (random(&mut state) % 1100) as i32][case % 6];
            let rule = Rule { budget, keep_all_ties: false, low_bit: 0 };
            let mut places = 0;
            for lane in 0..32 {
                let choice = Choice::new(row, rule, lane);
                for u in 0..32 {
                    let j = 32 * u + lane as i32;
                    let stays = j < row.count && (row.is_guard(j) || !rule.chooses(row));
                    assert_eq!(choice.stay >> u & 1 == 1, stays, "{j} of {row:?}, {rule:?}");
                    let ranked = j < row.count && row.ranks(j) && rule.chooses(row) && budget > 0;
                    assert_eq!(choice.ranked >> u & 1 == 1, ranked, "{j} of {row:?}, {rule:?}");
                }
                places += choice.ranked.count_ones();
                assert_eq!(choice.budget, Choice::new(row, rule, 0).budget);
            }
            let choice = Choice::new(row, rule, 0);
            assert!(choice.budget < places || (choice.budget, places) == (0, 0), "{row:?}, {rule:?}");
            kinds[if choice.budget > 0 { 0 } else { 1 + rule.chooses(row) as usize }] += 1;
        }
        assert!(kinds.iter().all(|&n| n > 100), "{kinds:?}");
    }
}
