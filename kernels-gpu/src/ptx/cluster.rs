//! Blocks of a cluster: who is there, signals to the barriers of another block, and copies that reach all of them.
//!
//! A kernel launched without a cluster shape runs in clusters of one block: everything here then means the block itself.

use super::SmemAddr;
use super::tma::TensorMapPtr;
use core::arch::asm;

/// Index of the block in its cluster. PTX: `mov.u32 d, %cluster_ctarank`. Called by any thread.
#[inline(always)]
pub fn rank() -> u32 {
    let rank: u32;
    // SAFETY: reads a special register that is constant for the life of the thread.
    unsafe { asm!("mov.u32 {}, %cluster_ctarank;", out(reg32) rank, options(pure, nomem, nostack)) };
    rank
}

/// As [`rank`], read anew: it need not be kept in a register.
#[inline(always)]
pub fn rank_again() -> u32 {
    let rank: u32;
    // SAFETY: as above; not `pure`, so that it is not read earlier and kept.
    unsafe { asm!("mov.u32 {}, %cluster_ctarank;", out(reg32) rank, options(nomem, nostack)) };
    rank
}

/// Blocks of the cluster. PTX: `mov.u32 d, %cluster_nctarank`. Called by any thread.
#[inline(always)]
pub fn blocks() -> u32 {
    let blocks: u32;
    // SAFETY: reads a special register that is constant for the life of the thread.
    unsafe { asm!("mov.u32 {}, %cluster_nctarank;", out(reg32) blocks, options(pure, nomem, nostack)) };
    blocks
}

/// Waits for every thread of every block of the cluster; what they wrote before is visible after it.
/// PTX: `barrier.cluster.arrive.release`, `barrier.cluster.wait.acquire`. Called by every thread.
///
/// # Safety
/// - Every thread of every block of the cluster gets here, or the cluster hangs.
#[inline(always)]
pub unsafe fn sync() {
    // SAFETY: the caller's obligation.
    unsafe { asm!("barrier.cluster.arrive.release; barrier.cluster.wait.acquire;") };
}

/// As [`sync`], but what threads wrote before need not be visible after it, except initialised barriers that a fence of their own
/// ([`super::mbarrier::init_fence`]) has made so: no memory barrier of the whole GPU.
/// PTX: `barrier.cluster.arrive.relaxed`, `barrier.cluster.wait.acquire`. Called by every thread.
///
/// # Safety
/// As [`sync`].
#[inline(always)]
pub unsafe fn meet() {
    // SAFETY: the caller's obligation.
    unsafe { asm!("barrier.cluster.arrive.relaxed; barrier.cluster.wait.acquire;") };
}

/// Where `on` is not 0, arrives once at the barrier that lies at `bar` in block `rank` of the cluster, after the thread's earlier
/// accesses as far as its own block is concerned. That is enough where what the barrier guards is shared memory of its own block, in which
/// it has ended all accesses, and which copies overwrite: there is no second copy of it to become visible later. (A release to the cluster is a
/// memory barrier of the whole GPU, and waits for every store to device memory that is still on its way.)
/// PTX: `mapa.shared::cluster.u32 r, bar, rank; @p mbarrier.arrive.shared::cluster.b64 _, [r]`.
/// Called by a thread, or by a warp with some lanes `on`.
///
/// # Safety
/// - `rank` is a block of the cluster that has not ended.
/// - `bar` is an initialised barrier there, whose current phase still expects this arrival, for the lanes that are `on`.
#[inline(always)]
pub unsafe fn arrive_if(bar: SmemAddr, rank: u32, on: u32) {
    // SAFETY: the caller's obligation.
    unsafe {
        asm!(
            "{{ .reg .pred p; .reg .b32 r; setp.ne.u32 p, {on}, 0; mapa.shared::cluster.u32 r, {bar}, {rank}; @p mbarrier.arrive.shared::cluster.b64 _, [r]; }}",
            bar = in(reg32) bar.0,
            rank = in(reg32) rank,
            on = in(reg32) on,
        );
    }
}

/// Where `on` is not 0, arrives once at the barrier that lies at `bar` in block `rank` of the cluster; what the thread wrote before, to whatever
/// block's shared memory, is visible to a thread that waits there with [`super::mbarrier::wait_cluster`]. A memory barrier of the whole GPU.
/// PTX: `mapa.shared::cluster.u32 r, bar, rank; @p mbarrier.arrive.release.cluster.shared::cluster.b64 _, [r]`.
/// Called by a thread, or by a warp with some lanes `on`.
///
/// # Safety
/// As [`arrive_if`].
#[inline(always)]
pub unsafe fn arrive_release_if(bar: SmemAddr, rank: u32, on: u32) {
    // SAFETY: the caller's obligation.
    unsafe {
        asm!(
            "{{ .reg .pred p; .reg .b32 r; setp.ne.u32 p, {on}, 0; mapa.shared::cluster.u32 r, {bar}, {rank}; @p mbarrier.arrive.release.cluster.shared::cluster.b64 _, [r]; }}",
            bar = in(reg32) bar.0,
            rank = in(reg32) rank,
            on = in(reg32) on,
        );
    }
}

/// A place in the shared memory of a block of the cluster.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct ClusterAddr(pub u32);

impl ClusterAddr {
    /// So many bytes further on.
    #[inline(always)]
    #[must_use]
    pub fn offset(self, bytes: u32) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}

/// What lies at `at` in block `rank` of the cluster. PTX: `mapa.shared::cluster.u32 d, at, rank`. Called by any thread.
#[inline(always)]
pub fn place(at: SmemAddr, rank: u32) -> ClusterAddr {
    let there: u32;
    // SAFETY: arithmetic; the address of a block that is not there is no error before it is used.
    unsafe {
        asm!("mapa.shared::cluster.u32 {}, {}, {};", out(reg32) there, in(reg32) at.0, in(reg32) rank, options(pure, nomem, nostack))
    };
    ClusterAddr(there)
}

/// Stores two words, one after the other, in the shared memory of a block of the cluster. PTX: `st.shared::cluster.v2.u32 [at], {v0, v1}`.
/// Called by a thread.
///
/// # Safety
/// - `at` is a multiple of eight in the shared memory of a block that has not ended; nobody else uses the words until a barrier orders it.
#[inline(always)]
pub unsafe fn st_v2_u32(at: ClusterAddr, [v0, v1]: [u32; 2]) {
    // SAFETY: the caller's obligation.
    unsafe { asm!("st.shared::cluster.v2.u32 [{}], {{{}, {}}};", in(reg32) at.0, in(reg32) v0, in(reg32) v1) };
}

/// Copies `bytes` of the block's own shared memory from `src` to `dst`, in a block of the cluster, whose barrier `bar`, in the same block, counts
/// them.
///
/// PTX: `elect.sync _|p, -1; @p cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [dst], [src], bytes, [bar]`.
/// Called by a whole warp with the same operands; one lane issues.
///
/// # Safety
/// - Addresses and `bytes` are multiples of 16, inside the blocks' shared memory; neither block ends before the copy is complete.
/// - `bar` is an initialised barrier whose current phase expects the bytes.
/// - What lies at `src` was written before, with [`super::fence::proxy_async_shared`] in between, and stays; nobody uses the destination until
///   that phase completes. All 32 lanes call it, converged.
#[inline(always)]
pub unsafe fn copy(dst: ClusterAddr, src: SmemAddr, bytes: u32, bar: ClusterAddr) {
    // SAFETY: the caller's obligation.
    unsafe {
        asm!(
            "{{ .reg .pred p; elect.sync _|p, -1; @p cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [{dst}], [{src}], {bytes}, [{bar}]; }}",
            dst = in(reg32) dst.0,
            src = in(reg32) src.0,
            bytes = in(reg32) bytes,
            bar = in(reg32) bar.0,
        );
    }
}

/// Loads a box of a 3D tensor at `coords` (elements, innermost first) to `dst` in every block of the cluster
/// whose bit is set in `mask`; each of them counts the bytes at its own barrier at `bar`.
///
/// PTX: `elect.sync _|p, -1; @p cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [dst],
/// [map, {c0, c1, c2}], [bar], mask`. Called by a whole warp with the same operands; one lane issues. (Where a predicate of any other
/// kind says which lane does, ptxas makes a loop over the lanes of each copy.)
///
/// # Safety
/// As [`super::tma::load_3d_if`], for destination and barrier of every block in `mask`; all 32 lanes call it, converged.
#[inline(always)]
pub unsafe fn load_3d(dst: SmemAddr, map: TensorMapPtr, bar: SmemAddr, coords: [i32; 3], mask: u16) {
    let [c0, c1, c2] = coords;
    // SAFETY: the caller's obligation.
    unsafe {
        asm!(
            "{{ .reg .pred p; elect.sync _|p, -1; @p cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [{dst}], [{map}, {{{c0}, {c1}, {c2}}}], [{bar}], {mask}; }}",
            dst = in(reg32) dst.0,
            map = in(reg64) map.0,
            bar = in(reg32) bar.0,
            c0 = in(reg32) c0,
            c1 = in(reg32) c1,
            c2 = in(reg32) c2,
            mask = in(reg16) mask,
        );
    }
}
