//! Bit planes: the keys of a score row, one bit of all of them in a word. What a row keeps is found plane by plane, for 32 keys
//! of a lane at once.
//!
//! Lane l of a warp has places l, l + 32, l + 64, ... of the row; bit u of a word of its own stands for place 32 u + l.

use super::select::Row;

/// What the planes are made with: one instruction each.
pub trait Blend {
    /// Bytes of two words: hexadecimal digit i of `selector` names byte i of the result, 0..4 from `a` and 4..8 from `b`.
    fn bytes(a: u32, b: u32, selector: u32) -> u32;
    /// Bits of two words: from `a` where `mask` has a one, else from `b`.
    fn bits(a: u32, b: u32, mask: u32) -> u32;
}

/// Which half of each score the planes are made of. The high half is a bf16 value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Half(u32);

impl Half {
    /// Bits 16..32.
    pub const HIGH: Self = Self(0x7632);
    /// Bits 0..16.
    pub const LOW: Self = Self(0x5410);
}

/// The halves of sixteen scores, a lane's places u = 0..16 of these, as eight words of two planes: bytes 0 and 2 of word b are
/// plane b of u = 0..8 and u = 8..16, bytes 1 and 3 plane 8 + b.
#[inline(always)]
pub fn half_planes<B: Blend>(scores: [u32; 16], half: Half) -> [u32; 8] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = scores;
    let pair = |low, high| B::bytes(low, high, half.0);
    spread::<B>([pair(a, i), pair(b, j), pair(c, k), pair(d, l), pair(e, m), pair(f, n), pair(g, o), pair(h, p)])
}

/// The same of scores that are bf16 values, in pairs: word u of each four has a lane's places u, and u + 4 in its high half.
#[inline(always)]
pub fn pair_planes<B: Blend>(words: [u32; 8]) -> [u32; 8] {
    let [a, b, c, d, e, f, g, h] = words;
    let pair = |low, high, half: Half| B::bytes(low, high, half.0);
    let [low, high] = [Half::LOW, Half::HIGH].map(|half| [pair(a, e, half), pair(b, f, half), pair(c, g, half), pair(d, h, half)]);
    let ([a, b, c, d], [e, f, g, h]) = (low, high);
    spread::<B>([a, b, c, d, e, f, g, h])
}

/// [`half_planes`] of eight words, word u with the halves of u and u + 8.
#[inline(always)]
fn spread<B: Blend>(words: [u32; 8]) -> [u32; 8] {
    let [a, b, c, d, e, f, g, h] = words;
    // Trades the number of the word for the place of a bit in its byte, a binary digit at a time.
    let ([a, b], [c, d], [e, f], [g, h]) = (traded::<B, 1>(a, b), traded::<B, 1>(c, d), traded::<B, 1>(e, f), traded::<B, 1>(g, h));
    let ([a, c], [b, d], [e, g], [f, h]) = (traded::<B, 2>(a, c), traded::<B, 2>(b, d), traded::<B, 2>(e, g), traded::<B, 2>(f, h));
    let ([a, e], [b, f], [c, g], [d, h]) = (traded::<B, 4>(a, e), traded::<B, 4>(b, f), traded::<B, 4>(c, g), traded::<B, 4>(d, h));
    [a, b, c, d, e, f, g, h]
}

/// Two words with those bits of `a` that have digit `S` in their place swapped with those of `b` that have it not.
#[inline(always)]
fn traded<B: Blend, const S: u32>(a: u32, b: u32) -> [u32; 2] {
    let without = match S {
        1 => 0x5555_5555,
        2 => 0x3333_3333,
        _ => 0x0f0f_0f0f,
    };
    [B::bits(a, b << S, without), B::bits(a >> S, b, without)]
}

/// The sixteen planes of 32 halves from [`half_planes`] of the lower sixteen and of the higher.
#[inline(always)]
pub fn joined_planes<B: Blend>(low: [u32; 8], high: [u32; 8]) -> [u32; 16] {
    let [a, b, c, d, e, f, g, h] = low;
    let [i, j, k, l, m, n, o, p] = high;
    let even = |low, high| B::bytes(low, high, 0x6420);
    let odd = |low, high| B::bytes(low, high, 0x7531);
    [
        even(a, i),
        even(b, j),
        even(c, k),
        even(d, l),
        even(e, m),
        even(f, n),
        even(g, o),
        even(h, p),
        odd(a, i),
        odd(b, j),
        odd(c, k),
        odd(d, l),
        odd(e, m),
        odd(f, n),
        odd(g, o),
        odd(h, p),
    ]
}

/// What turns the planes of scores into those of [`super::select::score_key`]: which scores are negative, and which are NaN or
/// infinite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signs {
    negative: u32,
    lost: u32,
}

impl Signs {
    /// From the planes of the high halves of scores none of which is minus zero.
    #[inline(always)]
    pub const fn new(high: &[u32; 16]) -> Self {
        let [.., h, i, j, k, l, m, n, o, negative] = *high;
        Self { negative, lost: h & i & j & k & l & m & n & o }
    }

    /// From the planes of scores that are bf16 values, minus zero among them: it counts as zero.
    #[inline(always)]
    pub const fn of_bf16(planes: &[u32; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, negative] = *planes;
        let magnitude = a | b | c | d | e | f | g | h | i | j | k | l | m | n | o;
        Self { negative: negative & magnitude, ..Self::new(planes) }
    }

    /// No score is negative or not finite.
    pub const NONE: Self = Self { negative: 0, lost: 0 };
    /// What stands for the sign's own plane: the keys' highest bit is that of scores which are not negative.
    pub const TOP: u32 = u32::MAX;

    /// A plane of the keys from that of the scores.
    #[inline(always)]
    pub const fn key_plane(self, plane: u32) -> u32 {
        (plane ^ self.negative) & !self.lost
    }
}

/// The search: of the ranked places, at least `budget` are in one set, fewer in the other, which lies inside; all of the one have
/// higher keys than all others, and so have those of the other. A plane a step, they come together but for ties.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nested {
    /// The larger set.
    pub enough: u32,
    /// The smaller set.
    pub too_few: u32,
}

impl Nested {
    /// Before the first plane.
    #[inline(always)]
    pub const fn new(ranked: u32) -> Self {
        Self { enough: ranked, too_few: 0 }
    }

    /// The set between: who has the bit of this plane goes first.
    #[inline(always)]
    pub const fn between(self, plane: u32) -> u32 {
        self.too_few | (self.enough & plane)
    }

    /// The sets after a step; `enough` says which side the set between belongs to.
    #[inline(always)]
    pub const fn step(self, between: u32, enough: bool) -> Self {
        if enough { Self { enough: between, ..self } } else { Self { too_few: between, ..self } }
    }

    /// Those which the planes so far do not tell apart.
    #[inline(always)]
    pub const fn tied(self) -> u32 {
        self.enough & !self.too_few
    }
}

/// Planes that put lower places of a lane first, when all of the keys are through. What they leave tied lies in 32 places that
/// follow one another, one a lane.
pub const ORDER: [u32; 5] = [0x0000_ffff, 0x00ff_00ff, 0x0f0f_0f0f, 0x3333_3333, 0x5555_5555];

/// What the row says about a lane's places `base .. base + 1024`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// Candidates.
    pub seen: u32,
    /// Candidates that stay whatever their score.
    pub guards: u32,
    /// Candidates that take part in the ranking.
    pub ranked: u32,
}

impl Places {
    /// Those of lane `lane`.
    #[inline(always)]
    pub const fn new(row: Row, base: i32, lane: u32) -> Self {
        let seen = places_below(row.count - base, lane);
        let free = places_below(row.end_free - base, lane) & !places_below(row.first_free - base, lane);
        Self { seen, guards: seen & !free, ranked: if row.guards_rank { seen } else { seen & free } }
    }
}

/// The places of lane `lane` below place `end`.
#[inline(always)]
const fn places_below(end: i32, lane: u32) -> u32 {
    let end = if end < 0 { 0 } else { end };
    let places = (end - lane as i32 + 31) >> 5;
    match 1u32.checked_shl(places as u32) {
        Some(next) => next.wrapping_sub(1),
        None => u32::MAX,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::layout::select::score_key;

    struct Host;
    impl Blend for Host {
        fn bytes(a: u32, b: u32, selector: u32) -> u32 {
            let bytes = (u64::from(b) << 32 | u64::from(a)).to_le_bytes();
            u32::from_le_bytes([0, 4, 8, 12].map(|at| bytes[(selector >> at & 7) as usize]))
        }
        fn bits(a: u32, b: u32, mask: u32) -> u32 {
            a & mask | b & !mask
        }
    }

    pub(crate) fn planes(scores: &[u32; 32], half: Half) -> [u32; 16] {
        let [low, high] = [0, 16].map(|at| half_planes::<Host>(std::array::from_fn(|i| scores[at + i]), half));
        joined_planes::<Host>(low, high)
    }

    /// The planes of keys as the kernel makes them: of 16 bits for bf16 values, else of 32, the highest first.
    fn key_planes(scores: &[u32; 32], rounded: bool) -> Vec<u32> {
        let scores = scores.map(|x| (f32::from_bits(x) + 0.0).to_bits());
        let high = planes(&scores, Half::HIGH);
        let signs = Signs::new(&high);
        let mut all = vec![signs.key_plane(Signs::TOP)];
        all.extend(high[..15].iter().rev().map(|&plane| signs.key_plane(plane)));
        if !rounded {
            all.extend(planes(&scores, Half::LOW).iter().rev().map(|&plane| signs.key_plane(plane)));
        }
        all
    }

    pub(crate) fn random(state: &mut u32) -> u32 {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *state ^ *state >> 15
    }

    #[test]
    fn planes_are_the_bits_of_the_halves() {
        let mut state = 1;
        for _ in 0..100 {
            let scores: [u32; 32] = std::array::from_fn(|_| random(&mut state));
            for (half, from) in [(Half::LOW, 0), (Half::HIGH, 16)] {
                for (b, plane) in planes(&scores, half).into_iter().enumerate() {
                    for (u, score) in scores.iter().enumerate() {
                        assert_eq!(plane >> u & 1, score >> (from + b) & 1, "bit {b} of {u}");
                    }
                }
            }
        }
    }

    /// Every bf16 value, and f32 values of every kind.
    #[test]
    fn planes_of_keys_are_the_bits_of_the_keys() {
        let key = |planes: &[u32], u: usize| planes.iter().fold(0, |key, plane| key << 1 | plane >> u & 1);
        for first in (0..=0xffffu32).step_by(32) {
            let scores: [u32; 32] = std::array::from_fn(|u| (first + u as u32) << 16);
            let planes = key_planes(&scores, true);
            for (u, &score) in scores.iter().enumerate() {
                assert_eq!(key(&planes, u), score_key(score) >> 16, "{score:#x}");
            }
        }
        let mut state = 7;
        for _ in 0..2000 {
            let scores: [u32; 32] = std::array::from_fn(|_| {
                let sign = random(&mut state) & 0x8000_0000;
                sign | [0, 1, 0xffff, 0x1_0000, 0x7f7f_ffff, 0x7f80_0000, 0x7f80_0001, 0x7fff_ffff]
                    .get(random(&mut state) as usize % 16)
                    .copied()
                    .unwrap_or(random(&mut state) & 0x7fff_ffff)
            });
            let planes = key_planes(&scores, false);
            for (u, &score) in scores.iter().enumerate() {
                assert_eq!(key(&planes, u), score_key(score), "{score:#x}");
            }
        }
    }

    /// Every bf16 value in both halves of a word, minus zero as it is, in pairs of either kind.
    #[test]
    fn planes_of_pairs_are_the_bits_of_the_keys() {
        for (first, near) in (0..=0xffffu32).step_by(32).flat_map(|first| [(first, false), (first, true)]) {
            let score = |u: usize| (first + u as u32) << 16;
            let [low, high] = if near {
                let words = |from: usize| std::array::from_fn(|u| from + u / 4 * 8 + u % 4).map(|u| score(u) >> 16 | score(u + 4));
                [0, 16].map(|from| pair_planes::<Host>(words(from)))
            } else {
                let words = std::array::from_fn(|u| score(u) >> 16 | score(u + 16));
                [Half::LOW, Half::HIGH].map(|half| half_planes::<Host>(words, half))
            };
            let planes = joined_planes::<Host>(low, high);
            let signs = Signs::of_bf16(&planes);
            for u in 0..32 {
                let bits = planes[..15]
                    .iter()
                    .rev()
                    .fold(signs.key_plane(Signs::TOP) >> u & 1, |key, plane| key << 1 | signs.key_plane(*plane) >> u & 1);
                assert_eq!(bits, score_key(score(u)) >> 16, "{:#x}", score(u));
            }
        }
    }

    /// Against the row's own answers, place by place.
    #[test]
    fn places_are_those_of_the_row() {
        let mut state = 3;
        for case in 0..3000 {
            let kb_len = (random(&mut state) % 2500) as i32;
            let [sink, window] = [0, 1].map(|_| (random(&mut state) % [3, 50, 3000][case % 3]) as i32);
            let row = Row::new(kb_len, kb_len, true, sink, window, case % 2 == 0);
            for (base, lane) in [0, 1024, 2048].into_iter().flat_map(|base| [0, 1, 17, 31].map(|lane| (base, lane))) {
                let places = Places::new(row, base, lane);
                for u in 0..32 {
                    let j = base + 32 * u + lane as i32;
                    let seen = j < row.count;
                    assert_eq!(places.seen >> u & 1 == 1, seen, "{j} of {row:?}");
                    assert_eq!(places.guards >> u & 1 == 1, seen && row.is_guard(j), "{j} of {row:?}");
                    assert_eq!(places.ranked >> u & 1 == 1, seen && row.ranks(j), "{j} of {row:?}");
                }
            }
        }
    }

    /// A whole warp, lanes in step, with the operations of the kernel: the first `budget` of the ranked places by key, then by place.
    fn kept(scores: &[u32; 1024], ranked: [u32; 32], budget: u32, rounded: bool, keep_all_ties: bool) -> Vec<bool> {
        let lanes: [[u32; 32]; 32] = std::array::from_fn(|lane| std::array::from_fn(|u| scores[32 * u + lane]));
        let keys = lanes.map(|lane| key_planes(&lane, rounded));
        let planes = |b: usize| std::array::from_fn(|lane| keys[lane][b]);
        let mut sets = ranked.map(Nested::new);
        let mut step = |planes: &[u32; 32]| {
            let between: [u32; 32] = std::array::from_fn(|lane| sets[lane].between(planes[lane]));
            let reach: u32 = between.iter().map(|set| set.count_ones()).sum();
            sets = std::array::from_fn(|lane| sets[lane].step(between[lane], reach >= budget));
            sets
        };
        let mut all = ranked.map(Nested::new);
        for b in 0..if rounded { 16 } else { 32 } {
            all = step(&planes(b));
        }
        if keep_all_ties {
            return (0..1024).map(|j| all[j % 32].enough >> (j / 32) & 1 == 1).collect();
        }
        for plane in ORDER {
            all = step(&[plane; 32]);
        }
        let mut room = budget - all.iter().map(|sets| sets.too_few.count_ones()).sum::<u32>();
        let last: [u32; 32] = std::array::from_fn(|lane| {
            let tied = all[lane].tied();
            assert!(tied.count_ones() <= 1);
            let stays = tied != 0 && room > 0;
            room -= stays as u32;
            if stays { tied } else { 0 }
        });
        (0..1024).map(|j| (all[j % 32].too_few | last[j % 32]) >> (j / 32) & 1 == 1).collect()
    }

    #[test]
    fn nested_sets_end_at_the_budget() {
        let mut state = 99;
        for case in 0..300 {
            let (rounded, keep_all_ties) = (case % 2 == 0, case % 3 == 0);
            let count = [1, 2, 31, 33, 300, 1000, 1024][case % 7];
            let first = if case % 5 == 0 { count / 4 } else { 0 };
            let few = case % 4 < 2;
            let scores: [u32; 1024] = std::array::from_fn(|_| {
                let x = random(&mut state);
                let x = if few { ((x >> 28) as f32 - 8.0).to_bits() } else { x };
                if rounded { x & 0xffff_0000 } else { x }
            });
            let row = Row { count, first_free: first, end_free: count, guards_rank: false };
            let ranked = std::array::from_fn(|lane| Places::new(row, 0, lane as u32).ranked);
            let mut order: Vec<usize> = (first as usize..count as usize).collect();
            order.sort_by_key(|&j| (std::cmp::Reverse(score_key(scores[j]) >> (16 * rounded as u32)), j));
            for budget in [1, order.len() / 3 + 1, order.len()] {
                let mut last = budget;
                let key = |i: usize| score_key(scores[order[i]]) >> (16 * rounded as u32);
                while keep_all_ties && last < order.len() && key(last) == key(last - 1) {
                    last += 1;
                }
                let got = kept(&scores, ranked, budget as u32, rounded, keep_all_ties);
                for (j, &got) in got.iter().enumerate() {
                    assert_eq!(got, order[..last].contains(&j), "case {case}: place {j}, {budget} of {}", order.len());
                }
            }
        }
    }
}
