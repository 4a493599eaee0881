//! How `select_stem` cuts the query blocks of a batch: windows, from the last block to the first. What one request owns of a window is a
//! strip.

use crate::config::select::ROWS;

/// Windows of a batch: some of the most rows there may be, then shorter ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Query blocks of the batch.
    pub blocks: i32,
    /// Windows of [`ROWS`] query blocks: no more than there are blocks for.
    pub long: i32,
    /// Query blocks of each of the others, 1 to [`ROWS`].
    pub rows: i32,
}

impl Windows {
    /// All alike.
    #[inline(always)]
    pub const fn of(blocks: i32, rows: i32) -> Self {
        Self { blocks, long: 0, rows }
    }

    /// How many there are.
    #[inline(always)]
    pub const fn count(self) -> i32 {
        self.long + ((self.blocks - self.long * ROWS as i32) as u32).div_ceil(self.rows as u32) as i32
    }

    /// The query blocks of window `n`, from the first of them to the first behind them. The first window has the last blocks.
    #[inline(always)]
    pub const fn range(self, n: i32) -> [i32; 2] {
        let long = n < self.long;
        let (before, rows) =
            if long { (n * ROWS as i32, ROWS as i32) } else { (self.long * ROWS as i32 + (n - self.long) * self.rows, self.rows) };
        let end = self.blocks - before;
        [if end > rows { end - rows } else { 0 }, end]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every block once, from the last to the first; only the last window is shorter than it should be.
    #[test]
    fn windows_are_a_partition() {
        for blocks in (0..150).chain([1000, 8192, i32::MAX - 31]) {
            for rows in [1, 8, 16, 24, 32] {
                if blocks > 10_000 && rows < 8 {
                    continue;
                }
                for long in [0, 1, 2, 3, 7, 40] {
                    if long * ROWS as i32 > blocks {
                        continue;
                    }
                    let windows = Windows { blocks, long, rows };
                    let count = windows.count();
                    let mut end = blocks;
                    for n in 0..count.min(100) {
                        let [start, stop] = windows.range(n);
                        let most = if n < long { ROWS as i32 } else { rows };
                        assert_eq!(stop, end, "{windows:?}, {n}");
                        assert_eq!(start, (end - most).max(0), "{windows:?}, {n}");
                        end = start;
                    }
                    if count > 0 {
                        let [start, stop] = windows.range(count - 1);
                        assert!(start == 0 && stop > 0, "{windows:?}: {count} windows, the last {start} .. {stop}");
                    }
                    assert_eq!(count == 0, blocks == 0);
                }
            }
        }
        assert_eq!(Windows::of(64, 24).count(), 3);
    }
}
