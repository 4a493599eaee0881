//! Accesses of a cluster, noted one by one, and races in words.

use super::clock::Past;
use super::shadow::{Clash, Lack};
use super::{Place, What};
use crate::fault::{Result, fault};
use crate::machine::SHARED_BASE;
use crate::machine::cluster::Cluster;
use crate::machine::warp::Warp;

impl Cluster<'_> {
    /// Notes a lane's access; an error if it is a race.
    pub(in crate::machine) fn touch(&mut self, warp: &Warp, lane: usize, what: &What, past: Option<&Past>) -> Result<()> {
        let Some(races) = &mut self.races else { return Ok(()) };
        let result = races.touch(warp, lane, what, past);
        result.or_else(|clash| self.complain(&format!("lane {lane}"), what, &clash))
    }

    /// Notes what a product reads.
    pub(in crate::machine) fn touch_by_product(&mut self, warp: &Warp, ticket: u64, what: &What, past: &Past) -> Result<()> {
        let Some(races) = &mut self.races else { return Ok(()) };
        let result = races.product(warp, ticket, what, past);
        result.or_else(|clash| self.complain(&format!("a product of group {}", warp.index / 4), what, &clash))
    }

    /// Notes what a copy writes, or reads of shared memory.
    pub(in crate::machine) fn touch_by_copy(&mut self, done: Place, what: &What, past: Option<&Past>) -> Result<()> {
        let (Some(races), Some(past)) = (&mut self.races, past) else { return Ok(()) };
        let phase = self.blocks[done.0].mbarriers.get(&done.1).map_or(0, |m| m.phase);
        let result = races.copied((done, phase), what, past);
        result.or_else(|clash| self.complain("a copy", what, &clash))
    }

    /// Whether a lane may know that an mbarrier was initialised.
    pub(in crate::machine) fn knows(&self, warp: &Warp, lane: usize, at: Place) -> Result<()> {
        let Some(races) = &self.races else { return Ok(()) };
        match races.initialised(warp, lane, at) {
            Ok(()) => Ok(()),
            Err(by) => fault!(
                "a race: lane {lane} uses the mbarrier at {}, not ordered after {}, which initialises it",
                at.1 - SHARED_BASE,
                races.name(by)
            ),
        }
    }

    fn complain(&self, who: &str, what: &What, clash: &Clash) -> Result<()> {
        let source = |pc: usize| {
            let (line, text) = self.launch.kernel.source(pc);
            format!(" (line {line}: {text})")
        };
        // The instruction that runs is named by whoever reports this.
        let here = if what.pc == self.pc { String::new() } else { source(what.pc) };
        let name = self.races.as_ref().map_or(String::new(), |r| r.name(clash.agent));
        let why = match clash.lacks {
            Lack::Order => "not ordered after",
            Lack::Fence => "with no proxy fence between",
            Lack::Cluster => "with no release and acquire of the cluster between",
        };
        fault!(
            "a race on shared memory at {} of block {}: {who} {} it{here}, {why} {name}, which {} it{}",
            clash.at.saturating_sub(SHARED_BASE),
            what.at.0,
            what.kind.verb(),
            clash.kind.verb(),
            source(clash.pc as usize),
        )
    }
}
