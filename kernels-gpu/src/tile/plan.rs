//! Plans of strips: what the warps that score and decide must know of a strip and of its rows. One warp looks it up while the strip
//! before is worked on, and leaves it in shared memory: otherwise every warp would wait for the look-ups between two strips, one
//! hanging on the other, and nobody would use the tensor cores meanwhile.

use super::strip::{Strip, rule, uniform};
use crate::abi::SelectParams;
use crate::config::select::ROWS;
use crate::config::select::smem::NOTE_BYTES;
use crate::layout::select::{Row, Rule};
use crate::ptx::{SmemAddr, smem, warp};
use crate::unroll;

/// Where a plan lies: an entry for each row that a strip may have, then the strip.
#[derive(Clone, Copy)]
pub struct Plan(pub SmemAddr);

impl Plan {
    #[inline(always)]
    fn words(self) -> SmemAddr {
        self.0.offset(ROWS * NOTE_BYTES)
    }

    /// Writes the plan of a strip.
    ///
    /// # Safety
    /// A whole warp calls it, converged; the strip is one of `p`'s; nobody uses the plan.
    #[inline(always)]
    pub unsafe fn write(self, p: &SelectParams, strip: &Strip, lane: u32) {
        // SAFETY: forwarded; there is an entry for every lane.
        unsafe {
            let (row, rule) = strip.lane_row(p, lane);
            let scored = warp::any(strip.asks(p, row, rule, lane));
            // A row that is not there sees nothing.
            let there = (lane as i32) < strip.rows;
            let entry = [row.count, row.first_free, row.end_free, rule.budget].map(|x| if there { x as u32 } else { 0 });
            smem::st_v4(self.0.offset(lane * NOTE_BYTES), entry);
            let leader = (lane == 0) as u32;
            smem::st_v4_if(self.words(), [strip.head, strip.first, strip.rows, strip.keys].map(|x| x as u32), leader);
            smem::st_v4_if(self.words().offset(16), [strip.kb_len as u32, strip.ends_window as u32, scored as u32, 0], leader);
        }
    }

    /// Writes that there are no more strips: the plan of one without rows.
    ///
    /// # Safety
    /// As [`Plan::write`].
    #[inline(always)]
    pub unsafe fn write_end(self, lane: u32) {
        // SAFETY: forwarded.
        unsafe {
            unroll!(H < 2 { smem::st_v4_if(self.words().offset(16 * H as u32), [0; 4], (lane == 0) as u32); });
        }
    }

    /// The strip.
    ///
    /// # Safety
    /// A whole warp calls it, converged; the plan is written.
    #[inline(always)]
    pub unsafe fn strip(self) -> Strip {
        // SAFETY: forwarded.
        unsafe {
            let [head, first, rows, keys] = smem::ld_v4(self.words()).map(|x| x as i32);
            let [kb_len, ends_window] = smem::ld_v2_u32(self.words().offset(16)).map(|x| x as i32);
            Strip { head, first, rows: uniform(rows), keys: uniform(keys), kb_len, ends_window: ends_window != 0 }
        }
    }

    /// How many rows the strip has, and how many key blocks its last one sees; no rows when there are no more strips.
    ///
    /// # Safety
    /// As [`Plan::strip`].
    #[inline(always)]
    pub unsafe fn size(self) -> [i32; 2] {
        // SAFETY: forwarded.
        unsafe { smem::ld_v2_u32(self.words().offset(8)).map(|x| uniform(x as i32)) }
    }

    /// The strip's head, and its first query block.
    ///
    /// # Safety
    /// The plan is that of a strip, and written.
    #[inline(always)]
    pub unsafe fn first(self) -> [u32; 2] {
        // SAFETY: forwarded.
        unsafe { smem::ld_v2_u32(self.words()) }
    }

    /// Whether anybody asks for the scores of the strip.
    ///
    /// # Safety
    /// As [`Plan::strip`].
    #[inline(always)]
    pub unsafe fn scored(self) -> bool {
        // SAFETY: forwarded.
        unsafe { uniform(smem::ld_u32(self.words().offset(24)) as i32) != 0 }
    }

    /// Candidates and guards of row `r`, and what it keeps; a row that is not there has no candidates.
    ///
    /// # Safety
    /// The plan is that of a strip, and written; a strip may have so many rows.
    #[inline(always)]
    pub unsafe fn row(self, p: &SelectParams, r: u32) -> (Row, Rule) {
        // SAFETY: forwarded.
        let [count, first_free, end_free, budget] = unsafe { smem::ld_v4(self.0.offset(r * NOTE_BYTES)) }.map(|x| x as i32);
        (Row { count, first_free, end_free, guards_rank: p.guards_on_top == 0 }, rule(p, budget))
    }
}

const _: () = assert!(ROWS == 32, "a lane writes an entry");
