//! A ring of shared-memory stages guarded by pairs of mbarriers: "full" completes when the copy engine has written the
//! stage, "empty" when every consumer warpgroup has read it.

use crate::ptx::{SmemAddr, mbarrier};

/// Bytes of one mbarrier.
pub const BARRIER_BYTES: u32 = 8;

/// Ring of `STAGES` stages; its `2 * STAGES` barriers lie one after another at `barriers`.
#[derive(Clone, Copy)]
pub struct Ring<const STAGES: u32> {
    barriers: SmemAddr,
}

/// Position in a ring: how many stages have gone by. Stage and parity are bits of it, so that a loop counter is a cursor
/// and costs no register of its own.
#[derive(Clone, Copy)]
pub struct Cursor<const STAGES: u32>(u32);

impl<const STAGES: u32> Cursor<STAGES> {
    /// Position number `n` from the start.
    #[inline(always)]
    pub fn at(n: u32) -> Self {
        const { assert!(STAGES.is_power_of_two()) };
        Self(n)
    }

    /// The stage.
    #[inline(always)]
    pub fn stage(self) -> u32 {
        self.0 % STAGES
    }

    /// Parity of the pass over the ring.
    #[inline(always)]
    fn parity(self) -> u32 {
        self.0 / STAGES % 2
    }
}

impl<const STAGES: u32> Ring<STAGES> {
    /// Bytes its barriers take.
    pub const BYTES: u32 = 2 * STAGES * BARRIER_BYTES;

    /// The ring whose barriers lie at `barriers`.
    #[inline(always)]
    pub fn at(barriers: SmemAddr) -> Self {
        Self { barriers }
    }

    /// Barrier that completes when stage data has arrived.
    #[inline(always)]
    pub fn full(self, at: Cursor<STAGES>) -> SmemAddr {
        self.barriers.offset(at.stage() * BARRIER_BYTES)
    }

    #[inline(always)]
    fn empty(self, at: Cursor<STAGES>) -> SmemAddr {
        self.barriers.offset((STAGES + at.stage()) * BARRIER_BYTES)
    }

    /// Initialises the barriers: a stage is full after one arrival and its bytes, empty after `consumers` arrivals.
    ///
    /// # Safety
    /// One thread, before any other use; followed by `mbarrier::init_fence` and a block barrier.
    #[inline(always)]
    pub unsafe fn init(self, consumers: u32) {
        // SAFETY: forwarded.
        unsafe { self.init_for(1, consumers) }
    }

    /// As [`Ring::init`], for stages that are full after `producers` arrivals and their bytes.
    ///
    /// # Safety
    /// As [`Ring::init`].
    #[inline(always)]
    pub unsafe fn init_for(self, producers: u32, consumers: u32) {
        let mut stage = 0;
        while stage < STAGES {
            let at = Cursor::at(stage);
            // SAFETY: the caller owns this shared memory and no one uses the barriers yet.
            unsafe {
                mbarrier::init(self.full(at), producers);
                mbarrier::init(self.empty(at), consumers);
            }
            stage += 1;
        }
    }

    /// Producer: waits until the stage may be overwritten (at once on the first pass).
    ///
    /// # Safety
    /// The ring is initialised.
    #[inline(always)]
    pub unsafe fn wait_empty(self, at: Cursor<STAGES>) {
        // SAFETY: forwarded. The parity of a barrier's "previous phase" is 1 before its first completion.
        unsafe { mbarrier::wait(self.empty(at), at.parity() ^ 1) }
    }

    /// Consumer: waits until the stage's data is there.
    ///
    /// # Safety
    /// The ring is initialised.
    #[inline(always)]
    pub unsafe fn wait_full(self, at: Cursor<STAGES>) {
        // SAFETY: forwarded.
        unsafe { mbarrier::wait(self.full(at), at.parity()) }
    }

    /// Consumer: gives the stage back; counts where `on` is 1 (one thread a warpgroup).
    ///
    /// # Safety
    /// The warpgroup's reads of the stage are complete.
    #[inline(always)]
    pub unsafe fn release(self, at: Cursor<STAGES>, on: u32) {
        // SAFETY: forwarded.
        unsafe { mbarrier::arrive_if(self.empty(at), on) }
    }
}
