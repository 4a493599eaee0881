//! Which tiles of key sums the two blocks of a cluster of `select_stem_wide` have: of a span every second one each.

use crate::config::select::{CONSUMERS, TILE};

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

    /// Chunks of a step: at least one, whether or not there is a tile in it.
    #[inline(always)]
    pub const fn chunks(self) -> u32 {
        if self.own > CONSUMERS { 2 } else { 1 }
    }

    /// Tiles of chunk `chunk`: those of the first warpgroups.
    #[inline(always)]
    pub const fn tiles(self, chunk: u32) -> u32 {
        let left = self.own - chunk * CONSUMERS;
        if left < CONSUMERS { left } else { CONSUMERS }
    }

    /// First key block of the tile of warpgroup `warpgroup` in chunk `chunk`, for block `rank`.
    #[inline(always)]
    pub const fn tile(chunk: u32, warpgroup: u32, rank: u32) -> u32 {
        ((chunk * CONSUMERS + warpgroup) * 2 + rank) * TILE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::select::{SPAN, WIDE_PITCH};

    /// Every tile with a key block once, and none without.
    #[test]
    fn tiles_are_a_partition() {
        for count in 1..=SPAN {
            let mut tiles = Vec::new();
            for rank in 0..2 {
                let span = WideSpan::of(count, rank);
                assert!((1..=2).contains(&span.chunks()));
                for chunk in 0..span.chunks() {
                    assert!(chunk + 1 == span.chunks() || span.tiles(chunk) == CONSUMERS, "only the last chunk is not whole");
                    tiles.extend((0..span.tiles(chunk)).map(|warpgroup| WideSpan::tile(chunk, warpgroup, rank)));
                }
            }
            tiles.sort_unstable();
            assert_eq!(tiles, (0..count.div_ceil(TILE)).map(|tile| tile * TILE).collect::<Vec<_>>(), "{count}");
        }
        assert_eq!(WideSpan::tile(0, 1, 0), WIDE_PITCH);
    }
}
