//! Shared memory of the probe selector: the ring of key tiles and the score rows.

use crate::abi::SelectProbeParams;
use crate::config::probe_sel::{KEY_TILE_BYTES, LONG_STAGES, MAX_BLOCKS, PART_GROUPS, SHORT_BLOCKS, STAGES, smem as map};
use crate::pipeline::ring::{Cursor, Ring};
use crate::ptx::{SmemAddr, math, smem, special};
use crate::tile::probe_sel::corrected;

/// Bytes of a tile of key means.
pub const KEY_TILE: u32 = KEY_TILE_BYTES as u32;

/// Where things lie: where the stages end and the score rows begin depends on how long the rows are.
#[derive(Clone, Copy)]
pub struct Shared {
    /// First byte.
    pub base: SmemAddr,
    /// Ring of key tiles.
    pub ring: Ring<STAGES>,
    long: bool,
}

impl Shared {
    /// That of the block.
    #[inline(always)]
    pub fn of_block(p: &SelectProbeParams) -> Self {
        let base = smem::base();
        Self { base, ring: Ring::at(base.offset(map::RING)), long: p.long_rows != 0 }
    }

    /// Place in the ring of tile number `n` of the block. Long rows leave room for the first stages only.
    #[inline(always)]
    pub fn at(self, n: u32) -> Cursor<STAGES> {
        Cursor::at(if self.long { n / LONG_STAGES * STAGES + n % LONG_STAGES } else { n })
    }

    /// The tile at a place in the ring.
    #[inline(always)]
    pub fn stage(self, at: Cursor<STAGES>) -> SmemAddr {
        self.base.offset(map::KEYS + at.stage() * KEY_TILE)
    }

    /// The score row of warp `warp`.
    #[inline(always)]
    pub fn scores(self, warp: u32) -> SmemAddr {
        let (stages, blocks) = if self.long { (LONG_STAGES, MAX_BLOCKS) } else { (STAGES, SHORT_BLOCKS) };
        self.base.offset(map::KEYS + stages * KEY_TILE + warp * blocks as u32 * 4)
    }

    /// What group `group` of warp `warp` has seen.
    #[inline(always)]
    pub fn seen(self, warp: u32, group: u32) -> SmemAddr {
        self.base.offset(map::SEEN + (warp * PART_GROUPS as u32 + group) * 4)
    }

    /// Score of key block `j` over the groups of warp `warp`, corrected.
    ///
    /// # Safety
    /// The warp's row and what its groups have seen are complete; `j` is inside the row's room.
    #[inline(always)]
    pub unsafe fn score(self, warp: u32, j: u32) -> f32 {
        // SAFETY: forwarded.
        let score = unsafe { smem::ld_f32(self.scores(warp).offset(j * 4)) };
        // SAFETY: forwarded.
        corrected(score, |group| unsafe { smem::ld_f32(self.seen(warp, group)) })
    }

    /// Score of key block `j`: the 3-norm over `parts` warps from `warp` on.
    ///
    /// # Safety
    /// As [`Shared::score`], for all of those warps.
    #[inline(always)]
    pub unsafe fn joined(self, warp: u32, parts: u32, j: u32) -> f32 {
        // SAFETY: forwarded.
        let part = |n: u32| unsafe { self.score(warp + n, j) };
        let (mut largest, mut n) = (part(0), 1);
        // Rolled: unrolled, they would take registers for their bounds all through the kernel.
        while n < parts {
            n = special::no_unroll(n);
            largest = math::fmax(largest, part(n));
            n += 1;
        }
        let mut cubes = 0.0;
        n = 0;
        while n < parts {
            n = special::no_unroll(n);
            cubes += math::ex2(3.0 * (part(n) - largest));
            n += 1;
        }
        largest + math::lg2(cubes) * (1.0 / 3.0)
    }
}
