//! Queries of a strip on their way to means in shared memory.

use crate::abi::SelectProbeParams;
use crate::config::HEAD_DIM;
use crate::config::probe_sel::{LEAST_SCALE, PART_GROUPS, smem as map};
use crate::layout::pages::is_new;
use crate::layout::probe_sel::exact_scale;
use crate::layout::swizzle_128;
use crate::ptx::{SmemAddr, cvt, global, math, smem, warp};
use crate::tile::probe_strip::{Strip, query_parts};
use crate::unroll;

/// Means of the warp's 16 groups as e4m3 rows in shared memory, with their scales. Eight lanes share a group, 16 dimensions
/// each; four groups a round.
///
/// # Safety
/// Called by a whole warp, converged; the host checked `q` and `q_scale` for the strip's request; nobody reads the warp's rows
/// and scales of an earlier strip any more.
#[inline(always)]
pub unsafe fn pool(p: &SelectProbeParams, strip: &Strip, shared: SmemAddr, warp: u32, lane: u32) {
    let (chunk, queries) = (lane % 8, 1 << p.query_pool_log2);
    let mut round = 0;
    while round < PART_GROUPS as u32 / 4 {
        let group = warp * PART_GROUPS as u32 + round * 4 + lane / 8;
        // Queries `first..end` of the group are new tokens; their addresses follow that of the group's first, wherever that is.
        let token = strip.token(p, group);
        let (codes_at, scale_at) = strip.query(p, token);
        let codes_at = codes_at.wrapping_add(chunk as u64 * 16);
        let (first, end) = (-token, smaller(strip.request.q_len - token, queries));
        let (mut codes, mut scales) = ([[0; 4]; 8], [0; 8]);
        // All loads before the first use, so that all are in flight together.
        unroll!(A < 2 {
            if 4 * A as i32 <= (queries - 1) {
                unroll!(B < 4 {
                    const R: usize = 4 * A + B;
                    let wanted = ((R as i32 >= first) & ((R as i32) < end)) as u32;
                    // SAFETY: loaded only where it is one of the request's new tokens.
                    unsafe {
                        codes[R] = global::ld_nc_v4_if(codes_at.wrapping_add((R as i64 * p.q_rows.token) as u64), wanted);
                        scales[R] = global::ld_u32_if(scale_at.wrapping_add((R as i64 * p.q_scale_rows.token) as u64), wanted);
                    }
                });
            }
        });
        let mut sum = [0.0; 16];
        unroll!(A < 2 {
            if 4 * A as i32 <= (queries - 1) {
                unroll!(B < 4 {
                    const R: usize = 4 * A + B;
                    let scale = exact_scale(f32::from_bits(scales[R]));
                    unroll!(W < 4 {
                        unroll!(H < 2 {
                            let (a, b) = cvt::f16x2_to_f32(cvt::e4m3x2_to_f16x2(codes[R][W] >> (16 * H)));
                            sum[4 * W + 2 * H] = math::fma(scale, a, sum[4 * W + 2 * H]);
                            sum[4 * W + 2 * H + 1] = math::fma(scale, b, sum[4 * W + 2 * H + 1]);
                        });
                    });
                });
            }
        });
        let mut largest = LEAST_SCALE;
        unroll!(I < 16 { largest = math::fmax(largest, f32::from_bits(sum[I].to_bits() & 0x7fff_ffff)); });
        // SAFETY: a whole warp, converged; the group's row and scale are the warp's own.
        unsafe {
            unroll!(B in [1 2 4] { largest = math::fmax(largest, warp::shfl_bfly_f32(largest, B as u32)); });
            let factor = 1.0 / largest;
            let mut packed = [0; 4];
            unroll!(W < 4 {
                let x = [sum[4 * W] * factor, sum[4 * W + 1] * factor, sum[4 * W + 2] * factor, sum[4 * W + 3] * factor];
                packed[W] = cvt::e4m3x4(x[0], x[1], x[2], x[3]);
            });
            let at = swizzle_128((group as usize) * HEAD_DIM + chunk as usize * 16) as u32;
            smem::st_v4(shared.offset(map::QUERIES + at), packed);
            let count = end - if first > 0 { first } else { 0 };
            let scale = if count > 0 { largest * (1.0 / count as f32) } else { 0.0 };
            smem::st_u32_if(shared.offset(map::SCALES + group * 4), scale.to_bits(), (chunk == 0) as u32);
        }
        round += 1;
    }
}

#[inline(always)]
fn smaller(a: i32, b: i32) -> i32 {
    if a < b { a } else { b }
}

/// A strip's queries on their way into L2, a few at a time.
#[derive(Clone, Copy)]
pub struct Ahead {
    strip: Strip,
    /// Parts that are still to be fetched.
    left: u32,
    /// Parts to fetch at a time.
    at_once: u32,
}

impl Ahead {
    /// The queries of `strip`, to be fetched in `times` steps; nothing where there is no strip.
    #[inline(always)]
    pub fn new(p: &SelectProbeParams, strip: Option<Strip>, times: u32) -> Option<Self> {
        let parts = query_parts(p);
        let times = if times > 0 { times } else { 1 };
        strip.map(|strip| Self { strip, left: parts, at_once: parts.div_ceil(times) })
    }

    /// Fetches the next few.
    ///
    /// # Safety
    /// Called by a whole warp; the host checked `q` and `q_scale` for the strip's request.
    #[inline(always)]
    pub unsafe fn step(&mut self, p: &SelectProbeParams, lane: u32) {
        let until = self.left.saturating_sub(self.at_once);
        while self.left > until {
            self.left -= 1;
            let token = self.strip.token(p, 0) + (self.left * 32 + lane) as i32;
            let new = is_new(&self.strip.request, token) as u32;
            let (codes, scale) = self.strip.query(p, token);
            // SAFETY: fetched only where the token is one of the request's.
            unsafe {
                global::prefetch_if(codes, new);
                global::prefetch_if(scale, new);
            }
        }
    }
}
