//! Shared memory of `select_stem`.

use super::stages::{Stages, Turn};
use crate::config::select::{
    CONSUMER_WARPS, PAIRED_PITCH, PITCH, PLANS, QUERY_BYTES, RING_TILES, SUM_BYTES, SUM_STAGES, SUM_TURNS, TILE_BYTES, WEIGHTS_BYTES,
    WIDE_PAIRED_PITCH, WIDE_STAGES, WIDE_TILES, WIDE_TURNS, smem as map,
};
use crate::ptx::{SmemAddr, smem, warp};
use crate::tile::plan::Plan;
use crate::tile::topk::{PairedScores, SharedScores};

/// Shared memory of the kernel.
#[derive(Clone, Copy)]
pub struct Shared {
    base: SmemAddr,
    /// Key sums; a stage is empty when the consumers of every block of the cluster have read it.
    pub keys: Stages<RING_TILES>,
    /// The same of `select_stem_wide`; a stage is empty when the warpgroup that it is for has read it.
    pub wide_keys: Stages<WIDE_TURNS>,
    /// Query sums; full when they are [`written`](Shared::written) and the products may read them.
    pub sums: Stages<SUM_TURNS>,
    /// Plans of strips.
    pub plans: Stages<PLANS>,
}

impl Shared {
    /// The block's.
    #[inline(always)]
    pub fn of_block() -> Self {
        Self::from(smem::base())
    }

    /// As [`Shared::of_block`], read anew: addresses are computed there, and need not be kept.
    #[inline(always)]
    pub fn again() -> Self {
        Self::from(smem::base_again())
    }

    /// The same, known to be alike in all lanes: what follows from it lives in uniform registers.
    ///
    /// # Safety
    /// Called by a whole warp, converged.
    #[inline(always)]
    pub unsafe fn alike(self) -> Self {
        // SAFETY: forwarded.
        Self::from(SmemAddr(unsafe { warp::shfl_idx_u32(self.base.0, 0) }))
    }

    #[inline(always)]
    fn from(base: SmemAddr) -> Self {
        Self {
            base,
            keys: Stages(base.offset(map::RING_BARRIERS)),
            wide_keys: Stages(base.offset(map::RING_BARRIERS)),
            sums: Stages(base.offset(map::SUM_BARRIERS)),
            plans: Stages(base.offset(map::PLAN_BARRIERS)),
        }
    }

    /// Tile `tile` of stage `stage` of key sums, of `stages`.
    #[inline(always)]
    pub fn key_tile(self, stage: u32, stages: u32, tile: u32) -> SmemAddr {
        self.base.offset(map::RING + (stage * (RING_TILES >> stages.trailing_zeros()) + tile) * TILE_BYTES)
    }

    /// A stage of key sums of `select_stem_wide`.
    #[inline(always)]
    pub fn wide_stage(self, at: Turn<WIDE_TURNS>) -> SmemAddr {
        self.base.offset(map::RING + at.stage() % WIDE_STAGES * (WIDE_TILES * TILE_BYTES))
    }

    /// A group of query sums. In `select_stem_wide` a step has those of the block's own head, then those of the other's.
    #[inline(always)]
    pub fn group<const WIDE: bool>(self, at: Turn<SUM_TURNS>) -> SmemAddr {
        const HALF: u32 = SUM_STAGES / 2;
        let stage = at.stage() % SUM_STAGES;
        if !WIDE {
            return self.base.offset(map::SUMS + stage * 2 * SUM_BYTES);
        }
        self.base.offset((if stage < HALF { map::SUMS } else { map::WIDE_SUMS }) + stage % HALF * 4 * SUM_BYTES)
    }

    /// Barrier that completes when a group of query sums is written.
    #[inline(always)]
    pub fn written(self, at: Turn<SUM_TURNS>) -> SmemAddr {
        self.base.offset(map::WRITTEN + at.stage() * 8)
    }

    /// Stage `stage` of queries, half a unit.
    #[inline(always)]
    pub fn unit(self, stage: u32) -> SmemAddr {
        self.base.offset(map::QUERIES + stage * QUERY_BYTES)
    }

    /// Barrier that completes when it is full.
    #[inline(always)]
    pub fn unit_full(self, stage: u32) -> SmemAddr {
        self.base.offset(map::QUERY_BARRIERS + stage * 8)
    }

    /// Value terms of the span.
    #[inline(always)]
    pub fn bias(self) -> SmemAddr {
        self.base.offset(map::BIAS)
    }

    /// Value norms on their way to the value statistics.
    #[inline(always)]
    pub fn norms(self) -> SmemAddr {
        self.base.offset(map::NORMS)
    }

    /// Means and deviations of value norms ([`crate::tile::reduce`]).
    #[inline(always)]
    pub fn moments(self) -> SmemAddr {
        self.base.offset(map::MOMENTS)
    }

    /// Weights of the unit that summing warp `number` is at.
    #[inline(always)]
    pub fn weights(self, number: u32) -> SmemAddr {
        self.base.offset(map::WEIGHTS + number * WEIGHTS_BYTES)
    }

    /// The plan of the block's `n`-th strip.
    #[inline(always)]
    pub fn plan(self, n: u32) -> Plan {
        Plan(self.base.offset(map::PLANS_AT + Turn::<PLANS>::at(n).stage() * map::PLAN_BYTES))
    }

    /// What consumer warp `warp` keeps ([`super::kept`]).
    #[inline(always)]
    pub fn kept(self, warp: u32) -> SmemAddr {
        self.base.offset(map::KEPT + warp * map::KEPT_BYTES)
    }

    /// What warp `which` of the two keeps that copy key sums in `select_stem_wide` ([`super::kept::keep_copy`]).
    #[inline(always)]
    pub fn copy_kept(self, which: u32) -> SmemAddr {
        self.base.offset(map::COPY_KEPT + which * 16)
    }

    /// What warp `warp`, one of those that sum, keeps ([`super::kept::keep`]).
    #[inline(always)]
    pub fn side_kept(self, warp: u32) -> SmemAddr {
        self.base.offset(map::SIDE_KEPT + (warp - CONSUMER_WARPS) * map::SIDE_KEPT_BYTES)
    }

    /// Scores of row `r` of the strip as f32. They lie over the ring.
    #[inline(always)]
    pub fn scores(self, r: u32) -> SharedScores<false> {
        SharedScores(self.base.offset(map::SCORES + r * PITCH * 4))
    }

    /// The same as bf16. They lie over the second half of the ring, or over all of that of `select_stem_wide`.
    #[inline(always)]
    pub fn paired<const WIDE: bool>(self, r: u32) -> PairedScores<WIDE> {
        let (first, pitch) = if WIDE { (map::WIDE_PAIRED, WIDE_PAIRED_PITCH) } else { (map::PAIRED, PAIRED_PITCH) };
        PairedScores(self.base.offset(first + r * pitch * 4))
    }

    /// Barrier that completes when the consumers of every block of the cluster are done with a span's scores.
    #[inline(always)]
    pub fn done(self) -> SmemAddr {
        self.base.offset(map::DONE)
    }

    /// Barrier that completes, once a span, when its value terms are written.
    #[inline(always)]
    pub fn terms(self) -> SmemAddr {
        self.base.offset(map::TERMS)
    }

    /// Barrier that completes, once a span, when the consumers have read them.
    #[inline(always)]
    pub fn terms_read(self) -> SmemAddr {
        self.base.offset(map::TERMS_READ)
    }

    /// Barrier that completes, once a span, when the products of both blocks are complete, in `select_stem_wide`.
    #[inline(always)]
    pub fn made(self) -> SmemAddr {
        self.base.offset(map::MADE)
    }

    /// Barrier that completes, once a span, when both blocks have stored their scores, in `select_stem_wide`.
    #[inline(always)]
    pub fn stored(self) -> SmemAddr {
        self.base.offset(map::STORED)
    }
}
