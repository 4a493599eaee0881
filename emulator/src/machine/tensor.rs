//! Tensor maps: what `cuTensorMapEncodeTiled` is told, and boxes of a tensor.

/// Most dimensions of a tensor.
pub const RANK: usize = 5;
/// Marks the 128 bytes of a map.
const MAGIC: u64 = 0x5445_4d55;

/// A tensor map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    /// Bytes of an element.
    pub element: u64,
    /// Swizzle of rows in shared memory: 0 none, else 1, 2 or 3 for 32, 64 or 128 bytes.
    pub swizzle: u32,
    /// Dimensions.
    pub rank: usize,
    /// Address of the first element.
    pub at: u64,
    /// Elements along each dimension, innermost first.
    pub extents: [u64; RANK],
    /// Bytes between neighbours along each dimension; that of the innermost is the element's.
    pub strides: [u64; RANK],
    /// Elements of a box along each dimension.
    pub box_extents: [u64; RANK],
}

/// A row of a box: where it goes, and the part of it that lies in the tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Bytes before it in the box.
    pub to: u64,
    /// Address of the part that is copied.
    pub from: u64,
    /// Bytes of the row before that part; they are zeros.
    pub skip: u64,
    /// Bytes of the part.
    pub bytes: u64,
}

impl Map {
    /// As the 16 words that a kernel is given.
    pub fn encode(&self) -> [u64; 16] {
        let mut out = [0; 16];
        out[0] = MAGIC << 32 | self.element << 16 | u64::from(self.swizzle) << 8 | self.rank as u64;
        out[1] = self.at;
        out[2..7].copy_from_slice(&self.extents);
        out[7..11].copy_from_slice(&self.strides[1..]);
        out[11..16].copy_from_slice(&self.box_extents);
        out
    }

    /// From those words.
    pub fn decode(words: &[u64; 16]) -> Option<Self> {
        let rank = (words[0] & 255) as usize;
        if words[0] >> 32 != MAGIC || !(1..=RANK).contains(&rank) {
            return None;
        }
        let element = words[0] >> 16 & 255;
        let (mut extents, mut strides, mut box_extents) = ([1; RANK], [element; RANK], [1; RANK]);
        extents.copy_from_slice(&words[2..7]);
        strides[1..].copy_from_slice(&words[7..11]);
        box_extents.copy_from_slice(&words[11..16]);
        Some(Self { element, swizzle: (words[0] >> 8 & 255) as u32, rank, at: words[1], extents, strides, box_extents })
    }

    /// Bytes of a row of a box.
    pub fn row_bytes(&self) -> u64 {
        self.box_extents[0] * self.element
    }

    /// Rows of a box.
    fn row_count(&self) -> u64 {
        self.box_extents[1..].iter().product()
    }

    /// Bytes of a box.
    pub fn box_bytes(&self) -> u64 {
        self.row_bytes() * self.row_count()
    }

    /// Where a 16-byte chunk of shared memory lies after the swizzle.
    pub fn swizzled(&self, at: u32) -> u32 {
        let bits = match self.swizzle {
            1 => 0x10,
            2 => 0x30,
            3 => 0x70,
            _ => 0,
        };
        at ^ (at >> 3 & bits)
    }

    /// The rows of the box at some coordinates.
    pub fn rows(&self, at: [i32; RANK]) -> impl Iterator<Item = Row> + '_ {
        (0..self.row_count()).map(move |row| {
            let (mut rest, mut inside, mut from) = (row, true, self.at as i64);
            for (k, start) in at.iter().enumerate().skip(1) {
                let i = i64::from(*start) + (rest % self.box_extents[k]) as i64;
                rest /= self.box_extents[k];
                inside &= i >= 0 && i < self.extents[k] as i64;
                from = from.wrapping_add(i.wrapping_mul(self.strides[k] as i64));
            }
            let start = i64::from(at[0]);
            let skip = (-start).max(0);
            let end = (self.extents[0] as i64 - start).min(self.box_extents[0] as i64);
            let elements = if inside { (end - skip).max(0) as u64 } else { 0 };
            let from = from.wrapping_add((start + skip).wrapping_mul(self.element as i64)) as u64;
            Row { to: row * self.row_bytes(), from, skip: skip as u64 * self.element, bytes: elements * self.element }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 10 x 4 elements of 2 bytes, rows 32 bytes apart, boxes of 8 x 2.
    fn map() -> Map {
        let (extents, strides, box_extents) = ([10, 4, 1, 1, 1], [2, 32, 0, 0, 0], [8, 2, 1, 1, 1]);
        Map { element: 2, swizzle: 1, rank: 2, at: 4096, extents, strides, box_extents }
    }

    #[test]
    fn a_map_survives_its_words() {
        assert_eq!(Map::decode(&map().encode()), Some(map()));
        assert_eq!(Map::decode(&[0; 16]), None);
    }

    #[test]
    fn what_lies_outside_is_not_read() {
        let rows = |x, y| map().rows([x, y, 0, 0, 0]).map(|r| (r.to, r.skip, r.bytes, r.from)).collect::<Vec<_>>();
        assert_eq!(rows(0, 0), [(0, 0, 16, 4096), (16, 0, 16, 4128)]);
        assert_eq!(rows(4, 3), [(0, 0, 12, 4096 + 96 + 8), (16, 0, 0, 4096 + 128 + 8)]);
        assert_eq!(rows(-3, -1)[0].2, 0);
        assert_eq!(rows(-3, -1)[1], (16, 6, 10, 4096));
        assert_eq!(rows(20, 0)[0].2, 0);
    }

    #[test]
    fn swizzles_move_chunks_within_a_row_of_128_bytes() {
        let at = |swizzle, a| Map { swizzle, ..map() }.swizzled(a);
        assert_eq!([0, 1, 2, 3].map(|s| at(s, 0x390)), [0x390, 0x380, 0x3a0, 0x3e0]);
    }
}
