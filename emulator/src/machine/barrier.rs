//! Named barriers of a block, and the barrier of the cluster.

use super::cluster::Cluster;
use super::warp::{Wait, Warp};
use crate::fault::{Result, fault};
use crate::isa::first;
use crate::ptx::{P, W};

/// A named barrier.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NamedBarrier {
    /// Warps that have arrived, and how many open it.
    pub(super) arrived: u32,
    pub(super) warps: u32,
    /// How often it has opened.
    pub(super) generation: u64,
    /// Whether a predicate held so far, and whether one did when it opened last.
    any: bool,
    pub(super) result: bool,
}

/// An arrival.
pub(super) struct Arrival {
    pub(super) id: W,
    pub(super) threads: Option<W>,
    pub(super) wait: bool,
    /// A predicate, and the one that takes the result.
    pub(super) or: Option<(P, P)>,
}

impl Cluster<'_> {
    /// A warp arrives at a named barrier, and waits there if it is to.
    pub(super) fn barrier(&mut self, warp: &mut Warp, k: usize, mask: u32, arrival: &Arrival) -> Result<()> {
        let lane = first(mask);
        let id = warp.registers[arrival.id][lane] as usize;
        let threads = arrival.threads.map_or(self.launch.threads.next_multiple_of(32), |t| warp.registers[t][lane]);
        let Some(barrier) = self.blocks[warp.block].barriers.get_mut(id) else { fault!("barrier {id}") };
        if threads == 0 || !threads.is_multiple_of(32) {
            fault!("barrier {id} for {threads} threads");
        }
        if barrier.arrived > 0 && barrier.warps != threads / 32 {
            fault!("barrier {id} for {} warps, which others use for {}", threads / 32, barrier.warps);
        }
        self.activity += 1;
        barrier.warps = threads / 32;
        barrier.arrived += 1;
        barrier.any |= arrival.or.is_some_and(|(of, _)| warp.registers[of] & mask != 0);
        let result = arrival.or.map(|(_, to)| to);
        let opens = barrier.arrived == barrier.warps;
        if let Some(races) = &mut self.races {
            races.arrive_named(warp, id, mask, opens);
            if opens && arrival.wait {
                races.leave_named(warp, id, mask);
            }
        }
        if !opens {
            if arrival.wait {
                warp.parts[k].wait = Wait::Barrier { id, generation: barrier.generation, result };
            }
            return Ok(());
        }
        barrier.generation += 1;
        barrier.arrived = 0;
        barrier.result = std::mem::take(&mut barrier.any);
        if let Some(to) = result {
            warp.registers.set(to, if barrier.result { !0 } else { 0 }, mask);
        }
        Ok(())
    }

    /// A warp arrives at the barrier of the cluster, and releases what it knows or does not.
    pub(super) fn cluster_arrive(&mut self, warp: &mut Warp, release: bool) -> Result<()> {
        if warp.arrived.is_some() {
            fault!("a second arrival at the cluster's barrier without a wait between");
        }
        warp.arrived = Some(self.generation);
        self.arrived += 1;
        self.activity += 1;
        if let Some(races) = &mut self.races {
            races.arrive_cluster(warp, !warp.exited, release);
        }
        self.open_cluster_barrier();
        Ok(())
    }

    /// A warp waits for the others of the cluster.
    pub(super) fn cluster_wait(&mut self, warp: &mut Warp, k: usize) -> Result<()> {
        let Some(generation) = warp.arrived.take() else { fault!("a wait at the cluster's barrier without an arrival") };
        if self.generation == generation {
            warp.parts[k].wait = Wait::Cluster { generation };
        } else if let Some(races) = &mut self.races {
            races.leave_cluster(warp, !warp.exited);
        }
        Ok(())
    }

    /// A warp that exited counts as arrived from now on.
    pub(super) fn leave(&mut self, warp: &Warp) -> Result<()> {
        if !warp.products.is_empty() {
            fault!("an exit with products in flight");
        }
        self.running -= 1;
        self.blocks[warp.block].running -= 1;
        self.activity += 1;
        if warp.arrived == Some(self.generation) {
            self.arrived -= 1;
        }
        self.open_cluster_barrier();
        Ok(())
    }

    fn open_cluster_barrier(&mut self) {
        if self.arrived > 0 && self.arrived >= self.running {
            self.arrived = 0;
            self.generation += 1;
            if let Some(races) = &mut self.races {
                races.open_cluster();
            }
        }
    }
}
