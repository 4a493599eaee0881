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
    /// Q tiles: one in use, one loaded ahead for the row of blocks that comes next.
    pub const Q_STAGES: u32 = 2;
    /// Registers a producer thread keeps: addresses, and the look-ups of the item that comes next. With 24 it spills.
    pub const PRODUCER_REGS: u32 = 40;
    /// Registers a consumer thread gets: 64 scores, 64 output, 64 fresh accumulator, 16 packed P and bookkeeping.
    /// 128 * 40 + 256 * 232 = 64,512 of the 65,536 registers of an SM.
    pub const CONSUMER_REGS: u32 = 232;

    /// Where things lie in dynamic shared memory. Tiles come first: the 128-byte swizzle wants 1,024-byte alignment.
    pub mod smem {
        use super::{super::TILE_BYTES, Q_STAGES, STAGES};
        /// Q stages.
        pub const Q: u32 = 0;
        /// K stages.
        pub const K: u32 = Q + Q_STAGES * TILE_BYTES as u32;
        /// Transposed V stages.
        pub const V: u32 = K + STAGES * TILE_BYTES as u32;
        /// What the consumers need to know of each Q stage: the scales of its 128 rows, then a slot of `pipeline::work`.
        pub const WORK: u32 = V + STAGES * TILE_BYTES as u32;
        /// Bytes of one of them.
        pub const WORK_STAGE: u32 = 128 * 4 + 64;
        /// Barriers of the Q ring: full and empty of each stage.
        pub const Q_RING: u32 = WORK + Q_STAGES * WORK_STAGE;
        /// Barriers of the K ring.
        pub const K_RING: u32 = Q_RING + 16 * Q_STAGES;
        /// Barriers of the V ring.
        pub const V_RING: u32 = K_RING + 16 * STAGES;
        /// Bytes of dynamic shared memory.
        pub const BYTES: u32 = V_RING + 16 * STAGES;
        const _: () = assert!(BYTES <= 227 * 1024, "an sm_90 block has at most 227 KiB of shared memory");
    }
}

/// `append_kv_bf16_d128`.
pub mod append_kv {
    /// Threads of a block: eight rows a pass (16 lanes of 16 bytes each), so that a block of 128 tokens takes 16 passes.
    pub const THREADS: u32 = 128;
    /// Every thread keeps what it converts: no shared memory.
    pub const SMEM_BYTES: u32 = 0;
}

/// `summarize_kv_fp8_d128`.
pub mod summarize_kv {
    use super::{BLOCK, HEAD_DIM};
    /// Threads of a block: 16 tokens of 8 chunks. A thread then sees token r of every run of 16, which are the eight
    /// tokens of group r: group sums need no exchange.
    pub const THREADS: u32 = 128;
    /// Where the partial run norms lie: behind the V block that waits for its transposition.
    pub const NORMS: u32 = (BLOCK * HEAD_DIM) as u32;
    /// Bytes of dynamic shared memory: the V block and one partial norm a thread.
    pub const SMEM_BYTES: u32 = NORMS + THREADS * 4;
}

/// The four kernels of the selection.
pub mod select {
    /// `select_query_sums`.
    pub mod query_sums {
        /// Threads of a block: 16 tokens of 8 chunks, as in [`super::super::summarize_kv::THREADS`].
        pub const THREADS: u32 = 128;
        /// A thread owns whole groups: no shared memory.
        pub const SMEM_BYTES: u32 = 0;
    }

    /// `select_value_bias`.
    pub mod value_bias {
        /// Threads of a block. One block walks all runs of a request and KV head; more threads shorten a walk that is
        /// short anyway (a 128 K prompt has 8,192 runs: 32 a thread).
        pub const THREADS: u32 = 256;
        /// Bytes of one block-wide sum: an f64 of every warp.
        pub const SUM_BYTES: u32 = THREADS / 32 * 8;
        /// Bytes of dynamic shared memory: the sum for the mean and the one for the deviation, apart so that one barrier
        /// each is enough.
        pub const SMEM_BYTES: u32 = 2 * SUM_BYTES;
    }

    /// `select_scores`.
    pub mod scores {
        use super::super::SUM_LEN;
        /// Threads of a block: one warpgroup. It owns the whole 128 x 128 tile (two products of 64 rows, 128 accumulator
        /// registers a thread) and one of its threads issues the copies: products are asynchronous, so one warpgroup
        /// keeps the tensor core as busy as two would, and no hand-over between roles is needed.
        pub const THREADS: u32 = 128;
        /// Query blocks, and key blocks, of one tile.
        pub const TILE: u32 = 128;
        /// Elements of K in one stage: 128 bytes of bf16, one span of the swizzle.
        pub const STEP: u32 = 64;
        /// Steps along K.
        pub const STEPS: u32 = SUM_LEN as u32 / STEP;
        /// Bytes of one operand's stage.
        pub const OPERAND_BYTES: u32 = TILE * STEP * 2;
        /// Stages of two operands. Of the four, one is being multiplied, one is about to be released, two are in flight:
        /// 1,024 tensor-core clocks of look-ahead.
        pub const STAGES: u32 = 4;
        /// Where the barriers lie: behind the stages, which want 1,024-byte alignment.
        pub const BARRIERS: u32 = STAGES * 2 * OPERAND_BYTES;
        /// Bytes of dynamic shared memory.
        pub const SMEM_BYTES: u32 = BARRIERS + STAGES * 8;
    }

    /// `select_topk`.
    pub mod topk {
        /// Threads of a block: eight warps, each walking an eighth of the row.
        pub const THREADS: u32 = 256;
        /// Warps of a block.
        pub const WARPS: u32 = THREADS / 32;
        /// Bits of a key decided in one pass.
        pub const DIGIT_BITS: u32 = 8;
        /// Passes over the row: 32-bit keys.
        pub const PASSES: u32 = 32 / DIGIT_BITS;
        /// Bytes of one pass's histogram. Every pass has its own, so that none has to be cleared between barriers.
        pub const HISTOGRAM_BYTES: u32 = (1 << DIGIT_BITS) * 4;
        /// Where the warps' counts of ties lie.
        pub const TIES: u32 = PASSES * HISTOGRAM_BYTES;
        /// Where the warps' counts of kept blocks lie.
        pub const KEPT: u32 = TIES + WARPS * 4;
        /// Bytes of dynamic shared memory.
        pub const SMEM_BYTES: u32 = KEPT + WARPS * 4;
        const _: () = assert!(TIES == THREADS * 16, "every thread clears 16 bytes of the histograms");
        const _: () = assert!(WARPS == 8, "the counts of the warps are read as two vectors of four");
    }
}
