//! A ring of any number of stages, whose readers and writers may sit in several blocks of a cluster.

use crate::ptx::{SmemAddr, mbarrier};

/// Position in a ring: the stage, and the parity of the pass over the ring.
#[derive(Clone, Copy)]
pub struct Turn<const N: u32> {
    stage: u32,
    parity: u32,
}

impl<const N: u32> Turn<N> {
    /// The first stage of the first pass.
    pub const START: Self = Self { stage: 0, parity: 0 };

    /// Position number `n` from the start.
    #[inline(always)]
    pub fn at(n: u32) -> Self {
        Self { stage: n % N, parity: n / N % 2 }
    }

    /// This stage, in a pass of this parity.
    #[inline(always)]
    pub fn new(stage: u32, parity: u32) -> Self {
        Self { stage, parity }
    }

    /// Position number `n` of a ring of which only `stages` are in use, a power of two up to `N`.
    #[inline(always)]
    pub fn of(n: u32, stages: u32) -> Self {
        Self { stage: n & (stages - 1), parity: (n >> stages.trailing_zeros()) % 2 }
    }

    /// How many positions it is from the first stage of a pass of parity 0.
    #[inline(always)]
    pub fn number(self) -> u32 {
        self.parity * N + self.stage
    }

    /// The stage.
    #[inline(always)]
    pub fn stage(self) -> u32 {
        self.stage
    }

    /// The parity of the pass over the ring.
    #[inline(always)]
    pub fn parity(self) -> u32 {
        self.parity
    }

    /// The position after this one.
    #[inline(always)]
    #[must_use]
    pub fn next(self) -> Self {
        self.next_of(N)
    }

    /// The same, where only `stages` are in use.
    #[inline(always)]
    #[must_use]
    pub fn next_of(self, stages: u32) -> Self {
        let wraps = self.stage + 1 == stages;
        Self { stage: if wraps { 0 } else { self.stage + 1 }, parity: self.parity ^ wraps as u32 }
    }
}

/// The barriers of a ring: `N` that complete when a stage is full, then `N` that complete when it is empty again. A ring may be used
/// with fewer stages.
#[derive(Clone, Copy)]
pub struct Stages<const N: u32>(pub SmemAddr);

impl<const N: u32> Stages<N> {
    /// Barrier that completes when the stage is full.
    #[inline(always)]
    pub fn full(self, at: Turn<N>) -> SmemAddr {
        self.0.offset(at.stage * 8)
    }

    /// Barrier that completes when the stage may be filled again.
    #[inline(always)]
    pub fn empty(self, at: Turn<N>) -> SmemAddr {
        self.0.offset((N + at.stage) * 8)
    }

    /// Initialises the barriers for so many arrivals a phase.
    ///
    /// # Safety
    /// One thread, before any other use; followed by `mbarrier::init_fence` and a barrier of all that use the ring.
    #[inline(always)]
    pub unsafe fn init(self, full: u32, empty: u32) {
        let mut at = Turn::START;
        let mut stage = 0;
        while stage < N {
            // SAFETY: the caller owns this shared memory and no one uses the barriers yet.
            unsafe {
                mbarrier::init(self.full(at), full);
                mbarrier::init(self.empty(at), empty);
            }
            at = at.next();
            stage += 1;
        }
    }

    /// Waits until the stage is full.
    ///
    /// # Safety
    /// The ring is initialised, and somebody fills the stage.
    #[inline(always)]
    pub unsafe fn wait_full(self, at: Turn<N>) {
        // SAFETY: forwarded.
        unsafe { mbarrier::wait(self.full(at), at.parity) }
    }

    /// Whether the stage is full.
    ///
    /// # Safety
    /// As [`Stages::wait_full`].
    #[inline(always)]
    pub unsafe fn is_full(self, at: Turn<N>) -> bool {
        // SAFETY: forwarded.
        unsafe { mbarrier::test_wait(self.full(at), at.parity) }
    }

    /// As [`Stages::wait_full`] where `on`; where not, asks once, and goes on. (A branch on `on` around the wait could be moved over
    /// what follows.)
    ///
    /// # Safety
    /// As [`Stages::wait_full`].
    #[inline(always)]
    pub unsafe fn wait_full_if(self, at: Turn<N>, on: bool) {
        // SAFETY: forwarded.
        unsafe { while !(mbarrier::try_wait(self.full(at), at.parity) | !on) {} }
    }

    /// Waits until the stage may be filled (at once on the first pass).
    ///
    /// # Safety
    /// The ring is initialised, and its readers give the stage back.
    #[inline(always)]
    pub unsafe fn wait_empty(self, at: Turn<N>) {
        // SAFETY: forwarded. The parity of a barrier's "previous phase" is 1 before its first completion.
        unsafe { mbarrier::wait(self.empty(at), at.parity ^ 1) }
    }
}
