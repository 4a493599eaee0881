//! Scores of `select_stem_wide`: a cluster of two has the same rows of two heads, and each block half of the key blocks, for both.
//!
//! Query blocks are M here, 32 of either head, and key blocks N: a product of 64 by 64 reads 4 KiB of shared memory, where two with 32 query blocks
//! read 6, and a tile of key sums comes to one block, not to both. The tiles of 64 key blocks go to the blocks in turn, and of a block's tiles two
//! that follow each other to a warpgroup, in stages of its own. (128 columns would read a quarter less, but a kernel launched with 72 registers cannot
//! have them.) A block sums the queries of its own head and has the sums copied to the other; scores of the other's rows are stored there.

use super::scores::Consumer;
use super::shared::Shared;
use super::stages::Turn;
use super::store::{WideProducts, store_wide};
use crate::abi::SelectParams;
use crate::config::select::{CONSUMERS, STEPS, SUM_BYTES, SUM_TURNS, TILE_BYTES, WIDE_TILES, WIDE_TURNS};
use crate::layout::descriptor_k128_at;
use crate::layout::wide::WideSpan;
use crate::ptx::{cluster, mbarrier, special, warp, wgmma};
use crate::unroll;

/// Position number `n` of the ring, in arithmetic that uniform registers have: a selection would take it out of them.
#[inline(always)]
fn turn(n: u32) -> Turn<WIDE_TURNS> {
    let pass = n.wrapping_mul(0x5556) >> 18;
    Turn::new(n - WIDE_TURNS * pass, pass & 1)
}

/// Where a warpgroup's stages are in the ring: one a step.
#[derive(Clone, Copy)]
struct Way {
    /// That of the first step.
    first: u32,
    /// From one to the next.
    stride: u32,
}

impl Consumer {
    /// Gives a stage of key sums back.
    ///
    /// # Safety
    /// A whole warpgroup, converged, whose products on the stage are complete.
    #[inline(always)]
    unsafe fn release_wide_keys(self, shared: Shared, at: Turn<WIDE_TURNS>, on: bool) {
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

    /// The products of the warpgroup's `TILES` tiles of a span.
    ///
    /// # Safety
    /// A whole warpgroup, converged; the rings are filled for this span.
    #[inline(always)]
    unsafe fn multiply_wide<const TILES: usize>(self, shared: Shared, way: Way) -> WideProducts {
        const { assert!(TILES == 1 || TILES == WIDE_TILES as usize) };
        let mut acc = [[0.0; 32]; 2];
        let mut state = way.first << 16 | way.stride << 8;
        // SAFETY: stages are waited for before they are read, and given back when the products on them are complete, before the next one is
        // waited for: whoever fills it may need the place.
        unsafe {
            while state % 0x100 < STEPS {
                // Anew in every pass, or addresses of all stages would be kept; and from lane 0.
                state = warp::shfl_idx_u32(state, 0);
                let (step, stride, first) = (state % 0x100, state >> 8 & 0xff, state >> 16);
                let shared = shared.alike();
                let sums = Turn::<SUM_TURNS>::at(step / 2);
                unroll!(H < 2 {
                    let n = first + (step + H as u32) * stride;
                    let at = turn(n);
                    wgmma::wait::<0>();
                    self.release_wide_keys(shared, turn(n.wrapping_sub(stride)), (H == 1) | (step > 0));
                    if H == 0 {
                        self.release_wide_sums(shared, Turn::at((step / 2).wrapping_sub(1)), step > 0);
                        shared.sums.wait_full(sums);
                    }
                    let q = shared.group::<true>(sums).offset(H as u32 * (2 * SUM_BYTES)).0;
                    shared.wide_keys.wait_full(at);
                    let k = shared.wide_stage(at).0;
                    wgmma::fence();
                    unroll!(I < 4 {
                        unroll!(T < 2 {
                            if T < TILES {
                                let k = k + T as u32 * TILE_BYTES;
                                wgmma::bf16_m64n64k16_ss(&mut acc[T], descriptor_k128_at(q, 2 * I as u32), descriptor_k128_at(k, 2 * I as u32), 1);
                            }
                        });
                    });
                    wgmma::commit();
                });
                state += 2;
            }
            wgmma::wait::<0>();
            self.release_wide_keys(shared, turn(way.first + (STEPS - 1) * way.stride), true);
            self.release_wide_sums(shared, Turn::at(STEPS / 2 - 1), true);
            unroll!(T < 2 { if T < TILES { wgmma::keep(&mut acc[T]); } });
        }
        acc
    }

    /// What a warpgroup without a tile does in the place of [`Consumer::multiply_wide`], as `Consumer::look_on`: the query sums wait for it, too.
    ///
    /// # Safety
    /// As [`Consumer::multiply_wide`].
    #[inline(always)]
    unsafe fn look_on_wide(self, shared: Shared) {
        let mut group = 0;
        // SAFETY: forwarded.
        unsafe {
            let first = warp::shfl_idx_u32(self.thread / 32, 0) == 0;
            while first & (group < STEPS / 2) {
                let sums = Turn::<SUM_TURNS>::at(group);
                shared.sums.wait_full(sums);
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
    pub unsafe fn score_wide(self, p: &SelectParams, shared: Shared, span: WideSpan, at: Turn<WIDE_TURNS>, between: impl Fn()) {
        // SAFETY: forwarded; everyone arrives when its products are complete, or has none.
        let made = || unsafe {
            let (shared, lane) = (Shared::again(), special::tid_x_again() % 32);
            warp::sync();
            cluster::arrive_release_if(shared.made(), lane, (lane < 2) as u32);
            between();
        };
        let way = Way { first: at.number() + self.warpgroup, stride: span.warpgroups() };
        macro_rules! run {
            ($tiles:literal) => {{
                // SAFETY: forwarded; after the barrier the rings of both blocks are empty, and nobody uses scores.
                unsafe {
                    let acc = self.multiply_wide::<$tiles>(shared, way);
                    made();
                    store_wide::<$tiles>(p, shared, self.warpgroup, &acc);
                }
            }};
        }
        match span.tiles(self.warpgroup) {
            0 => {
                // SAFETY: forwarded.
                unsafe { self.look_on_wide(shared) };
                made();
            }
            1 => run!(1),
            _ => run!(2),
        }
    }
}

const _: () = assert!(WIDE_TURNS == 12 && CONSUMERS * STEPS + 2 * WIDE_TURNS < 1 << 8, "what `turn` divides by, and how far it is right");
