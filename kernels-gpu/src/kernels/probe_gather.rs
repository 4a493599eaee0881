//! Probe of words gathered into shared memory behind a barrier, and of what their readers use.

use super::probe::{barrier_at, region, word};
use crate::abi_probe::{GATHER_WORDS, ProbeParams, THREADS, UNTOUCHED};
use crate::ptx::{barrier, global, mbarrier, smem, special};

/// Rounds of words that arrive with a barrier. `a`: u32 `[count, 128]`; `x`: threads whose number is 0 modulo it load nothing.
///
/// `out`: u32 `[count, 128, 3]`. Per round and thread: the pair of words in shared memory that the next thread's word belongs
/// to, and word t / 32 of the round's bits, one bit set by every thread: that of its word of `a` modulo 32.
///
/// # Safety
/// Launched with 128 threads, one block, [`crate::abi_probe::SMEM_BYTES`] and buffers of the sizes above.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_gather(p: ProbeParams) {
    let (tid, rounds, skip) = (special::tid_x(), p.count as u32, p.x as u32);
    let (full, empty) = (barrier_at(0), barrier_at(1));
    let (slots, bits) = (region(0), region(1).offset(tid / 32 * 4));
    let first = (tid == 0) as u32;
    // SAFETY: the barriers are initialised once, before the block barrier; each round has 128 arrivals at both; slots are
    // written between `empty` and `full` and read between `full` and the next `empty`, and so are the bits.
    unsafe {
        mbarrier::init_if(full, THREADS, first);
        mbarrier::init_if(empty, THREADS, first);
        mbarrier::init_fence();
        barrier::sync_all();
        let mut round = 0;
        while round < rounds {
            let parity = round & 1;
            let from = word(p.a, round * THREADS + tid);
            smem::st_u32(slots.offset(4 * tid), UNTOUCHED);
            smem::st_u32_if(bits, 0, tid.is_multiple_of(32) as u32);
            barrier::sync_all();
            smem::st_u32(slots.offset(4 * tid), global::ld_u32_if(from, !tid.is_multiple_of(skip) as u32));
            smem::atomic_or_u32(bits, 1 << (global::ld_nc_u32(from) % 32));
            mbarrier::arrive(full);
            mbarrier::wait(full, parity);
            barrier::sync_all();
            let [even, odd] = smem::ld_v2_f32(slots.offset((tid + 1) % THREADS / 2 * 8));
            let at = (round * THREADS + tid) * GATHER_WORDS as u32;
            global::st_u32(word(p.out, at), even.to_bits());
            global::st_u32(word(p.out, at + 1), odd.to_bits());
            global::st_u32(word(p.out, at + 2), smem::ld_u32(bits));
            mbarrier::arrive(empty);
            mbarrier::wait(empty, parity);
            round += 1;
        }
    }
}
