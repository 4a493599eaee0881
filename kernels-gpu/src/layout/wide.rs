//! Which tiles of key sums the two blocks of a cluster of `select_stem_wide` have: of a span every second one each, and of those each warpgroup two
//! that follow each other.

use crate::config::select::{TILE, WIDE_PITCH, WIDE_TILES};

/// Key blocks from the first tile of a warpgroup to that of the next.
pub const WARPGROUP_PITCH: u32 = WIDE_TILES * WIDE_PITCH;

/// A block's part of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WideSpan {
    /// Tiles.
    own: u32,
}

impl WideSpan {
    /// That of block `rank` of a span of `count` key blocks, 1 to 1,024.
    #[inline(always)]
    pub const fn of(count: u32, rank: u32) -> Self {
        Self { own: (count.div_ceil(TILE) + 1 - rank) / 2 }
    }

    /// Warpgroups that have a tile, the first ones: the stages of a step.
    #[inline(always)]
    pub const fn warpgroups(self) -> u32 {
        self.own.div_ceil(WIDE_TILES)
    }

    /// Tiles of warpgroup `warpgroup`: none, one or two.
    #[inline(always)]
    pub const fn tiles(self, warpgroup: u32) -> u32 {
        let left = self.own.saturating_sub(warpgroup * WIDE_TILES);
        if left < WIDE_TILES { left } else { WIDE_TILES }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::select::{CONSUMERS, SPAN};

    /// Every tile with a key block once, and none without; those of the first warpgroups.
    #[test]
    fn tiles_are_a_partition() {
        for count in 1..=SPAN {
            let mut tiles = Vec::new();
            for rank in 0..2 {
                let span = WideSpan::of(count, rank);
                assert!(span.warpgroups() <= CONSUMERS);
                for warpgroup in 0..CONSUMERS {
                    let own = span.tiles(warpgroup);
                    assert_eq!(own > 0, warpgroup < span.warpgroups());
                    assert!(own == WIDE_TILES || warpgroup + 1 >= span.warpgroups(), "only the last warpgroup has less");
                    tiles.extend((0..own).map(|tile| warpgroup * WARPGROUP_PITCH + tile * WIDE_PITCH + rank * TILE));
                }
            }
            tiles.sort_unstable();
            assert_eq!(tiles, (0..count.div_ceil(TILE)).map(|tile| tile * TILE).collect::<Vec<_>>(), "{count}");
        }
    }
}
