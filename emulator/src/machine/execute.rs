//! One instruction.

use super::barrier::Arrival;
use super::cluster::Cluster;
use super::exchange::Words;
use super::mbarrier::{Arrive, Ask};
use super::warp::{Wait, Warp};
use crate::fault::{Result, fault};
use crate::isa::{Inst, Op, Special, Together, first, lanes};

impl Cluster<'_> {
    /// Runs the next instruction of part `k`.
    pub(super) fn step(&mut self, warp: &mut Warp, k: usize) -> Result<()> {
        let kernel = self.launch.kernel;
        let part = &mut warp.parts[k];
        let (pc, mask) = (part.pc, part.mask);
        // The last instruction is an exit without a guard, and targets of branches were checked.
        let inst = &kernel.code[pc];
        let active = match inst.guard {
            None => mask,
            Some((p, negated)) => mask & (warp.registers[p] ^ if negated { !0 } else { 0 }),
        };
        part.pc = pc + 1;
        let result = if let Op::Scalar(run) = &inst.op {
            run(&mut warp.registers, active);
            Ok(())
        } else {
            self.machine_step(warp, k, pc, inst, active)
        };
        result.or_else(|error| {
            let (line, text) = kernel.source(pc);
            fault!("{} line {line}: {text}: {error}", kernel.name)
        })
    }

    fn machine_step(&mut self, warp: &mut Warp, k: usize, pc: usize, inst: &Inst, active: u32) -> Result<()> {
        self.pc = pc;
        if let Some(together) = inst.together
            && (active == 0 || !self.together(warp, k, pc, together, active)?)
        {
            return Ok(());
        }
        self.execute(warp, k, pc, &inst.op, active)
    }

    /// Whether all lanes that run an instruction together are here; else this part of the warp waits for the others.
    fn together(&self, warp: &mut Warp, k: usize, pc: usize, which: Together, active: u32) -> Result<bool> {
        let members = match which {
            Together::Warp => !0,
            Together::Mask(w) => {
                let mask = warp.registers[w][first(active)];
                if lanes(active).any(|lane| warp.registers[w][lane] != mask) {
                    fault!("masks that differ between lanes are not modelled");
                }
                mask
            }
        };
        let need = members & !warp.exited;
        let part = &mut warp.parts[k];
        if part.mask & need != need {
            part.pc = pc;
            part.wait = Wait::Lanes;
            return Ok(false);
        }
        if active & need != need || active & !members != 0 {
            fault!("lanes {active:08x} run what is for lanes {need:08x}");
        }
        Ok(true)
    }

    fn execute(&mut self, warp: &mut Warp, k: usize, pc: usize, op: &Op, active: u32) -> Result<()> {
        match *op {
            Op::Scalar(ref run) => run(&mut warp.registers, active),
            Op::Special(which, to) => self.special(warp, which, to, active),
            Op::ParamAddr(to, offset) => {
                let at = (self.launch.params.as_ptr() as u64).wrapping_add(u64::from(offset));
                lanes(active).for_each(|lane| warp.registers[to][lane] = at);
            }
            Op::LoadParam { ref to, bytes, signed, offset } => self.load_param(warp, to, (offset, bytes), signed, active)?,
            Op::Load(ref load) => self.load(warp, load, active)?,
            Op::Store(ref store) => self.store(warp, store, active)?,
            Op::Atomic { space, reduce, old, at, with } => self.atomic(warp, space, (reduce, at, with), old, active)?,
            Op::Branch(target) => warp.branch(k, active, target),
            Op::Exit => {
                warp.exit(k, active);
                if warp.done {
                    self.leave(warp)?;
                }
            }
            Op::BarSync { id, threads } => self.barrier(warp, k, active, &Arrival { id, threads, wait: true, or: None })?,
            Op::BarArrive(id, threads) => {
                self.barrier(warp, k, active, &Arrival { id, threads: Some(threads), wait: false, or: None })?;
            }
            Op::BarOr { result, id, threads, of } => {
                self.barrier(warp, k, active, &Arrival { id, threads, wait: true, or: Some((of, result)) })?;
            }
            Op::ClusterArrive(release) => self.cluster_arrive(warp, release)?,
            Op::ClusterWait => self.cluster_wait(warp, k)?,
            Op::MbarInit(at, count) => self.mbarrier_init(warp, at, count, active)?,
            Op::MbarArrive { at, count, bytes, space, cluster } => {
                self.mbarrier_arrive(warp, &Arrive { at, count, bytes, space, cluster }, active)?;
            }
            Op::MbarExpect(at, bytes) => self.mbarrier_expect(warp, at, bytes, active)?,
            Op::MbarTry { result, at, parity, wait, cluster } => {
                self.mbarrier_try(warp, k, &Ask { result, at, parity, wait, cluster }, active)?;
            }
            Op::Mapa(to, at, block) => self.map_address(warp, (to, at, block), active),
            Op::CpAsync { to, from, bytes, used } => self.start_small(warp, (to, from), bytes, used, active)?,
            Op::CpCommit => warp.copy_groups.push_back(std::mem::take(&mut warp.copies)),
            Op::CpWait(left) => self.wait_small(warp, left)?,
            Op::CpArrive { at, counted } => self.arrive_small(warp, at, counted, active)?,
            Op::Tensor(ref tensor) => self.start_tensor(warp, tensor, active)?,
            Op::Bulk(ref bulk) => self.start_bulk(warp, bulk, active)?,
            Op::Wgmma(ref product) => self.issue(warp, product, pc)?,
            Op::WgmmaCommit => warp.product_groups.push_back(warp.issued),
            Op::WgmmaWait(left) => self.wait_products(warp, k, pc, left)?,
            Op::Mma(ref product) => warp.mma(product),
            Op::Ldmatrix { ref to, transpose, at } => self.ldmatrix(warp, to, transpose, at)?,
            Op::Shuffle { kind, to, from, by, clamp } => warp.shuffle(kind, &Words { to, from, by, clamp }, active)?,
            Op::Ballot(to, of) => warp.ballot(to, of, active),
            Op::Vote(vote, to, of) => warp.vote(vote, to, of, active),
            Op::Redux(reduce, to, of) => warp.redux(reduce, to, of, active),
            Op::Elect(p) => warp.elect(p, active),
            Op::WarpSync => {
                if let Some(races) = &mut self.races {
                    races.warp_sync(warp, active);
                }
            }
            Op::ProxyFence => {
                if let Some(races) = &mut self.races {
                    races.fence(warp, active);
                }
            }
            Op::Nothing => {}
            Op::Unknown(ref reason) => {
                if active != 0 {
                    fault!("{reason}");
                }
            }
        }
        Ok(())
    }

    fn special(&self, warp: &mut Warp, which: Special, to: crate::ptx::W, mask: u32) {
        let launch = self.launch;
        let of_block = match which {
            Special::Ntid => launch.threads,
            Special::Ctaid(axis) => self.blocks[warp.block].id[axis],
            Special::Nctaid(axis) => launch.grid[axis],
            Special::ClusterRank => warp.block as u32,
            Special::ClusterSize => launch.cluster,
            Special::Clock => warp.steps as u32,
            Special::One => 1,
            Special::Tid | Special::Lane | Special::Zero => 0,
        };
        for lane in lanes(mask) {
            warp.registers[to][lane] = match which {
                Special::Tid => warp.index * 32 + lane as u32,
                Special::Lane => lane as u32,
                _ => of_block,
            };
        }
    }
}
