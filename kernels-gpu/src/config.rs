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

/// `select_stem`: four consumer warpgroups, seven warps that copy and sum queries, one that makes the value terms, and a warpgroup of which
/// three warps have work: to copy key sums, to hand the query sums over, to look strips up.
pub mod select {
    use super::{GROUP_TOKENS, GROUPS, HEAD_DIM, SUM_LEN};
    /// Query blocks of a strip, the N of its products: more need more accumulators than registers hold, fewer read the key sums
    /// more often.
    pub const ROWS: u32 = 32;
    /// Key blocks of a span: what a strip scores at once. 32 x 1,024 f32 accumulators are half of a multiprocessor's registers.
    pub const SPAN: u32 = 1024;
    /// Key blocks of a tile: the M of one product.
    pub const TILE: u32 = 64;
    /// Consumer warpgroups; each has one tile of a stage.
    pub const CONSUMERS: u32 = 4;
    /// Key blocks of a stage.
    pub const CHUNK: u32 = CONSUMERS * TILE;
    /// Threads of the consumers.
    pub const CONSUMER_THREADS: u32 = CONSUMERS * 128;
    /// The named barrier at which they meet. 0 is that of the whole block.
    pub const CONSUMER_BARRIER: u32 = 1;
    /// Warps of the consumers.
    pub const CONSUMER_WARPS: u32 = CONSUMER_THREADS / 32;
    /// KV heads whose mean and deviation of norms are kept for strips to come.
    pub const MOMENTS_HEADS: u32 = 4;
    /// Stages of value norms of the warp that makes the value terms, four for each lane: copies in flight for which it has no registers.
    pub const NORM_STAGES: u32 = 6;
    /// Bytes of one.
    pub const NORM_BYTES: u32 = 32 * 16;
    /// Query blocks that are summed together.
    pub const OCTET: u32 = 8;
    /// Octets of a strip at most.
    pub const OCTETS: u32 = ROWS / OCTET;
    /// Warps that sum queries; each takes every seventh unit (a group of an octet), and has stages of queries for itself. One a
    /// scheduler cannot hide the latency of its own instructions.
    pub const SUM_WARPS: u32 = 7;
    /// Warps of the two warpgroups beside the consumers: those that sum, and behind them the one that makes the value terms.
    pub const SIDE_WARPS: u32 = SUM_WARPS + 1;
    /// Threads of a block: consumers, the two warpgroups beside them, and the warpgroup of the warps that copy, hand over and look up.
    pub const THREADS: u32 = CONSUMER_THREADS + 32 * SIDE_WARPS + 128;
    /// Registers a thread is launched with: a multiple of eight of which 896 threads fit in the 65,536 of a multiprocessor.
    pub const LAUNCH_REGS: u32 = 72;
    /// Registers of a consumer: 64 accumulators and bookkeeping; the bit planes of top-k take fewer. ptxas puts accumulators behind
    /// the first 24 and keeps two for itself: the next lower multiple of eight serialises the products.
    pub const CONSUMER_REGS: u32 = 96;
    /// Registers of a thread that sums or makes value terms.
    pub const SUM_REGS: u32 = 48;
    /// Registers of a thread of the copying warpgroup.
    pub const COPY_REGS: u32 = 24;
    // What the roles take in all must be what the block was launched with, or `setmaxnreg` waits for ever.
    const _: () = assert!(CONSUMER_THREADS * CONSUMER_REGS + 32 * SIDE_WARPS * SUM_REGS + 128 * COPY_REGS <= THREADS * LAUNCH_REGS);

    /// Elements of K in one stage: 128 bytes of bf16, one span of the swizzle.
    pub const STEP: u32 = 64;
    /// Steps along K, two a group.
    pub const STEPS: u32 = SUM_LEN as u32 / STEP;
    const _: () = assert!(STEP * 2 == HEAD_DIM as u32);
    /// Bytes of a tile of key sums.
    pub const TILE_BYTES: u32 = TILE * STEP * 2;
    /// Bytes of one step of the query sums.
    pub const SUM_BYTES: u32 = ROWS * STEP * 2;
    /// Tiles of key sums that the ring holds: what is in flight hides the L2 latency and what the blocks of a cluster drift apart. A
    /// stage is one step of a chunk, rounded up to a power of two: four stages, or eight or sixteen where a span has two tiles or one.
    pub const RING_TILES: u32 = 16;
    const _: () = assert!(RING_TILES.is_multiple_of(CONSUMERS) && STEPS.is_multiple_of(2 * RING_TILES), "every span finds the ring empty");
    /// Bytes of one step of an octet's query sums.
    pub const OCTET_BYTES: u32 = OCTET * STEP * 2;
    /// Groups of query sums made ahead.
    pub const SUM_STAGES: u32 = 4;
    /// Barriers of each kind that the groups of query sums go through. More than stages: a warp may go on by seven groups at a time (of
    /// an octet), and a parity cannot tell what comes after the next phase. It has then waited for the place of a group at most seven
    /// before, the one `SUM_STAGES` earlier read: with eight turns that is all of the phase before the one it waits for.
    pub const SUM_TURNS: u32 = 8;
    const _: () = assert!(SUM_WARPS < SUM_TURNS, "a warp misses no phase");
    // Twice around: every span finds the barriers as the first one did.
    const _: () = assert!((GROUPS as u32).is_multiple_of(2 * SUM_TURNS) && SUM_TURNS == 2 * SUM_STAGES);
    /// Stages of queries, half a unit each: of a warp's two one is in flight while the other is summed.
    pub const QUERY_STAGES: u32 = SUM_WARPS * PARTS;
    /// Halves of a unit, four query blocks each.
    pub const PARTS: u32 = 2;
    /// Tokens of half a unit: eight of each row, 16 apart; so the rows of 128 bytes of a stage.
    pub const PART_TOKENS: u32 = OCTET / PARTS * GROUP_TOKENS as u32;
    /// Bytes of a stage of queries.
    pub const QUERY_BYTES: u32 = PART_TOKENS * HEAD_DIM as u32;
    /// Bytes of the weights of an octet: of each block eight scales in f16, then of each the power of two that undoes their normalisation.
    pub const WEIGHTS_BYTES: u32 = OCTET * (16 + 4);
    /// Plans of strips in shared memory: one in use, and the next.
    pub const PLANS: u32 = 2;
    /// Words from one row of scores to the next. 4 modulo 16: the accumulator's lanes then store to 32 different banks.
    pub const PITCH: u32 = SPAN + 4;

    /// Where things lie in dynamic shared memory.
    pub mod smem {
        use super::{
            CONSUMER_WARPS, MOMENTS_HEADS, NORM_BYTES, NORM_STAGES, PITCH, PLANS, QUERY_BYTES, QUERY_STAGES, RING_TILES, ROWS, SIDE_WARPS,
            SPAN, SUM_BYTES, SUM_STAGES, SUM_TURNS, SUM_WARPS, TILE_BYTES, WEIGHTS_BYTES,
        };
        /// Stages of key sums.
        pub const RING: u32 = 0;
        /// Scores of the strip, over the ring: its stages are empty when the accumulators are complete.
        pub const SCORES: u32 = RING;
        /// What the consumer warps keep, between the scores and what has to be aligned.
        pub const KEPT: u32 = SCORES + ROWS * PITCH * 4;
        /// Bytes of a warp's.
        pub const KEPT_BYTES: u32 = 16;
        /// Barriers of the ring: full, then empty ones.
        pub const RING_BARRIERS: u32 = KEPT + CONSUMER_WARPS * KEPT_BYTES;
        const _: () = assert!(RING + RING_TILES * TILE_BYTES <= KEPT && KEPT.is_multiple_of(16));
        /// Groups of query sums; aligned for the swizzle.
        pub const SUMS: u32 = (RING_BARRIERS + 16 * RING_TILES).next_multiple_of(1024);
        /// Stages of queries.
        pub const QUERIES: u32 = SUMS + SUM_STAGES * 2 * SUM_BYTES;
        /// Value terms of the span.
        pub const BIAS: u32 = QUERIES + QUERY_STAGES * QUERY_BYTES;
        /// Stages of value norms.
        pub const NORMS: u32 = BIAS + SPAN * 4;
        /// Plans of strips: what the rows are (candidates, guards, budget), and the strip itself.
        pub const PLANS_AT: u32 = NORMS + NORM_STAGES * NORM_BYTES;
        /// Bytes of a row's part.
        pub const NOTE_BYTES: u32 = 16;
        const _: () = assert!(ROWS == 32 && PLANS_AT.is_multiple_of(16), "a lane notes a row, and it is read at once");
        /// Bytes of a plan.
        pub const PLAN_BYTES: u32 = ROWS * NOTE_BYTES + 32;
        /// Barriers of the plans: full, then empty ones.
        pub const PLAN_BARRIERS: u32 = PLANS_AT + PLANS * PLAN_BYTES;
        /// Barriers that complete when a stage of queries is full. A warp fills and reads its own: nobody says that one is empty.
        pub const QUERY_BARRIERS: u32 = PLAN_BARRIERS + 16 * PLANS;
        /// Barriers of the query sums.
        pub const SUM_BARRIERS: u32 = QUERY_BARRIERS + 8 * QUERY_STAGES;
        /// Barriers that complete when a group of query sums is written.
        pub const WRITTEN: u32 = SUM_BARRIERS + 16 * SUM_TURNS;
        /// Barrier that completes when the consumers are done with the scores.
        pub const DONE: u32 = WRITTEN + 8 * SUM_TURNS;
        /// Barrier that completes, once a span, when its value terms are written.
        pub const TERMS: u32 = DONE + 8;
        /// Barrier that completes, once a span, when the consumers have read them.
        pub const TERMS_READ: u32 = TERMS + 8;
        /// What the warps beside the consumers keep.
        pub const SIDE_KEPT: u32 = (TERMS_READ + 8).next_multiple_of(16);
        /// Bytes of a warp's: three times four words.
        pub const SIDE_KEPT_BYTES: u32 = 48;
        /// Means and deviations of the norms of some KV heads: f64, f32, and whose they are.
        pub const MOMENTS: u32 = SIDE_KEPT + SIDE_WARPS * SIDE_KEPT_BYTES;
        /// Bytes of one.
        pub const MOMENTS_BYTES: u32 = 16;
        /// Weights of the units that are summed (`tile::octet::Weights`), of a warp each.
        pub const WEIGHTS: u32 = MOMENTS + MOMENTS_HEADS * MOMENTS_BYTES;
        /// Bytes of dynamic shared memory.
        pub const BYTES: u32 = WEIGHTS + SUM_WARPS * WEIGHTS_BYTES;
        const _: () = assert!(WEIGHTS.is_multiple_of(16) && BYTES <= 227 * 1024, "an sm_90 block has at most 227 KiB of shared memory");
    }
}

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
