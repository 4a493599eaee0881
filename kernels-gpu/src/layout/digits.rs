//! The search of [`super::planes`] in rows that are read again in every pass: four bits of the threshold a pass, a digit, from how
//! many keys reach each of its 15 candidates.

use super::planes::Nested;

/// Bits of a digit.
pub const DIGIT: u32 = 4;

/// What the passes so far have decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decided {
    /// The threshold's digits, the latest lowest.
    key: u32,
    /// How many they are.
    pub digits: u32,
    /// Ranked places above the threshold.
    pub above: u32,
    /// Whether exactly the budget reaches it: no more digits are needed.
    pub exact: bool,
}

impl Decided {
    /// Nothing.
    pub const START: Self = Self { key: 0, digits: 0, above: 0, exact: false };

    /// After a pass: `reach` ranked places reach the next digit's values from 1 on.
    #[inline(always)]
    pub const fn next(self, reach: [u32; 15], budget: u32) -> Self {
        let (mut digit, mut above, mut exact, mut v) = (0, self.above, false, 15);
        while v > 0 {
            v -= 1;
            let all = reach[v];
            digit += (all >= budget) as u32;
            exact |= all == budget;
            // The counts grow from the highest value to the lowest.
            above = if all < budget { all } else { above };
        }
        Self { key: (self.key << DIGIT) | digit, digits: self.digits + 1, above, exact }
    }

    /// The sets after digit `n`, one of the decided, from its four planes, the highest first.
    #[inline(always)]
    pub const fn narrowed(self, n: u32, mut sets: Nested, planes: [u32; 4]) -> Nested {
        let digit = self.key >> (DIGIT * (self.digits - 1 - n));
        let [p, q, r, s] = planes;
        sets = sets.step(sets.between(p), digit & 8 != 0);
        sets = sets.step(sets.between(q), digit & 4 != 0);
        sets = sets.step(sets.between(r), digit & 2 != 0);
        sets.step(sets.between(s), digit & 1 != 0)
    }
}

/// The sets that reach each value 1..16 of the next digit, from its four planes, the highest first: what lies between the two
/// sets at one step, two, three and four.
#[inline(always)]
pub const fn candidates(sets: Nested, planes: [u32; 4]) -> [u32; 15] {
    const fn split(sets: Nested, plane: u32) -> (u32, Nested, Nested) {
        let between = sets.between(plane);
        (between, sets.step(between, false), sets.step(between, true))
    }
    let [p, q, r, s] = planes;
    let (c8, low, high) = split(sets, p);
    let (c4, low_0, low_1) = split(low, q);
    let (c12, high_0, high_1) = split(high, q);
    let ((c2, a, b), (c6, c, d)) = (split(low_0, r), split(low_1, r));
    let ((c10, e, f), (c14, g, h)) = (split(high_0, r), split(high_1, r));
    let last = [a.between(s), b.between(s), c.between(s), d.between(s), e.between(s), f.between(s), g.between(s), h.between(s)];
    let [c1, c3, c5, c7, c9, c11, c13, c15] = last;
    [c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, c13, c14, c15]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::planes::tests::{planes, random};
    use crate::layout::planes::{Half, Places, Signs};
    use crate::layout::select::{Row, score_key};

    #[test]
    fn candidates_are_those_that_reach_a_digit() {
        let mut state = 5;
        for _ in 0..500 {
            let planes = [0; 4].map(|_| random(&mut state));
            let ranked = random(&mut state);
            let sets = Nested { enough: ranked, too_few: ranked & random(&mut state) };
            for (at, set) in candidates(sets, planes).into_iter().enumerate() {
                for u in 0..32 {
                    let digit = planes.iter().fold(0, |digit, plane| digit << 1 | plane >> u & 1);
                    let reaches = sets.too_few >> u & 1 == 1 || (sets.enough >> u & 1 == 1 && digit > at as u32);
                    assert_eq!(set >> u & 1 == 1, reaches, "digit {digit}, candidate {}", at + 1);
                }
            }
        }
    }

    /// Planes of the keys of a lane's places of one piece, digit by digit.
    fn digits(scores: &[u32; 32], rounded: bool) -> Vec<[u32; 4]> {
        let scores = scores.map(|x| (f32::from_bits(x) + 0.0).to_bits());
        let mut high = planes(&scores, Half::HIGH);
        let signs = Signs::new(&high);
        high[15] = Signs::TOP;
        let halves = if rounded { vec![high] } else { vec![high, planes(&scores, Half::LOW)] };
        let digit = |half: &[u32; 16], d: usize| [15, 14, 13, 12].map(|b| signs.key_plane(half[b - 4 * d]));
        halves.iter().flat_map(|half| [0, 1, 2, 3].map(|d| digit(half, d))).collect()
    }

    /// Rows of several pieces, lanes in step, against sorting.
    #[test]
    fn passes_find_the_threshold() {
        let mut state = 11;
        for case in 0..60 {
            let (rounded, few) = (case % 2 == 0, case % 4 < 2);
            let count = [1, 900, 1025, 1500, 2048, 2500][case % 6];
            let scores: Vec<u32> = (0..3072)
                .map(|_| {
                    let x = random(&mut state);
                    let x = if few { ((x >> 28) as f32 - 8.0).to_bits() } else { x };
                    if rounded { x & 0xffff_0000 } else { x }
                })
                .collect();
            let row = Row { count, first_free: 0, end_free: count, guards_rank: true };
            let pieces: Vec<(Nested, Vec<[u32; 4]>)> = (0..count)
                .step_by(1024)
                .flat_map(|base| (0..32).map(move |lane| (base, lane)))
                .map(|(base, lane)| {
                    let mine = std::array::from_fn(|u| scores[base as usize + 32 * u + lane]);
                    (Nested::new(Places::new(row, base, lane as u32).ranked), digits(&mine, rounded))
                })
                .collect();
            let key = |j: usize| score_key(scores[j]) >> (16 * rounded as u32);
            let mut sorted: Vec<u32> = (0..count as usize).map(key).collect();
            sorted.sort_by_key(|&key| std::cmp::Reverse(key));
            for budget in [1, count as usize / 4 + 1, count as usize] {
                let after = |decided: Decided, piece: &(Nested, Vec<[u32; 4]>)| {
                    (0..decided.digits).fold(piece.0, |sets, n| decided.narrowed(n, sets, piece.1[n as usize]))
                };
                let mut decided = Decided::START;
                while decided.digits < if rounded { 4 } else { 8 } && !decided.exact {
                    let mut reach = [0; 15];
                    for piece in &pieces {
                        let sets = candidates(after(decided, piece), piece.1[decided.digits as usize]);
                        reach.iter_mut().zip(sets).for_each(|(reach, set)| *reach += set.count_ones());
                    }
                    decided = decided.next(reach, budget as u32);
                }
                let threshold = sorted[budget - 1];
                for (i, piece) in pieces.iter().enumerate() {
                    let sets = after(decided, piece);
                    for u in 0..32 {
                        let j = i / 32 * 1024 + 32 * u + i % 32;
                        let enough = j < count as usize && key(j) >= threshold;
                        assert_eq!(sets.enough >> u & 1 == 1, enough, "case {case}: {j}, {budget} of {count}");
                        if !decided.exact {
                            assert_eq!(sets.too_few >> u & 1 == 1, enough && key(j) > threshold, "case {case}: {j}, {budget} of {count}");
                        }
                    }
                }
                let above = sorted.iter().filter(|&&key| key > threshold).count();
                assert!(decided.exact || decided.above as usize == above, "case {case}: {budget} of {count}");
            }
        }
    }
}
