//! Which warp runs next.

use super::cluster::Cluster;
use super::warp::{Part, Wait, Warp};
use crate::fault::{Result, fault};
use crate::settings::Mode;

/// Rounds in which every wait on an mbarrier came back in vain before the cluster counts as dead.
const IN_VAIN: u32 = 64;
/// Instructions a warp runs in a turn of the fair schedule.
const TURN: u32 = 64;

/// Who may not run while another can.
struct Schedule {
    mode: Mode,
    /// Turn from which each warp may run.
    from: Vec<u64>,
    turn: u64,
    /// One copy completes in so many turns.
    copy_every: u64,
}

impl Schedule {
    fn new(cluster: &mut Cluster) -> Self {
        let n = cluster.warps.len();
        let random = &mut cluster.random;
        let mode = cluster.launch.settings.mode.unwrap_or_else(|| Mode::ALL[random.index(Mode::ALL.len())]);
        let copy_every = if mode == Mode::Fair { 4 } else { [1, 4, 50, 1000][random.index(4)] };
        let mut from = vec![0; n];
        match mode {
            Mode::One => from[random.index(n)] = u64::MAX,
            Mode::Several => from.iter_mut().filter(|_| random.below(3) == 0).for_each(|f| *f = u64::MAX),
            Mode::Fair | Mode::Changing => {}
        }
        Self { mode, from, turn: 0, copy_every }
    }

    fn next_turn(&mut self, cluster: &mut Cluster) {
        self.turn += 1;
        if self.mode == Mode::Changing && self.turn.is_multiple_of(64) {
            let k = cluster.random.index(self.from.len());
            let longest = 1 << cluster.random.below(14);
            self.from[k] = self.turn + cluster.random.below(longest);
        }
    }

    /// A warp that can run and may, else one that can.
    fn pick(&self, cluster: &mut Cluster) -> (Option<usize>, Option<usize>) {
        let n = self.from.len();
        let start = if self.mode == Mode::Fair { self.turn as usize % n } else { cluster.random.index(n) };
        let mut able = None;
        for i in (start..n).chain(0..start) {
            if cluster.can_run(&cluster.warps[i]) {
                if self.from[i] <= self.turn {
                    return (Some(i), Some(i));
                }
                able = able.or(Some(i));
            }
        }
        (None, able)
    }
}

impl Cluster<'_> {
    /// Runs until every warp has exited and every copy is done.
    ///
    /// # Errors
    /// With the place of every warp.
    pub(super) fn run(&mut self) -> Result<()> {
        let mut schedule = Schedule::new(self);
        let (mut steps, mut in_vain, mut seen) = (0, 0, 0);
        loop {
            schedule.next_turn(self);
            if !self.copies.is_empty() && self.random.below(schedule.copy_every) == 0 {
                self.complete_a_copy()?;
            }
            let (free, able) = schedule.pick(self);
            if free.is_none() && !self.copies.is_empty() && (able.is_none() || self.random.below(2) == 0) {
                self.complete_a_copy()?;
                continue;
            }
            let Some(i) = free.or(able) else {
                if self.running == 0 {
                    break;
                }
                // A wait with a time limit may come back in vain: some code asks once and goes on.
                in_vain = if seen == self.activity { in_vain + 1 } else { 0 };
                seen = self.activity;
                if in_vain == IN_VAIN {
                    fault!("{}", self.report("deadlock: nothing can go on"));
                }
                self.end_waits_in_vain();
                continue;
            };
            let turn = if schedule.mode == Mode::Fair { TURN } else { 1 << self.random.below(11) };
            let mut warp = std::mem::take(&mut self.warps[i]);
            let result = self.turn(&mut warp, turn, &mut steps);
            self.warps[i] = warp;
            if let Err(error) = result {
                fault!("{error}\n{}", self.report(&format!("an error of warp {i}")));
            }
            if steps > self.launch.settings.steps {
                fault!("{}", self.report("too many instructions"));
            }
        }
        if self.launch.settings.profile {
            let steps: Vec<String> = self.warps.iter().map(|w| w.steps.to_string()).collect();
            eprintln!("emulator: {} block {:?}: instructions by warp: {}", self.launch.kernel.name, self.blocks[0].id, steps.join(" "));
        }
        Ok(())
    }

    fn end_waits_in_vain(&mut self) {
        for part in self.warps.iter_mut().flat_map(|w| &mut w.parts) {
            if matches!(part.wait, Wait::Mbarrier { .. }) {
                part.wait = Wait::Nothing;
            }
        }
    }

    fn can_run(&self, warp: &Warp) -> bool {
        !warp.done && warp.parts.iter().any(|p| self.ready(warp, p.wait))
    }

    /// Whether what a part waits for has come.
    fn ready(&self, warp: &Warp, wait: Wait) -> bool {
        match wait {
            Wait::Nothing => true,
            Wait::Mbarrier { block, at, phase } => self.blocks[block].mbarriers.get(&at).is_none_or(|m| m.phase != phase),
            Wait::Barrier { id, generation, .. } => self.blocks[warp.block].barriers[id].generation != generation,
            Wait::Cluster { generation } => self.generation != generation,
            Wait::Lanes => false,
            Wait::Warpgroup { ticket } => self.issued_by_all(warp, ticket),
        }
    }

    /// Runs up to `left` instructions of a warp.
    fn turn(&mut self, warp: &mut Warp, mut left: u32, steps: &mut u64) -> Result<()> {
        while left > 0 && !warp.done {
            let Some(k) = self.choose_part(warp) else { return Ok(()) };
            self.wake(warp, k);
            let whole = warp.parts.len() == 1;
            loop {
                left -= 1;
                *steps += 1;
                warp.steps += 1;
                self.step(warp, k)?;
                if left == 0 || !whole || warp.parts.len() != 1 || warp.parts[0].wait != Wait::Nothing {
                    break;
                }
            }
            if !whole {
                warp.join();
            }
        }
        Ok(())
    }

    /// The part that is furthest behind, so that others may be caught up with; sometimes another.
    fn choose_part(&mut self, warp: &Warp) -> Option<usize> {
        if let [part] = &warp.parts[..] {
            return self.ready(warp, part.wait).then_some(0);
        }
        let any = self.random.below(16) == 0;
        let mut best: Option<usize> = None;
        for (k, part) in warp.parts.iter().enumerate() {
            let better = best.is_none_or(|b| part.pc < warp.parts[b].pc || any && self.random.below(2) == 0);
            if better && self.ready(warp, part.wait) {
                best = Some(k);
            }
        }
        best
    }

    fn wake(&mut self, warp: &mut Warp, k: usize) {
        let Part { mask, wait, .. } = warp.parts[k];
        warp.parts[k].wait = Wait::Nothing;
        if let Wait::Barrier { id, result: Some(p), .. } = wait {
            let bits = if self.blocks[warp.block].barriers[id].result { !0 } else { 0 };
            warp.registers.set(p, bits, mask);
        }
        match (&mut self.races, wait) {
            (Some(races), Wait::Barrier { id, .. }) => races.leave_named(warp, id, mask),
            (Some(races), Wait::Cluster { .. }) => races.leave_cluster(warp, mask),
            _ => {}
        }
    }
}
