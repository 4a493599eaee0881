//! The producer's side: K and V tiles into their ring, Q tiles prepared ahead.

use super::{Shared, TILE};
use crate::abi::AttendParams;
use crate::config::attend::{PREPARERS, Q_STAGES};
use crate::config::{BLOCK, HEAD_DIM};
use crate::pipeline::ring::Cursor;
use crate::pipeline::work::{Item, Place, Slot, item};
use crate::ptx::tma::TensorMapPtr;
use crate::ptx::{fence, global, math, mbarrier, smem, special, tma, warp};
use crate::tile::shrink::shrink_row;

/// The producer warp: K and V of all items of the block.
#[inline(always)]
pub(super) unsafe fn load(p: &AttendParams, shared: Shared, k_map: TensorMapPtr) {
    let (mut k, mut stage) = (0, 0);
    // SAFETY: as in `load_tiles`.
    unsafe {
        while let Some(n) = item(p, k) {
            let work = Item::locate(p, n);
            if work.count > 0 {
                load_tiles(p, shared, &work, k_map, stage);
                stage += work.count as u32 + 1;
            }
            k += 1;
        }
    }
}

/// Warps 1 and 2: brings the Q tiles of the items to come and what the consumers need to know of them, two items ahead of them
/// and one of itself; shrinks the rows, two a thread, so that their scores fit f16, and leaves each row's factor from such a
/// score to a base-2 logit.
#[inline(always)]
pub(super) unsafe fn prepare(p: &AttendParams, shared: Shared, q_map: TensorMapPtr) {
    let (mut k, mut fetched) = (0, 0);
    // SAFETY: barriers are initialised; a stage is waited for before it is overwritten, is complete when its barrier says
    // so, and nobody else touches it before `ready`. Rows outside the tensor are zero-filled by the copy engine.
    unsafe {
        while item(p, k).is_some() {
            // Read again for every item: what hangs on the thread is cheaper to find anew than to keep in a register.
            let thread = special::tid_x_again() - 32;
            // The first item is not kept waiting by the look-ups of the second.
            let end = if k == 0 { 1 } else { k + 2 };
            if warp::shfl_idx_u32(thread, 0) == 0 {
                while fetched < end {
                    if let Some(n) = item(p, fetched) {
                        fetch(p, shared, q_map, Cursor::at(fetched), n, (thread == 0) as u32);
                    }
                    fetched += 1;
                }
            }
            let at = Cursor::at(k);
            shared.q.wait_full(at);
            let mut row = thread;
            while row < BLOCK as u32 {
                // Asked for before the row is shrunk, which takes as long as the answer.
                let scale = row_scale(p, shared.slot(at), row as i32);
                let undo = shrink_row(shared.q_tile(at), row);
                smem::st_f32(shared.scales(at).offset(4 * row), undo * scale);
                row += PREPARERS;
            }
            fence::proxy_async_shared();
            mbarrier::arrive_if(shared.ready.full(at), 1);
            k += 1;
        }
    }
}

/// Looks item `n` up, leaves what the consumers need to know of it in its slot, and starts the copy of its Q tile.
///
/// # Safety
/// Called by a whole warp, converged; `leader` is 1 in one lane; `n` is an item, `at` its place.
#[inline(always)]
unsafe fn fetch(p: &AttendParams, shared: Shared, q_map: TensorMapPtr, at: Cursor<Q_STAGES>, n: u32, leader: u32) {
    // SAFETY: forwarded from `prepare`.
    unsafe {
        let work = Item::locate(p, n);
        let any = (work.count > 0) as u32;
        shared.q.wait_empty(at);
        // The copy first, then the slot, which takes a look-up more. Its bytes are announced before they can come.
        mbarrier::announce_if(shared.q.full(at), any * TILE, leader);
        tma::load_3d_if(shared.q_tile(at), q_map, shared.q.full(at), [0, work.head, work.tile_row()], leader & any);
        // Its rows' scales meanwhile come as far as L2.
        let mut row = special::lane_id();
        while row < BLOCK as u32 {
            global::prefetch_if(q_scale_at(p, work.head, work.tile_row(), work.rows(), row as i32), 1);
            row += 32;
        }
        shared.slot(at).fill(p, &work, leader);
        mbarrier::arrive_if(shared.q.full(at), leader);
        warp::sync();
    }
}

/// From raw score to base-2 logit; 0 for rows that are not the request's, whatever lies there: none of their scores then moves
/// the biases of a warp, and what a request's rows become does not depend on its neighbours in the batch.
///
/// # Safety
/// The slot is readable; the K scale is per tensor or per head; rows from..to lie inside `q_scale`.
#[inline(always)]
unsafe fn row_scale(p: &AttendParams, slot: Slot, row: i32) -> f32 {
    // SAFETY: forwarded from the caller.
    unsafe {
        let Place { tile_row, rows: [from, to], head } = slot.place();
        core::hint::assert_unchecked(p.group > 0);
        let k = *(p.k_scale as *const f32).offset((head / p.group * math::here(p.k_scale_stride)) as isize) * p.softmax_scale_log2;
        let there = (row >= from) & (row < to);
        let scale = *(q_scale_at(p, head, tile_row, [from, to], row) as *const f32) * k;
        if there { scale } else { 0.0 }
    }
}

/// Address of the scale of row `row` of a tile, or of the nearest of its rows `from..to`.
#[inline(always)]
fn q_scale_at(p: &AttendParams, head: i32, tile_row: i32, [from, to]: [i32; 2], row: i32) -> u64 {
    let row = if row < from { from } else { row };
    let row = if row < to { row } else { to - 1 };
    let offset = (tile_row + row) as u32 as i64 * p.q_scale_rows.token + head as u32 as i64 * p.q_scale_rows.head;
    p.q_scale.wrapping_add(offset as u64)
}

/// K boxes and a V tile for every key block of an item, into the ring from position `stage` on: K of the first block, then
/// V of each block with K of the next, then V of the last. Lane n carries box n of a K tile.
#[inline(always)]
unsafe fn load_tiles(p: &AttendParams, shared: Shared, item: &Item, k_map: TensorMapPtr, stage: u32) {
    let lane = special::tid_x_again();
    let leader = (lane == 0) as u32;
    let page_log2 = math::here(p.page_size_log2) as u32;
    let box_log2 = if page_log2 < 7 { page_log2 } else { 7 };
    let boxes = (BLOCK as u32) >> box_log2;
    let carries = (lane < boxes) as u32;
    // Lanes without a box repeat the first one's address arithmetic and issue nothing.
    let my_box = if lane < boxes { lane } else { 0 };
    let table = p.page_table + (item.row.request as u32 as i64 * p.table_stride as u32 as i64 * 4) as u64;
    let tile_stride = math::here(p.hkv) as u32 as i64 * TILE as i64;
    let v_tiles = p.v_tiles + (item.request.kb_start as u32 as i64 * tile_stride + item.kv_head as u32 as i64 * TILE as i64) as u64;
    let (mut i, mut before) = (0, 0);
    // SAFETY: barriers are initialised; every stage is waited for before it is overwritten; addresses come from arrays
    // whose extents the host checked; rows outside a tensor are zero-filled by the copy engine.
    unsafe {
        while i <= item.count {
            let at = Cursor::at(stage + i as u32);
            let more = (i < item.count) as u32;
            let j = if more != 0 { item.key_block(i) } else { before };
            // A box past the last token repeats the block's first page; its keys are masked.
            let token = j * BLOCK as i32 + ((my_box << box_log2) as i32);
            let token = if token < item.request.kv_len { token } else { j * BLOCK as i32 };
            let page = *(table as *const i32).offset((token >> page_log2) as isize);
            let in_page = token & ((1 << page_log2) - 1);
            shared.kv.wait_empty(at);
            mbarrier::expect_tx_if(shared.kv.full(at), if (i > 0) & (more != 0) { 2 * TILE } else { TILE }, leader);
            let rows = shared.k_tile(at).offset((my_box * HEAD_DIM as u32) << box_log2);
            tma::load_4d_if(rows, k_map, shared.kv.full(at), [0, in_page, item.kv_head, page], carries & more);
            tma::bulk_load_if(
                shared.v_tile(at),
                v_tiles.wrapping_add((before as u32 as i64 * tile_stride) as u64),
                TILE,
                shared.kv.full(at),
                leader & (i > 0) as u32,
            );
            before = j;
            i += 1;
        }
    }
}
