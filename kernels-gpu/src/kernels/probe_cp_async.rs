//! Probe of the small asynchronous copies: groups in flight, copies of fewer bytes, and what waits make visible to whom.

use super::probe::{region, word};
use crate::abi_probe::{CP_ASYNC_STAGES, CP_ASYNC_WORDS, ProbeParams, THREADS};
use crate::ptx::{SmemAddr, barrier, cp_async, global, smem, special};

/// Bytes of a stage: 16 bytes of each thread, then 4 of each.
const STAGE_BYTES: u32 = THREADS * (16 + 4);

/// The two places of thread `tid` in stage `round % STAGES`.
#[inline(always)]
fn places(round: u32, tid: u32) -> (SmemAddr, SmemAddr) {
    let stage = region(0).offset(round % CP_ASYNC_STAGES * STAGE_BYTES);
    (stage.offset(tid * 16), stage.offset(THREADS * 16 + tid * 4))
}

/// Starts this thread's copies of a round, if there is such a round, and closes a group in any case.
///
/// # Safety
/// `a` and `b` are as [`probe_cp_async`] wants them, and all threads are done with the round's stage.
#[inline(always)]
unsafe fn start(p: &ProbeParams, round: u32, tid: u32) {
    // SAFETY: the caller's obligation; the places are aligned and inside the first region.
    unsafe {
        if round < p.count as u32 {
            let (wide, narrow) = places(round, tid);
            let element = round * THREADS + tid;
            let bytes = if (tid + round).is_multiple_of(p.x as u32) { 0 } else { 16 };
            cp_async::copy_16(wide, word(p.a, 4 * element), bytes);
            cp_async::copy_4(narrow, word(p.b, element), (tid + round) % 5);
        }
        cp_async::commit();
    }
}

/// Reads a round after its wait.
///
/// # Safety
/// All threads call it together; `out` has room for the round.
#[inline(always)]
unsafe fn read(p: &ProbeParams, round: u32, tid: u32) {
    // SAFETY: this thread's copies are complete; a barrier stands between the others' waits and the reads of what they copied,
    // and another before anyone starts the next copies to the stage.
    unsafe {
        let at = (round * THREADS + tid) * CP_ASYNC_WORDS as u32;
        let (_, own) = places(round, tid);
        global::st_u32(word(p.out, at), smem::ld_u32(own));
        barrier::sync_all();
        let (wide, narrow) = places(round, (tid + 33) % THREADS);
        global::st_u32(word(p.out, at + 1), smem::ld_u32(narrow));
        let four = smem::ld_v4(wide);
        global::st_u32(word(p.out, at + 2), four[0]);
        global::st_u32(word(p.out, at + 3), four[1]);
        global::st_u32(word(p.out, at + 4), four[2]);
        global::st_u32(word(p.out, at + 5), four[3]);
        barrier::sync_all();
    }
}

/// Rounds of copies through a ring of [`CP_ASYNC_STAGES`]. `a`: u32 `[count, 128, 4]`; `b`: u32 `[count, 128]`; `x`: where round
/// plus thread is 0 modulo it, none of the 16 bytes is copied; of the word of `b`, (round + thread) modulo 5 bytes are; `y`:
/// 1 waits for each round's copies right after starting them, 0 keeps the ring full.
///
/// `out`: u32 `[count, 128, 6]`. Per round and thread: its own word as it sees it after its wait alone; after a barrier, the
/// word and the 16 bytes of thread t + 33.
///
/// # Safety
/// Launched with 128 threads, one block, [`crate::abi_probe::SMEM_BYTES`] and buffers of the sizes above.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_cp_async(p: ProbeParams) {
    let (tid, rounds) = (special::tid_x(), p.count as u32);
    let mut round = 0;
    // SAFETY: a stage is copied to only before its first round and after the barrier that ends its last one.
    unsafe {
        if p.y == 1 {
            while round < rounds {
                start(&p, round, tid);
                cp_async::wait::<0>();
                read(&p, round, tid);
                round += 1;
            }
        } else {
            let mut ahead = 0;
            while ahead < CP_ASYNC_STAGES {
                start(&p, ahead, tid);
                ahead += 1;
            }
            while round < rounds {
                cp_async::wait::<{ CP_ASYNC_STAGES - 1 }>();
                read(&p, round, tid);
                start(&p, round + CP_ASYNC_STAGES, tid);
                round += 1;
            }
        }
    }
}

const _: () = assert!(CP_ASYNC_STAGES * STAGE_BYTES <= crate::abi_probe::REGION_BYTES);
