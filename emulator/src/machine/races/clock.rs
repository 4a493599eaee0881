//! What a thread knows to be over: a number for each agent of the cluster.

use crate::isa::{ALL, LANES, first, lanes};
use std::ops::Range;
use std::rc::Rc;

/// An agent: a lane, the products of a warpgroup, or the copies that count at one mbarrier.
pub(super) type Agent = usize;

/// What is ordered before a place in a program: of each agent, everything up to one of its epochs.
#[derive(Clone, Debug, Default)]
pub(super) struct Clock {
    /// For ordinary accesses.
    seen: Vec<u32>,
    /// Ordinary accesses that a proxy fence has put before those of tensor copies and products.
    fenced: Vec<u32>,
    /// Of what is seen, that to which only releases and acquires of the cluster, or within a block, lead.
    far: Vec<u32>,
}

impl Clock {
    /// Whether what an agent did in an epoch is ordered before.
    pub(super) fn has(&self, agent: Agent, epoch: u32) -> bool {
        at(&self.seen, agent) >= epoch
    }

    /// Whether a proxy fence lies between.
    pub(super) fn has_fenced(&self, agent: Agent, epoch: u32) -> bool {
        at(&self.fenced, agent) >= epoch
    }

    /// Whether releases and acquires between blocks are of the cluster.
    pub(super) fn has_far(&self, agent: Agent, epoch: u32) -> bool {
        at(&self.far, agent) >= epoch
    }

    pub(super) fn set(&mut self, agent: Agent, epoch: u32) {
        raise(&mut self.seen, agent, epoch);
    }

    /// Puts what an agent did until now before what other blocks do after a release to the cluster.
    pub(super) fn set_far(&mut self, agent: Agent, epoch: u32) {
        raise(&mut self.far, agent, epoch);
    }

    /// What is left after a release to the block that another block acquires.
    pub(super) fn near(self) -> Self {
        Self { far: vec![], ..self }
    }

    /// Puts all that is ordered before this place before the other proxy's accesses, too.
    pub(super) fn fence(&mut self) {
        join(&mut self.fenced, &self.seen);
    }

    pub(super) fn join(&mut self, other: &Self) {
        join(&mut self.seen, &other.seen);
        join(&mut self.fenced, &other.fenced);
        join(&mut self.far, &other.far);
    }
}

fn at(all: &[u32], agent: Agent) -> u32 {
    all.get(agent).copied().unwrap_or(0)
}

fn raise(all: &mut Vec<u32>, agent: Agent, epoch: u32) {
    if all.len() <= agent {
        all.resize(agent + 1, 0);
    }
    all[agent] = all[agent].max(epoch);
}

fn join(to: &mut Vec<u32>, from: &[u32]) {
    if to.len() < from.len() {
        to.resize(from.len(), 0);
    }
    to.iter_mut().zip(from).for_each(|(to, from)| *to = (*to).max(*from));
}

/// What is ordered before an access.
#[derive(Clone, Debug)]
pub(in crate::machine) struct Past {
    pub(super) clock: Rc<Clock>,
    /// The lanes whose own accesses are, up to an epoch.
    pub(super) own: Range<Agent>,
    pub(super) epoch: u32,
}

impl Past {
    /// Whether what an agent did in an epoch is over.
    pub(super) fn has(&self, agent: Agent, epoch: u32) -> bool {
        self.own.contains(&agent) && epoch <= self.epoch || self.clock.has(agent, epoch)
    }
}

/// The clocks of a warp's lanes.
#[derive(Clone, Debug, Default)]
pub(super) struct Lanes {
    /// What all know, where nobody has a clock of its own.
    same: Rc<Clock>,
    /// A clock for each lane; those that know the same mostly share it.
    each: Option<Box<[Rc<Clock>; LANES]>>,
}

impl Lanes {
    pub(super) fn of(&self, lane: usize) -> &Rc<Clock> {
        self.each.as_ref().map_or(&self.same, |each| &each[lane])
    }

    fn each(&mut self) -> &mut [Rc<Clock>; LANES] {
        let same = &self.same;
        self.each.get_or_insert_with(|| Box::new(std::array::from_fn(|_| same.clone())))
    }

    /// Changes the clocks of some lanes, each in the same way.
    pub(super) fn change(&mut self, mask: u32, change: impl Fn(&mut Clock)) {
        if self.each.is_none() && mask == ALL {
            change(Rc::make_mut(&mut self.same));
            return;
        }
        let clocks = self.each();
        let mut last: Option<(Rc<Clock>, Rc<Clock>)> = None;
        for lane in lanes(mask) {
            let old = clocks[lane].clone();
            let new = match &last {
                Some((before, after)) if Rc::ptr_eq(before, &old) => after.clone(),
                _ => {
                    let mut new = Clock::clone(&old);
                    change(&mut new);
                    Rc::new(new)
                }
            };
            clocks[lane] = new.clone();
            last = Some((old, new));
        }
    }

    /// What some lanes know together, beside their own epochs.
    pub(super) fn together(&self, mask: u32) -> Clock {
        let mut all = self.of(first(mask)).clone();
        let mut last = all.clone();
        for lane in lanes(mask) {
            let clock = self.of(lane);
            if !Rc::ptr_eq(&last, clock) {
                Rc::make_mut(&mut all).join(clock);
                last = clock.clone();
            }
        }
        drop(last);
        Rc::unwrap_or_clone(all)
    }

    /// Gives some lanes one clock.
    pub(super) fn share(&mut self, mask: u32, clock: Clock) {
        let clock = Rc::new(clock);
        if mask == ALL {
            *self = Self { same: clock, each: None };
            return;
        }
        let clocks = self.each();
        lanes(mask).for_each(|lane| clocks[lane] = clock.clone());
    }
}

/// A place where some release and others acquire.
#[derive(Clone, Debug, Default)]
pub(super) struct Meeting {
    /// What those have brought who have arrived since it opened last.
    pub(super) pending: Clock,
    /// What those who wait are given.
    pub(super) done: Clock,
}

impl Meeting {
    /// Opens. What earlier openings gave stays given, so that a waiter who wakes late gets its own.
    pub(super) fn open(&mut self) {
        self.done.join(&std::mem::take(&mut self.pending));
    }
}
