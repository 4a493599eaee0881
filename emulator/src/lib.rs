//! Runs the PTX of this workspace's kernels on a CPU, so that a machine without a GPU tests device code.
//!
//! Built as a shared library and put on the library path as `libcuda.so.1`, it poses as the CUDA driver: the tests of
//! `stem-attn-tests` run on it unchanged (`cargo xtask test --tier emulated`).
//!
//! Layers, lowest first:
//! - [`num`], [`memory`], [`settings`]: small floats, device memory, what the environment chooses;
//! - [`ptx`]: text to statements with resolved names;
//! - [`isa`]: statements to instructions; what acts on each lane alone becomes a closure right there;
//! - [`machine`]: a cluster of thread blocks, its scheduler, and everything that goes on behind a warp's back;
//! - `driver`: the entry points of libcuda.
//!
//! # The machine
//! A launch runs its clusters one after the other. Within a cluster:
//! - Warps are independent. A scheduler with a seed picks one and runs a random number of its instructions. It can be fair, or
//!   keep one warp, several, or changing ones from running as long as any other can ([`settings::Mode`]).
//! - Lanes of a warp diverge at branches and converge where their paths meet; at a `.sync` instruction a part of a
//!   warp waits for the lanes that the instruction names.
//! - Asynchronous copies (TMA, bulk) complete at any later time, in any order. Copies by `cp.async` are done as late as their
//!   wait or their mbarrier allows.
//! - A product of a warpgroup reads shared memory and registers when its fourth warp issues it, or at the wait that retires it,
//!   as the seed decides. No warp passes that wait before all four have issued.
//! - An mbarrier counts arrivals and bytes; a `try_wait` comes back with true, or in vain after its phase or when nothing
//!   else can go on.
//! - Shared memory and registers start with random contents.
//!
//! Errors, each with line and text of the instruction and the place of every warp: accesses outside an allocation or misaligned,
//! too many arrivals, mbarriers that were not initialised, warps of a warpgroup that disagree about a product, reads from lanes
//! that are not there, an exit with products in flight, instructions that are not known, and a deadlock: nothing can go on.
//!
//! # What it does not model
//! Time and caches; memory order weaker than sequential, so no missing fence shows, proxy fences included; the
//! FP8 tensor core's accumulator of about 14 bits (sums are f32); limits on registers; clusters that run at
//! the same time.

mod driver;
pub mod fault;
pub mod isa;
pub mod machine;
pub mod memory;
pub mod num;
pub mod ptx;
pub mod settings;
