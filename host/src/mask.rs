//! Which key blocks each query block attends to, and its import and export forms.

use crate::error::{Error, Result};
use crate::geometry::Geometry;

/// Selected key blocks of every (query head, query block): ascending lists with a fixed capacity.
///
/// Query blocks are numbered over the requests of the batch, each request's blocks cut at absolute multiples of 128
/// tokens of its sequence, so the first and last may be partial. Two values are equal when their rows are: the
/// capacity and what lies past a count do not matter.
#[derive(Clone, Debug, Default)]
pub struct BlockLists {
    /// Query heads.
    pub hq: usize,
    /// Query blocks over all requests.
    pub total_qb: usize,
    /// Capacity of one list.
    pub stride: usize,
    /// `[hq, total_qb]`.
    pub counts: Vec<i32>,
    /// `[hq, total_qb, stride]`; entries past the count are unspecified.
    pub lists: Vec<i32>,
}

/// Lists in compressed sparse row form: row `head * total_qb + query block` is `indices[indptr[row]..indptr[row + 1]]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Csr {
    /// `[hq * total_qb + 1]`.
    pub indptr: Vec<i64>,
    /// Key-block indices, ascending within a row.
    pub indices: Vec<i32>,
}

impl BlockLists {
    /// The list of one row: ascending key-block indices of the row's request. Empty where there is no such row.
    pub fn row(&self, head: usize, row: usize) -> &[i32] {
        if head >= self.hq || row >= self.total_qb {
            return &[];
        }
        let at = head * self.total_qb + row;
        let count = self.counts.get(at).map_or(0, |&count| usize::try_from(count).unwrap_or(0));
        at.checked_mul(self.stride).and_then(|start| self.lists.get(start..)?.get(..count)).unwrap_or(&[])
    }

    /// Lists from rows in the order `head * total_qb + query block`; the capacity is `stride` or the longest row.
    ///
    /// # Errors
    /// [`Error::Shape`] unless there are `hq * total_qb` rows, or when the capacity does not fit the address space.
    pub fn from_rows<R: AsRef<[i32]>>(hq: usize, total_qb: usize, stride: usize, rows: &[R]) -> Result<Self> {
        if hq.checked_mul(total_qb) != Some(rows.len()) {
            return Err(Error::shape("lists", format!("{hq} x {total_qb} rows"), rows.len()));
        }
        let stride = rows.iter().map(|row| row.as_ref().len()).max().unwrap_or(0).max(stride).max(1);
        let total = rows.len().checked_mul(stride).ok_or_else(|| Error::shape("lists", "a size that fits the address space", stride))?;
        let mut lists = vec![0; total];
        let mut counts = Vec::with_capacity(rows.len());
        for (row, list) in rows.iter().zip(lists.chunks_exact_mut(stride)) {
            let row = row.as_ref();
            list[..row.len()].copy_from_slice(row);
            counts.push(i32::try_from(row.len()).map_err(|_| Error::value("counts", "at most 2,147,483,647", row.len()))?);
        }
        Ok(Self { hq, total_qb, stride, counts, lists })
    }

    /// Every visible block of every row: dense attention.
    ///
    /// # Errors
    /// [`Error::Shape`] when the lists do not fit the address space.
    pub fn dense(hq: usize, geometry: &Geometry) -> Result<Self> {
        let rows: Vec<Vec<i32>> = (0..geometry.total_qb()).map(|row| (0..geometry.candidates(row) as i32).collect()).collect();
        let all: Vec<&[i32]> = (0..hq).flat_map(|_| rows.iter().map(Vec::as_slice)).collect();
        Self::from_rows(hq, geometry.total_qb(), geometry.list_stride, &all)
    }

    /// Lists from a byte mask `[hq, total_qb, columns]`: a block is kept where the byte is not 0.
    ///
    /// Bytes of blocks that a row cannot see (above the diagonal of a causal call, past the row's own request) are
    /// ignored: attention would mask every key of them.
    ///
    /// # Errors
    /// [`Error::Shape`] naming `block_mask` unless the shape is `[hq, total_qb, columns]` with at least as many columns as the
    /// longest request has key blocks, and the bytes are as many.
    pub fn from_mask(mask: &[u8], shape: [usize; 3], hq: usize, geometry: &Geometry) -> Result<Self> {
        let [mask_hq, mask_qb, columns] = shape;
        if mask_hq != hq || mask_qb != geometry.total_qb() || columns < geometry.max_kb {
            return Err(Error::shape("block_mask", format!("[{hq}, {}, {}]", geometry.total_qb(), geometry.max_kb), format!("{shape:?}")));
        }
        let total = mask_hq.checked_mul(mask_qb).and_then(|rows| rows.checked_mul(columns));
        if total != Some(mask.len()) {
            return Err(Error::shape("block_mask", format!("{shape:?}"), format!("{} bytes", mask.len())));
        }
        let rows: Vec<Vec<i32>> = (0..hq * mask_qb)
            .map(|row| {
                let visible = mask[row * columns..].iter().take(geometry.candidates(row % mask_qb));
                visible.enumerate().filter(|(_, byte)| **byte != 0).map(|(block, _)| block as i32).collect()
            })
            .collect();
        Self::from_rows(hq, mask_qb, 1, &rows)
    }

    /// The byte mask `[hq, total_qb, columns]`, 1 where a block is kept; blocks from `columns` on are left out.
    ///
    /// # Errors
    /// [`Error::Shape`] when the mask does not fit the address space.
    pub fn to_mask(&self, columns: usize) -> Result<Vec<u8>> {
        let total = self.hq.checked_mul(self.total_qb).and_then(|rows| rows.checked_mul(columns));
        let total = total.ok_or_else(|| Error::shape("block_mask", "a size that fits the address space", columns))?;
        let mut mask = vec![0; total];
        for (i, bytes) in mask.chunks_exact_mut(columns.max(1)).enumerate() {
            for &block in self.row(i / self.total_qb, i % self.total_qb) {
                if let Some(byte) = usize::try_from(block).ok().and_then(|block| bytes.get_mut(block)) {
                    *byte = 1;
                }
            }
        }
        Ok(mask)
    }

    /// The lists in compressed sparse row form.
    pub fn to_csr(&self) -> Csr {
        let mut csr = Csr { indptr: vec![0], indices: Vec::new() };
        for row in self.rows() {
            csr.indices.extend_from_slice(row);
            csr.indptr.push(csr.indices.len() as i64);
        }
        csr
    }

    /// Lists from compressed sparse rows.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::Value`] naming `indptr` when it does not have `hq * total_qb + 1` entries that rise from 0 to
    /// the number of indices. The indices themselves are checked by [`Self::validate`].
    pub fn from_csr(csr: &Csr, hq: usize, total_qb: usize) -> Result<Self> {
        let rows = hq.checked_mul(total_qb).and_then(|rows| rows.checked_add(1));
        if rows != Some(csr.indptr.len()) {
            return Err(Error::shape("indptr", format!("{hq} x {total_qb} + 1 entries"), csr.indptr.len()));
        }
        if csr.indptr.first() != Some(&0) || csr.indptr.last() != Some(&(csr.indices.len() as i64)) {
            let got = format!("{:?} to {:?}", csr.indptr.first(), csr.indptr.last());
            return Err(Error::value("indptr", format!("entries from 0 to {}", csr.indices.len()), got));
        }
        let mut rows = Vec::with_capacity(csr.indptr.len() - 1);
        for pair in csr.indptr.windows(2) {
            let row = match *pair {
                [start, end] if 0 <= start && start <= end => csr.indices.get(start as usize..end as usize),
                _ => None,
            };
            rows.push(row.ok_or_else(|| Error::value("indptr", "entries that never fall", format!("{pair:?}")))?);
        }
        Self::from_rows(hq, total_qb, 1, &rows)
    }

    /// Checks lists that came from outside against the batch they are for.
    ///
    /// # Errors
    /// [`Error::Shape`] for other extents than `hq`, the geometry's query blocks and the capacity; [`Error::Value`] for a count
    /// outside the capacity, or indices that do not ascend or that the row cannot see. The message names `counts` or `lists`.
    pub fn validate(&self, hq: usize, geometry: &Geometry) -> Result<()> {
        if self.hq != hq || self.total_qb != geometry.total_qb() {
            let expected = format!("{hq} heads x {} query blocks", geometry.total_qb());
            return Err(Error::shape("lists", expected, format!("{} x {}", self.hq, self.total_qb)));
        }
        let rows = hq.checked_mul(self.total_qb);
        if rows != Some(self.counts.len()) {
            return Err(Error::shape("counts", format!("{hq} x {} entries", self.total_qb), self.counts.len()));
        }
        if rows.and_then(|rows| rows.checked_mul(self.stride)) != Some(self.lists.len()) {
            return Err(Error::shape("lists", format!("{hq} x {} x {} entries", self.total_qb, self.stride), self.lists.len()));
        }
        for (i, &count) in self.counts.iter().enumerate() {
            let (head, row) = (i / self.total_qb, i % self.total_qb);
            if usize::try_from(count).map_or(true, |count| count > self.stride) {
                return Err(Error::value("counts", format!("0 to {} in head {head}, query block {row}", self.stride), count));
            }
            let list = self.row(head, row);
            let candidates = geometry.candidates(row);
            if let Some(&block) = list.iter().find(|&&block| usize::try_from(block).map_or(true, |block| block >= candidates)) {
                let visible = if geometry.causal { "at or below the diagonal" } else { "of the request" };
                let expected = format!("key blocks {visible}, below {candidates}, in head {head}, query block {row}");
                return Err(Error::value("lists", expected, block));
            }
            if let Some(pair) = list.windows(2).find(|pair| pair[0] >= pair[1]) {
                let expected = format!("ascending key blocks in head {head}, query block {row}");
                return Err(Error::value("lists", expected, format!("{} before {}", pair[0], pair[1])));
            }
        }
        Ok(())
    }

    /// Kept (query block, key block) pairs over all heads.
    pub fn kept(&self) -> u64 {
        self.rows().map(|row| row.len() as u64).sum()
    }

    /// Kept pairs over visible pairs; 1 where nothing is visible.
    pub fn density(&self, geometry: &Geometry) -> f64 {
        match geometry.visible_pairs() as f64 * self.hq as f64 {
            0.0 => 1.0,
            visible => self.kept() as f64 / visible,
        }
    }

    /// [`Self::density`] of every head.
    pub fn head_densities(&self, geometry: &Geometry) -> Vec<f64> {
        let visible = geometry.visible_pairs() as f64;
        let kept = |head| (0..self.total_qb).map(|row| self.row(head, row).len() as u64).sum::<u64>() as f64;
        (0..self.hq).map(|head| if visible == 0.0 { 1.0 } else { kept(head) / visible }).collect()
    }

    fn rows(&self) -> impl Iterator<Item = &[i32]> {
        (0..self.hq).flat_map(move |head| (0..self.total_qb).map(move |row| self.row(head, row)))
    }
}

impl PartialEq for BlockLists {
    fn eq(&self, other: &Self) -> bool {
        self.hq == other.hq && self.total_qb == other.total_qb && self.rows().eq(other.rows())
    }
}

impl Eq for BlockLists {}
