//! Queries of a strip on their way to means in shared memory.

use crate::abi::SelectProbeParams;
use crate::config::HEAD_DIM;
use crate::config::probe_sel::{LEAST_SCALE, PART_GROUPS, smem as map};
use crate::layout::pages::{clamped, is_new};
use crate::layout::swizzle_128;
use crate::ptx::{SmemAddr, cvt, global, math, smem, warp};
use crate::tile::probe_strip::{Strip, query_parts};
use crate::tile::sums::GroupSum;
use crate::unroll;

/// Means of the warp's 16 groups as e4m3 rows in shared memory, with their scales. Eight lanes share a group, 16 dimensions
/// each; four groups a round.
///
/// # Safety
/// Called by a whole warp, converged; the host checked `q` and `q_scale` for the strip's request; nobody reads the warp's rows
/// and scales of an earlier strip any more.
#[inline(always)]
pub unsafe fn pool(p: &SelectProbeParams, strip: &Strip, shared: SmemAddr, warp: u32, lane: u32) {
    let (chunk, request) = (lane % 8, &strip.request);
    let queries = 1 << p.query_pool_log2;
    let mut round = 0;
    while round < PART_GROUPS as u32 / 4 {
        let group = warp * PART_GROUPS as u32 + round * 4 + lane / 8;
        let first = strip.token(p, group);
        let (mut codes, mut scales) = ([[0; 4]; 8], [0.0; 8]);
        // All loads before the first use, so that all are in flight together: how fast this goes is a matter of latency.
        // SAFETY: a strip belongs to a request with at least one new token, so the clamped token is one of the request's.
        unsafe {
            unroll!(A < 2 {
                if 4 * A as i32 <= (queries - 1) {
                    unroll!(B < 4 {
                        const R: usize = 4 * A + B;
                        let (at, scale) = strip.query(p, clamped(first + R as i32, request.q_len));
                        codes[R] = global::ld_nc_v4(at + chunk as u64 * 16);
                        scales[R] = f32::from_bits(global::ld_nc_u32(scale));
                    });
                }
            });
        }
        let (mut sum, mut count) = (GroupSum::zero(), 0);
        unroll!(R < 8 {
            let wanted = is_new(request, first + R as i32) & ((R as i32) < queries);
            let mask = if wanted { u32::MAX } else { 0 };
            let [a, b, c, d] = codes[R];
            // Both: a scale of another token could be anything, and so could its codes.
            sum.add([a & mask, b & mask, c & mask, d & mask], if wanted { scales[R] } else { 0.0 });
            count += wanted as i32;
        });
        let mut x = sum.values();
        let inverse = 1.0 / (if count > 0 { count } else { 1 }) as f32;
        let mut largest = LEAST_SCALE;
        unroll!(I < 16 {
            x[I] *= inverse;
            largest = math::fmax(largest, f32::from_bits(x[I].to_bits() & 0x7fff_ffff));
        });
        // SAFETY: a whole warp, converged; the group's row and scale are the warp's own.
        unsafe {
            unroll!(B in [1 2 4] { largest = math::fmax(largest, warp::shfl_bfly_f32(largest, B as u32)); });
            let factor = 1.0 / largest;
            let mut packed = [0; 4];
            unroll!(W < 4 {
                packed[W] = cvt::e4m3x4(x[4 * W] * factor, x[4 * W + 1] * factor, x[4 * W + 2] * factor, x[4 * W + 3] * factor);
            });
            let at = swizzle_128((group as usize) * HEAD_DIM + chunk as usize * 16) as u32;
            smem::st_v4(shared.offset(map::QUERIES + at), packed);
            let scale = if count > 0 { largest } else { 0.0 };
            smem::st_u32_if(shared.offset(map::SCALES + group * 4), scale.to_bits(), (chunk == 0) as u32);
        }
        round += 1;
    }
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
