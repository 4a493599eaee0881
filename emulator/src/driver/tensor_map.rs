//! Tensor maps.

use super::{Code, INVALID_VALUE, complain, give};
use crate::machine::{Map, RANK};
use std::ffi::c_uint;

/// Bytes of an element of `CUtensorMapDataType`.
fn element(ty: c_uint) -> Option<u64> {
    Some(match ty {
        0 => 1,
        1 | 6 | 9 => 2,
        2 | 3 | 7 => 4,
        4 | 5 | 8 => 8,
        _ => return None,
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuTensorMapEncodeTiled(
    to: *mut [u64; 16],
    ty: c_uint,
    rank: c_uint,
    at: u64,
    extents: *const u64,
    strides: *const u64,
    boxes: *const u32,
    steps: *const u32,
    interleave: c_uint,
    swizzle: c_uint,
    _: c_uint,
    fill: c_uint,
) -> Code {
    let rank = rank as usize;
    let (Some(element), 1..=RANK) = (element(ty), rank) else { return INVALID_VALUE };
    let pointers = [extents.is_null(), boxes.is_null(), steps.is_null(), rank > 1 && strides.is_null()];
    if pointers.contains(&true) {
        return INVALID_VALUE;
    }
    let (mut extent_of, mut stride_of, mut box_of) = ([1; RANK], [0; RANK], [1; RANK]);
    stride_of[0] = element;
    let mut steps_are_one = true;
    for i in 0..rank {
        // SAFETY: the driver's contract: `rank` numbers each, and one less of strides.
        unsafe {
            extent_of[i] = *extents.add(i);
            box_of[i] = u64::from(*boxes.add(i));
            steps_are_one &= *steps.add(i) == 1;
            if i > 0 {
                stride_of[i] = *strides.add(i - 1);
            }
        }
    }
    let map = Map { element, swizzle, rank, at, extents: extent_of, strides: stride_of, box_extents: box_of };
    match refused(&map, steps_are_one && interleave == 0 && fill == 0) {
        Some(reason) => complain(INVALID_VALUE, &format!("tensor map: {reason}: {map:?}")),
        None => give!(to, map.encode()),
    }
}

/// Why hardware, or this machine, would not take a map.
fn refused(map: &Map, plain: bool) -> Option<&'static str> {
    let row = map.row_bytes();
    let width = [u64::MAX, 32, 64, 128].get(map.swizzle as usize).copied();
    let outer = 1..map.rank;
    if !plain {
        Some("element strides, interleaving and fills other than zeros are not modelled")
    } else if !map.at.is_multiple_of(16) || map.strides[outer.clone()].iter().any(|s| !s.is_multiple_of(16) || *s >= 1 << 40) {
        Some("address or strides are not aligned to 16 bytes")
    } else if map.extents.iter().any(|n| *n == 0 || *n > 1 << 32) || map.box_extents.iter().any(|n| !(1..=256).contains(n)) {
        Some("extents out of range")
    } else if !row.is_multiple_of(16) || width.is_none_or(|w| row > w) {
        Some("rows of a box that are no multiple of 16 bytes, or longer than the swizzle")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_that_hardware_would_refuse_is_refused() {
        let good = Map {
            element: 1,
            swizzle: 3,
            rank: 2,
            at: 4096,
            extents: [128, 100, 1, 1, 1],
            strides: [1, 128, 0, 0, 0],
            box_extents: [128, 64, 1, 1, 1],
        };
        assert_eq!(refused(&good, true), None);
        assert!(refused(&good, false).is_some());
        assert!(refused(&Map { at: 4104, ..good.clone() }, true).is_some());
        assert!(refused(&Map { swizzle: 2, ..good.clone() }, true).is_some());
        assert!(refused(&Map { strides: [1, 100, 0, 0, 0], ..good.clone() }, true).is_some());
        assert!(refused(&Map { box_extents: [128, 257, 1, 1, 1], ..good }, true).is_some());
    }
}
