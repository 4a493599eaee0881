//! Every compile-time number of the kernels, with the reason beside it.

/// Tokens in a query block and in a key block: the unit of selection, and the M and N of one attention tile.
pub const BLOCK: usize = 128;
/// Head dimension. One 128-byte row of e4m3: exactly one span of the 128-byte swizzle.
pub const HEAD_DIM: usize = 128;
/// Groups a block's tokens are summed into for scoring; token t belongs to group t mod 16 (the stride of XAttention).
pub const GROUPS: usize = 16;
/// Tokens in one group of a block.
pub const GROUP_TOKENS: usize = BLOCK / GROUPS;
/// Length of one row of query or key sums: the groups of a block, one after another. The K dimension of the score GEMM.
pub const SUM_LEN: usize = GROUPS * HEAD_DIM;
/// Consecutive tokens whose largest value norm makes one run of the value term.
pub const RUN: usize = 16;
/// Runs in a block.
pub const RUNS: usize = BLOCK / RUN;
/// Bytes of one 128 x 128 e4m3 operand tile (Q, K or transposed V).
pub const TILE_BYTES: usize = BLOCK * HEAD_DIM;
/// P is scaled by 2^8 before it is rounded to e4m3 (largest value 448): probabilities down to 2^-17 of the maximum survive.
pub const P_SCALE_LOG2: f32 = 8.0;
/// Added to a value norm before its logarithm (stem.md, section 1).
pub const NORM_EPS: f32 = 1e-6;

/// `attend_fp8_d128`: one producer warpgroup and two consumer warpgroups of 64 query rows each.
pub mod attend {
    /// Threads of a block: three warpgroups.
    pub const THREADS: u32 = 384;
    /// Consumer warpgroups; each owns 64 rows, the M of one wgmma.
    pub const CONSUMERS: u32 = 2;
    /// K/V stages in shared memory. Four tiles of 2 x 16 KiB hide about 8,000 clocks of page look-up and L2 latency.
    pub const STAGES: u32 = 4;
    /// Registers a producer thread keeps: it holds addresses only.
    pub const PRODUCER_REGS: u32 = 24;
    /// Registers a consumer thread gets: 64 scores, 64 output, 64 fresh accumulator, 16 packed P and bookkeeping.
    /// 128 * 24 + 256 * 240 = 64,512 of the 65,536 registers of an SM.
    pub const CONSUMER_REGS: u32 = 240;

    /// Where things lie in dynamic shared memory. Tiles come first: the 128-byte swizzle wants 1,024-byte alignment.
    pub mod smem {
        use super::{super::TILE_BYTES, STAGES};
        /// The Q tile.
        pub const Q: u32 = 0;
        /// K stages.
        pub const K: u32 = Q + TILE_BYTES as u32;
        /// Transposed V stages.
        pub const V: u32 = K + STAGES * TILE_BYTES as u32;
        /// Barrier of the Q tile.
        pub const Q_FULL: u32 = V + STAGES * TILE_BYTES as u32;
        /// Barriers of the K ring: full and empty of each stage.
        pub const K_RING: u32 = Q_FULL + 8;
        /// Barriers of the V ring.
        pub const V_RING: u32 = K_RING + 16 * STAGES;
        /// Bytes of dynamic shared memory.
        pub const BYTES: u32 = V_RING + 16 * STAGES;
        const _: () = assert!(BYTES <= 227 * 1024, "an sm_90 block has at most 227 KiB of shared memory");
    }
}
