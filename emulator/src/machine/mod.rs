//! A cluster of thread blocks: its warps, its scheduler, and what goes on behind their backs.

mod barrier;
mod cluster;
mod copy;
mod exchange;
mod execute;
mod mbarrier;
mod memory;
mod product;
mod races;
mod random;
mod report;
mod schedule;
mod tensor;
mod warp;
mod warp_product;

pub use tensor::{Map, RANK};

use crate::fault::{Result, fault};
use crate::isa::Kernel;
use crate::settings::Settings;
use cluster::Cluster;
use random::Random;

/// Shared addresses below this belong to the system, as on hardware; the launch's memory starts here.
pub const SHARED_BASE: u32 = 1024;
/// Most shared memory of a block.
pub const SHARED_BYTES: u32 = 227 * 1024;
/// Most threads of a block.
pub const THREADS: u32 = 1024;
/// Most blocks of a cluster.
const CLUSTER: u32 = 16;

/// A launch.
#[derive(Clone, Copy)]
pub struct Launch<'a> {
    /// What runs.
    pub kernel: &'a Kernel,
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Blocks of a cluster, along x.
    pub cluster: u32,
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of shared memory of a block.
    pub shared_bytes: u32,
    /// Parameters; their address must be a multiple of 64 where one is a tensor map.
    pub params: &'a [u8],
    /// How it runs.
    pub settings: &'a Settings,
    /// Number of this launch: the same settings give each launch choices of its own.
    pub serial: u64,
}

impl Launch<'_> {
    /// The seed of this launch's choices.
    fn seed(&self) -> u64 {
        self.settings.seed.wrapping_mul(1_000_003).wrapping_add(self.serial)
    }
}

/// Runs a launch to its end.
///
/// # Errors
/// When its shape is none that hardware takes, or the kernel does what hardware would not forgive; the message says where each
/// warp was.
pub fn run(launch: &Launch) -> Result<()> {
    let Launch { kernel, grid, cluster, threads, shared_bytes, params, .. } = *launch;
    let blocks = grid.iter().try_fold(1u32, |n, g| n.checked_mul(*g));
    let Some(blocks) = blocks.filter(|n| *n > 0) else { fault!("a grid of {grid:?}") };
    if cluster == 0 || cluster > CLUSTER || grid[0] % cluster != 0 {
        fault!("clusters of {cluster} blocks in a grid of {grid:?}");
    }
    if threads == 0 || threads > kernel.max_threads.unwrap_or(THREADS).min(THREADS) || shared_bytes > SHARED_BYTES {
        fault!("{threads} threads and {shared_bytes} bytes of shared memory for {}", kernel.name);
    }
    if params.len() < kernel.param_bytes() {
        fault!("{} bytes of parameters for {}", params.len(), kernel.name);
    }
    let mut random = Random::new(launch.seed());
    for first in (0..blocks).step_by(cluster as usize) {
        Cluster::new(launch, first, random.next()).run()?;
    }
    Ok(())
}
