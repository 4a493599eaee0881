//! Where a consumer warp of `select_stem` is, kept in shared memory: the compiler would have to keep it in registers, or in local memory,
//! through stretches that need them all.

use super::scores::Shared;
use crate::ptx::{smem, special, warp};
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
            smem::st_v4_if(at, [self.strip, self.first as u32, self.spans, 0], leader);
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
            let [strip, first, spans, _] = words.map(|word| warp::shfl_idx_u32(word, 0));
            Self { strip, first: first as i32, spans }
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
