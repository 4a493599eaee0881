//! `select_stem` and `select_stem_wide`: four consumer warpgroups, seven warps that copy and sum queries, one that makes the value terms, and a
//! warpgroup whose warps copy key sums (one, or two), hand the query sums over and look strips up.

use super::{GROUP_TOKENS, GROUPS, HEAD_DIM, SUM_LEN};
/// Query blocks of a strip, the N of its products (in `select_stem_wide`, with those of another head, the M): more need more accumulators than registers hold, fewer read the key sums
/// more often.
pub const ROWS: u32 = 32;
/// Key blocks of a span: what a strip scores at once. 32 x 1,024 f32 accumulators are half of a multiprocessor's registers.
pub const SPAN: u32 = 1024;
/// Key blocks of a tile: the M of one product, there the N.
pub const TILE: u32 = 64;
/// Consumer warpgroups; each has one tile of a stage, in `select_stem_wide` stages for itself.
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
/// Tiles of a consumer warpgroup in `select_stem_wide`, and of a stage.
pub const WIDE_TILES: u32 = 2;
/// Stages of key sums in `select_stem_wide`, of a step of a warpgroup's tiles each: a group of the query sums of two heads takes twice the
/// room, and the ring what is left.
pub const WIDE_STAGES: u32 = 6;
/// Barriers of each kind that they go through. More than stages: a warpgroup looks at its own ones only, and a parity cannot tell what comes after
/// the next phase. Who has multiplied his last stage knows that the one two rounds before his next was given back: the one between them was his, or
/// the same warp copied it before.
pub const WIDE_TURNS: u32 = 2 * WIDE_STAGES;
const _: () = assert!(WIDE_TURNS <= RING_TILES, "the barriers of the ring have room");
/// Key blocks from one tile of a block to its next in `select_stem_wide`: the other block of the cluster has the tile between.
pub const WIDE_PITCH: u32 = 2 * TILE;

/// Words from one row of scores to the next. 4 modulo 16: the accumulator's lanes then store to 32 different banks.
pub const PITCH: u32 = SPAN + 4;

/// The same, of scores as bf16 in pairs.
pub const PAIRED_PITCH: u32 = SPAN / 2 + 4;

/// The same in `select_stem_wide`. 8 modulo 32: half a warp's stores of two words each go to 32 different banks.
pub const WIDE_PAIRED_PITCH: u32 = SPAN / 2 + 8;

/// Where things lie in dynamic shared memory.
pub mod smem {
    use super::{
        CONSUMER_WARPS, MOMENTS_HEADS, NORM_BYTES, NORM_STAGES, PAIRED_PITCH, PITCH, PLANS, QUERY_BYTES, QUERY_STAGES, RING_TILES, ROWS,
        SPAN, SUM_BYTES, SUM_STAGES, SUM_TURNS, SUM_WARPS, TILE_BYTES, WEIGHTS_BYTES, WIDE_PAIRED_PITCH, WIDE_STAGES, WIDE_TILES,
    };
    /// Stages of key sums.
    pub const RING: u32 = 0;
    /// Scores of the strip, over the ring: its stages are empty when the accumulators are complete.
    pub const SCORES: u32 = RING;
    /// Scores as bf16: over the second half of the ring and what is behind it. The first half may be filled while they are there.
    pub const PAIRED: u32 = KEPT - ROWS * PAIRED_PITCH * 4;
    const _: () = assert!(PAIRED >= RING + RING_TILES / 2 * TILE_BYTES);
    /// The groups of query sums of `select_stem_wide` that have no room at [`SUMS`]: behind its ring.
    pub const WIDE_SUMS: u32 = RING + WIDE_STAGES * WIDE_TILES * TILE_BYTES;
    const _: () = assert!(WIDE_SUMS + SUM_STAGES / 2 * 4 * SUM_BYTES <= KEPT);
    /// Its scores: over the ring.
    pub const WIDE_PAIRED: u32 = WIDE_SUMS - ROWS * WIDE_PAIRED_PITCH * 4;
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
    /// Barrier that completes, once a span, when the products of both blocks of `select_stem_wide` are complete.
    pub const MADE: u32 = TERMS_READ + 8;
    /// Barrier that completes, once a span, when both have stored their scores.
    pub const STORED: u32 = MADE + 8;
    /// What the warps that sum keep.
    pub const SIDE_KEPT: u32 = (STORED + 8).next_multiple_of(16);
    /// Bytes of a warp's: three times four words.
    pub const SIDE_KEPT_BYTES: u32 = 48;
    /// What the two warps keep that copy key sums in `select_stem_wide`: four words each.
    pub const COPY_KEPT: u32 = SIDE_KEPT + SUM_WARPS * SIDE_KEPT_BYTES;
    /// Means and deviations of the norms of some KV heads: f64, f32, and whose they are.
    pub const MOMENTS: u32 = COPY_KEPT + 2 * 16;
    /// Bytes of one.
    pub const MOMENTS_BYTES: u32 = 16;
    /// Weights of the units that are summed (`tile::octet::Weights`), of a warp each.
    pub const WEIGHTS: u32 = MOMENTS + MOMENTS_HEADS * MOMENTS_BYTES;
    /// Bytes of dynamic shared memory.
    pub const BYTES: u32 = WEIGHTS + SUM_WARPS * WEIGHTS_BYTES;
    const _: () = assert!(WEIGHTS.is_multiple_of(16) && BYTES <= 227 * 1024, "an sm_90 block has at most 227 KiB of shared memory");
}
