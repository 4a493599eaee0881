//! What an instruction costs on one multiprocessor, alone and beside the tensor core, by the `probe_rate_*` kernels.

use serde::Serialize;
use std::sync::Arc;
use stem_attn::driver::{Arg, CudaStream, Device, DevicePtr, Launch, Module, buffer};
use stem_attn::{Error, Result, record};
use stem_attn_kernels::abi_probe::{RATE_CHAINS, RATE_E4M3_ROUNDS, RATE_THREADS, RATE_WARPS, RATE_WORDS, RateParams, SMEM_BYTES};

/// The kernels' text.
const PTX: &str = include_str!("../../host/ptx/probe.ptx");

/// Trips of a measurement: long enough that the first, cold ones do not count, a few milliseconds each.
pub const TRIPS: u32 = 4096;
/// Most trips: the 32-bit clock does not wrap below, at 30 clocks an instruction.
const MAX_TRIPS: u32 = 1 << 20;

/// An instruction that can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// Short name.
    pub name: &'static str,
    /// PTX name.
    pub ptx: &'static str,
    entry: &'static str,
    /// Instructions a trip.
    per_trip: u32,
}

/// The instructions.
pub const OPS: [Op; 9] = [
    op("ex2_f32", "ex2.approx.ftz.f32", "probe_rate_ex2_f32", 1),
    op("cvt_e4m3x2", "cvt.rn.satfinite.e4m3x2.f32", "probe_rate_cvt_e4m3x2", 2 * RATE_E4M3_ROUNDS),
    op("max_f32", "max.f32", "probe_rate_max_f32", 1),
    op("cvt_f16x2", "cvt.rn.f16x2.f32", "probe_rate_cvt_f16x2", 1),
    op("fma_f32", "fma.rn.ftz.f32", "probe_rate_fma_f32", 1),
    op("add_f32", "add.f32", "probe_rate_add_f32", 1),
    op("prmt", "prmt.b32", "probe_rate_prmt", 1),
    op("mad_u32", "mad.lo.u32", "probe_rate_mad_u32", 1),
    op("lop3", "lop3.b32", "probe_rate_lop3", 1),
];

const fn op(name: &'static str, ptx: &'static str, entry: &'static str, per_register: u32) -> Op {
    Op { name, ptx, entry, per_trip: RATE_CHAINS * per_register }
}

/// One measurement, and the line of a record file that it becomes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rate {
    /// Short name of the instruction; `wgmma` where there is none beside the products.
    pub op: &'static str,
    /// Warps of each scheduler that stream it.
    pub op_warps: u32,
    /// Warpgroups that run `wgmma.m64n128k32` of e4m3 at the same time.
    pub wgmma_warpgroups: u32,
    /// SM clocks per instruction of one warp, the loop's own (a dozen clocks a trip) included.
    pub clocks_per_instruction: Option<f64>,
    /// SM clocks per product, those of all warpgroups together; 64 is the tensor core's rate.
    pub clocks_per_wgmma: Option<f64>,
    /// GPU name.
    pub gpu: String,
    /// Driver version.
    pub driver: Option<String>,
    /// The command that made the line.
    pub command: &'static str,
    /// Commit of the source.
    pub commit: Option<String>,
    /// UTC, `YYYY-MM-DDThh:mm:ssZ`.
    pub date: String,
}

impl Rate {
    /// The line, with its line feed.
    pub fn to_line(&self) -> String {
        // Serialising a struct of numbers and strings cannot fail; a non-finite number becomes null.
        serde_json::to_string(self).map(|line| line + "\n").unwrap_or_default()
    }
}

/// The kernels, loaded on a GPU.
pub struct Rates {
    device: Device,
    stream: Arc<CudaStream>,
    module: Arc<Module>,
    commit: Option<String>,
}

impl Rates {
    /// Loads the kernels on GPU `ordinal`.
    ///
    /// # Errors
    /// As [`Device::open`] and [`Module::load`].
    pub fn open(ordinal: usize) -> Result<Self> {
        let device = Device::open(ordinal)?;
        let stream = device.context().default_stream();
        let module = Module::load(&device, "probe", PTX)?;
        Ok(Self { device, stream, module, commit: record::commit() })
    }

    /// Runs `op` in `op_warps` warps of each scheduler beside `wgmma_warpgroups` warpgroups of products, `trips` times
    /// round its loop. Without `op`, `trips` batches of eight products alone.
    ///
    /// # Errors
    /// [`Error::Value`] when `op_warps` is not 1 or 2 (0 without `op`), `wgmma_warpgroups` not 0, 1 or 2, there is nothing
    /// to run or more than three warpgroups of it, or `trips` is 0 or over a million; [`Error::Driver`].
    pub fn measure(&self, op: Option<&Op>, op_warps: u32, wgmma_warpgroups: u32, trips: u32) -> Result<Rate> {
        if op_warps > 2 || op.is_some() != (op_warps > 0) {
            return Err(Error::value("op_warps", "1 or 2, or 0 without an instruction", op_warps));
        }
        if wgmma_warpgroups > 2 || !(1..=3).contains(&(op_warps + wgmma_warpgroups)) {
            return Err(Error::value("wgmma_warpgroups", format!("0 to 2, 1 to 3 with the {op_warps} others"), wgmma_warpgroups));
        }
        if !(1..=MAX_TRIPS).contains(&trips) {
            return Err(Error::value("trips", format!("1 to {MAX_TRIPS}"), trips));
        }
        let words = self.run(op.unwrap_or(&OPS[0]).entry, op_warps, wgmma_warpgroups, trips)?;
        let (clocks, products) = words.split_at(RATE_WARPS);
        let per_clock: f64 =
            clocks.iter().zip(products).step_by(4).filter(|(_, n)| **n > 0).map(|(&c, &n)| f64::from(n) / f64::from(c)).sum();
        let slowest = clocks.iter().take(4).copied().max().unwrap_or_default();
        let info = self.device.info();
        Ok(Rate {
            op: op.map_or("wgmma", |op| op.name),
            op_warps,
            wgmma_warpgroups,
            clocks_per_instruction: op.map(|op| f64::from(slowest) / (f64::from(trips) * f64::from(op.per_trip))),
            clocks_per_wgmma: (per_clock > 0.0).then(|| 1.0 / per_clock),
            gpu: info.name.clone(),
            driver: info.driver_version.clone(),
            command: "cargo bench --package stem-attn-benches --bench rates",
            commit: self.commit.clone(),
            date: record::now(),
        })
    }

    /// Runs an entry twice, the first time to fill the instruction caches, and returns the second's clocks and products.
    fn run(&self, entry: &'static str, op_warpgroups: u32, wgmma_warpgroups: u32, trips: u32) -> Result<Vec<u32>> {
        let kernel = self.module.kernel(entry, RATE_THREADS, SMEM_BYTES)?;
        let out = buffer::zeroed::<u32>(&self.stream, RATE_WORDS)?;
        let params = RateParams { out: out.device_ptr(&self.stream).0, trips, op_warpgroups, wgmma_warpgroups, reserved: 0 };
        for _ in 0..2 {
            // SAFETY: the entry takes one such block; its output has the words it writes and outlives the download below;
            // the caller has checked the numbers of warpgroups.
            unsafe { kernel.launch(&self.stream, &Launch::grid(1, 1, 1), &[Arg::of(&params)]) }?;
        }
        buffer::download(&self.stream, &out, 2 * RATE_WARPS)
    }
}
