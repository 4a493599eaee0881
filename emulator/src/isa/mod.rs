//! Statements to instructions: register numbers instead of names, one closure for what acts on each lane alone.

mod compare;
mod convert;
mod decode;
mod float;
mod integer;
mod matrix;
mod memory;
mod name;
mod registers;
mod sync;

pub use decode::kernel;
pub use matrix::{Element, Factor, Mma, Wgmma};
pub use memory::{Addr, Base, Bulk, Load, Reduce, Space, Store, Tensor, Values};
pub use registers::{ALL, LANES, Registers, first, lanes};
pub use sync::{Shuffle, Vote};

use crate::ptx::{Counts, D, P, Param, W};

/// What an instruction does to the lanes of a mask, each on its own.
pub type Scalar = Box<dyn Fn(&mut Registers, u32) + Send + Sync>;

/// A special register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// Thread of the block.
    Tid,
    /// Threads of a block.
    Ntid,
    /// Block of the grid, along x, y or z.
    Ctaid(usize),
    /// Blocks of the grid, along x, y or z.
    Nctaid(usize),
    /// Block of the cluster.
    ClusterRank,
    /// Blocks of the cluster.
    ClusterSize,
    /// Lane of the warp.
    Lane,
    /// Instructions that the warp has run: there is no time.
    Clock,
    /// Always 0: coordinates along axes that blocks do not use.
    Zero,
    /// Always 1: extents along axes that blocks do not use.
    One,
}

/// What an instruction does.
pub enum Op {
    /// Arithmetic, lane by lane.
    Scalar(Scalar),
    /// A special register into a word.
    Special(Special, W),
    /// The address of a parameter.
    ParamAddr(D, u32),
    /// A parameter.
    LoadParam {
        /// Where it goes: one register.
        to: Values,
        /// Bytes to read.
        bytes: usize,
        /// Whether the sign is extended.
        signed: bool,
        /// Offset in the parameters.
        offset: usize,
    },
    /// From memory to registers.
    Load(Load),
    /// From registers to memory.
    Store(Store),
    /// Read, change, write; the old value is kept where it is wanted.
    Atomic {
        /// State space.
        space: Space,
        /// The change.
        reduce: Reduce,
        /// Where the old value goes.
        old: Option<W>,
        /// The address.
        at: Addr,
        /// The other operand.
        with: W,
    },
    /// Jump to an instruction.
    Branch(usize),
    /// End of the thread.
    Exit,
    /// Named barrier, waiting.
    BarSync {
        /// Its number.
        id: W,
        /// Threads it counts; all of the block where there is none.
        threads: Option<W>,
    },
    /// Named barrier, not waiting: number and threads.
    BarArrive(W, W),
    /// Named barrier, waiting, and whether the predicate holds in any thread.
    BarOr {
        /// The result.
        result: P,
        /// Its number.
        id: W,
        /// Threads it counts.
        threads: Option<W>,
        /// The predicate.
        of: P,
    },
    /// Arrival at the barrier of the cluster, and whether it releases.
    ClusterArrive(bool),
    /// Wait at the barrier of the cluster.
    ClusterWait,
    /// A new mbarrier: address and arrivals of a phase.
    MbarInit(Addr, W),
    /// Arrivals at an mbarrier, and bytes that are expected.
    MbarArrive {
        /// The mbarrier.
        at: Addr,
        /// Arrivals.
        count: W,
        /// Bytes.
        bytes: Option<W>,
        /// Whether it may lie in another block.
        space: Space,
        /// Whether it releases to the cluster; else only to the block.
        cluster: bool,
    },
    /// Bytes that an mbarrier is to expect.
    MbarExpect(Addr, W),
    /// Whether a phase has ended.
    MbarTry {
        /// The answer.
        result: P,
        /// The mbarrier.
        at: Addr,
        /// Parity of the phase.
        parity: W,
        /// Whether to wait a while first.
        wait: bool,
        /// Whether it acquires what the cluster released; else only what the block did.
        cluster: bool,
    },
    /// The address of another block's shared memory: result, address here, block.
    Mapa(W, W, W),
    /// `cp.async`: the bytes past `used` are zeros.
    CpAsync {
        /// In shared memory.
        to: Addr,
        /// In global memory.
        from: Addr,
        /// Bytes to write.
        bytes: u32,
        /// Bytes to read.
        used: Option<W>,
    },
    /// Ends a group of `cp.async`.
    CpCommit,
    /// Waits until so many groups are left; with `None`, for all copies.
    CpWait(Option<u32>),
    /// An arrival when the copies so far are done; `counted` where it is one of those the mbarrier counts.
    CpArrive {
        /// The mbarrier.
        at: Addr,
        /// Whether the phase's count holds this arrival already.
        counted: bool,
    },
    /// A box of a tensor to shared memory.
    Tensor(Tensor),
    /// Bytes to shared memory.
    Bulk(Bulk),
    /// A product of a warpgroup.
    Wgmma(Box<Wgmma>),
    /// Ends a group of products.
    WgmmaCommit,
    /// Waits until so many groups are left.
    WgmmaWait(u32),
    /// A product of a warp.
    Mma(Box<Mma>),
    /// 8 x 8 matrices of 16 bits from shared memory.
    Ldmatrix {
        /// A register for each matrix.
        to: Vec<W>,
        /// Whether they are transposed.
        transpose: bool,
        /// Rows, by lane.
        at: Addr,
    },
    /// A word of another lane.
    Shuffle {
        /// Which lane.
        kind: Shuffle,
        /// The result.
        to: W,
        /// The words.
        from: W,
        /// Lane, mask or distance.
        by: W,
        /// Segments and limit.
        clamp: W,
    },
    /// The predicates of the lanes as a mask.
    Ballot(W, P),
    /// Whether the predicate holds in any lane, or in all.
    Vote(Vote, P, P),
    /// One number of all lanes.
    Redux(Reduce, W, W),
    /// One lane is chosen.
    Elect(P),
    /// `bar.warp.sync`.
    WarpSync,
    /// `fence.proxy.async`.
    ProxyFence,
    /// Nothing that this machine models: other fences, hints, register counts.
    Nothing,
    /// Not known; the reason.
    Unknown(String),
}

/// Which lanes must be there before an instruction runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Together {
    /// Those of the warp that have not exited.
    Warp,
    /// Those of a mask.
    Mask(W),
}

/// An instruction.
pub struct Inst {
    /// The predicate that guards it, and whether it is negated.
    pub guard: Option<(P, bool)>,
    /// Which lanes run it together, if it is such an instruction.
    pub together: Option<Together>,
    /// What it does.
    pub op: Op,
    /// The statement it comes from.
    pub statement: usize,
}

/// A kernel that can run.
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// Instructions; the last one ends the thread, whatever the text does.
    pub code: Vec<Inst>,
    /// Line and text of each statement.
    pub statements: Vec<(u32, String)>,
    /// Its parameters.
    pub params: Vec<Param>,
    /// Threads of a block that its text allows.
    pub max_threads: Option<u32>,
    /// Registers.
    pub registers: Counts,
    /// Registers that hold a constant, and the constant.
    pub words: Vec<(W, u32)>,
    /// The same of 64 bits.
    pub doubles: Vec<(D, u64)>,
}

impl Kernel {
    /// Bytes of all parameters.
    pub fn param_bytes(&self) -> usize {
        self.params.iter().map(|p| p.offset + p.bytes).max().unwrap_or(0)
    }

    /// Leaves out the statements of a line of the text. Returns whether there are any.
    pub fn leave_out(&mut self, line: u32) -> bool {
        let mut any = false;
        for inst in &mut self.code {
            if self.statements.get(inst.statement).is_some_and(|(l, _)| *l == line) {
                *inst = Inst { guard: None, together: None, op: Op::Nothing, statement: inst.statement };
                any = true;
            }
        }
        any
    }

    /// Line and text of an instruction.
    pub fn source(&self, pc: usize) -> (u32, &str) {
        let statement = self.code.get(pc).and_then(|i| self.statements.get(i.statement));
        statement.map_or((0, "end of the text"), |(line, text)| (*line, text))
    }

    /// Statements that were not understood: line, text and reason.
    pub fn unknown(&self) -> impl Iterator<Item = (u32, &str, &str)> {
        self.code.iter().enumerate().filter_map(|(pc, inst)| match &inst.op {
            Op::Unknown(reason) => {
                let (line, text) = self.source(pc);
                Some((line, text, reason.as_str()))
            }
            _ => None,
        })
    }
}
