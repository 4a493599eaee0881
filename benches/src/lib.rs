//! What the criterion benches share, the rates of single instructions ([`rates`]), and what selection loses
//! ([`fidelity`]).
//!
//! Problems and engines are those of `stem bench`: N(0, 1) data in e4m3, pages in random order, random block lists. The clock
//! is the GPU's (CUDA events), the L2 cache is flushed before every launch, and where two variants are to be compared each
//! is timed with launches of the other between its own.

pub mod fidelity;
pub mod rates;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode};
use std::time::Duration;
use stem_attn::cli::bench::{Engine, Job, L2, Problem, QScaleOrder, Stage, engine, random_lists};
use stem_attn::cli::work::Shape;
use stem_attn::{Backend, BackendKind, BlockLists, Preset, StemConfig};

/// Names a file that the bench of instruction rates appends its records to.
pub const RECORDS: &str = "STEM_RECORDS";

/// Launches queued at once: enough to hide the host, few enough events.
const QUEUED: u64 = 64;

/// A backend and the shapes that end on it in reasonable time.
pub struct Machine {
    /// Where the benches run.
    pub backend: Backend,
    /// Lengths in tokens.
    pub lengths: &'static [usize],
    heads: [usize; 2],
}

impl Machine {
    /// The GPU where there is one. Otherwise says why not and takes the CPU reference, with shapes that end in seconds.
    ///
    /// # Panics
    /// When there is a GPU that does not start: a bench has nobody to return an error to.
    pub fn open() -> Self {
        match Backend::open(BackendKind::Cuda) {
            Ok(backend) => Self { backend, lengths: &[8192, 32_768, 131_072], heads: [32, 4] },
            Err(reason @ stem_attn::Error::Unavailable(_)) => {
                eprintln!("{reason}: the CPU reference is measured instead, which is no yardstick");
                Self { backend: Backend::Cpu, lengths: &[1024], heads: [2, 1] }
            }
            Err(broken) => panic!("{broken}"),
        }
    }

    /// One request of `tokens` tokens, all of them new.
    ///
    /// # Panics
    /// When memory does not hold it.
    pub fn case(&self, tokens: usize) -> Case {
        let shape = Shape { tokens, kv_tokens: tokens, hq: self.heads[0], hkv: self.heads[1] };
        let config = StemConfig { alpha: 0.7, ..StemConfig::preset(Preset::Hpc) };
        Case { problem: Problem::new(shape, 64, tokens as u64).expect("a problem that memory holds"), config }
    }

    /// A group of benches that names its backend.
    pub fn group<'a>(&self, c: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
        let mut group = c.benchmark_group(format!("{name}-{}", self.backend.name()));
        // As many launches in each sample: one may take long.
        group.sampling_mode(SamplingMode::Flat);
        group
    }

    /// Prepares a stage. `lists`: blocks that `attend` attends to; `None` is every visible one.
    ///
    /// # Panics
    /// When it cannot be prepared.
    pub fn engine<'a>(&'a self, case: &'a Case, stage: Stage, lists: Option<&'a BlockLists>) -> Box<dyn Engine + 'a> {
        let job = Job {
            stage,
            problem: &case.problem,
            config: &case.config,
            lists,
            l2: L2::Flushed,
            q_scale: QScaleOrder::default(),
            in_a_row: 1,
            pause: 0,
        };
        engine(&self.backend, job).expect("a stage that can run")
    }
}

/// A problem and how its blocks are selected.
pub struct Case {
    /// Tensors.
    pub problem: Problem,
    /// Selection: preset hpc with alpha 0.7.
    pub config: StemConfig,
}

impl Case {
    /// Random lists that leave out the share `skip` of the causal blocks.
    ///
    /// # Panics
    /// When the problem cannot be cut into blocks.
    pub fn lists(&self, skip: f64) -> BlockLists {
        let geometry = self.problem.geometry(None).expect("blocks");
        random_lists(&geometry, self.problem.shape.hq, skip, 0).expect("lists")
    }

    /// FLOPs of the visible pairs in the blocks of `lists`, or of all: 4 x 128 each.
    pub fn flops(&self, lists: Option<&BlockLists>) -> u64 {
        512 * lists.map_or_else(|| self.problem.shape.visible_pairs(), |lists| self.problem.shape.selected_pairs(lists))
    }
}

/// Time of `launches` launches.
///
/// # Panics
/// When a launch fails.
pub fn time(engine: &mut dyn Engine, launches: u64) -> Duration {
    let mut sum = 0.0;
    let mut left = launches;
    while left > 0 {
        let queued = left.min(QUEUED);
        sum += engine.time(queued as usize).expect("a launch").iter().sum::<f64>();
        left -= queued;
    }
    Duration::from_secs_f64(sum / 1e3)
}

/// Time of `launches` launches of `engine`, each followed by one of `partner`, which is not counted: two engines measured
/// as each other's partners see the same clocks, power and temperature.
///
/// # Panics
/// When a launch fails.
pub fn time_in_turns(engine: &mut dyn Engine, partner: &mut dyn Engine, launches: u64) -> Duration {
    (0..launches)
        .map(|_| {
            let mine = time(engine, 1);
            time(partner, 1);
            mine
        })
        .sum()
}
