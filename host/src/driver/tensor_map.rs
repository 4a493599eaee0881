//! Descriptors of the Tensor Memory Accelerator (TMA): which tensor a kernel's bulk copies read, in which boxes.

use super::{Device, driver_error};
use crate::error::{Error, Result};
use cudarc::driver::sys;
use std::ffi::c_void;

/// Most dimensions of a map.
const MAX_RANK: usize = 5;
/// Largest extent of a box.
const MAX_BOX: u32 = 256;
/// Addresses, strides and inner box rows come in units of 16 bytes.
const UNIT: u64 = 16;
/// Strides have 40 bits.
const MAX_STRIDE: u64 = 1 << 40;
/// Extents have 32 bits (stored less one).
const MAX_DIM: u64 = 1 << 32;

/// Type of a tensor's elements. e4m3 travels as bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementType {
    /// One byte.
    U8,
    /// bfloat16.
    Bf16,
    /// 32-bit float.
    F32,
}

impl ElementType {
    /// Bytes of one element.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::U8 => 1,
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    fn code(self) -> sys::CUtensorMapDataType {
        match self {
            Self::U8 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            Self::Bf16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            Self::F32 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        }
    }
}

/// How the 16-byte chunks of a box row are permuted in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    /// As they come.
    None,
    /// Within 32 bytes.
    B32,
    /// Within 64 bytes.
    B64,
    /// Within 128 bytes: what the wgmma operands use.
    B128,
}

impl Swizzle {
    /// Longest inner box row in bytes; `None` is limited only by the box.
    const fn span(self) -> Option<u64> {
        match self {
            Self::None => None,
            Self::B32 => Some(32),
            Self::B64 => Some(64),
            Self::B128 => Some(128),
        }
    }

    fn code(self) -> sys::CUtensorMapSwizzle {
        match self {
            Self::None => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
            Self::B32 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_32B,
            Self::B64 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
            Self::B128 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        }
    }
}

/// A tensor in device memory and the box that one copy moves. What lies outside the tensor reads as zero.
#[derive(Clone, Copy, Debug)]
pub struct TensorMapDesc<'a> {
    /// Name that errors show.
    pub name: &'static str,
    /// Element type.
    pub element: ElementType,
    /// Device address of element 0.
    pub address: u64,
    /// Bytes of the buffer from `address` on: the tensor must end inside.
    pub bytes: u64,
    /// Extents, innermost (contiguous) first; 1 to 5 of them.
    pub dims: &'a [u64],
    /// Bytes from one index to the next, for every dimension but the innermost.
    pub strides: &'a [u64],
    /// Extents of the box, innermost first.
    pub box_dims: &'a [u32],
    /// Order of the box in shared memory.
    pub swizzle: Swizzle,
}

impl TensorMapDesc<'_> {
    /// Checks every limit of the hardware, and that the tensor lies inside its buffer.
    ///
    /// # Errors
    /// [`Error::Value`] or [`Error::Shape`] naming the map and what is wrong with it.
    pub fn validate(&self) -> Result<()> {
        let value = |expected: String, got: String| Err(Error::value(self.name, expected, got));
        let rank = self.dims.len();
        if rank == 0 || rank > MAX_RANK {
            return Err(Error::shape(self.name, format!("1 to {MAX_RANK} dimensions"), rank));
        }
        if self.strides.len() + 1 != rank || self.box_dims.len() != rank {
            let got = format!("{} strides, {} box extents", self.strides.len(), self.box_dims.len());
            return Err(Error::shape(self.name, format!("{} strides and {rank} box extents", rank - 1), got));
        }
        if self.address == 0 || !self.address.is_multiple_of(UNIT) {
            return value(format!("an address that is a multiple of {UNIT}"), format!("{:#x}", self.address));
        }
        if let Some(d) = self.dims.iter().find(|&&d| d == 0 || d > MAX_DIM) {
            return value("extents from 1 to 2^32".into(), format!("{d} in {:?}", self.dims));
        }
        if let Some(s) = self.strides.iter().find(|&&s| !s.is_multiple_of(UNIT) || s >= MAX_STRIDE) {
            return value(format!("strides that are multiples of {UNIT} below 2^40 bytes"), format!("{s} in {:?}", self.strides));
        }
        if let Some(b) = self.box_dims.iter().find(|&&b| b == 0 || b > MAX_BOX) {
            return value(format!("box extents from 1 to {MAX_BOX}"), format!("{b} in {:?}", self.box_dims));
        }
        let row = self.box_dims.first().map_or(0, |&b| u64::from(b) * self.element.bytes());
        if !row.is_multiple_of(UNIT) {
            return value(format!("an inner box row that is a multiple of {UNIT} bytes"), format!("{row} bytes"));
        }
        if let Some(span) = self.swizzle.span().filter(|&span| row > span) {
            return value(format!("an inner box row of at most {span} bytes with swizzle {:?}", self.swizzle), format!("{row} bytes"));
        }
        match self.end() {
            Some(end) if end <= u128::from(self.bytes) => Ok(()),
            end => {
                let needed = end.map_or("more than fits an address".into(), |n| n.to_string());
                Err(Error::shape(self.name, format!("a buffer of at least {needed} bytes"), self.bytes))
            }
        }
    }

    /// Bytes from the first element to the end of the last.
    fn end(&self) -> Option<u128> {
        let inner = u128::from(*self.dims.first()?) * u128::from(self.element.bytes());
        let mut outer = self.dims.iter().skip(1).zip(self.strides).map(|(&d, &s)| u128::from(d.saturating_sub(1)) * u128::from(s));
        outer.try_fold(inner, u128::checked_add)
    }
}

/// An encoded map: 128 bytes that a kernel takes by value. It holds an address, not the buffer: keep that alive.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMap([u64; 16]);

const _: () = assert!(size_of::<TensorMap>() == size_of::<sys::CUtensorMap>());

impl TensorMap {
    /// Encodes a description for a device's TMA.
    ///
    /// # Errors
    /// As [`TensorMapDesc::validate`]; [`Error::Driver`] when the driver refuses what passed it.
    pub fn encode(_device: &Device, desc: &TensorMapDesc<'_>) -> Result<Self> {
        desc.validate()?;
        let mut raw = sys::CUtensorMap { opaque: [0; 16] };
        // The driver reads one element stride per dimension: every element is taken.
        let element_strides = [1u32; MAX_RANK];
        // SAFETY: the device proves that the driver is loaded; `raw` is writable and aligned; the arrays have `rank` entries
        // (strides one fewer), as `validate` checked. The address is stored, not read.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut raw,
                desc.element.code(),
                desc.dims.len() as u32,
                std::ptr::without_provenance_mut::<c_void>(desc.address as usize),
                desc.dims.as_ptr(),
                desc.strides.as_ptr(),
                desc.box_dims.as_ptr(),
                element_strides.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                desc.swizzle.code(),
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .map_err(driver_error("cuTensorMapEncodeTiled"))?;
        Ok(Self(raw.opaque))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIMS: [u64; 4] = [128, 64, 4, 10];
    const STRIDES: [u64; 3] = [512, 128, 32_768];
    const BOX: [u32; 4] = [128, 64, 1, 1];

    fn pages() -> TensorMapDesc<'static> {
        TensorMapDesc {
            name: "k_pages",
            element: ElementType::U8,
            address: 0x7f00_0000_0000,
            bytes: 10 * 32_768,
            dims: &DIMS,
            strides: &STRIDES,
            box_dims: &BOX,
            swizzle: Swizzle::B128,
        }
    }

    #[test]
    fn a_paged_tensor_passes_and_fills_its_buffer_to_the_byte() {
        assert!(pages().validate().is_ok());
        assert!(matches!(TensorMapDesc { bytes: 10 * 32_768 - 1, ..pages() }.validate(), Err(Error::Shape { tensor: "k_pages", .. })));
    }

    #[test]
    fn every_limit_is_checked() {
        let bad = [
            ("no dimension", TensorMapDesc { dims: &[], ..pages() }),
            ("six dimensions", TensorMapDesc { dims: &[16; 6], strides: &[16; 5], box_dims: &[16; 6], ..pages() }),
            ("too few strides", TensorMapDesc { strides: &[512, 128], ..pages() }),
            ("too few box extents", TensorMapDesc { box_dims: &[128, 64, 1], ..pages() }),
            ("null", TensorMapDesc { address: 0, ..pages() }),
            ("unaligned address", TensorMapDesc { address: 0x7f00_0000_0008, ..pages() }),
            ("empty dimension", TensorMapDesc { dims: &[128, 64, 0, 10], ..pages() }),
            ("huge dimension", TensorMapDesc { dims: &[128, 64, 4, (1 << 32) + 1], ..pages() }),
            ("odd stride", TensorMapDesc { strides: &[520, 128, 32_768], ..pages() }),
            ("long stride", TensorMapDesc { strides: &[512, 128, 1 << 40], ..pages() }),
            ("empty box", TensorMapDesc { box_dims: &[128, 0, 1, 1], ..pages() }),
            ("large box", TensorMapDesc { box_dims: &[128, 257, 1, 1], ..pages() }),
            ("odd inner row", TensorMapDesc { box_dims: &[120, 64, 1, 1], ..pages() }),
            ("row past the swizzle", TensorMapDesc { swizzle: Swizzle::B64, ..pages() }),
            ("row past the swizzle, wide elements", TensorMapDesc { element: ElementType::Bf16, bytes: u64::MAX, ..pages() }),
            ("past the buffer", TensorMapDesc { dims: &[128, 64, 4, 11], ..pages() }),
            ("far past the buffer", TensorMapDesc { dims: &[128, 64, 4, 1 << 32], strides: &[512, 128, (1 << 40) - 16], ..pages() }),
        ];
        for (what, desc) in bad {
            assert!(desc.validate().is_err(), "{what}");
        }
    }

    #[test]
    fn rank_one_without_swizzle_passes() {
        let desc = TensorMapDesc { dims: &[256], strides: &[], box_dims: &[256], swizzle: Swizzle::None, bytes: 256, ..pages() };
        assert!(desc.validate().is_ok());
    }
}
