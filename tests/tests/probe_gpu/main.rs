//! Every instruction and layout the kernels are built from, run alone on a GPU and compared with a CPU model.
//!
//! The probes are in `kernels-gpu/src/kernels/probe*.rs`; each says in its doc what it reads and writes. Data are fresh in
//! every run, with the seed printed; set `STEM_ATTN_SEED` to repeat one.

mod cluster;
mod copy;
mod cp_async;
mod gather;
mod half_precision;
mod math;
mod matrix;
mod model;
mod octet;
mod rates;
mod select;
mod sync;
mod wgmma;

use rand::{SeedableRng, rngs::StdRng};
use stem_attn::driver::{Arg, CudaSlice, DevicePtr, DeviceRepr, Launch, TensorMap};
use stem_attn_kernels::abi_probe::{ProbeParams, SETMAXNREG_THREADS, SMEM_BYTES, THREADS};
use stem_attn_tests::gpu::Gpu;

const PTX: &str = include_str!("../../../host/ptx/probe.ptx");

/// A generator of fresh data; prints its seed.
fn rng(test: &str) -> StdRng {
    let seed = std::env::var("STEM_ATTN_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    println!("{test}: STEM_ATTN_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// Device address of a buffer. All work is on one stream, so its order is the order of the calls.
fn address<T: DeviceRepr>(gpu: &Gpu, buffer: &CudaSlice<T>) -> u64 {
    buffer.device_ptr(&gpu.stream).0
}

/// Queues a probe. The buffers named in `params` (and behind `map`) have the sizes its doc gives.
fn launch(gpu: &Gpu, entry: &'static str, how: Launch, params: &ProbeParams, map: Option<&TensorMap>) {
    let threads = if entry == "probe_setmaxnreg" { SETMAXNREG_THREADS } else { THREADS };
    let kernel = gpu.kernel(PTX, entry, threads, SMEM_BYTES);
    assert_eq!(kernel.local_bytes().expect("attribute"), 0, "{entry} uses local memory");
    let args: Vec<Arg<'_>> = std::iter::once(Arg::of(params)).chain(map.map(Arg::of)).collect();
    // SAFETY: the arguments are the probe's (a block and, for some, a map); the buffers outlive the download that follows.
    unsafe { kernel.launch(&gpu.stream, &how, &args) }.expect("launch");
}

/// Runs a probe of one block over one input and returns `len` elements of its output, which start poisoned.
fn run<I, O>(gpu: &Gpu, entry: &'static str, params: ProbeParams, a: &[I], len: usize) -> Vec<O>
where
    I: DeviceRepr,
    O: DeviceRepr + stem_attn::driver::ValidAsZeroBits + Copy,
{
    let (a, out) = (gpu.upload(a), gpu.poisoned::<O>(len));
    launch(gpu, entry, Launch::grid(1, 1, 1), &ProbeParams { a: address(gpu, &a), out: address(gpu, &out), ..params }, None);
    gpu.download(&out, len)
}
