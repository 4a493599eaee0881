//! Device memory: allocations of the process, their extents known, so that every access can be checked.

use crate::fault::{Result, fault};
use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

/// Alignment of an allocation, as the driver gives it.
const ALIGN: usize = 256;
/// What fresh memory holds: no number that a kernel could take for its own zero.
const FRESH: u8 = 0xa5;

/// Address and bytes of every allocation.
static ALLOCATIONS: RwLock<BTreeMap<u64, usize>> = RwLock::new(BTreeMap::new());

fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes.max(1).checked_next_multiple_of(ALIGN)?, ALIGN).ok()
}

/// Allocates `bytes` and returns their address, or nothing where the process has no memory left.
pub fn allocate(bytes: usize) -> Option<u64> {
    let layout = layout(bytes)?;
    // SAFETY: the layout's size is not 0.
    let at = unsafe { alloc(layout) };
    if at.is_null() {
        return None;
    }
    // SAFETY: just allocated with this size.
    unsafe { at.write_bytes(FRESH, layout.size()) };
    ALLOCATIONS.write().unwrap_or_else(PoisonError::into_inner).insert(at as u64, bytes);
    Some(at as u64)
}

/// Frees an allocation; says whether there was one at this address.
pub fn free(at: u64) -> bool {
    let bytes = ALLOCATIONS.write().unwrap_or_else(PoisonError::into_inner).remove(&at);
    match bytes.and_then(layout) {
        Some(layout) => {
            // SAFETY: `allocate` made it with this layout, and it was in the table until now.
            unsafe { dealloc(at as *mut u8, layout) };
            true
        }
        None => false,
    }
}

/// First and one past the last address of the allocation that holds `bytes` at an address.
///
/// # Errors
/// When they lie in no allocation, or not wholly in one; the message names the neighbours.
pub fn extent(at: u64, bytes: u64) -> Result<(u64, u64)> {
    let all = ALLOCATIONS.read().unwrap_or_else(PoisonError::into_inner);
    let before = all.range(..=at).next_back().map(|(a, n)| (*a, a + *n as u64));
    match before {
        Some((first, end)) if at.checked_add(bytes).is_some_and(|last| last <= end) => return Ok((first, end)),
        Some((first, end)) if at < end => fault!("global access of {bytes} bytes at {at:#x} passes the end of {first:#x}..{end:#x}"),
        _ => {}
    }
    let shown = |x: Option<(u64, u64)>| x.map_or("nothing".to_owned(), |(a, b)| format!("{a:#x}..{b:#x}"));
    let after = all.range(at..).next().map(|(a, n)| (*a, a + *n as u64));
    fault!("global access of {bytes} bytes at {at:#x} in no allocation; before it {}, after it {}", shown(before), shown(after))
}

/// Copies from device memory.
///
/// # Errors
/// As [`extent`].
pub fn read(at: u64, out: &mut [u8]) -> Result<()> {
    extent(at, out.len() as u64)?;
    // SAFETY: the allocation holds that many bytes; `out` is memory of Rust, which no allocation overlaps.
    unsafe { std::ptr::copy_nonoverlapping(at as *const u8, out.as_mut_ptr(), out.len()) };
    Ok(())
}

/// Copies to device memory.
///
/// # Errors
/// As [`extent`].
pub fn write(at: u64, data: &[u8]) -> Result<()> {
    extent(at, data.len() as u64)?;
    // SAFETY: as in `read`.
    unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), at as *mut u8, data.len()) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_known_and_passing_them_is_an_error() {
        let at = allocate(100).unwrap();
        assert_eq!(extent(at + 99, 1).unwrap(), (at, at + 100));
        assert!(extent(at + 99, 2).unwrap_err().to_string().contains("passes the end"));
        assert!(extent(8, 4).unwrap_err().to_string().contains("in no allocation"));
        assert!(extent(at, u64::MAX).is_err());
        write(at + 4, &[1, 2, 3]).unwrap();
        let mut out = [0; 4];
        read(at + 3, &mut out).unwrap();
        assert_eq!(out, [FRESH, 1, 2, 3]);
        assert!(free(at));
        assert!(!free(at));
        assert!(read(at, &mut out).is_err());
    }
}
