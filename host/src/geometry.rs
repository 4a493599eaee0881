//! How a batch is cut into query blocks and key blocks: the tables both backends read.

use crate::budget::budget;
use crate::config::{StemConfig, TieRule};
use crate::error::{Error, Result};
use std::ops::Range;
use stem_attn_kernels::abi::{KeyBlock, QueryBlock, Request};
use stem_attn_kernels::config::BLOCK;

/// A batch, cut into blocks of 128 tokens.
///
/// Query blocks are cut at absolute multiples of 128 of each request's sequence, history included, so a request's
/// first and last query block may be partial. Blocks are numbered over the requests in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Geometry {
    /// `[batch]`.
    pub requests: Vec<Request>,
    /// `[total_qb]`, with budgets; a dense row's budget is the number of blocks it sees (at least 1).
    pub query_blocks: Vec<QueryBlock>,
    /// `[total_kb]`: those of the requests' whole prompts, so that what is known of a block stays at its place from chunk to
    /// chunk. Blocks past a request's `kb_len` have no token yet.
    pub key_blocks: Vec<KeyBlock>,
    /// New tokens over all requests.
    pub total_q: usize,
    /// Visible KV tokens over all requests.
    pub total_kv: usize,
    /// Most query blocks of one request.
    pub max_qb: usize,
    /// Most key blocks of one request: the least column count of a score row.
    pub max_kb: usize,
    /// Most entries a list can need, at least 1.
    pub list_stride: usize,
    /// Whether keys after a query are masked.
    pub causal: bool,
}

impl Geometry {
    /// Cuts a batch. `selection` gives the budgets; without one every visible block is within budget.
    ///
    /// `cu_seqlens_q`, `cu_seqlens_kv`: `[batch + 1]` offsets that start at 0 and never fall. `prompt_lens`: `[batch]`
    /// tokens of the whole prompts. Time and memory are linear in the number of blocks.
    ///
    /// # Errors
    /// [`Error::Shape`] for tables of different lengths or a causal request with fewer keys than queries;
    /// [`Error::Value`] for offsets that fall, a prompt shorter than its KV, or counts beyond 32 bits;
    /// [`Error::Unsupported`] for a non-causal request with fewer keys than queries (its queries have no absolute position).
    pub fn new(
        cu_seqlens_q: &[i32],
        cu_seqlens_kv: &[i32],
        prompt_lens: &[i32],
        causal: bool,
        selection: Option<&StemConfig>,
    ) -> Result<Self> {
        if cu_seqlens_kv.len() != cu_seqlens_q.len() {
            return Err(Error::shape("cu_seqlens_kv", format!("{} entries, as in cu_seqlens_q", cu_seqlens_q.len()), cu_seqlens_kv.len()));
        }
        for (name, offsets) in [("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_kv", cu_seqlens_kv)] {
            if offsets.first() != Some(&0) {
                return Err(Error::value(name, "offsets that start at 0 and never fall", format!("{:?} first", offsets.first())));
            }
        }
        let batch = cu_seqlens_q.len().saturating_sub(1);
        if prompt_lens.len() != batch {
            return Err(Error::shape("prompt_lens", format!("{batch} entries, one per request"), prompt_lens.len()));
        }
        let mut geometry = Self { causal, list_stride: 1, ..Self::default() };
        for (b, ((q, kv), &prompt_len)) in cu_seqlens_q.windows(2).zip(cu_seqlens_kv.windows(2)).zip(prompt_lens).enumerate() {
            let q_len = length("cu_seqlens_q", q)?;
            let kv_len = length("cu_seqlens_kv", kv)?;
            if kv_len < q_len {
                let expected = format!("at least {q_len} tokens in request {b}");
                return Err(match causal {
                    true => Error::shape("k", format!("{expected} (causal: every query sees its own key)"), kv_len),
                    false => Error::Unsupported { what: "KV length", got: format!("{kv_len} in request {b} with {q_len} queries") },
                });
            }
            if prompt_len < kv_len {
                return Err(Error::value("prompt_lens", format!("at least {kv_len}, the KV length of request {b}"), prompt_len));
            }
            geometry.push(b, q_len, kv_len, prompt_len, selection)?;
        }
        geometry.total_q = cu_seqlens_q.last().map_or(0, |&n| n as usize);
        geometry.total_kv = cu_seqlens_kv.last().map_or(0, |&n| n as usize);
        Ok(geometry)
    }

    fn push(&mut self, b: usize, q_len: i32, kv_len: i32, prompt_len: i32, selection: Option<&StemConfig>) -> Result<()> {
        let q_start = self.requests.last().map_or(0, |r| r.q_start + r.q_len);
        let qb_start = index("query blocks", self.query_blocks.len())?;
        let request = request(q_start, q_len, kv_len, qb_start, index("key blocks", self.key_blocks.len())?);
        let Request { qb_len, kb_len, first_block, .. } = request;
        let id = index("requests", b)?;
        let room = blocks(prompt_len);
        // The ends must fit too: kernels compute start + length in 32 bits.
        index("query blocks", self.query_blocks.len() + qb_len as usize)?;
        index("key blocks", self.key_blocks.len() + room as usize)?;
        for block in first_block..first_block + qb_len {
            let candidates = if self.causal { kb_len.min(block + 1) } else { kb_len } as usize;
            let (budget, capacity) = match selection {
                None => (candidates.max(1), candidates),
                Some(config) => {
                    let budget = budget(config, blocks(prompt_len) as u32, block as u32) as usize;
                    let guarded = budget.saturating_add(config.sink as usize).saturating_add(config.window as usize);
                    (budget, if config.ties == TieRule::KeepAll { candidates } else { candidates.min(guarded) })
                }
            };
            self.list_stride = self.list_stride.max(capacity);
            self.query_blocks.push(QueryBlock { request: id, block, budget: index("budget", budget)?, reserved: 0 });
        }
        self.key_blocks.extend((0..room).map(|block| KeyBlock { request: id, block }));
        self.max_qb = self.max_qb.max(qb_len as usize);
        self.max_kb = self.max_kb.max(kb_len as usize);
        self.requests.push(request);
        Ok(())
    }

    /// Checks that the tables belong together. Those of [`Geometry::new`] do; fields changed by hand may not, and kernels
    /// and the CPU stages trust them. Linear in the number of blocks.
    ///
    /// # Errors
    /// [`Error::Value`] naming the field that disagrees with the requests before it.
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |name, b: usize| Err(Error::value(name, "what `Geometry::new` makes", format!("something else at request {b}")));
        let (mut q_start, mut kv) = (0i32, 0usize);
        let (mut query_blocks, mut key_blocks) = (self.query_blocks.iter(), self.key_blocks.iter().peekable());
        let (mut qb_start, mut kb_start, mut longest) = (0usize, 0usize, [0usize; 2]);
        for (b, r) in self.requests.iter().enumerate() {
            let (id, first_qb, first_kb) = (index("requests", b)?, index("query blocks", qb_start)?, index("key blocks", kb_start)?);
            if r.q_len < 0 || r.kv_len < r.q_len || *r != request(q_start, r.q_len, r.kv_len, first_qb, first_kb) {
                return wrong("requests", b);
            }
            if !(0..r.qb_len).all(|i| query_blocks.next().is_some_and(|q| q.request == id && q.block == r.first_block + i)) {
                return wrong("query_blocks", b);
            }
            let mut room = 0;
            while let Some(block) = key_blocks.next_if(|k| k.request == id) {
                if block.block != room {
                    return wrong("key_blocks", b);
                }
                room += 1;
            }
            if room < r.kb_len {
                return wrong("key_blocks", b);
            }
            q_start = q_start.checked_add(r.q_len).ok_or_else(|| Error::value("total_q", "at most 2,147,483,647", "more"))?;
            (qb_start, kb_start, kv) = (qb_start + r.qb_len as usize, kb_start + room as usize, kv + r.kv_len as usize);
            longest = [longest[0].max(r.qb_len as usize), longest[1].max(r.kb_len as usize)];
        }
        let ends = query_blocks.next().is_none() && key_blocks.next().is_none();
        if !ends || [self.total_q, self.total_kv, self.max_qb, self.max_kb] != [q_start as usize, kv, longest[0], longest[1]] {
            return wrong("totals", self.requests.len());
        }
        Ok(())
    }

    /// Query blocks over all requests.
    pub fn total_qb(&self) -> usize {
        self.query_blocks.len()
    }

    /// Key blocks over all requests, those of their whole prompts.
    pub fn total_kb(&self) -> usize {
        self.key_blocks.len()
    }

    /// Key blocks that query block `row` may attend to: blocks `0..candidates` of its request. 0 for no such row.
    pub fn candidates(&self, row: usize) -> usize {
        let Some((query_block, request)) = self.row(row) else { return 0 };
        if self.causal { request.kb_len.min(query_block.block + 1) as usize } else { request.kb_len as usize }
    }

    /// The new tokens of query block `row`, as positions within its request's chunk (`0..q_len`). Empty for no such row.
    ///
    /// Token t of the chunk stands at `kv_len - q_len + t` of the sequence and in row `q_start + t` of `q`.
    pub fn tokens(&self, row: usize) -> Range<usize> {
        let Some((query_block, request)) = self.row(row) else { return 0..0 };
        let start = i64::from(request.kv_len - request.q_len);
        let first = i64::from(query_block.block) * BLOCK as i64 - start;
        let end = (first + BLOCK as i64).clamp(0, i64::from(request.q_len));
        first.max(0) as usize..end as usize
    }

    /// The query block `row` and its request.
    pub fn row(&self, row: usize) -> Option<(&QueryBlock, &Request)> {
        let query_block = self.query_blocks.get(row)?;
        Some((query_block, self.requests.get(query_block.request as usize)?))
    }

    /// Visible (query block, key block) pairs of one head: what dense attention visits.
    pub fn visible_pairs(&self) -> u64 {
        (0..self.total_qb()).map(|row| self.candidates(row) as u64).sum()
    }
}

/// A request with `q_len` new tokens of `kv_len` visible ones (`0 <= q_len <= kv_len`), cut into blocks.
fn request(q_start: i32, q_len: i32, kv_len: i32, qb_start: i32, kb_start: i32) -> Request {
    let (first_block, kb_len) = ((kv_len - q_len) / BLOCK as i32, blocks(kv_len));
    let qb_len = if q_len == 0 { 0 } else { kb_len - first_block };
    Request { q_start, q_len, kv_len, qb_start, qb_len, kb_start, kb_len, first_block }
}

/// Blocks of `tokens` tokens, rounded up.
fn blocks(tokens: i32) -> i32 {
    (tokens as u32).div_ceil(BLOCK as u32) as i32
}

fn length(name: &'static str, offsets: &[i32]) -> Result<i32> {
    match offsets {
        &[start, end] if 0 <= start && start <= end => Ok(end - start),
        _ => Err(Error::value(name, "offsets that start at 0 and never fall", format!("{offsets:?}"))),
    }
}

fn index(name: &'static str, n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| Error::value(name, "at most 2,147,483,647", n))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A change to good tables, and the field that the error names.
    type Spoil = (&'static str, fn(&mut Geometry));

    #[test]
    fn tables_that_do_not_belong_together_are_named() {
        let good = Geometry::new(&[0, 300, 300, 429], &[0, 1000, 1130, 1647], &[1000, 130, 517], true, None).expect("a batch");
        good.check().expect("what `new` makes");
        Geometry::new(&[0], &[0], &[], true, None).expect("no request").check().expect("what `new` makes");
        let spoils: &[Spoil] = &[
            ("requests", |g| g.requests[1].kb_start += 1),
            ("requests", |g| g.requests[2].q_start = -1),
            ("requests", |g| g.requests[0].q_len = i32::MAX),
            ("requests", |g| g.requests[0].kv_len = -5),
            ("query_blocks", |g| g.query_blocks[1].request = 1000),
            ("query_blocks", |g| g.query_blocks[0].block = -1),
            ("query_blocks", |g| g.query_blocks.truncate(4)),
            ("key_blocks", |g| g.key_blocks[3].block = 1 << 20),
            ("totals", |g| g.key_blocks.push(KeyBlock { request: 0, block: 0 })),
            ("totals", |g| g.total_q = 0),
            ("totals", |g| g.max_kb = 1),
        ];
        for (named, spoil) in spoils {
            let mut geometry = good.clone();
            spoil(&mut geometry);
            assert!(matches!(geometry.check(), Err(Error::Value { name, .. }) if name == *named), "{named}");
        }
    }
}
