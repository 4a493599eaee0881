//! Asynchronous bulk copies from device memory to shared memory, with and without a tensor map.
//!
//! All of them complete on an mbarrier, by bytes; who issues a copy announces its bytes with
//! [`super::mbarrier::expect_tx_if`] on the same phase. Elements outside the tensor are filled with zeros and count as bytes.

use super::SmemAddr;
use core::arch::asm;

/// A tensor map as a kernel parameter: 128 opaque bytes encoded by the driver.
///
/// Declared with the alignment of `u64`: by-value types aligned above 16 bytes crash rustc. The build raises the
/// alignment of the PTX parameter to the 64 the hardware wants; only its address is ever used (`tensor_map_param!`).
#[derive(Clone, Copy)]
#[repr(C)]
pub struct TensorMap(pub [u64; 16]);

/// Generic address of a tensor map in parameter, constant or global memory.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct TensorMapPtr(pub u64);

/// Address of parameter `$index` of the kernel `$kernel`, a by-value [`TensorMap`](crate::ptx::tma::TensorMap), as a
/// [`TensorMapPtr`](crate::ptx::tma::TensorMapPtr).
///
/// PTX: `cvta.param.u64 d, <kernel>_param_<index>`. Use it in the body of that kernel (or in code inlined into it alone):
/// the parameter's symbol exists nowhere else. Naming the symbol keeps the map where the driver put it: taking a Rust
/// reference instead would copy it to local memory.
macro_rules! tensor_map_param {
    ($kernel:ident, $index:literal) => {{
        let address: u64;
        // SAFETY: the address of a parameter of this kernel; a misspelt name does not assemble.
        unsafe {
            core::arch::asm!(
                concat!("cvta.param.u64 {}, ", stringify!($kernel), "_param_", $index, ";"),
                out(reg64) address,
                options(pure, nomem, nostack)
            );
        }
        $crate::ptx::tma::TensorMapPtr(address)
    }};
}
pub(crate) use tensor_map_param;

/// Where `on` is not 0, loads a box of a 2D tensor at `coords` (elements, innermost first) to `dst`.
///
/// PTX: `@p cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [dst], [map, {c0, c1}], [bar]`.
/// Called by a thread, or by a warp with one lane `on`.
///
/// # Safety
/// - `map` is an encoded 2D tensor map whose tensor stays allocated until the copy is complete.
/// - `dst` is aligned to 128 bytes (1,024 with the 128-byte swizzle) and a whole box fits in the block's shared memory.
/// - `bar` is an initialised barrier whose current phase expects the bytes of the box.
/// - Nobody uses the destination until that phase completes; earlier ordinary accesses are ordered before by a barrier
///   (and [`super::fence::proxy_async_shared`] if they were writes).
#[inline(always)]
pub unsafe fn load_2d_if(dst: SmemAddr, map: TensorMapPtr, bar: SmemAddr, coords: [i32; 2], on: u32) {
    let [c0, c1] = coords;
    // SAFETY: the caller's obligation.
    unsafe {
        asm!(
            "{{ .reg .pred p; setp.ne.u32 p, {on}, 0; @p cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [{dst}], [{map}, {{{c0}, {c1}}}], [{bar}]; }}",
            dst = in(reg32) dst.0,
            map = in(reg64) map.0,
            bar = in(reg32) bar.0,
            c0 = in(reg32) c0,
            c1 = in(reg32) c1,
            on = in(reg32) on,
        );
    }
}

/// Where `on` is not 0, loads a box of a 3D tensor at `coords` (elements, innermost first) to `dst`.
///
/// PTX: `@p cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [dst], [map, {c0, c1, c2}], [bar]`.
/// Called by a thread, or by a warp with one lane `on`.
///
/// # Safety
/// As [`load_2d_if`], with a 3D map.
#[inline(always)]
pub unsafe fn load_3d_if(dst: SmemAddr, map: TensorMapPtr, bar: SmemAddr, coords: [i32; 3], on: u32) {
    let [c0, c1, c2] = coords;
    // SAFETY: the caller's obligation.
    unsafe {
        asm!(
            "{{ .reg .pred p; setp.ne.u32 p, {on}, 0; @p cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [{dst}], [{map}, {{{c0}, {c1}, {c2}}}], [{bar}]; }}",
            dst = in(reg32) dst.0,
            map = in(reg64) map.0,
            bar = in(reg32) bar.0,
            c0 = in(reg32) c0,
            c1 = in(reg32) c1,
            c2 = in(reg32) c2,
            on = in(reg32) on,
        );
    }
}

/// Where `on` is not 0, loads a box of a 4D tensor at `coords` (elements, innermost first) to `dst`.
///
/// PTX: `@p cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [dst], [map, {c0, c1, c2, c3}], [bar]`.
/// Called by a thread, or by a warp with one lane `on`.
///
/// # Safety
/// As [`load_2d_if`], with a 4D map.
#[inline(always)]
pub unsafe fn load_4d_if(dst: SmemAddr, map: TensorMapPtr, bar: SmemAddr, coords: [i32; 4], on: u32) {
    let [c0, c1, c2, c3] = coords;
    // SAFETY: the caller's obligation.
    unsafe {
        asm!(
            "{{ .reg .pred p; setp.ne.u32 p, {on}, 0; @p cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [{dst}], [{map}, {{{c0}, {c1}, {c2}, {c3}}}], [{bar}]; }}",
            dst = in(reg32) dst.0,
            map = in(reg64) map.0,
            bar = in(reg32) bar.0,
            c0 = in(reg32) c0,
            c1 = in(reg32) c1,
            c2 = in(reg32) c2,
            c3 = in(reg32) c3,
            on = in(reg32) on,
        );
    }
}

/// As [`load_4d_if`], by one lane of a warp.
///
/// PTX: `elect.sync _|p, -1; @p cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [dst], [map, {c0, c1, c2, c3}],
/// [bar]`. Called by a whole warp with the same operands.
///
/// # Safety
/// As [`load_4d_if`]; all 32 lanes call it, converged.
#[inline(always)]
pub unsafe fn load_4d(dst: SmemAddr, map: TensorMapPtr, bar: SmemAddr, coords: [i32; 4]) {
    let [c0, c1, c2, c3] = coords;
    // SAFETY: the caller's obligation.
    unsafe {
        asm!(
            "{{ .reg .pred p; elect.sync _|p, -1;",
            "@p cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [{dst}], [{map}, {{{c0}, {c1}, {c2}, {c3}}}], [{bar}]; }}",
            dst = in(reg32) dst.0,
            map = in(reg64) map.0,
            bar = in(reg32) bar.0,
            c0 = in(reg32) c0,
            c1 = in(reg32) c1,
            c2 = in(reg32) c2,
            c3 = in(reg32) c3,
        );
    }
}

/// As [`load_4d_if`], by one lane of a warp, of what nobody reads again: L2 puts it out before anything else. (Where a predicate of any
/// other kind says which lane, ptxas makes a loop over the lanes of it.)
///
/// PTX: `elect.sync _|p, -1; createpolicy.fractional.L2::evict_first.b64 first, 1.0;
/// @p cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [dst], [map, {c0, c1, c2, c3}], [bar],
/// first`. Called by a whole warp with the same operands.
///
/// # Safety
/// As [`load_4d_if`]; all 32 lanes call it, converged.
#[inline(always)]
pub unsafe fn load_4d_once(dst: SmemAddr, map: TensorMapPtr, bar: SmemAddr, coords: [i32; 4]) {
    let [c0, c1, c2, c3] = coords;
    // SAFETY: the caller's obligation.
    unsafe {
        asm!(
            "{{ .reg .pred p; .reg .b64 first; elect.sync _|p, -1;",
            "createpolicy.fractional.L2::evict_first.b64 first, 1.0;",
            "@p cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [{dst}], [{map}, {{{c0}, {c1}, {c2}, {c3}}}], [{bar}], first; }}",
            dst = in(reg32) dst.0,
            map = in(reg64) map.0,
            bar = in(reg32) bar.0,
            c0 = in(reg32) c0,
            c1 = in(reg32) c1,
            c2 = in(reg32) c2,
            c3 = in(reg32) c3,
        );
    }
}

/// Where `on` is not 0, copies `bytes` consecutive bytes from device address `src` to `dst`.
///
/// PTX: `@p cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [dst], [src], bytes, [bar]`.
/// Called by a thread, or by a warp with one lane `on`.
///
/// # Safety
/// - `dst` and `src` are aligned to 16 bytes, `bytes` is a multiple of 16; both ranges are inside their allocations.
/// - `bar` and the use of the destination as for [`load_2d_if`].
#[inline(always)]
pub unsafe fn bulk_load_if(dst: SmemAddr, src: u64, bytes: u32, bar: SmemAddr, on: u32) {
    // SAFETY: the caller's obligation.
    unsafe {
        asm!(
            "{{ .reg .pred p; setp.ne.u32 p, {on}, 0; @p cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [{dst}], [{src}], {bytes}, [{bar}]; }}",
            dst = in(reg32) dst.0,
            src = in(reg64) src,
            bytes = in(reg32) bytes,
            bar = in(reg32) bar.0,
            on = in(reg32) on,
        );
    }
}

/// Where `on` is not 0, fetches a tensor map into its cache ahead of the first load. PTX: `@p prefetch.tensormap [map]`.
/// Called by a thread, or by a warp with one lane `on`.
///
/// # Safety
/// - `map` is an encoded tensor map.
#[inline(always)]
pub unsafe fn prefetch_map_if(map: TensorMapPtr, on: u32) {
    // SAFETY: the caller's obligation.
    unsafe {
        asm!(
            "{{ .reg .pred p; setp.ne.u32 p, {on}, 0; @p prefetch.tensormap [{map}]; }}",
            map = in(reg64) map.0,
            on = in(reg32) on,
        );
    }
}
