//! How a warp turns the sets of places that its lanes hold ([`super::planes`]: lane l has places l, l + 32, ...) into runs of places
//! that follow one another, a run a lane. In a row of few candidates runs are short, so that every lane has one.

/// Bits of a lane's number, the rounds of the exchange: lanes that differ in one trade halves of their words.
pub const ROUNDS: [u32; 5] = [16, 8, 4, 2, 1];

/// What a lane does in the round of bit `bit`.
#[derive(Clone, Copy)]
pub struct Round {
    /// What it keeps of its own word.
    keep: u32,
    /// How far left the other lane's word is turned.
    turn: u32,
}

impl Round {
    /// That of lane `lane`.
    #[inline(always)]
    pub const fn new(bit: u32, lane: u32) -> Self {
        // Places whose number has the bit not.
        let without = match bit {
            16 => 0x0000_ffff,
            8 => 0x00ff_00ff,
            4 => 0x0f0f_0f0f,
            2 => 0x3333_3333,
            _ => 0x5555_5555,
        };
        if lane & bit == 0 { Self { keep: without, turn: bit } } else { Self { keep: !without, turn: 32 - bit } }
    }

    /// Its word after the round, from its own and that of lane `lane ^ bit`. `bits(a, b, mask)` are those of `a` where the mask has a
    /// one, else those of `b`.
    #[inline(always)]
    pub fn traded(self, own: u32, other: u32, bits: impl Fn(u32, u32, u32) -> u32) -> u32 {
        bits(own, other.rotate_left(self.turn), self.keep)
    }
}

/// The runs of a row.
#[derive(Clone, Copy)]
pub struct Runs {
    /// Halvings of the 32 places of a word.
    halved: u32,
}

impl Runs {
    /// For `count` candidates, at most 1,024.
    #[inline(always)]
    pub const fn new(count: u32) -> Self {
        // Of 513 and more none, of 257 one, and so on.
        let halved = count.saturating_sub(1).leading_zeros().wrapping_sub(22);
        Self { halved: if halved < 5 { halved } else { 5 } }
    }

    /// Which lane has the lane's run after the rounds.
    #[inline(always)]
    pub const fn source(self, lane: u32) -> u32 {
        lane >> self.halved
    }

    /// The run, from the word of [`Runs::source`]: its lowest bit stands for place [`Runs::first`], and so on.
    #[inline(always)]
    pub const fn of(self, word: u32, lane: u32) -> u32 {
        // The rest of the word lies above the run.
        (word >> (self.first(lane) & 31)) & (u32::MAX >> (32 - (32 >> self.halved)))
    }

    /// The first place of the lane's run.
    #[inline(always)]
    pub const fn first(self, lane: u32) -> u32 {
        lane << (5 - self.halved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::planes::tests::random;

    /// Every place of the set in just one run, and none else.
    #[test]
    fn runs_have_the_places_of_the_sets() {
        let mut state = 23;
        for case in 0..2000 {
            let count = match case {
                0..=1024 => case,
                _ => random(&mut state) % 1025,
            };
            let sets: [u32; 32] = std::array::from_fn(|_| random(&mut state) & [u32::MAX, random(&mut state), 0][case as usize % 3]);
            let has = |j: u32| j < count && sets[j as usize % 32] >> (j / 32) & 1 == 1;
            let mut words: [u32; 32] = std::array::from_fn(|l| (0..32).fold(0, |word, u| word | (has(32 * u + l as u32) as u32) << u));
            for bit in ROUNDS {
                let before = words;
                words = std::array::from_fn(|lane| {
                    let bits = |a: u32, b: u32, mask: u32| a & mask | b & !mask;
                    Round::new(bit, lane as u32).traded(before[lane], before[lane ^ bit as usize], bits)
                });
            }
            let runs = Runs::new(count);
            let mut found = Vec::new();
            for lane in 0..32 {
                let run = runs.of(words[runs.source(lane) as usize], lane);
                found.extend((0..32).filter(|i| run >> i & 1 == 1).map(|i| runs.first(lane) + i));
            }
            let places: Vec<u32> = (0..1024).filter(|&j| has(j)).collect();
            assert_eq!(found, places, "{count}");
        }
    }

    /// No longer than they must be.
    #[test]
    fn runs_are_short() {
        for (count, most) in [(0, 1), (1, 1), (32, 1), (33, 2), (64, 2), (65, 4), (256, 8), (257, 16), (512, 16), (513, 32), (1024, 32)] {
            let runs = Runs::new(count);
            assert_eq!(runs.of(u32::MAX, 0).count_ones(), most, "{count}");
            assert!(count == 0 || runs.first(31) < 1024 && runs.first(31) + most >= count);
        }
    }
}
