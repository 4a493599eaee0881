//! Who touched a word of shared memory last.

use super::clock::{Agent, Past};

/// Bytes of a word.
const WORD: u32 = 4;

/// A write.
#[derive(Clone, Copy, Debug, Default)]
struct Write {
    agent: u32,
    /// 0: never.
    epoch: u32,
    pc: u32,
    /// Which of its bytes.
    bytes: u8,
    kind: Kind,
}

/// Reads of neighbouring agents in one epoch.
#[derive(Clone, Copy, Debug, Default)]
struct Read {
    /// First agent, and which of the 32 from there.
    agents: u32,
    mask: u32,
    epoch: u32,
    pc: u32,
    bytes: u8,
}

#[derive(Clone, Debug, Default)]
struct Word {
    write: Write,
    /// One, which is mostly all; its mask is 0 where there is none.
    read: Read,
    more: Vec<Read>,
}

/// How an access touches memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::machine) enum Kind {
    /// An ordinary load.
    #[default]
    Load,
    /// An ordinary store.
    Store,
    /// An atomic operation: not ordered, but no race with others of its kind.
    Atomic,
    /// A `cp.async`, which writes like a store, later.
    SmallCopy,
    /// A product, which reads through the async proxy.
    Product,
    /// A tensor or bulk copy, which writes through it.
    Copy,
    /// A bulk copy, which reads through it.
    CopySource,
}

impl Kind {
    fn writes(self) -> bool {
        matches!(self, Self::Store | Self::Atomic | Self::SmallCopy | Self::Copy)
    }

    pub(super) fn verb(self) -> &'static str {
        if self.writes() { "writes" } else { "reads" }
    }

    fn through_async_proxy(self) -> bool {
        matches!(self, Self::Product | Self::Copy | Self::CopySource)
    }
}

/// An access.
pub(super) struct Access<'a> {
    /// Who.
    pub(super) agent: Agent,
    pub(super) epoch: u32,
    pub(super) pc: u32,
    pub(super) kind: Kind,
    /// What is ordered before it.
    pub(super) past: &'a Past,
}

/// What is missing between two accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lack {
    /// Any order.
    Order,
    /// A proxy fence.
    Fence,
    /// A release to the cluster that is acquired from the cluster.
    Cluster,
}

/// What an access clashes with.
pub(super) struct Clash {
    /// First byte of the word.
    pub(super) at: u32,
    pub(super) agent: Agent,
    pub(super) pc: u32,
    pub(super) kind: Kind,
    pub(super) lacks: Lack,
}

/// The words of a block's shared memory.
#[derive(Debug)]
pub(super) struct Shadow {
    words: Vec<Word>,
    block: usize,
    /// Lanes of a block.
    lanes: usize,
}

impl Shadow {
    pub(super) fn new(bytes: usize, block: usize, lanes: usize) -> Self {
        Self { words: vec![Word::default(); bytes.div_ceil(WORD as usize)], block, lanes }
    }

    /// Notes an access, unless it is not ordered after what it must come after.
    pub(super) fn touch(&mut self, at: u32, bytes: u32, access: &Access) -> Result<(), Clash> {
        let end = at + bytes;
        let (block, lanes) = (self.block, self.lanes);
        // Whether the block of a lane that stored is another, so that only an order of the cluster counts. A copy over what a block stored
        // in its own memory is the exception: there is no second copy of it to become visible later.
        let far = |writer: Agent| {
            let by = writer / lanes;
            by != access.past.own.start / lanes && (by != block || !access.kind.through_async_proxy())
        };
        for first in ((at / WORD * WORD)..end).step_by(WORD as usize) {
            let Some(word) = self.words.get_mut((first / WORD) as usize) else { return Ok(()) };
            let (low, high) = (at.max(first) - first, (end - first).min(WORD));
            let bytes = (1u8 << high) - (1u8 << low);
            word.touch(bytes, access, far).map_err(|clash| Clash { at: first, ..clash })?;
        }
        Ok(())
    }
}

impl Word {
    fn touch(&mut self, bytes: u8, access: &Access, far: impl Fn(Agent) -> bool) -> Result<(), Clash> {
        let agent = access.agent as u32;
        let last = self.write;
        if last.epoch != 0 && last.bytes & bytes != 0 && !(last.kind == Kind::Atomic && access.kind == Kind::Atomic) {
            let clash = |lacks| Clash { at: 0, agent: last.agent as Agent, pc: last.pc, kind: last.kind, lacks };
            if !access.past.has(last.agent as Agent, last.epoch) {
                return Err(clash(Lack::Order));
            }
            let stored = matches!(last.kind, Kind::Store | Kind::Atomic);
            if stored && far(last.agent as Agent) && !access.past.clock.has_far(last.agent as Agent, last.epoch) {
                return Err(clash(Lack::Cluster));
            }
            let crosses = access.kind.through_async_proxy() && !last.kind.through_async_proxy();
            if crosses && !access.past.clock.has_fenced(last.agent as Agent, last.epoch) {
                return Err(clash(Lack::Fence));
            }
        }
        if !access.kind.writes() {
            self.read(bytes, access);
            return Ok(());
        }
        for read in self.reads().filter(|r| r.bytes & bytes != 0) {
            for lane in crate::isa::lanes(read.mask) {
                let reader = read.agents as Agent + lane;
                if !access.past.has(reader, read.epoch) {
                    return Err(Clash { at: 0, agent: reader, pc: read.pc, kind: Kind::Load, lacks: Lack::Order });
                }
            }
        }
        self.keep_reads(|r| r.bytes & !bytes != 0);
        let merged = if last.agent == agent && last.epoch == access.epoch && last.kind == access.kind { last.bytes } else { 0 };
        self.write = Write { agent, epoch: access.epoch, pc: access.pc, bytes: bytes | merged, kind: access.kind };
        Ok(())
    }

    fn reads(&self) -> impl Iterator<Item = &Read> {
        std::iter::once(&self.read).chain(&self.more)
    }

    fn keep_reads(&mut self, keep: impl Fn(&Read) -> bool) {
        self.more.retain(&keep);
        if !keep(&self.read) {
            self.read = self.more.pop().unwrap_or_default();
        }
    }

    fn read(&mut self, bytes: u8, access: &Access) {
        let (agents, bit) = (access.agent as u32 & !31, 1 << (access.agent & 31));
        let mut emptied = false;
        for read in std::iter::once(&mut self.read).chain(&mut self.more).filter(|r| r.agents == agents) {
            if read.epoch == access.epoch && read.bytes == bytes {
                read.mask |= bit;
                return;
            }
            // An agent's later read stands for its earlier one.
            if read.bytes & !bytes == 0 {
                read.mask &= !bit;
                emptied |= read.mask == 0;
            }
        }
        if emptied {
            self.keep_reads(|r| r.mask != 0);
        }
        let read = Read { agents, mask: bit, epoch: access.epoch, pc: access.pc, bytes };
        if self.read.mask == 0 {
            self.read = read;
        } else {
            self.more.push(read);
        }
    }
}
