//! Probe of what the blocks of a cluster write to each other.

use super::probe::{barrier_at, copy_in, copy_out, region, word};
use crate::abi_probe::{ProbeParams, THREADS};
use crate::ptx::{barrier, cluster, fence, global, mbarrier, smem, special};

/// Two blocks swap pairs of words by stores and bytes by a bulk copy. `a`: u32 `[2, count, 128, 2]`; `b`: bytes `[2, count, x]` with `x` a multiple of
/// 2,048, at most 16 KiB; `count` rounds.
///
/// `out`: u32 `[2, count, 128, 2]`, bytes `[2, count, x]` and u32 `[2, 128]`. Per block, round and thread: the words that the other block's next
/// thread stored here. Per block and round: the bytes that the other block copied here. Last, whether a barrier completed at which the other
/// block only arrived with `on` = 0 (0).
///
/// # Safety
/// Launched with 128 threads, two blocks in a cluster, [`crate::abi_probe::SMEM_BYTES`] and buffers of the sizes above.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_cluster(p: ProbeParams) {
    let (tid, rounds, bytes) = (special::tid_x(), p.count as u32, p.x as u32);
    let (rank, other) = (cluster::rank(), cluster::rank() ^ 1);
    let (stored, copied, over, idle) = (barrier_at(0), barrier_at(1), barrier_at(2), barrier_at(3));
    let (words, from, to) = (region(0), region(1), region(2));
    let out_bytes = word(p.out, 4 * rounds * THREADS);
    let first = (tid == 0) as u32;
    // SAFETY: the barriers are initialised once, before the blocks meet; of each round `stored` and `over` have 128 arrivals of the other
    // block, and `copied` has one and the bytes of its copy. What a round writes in the other block is read before `over`, after which
    // the next round writes it again; the blocks meet before one ends.
    unsafe {
        mbarrier::init_if(stored, THREADS, first);
        mbarrier::init_if(copied, 1, first);
        mbarrier::init_if(over, THREADS, first);
        mbarrier::init_if(idle, 1, first);
        mbarrier::init_fence();
        cluster::sync();
        let mut round = 0;
        while round < rounds {
            let parity = round & 1;
            let at = rank * rounds + round;
            cluster::arrive_release_if(idle, other, 0);
            let pair = [0, 1].map(|i| global::ld_nc_u32(word(p.a, 2 * (at * THREADS + tid) + i)));
            cluster::st_v2_u32(cluster::place(words, other).offset(8 * tid), pair);
            cluster::arrive_release_if(stored, other, 1);
            copy_in(from, p.b + (at * bytes) as u64, bytes);
            fence::proxy_async_shared();
            barrier::sync_all();
            if tid < 32 {
                mbarrier::expect_tx(copied, bytes);
                cluster::copy(cluster::place(to, other), from, bytes, cluster::place(copied, other));
            }
            mbarrier::wait_cluster(stored, parity);
            let [low, high] = smem::ld_v2_u32(words.offset(8 * ((tid + 1) % THREADS)));
            global::st_u32(word(p.out, 2 * (at * THREADS + tid)), low);
            global::st_u32(word(p.out, 2 * (at * THREADS + tid) + 1), high);
            mbarrier::wait(copied, parity);
            copy_out(out_bytes + (at * bytes) as u64, to, bytes);
            cluster::arrive_release_if(over, other, 1);
            mbarrier::wait_cluster(over, parity);
            round += 1;
        }
        cluster::sync();
        let at = out_bytes + (2 * rounds * bytes) as u64;
        global::st_u32(word(at, rank * THREADS + tid), mbarrier::try_wait(idle, 0) as u32);
    }
}
