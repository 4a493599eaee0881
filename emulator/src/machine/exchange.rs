//! Exchange between the lanes of a warp.

use super::warp::Warp;
use crate::fault::{Result, fault};
use crate::isa::{Reduce, Shuffle, Vote, lanes};
use crate::ptx::{P, W};

/// Operands of a shuffle.
pub(super) struct Words {
    pub(super) to: W,
    pub(super) from: W,
    pub(super) by: W,
    pub(super) clamp: W,
}

impl Warp {
    /// `shfl.sync`: segments and limits as in the PTX manual.
    pub(super) fn shuffle(&mut self, kind: Shuffle, words: &Words, mask: u32) -> Result<()> {
        let (from, by, clamp) = (self.registers[words.from], self.registers[words.by], self.registers[words.clamp]);
        for lane in lanes(mask) {
            let (own, by) = (lane as i32, (by[lane] & 31) as i32);
            let (limit, segment) = ((clamp[lane] & 31) as i32, (clamp[lane] >> 8 & 31) as i32);
            let last = own & segment | limit & !segment;
            let source = match kind {
                Shuffle::Index => own & segment | by & !segment,
                Shuffle::Butterfly => own ^ by,
                Shuffle::Up => own - by,
                Shuffle::Down => own + by,
            };
            let within = if kind == Shuffle::Up { source >= last } else { source <= last };
            let source = if within { source & 31 } else { own };
            if mask >> source & 1 == 0 {
                fault!("lane {lane} reads lane {source}, which is not there");
            }
            self.registers[words.to][lane] = from[source as usize];
        }
        Ok(())
    }

    /// `vote.sync.ballot`.
    pub(super) fn ballot(&mut self, to: W, of: P, mask: u32) {
        let bits = self.registers[of] & mask;
        lanes(mask).for_each(|lane| self.registers[to][lane] = bits);
    }

    /// `vote.sync.any` and `all`.
    pub(super) fn vote(&mut self, vote: Vote, to: P, of: P, mask: u32) {
        let bits = self.registers[of] & mask;
        let holds = match vote {
            Vote::Any => bits != 0,
            Vote::All => bits == mask,
        };
        self.registers.set(to, if holds { !0 } else { 0 }, mask);
    }

    /// `redux.sync`.
    pub(super) fn redux(&mut self, reduce: Reduce, to: W, of: W, mask: u32) {
        let words = self.registers[of];
        let all = lanes(mask).map(|lane| words[lane]).reduce(|x, y| reduce.apply(x, y)).unwrap_or(0);
        lanes(mask).for_each(|lane| self.registers[to][lane] = all);
    }

    /// `elect.sync`: the lowest lane.
    pub(super) fn elect(&mut self, p: P, mask: u32) {
        self.registers.set(p, mask & mask.wrapping_neg(), mask);
    }
}
