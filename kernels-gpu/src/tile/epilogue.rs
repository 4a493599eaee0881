//! Registers to global memory: bf16 output rows and the log-sum-exp.

use super::mma::Output;
use crate::config::HEAD_DIM;
use crate::ptx::{cvt::bf16x2, global};
use crate::unroll;

/// Where one thread's two rows go; `None` for a row that is not the request's.
#[derive(Clone, Copy)]
pub struct RowPair {
    /// Row of `out` (over all requests) of the thread's first row.
    pub first: i64,
    /// Whether each row belongs to the request's new tokens.
    pub valid: [bool; 2],
    /// Bytes between consecutive tokens of `out`.
    pub token_stride: i64,
}

/// Writes `o * factor` as bf16. `base` is the address of (row 0, this head, dimension 0).
///
/// # Safety
/// Every valid row lies inside `out`; `base` is 4-byte aligned.
#[inline(always)]
pub unsafe fn store_rows(o: &Output, factor: [f32; 2], base: u64, rows: RowPair, lane: u32) {
    let row0 = base.wrapping_add((rows.first * rows.token_stride) as u64).wrapping_add((lane % 4 * 4) as u64);
    let row1 = row0.wrapping_add((8 * rows.token_stride) as u64);
    if rows.valid[0] {
        unroll!(I < 16 {
            // SAFETY: the caller vouches for valid rows; 16 bytes a group of 8 columns stay inside the row.
            unsafe { global::st_u32(row0 + 16 * I as u64, bf16x2(o.rows[4 * I] * factor[0], o.rows[4 * I + 1] * factor[0])) };
        });
    }
    if rows.valid[1] {
        unroll!(I < 16 {
            // SAFETY: as above.
            unsafe { global::st_u32(row1 + 16 * I as u64, bf16x2(o.rows[4 * I + 2] * factor[1], o.rows[4 * I + 3] * factor[1])) };
        });
    }
}

/// Writes the log-sum-exp of the thread's rows to `[rows, hq]` f32 at `base`.
///
/// # Safety
/// Every valid row lies inside the array.
#[inline(always)]
pub unsafe fn store_lse(base: u64, hq: u32, head: i32, rows: RowPair, lse: [f32; 2]) {
    // SAFETY: forwarded from the caller.
    unsafe {
        let at = (base as *mut f32).offset((rows.first * hq as i64 + head as i64) as isize);
        if rows.valid[0] {
            *at = lse[0];
        }
        if rows.valid[1] {
            *at.offset(8 * hq as isize) = lse[1];
        }
    }
}

const _: () = assert!(HEAD_DIM == 16 * 8, "sixteen groups of eight columns make a row");
