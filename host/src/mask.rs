//! Which key blocks each query block attends to, and its import and export forms.

/// Selected key blocks of every (query head, query block): ascending lists with a fixed capacity.
///
/// Query blocks are numbered over the requests of the batch, each request's blocks cut at absolute multiples of 128
/// tokens of its sequence, so the first and last may be partial.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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

impl BlockLists {
    /// The list of one row: ascending key-block indices of the row's request.
    ///
    /// # Panics
    /// Never for `head < hq` and `row < total_qb`.
    pub fn row(&self, head: usize, row: usize) -> &[i32] {
        let at = head * self.total_qb + row;
        &self.lists[at * self.stride..][..self.counts[at] as usize]
    }
}
