//! A warp: parts of it that are at different places, and what it has in flight.

use super::copy::SmallCopy;
use super::product::Issue;
use super::races::Past;
use crate::isa::Registers;
use crate::ptx::P;
use std::collections::VecDeque;

/// What a part of a warp waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Nothing: it can run.
    Nothing,
    /// The end of a phase of an mbarrier.
    Mbarrier { block: usize, at: u32, phase: u64 },
    /// A named barrier, and the predicate that takes its result.
    Barrier { id: usize, generation: u64, result: Option<P> },
    /// The barrier of the cluster.
    Cluster { generation: u64 },
    /// Other lanes of the warp, to run an instruction together.
    Lanes,
    /// The other warps of the warpgroup, which have not issued this product yet.
    Warpgroup { ticket: u64 },
}

/// Lanes that are at the same place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) pc: usize,
    pub(super) mask: u32,
    pub(super) wait: Wait,
}

impl Part {
    /// The instruction that it is at: the one that waits, or the next one.
    pub(super) fn place(&self) -> usize {
        match self.wait {
            Wait::Mbarrier { .. } | Wait::Barrier { .. } | Wait::Cluster { .. } => self.pc.saturating_sub(1),
            // What cannot start has not gone on.
            Wait::Nothing | Wait::Lanes | Wait::Warpgroup { .. } => self.pc,
        }
    }
}

/// A warp.
#[derive(Default)]
pub(super) struct Warp {
    /// Block of the cluster.
    pub(super) block: usize,
    /// Warp of the block.
    pub(super) index: u32,
    pub(super) registers: Registers,
    /// Places of its lanes; a lane that has exited is in none.
    pub(super) parts: Vec<Part>,
    /// Lanes that have exited, or were never there.
    pub(super) exited: u32,
    pub(super) done: bool,
    /// Copies since the last group ended.
    pub(super) copies: Vec<SmallCopy>,
    /// Groups of copies that were not waited for.
    pub(super) copy_groups: VecDeque<Vec<SmallCopy>>,
    /// Products that are in flight, how many were issued, and the last one of each group.
    pub(super) products: VecDeque<Issue>,
    pub(super) issued: u64,
    /// What was ordered before each of them, where races are looked for.
    pub(super) product_pasts: VecDeque<Past>,
    pub(super) product_groups: VecDeque<u64>,
    /// Generation of the cluster's barrier that it has arrived at, and not waited for.
    pub(super) arrived: Option<u64>,
    /// Instructions it has run.
    pub(super) steps: u64,
}

impl Warp {
    /// Joins parts that are at the same place. What waited for lanes asks again whether they are there.
    pub(super) fn join(&mut self) {
        let mut i = 0;
        while i < self.parts.len() {
            let mut j = i + 1;
            while j < self.parts.len() {
                let (a, b) = (self.parts[i], self.parts[j]);
                let free = |p: Part| matches!(p.wait, Wait::Nothing | Wait::Lanes);
                if a.pc == b.pc && free(a) && free(b) {
                    self.parts.swap_remove(j);
                    self.parts[i].mask |= b.mask;
                    self.parts[i].wait = Wait::Nothing;
                } else {
                    j += 1;
                }
            }
            i += 1;
        }
    }

    /// Lanes in `mask` of part `k` go elsewhere.
    pub(super) fn branch(&mut self, k: usize, mask: u32, target: usize) {
        let stay = self.parts[k].mask & !mask;
        if stay == 0 {
            self.parts[k].pc = target;
        } else if mask != 0 {
            self.parts[k].mask = stay;
            self.parts.push(Part { pc: target, mask, wait: Wait::Nothing });
            self.join();
        }
    }

    /// Lanes in `mask` of part `k` end.
    pub(super) fn exit(&mut self, k: usize, mask: u32) {
        self.exited |= mask;
        self.parts[k].mask &= !mask;
        self.parts.retain(|p| p.mask != 0);
        // Those that wait for lanes no longer wait for these.
        for part in &mut self.parts {
            if part.wait == Wait::Lanes {
                part.wait = Wait::Nothing;
            }
        }
        self.done = self.exited == !0;
    }
}
