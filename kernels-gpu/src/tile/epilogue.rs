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
/// The columns of `o` are dimensions in the order of [`crate::layout::v_row`]: what a thread holds of 32 of them are eight
/// neighbours, and a quad of lanes writes whole sectors.
///
/// # Safety
/// Every valid row lies inside `out`; `base` and the stride are multiples of 16 bytes.
#[inline(always)]
pub unsafe fn store_rows(o: &Output, factor: [f32; 2], base: u64, rows: RowPair, lane: u32) {
    let row0 = base.wrapping_add((rows.first * rows.token_stride) as u64).wrapping_add((lane % 4 * 16) as u64);
    let row1 = row0.wrapping_add((8 * rows.token_stride) as u64);
    if rows.valid[0] {
        // SAFETY: the caller vouches for valid rows; the fourth piece of 64 bytes ends with the row.
        unroll!(I < 4 { unsafe { global::st_v4(row0 + 64 * I as u64, eight::<0>(o, 16 * I, factor[0])) }; });
    }
    if rows.valid[1] {
        // SAFETY: as above.
        unroll!(I < 4 { unsafe { global::st_v4(row1 + 64 * I as u64, eight::<1>(o, 16 * I, factor[1])) }; });
    }
}

/// The eight dimensions of row `ROW` of the thread's two that it holds from register `first` on, times `factor`.
#[inline(always)]
fn eight<const ROW: usize>(o: &Output, first: usize, factor: f32) -> [u32; 4] {
    let pair = |i: usize| {
        let at = first + 4 * i + 2 * ROW;
        bf16x2(o.rows[at] * factor, o.rows[at + 1] * factor)
    };
    [pair(0), pair(1), pair(2), pair(3)]
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

const _: () = assert!(HEAD_DIM == 4 * 4 * 8, "four lanes write eight dimensions each, four times");
