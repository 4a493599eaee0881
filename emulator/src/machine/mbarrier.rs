//! Mbarriers: phases that end when arrivals and bytes have come.

use super::SHARED_BASE;
use super::cluster::Cluster;
use super::warp::{Wait, Warp};
use crate::fault::{Fault, Result, fault};
use crate::isa::{Addr, Space, lanes};
use crate::ptx::{P, W};

/// Most bytes that may be missing, or too many, in a phase.
const BYTES: i64 = (1 << 20) - 1;
/// Most arrivals of a phase.
const ARRIVALS: u32 = (1 << 20) - 1;

/// An mbarrier.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mbarrier {
    /// Arrivals of a phase.
    count: i64,
    /// Arrivals and bytes that are missing in this one.
    pub(super) missing: i64,
    pub(super) bytes: i64,
    /// Phases that have ended.
    pub(super) phase: u64,
}

/// An arrival at an mbarrier.
pub(super) struct Arrive {
    pub(super) at: Addr,
    pub(super) count: W,
    pub(super) bytes: Option<W>,
    pub(super) space: Space,
    /// Whether it releases to the cluster.
    pub(super) cluster: bool,
}

impl Cluster<'_> {
    /// Block and address of an mbarrier.
    pub(super) fn mbarrier_at(&self, own: usize, at: u64, space: Space) -> Result<(usize, u32)> {
        let (block, at) = self.shared(own, at, 8, space)?;
        if !self.blocks[block].mbarriers.contains_key(&at) {
            fault!("no mbarrier was initialised at {} of block {block}", at - SHARED_BASE);
        }
        Ok((block, at))
    }

    /// Counts arrivals and bytes; negative bytes have come, positive ones are to.
    pub(super) fn count(&mut self, (block, at): (usize, u32), arrivals: i64, bytes: i64) -> Result<()> {
        self.activity += 1;
        let barrier = self.blocks[block].mbarriers.get_mut(&at);
        let m = barrier.ok_or_else(|| Fault::new("an mbarrier that is gone"))?;
        m.bytes += bytes;
        m.missing -= arrivals;
        if m.missing < 0 {
            fault!("too many arrivals at the mbarrier at {} of block {block}: {m:?}", at - SHARED_BASE);
        }
        if m.bytes.abs() > BYTES {
            fault!("too many bytes at the mbarrier at {} of block {block}: {m:?}", at - SHARED_BASE);
        }
        if m.missing == 0 && m.bytes == 0 {
            m.phase += 1;
            m.missing = m.count;
            if let Some(races) = &mut self.races {
                races.phase_ends((block, at));
            }
        }
        Ok(())
    }

    /// `mbarrier.init`.
    pub(super) fn mbarrier_init(&mut self, warp: &Warp, at: Addr, count: W, mask: u32) -> Result<()> {
        for lane in lanes(mask) {
            let (block, at) = self.shared(warp.block, at.of(&warp.registers, lane), 8, Space::Shared)?;
            let count = warp.registers[count][lane];
            if count == 0 || count > ARRIVALS {
                fault!("an mbarrier for {count} arrivals");
            }
            let count = i64::from(count);
            self.blocks[block].mbarriers.insert(at, Mbarrier { count, missing: count, bytes: 0, phase: 0 });
            if let Some(races) = &mut self.races {
                races.initialise(warp, lane, (block, at));
            }
        }
        Ok(())
    }

    /// `mbarrier.arrive`, each lane for itself.
    pub(super) fn mbarrier_arrive(&mut self, warp: &Warp, arrive: &Arrive, mask: u32) -> Result<()> {
        for lane in lanes(mask) {
            let at = self.mbarrier_at(warp.block, arrive.at.of(&warp.registers, lane), arrive.space)?;
            self.knows(warp, lane, at)?;
            if let Some(races) = &mut self.races {
                races.arrive(warp, lane, at, arrive.cluster);
            }
            let bytes = arrive.bytes.map_or(0, |b| i64::from(warp.registers[b][lane]));
            self.count(at, i64::from(warp.registers[arrive.count][lane]), bytes)?;
        }
        Ok(())
    }

    /// `mbarrier.expect_tx`: bytes, no arrival.
    pub(super) fn mbarrier_expect(&mut self, warp: &Warp, at: Addr, bytes: W, mask: u32) -> Result<()> {
        for lane in lanes(mask) {
            let at = self.mbarrier_at(warp.block, at.of(&warp.registers, lane), Space::Shared)?;
            self.knows(warp, lane, at)?;
            self.count(at, 0, i64::from(warp.registers[bytes][lane]))?;
        }
        Ok(())
    }

    /// `mbarrier.try_wait` and `test_wait`: lanes whose phase has ended. The first kind waits once if one has not; its answer
    /// stays false then, and the program asks again.
    pub(super) fn mbarrier_try(&mut self, warp: &mut Warp, k: usize, ask: &Ask, mask: u32) -> Result<()> {
        let mut bits = 0;
        let mut open: Vec<((usize, u32), u32)> = vec![];
        for lane in lanes(mask) {
            let (block, at) = self.mbarrier_at(warp.block, ask.at.of(&warp.registers, lane), Space::Shared)?;
            self.knows(warp, lane, (block, at))?;
            let Some(m) = self.blocks[block].mbarriers.get(&at) else { continue };
            // Parity of a phase that has ended: any but that of the current one.
            if m.phase & 1 != u64::from(warp.registers[ask.parity][lane] & 1) {
                bits |= 1 << lane;
                match open.iter_mut().find(|(place, _)| *place == (block, at)) {
                    Some((_, mask)) => *mask |= 1 << lane,
                    None if self.races.is_some() => open.push(((block, at), 1 << lane)),
                    None => {}
                }
            } else if ask.wait {
                warp.parts[k].wait = Wait::Mbarrier { block, at, phase: m.phase };
            }
        }
        if let Some(races) = &mut self.races {
            open.iter().for_each(|(place, mask)| races.leave_mbarrier(warp, *mask, *place, ask.cluster));
        }
        warp.registers.set(ask.result, bits, mask);
        Ok(())
    }
}

/// A question about a phase.
pub(super) struct Ask {
    pub(super) result: P,
    pub(super) at: Addr,
    pub(super) parity: W,
    pub(super) wait: bool,
    /// Whether it acquires from the cluster.
    pub(super) cluster: bool,
}
