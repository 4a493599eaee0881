//! Special registers: where a thread is, and what time it is.

use core::arch::asm;
use core::arch::nvptx::{_block_dim_x, _block_idx_x, _block_idx_y, _block_idx_z, _grid_dim_x, _grid_dim_y, _thread_idx_x};

/// Index of the thread in its block. PTX: `mov.u32 d, %tid.x`. Called by any thread.
#[inline(always)]
pub fn tid_x() -> u32 {
    // SAFETY: reads a special register.
    unsafe { _thread_idx_x() as u32 }
}

/// Threads of a block. PTX: `mov.u32 d, %ntid.x`. Called by any thread.
#[inline(always)]
pub fn ntid_x() -> u32 {
    // SAFETY: reads a special register.
    unsafe { _block_dim_x() as u32 }
}

/// Index of the block along x. PTX: `mov.u32 d, %ctaid.x`. Called by any thread.
#[inline(always)]
pub fn ctaid_x() -> u32 {
    // SAFETY: reads a special register.
    unsafe { _block_idx_x() as u32 }
}

/// Index of the block along y. PTX: `mov.u32 d, %ctaid.y`. Called by any thread.
#[inline(always)]
pub fn ctaid_y() -> u32 {
    // SAFETY: reads a special register.
    unsafe { _block_idx_y() as u32 }
}

/// Index of the block along z. PTX: `mov.u32 d, %ctaid.z`. Called by any thread.
#[inline(always)]
pub fn ctaid_z() -> u32 {
    // SAFETY: reads a special register.
    unsafe { _block_idx_z() as u32 }
}

/// Blocks of the grid along x. PTX: `mov.u32 d, %nctaid.x`. Called by any thread.
#[inline(always)]
pub fn nctaid_x() -> u32 {
    // SAFETY: reads a special register.
    unsafe { _grid_dim_x() as u32 }
}

/// Blocks of the grid along y. PTX: `mov.u32 d, %nctaid.y`. Called by any thread.
#[inline(always)]
pub fn nctaid_y() -> u32 {
    // SAFETY: reads a special register.
    unsafe { _grid_dim_y() as u32 }
}

/// Lane of the thread in its warp, 0..32. PTX: `mov.u32 d, %laneid`. Called by any thread.
#[inline(always)]
pub fn lane_id() -> u32 {
    let lane: u32;
    // SAFETY: reads a special register that is constant for the life of the thread.
    unsafe { asm!("mov.u32 {}, %laneid;", out(reg32) lane, options(pure, nomem, nostack)) };
    lane
}

/// Low half of the clock of the multiprocessor, in its own cycles; wraps. PTX: `mov.u32 d, %clock`. Called by any thread.
///
/// Not `pure`: two reads are two values, and their order among other `asm!` is the point.
#[inline(always)]
pub fn clock32() -> u32 {
    let clock: u32;
    // SAFETY: reads a special register. `nomem` is withheld so that loads and stores stay on their side of it.
    unsafe { asm!("mov.u32 {}, %clock;", out(reg32) clock, options(nostack)) };
    clock
}

/// Keeps the loop in whose body this stands from being unrolled: hides the value of its counter from LLVM and tells ptxas.
/// Returns the counter. PTX: `.pragma "nounroll"`. Called by any thread.
#[inline(always)]
pub fn no_unroll(counter: u32) -> u32 {
    let hidden: u32;
    // SAFETY: no instruction; the value comes out as it went in.
    unsafe { asm!(".pragma \"nounroll\"; // {0}", inout(reg32) counter => hidden, options(nomem, nostack)) };
    hidden
}

/// [`tid_x`], read again here. LLVM merges plain reads of the register into one value and keeps it alive across whatever
/// lies between; this one is volatile, for code whose registers are all spoken for. PTX: `mov.u32 d, %tid.x`.
#[inline(always)]
pub fn tid_x_again() -> u32 {
    let id: u32;
    // SAFETY: reads a special register.
    unsafe { asm!("mov.u32 {}, %tid.x;", out(reg32) id, options(nomem, nostack)) };
    id
}
