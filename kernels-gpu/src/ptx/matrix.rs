//! Matrices that a warp holds: loading them transposed, and small products. None is `pure`: each needs all lanes at the same place.

use super::SmemAddr;
use core::arch::asm;

/// Loads four matrices of 8 rows of eight 16-bit elements each, transposed. Lane 8 i + r names the 16 bytes of row r of matrix i;
/// lane 4 g + t gets elements g of rows 2 t and 2 t + 1 of matrix i in word i.
/// PTX: `ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {d0, d1, d2, d3}, [a]`. Called by a whole warp.
///
/// # Safety
/// - All 32 lanes call it, converged.
/// - `at` is 16-byte aligned and inside the block's shared memory.
/// - A barrier orders the load after whoever wrote the bytes.
#[inline(always)]
pub unsafe fn load_x4_trans(at: SmemAddr) -> [u32; 4] {
    let (a, b, c, d): (u32, u32, u32, u32);
    // SAFETY: the caller's obligation.
    unsafe {
        asm!(
            "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {{{}, {}, {}, {}}}, [{}];",
            out(reg32) a,
            out(reg32) b,
            out(reg32) c,
            out(reg32) d,
            in(reg32) at.0
        );
    }
    [a, b, c, d]
}

/// Adds the product of 16 x 16 and 16 x 8 packed f16 to `acc`, in f32. Lane 4 g + t has of A rows g and g + 8, columns 2 t and 2 t + 1
/// (words 0 and 1), then the columns 8 further (2 and 3); of B column g, the same rows; of the sum rows g (first two) and g + 8,
/// columns 2 t and 2 t + 1.
/// PTX: `mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {d0..3}, {a0..3}, {b0, b1}, {d0..3}`. Called by a whole warp.
///
/// # Safety
/// - All 32 lanes call it, converged.
#[inline(always)]
pub unsafe fn product_f16(acc: &mut [f32; 4], a: [u32; 4], b: [u32; 2]) {
    let [d0, d1, d2, d3] = acc;
    // SAFETY: the caller's obligation.
    unsafe {
        asm!(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {{{d0}, {d1}, {d2}, {d3}}}, {{{a0}, {a1}, {a2}, {a3}}}, {{{b0}, {b1}}}, {{{d0}, {d1}, {d2}, {d3}}};",
            d0 = inout(reg32) *d0,
            d1 = inout(reg32) *d1,
            d2 = inout(reg32) *d2,
            d3 = inout(reg32) *d3,
            a0 = in(reg32) a[0],
            a1 = in(reg32) a[1],
            a2 = in(reg32) a[2],
            a3 = in(reg32) a[3],
            b0 = in(reg32) b[0],
            b1 = in(reg32) b[1],
        );
    }
}
