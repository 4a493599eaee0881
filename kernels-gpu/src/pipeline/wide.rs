//! Scores of `select_stem_wide`: a cluster of two has the same rows of two heads, and each block half of the key blocks, for both.
//!
//! A product of key sums with 64 rows reads 8 KiB of either from shared memory, where two with 32 rows would read 16 KiB of key sums and
//! 8 KiB of query sums; and a tile of key sums comes to one block, not to both. The tiles of 64 key blocks go to the blocks in turn. A block sums the
//! queries of its own head and has the sums copied to the other; scores of the other's rows are stored there.

use super::scores::Consumer;
use super::shared::Shared;
use super::stages::Turn;
use super::store::{WideProducts, store_wide};
use crate::abi::SelectParams;
use crate::config::select::{CONSUMERS, STEPS, SUM_BYTES, SUM_TURNS, WIDE_STAGES};
use crate::layout::descriptor_k128_at;
use crate::layout::wide::WideSpan;
use crate::ptx::{cluster, mbarrier, special, warp, wgmma};
use crate::unroll;

/// Position number `n` of the ring, in arithmetic that uniform registers have: a selection would take it out of them.
#[inline(always)]
fn turn(n: u32) -> Turn<WIDE_STAGES> {
    let pass = n.wrapping_mul(0xaaab) >> 17;
    Turn::new(n - 3 * pass, pass & 1)
}

impl Consumer {
    /// Gives a stage of key sums back.
    ///
    /// # Safety
    /// A whole warpgroup, converged, whose products on the stage are complete.
    #[inline(always)]
    unsafe fn release_wide_keys(self, shared: Shared, at: Turn<WIDE_STAGES>, on: bool) {
        // SAFETY: forwarded.
        unsafe { mbarrier::arrive_if(shared.wide_keys.empty(at), (on & (self.thread == 0)) as u32) }
    }

    /// Gives a group of query sums back to both blocks, which have written half of it each.
    ///
    /// # Safety
    /// As [`Consumer::release_wide_keys`].
    #[inline(always)]
    unsafe fn release_wide_sums(self, shared: Shared, at: Turn<SUM_TURNS>, on: bool) {
        // SAFETY: forwarded.
        unsafe { cluster::arrive_if(shared.sums.empty(at), self.thread, (on & (self.thread < 2)) as u32) }
    }

    /// Gives back the stage before position `n`, and where `groups` is not 0 the group of query sums before it, where `on`.
    ///
    /// # Safety
    /// As [`Consumer::release_wide_keys`].
    #[inline(always)]
    unsafe fn release_before(self, shared: Shared, n: u32, groups: u32, on: bool) {
        // SAFETY: forwarded.
        unsafe {
            self.release_wide_keys(shared, turn(n.wrapping_sub(1)), on);
            if groups > 0 {
                self.release_wide_sums(shared, Turn::at(groups - 1), on);
            }
        }
    }

    /// The products of the warpgroup's tiles of the first `TILES` of a span's `CHUNKS` chunks, as [`Consumer::score`] has them, from position
    /// `at` of the ring on.
    ///
    /// # Safety
    /// A whole warpgroup, converged; the rings are filled for this span.
    #[inline(always)]
    unsafe fn multiply_wide<const CHUNKS: usize, const TILES: usize>(self, shared: Shared, at: Turn<WIDE_STAGES>) -> WideProducts {
        let mut acc = [[0.0; 32]; 2];
        let mut state = at.number() << 16;
        // SAFETY: stages are waited for before they are read, and given back when the products on them are complete.
        unsafe {
            while state % 0x1_0000 < STEPS {
                // Anew in every pass, or addresses of all stages would be kept; and from lane 0.
                state = warp::shfl_idx_u32(state, 0);
                let (step, first) = (state % 0x1_0000, state >> 16);
                let shared = shared.alike();
                let sums = Turn::<SUM_TURNS>::at(step / 2);
                shared.sums.wait_full(sums);
                unroll!(H < 2 {
                    let q = shared.group::<true>(sums).offset(H as u32 * (2 * SUM_BYTES)).0;
                    unroll!(C < 2 {
                        if C < CHUNKS {
                            let n = first + (step + H as u32) * CHUNKS as u32 + C as u32;
                            let at = turn(n);
                            // What the warpgroup has on its way: nothing before the first product and behind a chunk without a tile.
                            let pending = (C == 1) | (TILES == CHUNKS) & ((H == 1) | (step > 0));
                            // The last products before this position were the last on their group of query sums.
                            let before = if (C == 0) & (H == 0) { step / 2 } else { 0 };
                            if C < TILES {
                                let there = !warp::any(!shared.wide_keys.is_full(at) as u32);
                                if !there {
                                    wgmma::wait::<0>();
                                    self.release_before(shared, n, before, pending);
                                    shared.wide_keys.wait_full(at);
                                }
                                let k = shared.wide_tile(at.stage(), self.warpgroup).0;
                                wgmma::fence();
                                unroll!(I < 4 { wgmma::bf16_m64n64k16_ss(&mut acc[C], descriptor_k128_at(k, 2 * I as u32), descriptor_k128_at(q, 2 * I as u32), 1); });
                                wgmma::commit();
                                if there {
                                    wgmma::wait::<1>();
                                    self.release_before(shared, n, before, pending);
                                }
                            } else {
                                wgmma::wait::<0>();
                                self.release_before(shared, n, before, pending);
                                // Who waits, and why not everybody: `Consumer::multiply`.
                                shared.wide_keys.wait_full_if(at, self.thread < 32);
                                self.release_before(shared, n + 1, if H == 1 { step / 2 + 1 } else { 0 }, true);
                            }
                        }
                    });
                });
                state += 2;
            }
            wgmma::wait::<0>();
            self.release_before(shared, (state >> 16) + STEPS * CHUNKS as u32, STEPS / 2, TILES == CHUNKS);
            unroll!(C < 2 { if C < TILES { wgmma::keep(&mut acc[C]); } });
        }
        acc
    }

    /// What a warpgroup without a tile does in the place of [`Consumer::multiply_wide`], as `Consumer::look_on`.
    ///
    /// # Safety
    /// As [`Consumer::multiply_wide`]; the span has one chunk.
    #[inline(always)]
    unsafe fn look_on_wide(self, shared: Shared, mut at: Turn<WIDE_STAGES>) {
        let mut group = 0;
        // SAFETY: forwarded.
        unsafe {
            let first = warp::shfl_idx_u32(self.thread / 32, 0) == 0;
            while first & (group < STEPS / 2) {
                let sums = Turn::<SUM_TURNS>::at(group);
                shared.sums.wait_full(sums);
                unroll!(H < 2 {
                    let _ = H;
                    shared.wide_keys.wait_full(at);
                    self.release_wide_keys(shared, at, true);
                    at = at.next();
                });
                self.release_wide_sums(shared, sums, true);
                group += 1;
            }
        }
    }

    /// Scores a span, number `spans` of the block's, for both heads: products, then, when all consumers of both blocks have theirs and the value
    /// terms are there, the scores; after it those of the own head are complete. `at` is where in the ring the span begins.
    ///
    /// # Safety
    /// All consumer threads of both blocks call it, converged, with the same span; `between` waits for the value terms.
    #[inline(always)]
    pub unsafe fn score_wide(self, p: &SelectParams, shared: Shared, span: WideSpan, at: Turn<WIDE_STAGES>, between: impl Fn()) {
        // SAFETY: forwarded; everyone arrives when its products are complete, or has none.
        let made = || unsafe {
            let (shared, lane) = (Shared::again(), special::tid_x_again() % 32);
            warp::sync();
            cluster::arrive_release_if(shared.made(), lane, (lane < 2) as u32);
            between();
        };
        macro_rules! run {
            ($chunks:literal, $tiles:literal) => {{
                // SAFETY: forwarded; after the barrier the rings of both blocks are empty, and nobody uses scores.
                unsafe {
                    let acc = self.multiply_wide::<$chunks, $tiles>(shared, at);
                    made();
                    store_wide::<$tiles>(p, shared, self.warpgroup, &acc);
                }
            }};
        }
        match (span.chunks(), self.warpgroup < span.tiles(span.chunks() - 1)) {
            (1, false) => {
                // SAFETY: forwarded.
                unsafe { self.look_on_wide(shared, at) };
                made();
            }
            (1, true) => run!(1, 1),
            (_, false) => run!(2, 1),
            (_, true) => run!(2, 2),
        }
    }
}

const _: () = assert!(CONSUMERS == 4 && WIDE_STAGES < 4, "the stage of a position takes two bits");
