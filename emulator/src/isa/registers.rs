//! The registers of a warp, and their lanes as numbers.

use crate::num::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use crate::ptx::{Counts, D, P, W};
use std::ops::{Index, IndexMut};

/// Lanes of a warp.
pub const LANES: usize = 32;
/// All of them.
pub const ALL: u32 = !0;

/// The lanes of a mask, lowest first.
pub fn lanes(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = mask.trailing_zeros();
        mask &= mask.wrapping_sub(1);
        (lane < 32).then_some(lane as usize)
    })
}

/// The lowest lane of a mask; 0 of none.
pub fn first(mask: u32) -> usize {
    mask.trailing_zeros() as usize % LANES
}

/// Registers of a warp. A register number comes from a kernel that was decoded, which knows how many there are.
#[derive(Clone, Debug, Default)]
pub struct Registers {
    p: Vec<u32>,
    w: Vec<[u32; LANES]>,
    d: Vec<[u64; LANES]>,
}

impl Registers {
    /// Registers whose every lane holds `poison`.
    pub fn new(counts: Counts, poison: u64) -> Self {
        let (p, w, d) = (counts.p as usize, counts.w as usize, counts.d as usize);
        Self { p: vec![poison as u32; p], w: vec![[poison as u32; LANES]; w], d: vec![[poison; LANES]; d] }
    }

    /// Sets the predicates of the lanes in `mask`.
    #[inline(always)]
    pub fn set(&mut self, p: P, bits: u32, mask: u32) {
        let old = &mut self[p];
        *old = *old & !mask | bits & mask;
    }

    /// Lane by lane, one operand.
    #[inline(always)]
    pub(super) fn map1<A: Lane, R: Lane>(&mut self, d: R::Name, a: A::Name, mask: u32, f: impl Fn(A) -> R) {
        if mask == ALL {
            let x = A::row(self, a);
            let out = std::array::from_fn(|i| f(A::get(x, i)));
            R::put_all(self, d, out);
        } else {
            for i in lanes(mask) {
                let value = f(A::get(A::row(self, a), i));
                R::put(self, d, i, value);
            }
        }
    }

    /// Lane by lane, two operands.
    #[inline(always)]
    pub(super) fn map2<A: Lane, B: Lane, R: Lane>(&mut self, d: R::Name, (a, b): (A::Name, B::Name), mask: u32, f: impl Fn(A, B) -> R) {
        if mask == ALL {
            let (x, y) = (A::row(self, a), B::row(self, b));
            let out = std::array::from_fn(|i| f(A::get(x, i), B::get(y, i)));
            R::put_all(self, d, out);
        } else {
            for i in lanes(mask) {
                let value = f(A::get(A::row(self, a), i), B::get(B::row(self, b), i));
                R::put(self, d, i, value);
            }
        }
    }

    /// Lane by lane, three operands.
    #[inline(always)]
    pub(super) fn map3<A: Lane, B: Lane, C: Lane, R: Lane>(
        &mut self,
        d: R::Name,
        (a, b, c): (A::Name, B::Name, C::Name),
        mask: u32,
        f: impl Fn(A, B, C) -> R,
    ) {
        if mask == ALL {
            let (x, y, z) = (A::row(self, a), B::row(self, b), C::row(self, c));
            let out = std::array::from_fn(|i| f(A::get(x, i), B::get(y, i), C::get(z, i)));
            R::put_all(self, d, out);
        } else {
            for i in lanes(mask) {
                let value = f(A::get(A::row(self, a), i), B::get(B::row(self, b), i), C::get(C::row(self, c), i));
                R::put(self, d, i, value);
            }
        }
    }
}

macro_rules! file {
    ($name:ident, $field:ident, $row:ty) => {
        impl Index<$name> for Registers {
            type Output = $row;
            #[inline(always)]
            fn index(&self, r: $name) -> &$row {
                &self.$field[r.0 as usize]
            }
        }
        impl IndexMut<$name> for Registers {
            #[inline(always)]
            fn index_mut(&mut self, r: $name) -> &mut $row {
                &mut self.$field[r.0 as usize]
            }
        }
    };
}
file!(P, p, u32);
file!(W, w, [u32; LANES]);
file!(D, d, [u64; LANES]);

/// A number as an instruction sees it in one lane of a register.
pub(super) trait Lane: Copy {
    /// Names of the registers that hold such numbers.
    type Name: super::name::Name;
    /// All lanes of one of them.
    type Row<'a>: Copy;
    /// The lanes of a register.
    fn row(registers: &Registers, name: Self::Name) -> Self::Row<'_>;
    /// One of them.
    fn get(row: Self::Row<'_>, lane: usize) -> Self;
    /// Writes one lane.
    fn put(registers: &mut Registers, name: Self::Name, lane: usize, value: Self);
    /// Writes all lanes.
    fn put_all(registers: &mut Registers, name: Self::Name, values: [Self; LANES]);
}

/// Numbers that a register holds in some encoding of its bits.
macro_rules! encoded {
    ($($ty:ty, $name:ident, $raw:ty, |$bits:ident| $decode:expr, |$value:ident| $encode:expr;)*) => {$(
        impl Lane for $ty {
            type Name = $name;
            type Row<'a> = &'a [$raw; LANES];
            #[inline(always)]
            fn row(registers: &Registers, name: $name) -> &[$raw; LANES] {
                &registers[name]
            }
            #[inline(always)]
            fn get(row: &[$raw; LANES], lane: usize) -> Self {
                let $bits = row[lane];
                $decode
            }
            #[inline(always)]
            fn put(registers: &mut Registers, name: $name, lane: usize, $value: Self) {
                registers[name][lane] = $encode;
            }
            #[inline(always)]
            fn put_all(registers: &mut Registers, name: $name, values: [Self; LANES]) {
                registers[name] = values.map(|$value| $encode);
            }
        }
    )*};
}

encoded! {
    u32, W, u32, |x| x, |v| v;
    i32, W, u32, |x| x as i32, |v| v as u32;
    u16, W, u32, |x| x as u16, |v| u32::from(v);
    i16, W, u32, |x| x as i16, |v| u32::from(v as u16);
    u8, W, u32, |x| x as u8, |v| u32::from(v);
    i8, W, u32, |x| x as i8, |v| v as i32 as u32;
    f32, W, u32, |x| f32::from_bits(x), |v| canonical(v);
    H2, W, u32, |x| H2::from_bits(x), |v| v.to_bits();
    B2, W, u32, |x| B2::from_bits(x), |v| v.to_bits();
    u64, D, u64, |x| x, |v| v;
    i64, D, u64, |x| x as i64, |v| v as u64;
    f64, D, u64, |x| f64::from_bits(x), |v| v.to_bits();
}

/// The bits of a result; PTX has one NaN where a processor has many.
#[inline(always)]
fn canonical(x: f32) -> u32 {
    if x.is_nan() { 0x7fff_ffff } else { x.to_bits() }
}

impl Lane for bool {
    type Name = P;
    type Row<'a> = u32;
    #[inline(always)]
    fn row(registers: &Registers, name: P) -> u32 {
        registers[name]
    }
    #[inline(always)]
    fn get(row: u32, lane: usize) -> bool {
        row >> lane & 1 != 0
    }
    #[inline(always)]
    fn put(registers: &mut Registers, name: P, lane: usize, value: bool) {
        registers.set(name, u32::from(value) << lane, 1 << lane);
    }
    #[inline(always)]
    fn put_all(registers: &mut Registers, name: P, values: [bool; LANES]) {
        registers[name] = values.iter().enumerate().fold(0, |bits, (i, v)| bits | u32::from(*v) << i);
    }
}

/// Two f16 numbers in a register, the lower half first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct H2(pub(super) f32, pub(super) f32);

impl H2 {
    /// The numbers of a register's bits.
    #[inline(always)]
    pub(super) fn from_bits(bits: u32) -> Self {
        Self(f16_to_f32(bits as u16), f16_to_f32((bits >> 16) as u16))
    }

    /// The nearest codes.
    #[inline(always)]
    pub(super) fn to_bits(self) -> u32 {
        u32::from(f32_to_f16(self.0)) | u32::from(f32_to_f16(self.1)) << 16
    }
}

/// Two bf16 numbers in a register, the lower half first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct B2(pub(super) f32, pub(super) f32);

impl B2 {
    /// The numbers of a register's bits.
    #[inline(always)]
    pub(super) fn from_bits(bits: u32) -> Self {
        Self(bf16_to_f32(bits as u16), bf16_to_f32((bits >> 16) as u16))
    }

    /// The nearest codes.
    #[inline(always)]
    pub(super) fn to_bits(self) -> u32 {
        u32::from(f32_to_bf16(self.0)) | u32::from(f32_to_bf16(self.1)) << 16
    }
}
