//! `lists_from_mask`, `lists_from_csr`: block masks in other forms to the lists that `attend` walks.
//!
//! One block takes one query block of one head. It collects the row's key blocks as bits in shared memory, 65,536 at a time,
//! and writes them out in ascending order. The input may be anything: what a row cannot see is left out, what lies outside
//! the input's own extent is not read, and the time a row takes is bounded by the key blocks it can see.

use crate::abi::{CsrListsParams, ListRows, MaskListsParams, QueryBlock, Request};
use crate::config::lists::{SLOTS, THREADS, WINDOW};
use crate::layout::pages::{clamped, visible_blocks};
use crate::ptx::{global, smem, special, warp};
use crate::tile::bitmap::Bitmap;
use crate::unroll;

/// Entry: see [`MaskListsParams`] for the grid and the tensors.
///
/// # Safety
/// Launched with the grid, block size and shared memory of [`crate::config::lists`], on buffers whose extents the host has
/// checked.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn lists_from_mask(p: MaskListsParams) {
    // SAFETY: forwarded from the host; the bytes of a row are read up to its last column.
    unsafe {
        let row = Row::locate(&p.rows);
        let mask = p.mask + (row.place * p.columns as u32 as i64) as u64;
        let seen = if row.visible < p.columns { row.visible } else { p.columns };
        row.write(&p.rows, |bits, thread| fill_from_bytes(bits, mask, seen, thread));
    }
}

/// Entry: see [`CsrListsParams`] for the grid and the tensors.
///
/// # Safety
/// As [`lists_from_mask`].
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn lists_from_csr(p: CsrListsParams) {
    // SAFETY: forwarded from the host; indices are read inside `0..entries` only.
    unsafe {
        let row = Row::locate(&p.rows);
        let start = within(offset(&p, row.place), p.entries);
        let end = within(offset(&p, row.place + 1), p.entries);
        // A row names every block it can see once at most; one that claims more is cut.
        let most = row.visible as i64;
        let count = end - start;
        let count = if count < most { count } else { most };
        row.write(&p.rows, |bits, thread| fill_from_indices(bits, p.indices + start as u64 * 4, count, thread));
    }
}

/// A row's place and extent.
#[derive(Clone, Copy)]
struct Row {
    /// Index among all rows: head, then query block.
    place: i64,
    /// Key blocks it can see.
    visible: i32,
}

impl Row {
    /// # Safety
    /// The grid is as large as the arrays.
    #[inline(always)]
    unsafe fn locate(p: &ListRows) -> Self {
        let index = special::ctaid_x() as i64;
        // SAFETY: forwarded from the caller.
        unsafe {
            let block = *(p.query_blocks as *const QueryBlock).offset(index as isize);
            let request = *(p.requests as *const Request).offset(block.request as isize);
            let visible = visible_blocks(block.block, request.kb_len, p.causal != 0);
            Self { place: special::ctaid_y() as i64 * p.total_qb as i64 + index, visible }
        }
    }

    /// Writes the row's list and count, from what `fill` sets of each window.
    ///
    /// # Safety
    /// Called by all threads of the block; the host checked the lists and counts.
    #[inline(always)]
    unsafe fn write(self, p: &ListRows, fill: impl Fn(Bitmap, u32)) {
        let (thread, base) = (special::tid_x(), smem::base());
        let list = p.lists + (self.place * p.list_stride as u32 as i64) as u64 * 4;
        let (mut first, mut count) = (0, 0);
        // SAFETY: all threads take the same way through here.
        unsafe {
            while first < self.visible {
                let rest = self.visible - first;
                let len = if rest < WINDOW { rest } else { WINDOW };
                let bits = Bitmap { words: base, slots: base.offset(SLOTS), first, len };
                bits.clear(thread);
                fill(bits, thread);
                count = bits.write(list, count, p.list_stride as u32, thread);
                first += len;
            }
            let fits = if count < p.list_stride as u32 { count } else { p.list_stride as u32 };
            global::st_u32_if(p.counts + self.place as u64 * 4, fits, (thread == 0) as u32);
        }
    }
}

/// Words that a warp reads at a time.
const AHEAD: u32 = 4;

/// Sets the bits of bytes that are not 0; `columns` bytes at `mask`. Every warp makes its own words: 32 bytes each.
///
/// # Safety
/// Called by all threads of the block; the bytes are readable, and there is at least one.
#[inline(always)]
unsafe fn fill_from_bytes(bits: Bitmap, mask: u64, columns: i32, thread: u32) {
    let (lane, (mut word, end)) = (thread % 32, bits.share(thread / 32));
    while word < end {
        let mut on = [0; AHEAD as usize];
        unroll!(A < 4 {
            let column = bits.first + ((word + A as u32) * 32 + lane) as i32;
            // SAFETY: forwarded from the caller; held inside the row.
            let byte = unsafe { *((mask + clamped(column, columns) as u64) as *const u8) };
            on[A] = if column < columns { byte as u32 } else { 0 };
        });
        unroll!(A < 4 {
            // SAFETY: whole warps take the same steps; a word past the share is not written.
            unsafe {
                let set = warp::ballot(on[A]);
                let mine = (lane == 0) & (word + (A as u32) < end);
                smem::st_u32_if(bits.words.offset((word + A as u32) * 4), set, mine as u32);
            }
        });
        word += AHEAD;
    }
}

/// Sets the bits of `count` key blocks at `indices`.
///
/// # Safety
/// Called by all threads of the block; the indices are readable.
#[inline(always)]
unsafe fn fill_from_indices(bits: Bitmap, indices: u64, count: i64, thread: u32) {
    let mut base = 0;
    while base < count {
        let i = base + thread as i64;
        if i < count {
            // SAFETY: forwarded from the caller.
            unsafe { bits.set(*(indices as *const i32).offset(i as isize)) };
        }
        base += THREADS as i64;
    }
}

/// Entry `at` of the row offsets.
///
/// # Safety
/// `at` is one of the `hq * total_qb + 1` entries.
#[inline(always)]
unsafe fn offset(p: &CsrListsParams, at: i64) -> i64 {
    // SAFETY: forwarded from the caller.
    unsafe {
        match p.wide {
            0 => *(p.indptr as *const i32).offset(at as isize) as i64,
            _ => *(p.indptr as *const i64).offset(at as isize),
        }
    }
}

/// `value` held inside `0..=most`.
#[inline(always)]
fn within(value: i64, most: i64) -> i64 {
    if value < 0 {
        0
    } else if value < most {
        value
    } else {
        most
    }
}
