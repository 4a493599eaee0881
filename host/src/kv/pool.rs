//! Who owns which page: reference counts, prefix sharing, and allocation that either succeeds whole or changes nothing.
//!
//! Pure bookkeeping: the pool holds page numbers, not memory. A [`Sequence`] is one request's pages in order; sequences
//! with a common prompt share the pages that the prompt fills, and only those, so that no shared page is ever written
//! again.

use super::layout::check_page_size;
use crate::error::{Error, Result};

/// A fixed number of pages with reference counts.
#[derive(Clone, Debug)]
pub struct PagePool {
    page_size: usize,
    /// References of every page; 0 is free.
    refs: Vec<u32>,
    /// Free pages; the last is handed out first.
    free: Vec<i32>,
}

/// The pages of one request, in order, and how many tokens they hold. Give it back with [`PagePool::release`]: dropping it
/// leaks its pages for the life of the pool.
#[derive(Debug, Default, PartialEq, Eq)]
#[must_use = "a sequence that is not released keeps its pages"]
pub struct Sequence {
    pages: Vec<i32>,
    tokens: usize,
}

impl Sequence {
    /// Physical page of each logical page.
    pub fn pages(&self) -> &[i32] {
        &self.pages
    }

    /// Tokens it has room for as far as it has grown.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

impl PagePool {
    /// A pool of `pages` free pages of `page_size` tokens.
    ///
    /// # Errors
    /// [`Error::Value`] for a page size that is not supported or more pages than a page table's i32 can name.
    pub fn new(pages: usize, page_size: usize) -> Result<Self> {
        check_page_size(page_size)?;
        let last = i32::try_from(pages).map_err(|_| Error::value("pages", "at most 2,147,483,647", pages))?;
        Ok(Self { page_size, refs: vec![0; pages], free: (0..last).rev().collect() })
    }

    /// Tokens in a page.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// Pages in all.
    pub fn total(&self) -> usize {
        self.refs.len()
    }

    /// Pages nobody holds.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// How many sequences hold `page`; 0 for a free page and for one outside the pool.
    pub fn references(&self, page: i32) -> u32 {
        usize::try_from(page).ok().and_then(|page| self.refs.get(page)).copied().unwrap_or(0)
    }

    /// A new sequence with room for `tokens` tokens.
    ///
    /// # Errors
    /// [`Error::OutOfPages`]; then nothing has changed.
    pub fn alloc(&mut self, tokens: usize) -> Result<Sequence> {
        let mut sequence = Sequence::default();
        self.grow(&mut sequence, tokens)?;
        Ok(sequence)
    }

    /// Gives `sequence` room for `tokens` more tokens.
    ///
    /// # Errors
    /// [`Error::OutOfPages`] or [`Error::Value`] (a length that overflows); then nothing has changed.
    pub fn grow(&mut self, sequence: &mut Sequence, tokens: usize) -> Result<()> {
        let total =
            sequence.tokens.checked_add(tokens).ok_or_else(|| Error::value("tokens", "a length that fits the address space", tokens))?;
        let needed = total.div_ceil(self.page_size).saturating_sub(sequence.pages.len());
        let Some(rest) = self.free.len().checked_sub(needed) else {
            return Err(Error::OutOfPages { needed, free: self.free.len(), total: self.total() });
        };
        for page in self.free.split_off(rest).into_iter().rev() {
            if let Some(refs) = self.refs.get_mut(page as usize) {
                *refs = 1;
            }
            sequence.pages.push(page);
        }
        sequence.tokens = total;
        Ok(())
    }

    /// A new sequence that shares the pages `sequence` has filled up to `prefix` tokens. Only whole pages are shared: the
    /// result holds `prefix` rounded down to a page, and the rest of the prefix must be written again.
    ///
    /// # Errors
    /// [`Error::Value`] when the prefix is longer than the sequence, or when a page would have more than 2^32 - 1 holders.
    pub fn share(&mut self, sequence: &Sequence, prefix: usize) -> Result<Sequence> {
        if prefix > sequence.tokens {
            return Err(Error::value("prefix", format!("at most the sequence's {} tokens", sequence.tokens), prefix));
        }
        let whole = prefix / self.page_size;
        let pages = sequence.pages.get(..whole).unwrap_or(&[]);
        if let Some(page) = pages.iter().find(|&&page| self.references(page) == u32::MAX) {
            return Err(Error::value("prefix", "pages with fewer than 2^32 - 1 holders", page));
        }
        for &page in pages {
            if let Some(refs) = self.refs.get_mut(page as usize) {
                *refs += 1;
            }
        }
        Ok(Sequence { pages: pages.to_vec(), tokens: whole * self.page_size })
    }

    /// Takes a sequence back; pages nobody else holds become free.
    pub fn release(&mut self, sequence: Sequence) {
        // The first page goes back last, so that the next sequence starts with it.
        for page in sequence.pages.into_iter().rev() {
            // A page of another pool is past the end or has no reference here: it is not ours to free.
            let Some(refs) = self.refs.get_mut(page as usize).filter(|refs| **refs > 0) else { continue };
            *refs -= 1;
            if *refs == 0 {
                self.free.push(page);
            }
        }
    }
}
