//! Probes of the asynchronous copies: bytes as they lie in shared memory afterwards.

use super::probe::{barrier_at, copy_out, fill, region};
use crate::abi_probe::{ProbeParams, REGION_BYTES, UNTOUCHED};
use crate::config::TILE_BYTES;
use crate::ptx::tma::{TensorMap, TensorMapPtr, tensor_map_param};
use crate::ptx::{barrier, cluster, fence, global, mbarrier, special, tma};

/// Bytes of a full tile.
const TILE: u32 = TILE_BYTES as u32;

/// Fills the first two regions, initialises barrier 0 and joins the block; returns 1 in the thread that issues copies.
///
/// # Safety
/// Called once, by all threads.
#[inline(always)]
unsafe fn start() -> u32 {
    let first = (special::tid_x() == 0) as u32;
    // SAFETY: nothing else uses shared memory yet; the fence hands the filled bytes to the async proxy.
    unsafe {
        fill(region(0), UNTOUCHED, REGION_BYTES);
        fill(region(1), UNTOUCHED, REGION_BYTES);
        mbarrier::init_if(barrier_at(0), 1, first);
        mbarrier::init_fence();
        fence::proxy_async_shared();
        barrier::sync_all();
    }
    first
}

/// Waits for the first phase and writes both regions' tiles.
///
/// # Safety
/// Called by all threads after [`start`] and an announced copy; `out` has room for two tiles.
#[inline(always)]
unsafe fn finish(out: u64) {
    // SAFETY: the wait orders the copied bytes before the reads.
    unsafe {
        mbarrier::wait(barrier_at(0), 0);
        copy_out(out, region(0), TILE);
        copy_out(out + TILE as u64, region(1), TILE);
    }
}

/// Bulk copies without a map. `a`: bytes `[count, 2048]`; `count` rounds.
///
/// `out`: bytes `[count, 2048]`: each round's bytes after a copy; then 2,048 bytes that only a copy with `on` = 0 named.
///
/// # Safety
/// Launched with 128 threads, one block, [`crate::abi_probe::SMEM_BYTES`] and buffers of the sizes above.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_bulk_load(p: ProbeParams) {
    const BYTES: u32 = 2048;
    // SAFETY: each round announces and copies once, and the block joins before the next copy overwrites the region.
    unsafe {
        let first = start();
        let (mut round, rounds) = (0, p.count as u32);
        while round < rounds {
            let at = (round * BYTES) as u64;
            mbarrier::expect_tx_if(barrier_at(0), BYTES, first);
            tma::bulk_load_if(region(0), p.a + at, BYTES, barrier_at(0), first);
            tma::bulk_load_if(region(1), p.a + at, BYTES, barrier_at(0), 0);
            mbarrier::wait(barrier_at(0), round & 1);
            copy_out(p.out + at, region(0), BYTES);
            barrier::sync_all();
            round += 1;
        }
        copy_out(p.out + (rounds * BYTES) as u64, region(1), BYTES);
    }
}

/// A 2D box of 128 x 128 bytes at row `x` of the map's tensor.
///
/// `out`: 16 KiB as the box lies in shared memory; 16 KiB that only a load with `on` = 0 named.
///
/// # Safety
/// Launched with 128 threads, one block, [`crate::abi_probe::SMEM_BYTES`], an output of the size above, and a map
/// (u8 `[128, rows]`, box `[128, 128]`).
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_tma_2d(p: ProbeParams, _map: TensorMap) {
    let map: TensorMapPtr = tensor_map_param!(probe_tma_2d, 1);
    // SAFETY: one announced box; the other load is off.
    unsafe {
        let first = start();
        tma::prefetch_map_if(map, first);
        mbarrier::expect_tx_if(barrier_at(0), TILE, first);
        tma::load_2d_if(region(0), map, barrier_at(0), [0, p.x], first);
        tma::load_2d_if(region(1), map, barrier_at(0), [0, p.x], 0);
        finish(p.out);
    }
}

/// A 3D box: 128 rows from row `x` of head `y`, as the attention loads its queries.
///
/// `out`: as [`probe_tma_2d`].
///
/// # Safety
/// As [`probe_tma_2d`], with a map of u8 `[128, heads, rows]`, box `[128, 1, 128]`.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_tma_3d(p: ProbeParams, _map: TensorMap) {
    let map: TensorMapPtr = tensor_map_param!(probe_tma_3d, 1);
    // SAFETY: one announced box; the other load is off.
    unsafe {
        let first = start();
        mbarrier::expect_tx_if(barrier_at(0), TILE, first);
        tma::load_3d_if(region(0), map, barrier_at(0), [0, p.y, p.x], first);
        tma::load_3d_if(region(1), map, barrier_at(0), [0, p.y, p.x], 0);
        finish(p.out);
    }
}

/// The same, by an elected lane of the first warp, to the blocks of the cluster of which there is one.
///
/// `out`: as [`probe_tma_2d`].
///
/// # Safety
/// As [`probe_tma_3d`].
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_tma_3d_elected(p: ProbeParams, _map: TensorMap) {
    let map: TensorMapPtr = tensor_map_param!(probe_tma_3d_elected, 1);
    // SAFETY: one announced box, by a whole warp.
    unsafe {
        start();
        if special::tid_x() < 32 {
            mbarrier::expect_tx(barrier_at(0), TILE);
            cluster::load_3d(region(0), map, barrier_at(0), [0, p.y, p.x], 1);
        }
        finish(p.out);
    }
}

/// A tile of 128 tokens gathered from pages: `count` boxes of `x` tokens (`count * x` = 128) of head `y`, each from token
/// `z` of its page. `a`: i32 `[count]` page numbers.
///
/// `out`: as [`probe_tma_2d`].
///
/// # Safety
/// As [`probe_tma_2d`], with a map of u8 `[128, page_size, heads, pages]`, box `[128, x, 1, 1]`.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_tma_pages(p: ProbeParams, _map: TensorMap) {
    let map: TensorMapPtr = tensor_map_param!(probe_tma_pages, 1);
    let (boxes, rows) = (p.count as u32, p.x as u32);
    // SAFETY: the boxes fill one tile, which is announced as a whole; the other loads are off.
    unsafe {
        let first = start();
        mbarrier::expect_tx_if(barrier_at(0), TILE, first);
        let mut i = 0;
        while i < boxes {
            let page = global::ld_nc_u32(super::probe::word(p.a, i)) as i32;
            let to = i * rows * 128;
            tma::load_4d_if(region(0).offset(to), map, barrier_at(0), [0, p.z, p.y, page], first);
            tma::load_4d_if(region(1).offset(to), map, barrier_at(0), [0, p.z, p.y, page], 0);
            i += 1;
        }
        finish(p.out);
    }
}

/// The same, by an elected lane of the first warp; every second box is not kept in L2.
///
/// `out`: as [`probe_tma_2d`].
///
/// # Safety
/// As [`probe_tma_pages`].
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_tma_pages_elected(p: ProbeParams, _map: TensorMap) {
    let map: TensorMapPtr = tensor_map_param!(probe_tma_pages_elected, 1);
    let (boxes, rows) = (p.count as u32, p.x as u32);
    // SAFETY: the boxes fill one tile, which is announced as a whole, by a whole warp.
    unsafe {
        start();
        if special::tid_x() < 32 {
            mbarrier::expect_tx(barrier_at(0), TILE);
            let mut i = 0;
            while i < boxes {
                let page = global::ld_nc_u32(super::probe::word(p.a, i)) as i32;
                let (to, coords) = (region(0).offset(i * rows * 128), [0, p.z, p.y, page]);
                if i % 2 == 0 {
                    tma::load_4d_once(to, map, barrier_at(0), coords);
                } else {
                    tma::load_4d(to, map, barrier_at(0), coords);
                }
                i += 1;
            }
        }
        finish(p.out);
    }
}
