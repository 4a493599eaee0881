//! Parameters of the probe kernels: tiny kernels that run one instruction or one layout each, so that a test can compare
//! it with its CPU model.

/// Parameter block of every probe. Which fields a probe reads, and how, is in its doc.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeParams {
    /// Device address of the first input.
    pub a: u64,
    /// Device address of the second input.
    pub b: u64,
    /// Device address of the third input.
    pub c: u64,
    /// Device address of the output.
    pub out: u64,
    /// Elements or rounds.
    pub count: i32,
    /// First extra number.
    pub x: i32,
    /// Second extra number.
    pub y: i32,
    /// Third extra number.
    pub z: i32,
}

/// Parameter block of the `probe_rate_*` kernels: an instruction streamed by some warpgroups beside others' products.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateParams {
    /// Device address of the output, u32 `[RATE_WORDS]`: clocks of the 12 warps, products of the 12 warps, and a word of
    /// each thread that depends on all it computed.
    pub out: u64,
    /// Trips of the instruction loop; without instruction warpgroups, batches of [`RATE_BATCH`] products.
    pub trips: u32,
    /// Warpgroups that stream the instruction, the first ones: 0 to 2.
    pub op_warpgroups: u32,
    /// Warpgroups that run products until warpgroup 0 is done, the last ones: 0 to 2, and at most 3 with the others.
    pub wgmma_warpgroups: u32,
    /// Padding; 0.
    pub reserved: u32,
}

/// One row of `probe_select_rows`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowParams {
    /// Candidates.
    pub count: i32,
    /// First block that is no sink.
    pub first_free: i32,
    /// First block of the window.
    pub end_free: i32,
    /// 1: guards take part in the ranking.
    pub guards_rank: i32,
    /// Ranked blocks that stay.
    pub budget: i32,
    /// 1: every tie stays.
    pub keep_all_ties: i32,
    /// Lowest bit in which keys may differ.
    pub low_bit: i32,
    /// Padding; 0.
    pub reserved: i32,
}

/// Rows of one block of `probe_select_rows`: one a warp.
pub const PROBE_ROWS: u32 = THREADS / 32;

/// Rows of such a block where a warp has two.
pub const PROBE_PAIR_ROWS: u32 = 2 * PROBE_ROWS;

/// Threads of a `probe_rate_*` kernel.
pub const RATE_THREADS: u32 = 384;
/// Registers that a thread of such a kernel streams its instruction over, one round a trip.
pub const RATE_CHAINS: u32 = 16;
/// Rounds a trip of `probe_rate_cvt_e4m3x2`, two conversions a register.
pub const RATE_E4M3_ROUNDS: u32 = 4;
/// Products (m64n128k32, e4m3) of a warpgroup between two waits.
pub const RATE_BATCH: u32 = 8;
/// Warps of such a kernel.
pub const RATE_WARPS: usize = RATE_THREADS as usize / 32;
/// Words of the output of such a kernel.
pub const RATE_WORDS: usize = 2 * RATE_WARPS + RATE_THREADS as usize;

/// Threads of a probe, where its doc says nothing else.
pub const THREADS: u32 = 128;
/// Threads of `probe_setmaxnreg`: three warpgroups.
pub const SETMAXNREG_THREADS: u32 = 384;
/// Registers that each consumer thread of `probe_setmaxnreg` holds at once: more than the 168 it is launched with.
pub const SETMAXNREG_LIVE: u32 = 192;
/// Bytes in front of the first region, for barriers.
pub const REGIONS_AT: u32 = 1024;
/// Bytes of one region of shared memory: an operand tile of 136 rows of 128 bytes, rounded up to what 128 threads copy in
/// whole rounds of 16 bytes. A multiple of 1,024, as the swizzle wants.
pub const REGION_BYTES: u32 = 18 * 1024;
/// Dynamic shared memory of every probe: barriers and three regions.
pub const SMEM_BYTES: u32 = REGIONS_AT + 3 * REGION_BYTES;
/// Word that probes fill shared memory with, to show what an instruction did not touch.
pub const UNTOUCHED: u32 = 0xA5A5_A5A5;
/// Words that `probe_smem` writes per thread.
pub const SMEM_WORDS: usize = 9;
/// Words that `probe_warp` writes per thread.
pub const WARP_WORDS: usize = 11;
/// Words that `probe_special` writes per thread.
pub const SPECIAL_WORDS: usize = 10;
/// Words that `probe_mbarrier` writes per thread and round.
pub const MBARRIER_WORDS: usize = 3;
/// Words that `probe_matrix` writes per thread.
pub const MATRIX_WORDS: usize = 11;
/// Words that `probe_gather` writes per thread and round.
pub const GATHER_WORDS: usize = 3;
/// Words that `probe_cp_async` writes per thread and round.
pub const CP_ASYNC_WORDS: usize = 6;
/// Groups of copies that `probe_cp_async` keeps in flight.
pub const CP_ASYNC_STAGES: u32 = 4;
/// Words that `probe_math` writes per element.
pub const MATH_WORDS: usize = 7;
/// Words of each result of `probe_half`.
pub const HALF_WORDS: usize = 15;

const _: () = {
    assert!(core::mem::size_of::<ProbeParams>() == 48);
    assert!(core::mem::size_of::<RateParams>() == 24);
    assert!(core::mem::size_of::<RowParams>() == 32);
    assert!(REGIONS_AT + PROBE_PAIR_ROWS * 1024 * 4 <= SMEM_BYTES);
    assert!((2 * REGION_BYTES).is_multiple_of(RATE_THREADS * 16));
    assert!(REGION_BYTES >= 136 * 128 && REGION_BYTES.is_multiple_of(THREADS * 16) && REGION_BYTES.is_multiple_of(1024));
};
