//! The state of a cluster.

use super::barrier::NamedBarrier;
use super::copy::Copy;
use super::mbarrier::Mbarrier;
use super::races::Races;
use super::random::Random;
use super::warp::{Part, Wait, Warp};
use super::{Launch, SHARED_BASE};
use crate::isa::Registers;
use std::collections::BTreeMap;

/// Named barriers of a block.
pub(super) const BARRIERS: usize = 16;

/// A block of the cluster.
pub(super) struct Block {
    /// Its place in the grid.
    pub(super) id: [u32; 3],
    /// Shared memory from address 0; the kernel's starts at [`SHARED_BASE`].
    pub(super) shared: Vec<u8>,
    pub(super) mbarriers: BTreeMap<u32, Mbarrier>,
    pub(super) barriers: [NamedBarrier; BARRIERS],
    /// Warps that have not exited.
    pub(super) running: u32,
}

/// A cluster while it runs.
pub(super) struct Cluster<'a> {
    pub(super) launch: &'a Launch<'a>,
    pub(super) blocks: Vec<Block>,
    /// Warps of all blocks. The one that runs is taken out.
    pub(super) warps: Vec<Warp>,
    pub(super) copies: Vec<Copy>,
    pub(super) random: Random,
    /// Warps that have arrived at the cluster's barrier, and how often it has opened.
    pub(super) arrived: u32,
    pub(super) generation: u64,
    /// Warps that have not exited.
    pub(super) running: u32,
    /// Of four products that could be done at once, how many are.
    pub(super) eager: u64,
    /// Counts what may let another warp go on; where it stands still, nothing will.
    pub(super) activity: u64,
    /// Ends of the allocation that was accessed last.
    pub(super) extent: (u64, u64),
    /// A right factor, eight columns of one depth after the other.
    pub(super) right: Vec<[f32; 8]>,
    /// Who accessed what, where that is wanted.
    pub(super) races: Option<Box<Races>>,
    /// The instruction that runs.
    pub(super) pc: usize,
}

impl<'a> Cluster<'a> {
    /// The cluster whose first block has a number, with random contents of memory and registers.
    pub(super) fn new(launch: &'a Launch<'a>, first: u32, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let (mut blocks, mut warps) = (Vec::new(), Vec::new());
        let [x, y, _] = launch.grid;
        for rank in 0..launch.cluster {
            let number = first + rank;
            let mut shared = vec![0; (SHARED_BASE + launch.shared_bytes) as usize];
            for chunk in shared.chunks_mut(8) {
                chunk.copy_from_slice(&random.next().to_le_bytes()[..chunk.len()]);
            }
            let count = launch.threads.div_ceil(32);
            blocks.push(Block {
                id: [number % x, number / x % y, number / x / y],
                shared,
                mbarriers: BTreeMap::new(),
                barriers: Default::default(),
                running: count,
            });
            warps.extend((0..count).map(|index| Self::warp(launch, rank as usize, index, random.next())));
        }
        let running = warps.len() as u32;
        let bytes = (SHARED_BASE + launch.shared_bytes) as usize;
        let races = launch.settings.races.then(|| Box::new(Races::new(blocks.len(), launch.threads.div_ceil(32) as usize, bytes)));
        let eager = [0, 2, 4][random.index(3)];
        Self {
            launch,
            blocks,
            warps,
            copies: vec![],
            random,
            arrived: 0,
            generation: 0,
            running,
            eager,
            activity: 0,
            extent: (0, 0),
            right: vec![],
            races,
            pc: 0,
        }
    }

    fn warp(launch: &Launch, block: usize, index: u32, poison: u64) -> Warp {
        let threads = (launch.threads - index * 32).min(32);
        let mask = !0 >> (32 - threads);
        let mut registers = Registers::new(launch.kernel.registers, poison);
        for (register, value) in &launch.kernel.words {
            registers[*register].fill(*value);
        }
        for (register, value) in &launch.kernel.doubles {
            registers[*register].fill(*value);
        }
        let parts = vec![Part { pc: 0, mask, wait: Wait::Nothing }];
        Warp { block, index, registers, parts, exited: !mask, ..Warp::default() }
    }
}
