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
/// The CPU reference scales P by 2^8 before it rounds to e4m3 (largest value 448): probabilities down to 2^-18 of the maximum
/// survive. The kernel's largest P lies between 2^6 and 2^8.85 (`tile::softmax`).
pub const P_SCALE_LOG2: f32 = 8.0;
/// Added to a value norm before its logarithm (stem.md, section 1).
pub const NORM_EPS: f32 = 1e-6;

/// `attend_fp8_d128`: one producer warpgroup and two consumer warpgroups of 64 query rows each.
pub mod attend {
    /// Threads of a block: three warpgroups.
    pub const THREADS: u32 = 384;
    /// Consumer warpgroups; each owns 64 rows, the M of one wgmma.
    pub const CONSUMERS: u32 = 2;
    /// K/V stages in shared memory: V of one tile and K of the next. Four of 2 x 16 KiB hide about 5,000 clocks of page look-up
    /// and L2 latency.
    pub const STAGES: u32 = 4;
    /// Q tiles: one in use, one or two prepared, the rest under way. Short lists are over before the look-ups of an item, its copy
    /// and its preparation, one after the other, are.
    pub const Q_STAGES: u32 = 4;
    /// Registers a producer thread keeps: addresses, and the look-ups of the item that comes next.
    pub const PRODUCER_REGS: u32 = 56;
    /// Registers a consumer thread gets: 2 x 16 packed scores, 8 packed P, 68 fresh accumulator, 66 output; the rest lets
    /// exponentials of many scores be under way at once.
    pub const CONSUMER_REGS: u32 = 224;
    /// Registers a thread is launched with: a multiple of eight of which 384 threads fit in the 65,536 of a multiprocessor.
    pub const LAUNCH_REGS: u32 = 168;
    // What the roles take in all must be what the block was launched with, or `setmaxnreg` waits for ever.
    const _: () = assert!(128 * (PRODUCER_REGS + CONSUMERS * CONSUMER_REGS) <= THREADS * LAUNCH_REGS);
    /// Tiles between flushes of the FP8 accumulator into f32. With 2 the error on the captures is 1 % smaller, and attention 2 %
    /// slower; with 8 it is 2 to 3 % larger.
    pub const FLUSH_TILES: u32 = 4;
    // The product starts anew in the tile after a flush: `walk` tells the two apart by their number.
    const _: () = assert!(FLUSH_TILES >= 2);
    /// Threads that prepare Q tiles: warps 1 and 2 of the producer's warpgroup, two rows each.
    pub const PREPARERS: u32 = 64;

    /// Where things lie in dynamic shared memory. Tiles come first: the 128-byte swizzle wants 1,024-byte alignment.
    pub mod smem {
        use super::{super::TILE_BYTES, Q_STAGES, STAGES};
        /// Q stages.
        pub const Q: u32 = 0;
        /// K stages.
        pub const K: u32 = Q + Q_STAGES * TILE_BYTES as u32;
        /// Transposed V stages.
        pub const V: u32 = K + STAGES * TILE_BYTES as u32;
        /// Eight rows of ones behind every V^T tile, for the row sums of P.
        pub const ONES_BYTES: u32 = 8 * 128;
        /// Bytes of one V stage.
        pub const V_STAGE: u32 = TILE_BYTES as u32 + ONES_BYTES;
        /// What the consumers need to know of each Q stage: the scales of its 128 rows, then a slot of `pipeline::work`.
        pub const WORK: u32 = V + STAGES * V_STAGE;
        /// Bytes of one of them.
        pub const WORK_STAGE: u32 = 128 * 4 + 64;
        /// Barriers of the Q ring: full and empty of each stage.
        pub const Q_RING: u32 = WORK + Q_STAGES * WORK_STAGE;
        /// Barriers that say a Q tile is prepared.
        pub const READY: u32 = Q_RING + 16 * Q_STAGES;
        /// Barriers of the K/V ring.
        pub const KV_RING: u32 = READY + 16 * Q_STAGES;
        /// Bytes of dynamic shared memory.
        pub const BYTES: u32 = KV_RING + 16 * STAGES;
        /// Scales of the keys of each K stage, where keys have scales of their own; then their barriers.
        pub const KEY_SCALES: u32 = BYTES;
        /// Bytes of dynamic shared memory with scales of single keys.
        pub const BYTES_TOKEN_SCALES: u32 = KEY_SCALES + STAGES * 128 * 4 + 16 * STAGES;
        const _: () = assert!((WORK + 512).is_multiple_of(16) && WORK_STAGE.is_multiple_of(16), "slots are read by fours");
        const _: () = assert!(KEY_SCALES.is_multiple_of(16), "scales are written by fours and read in pairs");
        const _: () = assert!(BYTES_TOKEN_SCALES <= 227 * 1024, "an sm_90 block has at most 227 KiB of shared memory");
    }
}

/// `lists_from_mask` and `lists_from_csr`.
pub mod lists {
    /// Threads of a block: eight warps, enough to keep the reads of one long row in flight.
    pub const THREADS: u32 = 256;
    /// Warps of a block.
    pub const WARPS: u32 = THREADS / 32;
    /// Key blocks of a row that are bits in shared memory at a time: 8 M tokens, so that in practice there is one pass.
    pub const WINDOW: i32 = 65_536;
    /// Words of those bits.
    pub const WINDOW_WORDS: u32 = WINDOW as u32 / 32;
    /// Where the warps' counts lie: behind the bits.
    pub const SLOTS: u32 = WINDOW_WORDS * 4;
    /// Bytes of dynamic shared memory.
    pub const SMEM_BYTES: u32 = SLOTS + WARPS * 4;
    const _: () = assert!(SLOTS.is_multiple_of(16), "the counts are read as vectors of four");
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
    use super::{BLOCK, RUNS, TILE_BYTES};
    /// Threads of a block: a warp a run of 16 tokens, which lies in one page. Short prompts leave a multiprocessor two blocks: with
    /// fewer warps each would take longer from its data to its stores.
    pub const THREADS: u32 = 32 * RUNS as u32;
    /// Where the values lie, rows of 128 bytes as `layout::transpose` has them.
    pub const V: u32 = 0;
    /// Where the keys lie, in the same order.
    pub const K: u32 = V + TILE_BYTES as u32;
    /// Scales of the keys, where they have their own.
    pub const SCALES: u32 = K + TILE_BYTES as u32;
    /// Bytes of dynamic shared memory: with five blocks in a multiprocessor 160 KiB are under way.
    pub const SMEM_BYTES: u32 = SCALES + BLOCK as u32 * 4;
}

pub mod select;

/// `select_probe_means` and `select_probe_lists`: block scores from pooled keys and queries, budgets, top-k and lists.
pub mod probe_sel {
    use super::{BLOCK, HEAD_DIM};
    /// Keys of a sub-block.
    pub const KEY_POOL: usize = 8;
    /// Sub-blocks of a key block.
    pub const SUB_BLOCKS: usize = BLOCK / KEY_POOL;
    /// Key blocks of one tile: 256 sub-blocks, the largest N of a product. In f16 its accumulator takes 64 registers.
    pub const TILE_BLOCKS: usize = 16;
    /// Bytes of one tile of key means in e4m3.
    pub const KEY_TILE_BYTES: usize = TILE_BLOCKS * SUB_BLOCKS * HEAD_DIM;
    /// Query groups whose scores one warp owns: the 16 rows of an accumulator that a warp holds.
    pub const PART_GROUPS: usize = 16;
    /// Least scale of a query group: keeps a group of zeros away from 0 / 0 and minus infinity times 0.
    pub const LEAST_SCALE: f32 = 1e-20;
    /// Threads of a block of `select_probe_means`: 16 sub-blocks of 8 chunks of 16 dimensions.
    pub const MEANS_THREADS: u32 = 128;
    /// A thread owns whole means: no shared memory.
    pub const MEANS_SMEM_BYTES: u32 = 0;

    /// Consumer warpgroups of `select_probe_lists`. Four, of 64 query groups each, read every tile of keys once for 256 rows: 16
    /// bytes a clock from L2 at the full FP8 rate; and while three turn logits into scores the fourth multiplies.
    pub const CONSUMERS: u32 = 4;
    /// Query groups of one block of threads.
    pub const GROUPS: u32 = 64 * CONSUMERS;
    /// Threads that consume.
    pub const CONSUMER_THREADS: u32 = 128 * CONSUMERS;
    /// Named barriers: this and the next three, one for each consumer warpgroup. 0 is that of the whole block.
    pub const WARPGROUP_BARRIER: u32 = 1;
    /// And this and the next, one for each pair of them: with means of single queries a query block's groups are theirs together.
    pub const PAIR_BARRIER: u32 = WARPGROUP_BARRIER + CONSUMERS;
    /// Threads of a block: the consumers and a producer warpgroup, of which one warp works.
    pub const THREADS: u32 = CONSUMER_THREADS + 128;
    /// Registers a producer thread keeps. Five warps a scheduler start with 96 each: 480 to share out.
    pub const PRODUCER_REGS: u32 = 32;
    /// Registers a consumer thread gets: 64 hold logits. 4 * 112 + 32 = 480.
    pub const CONSUMER_REGS: u32 = 112;
    /// Stages of key tiles. Four warpgroups take 2,048 tensor-core clocks for one. Two would be look-ahead enough; with four a
    /// warpgroup may be up to three tiles ahead of another, and pool and select while the other multiplies.
    pub const STAGES: u32 = 4;
    /// Stages that are used where score rows are long.
    pub const LONG_STAGES: u32 = 2;
    /// Longest score row, in key blocks, beside which shared memory has room for all stages: 131,072 tokens.
    pub const SHORT_BLOCKS: usize = 1024;
    /// Longest score row beside two stages: 262,144 tokens.
    pub const MAX_BLOCKS: usize = 2048;

    /// Where things lie in dynamic shared memory.
    pub mod smem {
        use super::{super::HEAD_DIM, CONSUMERS, GROUPS, KEY_TILE_BYTES, LONG_STAGES, MAX_BLOCKS, SHORT_BLOCKS, STAGES};
        /// Query means in e4m3, 64 rows a consumer.
        pub const QUERIES: u32 = 0;
        /// Scales of the query groups, f32; 0 for a group without a query.
        pub const SCALES: u32 = QUERIES + GROUPS * HEAD_DIM as u32;
        /// What each group has seen, f32.
        pub const SEEN: u32 = SCALES + GROUPS * 4;
        /// Barriers of the key ring.
        pub const RING: u32 = SEEN + GROUPS * 4;
        /// Key stages, and after those that are used the score rows, one a consumer warp.
        pub const KEYS: u32 = RING + 1024;
        /// Bytes of dynamic shared memory.
        pub const BYTES: u32 = KEYS + STAGES * KEY_TILE_BYTES as u32 + 4 * CONSUMERS * SHORT_BLOCKS as u32 * 4;
        const LONG_BYTES: u32 = KEYS + LONG_STAGES * KEY_TILE_BYTES as u32 + 4 * CONSUMERS * MAX_BLOCKS as u32 * 4;
        const _: () = assert!(BYTES <= 227 * 1024, "an sm_90 block has at most 227 KiB of shared memory");
        const _: () = assert!(LONG_BYTES <= BYTES, "stages that long rows leave unused hold the rest of the rows");
        const _: () = assert!(KEYS.is_multiple_of(1024), "swizzled tiles start at multiples of 1,024 bytes");
        const _: () = assert!(STAGES * 16 <= 1024, "the ring's barriers fit before the stages");
    }
}
