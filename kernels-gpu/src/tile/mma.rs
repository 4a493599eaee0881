//! The two products of one attention tile as one consumer warpgroup sees them: 64 query rows by 128 keys.
//!
//! A product in flight owns its registers: [`PendingScores`] and [`PendingOutput`] give them back only through
//! `landed`, whose contract is that the matching wait has run. Reading or writing them earlier would make ptxas
//! serialise the whole pipeline (warning C7513).

use crate::layout::descriptor_k128;
use crate::ptx::SmemAddr;
use crate::ptx::wgmma;
use crate::unroll;

/// Scores of 64 rows x 128 keys: 64 f32 a thread, placed as `layout::accumulator_row/col` say.
pub struct Scores(pub [f32; 64]);
/// Scores whose wgmma has been issued and not waited for.
pub struct PendingScores([f32; 64]);
/// P in e4m3, packed as A fragments: four 32-key steps of four registers.
#[derive(Clone, Copy)]
pub struct Probabilities(pub [u32; 16]);
/// Output accumulator of 64 rows x 128 dimensions.
pub struct Output(pub [f32; 64]);
/// An output whose wgmma has been issued and not waited for.
pub struct PendingOutput([f32; 64]);

impl PendingScores {
    /// # Safety
    /// `wgmma::wait` has run for the group these scores were committed in.
    #[inline(always)]
    pub unsafe fn landed(self) -> Scores {
        Scores(self.0)
    }
}

impl PendingOutput {
    /// # Safety
    /// `wgmma::wait` has run for the group this product was committed in.
    #[inline(always)]
    pub unsafe fn landed(self) -> Output {
        Output(self.0)
    }
}

/// The 64 rows of the Q tile at `q` that are consumer `wg`'s.
#[inline(always)]
pub fn q_rows(q: SmemAddr, wg: u32) -> SmemAddr {
    q.offset(wg * (crate::config::TILE_BYTES as u32 / 2))
}

/// Descriptor of the tile at `tile`, advanced by `by` units of 16 bytes. The address field cannot carry into the upper
/// half, so the advance is a 32-bit add; left to a 64-bit one, every step costs a carry and a move.
#[inline(always)]
fn step(tile: SmemAddr, by: u32) -> u64 {
    let descriptor = descriptor_k128(tile.0);
    (descriptor & !0xFFFF_FFFF) | (descriptor as u32 + by) as u64
}

/// Issues S = Q K^T over the four 32-byte steps of the head dimension and commits it as one group. `reuse` gives its
/// registers, not its values: the first step starts from zero, and clearing 64 registers a tile would cost issue slots.
///
/// # Safety
/// Called by all threads of a warpgroup, converged; both tiles are complete in shared memory and stay until the wait.
#[inline(always)]
pub unsafe fn issue_qk(q: SmemAddr, k: SmemAddr, reuse: Scores) -> PendingScores {
    let mut s = reuse.0;
    // SAFETY: forwarded from the caller.
    unsafe {
        wgmma::fence();
        wgmma::e4m3_m64n128k32_ss(&mut s, step(q, 0), step(k, 0), 0);
        wgmma::e4m3_m64n128k32_ss(&mut s, step(q, 2), step(k, 2), 1);
        wgmma::e4m3_m64n128k32_ss(&mut s, step(q, 4), step(k, 4), 1);
        wgmma::e4m3_m64n128k32_ss(&mut s, step(q, 6), step(k, 6), 1);
        wgmma::commit();
    }
    PendingScores(s)
}

/// Issues P V into an empty accumulator and commits it as one group. The FP8 tensor core accumulates with about 14
/// mantissa bits, so every tile starts fresh and is added in f32 (hopper.md: without that the error on real rows doubles).
///
/// # Safety
/// As [`issue_qk`]; `p` must not be written before the wait.
#[inline(always)]
pub unsafe fn issue_pv(p: &Probabilities, v: SmemAddr, reuse: Output) -> PendingOutput {
    let mut o = reuse.0;
    let p = &p.0;
    // SAFETY: forwarded from the caller.
    unsafe {
        wgmma::fence();
        wgmma::e4m3_m64n128k32_rs(&mut o, [p[0], p[1], p[2], p[3]], step(v, 0), 0);
        wgmma::e4m3_m64n128k32_rs(&mut o, [p[4], p[5], p[6], p[7]], step(v, 2), 1);
        wgmma::e4m3_m64n128k32_rs(&mut o, [p[8], p[9], p[10], p[11]], step(v, 4), 1);
        wgmma::e4m3_m64n128k32_rs(&mut o, [p[12], p[13], p[14], p[15]], step(v, 6), 1);
        wgmma::commit();
    }
    PendingOutput(o)
}

impl Scores {
    /// Registers for the first product.
    #[inline(always)]
    pub fn zero() -> Self {
        Self([0.0; 64])
    }
}

impl Output {
    /// All zeros.
    #[inline(always)]
    pub fn zero() -> Self {
        Self([0.0; 64])
    }

    /// `self = self * factor + tile` for the thread's two rows: the rescale that is due and the flush in one FMA.
    #[inline(always)]
    pub fn rescale_add(&mut self, factor: [f32; 2], tile: &Output) {
        use crate::ptx::math::fma;
        unroll!(I < 16 {
            self.0[4 * I] = fma(self.0[4 * I], factor[0], tile.0[4 * I]);
            self.0[4 * I + 1] = fma(self.0[4 * I + 1], factor[0], tile.0[4 * I + 1]);
            self.0[4 * I + 2] = fma(self.0[4 * I + 2], factor[1], tile.0[4 * I + 2]);
            self.0[4 * I + 3] = fma(self.0[4 * I + 3], factor[1], tile.0[4 * I + 3]);
        });
    }
}
