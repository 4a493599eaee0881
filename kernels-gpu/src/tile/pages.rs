//! Tokens of a paged tensor, as a thread finds them. Loads are issued whether or not the token exists, from an address
//! that always does, and the result is blanked: no branch, so all of a thread's loads are in flight together.

use crate::layout::pages::{clamped, is_page, page_shift};
use crate::ptx::global;

/// One request's row of the page table.
#[derive(Clone, Copy)]
pub struct PageTable {
    row: u64,
    shift: u32,
    entries: i32,
    pages: i32,
}

/// Where one token lives.
#[derive(Clone, Copy)]
pub struct Slot {
    /// The page; 0 when the token is nowhere.
    pub page: i32,
    /// The token's place in the page.
    pub in_page: i32,
    /// Whether the page table leads to a page of the pool.
    pub exists: bool,
}

impl PageTable {
    /// Row `request` of the table at `page_table`, with `entries` entries a row, over a pool of `pages` pages.
    #[inline(always)]
    pub fn new(page_table: u64, request: i32, entries: i32, page_size: i32, pages: i32) -> Self {
        let row = page_table.wrapping_add((request as i64 * entries as i64 * 4) as u64);
        Self { row, shift: page_shift(page_size), entries, pages }
    }

    /// The slot of the token at `position`, which is not negative.
    ///
    /// # Safety
    /// The row lies in readable memory and has at least one entry.
    #[inline(always)]
    pub unsafe fn slot(self, position: i32) -> Slot {
        let index = position >> self.shift;
        // SAFETY: the index is held inside the row.
        let entry = unsafe { global::ld_nc_u32(self.row.wrapping_add(clamped(index, self.entries) as u64 * 4)) } as i32;
        let exists = (index < self.entries) & is_page(entry, self.pages);
        Slot { page: if exists { entry } else { 0 }, in_page: position & ((1 << self.shift) - 1), exists }
    }
}

/// 16 bytes at `ptr`, or zeros where `wanted` is false.
///
/// # Safety
/// `ptr` is readable (wanted or not), 16-byte aligned, and nobody writes it while the kernel runs.
#[inline(always)]
pub unsafe fn load_or_zero(ptr: u64, wanted: bool) -> [u32; 4] {
    // SAFETY: the caller's obligation.
    let [a, b, c, d] = unsafe { global::ld_nc_v4(ptr) };
    let mask = if wanted { u32::MAX } else { 0 };
    [a & mask, b & mask, c & mask, d & mask]
}
