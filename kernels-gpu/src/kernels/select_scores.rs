//! `select_scores`: anti-diagonal scores of 128 query blocks against 128 key blocks of one head, plus the value term.
//!
//! A plain bf16 product of query sums and key sums (2,048 long: 16 groups of 128 dimensions) on the tensor core. One
//! warpgroup does everything: thread 0 keeps up to four steps of copies in flight, all threads multiply. A stage is
//! filled again one step after its product was issued, when a wait and a block barrier have shown it finished for all
//! four warps.

use crate::abi::{Request, ScoresParams};
use crate::config::select::scores::{BARRIERS, OPERAND_BYTES, STAGES, STEP, STEPS, TILE};
use crate::layout::{accumulator_col, accumulator_row, descriptor_k128};
use crate::ptx::tma::{TensorMap, TensorMapPtr, tensor_map_param};
use crate::ptx::{SmemAddr, barrier, cvt, mbarrier, smem, special, tma, wgmma};
use crate::unroll;

/// Descriptor distance of 64 rows of 128 bytes.
const HALF_TILE: u64 = 64 * 128 / 16;

/// Entry: see [`ScoresParams`] for the grid and the tensors; parameters 1 and 2 are the tensor maps of the query sums
/// (`[2048, total_qb, hq]`) and the key sums (`[2048, total_kb, hkv]`), boxes `[64, 128, 1]`, 128-byte swizzle.
///
/// # Safety
/// Launched with the grid, block size and shared memory of [`crate::config::select::scores`], on buffers whose extents
/// the host has checked.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn select_scores(p: ScoresParams, _q_sums: TensorMap, _k_sums: TensorMap) {
    let q_map = tensor_map_param!(select_scores, 1);
    let k_map = tensor_map_param!(select_scores, 2);
    // SAFETY: forwarded from the host.
    unsafe { scores(&p, q_map, k_map) }
}

/// The tile this block computes.
#[derive(Clone, Copy)]
struct Tile {
    head: i32,
    kv_head: i32,
    request: Request,
    /// First query block and key block, counted in the request.
    query: i32,
    key: i32,
}

/// The kernel's body.
///
/// # Safety
/// As the entry; called by all threads of the block.
#[inline(always)]
unsafe fn scores(p: &ScoresParams, q_map: TensorMapPtr, k_map: TensorMapPtr) {
    let thread = special::tid_x();
    // SAFETY: the block's coordinates lie in the grid the host sized; all threads take the same way through here.
    unsafe {
        let tile = locate(p);
        // Nothing to do: the grid is sized for the largest request, and above the diagonal no score is read.
        let rows = tile.request.qb_len - tile.query;
        let last_row = if rows < TILE as i32 { rows - 1 } else { TILE as i32 - 1 };
        let last_diagonal = tile.request.first_block + tile.query + last_row;
        if rows <= 0 || tile.key >= tile.request.kb_len || (p.causal != 0 && tile.key > last_diagonal) {
            return;
        }
        let acc = multiply(&tile, q_map, k_map, thread);
        store(p, &tile, &acc, thread);
    }
}

/// Finds the block's tile.
///
/// # Safety
/// The block's coordinates lie in the grid the host sized from these arrays.
#[inline(always)]
unsafe fn locate(p: &ScoresParams) -> Tile {
    let z = special::ctaid_z() as i32;
    // SAFETY: a model has at least one head, and a group at least one; z < batch * hq.
    unsafe {
        core::hint::assert_unchecked(p.hq > 0 && p.group > 0 && z >= 0);
        let (batch, head) = (z / p.hq, z % p.hq);
        Tile {
            head,
            kv_head: head / p.group,
            request: *(p.requests as *const Request).offset(batch as isize),
            query: special::ctaid_y() as i32 * TILE as i32,
            key: special::ctaid_x() as i32 * TILE as i32,
        }
    }
}

/// Shared memory of a stage: query sums, then key sums.
#[inline(always)]
fn stage(shared: SmemAddr, step: u32) -> SmemAddr {
    shared.offset(step % STAGES * 2 * OPERAND_BYTES)
}

/// The barrier that completes when a stage's operands have arrived.
#[inline(always)]
fn full(shared: SmemAddr, step: u32) -> SmemAddr {
    shared.offset(BARRIERS + step % STAGES * 8)
}

/// Where `on` is 1, starts the copies of step `step`. Rows past the end of the tensors arrive as zeros; rows of another
/// request arrive as they are, and their products are not stored.
///
/// # Safety
/// The stage's barrier is initialised and its last product finished; the maps are the host's.
#[inline(always)]
unsafe fn fetch(tile: &Tile, q_map: TensorMapPtr, k_map: TensorMapPtr, shared: SmemAddr, step: u32, on: u32) {
    let (at, bar, k) = (stage(shared, step), full(shared, step), (step * STEP) as i32);
    // SAFETY: the caller has seen the stage's last product finished.
    unsafe {
        mbarrier::expect_tx_if(bar, 2 * OPERAND_BYTES, on);
        tma::load_3d_if(at, q_map, bar, [k, tile.request.qb_start + tile.query, tile.head], on);
        tma::load_3d_if(at.offset(OPERAND_BYTES), k_map, bar, [k, tile.request.kb_start + tile.key, tile.kv_head], on);
    }
}

/// The product: rows 0..64 of the tile in the first accumulator, 64..128 in the second.
///
/// # Safety
/// All threads of the block call it, converged; the maps are the host's.
#[inline(always)]
unsafe fn multiply(tile: &Tile, q_map: TensorMapPtr, k_map: TensorMapPtr, thread: u32) -> [[f32; 64]; 2] {
    let shared = smem::base();
    let leader = (thread == 0) as u32;
    let (mut low, mut high) = ([0.0; 64], [0.0; 64]);
    // SAFETY: the barriers are initialised by one thread before all others go on; each stage is waited for before it is
    // read, and refilled only after every warp's products on it are complete.
    unsafe {
        if thread == 0 {
            unroll!(S < 4 { mbarrier::init(full(shared, S as u32), 1); });
            mbarrier::init_fence();
        }
        barrier::sync_all();
        unroll!(S in [0 1 2] { fetch(tile, q_map, k_map, shared, S as u32, leader); });
        let mut step = 0;
        while step < STEPS {
            mbarrier::wait(full(shared, step), (step / STAGES) & 1);
            let q = descriptor_k128(stage(shared, step).0);
            let k = descriptor_k128(stage(shared, step).0 + OPERAND_BYTES);
            wgmma::fence();
            unroll!(I < 4 {
                let at = 2 * I as u64;
                wgmma::bf16_m64n128k16_ss(&mut low, q + at, k + at, 1);
                wgmma::bf16_m64n128k16_ss(&mut high, q + HALF_TILE + at, k + at, 1);
            });
            wgmma::commit();
            // The step before this one is complete in this warp, and after the barrier in all four: its stage is free.
            wgmma::wait::<1>();
            barrier::sync_all();
            let next = step + STAGES - 1;
            fetch(tile, q_map, k_map, shared, next, leader & (next < STEPS) as u32);
            step += 1;
        }
        wgmma::wait::<0>();
        wgmma::keep(&mut low);
        wgmma::keep(&mut high);
    }
    [low, high]
}

/// Scales, adds the value term, rounds, and stores the scores of the request's own blocks.
///
/// # Safety
/// The host checked the arrays that `p` names for the tile's request.
#[inline(always)]
unsafe fn store(p: &ScoresParams, tile: &Tile, acc: &[[f32; 64]; 2], thread: u32) {
    let thread = thread as usize;
    let columns = tile.request.kb_len - tile.key;
    let rows = tile.request.qb_len - tile.query;
    let first_key = (tile.kv_head as i64 * p.total_kb as i64 + (tile.request.kb_start + tile.key) as i64) as isize;
    let first_row = tile.head as i64 * p.total_qb as i64 + (tile.request.qb_start + tile.query) as i64;
    let scores = p.scores.wrapping_add((first_row * p.score_stride as i64 + tile.key as i64) as u64 * 4) as *mut f32;
    unroll!(C < 16 {
        unroll!(E < 2 {
            let column = accumulator_col(thread, 4 * C + E) as i32;
            if column < columns {
                // SAFETY: row and column are blocks of the request, inside `v_bias` and `scores`.
                let bias = unsafe { *(p.v_bias as *const f32).offset(first_key + column as isize) };
                unroll!(H < 4 {
                    const HALF: usize = H / 2;
                    const I: usize = 4 * C + 2 * (H % 2) + E;
                    let row = (64 * HALF + accumulator_row(thread, I)) as i32;
                    if row < rows {
                        let score = rounded(p.qk_scale * acc[HALF][I] + bias, p.round_bf16 != 0);
                        // SAFETY: as above.
                        unsafe { *scores.offset(row as isize * p.score_stride as isize + column as isize) = score };
                    }
                });
            }
        });
    });
}

/// The score, or its nearest bf16.
#[inline(always)]
fn rounded(score: f32, to_bf16: bool) -> f32 {
    if to_bf16 { cvt::bf16x2_to_f32(cvt::bf16x2(score, 0.0)).0 } else { score }
}

const _: () = assert!(STAGES == 4 && STEP * 2 == 128, "four stages of one swizzle span");
