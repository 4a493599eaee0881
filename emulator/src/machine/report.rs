//! Where every warp is, in words.

use super::SHARED_BASE;
use super::cluster::Cluster;
use super::warp::{Part, Wait, Warp};
use std::fmt::Write as _;

/// Characters of an instruction that are shown.
const SHOWN: usize = 100;

impl Cluster<'_> {
    /// What happened, and the place of each warp that has not exited.
    pub(super) fn report(&self, what: &str) -> String {
        let launch = self.launch;
        let (blocks, seed) = (self.blocks.len(), launch.settings.seed);
        let mut out = format!(
            "{}: {what}; block {:?} of {:?}, cluster of {blocks}, seed {seed}, launch {}",
            launch.kernel.name, self.blocks[0].id, launch.grid, launch.serial
        );
        for warp in self.warps.iter().filter(|w| !w.done) {
            for part in &warp.parts {
                let (line, text) = launch.kernel.source(part.place());
                let text: String = text.chars().take(SHOWN).collect();
                // Writing to a string cannot fail.
                let _ = write!(out, "\n  block {} warp {:2} lanes {:08x} line {line}", warp.block, warp.index, part.mask);
                let _ = write!(out, ", {}: {text}", self.reason(warp, part));
            }
        }
        out
    }

    fn reason(&self, warp: &Warp, part: &Part) -> String {
        match part.wait {
            Wait::Nothing => "runs".to_owned(),
            Wait::Mbarrier { block, at, phase } => {
                let offset = at.wrapping_sub(SHARED_BASE);
                let state = self.blocks[block].mbarriers.get(&at);
                let state = state
                    .map_or("gone".to_owned(), |m| format!("now phase {}, {} arrivals and {} bytes missing", m.phase, m.missing, m.bytes));
                format!("waits for phase {phase} of the mbarrier at {offset} ({state})")
            }
            Wait::Barrier { id, .. } => {
                let barrier = &self.blocks[warp.block].barriers[id];
                format!("waits at barrier {id} ({} of {} warps)", barrier.arrived, barrier.warps)
            }
            Wait::Cluster { .. } => format!("waits for the cluster ({} of {} warps)", self.arrived, self.running),
            Wait::Lanes => "waits for other lanes".to_owned(),
            Wait::Warpgroup { ticket } => format!("waits for its warpgroup to issue product {ticket}"),
        }
    }
}
