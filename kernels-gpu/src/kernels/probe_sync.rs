//! Probes of barriers, warp exchange, register reallocation and special registers.

use super::probe::{barrier_at, region, word};
use crate::abi_probe::{MBARRIER_WORDS, ProbeParams, SETMAXNREG_LIVE, SMEM_WORDS, SPECIAL_WORDS, THREADS, WARP_WORDS};
use crate::ptx::wgmma::with_indices;
use crate::ptx::{barrier, global, math, mbarrier, pdl, regs, smem, special, warp};

/// Rounds of a barrier that all threads arrive at. `a`: u32 `[count, 128]`; `count` rounds.
///
/// `out`: u32 `[count, 128, 3]` and then `[128]`. Per round and thread: whether the round's phase was complete before this
/// thread arrived (0), whether the phase before it was (1), and the word of `a` that the next thread put into shared
/// memory before it arrived. Last, whether a barrier completed at which only `_if` forms with `on` = 0 arrived (0).
///
/// # Safety
/// Launched with 128 threads, one block, [`crate::abi_probe::SMEM_BYTES`] and buffers of the sizes above.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_mbarrier(p: ProbeParams) {
    let (tid, rounds) = (special::tid_x(), p.count as u32);
    let (full, empty, idle) = (barrier_at(0), barrier_at(1), barrier_at(2));
    let slot = region(0);
    let first = (tid == 0) as u32;
    // SAFETY: the barriers are initialised once, before the block barrier; each round has 128 arrivals at `full` and
    // `empty`; slots are written between `empty` and `full` of a round and read between `full` and the next `empty`.
    unsafe {
        mbarrier::init_if(full, THREADS, first);
        mbarrier::init_if(empty, THREADS, first);
        mbarrier::init_if(idle, 1, first);
        mbarrier::init_fence();
        barrier::sync_all();
        let mut round = 0;
        while round < rounds {
            let parity = round & 1;
            mbarrier::arrive_if(idle, 0);
            mbarrier::expect_tx_if(idle, 16, 0);
            smem::st_u32(slot.offset(4 * tid), global::ld_nc_u32(word(p.a, round * THREADS + tid)));
            let early = mbarrier::try_wait(full, parity) as u32;
            let previous = mbarrier::try_wait(full, parity ^ 1) as u32;
            let at = (round * THREADS + tid) * MBARRIER_WORDS as u32;
            // Stored before the arrival, not after: a try_wait whose answer nobody needs yet runs on in the background, and
            // this thread's own arrival would then complete the phase under it.
            global::st_u32(word(p.out, at), early);
            global::st_u32(word(p.out, at + 1), previous);
            mbarrier::arrive(full);
            mbarrier::wait(full, parity);
            let neighbour = smem::ld_u32(slot.offset(4 * ((tid + 1) % THREADS)));
            mbarrier::arrive_if(empty, 1);
            mbarrier::wait(empty, parity);
            global::st_u32(word(p.out, at + 2), neighbour);
            round += 1;
        }
        barrier::sync_all();
        let at = rounds * THREADS * MBARRIER_WORDS as u32 + tid;
        global::st_u32(word(p.out, at), mbarrier::try_wait(idle, 0) as u32);
    }
}

/// Barrier that says a slot is full.
const FULL: u32 = 1;
/// Barrier that says a slot is empty.
const EMPTY: u32 = 2;

/// Two warps hand words to two others by named barriers. `a`: u32 `[count, 64]`; `count` rounds.
///
/// `out`: u32 `[count, 64]`: what consumer i read, the word of producer 63 - i.
///
/// # Safety
/// Launched with 128 threads, one block, [`crate::abi_probe::SMEM_BYTES`] and buffers of the sizes above.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_named_barrier(p: ProbeParams) {
    let (tid, rounds) = (special::tid_x(), p.count as u32);
    let (producer, lane) = (tid / 64 == 0, tid % 64);
    let slot = region(0);
    let mut round = 0;
    // SAFETY: the role is uniform in a warp; each barrier sees 64 arrivals of each side per round, and slots are written
    // only after the consumers have arrived at EMPTY and read only after the producers have arrived at FULL.
    unsafe {
        if producer {
            while round < rounds {
                barrier::sync::<EMPTY, THREADS>();
                smem::st_u32(slot.offset(4 * lane), global::ld_nc_u32(word(p.a, round * 64 + lane)));
                barrier::arrive::<FULL, THREADS>();
                round += 1;
            }
        } else {
            while round < rounds {
                barrier::arrive::<EMPTY, THREADS>();
                barrier::sync::<FULL, THREADS>();
                global::st_u32(word(p.out, round * 64 + lane), smem::ld_u32(slot.offset(4 * (63 - lane))));
                round += 1;
            }
        }
    }
}

/// Shuffles and votes. `a`: u32 `[128]`, one word x per thread; `x`: the word that `any` looks for.
///
/// `out`: u32 `[128, 11]`: butterfly by 1 and by 16, butterfly by 2 as f32, `idx` of lane x mod 32, of lane 31, up by 1,
/// up by 7, ballot of x odd, any x equal to the parameter, any of nothing, the sum.
///
/// # Safety
/// Launched with 128 threads, one block, and buffers of the sizes above.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_warp(p: ProbeParams) {
    let tid = special::tid_x();
    // SAFETY: no branch: all lanes come to each exchange together.
    unsafe {
        let x = global::ld_nc_u32(word(p.a, tid));
        let results = [
            warp::shfl_bfly_u32(x, 1),
            warp::shfl_bfly_u32(x, 16),
            warp::shfl_bfly_f32(f32::from_bits(x), 2).to_bits(),
            warp::shfl_idx_u32(x, x % 32),
            warp::shfl_idx_u32(x, 31),
            warp::shfl_up_u32(x, 1),
            warp::shfl_up_u32(x, 7),
            warp::ballot(x & 1),
            warp::any((x == p.x as u32) as u32) as u32,
            warp::any(0) as u32,
            warp::add_u32(x),
        ];
        let at = tid * WARP_WORDS as u32;
        let mut i = 0;
        while i < WARP_WORDS {
            global::st_u32(word(p.out, at + i as u32), results[i]);
            i += 1;
        }
    }
}

/// Special registers. `out`: u32 `[blocks, 128, 10]`: `tid.x`, `ntid.x`, `ctaid.x/y/z`, `nctaid.x/y`, lane, and two
/// readings of the clock around an `ex2`; blocks are numbered x first, with `z` blocks along z.
///
/// # Safety
/// Launched with 128 threads and a buffer of the size above.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_special(p: ProbeParams) {
    let start = special::clock32();
    let (x, y, z) = (special::ctaid_x(), special::ctaid_y(), special::ctaid_z());
    let (nx, ny) = (special::nctaid_x(), special::nctaid_y());
    let at = ((x + nx * (y + ny * z)) * THREADS + special::tid_x()) * SPECIAL_WORDS as u32;
    // SAFETY: one slot per thread of the grid.
    unsafe {
        global::st_u32(word(p.out, at), special::tid_x());
        global::st_u32(word(p.out, at + 1), special::ntid_x());
        global::st_u32(word(p.out, at + 2), x);
        global::st_u32(word(p.out, at + 3), y);
        global::st_u32(word(p.out, at + 4), z);
        global::st_u32(word(p.out, at + 5), nx);
        global::st_u32(word(p.out, at + 6), ny);
        global::st_u32(word(p.out, at + 7), special::lane_id());
        global::st_u32(word(p.out, at + 8), start);
        global::st_u32(word(p.out, at + 9), special::clock32());
    }
}

/// Every width of shared load and store. `a`: u32 `[128]`, one word x per thread.
///
/// `out`: u32 `[128, 9]`: x by u32; x by f32; its halves by u16 joined again; four u8 stores of it; the sum of the four
/// words of a 16-byte store; the order number that an atomic add returned; the counter after all of them; and twice x
/// written by two 16-bit stores to device memory.
///
/// # Safety
/// Launched with 128 threads, one block, [`crate::abi_probe::SMEM_BYTES`] and buffers of the sizes above.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_smem(p: ProbeParams) {
    let tid = special::tid_x();
    let own = region(0).offset(64 * tid);
    let counter = region(1);
    // SAFETY: each thread has 64 bytes of its own; the counter is set before the barrier and atomic after it.
    unsafe {
        smem::st_u32(counter.offset(4 * tid), 0);
        barrier::sync_all();
        let x = global::ld_nc_u32(word(p.a, tid));
        let at = tid * SMEM_WORDS as u32;
        smem::st_u32(own, x);
        global::st_u32(word(p.out, at), smem::ld_u32(own));
        smem::st_f32(own.offset(4), f32::from_bits(x));
        global::st_u32(word(p.out, at + 1), smem::ld_f32(own.offset(4)).to_bits());
        smem::st_u16(own.offset(8), x as u16);
        smem::st_u16(own.offset(10), (x >> 16) as u16);
        let halves = smem::ld_u16(own.offset(8)) as u32 | (smem::ld_u16(own.offset(10)) as u32) << 16;
        global::st_u32(word(p.out, at + 2), halves);
        smem::st_u8(own.offset(12), x as u8);
        smem::st_u8(own.offset(13), (x >> 8) as u8);
        smem::st_u8(own.offset(14), (x >> 16) as u8);
        smem::st_u8(own.offset(15), (x >> 24) as u8);
        global::st_u32(word(p.out, at + 3), smem::ld_u32(own.offset(12)));
        smem::st_v4(own.offset(16), [x, x ^ 1, x ^ 2, x ^ 3]);
        let [a, b, c, d] = smem::ld_v4(own.offset(16));
        global::st_u32(word(p.out, at + 4), a.wrapping_add(b).wrapping_add(c).wrapping_add(d));
        global::st_u32(word(p.out, at + 5), smem::atomic_add_u32(counter, 1));
        barrier::sync_all();
        global::st_u32(word(p.out, at + 6), smem::ld_u32(counter));
        let mut copy = 0;
        while copy < 2 {
            let to = word(p.out, at + 7 + copy);
            global::st_u16(to, x as u16);
            global::st_u16(to + 2, (x >> 16) as u16);
            copy += 1;
        }
    }
}

/// Registers a thread of the first warpgroup keeps.
const FEW: u32 = 24;
/// Registers a thread of the other two gets: 128 * 24 + 256 * 240 fit the 65,536 of a multiprocessor.
const MANY: u32 = 240;

macro_rules! load_all {
    (($values:ident, $from:expr) $($i:literal)*) => {
        $values[0] = $from.read_volatile();
        $($values[$i] = $from.add($i).read_volatile();)*
    };
}
macro_rules! store_all {
    (($values:ident, $to:expr) $($i:literal)*) => {
        $to.write_volatile($values[0]);
        $($to.add($i).write_volatile($values[$i]);)*
    };
}

/// Register reallocation: the first warpgroup gives registers away, the other two take them and hold 192 values at once.
/// `a`: f32 `[256, 192]`; 384 threads.
///
/// `out`: f32 `[256, 192]`: the same; then u32 `[128]`: the thread numbers of the first warpgroup.
///
/// # Safety
/// Launched with 384 threads, one block, and buffers of the sizes above; assembled with `.maxntid 384`.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_setmaxnreg(p: ProbeParams) {
    let tid = special::tid_x();
    // SAFETY: the role is uniform in a warpgroup and each runs one reallocation; the sums fit. The volatile accesses keep
    // all loads before all stores, so the values are live together; each thread has rows of its own.
    unsafe {
        if tid / 128 == 0 {
            regs::setmaxnreg_dec::<FEW>();
            global::st_u32(word(p.out, 256 * SETMAXNREG_LIVE + tid), tid);
        } else {
            regs::setmaxnreg_inc::<MANY>();
            let row = (tid - 128) as usize * SETMAXNREG_LIVE as usize;
            let (from, to) = ((p.a as *const f32).add(row), (p.out as *mut f32).add(row));
            let (mut u, mut v, mut w) = ([0f32; 64], [0f32; 64], [0f32; 64]);
            with_indices!(64, load_all(u, from));
            with_indices!(64, load_all(v, from.add(64)));
            with_indices!(64, load_all(w, from.add(128)));
            with_indices!(64, store_all(w, to.add(128)));
            with_indices!(64, store_all(v, to.add(64)));
            with_indices!(64, store_all(u, to));
        }
    }
}

/// One link of a chain of dependent launches. `a`, `out`: f32 `[count]` with `count` a multiple of 128; out = 2 a + 1.
///
/// # Safety
/// Launched with 128 threads, one block, and buffers of the sizes above.
#[unsafe(no_mangle)]
pub unsafe extern "gpu-kernel" fn probe_pdl(p: ProbeParams) {
    // SAFETY: input and output are touched only after the wait. The input may have been written by the launch before, so
    // it is read past the read-only path.
    unsafe {
        pdl::launch_dependents();
        pdl::wait();
        let mut done = 0;
        while done < p.count as u32 {
            let i = done + special::tid_x();
            let x = (p.a as *const f32).add(i as usize).read_volatile();
            global::st_u32(word(p.out, i), math::fma(x, 2.0, 1.0).to_bits());
            done += THREADS;
        }
    }
}
