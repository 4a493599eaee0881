//! The two products of half an attention tile as one consumer warpgroup sees them: 64 query rows by 64 keys.
//!
//! A product in flight owns its registers: [`PendingScores`] and [`PendingProduct`] give them back only through
//! `landed`, whose contract is that the matching wait has run. Reading or writing them earlier would make ptxas
//! serialise the whole pipeline (warning C7513).

use crate::layout::descriptor_k128_at;
use crate::ptx::SmemAddr;
use crate::ptx::math;
use crate::ptx::wgmma;
use crate::unroll;

/// Which half of a tile's 128 keys.
pub const FIRST: u32 = 0;
/// See [`FIRST`].
pub const SECOND: u32 = 1;

/// Scores of 64 rows x 64 keys in f16: registers 2 I and 2 I + 1 of a thread hold columns 8 I + 2 (lane % 4) and the next
/// of its first and its second row.
pub struct Scores(pub [u32; 16]);
/// Scores whose wgmma has been issued and not waited for.
pub struct PendingScores([u32; 16]);
/// P of 64 keys in e4m3, packed as A fragments: two 32-key steps of four registers.
#[derive(Clone, Copy)]
pub struct Probabilities(pub [u32; 8]);
/// Accumulator of P V: 64 rows x 128 dimensions (column n is `layout::v_row(n)`), placed as `layout::accumulator_row/col` say, and in
/// registers 64 and 66 the row sums of P, which eight rows of ones behind V^T make: numerator and denominator carry the same rounding.
pub struct Product(pub [f32; 68]);
/// A product whose wgmma has been issued and not waited for.
pub struct PendingProduct([f32; 68]);
/// Output of 64 rows x 128 dimensions, and its row sums. Column n is dimension `layout::v_row(n)`.
pub struct Output {
    /// Placed as in [`Product`].
    pub rows: [f32; 64],
    /// Row sums of P.
    pub sum: [f32; 2],
}

impl PendingScores {
    /// # Safety
    /// `wgmma::wait` has run for the group these scores were committed in.
    #[inline(always)]
    pub unsafe fn landed(self) -> Scores {
        Scores(self.0)
    }
}

impl PendingProduct {
    /// One that adds nothing.
    #[inline(always)]
    pub fn nothing() -> Self {
        Self(each(math::zero_here))
    }

    /// # Safety
    /// `wgmma::wait` has run for the group this product was committed in.
    #[inline(always)]
    pub unsafe fn landed(self) -> Product {
        Product(self.0)
    }
}

/// A product's registers, each from a call of its own. (`from_fn` would put them into local memory.)
#[inline(always)]
fn each(register: impl Fn() -> f32) -> [f32; 68] {
    let mut all = [0.0; 68];
    unroll!(I < 16 { unroll!(J < 4 { all[4 * I + J] = register(); }); });
    unroll!(J < 4 { all[64 + J] = register(); });
    all
}

/// The 64 rows of the Q tile at `q` that are consumer `wg`'s.
#[inline(always)]
pub fn q_rows(q: SmemAddr, wg: u32) -> SmemAddr {
    q.offset(wg * (crate::config::TILE_BYTES as u32 / 2))
}

/// Issues S = Q K^T for half `HALF` of the K tile at `k`. `reuse` gives its registers, not its values: the first step starts
/// from zero.
///
/// # Safety
/// Called by all threads of a warpgroup, converged, after `wgmma::fence` and before `wgmma::commit`; both tiles are complete
/// in shared memory and stay until the wait.
#[inline(always)]
pub unsafe fn issue_qk<const HALF: u32>(q: SmemAddr, k: SmemAddr, reuse: Scores) -> PendingScores {
    // 64 rows of 128 bytes further on, in units of 16 bytes.
    const { assert!(HALF < 2) };
    let at = HALF * 64 * 8;
    let mut s = reuse.0;
    // SAFETY: forwarded from the caller.
    unsafe {
        // Every step rounds to f16, the coarser the larger the sum so far. In this order the slow channels of a model's rotary
        // embedding (the upper half of each 64 dimensions), whose products are large, come later.
        wgmma::e4m3_f16_m64n64k32_ss(&mut s, descriptor_k128_at(q.0, 0), descriptor_k128_at(k.0, at), 0);
        wgmma::e4m3_f16_m64n64k32_ss(&mut s, descriptor_k128_at(q.0, 4), descriptor_k128_at(k.0, at + 4), 1);
        wgmma::e4m3_f16_m64n64k32_ss(&mut s, descriptor_k128_at(q.0, 2), descriptor_k128_at(k.0, at + 2), 1);
        wgmma::e4m3_f16_m64n64k32_ss(&mut s, descriptor_k128_at(q.0, 6), descriptor_k128_at(k.0, at + 6), 1);
    }
    PendingScores(s)
}

/// Issues `product += P V`, or, where `add` is 0, `product = P V`, for half `HALF` of the tokens of the V tile at `v`.
///
/// # Safety
/// As [`issue_qk`]; `p` must not be written before the wait; `add` is the same in the whole warpgroup.
#[inline(always)]
pub unsafe fn issue_pv<const HALF: u32>(p: &Probabilities, v: SmemAddr, product: Product, add: u32) -> PendingProduct {
    const { assert!(HALF < 2) };
    let mut o = product.0;
    let p = &p.0;
    // SAFETY: forwarded from the caller.
    unsafe {
        wgmma::e4m3_m64n136k32_rs(&mut o, [p[0], p[1], p[2], p[3]], descriptor_k128_at(v.0, HALF * 4), add);
        wgmma::e4m3_m64n136k32_rs(&mut o, [p[4], p[5], p[6], p[7]], descriptor_k128_at(v.0, HALF * 4 + 2), 1);
    }
    PendingProduct(o)
}

impl Scores {
    /// Registers for the first product.
    #[inline(always)]
    pub fn zero() -> Self {
        Self([0; 16])
    }
}

impl Product {
    /// The registers, for the next product to add to.
    #[inline(always)]
    pub fn take(&mut self) -> Self {
        Self(self.0)
    }

    /// Registers for a product that starts anew.
    #[inline(always)]
    pub fn any() -> Self {
        Self(each(math::any))
    }

    /// Brings the thread's two rows to another bias.
    #[inline(always)]
    pub fn rescale(&mut self, factor: [f32; 2]) {
        unroll!(I < 16 {
            self.0[4 * I] *= factor[0];
            self.0[4 * I + 1] *= factor[0];
            self.0[4 * I + 2] *= factor[1];
            self.0[4 * I + 3] *= factor[1];
        });
        self.0[64] *= factor[0];
        self.0[66] *= factor[1];
    }
}

impl Output {
    /// All zeros, made once where this is called: of constants ptxas makes a set for every way that leads from here.
    #[inline(always)]
    pub fn zero() -> Self {
        let zeros = each(math::zero_here);
        let mut rows = [0.0; 64];
        unroll!(I < 16 { unroll!(J < 4 { rows[4 * I + J] = zeros[4 * I + J]; }); });
        Self { rows, sum: [0.0; 2] }
    }

    /// `self = self * factor + product` for the thread's two rows: a rescale that is due and the flush in one FMA. The FP8
    /// tensor core accumulates with about 14 mantissa bits; without flushes the error on real rows doubles (hopper.md).
    #[inline(always)]
    pub fn flush(&mut self, factor: [f32; 2], product: &Product) {
        use crate::ptx::math::fma;
        let (rows, tile) = (&mut self.rows, &product.0);
        unroll!(I < 16 {
            rows[4 * I] = fma(rows[4 * I], factor[0], tile[4 * I]);
            rows[4 * I + 1] = fma(rows[4 * I + 1], factor[0], tile[4 * I + 1]);
            rows[4 * I + 2] = fma(rows[4 * I + 2], factor[1], tile[4 * I + 2]);
            rows[4 * I + 3] = fma(rows[4 * I + 3], factor[1], tile[4 * I + 3]);
        });
        self.sum = [fma(self.sum[0], factor[0], tile[64]), fma(self.sum[1], factor[1], tile[66])];
    }
}
