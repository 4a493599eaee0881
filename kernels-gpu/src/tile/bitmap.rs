//! A row of a block mask as bits in shared memory, and the ascending list they stand for. A block of eight warps.
//!
//! Whatever order the bits were set in, and however often, the list ascends and names no key block twice.

use crate::config::lists::{THREADS, WARPS, WINDOW_WORDS};
use crate::ptx::{SmemAddr, barrier, global, smem, warp};
use crate::unroll;

/// Bits of key blocks `first .. first + len` of a row.
#[derive(Clone, Copy)]
pub struct Bitmap {
    /// One bit a key block, [`WINDOW_WORDS`] words.
    pub words: SmemAddr,
    /// Four bytes a warp, 16-byte aligned.
    pub slots: SmemAddr,
    /// The key block of bit 0.
    pub first: i32,
    /// Key blocks; what lies past them stays 0.
    pub len: i32,
}

impl Bitmap {
    /// Words that hold the bits.
    #[inline(always)]
    pub fn used(self) -> u32 {
        (self.len as u32).div_ceil(32)
    }

    /// The words of a warp: the first, and one past the last.
    #[inline(always)]
    pub fn share(self, warp: u32) -> (u32, u32) {
        let (used, each) = (self.used(), self.used().div_ceil(WARPS));
        let (start, end) = (warp * each, (warp + 1) * each);
        (if start < used { start } else { used }, if end < used { end } else { used })
    }

    /// Clears all words. Barriers before and after it keep the uses of two windows apart.
    ///
    /// # Safety
    /// Called by all threads of the block.
    #[inline(always)]
    pub unsafe fn clear(self, thread: u32) {
        // SAFETY: all threads are here; each clears its own words.
        unsafe {
            barrier::sync_all();
            let mut word = thread;
            while word < WINDOW_WORDS {
                smem::st_u32(self.words.offset(word * 4), 0);
                word += THREADS;
            }
            barrier::sync_all();
        }
    }

    /// Sets the bit of key block `block`, where it is one of the window's.
    ///
    /// # Safety
    /// Between the barriers of [`Self::clear`] and [`Self::write`].
    #[inline(always)]
    pub unsafe fn set(self, block: i32) {
        // As unsigned numbers, blocks before the window are far past it.
        let bit = (block as u32).wrapping_sub(self.first as u32);
        if bit < self.len as u32 {
            // SAFETY: a word of the window.
            unsafe { smem::atomic_or_u32(self.words.offset(bit / 32 * 4), 1 << (bit % 32)) };
        }
    }

    /// Appends the key blocks of the set bits to a list of `capacity` entries that has `count`, as far as they fit; returns
    /// how many there are then, those that do not fit included.
    ///
    /// # Safety
    /// Called by all threads of the block; `list` is the list's address.
    #[inline(always)]
    pub unsafe fn write(self, list: u64, count: u32, capacity: u32, thread: u32) -> u32 {
        let (lane, (start, end)) = (thread % 32, self.share(thread / 32));
        // SAFETY: all threads are here; words lie in the window, entries below the capacity.
        unsafe {
            barrier::sync_all();
            let (mut own, mut word) = (0, start + lane);
            while word < end {
                own += smem::ld_u32(self.words.offset(word * 4)).count_ones();
                word += 32;
            }
            let (before, total) = before_warp(warp::add_u32(own), self.slots, thread);
            let (mut at, mut word) = (count + before, start);
            while word < end {
                let bits = smem::ld_u32(self.words.offset(word * 4));
                let to = at + (bits & ((1 << lane) - 1)).count_ones();
                let on = (bits >> lane) & 1 & (to < capacity) as u32;
                global::st_u32_if(list.wrapping_add(to as u64 * 4), self.first as u32 + word * 32 + lane, on);
                at += bits.count_ones();
                word += 1;
            }
            count + total
        }
    }
}

/// What lies before a warp, and the whole, of a count that every warp has.
///
/// # Safety
/// Every thread of the block calls it, converged, with its warp's count; `slots` is 4 bytes a warp of shared memory,
/// 16-byte aligned, that nothing else uses in this kernel.
#[inline(always)]
unsafe fn before_warp(count: u32, slots: SmemAddr, thread: u32) -> (u32, u32) {
    const _: () = assert!(WARPS == 8);
    let warp = thread / 32;
    // SAFETY: one slot a warp, written by its first lane; the barrier orders the reads after the writes.
    let counts = unsafe {
        smem::st_u32_if(slots.offset(warp * 4), count, thread.is_multiple_of(32) as u32);
        barrier::sync_all();
        let [a, b, c, d] = smem::ld_v4(slots);
        let [e, f, g, h] = smem::ld_v4(slots.offset(16));
        [a, b, c, d, e, f, g, h]
    };
    let (mut before, mut total) = (0, 0);
    unroll!(W < 8 {
        before += if (W as u32) < warp { counts[W] } else { 0 };
        total += counts[W];
    });
    (before, total)
}
