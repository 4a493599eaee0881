//! What a warp of `select_stem` keeps in shared memory: the compiler would have to keep it in registers, or in local memory, through
//! stretches that need them all. Of a consumer that is where it is, of the others what they say.

use super::shared::Shared;
use crate::ptx::{SmemAddr, smem, special, warp};
use crate::tile::plan::Plan;

/// A place on a consumer warp's way.
#[derive(Clone, Copy)]
pub struct Place {
    /// Strips before the present one.
    pub strip: u32,
    /// First key block of the present span.
    pub first: i32,
    /// Spans before it, of all strips.
    pub spans: u32,
    /// Where it begins in the ring of key sums of `select_stem_wide`: stages before it, of all strips, modulo twice the ring's.
    pub ring: u32,
}

impl Place {
    /// Has the warp keep it.
    ///
    /// # Safety
    /// A whole warp calls it, converged.
    #[inline(always)]
    pub unsafe fn keep(self) {
        let thread = special::tid_x_again();
        let at = Shared::again().kept(thread / 32);
        let leader = thread.is_multiple_of(32) as u32;
        // SAFETY: the words are the warp's; no lane still reads what was there.
        unsafe {
            warp::sync();
            smem::st_v4_if(at, [self.strip, self.first as u32, self.spans, self.ring], leader);
            warp::sync();
        }
    }

    /// What the warp keeps, in a form ptxas knows to be the same in all lanes: it may decide about the warp's way.
    ///
    /// # Safety
    /// A whole warp calls it, converged, that keeps a place.
    #[inline(always)]
    pub unsafe fn kept() -> Self {
        // SAFETY: forwarded.
        unsafe {
            let words = smem::ld_v4(Shared::again().kept(special::tid_x_again() / 32));
            let [strip, first, spans, ring] = words.map(|word| warp::shfl_idx_u32(word, 0));
            Self { strip, first: first as i32, spans, ring }
        }
    }
}

/// The plan of the strip that the warp is at.
///
/// # Safety
/// The warp keeps a place.
#[inline(always)]
pub unsafe fn plan() -> Plan {
    let shared = Shared::again();
    // SAFETY: forwarded.
    shared.plan(unsafe { smem::ld_u32(shared.kept(special::tid_x_again() / 32)) })
}

/// Has the warp, one of those that sum, keep four words, the same in all lanes. There are three places, `SLOT` 0, 1 and 2.
///
/// # Safety
/// A whole warp calls it, converged.
#[inline(always)]
pub unsafe fn keep<const SLOT: u32>(words: [u32; 4]) {
    const { assert!(SLOT < 3) };
    // SAFETY: forwarded.
    unsafe { keep_at(Shared::again().side_kept(special::tid_x_again() / 32).offset(16 * SLOT), words) }
}

/// What the warp has kept last, in a form ptxas knows to be the same in all lanes: it may decide about the warp's way.
///
/// # Safety
/// As [`keep`], after it.
#[inline(always)]
pub unsafe fn kept_alike<const SLOT: u32>() -> [u32; 4] {
    // SAFETY: forwarded.
    unsafe { kept_at(Shared::again().side_kept(special::tid_x_again() / 32).offset(16 * SLOT)) }
}

/// As [`keep`], for warp `which` of the two that copy key sums in `select_stem_wide`.
///
/// # Safety
/// As [`keep`].
#[inline(always)]
pub unsafe fn keep_copy(which: u32, words: [u32; 4]) {
    // SAFETY: forwarded.
    unsafe { keep_at(Shared::again().copy_kept(which), words) }
}

/// As [`kept_alike`], of [`keep_copy`].
///
/// # Safety
/// As [`kept_alike`].
#[inline(always)]
pub unsafe fn copy_kept(which: u32) -> [u32; 4] {
    // SAFETY: forwarded.
    unsafe { kept_at(Shared::again().copy_kept(which)) }
}

#[inline(always)]
unsafe fn keep_at(at: SmemAddr, words: [u32; 4]) {
    // SAFETY: the place is the warp's; no lane still reads what was there.
    unsafe {
        warp::sync();
        smem::st_v4_if(at, words, special::tid_x_again().is_multiple_of(32) as u32);
        warp::sync();
    }
}

#[inline(always)]
unsafe fn kept_at(at: SmemAddr) -> [u32; 4] {
    // SAFETY: the place is the warp's.
    unsafe { smem::ld_v4(at).map(|word| warp::shfl_idx_u32(word, 0)) }
}
