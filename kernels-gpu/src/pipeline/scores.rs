//! Scores of a strip against a span of key blocks: bf16 products of key sums (M) and query sums (N), 2,048 long.
//!
//! K runs outermost: a step of 64 dimensions of all key blocks of the span, then the next. So the sums of a strip's queries are
//! needed a group at a time and are never all in memory, and the accumulators of the whole span (up to 1,024 blocks by 32 rows)
//! live in the registers of four warpgroups. A stage of the ring holds one step of 256 key blocks, one tile a warpgroup.

use super::shared::Shared;
use super::stages::Turn;
use super::store::{Products, store};
use crate::abi::SelectParams;
use crate::config::select::{CONSUMERS, RING_TILES, ROWS, STEPS, SUM_BYTES, SUM_TURNS};
use crate::layout::descriptor_k128_at;
use crate::ptx::{cluster, mbarrier, warp, wgmma};
use crate::tile::strip::Span;
use crate::unroll;

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
                    let q = shared.group::<false>(sums).offset(H as u32 * SUM_BYTES).0;
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
                    store::<$tiles>(p, shared, self.warpgroup, &acc);
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

const _: () = assert!(RING_TILES == 16 && CONSUMERS == 4, "stages of a ring of one, two and four tiles");
const _: () = assert!(ROWS == 32, "the N of the products, and the columns of their accumulators");
