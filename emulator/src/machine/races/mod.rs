//! Races on shared memory: two accesses, one of them a write, that nothing puts in order.
//!
//! Every lane has a clock of what is ordered before it. Arrivals at barriers release it, waits acquire it; `shfl`, votes and being
//! of one warp order nothing. Tensor copies and products go through the async proxy: what ordinary stores wrote must pass a
//! proxy fence before they touch it. What threads store in another block's shared memory is there for others after a release to the
//! cluster that is acquired from the cluster; other arrivals at another block's mbarrier order accesses of the own block, and copies.
//! The order in which a schedule happens to run warps does not matter here.

mod clock;
mod note;
mod shadow;

pub(super) use clock::Past;
pub(super) use shadow::Kind;

use super::SHARED_BASE;
use super::cluster::BARRIERS;
use super::warp::Warp;
use crate::isa::{ALL, LANES};
use clock::{Agent, Clock, Lanes, Meeting};
use shadow::{Access, Clash, Shadow};
use std::collections::HashMap;

/// Place of an mbarrier: block and address.
type Place = (usize, u32);

/// What is known about a cluster's accesses.
pub(super) struct Races {
    warps: Vec<Timeline>,
    shadows: Vec<Shadow>,
    mbarriers: HashMap<Place, Mbarrier>,
    named: Vec<[Meeting; BARRIERS]>,
    cluster: Meeting,
    /// Agents of copies that count at an mbarrier.
    copies: Vec<Place>,
    per_block: usize,
}

/// A warp's clocks, and its epoch, which ends when any of its lanes releases.
struct Timeline {
    lanes: Lanes,
    epoch: u32,
    /// What was ordered before the last product, as long as it is what is ordered before the next.
    product: Option<Past>,
}

impl Timeline {
    /// Some lanes come to know what is in a clock.
    fn acquire(&mut self, mask: u32, from: &Clock) {
        self.product = None;
        self.lanes.change(mask, |clock| clock.join(from));
    }
}

struct Mbarrier {
    meeting: Meeting,
    /// What those are given, beside that, who acquire from the cluster.
    cluster: Meeting,
    /// Number of the agent of its copies.
    agent: Agent,
    /// Who initialised it, and when.
    by: Agent,
    epoch: u32,
}

impl Races {
    pub(super) fn new(blocks: usize, warps_of_block: usize, bytes: usize) -> Self {
        let warps = blocks * warps_of_block;
        Self {
            warps: (0..warps).map(|_| Timeline { lanes: Lanes::default(), epoch: 1, product: None }).collect(),
            shadows: (0..blocks).map(|block| Shadow::new(bytes, block, warps_of_block * LANES)).collect(),
            mbarriers: HashMap::new(),
            named: (0..blocks).map(|_| Default::default()).collect(),
            cluster: Meeting::default(),
            copies: vec![],
            per_block: warps_of_block,
        }
    }

    /// Number of a warp in the cluster.
    fn warp(&self, warp: &Warp) -> usize {
        warp.block * self.per_block + warp.index as usize
    }

    /// The agent of a lane: lanes come first, then the products of each warpgroup, then copies.
    fn lane(warp: usize, lane: usize) -> Agent {
        warp * LANES + lane
    }

    /// The agent of the products of a warp's group.
    fn products(&self, warp: usize) -> Agent {
        self.warps.len() * LANES + warp / self.per_block * self.per_block + warp % self.per_block / 4
    }

    fn first_copy(&self) -> Agent {
        self.warps.len() * (LANES + 1)
    }

    /// What lanes know, their own epochs included; those end.
    fn release(&mut self, warp: usize, mask: u32) -> Clock {
        let blocks = self.shadows.len();
        let Timeline { lanes, epoch, product } = &mut self.warps[warp];
        *product = None;
        let mut all = lanes.together(mask);
        for lane in crate::isa::lanes(mask) {
            all.set(Self::lane(warp, lane), *epoch);
            if blocks > 1 {
                all.set_far(Self::lane(warp, lane), *epoch);
            }
        }
        *epoch += 1;
        all
    }

    /// `bar.warp.sync`.
    pub(super) fn warp_sync(&mut self, warp: &Warp, mask: u32) {
        let warp = self.warp(warp);
        let all = self.release(warp, mask);
        self.warps[warp].lanes.share(mask, all);
    }

    /// `fence.proxy.async`.
    pub(super) fn fence(&mut self, warp: &Warp, mask: u32) {
        let warp = self.warp(warp);
        let Timeline { lanes, epoch, product } = &mut self.warps[warp];
        *product = None;
        let now = *epoch;
        *epoch += 1;
        for lane in crate::isa::lanes(mask) {
            let mut clock = Clock::clone(lanes.of(lane));
            clock.set(Self::lane(warp, lane), now);
            clock.fence();
            lanes.share(1 << lane, clock);
        }
    }

    /// Arrival at a named barrier, which it may open.
    pub(super) fn arrive_named(&mut self, warp: &Warp, id: usize, mask: u32, opens: bool) {
        let clock = self.release(self.warp(warp), mask);
        let meeting = &mut self.named[warp.block][id];
        meeting.pending.join(&clock);
        if opens {
            meeting.open();
        }
    }

    /// After the wait at a named barrier.
    pub(super) fn leave_named(&mut self, warp: &Warp, id: usize, mask: u32) {
        let index = self.warp(warp);
        self.warps[index].acquire(mask, &self.named[warp.block][id].done);
    }

    /// Arrival at the cluster's barrier, with a release or without.
    pub(super) fn arrive_cluster(&mut self, warp: &Warp, mask: u32, release: bool) {
        let clock = self.release(self.warp(warp), mask);
        self.cluster.pending.join(&if release { clock } else { clock.near() });
    }

    /// The cluster's barrier opens.
    pub(super) fn open_cluster(&mut self) {
        self.cluster.open();
    }

    /// After the wait at the cluster's barrier.
    pub(super) fn leave_cluster(&mut self, warp: &Warp, mask: u32) {
        let index = self.warp(warp);
        self.warps[index].acquire(mask, &self.cluster.done);
    }

    /// `mbarrier.init` by a lane.
    pub(super) fn initialise(&mut self, warp: &Warp, lane: usize, at: Place) {
        let warp = self.warp(warp);
        let agent = self.copies.iter().position(|c| *c == at).unwrap_or_else(|| {
            self.copies.push(at);
            self.copies.len() - 1
        });
        let agent = self.first_copy() + agent;
        let (by, epoch) = (Self::lane(warp, lane), self.warps[warp].epoch);
        self.mbarriers.insert(at, Mbarrier { meeting: Meeting::default(), cluster: Meeting::default(), agent, by, epoch });
    }

    /// Whether a lane may know that an mbarrier was initialised; else who did it.
    fn initialised(&self, warp: &Warp, lane: usize, at: Place) -> Result<(), Agent> {
        let (warp, Some(m)) = (self.warp(warp), self.mbarriers.get(&at)) else { return Ok(()) };
        let known = m.by == Self::lane(warp, lane) || self.warps[warp].lanes.of(lane).has(m.by, m.epoch);
        if known { Ok(()) } else { Err(m.by) }
    }

    /// Arrival of a lane at an mbarrier, with a release to the cluster or to the block.
    pub(super) fn arrive(&mut self, warp: &Warp, lane: usize, at: Place, cluster: bool) {
        let clock = self.release(self.warp(warp), 1 << lane);
        if let Some(m) = self.mbarriers.get_mut(&at) {
            if at.0 == warp.block {
                m.meeting.pending.join(&clock);
                return;
            }
            if cluster {
                m.cluster.pending.join(&clock);
            }
            m.meeting.pending.join(&clock.near());
        }
    }

    /// A phase of an mbarrier ends.
    pub(super) fn phase_ends(&mut self, at: Place) {
        if let Some(m) = self.mbarriers.get_mut(&at) {
            m.meeting.open();
            m.cluster.open();
        }
    }

    /// After lanes have seen the end of a phase, and acquired from the cluster or from the block.
    pub(super) fn leave_mbarrier(&mut self, warp: &Warp, mask: u32, at: Place, cluster: bool) {
        let index = self.warp(warp);
        if let Some(m) = self.mbarriers.get(&at) {
            self.warps[index].acquire(mask, &m.meeting.done);
            if cluster {
                self.warps[index].acquire(mask, &m.cluster.done);
            }
        }
    }

    /// What is ordered before what some lanes of a warp, from the first, issue now.
    fn issue(&mut self, warp: usize, lanes: std::ops::Range<usize>) -> Past {
        let timeline = &mut self.warps[warp];
        let epoch = timeline.epoch;
        timeline.epoch += 1;
        timeline.product = None;
        let own = Self::lane(warp, lanes.start)..Self::lane(warp, lanes.end);
        Past { clock: timeline.lanes.of(lanes.start).clone(), own, epoch }
    }

    /// What is ordered before a copy that a lane issues now.
    pub(super) fn issue_copy(&mut self, warp: &Warp, lane: usize) -> Past {
        self.issue(self.warp(warp), lane..lane + 1)
    }

    /// What is ordered before a product that a warp issues now. What only some lanes know does not count.
    pub(super) fn issue_product(&mut self, warp: &Warp) -> Past {
        let warp = self.warp(warp);
        if let Some(past) = &self.warps[warp].product {
            return past.clone();
        }
        let past = self.issue(warp, 0..LANES);
        self.warps[warp].product = Some(past.clone());
        past
    }

    /// The warp has waited for products up to one of its group.
    pub(super) fn leave_products(&mut self, warp: &Warp, ticket: u64) {
        let warp = self.warp(warp);
        let agent = self.products(warp);
        self.warps[warp].product = None;
        self.warps[warp].lanes.change(ALL, |clock| clock.set(agent, ticket as u32));
    }

    /// An access by a lane. Copies of the lane's own have a past of their own, that of their issue.
    fn touch(&mut self, warp: &Warp, lane: usize, what: &What, past: Option<&Past>) -> Result<(), Clash> {
        let warp = self.warp(warp);
        let Timeline { lanes, epoch, product } = &mut self.warps[warp];
        *product = None;
        let agent = Self::lane(warp, lane);
        let now;
        let past = match past {
            Some(past) => past,
            None => {
                now = Past { clock: lanes.of(lane).clone(), own: agent..agent + 1, epoch: u32::MAX };
                &now
            }
        };
        self.shadows[what.at.0].touch(what.at.1, what.bytes, &what.by(agent, *epoch, past))
    }

    /// A read by a product.
    fn product(&mut self, warp: &Warp, ticket: u64, what: &What, past: &Past) -> Result<(), Clash> {
        let agent = self.products(self.warp(warp));
        self.shadows[what.at.0].touch(what.at.1, what.bytes, &what.by(agent, ticket as u32, past))
    }

    /// An access by a copy that counts at an mbarrier, whose phases so far are given.
    fn copied(&mut self, (done, phase): (Place, u64), what: &What, past: &Past) -> Result<(), Clash> {
        let Some(m) = self.mbarriers.get_mut(&done) else { return Ok(()) };
        let (agent, epoch) = (m.agent, phase as u32 + 1);
        m.meeting.pending.set(agent, epoch);
        self.shadows[what.at.0].touch(what.at.1, what.bytes, &what.by(agent, epoch, past))
    }

    /// An agent's name.
    fn name(&self, agent: Agent) -> String {
        let place = |warp: usize| format!("block {} warp {}", warp / self.per_block, warp % self.per_block);
        let lanes = self.warps.len() * LANES;
        if agent < lanes {
            return format!("{} lane {}", place(agent / LANES), agent % LANES);
        }
        match agent.checked_sub(self.first_copy()) {
            None => format!("products of block {} group {}", (agent - lanes) / self.per_block, (agent - lanes) % self.per_block),
            Some(i) => self.copies.get(i).map_or(String::new(), |(block, at)| {
                format!("a copy that counts at the mbarrier at {} of block {block}", at.saturating_sub(SHARED_BASE))
            }),
        }
    }
}

/// What is accessed, how, and by which instruction.
#[derive(Clone, Copy)]
pub(super) struct What {
    pub(super) at: Place,
    pub(super) bytes: u32,
    pub(super) kind: Kind,
    pub(super) pc: usize,
}

impl What {
    fn by<'a>(&self, agent: Agent, epoch: u32, past: &'a Past) -> Access<'a> {
        Access { agent, epoch, pc: self.pc as u32, kind: self.kind, past }
    }
}
