//! Small kernels on the machine: what they compute, and which of their mistakes it finds.

mod barriers;
mod clusters;
mod control;
mod copies;
mod faults;
mod products;
mod races;
mod schedules;

use stem_emulator::fault::Result;
use stem_emulator::machine::{self, Launch, Map};
use stem_emulator::settings::Settings;
use stem_emulator::{isa, memory, ptx};

/// Bytes of a tensor map.
const MAP_BYTES: usize = 128;

/// How a test's kernel runs.
struct Run<'a> {
    grid: u32,
    cluster: u32,
    threads: u32,
    shared_bytes: u32,
    settings: Settings,
    /// Device memory that `%rd1` points to.
    input: &'a [u8],
    /// Words of the device memory that `%rd0` points to.
    out: usize,
    /// A tensor of one-byte elements over `input`: bytes of a row, rows, and the extents of a box.
    tensor: Option<([u64; 2], [u64; 2])>,
}

impl Default for Run<'_> {
    fn default() -> Self {
        let settings = Settings { steps: 1 << 20, ..Settings::default() };
        Self { grid: 1, cluster: 1, threads: 32, shared_bytes: 8192, settings, input: &[], out: 32, tensor: None }
    }
}

/// Runs before a test's statements: `%r0` is the thread, `%r63` the shared memory, `%rd0` and `%rd1` output and input, `%rd2`
/// the thread's word of the output, `%rd3` the tensor map. It ends in line 17.
const HEAD: &str = ".extern .shared .align 1024 .b8 smem[];
.visible .entry k(
.param .u64 k_param_0,
.param .u64 k_param_1,
.param .align 64 .b8 k_param_2[128]
)
{
.reg .pred %p<8>;
.reg .b32 %r<64>;
.reg .b64 %rd<16>;
ld.param.u64 %rd0, [k_param_0];
ld.param.u64 %rd1, [k_param_1];
mov.u32 %r0, %tid.x;
mov.u32 %r63, smem;
mul.wide.u32 %rd2, %r0, 4;
add.s64 %rd2, %rd0, %rd2;
cvta.param.u64 %rd3, k_param_2;
";

/// Waits in a loop for the first phase of the mbarrier at `%r1`.
const WAIT: &str = "$wait: mbarrier.try_wait.parity.shared::cta.b64 %p7, [%r1], 0; @!%p7 bra $wait;";

impl Run<'_> {
    /// Runs statements and returns the output, which starts as all ones.
    fn run(&self, body: &str) -> Result<Vec<u32>> {
        let module = ptx::module(&format!("{HEAD}{body}\nret;\n}}"))?;
        let kernel = isa::kernel(&module.entries[0], &[]);
        let (out, input) = (memory::allocate(4 * self.out).unwrap(), memory::allocate(self.input.len()).unwrap());
        memory::write(out, &vec![0xff; 4 * self.out])?;
        memory::write(input, self.input)?;
        let map = self.tensor.map(|([row, rows], [width, height])| Map {
            element: 1,
            swizzle: 3,
            rank: 2,
            at: input,
            extents: [row, rows, 1, 1, 1],
            strides: [1, row, 0, 0, 0],
            box_extents: [width, height, 1, 1, 1],
        });
        // A tensor map must lie at a multiple of 64.
        #[repr(align(64))]
        struct Params([u8; 64 + MAP_BYTES]);
        let mut params = Params([0; 64 + MAP_BYTES]);
        params.0[..8].copy_from_slice(&out.to_le_bytes());
        params.0[8..16].copy_from_slice(&input.to_le_bytes());
        for (to, word) in params.0[64..].chunks_exact_mut(8).zip(map.map_or([0; 16], |m| m.encode())) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        let result = machine::run(&Launch {
            kernel: &kernel,
            grid: [self.grid, 1, 1],
            cluster: self.cluster,
            threads: self.threads,
            shared_bytes: self.shared_bytes,
            params: &params.0,
            settings: &self.settings,
            serial: 1,
        });
        let mut bytes = vec![0; 4 * self.out];
        memory::read(out, &mut bytes)?;
        assert!(memory::free(out) && memory::free(input));
        result.map(|()| bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect())
    }

    /// Runs statements that must fail, and returns the report.
    fn fails(&self, body: &str) -> String {
        self.run(body).expect_err("this should have failed").to_string()
    }

    /// The same with another schedule.
    fn under(mut self, settings: Settings) -> Self {
        self.settings = Settings { steps: self.settings.steps, ..settings };
        self
    }
}

/// Bytes that are all different from their neighbours, and none of them 0.
fn pattern(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 7 % 251) as u8 + 1).collect()
}
