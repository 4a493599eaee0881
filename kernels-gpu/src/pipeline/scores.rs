//! Scores of a strip against a span of key blocks: bf16 products of key sums (M) and query sums (N), 2,048 long.
//!
//! K runs outermost: a step of 64 dimensions of all key blocks of the span, then the next. So the sums of a strip's queries are
//! needed a group at a time and are never all in memory, and the accumulators of the whole span (up to 1,024 blocks by 32 rows)
//! live in the registers of four warpgroups. A stage of the ring holds one step of 256 key blocks, one tile a warpgroup.

use super::stages::{Stages, Turn};
use crate::abi::SelectParams;
use crate::config::select::{
    PITCH, QUERY_BYTES, QUERY_STAGES, ROWS, STAGES, STEPS, SUM_BYTES, SUM_STAGES, SUM_TURNS, TILE, TILE_BYTES, smem as map,
};
use crate::layout::{accumulator_col, accumulator_row, descriptor_k128};
use crate::ptx::{SmemAddr, cluster, cvt, mbarrier, smem, special, warp, wgmma};
use crate::tile::strip::Span;
use crate::tile::topk::SharedScores;
use crate::unroll;

/// Shared memory of the kernel.
#[derive(Clone, Copy)]
pub struct Shared {
    base: SmemAddr,
    /// Key sums; a stage is empty when the consumers of every block of the cluster have read it.
    pub keys: Stages<STAGES>,
    /// Query sums; full when they are [`written`](Shared::written) and the products may read them.
    pub sums: Stages<SUM_TURNS>,
}

impl Shared {
    /// The block's.
    #[inline(always)]
    pub fn of_block() -> Self {
        let base = smem::base();
        Self { base, keys: Stages(base.offset(map::RING_BARRIERS)), sums: Stages(base.offset(map::SUM_BARRIERS)) }
    }

    /// Tile `tile` of a stage of key sums.
    #[inline(always)]
    pub fn key_tile(self, at: Turn<STAGES>, tile: u32) -> SmemAddr {
        self.base.offset(map::RING + at.stage() * map::STAGE_BYTES + tile * TILE_BYTES)
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

    /// Stage of the queries that the `n`-th group of summing warpgroup `summer` goes through.
    #[inline(always)]
    pub fn queries(self, summer: u32, n: u32) -> SmemAddr {
        self.base.offset(map::QUERIES + (summer * QUERY_STAGES + n % QUERY_STAGES) * QUERY_BYTES)
    }

    /// Value terms of the span.
    #[inline(always)]
    pub fn bias(self) -> SmemAddr {
        self.base.offset(map::BIAS)
    }

    /// Scratch of the value statistics.
    #[inline(always)]
    pub fn moments(self) -> SmemAddr {
        self.base.offset(map::MOMENTS)
    }

    /// What the rows of the strip are ([`crate::tile::strip::Strip::note_rows`]).
    #[inline(always)]
    pub fn notes(self) -> SmemAddr {
        self.base.offset(map::NOTES)
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
    /// Gives a stage of key sums back to every block of the cluster, where `on` is 1.
    ///
    /// # Safety
    /// A whole warpgroup, converged, whose products on the stage are complete.
    #[inline(always)]
    unsafe fn release_keys(self, shared: Shared, at: Turn<STAGES>, on: u32) {
        // SAFETY: forwarded; one thread a block of the cluster, which does not end before all of them do.
        unsafe { cluster::arrive_if(shared.keys.empty(at), self.thread, on & (self.thread < self.blocks) as u32) }
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
    /// A whole warpgroup, converged; the rings are filled for this span, that of the key sums
    /// from position `at` on.
    #[inline(always)]
    unsafe fn multiply<const CHUNKS: usize, const TILES: usize>(self, shared: Shared, at: u32) -> Products {
        let mut acc = [[0.0; 16]; 4];
        let mut keys = Turn::at(at);
        let mut keys_before = keys;
        let mut step = 0;
        // SAFETY: stages are waited for before they are read, and given back when the products on them are complete.
        unsafe {
            while step < STEPS {
                // Of the step's number, which is kept anyway: registers are short.
                let group = step / 2;
                let sums = Turn::at(group);
                shared.sums.wait_full(sums);
                unroll!(H < 2 {
                    let q = descriptor_k128(shared.group(sums).offset(H as u32 * SUM_BYTES).0);
                    unroll!(C < 4 {
                        if C < CHUNKS {
                            shared.keys.wait_full(keys);
                            if C < TILES {
                                let k = descriptor_k128(shared.key_tile(keys, self.warpgroup).0);
                                wgmma::fence();
                                unroll!(I < 4 { wgmma::bf16_m64n32k16_ss(&mut acc[C], k + 2 * I as u64, q + 2 * I as u64, 1); });
                                wgmma::commit();
                                wgmma::wait::<1>();
                            } else {
                                wgmma::wait::<0>();
                            }
                            // The stage before this one is free now; with the first of a group, the group before, too.
                            let first = ((step == 0) & (H == 0) & (C == 0)) as u32;
                            self.release_keys(shared, keys_before, 1 - first);
                            if H == 0 && C == 0 {
                                self.release_sums(shared, Turn::at(group.wrapping_sub(1)), 1 - first);
                            }
                            keys_before = keys;
                            keys = keys.next();
                        }
                    });
                });
                step += 2;
            }
            wgmma::wait::<0>();
            unroll!(C < 4 { if C < TILES { wgmma::keep(&mut acc[C]); } });
            self.release_keys(shared, keys_before, 1);
            self.release_sums(shared, Turn::at(STEPS / 2 - 1), 1);
        }
        acc
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
        unroll!(C < 4 {
            if C < TILES {
                unroll!(H < 2 {
                    // A product has key blocks as rows and query blocks as columns.
                    let row = accumulator_row(thread, 2 * H) as u32;
                    let key = (C as u32 * 4 + self.warpgroup) * TILE + row;
                    // SAFETY: one of the span's 1,024 places, and one of the strip's 32 rows.
                    let bias = unsafe { smem::ld_f32(shared.bias().offset(key * 4)) };
                    unroll!(G < 4 {
                        unroll!(E < 2 {
                            const I: usize = 4 * G + 2 * H + E;
                            let r = accumulator_col(thread, I) as u32;
                            let score = rounded(p.qk_scale * acc[C][I] + bias, p.round_bf16 != 0);
                            // SAFETY: as above.
                            unsafe { smem::st_f32(shared.scores(r).0.offset(key * 4), score) };
                        });
                    });
                });
            }
        });
    }

    /// Scores a span: products, then, when all consumers have theirs and the value terms are there, the scores.
    ///
    /// # Safety
    /// All consumer threads call it, converged, with the same span; `at` counts the stages of key sums they have gone through;
    /// `between` is a barrier of all of them.
    #[inline(always)]
    pub unsafe fn score(self, p: &SelectParams, shared: Shared, span: Span, at: &mut u32, between: impl Fn()) {
        macro_rules! run {
            ($chunks:literal, $tiles:literal) => {{
                // SAFETY: forwarded; after the barrier every warpgroup's products are complete and the ring is empty.
                unsafe {
                    let acc = self.multiply::<$chunks, $tiles>(shared, *at);
                    *at += STEPS * $chunks;
                    between();
                    self.store::<$tiles>(p, shared, &acc);
                }
            }};
        }
        // From lane 0: ptxas must know that the branches around the products are the whole warp's.
        // SAFETY: whole warps, converged.
        let span = unsafe { Span { first: span.first, count: warp::shfl_idx_u32(span.count as u32, 0) as i32 } };
        let chunks = span.chunks();
        match (chunks, self.warpgroup < span.tiles(chunks - 1)) {
            (1, false) => run!(1, 0),
            (1, true) => run!(1, 1),
            (2, false) => run!(2, 1),
            (2, true) => run!(2, 2),
            (3, false) => run!(3, 2),
            (3, true) => run!(3, 3),
            (_, false) => run!(4, 3),
            (_, true) => run!(4, 4),
        }
    }
}

/// The score, or its nearest bf16.
#[inline(always)]
fn rounded(score: f32, to_bf16: bool) -> f32 {
    if to_bf16 { cvt::bf16x2_to_f32(cvt::bf16x2(score, 0.0)).0 } else { score }
}

const _: () = assert!(ROWS == 32, "the N of the products, and the columns of their accumulators");
