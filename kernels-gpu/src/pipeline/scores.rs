//! Scores of a strip against a span of key blocks: bf16 products of key sums (M) and query sums (N), 2,048 long.
//!
//! K runs outermost: a step of 64 dimensions of all key blocks of the span, then the next. So the sums of a strip's queries are
//! needed a group at a time and are never all in memory, and the accumulators of the whole span (up to 1,024 blocks by 32 rows)
//! live in the registers of four warpgroups. A stage of the ring holds one step of 256 key blocks, one tile a warpgroup.

use super::stages::{Stages, Turn};
use crate::abi::SelectParams;
use crate::config::select::{
    CONSUMER_WARPS, CONSUMERS, PITCH, PLANS, QUERY_BYTES, RING_TILES, ROWS, STEPS, SUM_BYTES, SUM_STAGES, SUM_TURNS, TILE, TILE_BYTES,
    WEIGHTS_BYTES, smem as map,
};
use crate::layout::{accumulator_col, accumulator_row, descriptor_k128_at};
use crate::ptx::{SmemAddr, cluster, cvt, mbarrier, smem, special, warp, wgmma};
use crate::tile::plan::Plan;
use crate::tile::strip::Span;
use crate::tile::topk::SharedScores;
use crate::unroll;

/// Shared memory of the kernel.
#[derive(Clone, Copy)]
pub struct Shared {
    base: SmemAddr,
    /// Key sums; a stage is empty when the consumers of every block of the cluster have read it.
    pub keys: Stages<RING_TILES>,
    /// Query sums; full when they are [`written`](Shared::written) and the products may read them.
    pub sums: Stages<SUM_TURNS>,
    /// Plans of strips.
    pub plans: Stages<PLANS>,
}

impl Shared {
    /// The block's.
    #[inline(always)]
    pub fn of_block() -> Self {
        Self::from(smem::base())
    }

    /// As [`Shared::of_block`], read anew: addresses are computed there, and need not be kept.
    #[inline(always)]
    pub fn again() -> Self {
        Self::from(smem::base_again())
    }

    /// The same, known to be alike in all lanes: what follows from it lives in uniform registers.
    ///
    /// # Safety
    /// Called by a whole warp, converged.
    #[inline(always)]
    unsafe fn alike(self) -> Self {
        // SAFETY: forwarded.
        Self::from(SmemAddr(unsafe { warp::shfl_idx_u32(self.base.0, 0) }))
    }

    #[inline(always)]
    fn from(base: SmemAddr) -> Self {
        Self {
            base,
            keys: Stages(base.offset(map::RING_BARRIERS)),
            sums: Stages(base.offset(map::SUM_BARRIERS)),
            plans: Stages(base.offset(map::PLAN_BARRIERS)),
        }
    }

    /// Tile `tile` of stage `stage` of key sums, of `stages`.
    #[inline(always)]
    pub fn key_tile(self, stage: u32, stages: u32, tile: u32) -> SmemAddr {
        self.base.offset(map::RING + (stage * (RING_TILES >> stages.trailing_zeros()) + tile) * TILE_BYTES)
    }

    /// A group of query sums.
    #[inline(always)]
    pub fn group(self, at: Turn<SUM_TURNS>) -> SmemAddr {
        self.base.offset(map::SUMS + at.stage() % SUM_STAGES * 2 * SUM_BYTES)
    }

    /// Barrier that completes when a group of query sums is written.
    #[inline(always)]
    pub fn written(self, at: Turn<SUM_TURNS>) -> SmemAddr {
        self.base.offset(map::WRITTEN + at.stage() * 8)
    }

    /// Stage `stage` of queries, half a unit.
    #[inline(always)]
    pub fn unit(self, stage: u32) -> SmemAddr {
        self.base.offset(map::QUERIES + stage * QUERY_BYTES)
    }

    /// Barrier that completes when it is full.
    #[inline(always)]
    pub fn unit_full(self, stage: u32) -> SmemAddr {
        self.base.offset(map::QUERY_BARRIERS + stage * 8)
    }

    /// Value terms of the span.
    #[inline(always)]
    pub fn bias(self) -> SmemAddr {
        self.base.offset(map::BIAS)
    }

    /// Value norms on their way to the value statistics.
    #[inline(always)]
    pub fn norms(self) -> SmemAddr {
        self.base.offset(map::NORMS)
    }

    /// Means and deviations of value norms ([`crate::tile::reduce`]).
    #[inline(always)]
    pub fn moments(self) -> SmemAddr {
        self.base.offset(map::MOMENTS)
    }

    /// Weights of the unit that summing warp `number` is at.
    #[inline(always)]
    pub fn weights(self, number: u32) -> SmemAddr {
        self.base.offset(map::WEIGHTS + number * WEIGHTS_BYTES)
    }

    /// The plan of the block's `n`-th strip.
    #[inline(always)]
    pub fn plan(self, n: u32) -> Plan {
        Plan(self.base.offset(map::PLANS_AT + Turn::<PLANS>::at(n).stage() * map::PLAN_BYTES))
    }

    /// What consumer warp `warp` keeps ([`super::kept`]).
    #[inline(always)]
    pub fn kept(self, warp: u32) -> SmemAddr {
        self.base.offset(map::KEPT + warp * map::KEPT_BYTES)
    }

    /// What warp `warp`, one of those beside the consumers, keeps ([`super::kept::keep`]).
    #[inline(always)]
    pub fn side_kept(self, warp: u32) -> SmemAddr {
        self.base.offset(map::SIDE_KEPT + (warp - CONSUMER_WARPS) * map::SIDE_KEPT_BYTES)
    }

    /// Scores of row `r` of the strip. They lie over the ring.
    #[inline(always)]
    pub fn scores(self, r: u32) -> SharedScores<false> {
        SharedScores(self.base.offset(map::SCORES + r * PITCH * 4))
    }

    /// Barrier that completes when the consumers of every block of the cluster are done with a span's scores.
    #[inline(always)]
    pub fn done(self) -> SmemAddr {
        self.base.offset(map::DONE)
    }

    /// Barrier that completes, once a span, when its value terms are written.
    #[inline(always)]
    pub fn terms(self) -> SmemAddr {
        self.base.offset(map::TERMS)
    }

    /// Barrier that completes, once a span, when the consumers have read them.
    #[inline(always)]
    pub fn terms_read(self) -> SmemAddr {
        self.base.offset(map::TERMS_READ)
    }
}

/// Products of one tile of each chunk of a span.
type Products = [[f32; 16]; 4];

/// A consumer warpgroup.
#[derive(Clone, Copy)]
pub struct Consumer {
    /// Which of the four, the same in all lanes of a warp.
    pub warpgroup: u32,
    /// Thread of the warpgroup.
    pub thread: u32,
    /// Blocks of the cluster.
    pub blocks: u32,
}

impl Consumer {
    /// Gives a stage of key sums back to every block of the cluster.
    ///
    /// # Safety
    /// A whole warpgroup, converged, whose products on the stage are complete.
    #[inline(always)]
    unsafe fn release_keys(self, shared: Shared, at: Turn<RING_TILES>) {
        // SAFETY: forwarded; one thread a block of the cluster, which does not end before all of them do.
        unsafe { cluster::arrive_if(shared.keys.empty(at), self.thread, (self.thread < self.blocks) as u32) }
    }

    /// Gives a group of query sums back, where `on` is 1.
    ///
    /// # Safety
    /// As [`Consumer::release_keys`].
    #[inline(always)]
    unsafe fn release_sums(self, shared: Shared, at: Turn<SUM_TURNS>, on: u32) {
        // SAFETY: forwarded.
        unsafe { mbarrier::arrive_if(shared.sums.empty(at), on & (self.thread == 0) as u32) }
    }

    /// The products of the warpgroup's tiles of the first `TILES` of a span's `CHUNKS` chunks, the same number or one less: in
    /// the last there may be no tile left for it. (A branch around a product in the loop would make ptxas serialise them all.)
    ///
    /// # Safety
    /// A whole warpgroup, converged; the rings are filled for this span, that of the key sums in `stages` stages.
    #[inline(always)]
    unsafe fn multiply<const CHUNKS: usize, const TILES: usize>(self, shared: Shared, stages: u32) -> Products {
        let mut acc = [[0.0; 16]; 4];
        let mut step = 0;
        // SAFETY: stages are waited for before they are read, and given back when the products on them are complete.
        unsafe {
            while step < STEPS {
                // Both anew in every pass, or addresses of all stages would be kept; and from lane 0.
                step = warp::shfl_idx_u32(step, 0);
                let shared = shared.alike();
                // Of the step's number, which is kept anyway: registers are short.
                let group = step / 2;
                let sums = Turn::<SUM_TURNS>::at(group);
                shared.sums.wait_full(sums);
                unroll!(H < 2 {
                    let q = shared.group(sums).offset(H as u32 * SUM_BYTES).0;
                    unroll!(C < 4 {
                        if C < CHUNKS {
                            // Of the step's number, too: what all lanes have alike is in uniform registers, where the descriptors must be.
                            let n = (step + H as u32) * CHUNKS as u32 + C as u32;
                            let keys = Turn::<RING_TILES>::of(n, stages);
                            // All four warps wait where there is a product to keep them in step: the stage is given back when all of
                            // them have issued it. Where there is none, only the warp that gives it back does: another, held up, would
                            // find the stage filled anew and wait for a phase that is over.
                            shared.keys.wait_full_if(keys, (C < TILES) | (self.thread < 32));
                            if C < TILES {
                                let k = shared.key_tile(keys.stage(), stages, self.warpgroup).0;
                                wgmma::fence();
                                unroll!(I < 4 { wgmma::bf16_m64n32k16_ss(&mut acc[C], descriptor_k128_at(k, 2 * I as u32), descriptor_k128_at(q, 2 * I as u32), 1); });
                                wgmma::commit();
                                wgmma::wait::<0>();
                            }
                            // At once, not when the next is on its way: where copies set the pace the stage is missing.
                            self.release_keys(shared, keys);
                        }
                    });
                });
                self.release_sums(shared, sums, 1);
                step += 2;
            }
            unroll!(C < 4 { if C < TILES { wgmma::keep(&mut acc[C]); } });
        }
        acc
    }

    /// What a warpgroup without a tile does in the place of [`Consumer::multiply`]: its first warp gives everything back when it is
    /// there. The others, which no products keep in step with it, leave the ring alone.
    ///
    /// # Safety
    /// As [`Consumer::multiply`]; the span has one chunk.
    #[inline(always)]
    unsafe fn look_on(self, shared: Shared, stages: u32) {
        let mut step = 0;
        // SAFETY: forwarded.
        unsafe {
            let first = warp::shfl_idx_u32(self.thread / 32, 0) == 0;
            while first & (step < STEPS) {
                let (keys, sums) = (Turn::<RING_TILES>::of(step, stages), Turn::<SUM_TURNS>::at(step / 2));
                shared.sums.wait_full(sums);
                shared.keys.wait_full(keys);
                self.release_keys(shared, keys);
                self.release_sums(shared, sums, step % 2);
                step += 1;
            }
        }
    }

    /// Scales the products, adds the value terms, rounds, and stores the scores of the span's key blocks for all rows of a strip
    /// (those of rows and blocks that are not there mean nothing).
    ///
    /// # Safety
    /// As [`Consumer::multiply`]; the value terms are written, all stages of the ring are empty, and nobody uses the scores.
    #[inline(always)]
    unsafe fn store<const TILES: usize>(self, p: &SelectParams, shared: Shared, acc: &Products) {
        // Read again: what hangs on it would otherwise be computed before the products and lack registers there.
        let thread = (special::tid_x_again() % 128) as usize;
        // A product has key blocks as rows and query blocks as columns: the thread has two of the ones a tile, and two of every eight of
        // the others.
        let first = (self.warpgroup * TILE + accumulator_row(thread, 0) as u32) * 4;
        let mut bias = [[0.0; 2]; 4];
        unroll!(C < 4 {
            if C < TILES {
                // SAFETY: two of the span's 1,024 places.
                unroll!(H < 2 { bias[C][H] = unsafe { smem::ld_f32(shared.bias().offset(first + C as u32 * CHUNK_SCORES + H as u32 * 32)) }; });
            }
        });
        let to = shared.scores(accumulator_col(thread, 0) as u32).0.offset(first);
        unroll!(C < 4 {
            if C < TILES {
                unroll!(H < 2 {
                    let key = C as u32 * CHUNK_SCORES + H as u32 * 32;
                    unroll!(G < 4 {
                        let scores = [acc[C][4 * G + 2 * H], acc[C][4 * G + 2 * H + 1]].map(|sum| p.qk_scale * sum + bias[C][H]);
                        let scores = rounded(scores, p.round_bf16 != 0);
                        // SAFETY: of the same places, in two of the strip's 32 rows.
                        unroll!(E < 2 { unsafe { smem::st_f32(to.offset((8 * G + E) as u32 * (PITCH * 4) + key), scores[E]) }; });
                    });
                });
            }
        });
    }

    /// Scores a span: products, then, when all consumers have theirs and the value terms are there, the scores.
    ///
    /// # Safety
    /// All consumer threads call it, converged, with the same span; `between` is a barrier of all of them, after which the value terms are
    /// written.
    #[inline(always)]
    pub unsafe fn score(self, p: &SelectParams, shared: Shared, span: Span, between: impl Fn()) {
        macro_rules! run {
            ($chunks:literal, $tiles:literal, $stages:expr) => {{
                // SAFETY: forwarded; after the barrier every warpgroup's products are complete and the ring is empty.
                unsafe {
                    let acc = self.multiply::<$chunks, $tiles>(shared, $stages);
                    between();
                    self.store::<$tiles>(p, shared, &acc);
                }
            }};
        }
        // From lane 0: ptxas must know that the branches around the products are the whole warp's.
        // SAFETY: whole warps, converged.
        let span = unsafe { Span { first: span.first, count: warp::shfl_idx_u32(span.count as u32, 0) as i32 } };
        let chunks = span.chunks();
        // Known where the products are many, in registers where they are few.
        let few = span.stages();
        match (chunks, self.warpgroup < span.tiles(chunks - 1)) {
            (1, false) => {
                // SAFETY: forwarded.
                unsafe {
                    self.look_on(shared, few);
                    between();
                }
            }
            (1, true) => run!(1, 1, few),
            (2, false) => run!(2, 1, 4),
            (2, true) => run!(2, 2, 4),
            (3, false) => run!(3, 2, 4),
            (3, true) => run!(3, 3, 4),
            (_, false) => run!(4, 3, 4),
            (_, true) => run!(4, 4, 4),
        }
    }
}

/// Scores, or their nearest bf16.
#[inline(always)]
fn rounded([a, b]: [f32; 2], to_bf16: bool) -> [f32; 2] {
    if to_bf16 { cvt::bf16x2_to_f32(cvt::bf16x2(a, b)).into() } else { [a, b] }
}

/// Bytes from the scores of one chunk of a span to those of the next.
const CHUNK_SCORES: u32 = CONSUMERS * TILE * 4;

const _: () = assert!(RING_TILES == 16 && CONSUMERS == 4, "stages of a ring of one, two and four tiles");
const _: () = assert!(ROWS == 32, "the N of the products, and the columns of their accumulators");
