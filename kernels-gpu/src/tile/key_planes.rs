//! Rows of scores as one warp reads them, and their keys as bit planes ([`crate::layout::planes`]).

use crate::layout::planes::{Blend, Half, half_planes, joined_planes, pair_planes};
use crate::ptx::int::{merge, prmt};
use crate::ptx::{SmemAddr, global, math, smem};
use crate::unroll;

/// Places whose keys one warp holds: 32 a lane.
pub const IN_REGISTERS: i32 = 1024;

/// A row of scores.
pub trait Scores: Copy {
    /// Whether rows of at most [`IN_REGISTERS`] have code of their own.
    const SHORT: bool;
    /// Whether there are rows of more.
    const LONG: bool;
    /// Whether scores are bf16 values, minus zero as it is, and only the high halves of their planes are asked for.
    const BF16: bool = false;

    /// The row from score `j` on.
    #[must_use]
    fn from(self, j: u32) -> Self;

    /// The bits of score `n`, an f32; anything where there is no such score, and `on` is false.
    ///
    /// # Safety
    /// If `on`, the row has a score `n`, complete and visible to the caller.
    unsafe fn bits(self, n: u32, on: bool) -> u32;

    /// Planes of one half of the first [`IN_REGISTERS`] scores, of which the row has `count`; of f32 minus zero as zero.
    ///
    /// # Safety
    /// As [`planes_of`].
    #[inline(always)]
    unsafe fn lane_planes(self, count: i32, half: Half, lane: u32) -> [u32; 16] {
        // SAFETY: forwarded.
        unsafe {
            let low = planes_in_order(self, count, half, lane);
            let high = if count > MIDDLE { planes_in_order(self.from(MIDDLE as u32), count - MIDDLE, half, lane) } else { [0; 8] };
            joined_planes::<Instructions>(low, high)
        }
    }

    /// Puts `entry`, the number of a candidate, in the place of entry `n` of a list over the scores, where `on` is not 0.
    ///
    /// # Safety
    /// Where `on`, the row has room for a score `n`, and nobody else uses it.
    unsafe fn put(self, n: u32, entry: u32, on: u32);

    /// Entry `n` of the list that was put there; anything where `on` is false.
    ///
    /// # Safety
    /// As [`Scores::bits`].
    #[inline(always)]
    unsafe fn entry(self, n: u32, on: bool) -> u32 {
        // SAFETY: forwarded.
        unsafe { self.bits(n, on) }
    }
}

/// Scores one after another in shared memory, which has room for a multiple of [`IN_REGISTERS`]; more than that many only if
/// `LONG`.
#[derive(Clone, Copy)]
pub struct SharedScores<const LONG: bool>(pub SmemAddr);

/// Up to 1,024 scores as bf16 in shared memory, in pairs: word w of 512 has scores w and w + 512, or if `NEAR`, word w of each 128 has scores
/// w and w + 128 of 256.
#[derive(Clone, Copy)]
pub struct PairedScores<const NEAR: bool>(pub SmemAddr);

impl<const NEAR: bool> PairedScores<NEAR> {
    /// Where score `n` lies.
    #[inline(always)]
    fn at(self, n: u32) -> SmemAddr {
        let [word, half] = if NEAR { [n / 256 * 128 + n % 128, n / 128 % 2] } else { [n % 512, n / 512] };
        self.0.offset(word * 4 + half * 2)
    }
}

/// Scores one after another in device memory.
#[derive(Clone, Copy)]
pub struct DeviceScores(pub u64);

impl<const LONG: bool> Scores for SharedScores<LONG> {
    const SHORT: bool = true;
    const LONG: bool = LONG;

    #[inline(always)]
    fn from(self, j: u32) -> Self {
        Self(self.0.offset(j * 4))
    }

    #[inline(always)]
    unsafe fn bits(self, n: u32, _on: bool) -> u32 {
        // SAFETY: forwarded; where there is no score, there is shared memory still.
        unsafe { smem::ld_u32(self.0.offset(n * 4)) }
    }

    #[inline(always)]
    unsafe fn put(self, n: u32, entry: u32, on: u32) {
        // SAFETY: forwarded.
        unsafe { smem::st_u32_if(self.0.offset(n.wrapping_mul(4)), entry, on) }
    }
}

impl<const NEAR: bool> Scores for PairedScores<NEAR> {
    const SHORT: bool = true;
    const LONG: bool = false;
    const BF16: bool = true;

    /// `j` is a multiple of 512.
    #[inline(always)]
    fn from(self, j: u32) -> Self {
        Self(self.at(j))
    }

    #[inline(always)]
    unsafe fn bits(self, n: u32, _on: bool) -> u32 {
        // SAFETY: forwarded; where there is no score, there is shared memory still.
        unsafe { (smem::ld_u16(self.at(n)) as u32) << 16 }
    }

    #[inline(always)]
    unsafe fn lane_planes(self, count: i32, _half: Half, lane: u32) -> [u32; 16] {
        // Here: as below.
        let lane = math::here(lane as i32) as u32;
        let mut words = [0; 16];
        // SAFETY: forwarded; where there are no scores, there is shared memory still.
        unroll!(U < 16 { words[U] = unsafe { smem::ld_u32(self.0.offset(lane * 4 + 128 * U as u32)) }; });
        if NEAR {
            let [a, b, c, d, e, f, g, h, rest @ ..] = words;
            let low = pair_planes::<Instructions>([a, b, c, d, e, f, g, h]);
            let high = if count > MIDDLE { pair_planes::<Instructions>(rest) } else { [0; 8] };
            return joined_planes::<Instructions>(low, high);
        }
        let low = half_planes::<Instructions>(words, Half::LOW);
        let high = if count > MIDDLE { half_planes::<Instructions>(words, Half::HIGH) } else { [0; 8] };
        joined_planes::<Instructions>(low, high)
    }

    /// Entries take two bytes: a list of all candidates has room over their scores.
    #[inline(always)]
    unsafe fn put(self, n: u32, entry: u32, on: u32) {
        // SAFETY: forwarded.
        unsafe { smem::st_u16_if(self.0.offset(n.wrapping_mul(2)), entry as u16, on) }
    }

    #[inline(always)]
    unsafe fn entry(self, n: u32, _on: bool) -> u32 {
        // SAFETY: forwarded; where there is no entry, there is shared memory still.
        unsafe { smem::ld_u16(self.0.offset(n * 2)) as u32 }
    }
}

// Only rows too long for shared memory lie here, and a few shorter ones of their strips.
impl Scores for DeviceScores {
    const SHORT: bool = false;
    const LONG: bool = true;

    #[inline(always)]
    fn from(self, j: u32) -> Self {
        Self(self.0.wrapping_add(j as u64 * 4))
    }

    #[inline(always)]
    unsafe fn bits(self, n: u32, on: bool) -> u32 {
        // SAFETY: forwarded.
        unsafe { global::ld_u32_if(self.0.wrapping_add(n as u64 * 4), on as u32) }
    }

    #[inline(always)]
    unsafe fn put(self, n: u32, entry: u32, on: u32) {
        // SAFETY: forwarded.
        unsafe { global::st_u32_if(self.0.wrapping_add(n as u64 * 4), entry, on) }
    }
}

/// How the planes are made.
struct Instructions;

impl Blend for Instructions {
    #[inline(always)]
    fn bytes(a: u32, b: u32, selector: u32) -> u32 {
        prmt(a, b, selector)
    }

    #[inline(always)]
    fn bits(a: u32, b: u32, mask: u32) -> u32 {
        merge(a, b, mask)
    }
}

/// Scores of the lower halves of planes.
const MIDDLE: i32 = IN_REGISTERS / 2;

/// Planes of one half of up to [`IN_REGISTERS`] scores, of which the row has `count`. Minus zero of f32 counts as zero.
///
/// # Safety
/// A whole warp calls it with the same row; it has `count` scores, complete and visible to the caller.
#[inline(always)]
pub unsafe fn planes_of<S: Scores>(scores: S, count: i32, half: Half, lane: u32) -> [u32; 16] {
    // SAFETY: forwarded.
    unsafe { scores.lane_planes(count, half, lane) }
}

/// Planes of up to 512 scores, of which `count` are there.
#[inline(always)]
unsafe fn planes_in_order<S: Scores>(scores: S, count: i32, half: Half, lane: u32) -> [u32; 8] {
    // Here: LLVM would keep what hangs on the lane in registers from row to row.
    let lane = math::here(lane as i32);
    let (mine, left) = (scores.from(lane as u32), count - lane);
    let mut words = [0; 16];
    unroll!(U < 16 {
        // SAFETY: forwarded.
        let score = unsafe { mine.bits(32 * U as u32, 32 * (U as i32) < left) };
        words[U] = (f32::from_bits(score) + 0.0).to_bits();
    });
    half_planes::<Instructions>(words, half)
}
