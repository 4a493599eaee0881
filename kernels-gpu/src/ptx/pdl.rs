//! Programmatic dependent launch: letting the next kernel of a stream start before this one ends.
//!
//! Both do nothing in a kernel that was launched without the attribute.

use core::arch::asm;

/// Lets the dependent kernel be scheduled once every block has come here (or ended).
/// PTX: `griddepcontrol.launch_dependents`. Called by any thread of each block.
///
/// # Safety
/// None by itself: it says nothing about memory. What the next kernel reads is ordered by its own [`wait`].
#[inline(always)]
pub unsafe fn launch_dependents() {
    // SAFETY: a scheduling hint.
    unsafe { asm!("griddepcontrol.launch_dependents;") };
}

/// Waits until the kernels this one depends on have ended and their writes are visible. PTX: `griddepcontrol.wait`.
/// Called by every thread that reads what they wrote, or that writes what they read.
///
/// # Safety
/// None by itself; accesses of shared data of the previous kernel come after it.
#[inline(always)]
pub unsafe fn wait() {
    // SAFETY: a wait without operands.
    unsafe { asm!("griddepcontrol.wait;") };
}
