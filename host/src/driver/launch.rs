//! Shape and attributes of a launch, and its arguments.

use crate::error::{Error, Result};
use cudarc::driver::sys;
use std::ffi::c_void;
use std::marker::PhantomData;

/// Largest grid extent along x; along y and z it is 65,535.
const MAX_GRID: [u32; 3] = [0x7fff_ffff, 65_535, 65_535];
/// Blocks of a cluster that every GPU of compute capability 9.0 takes.
const MAX_CLUSTER: u32 = 8;
/// Attributes a launch may carry.
const MAX_ATTRIBUTES: usize = 2;

/// Grid and attributes of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Blocks of a cluster along x, y, z; each divides the grid's extent.
    pub cluster: Option<[u32; 3]>,
    /// Programmatic dependent launch: the kernel may start before its predecessor on the stream has ended. Only for
    /// kernels that wait (`griddepcontrol.wait`) before they touch what the predecessor writes.
    pub overlap: bool,
}

impl Launch {
    /// A grid without attributes.
    pub fn grid(x: usize, y: usize, z: usize) -> Self {
        // An extent that does not fit u32 saturates and is refused by `validate`.
        let fit = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Self { grid: [fit(x), fit(y), fit(z)], cluster: None, overlap: false }
    }

    /// With clusters of the given shape.
    pub fn cluster(self, shape: [u32; 3]) -> Self {
        Self { cluster: Some(shape), ..self }
    }

    /// With programmatic dependent launch on or off.
    pub fn overlap(self, on: bool) -> Self {
        Self { overlap: on, ..self }
    }

    /// Whether there is no block to run.
    pub fn is_empty(&self) -> bool {
        self.grid.contains(&0)
    }

    /// Checks the grid and the cluster against the hardware's limits.
    ///
    /// # Errors
    /// [`Error::Value`] naming the grid or the cluster and the kernel.
    pub fn validate(&self, entry: &str) -> Result<()> {
        if self.grid.iter().zip(MAX_GRID).any(|(&n, max)| n > max) {
            return Err(Error::value("grid", format!("at most {MAX_GRID:?} blocks for {entry}"), format!("{:?}", self.grid)));
        }
        let Some(shape) = self.cluster else { return Ok(()) };
        let blocks = shape.iter().try_fold(1u32, |n, &d| n.checked_mul(d)).unwrap_or(u32::MAX);
        let divides = shape.iter().zip(self.grid).all(|(&d, n)| d > 0 && n.is_multiple_of(d));
        if blocks > MAX_CLUSTER || !divides {
            let expected = format!("at most {MAX_CLUSTER} blocks in a shape that divides the grid {:?} of {entry}", self.grid);
            return Err(Error::value("cluster", expected, format!("{shape:?}")));
        }
        Ok(())
    }

    /// The driver's form of the attributes, and how many of them there are.
    pub(super) fn attributes(&self) -> ([sys::CUlaunchAttribute; MAX_ATTRIBUTES], u32) {
        let attribute = |id, value| sys::CUlaunchAttribute { id, pad: [0; 4], value };
        let zero = sys::CUlaunchAttributeValue { pad: [0; 64] };
        let mut list = [attribute(sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_IGNORE, zero); MAX_ATTRIBUTES];
        let mut count = 0;
        if let Some([x, y, z]) = self.cluster {
            let mut value = zero;
            value.clusterDim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y, z };
            list[count] = attribute(sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, value);
            count += 1;
        }
        if self.overlap {
            let mut value = zero;
            value.programmaticStreamSerializationAllowed = 1;
            list[count] = attribute(sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, value);
            count += 1;
        }
        (list, count as u32)
    }
}

/// One kernel argument: a borrowed `#[repr(C)]` value that the launch copies. A slice of them is the driver's array of
/// pointers as it stands.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Arg<'a> {
    at: *const c_void,
    borrowed: PhantomData<&'a ()>,
}

impl<'a> Arg<'a> {
    /// The bytes of `value` as one by-value parameter.
    pub fn of<T: Copy>(value: &'a T) -> Self {
        Self { at: std::ptr::from_ref(value).cast(), borrowed: PhantomData }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_at_the_limit_pass_and_past_it_do_not() {
        assert!(Launch::grid(0x7fff_ffff, 65_535, 65_535).validate("k").is_ok());
        for grid in
            [Launch::grid(0x8000_0000, 1, 1), Launch::grid(1, 65_536, 1), Launch::grid(1, 1, 65_536), Launch::grid(usize::MAX, 1, 1)]
        {
            assert!(matches!(grid.validate("k"), Err(Error::Value { name: "grid", .. })), "{grid:?}");
        }
        assert!(Launch::grid(3, 0, 1).is_empty() && !Launch::grid(3, 1, 1).is_empty());
    }

    #[test]
    fn clusters_must_be_small_and_divide_the_grid() {
        assert!(Launch::grid(4, 2, 1).cluster([2, 2, 1]).validate("k").is_ok());
        for shape in [[0, 1, 1], [3, 1, 1], [4, 4, 1], [u32::MAX, u32::MAX, 2]] {
            let err = Launch::grid(4, 2, 1).cluster(shape).validate("k");
            assert!(matches!(err, Err(Error::Value { name: "cluster", .. })), "{shape:?}");
        }
    }

    #[test]
    fn attributes_are_counted() {
        assert_eq!(Launch::grid(2, 1, 1).attributes().1, 0);
        let (list, count) = Launch::grid(2, 1, 1).cluster([2, 1, 1]).overlap(true).attributes();
        assert_eq!(count, 2);
        assert_eq!(list[1].id, sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION);
        // SAFETY: the field was written last.
        assert_eq!(unsafe { list[0].value.clusterDim }.x, 2);
    }
}
