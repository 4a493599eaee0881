//! Paged K and V in host memory: strides, page tables, and row access that no table entry can send out of bounds.

use super::scales::TokenScaleLayout;
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use float8::F8E4M3;
use stem_attn_kernels::abi::PageStrides;
use stem_attn_kernels::config::{BLOCK, HEAD_DIM};

/// Order of the dimensions inside a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PageLayout {
    /// `[pages, page_size, hkv, 128]`.
    #[default]
    Nhd,
    /// `[pages, hkv, page_size, 128]`.
    Hnd,
}

impl PageLayout {
    /// Byte strides of densely packed pages. What would not fit 63 bits is `i64::MAX`, which every check of strides refuses.
    pub fn strides(self, hkv: usize, page_size: usize) -> PageStrides {
        let row = HEAD_DIM as i64;
        let of = |n: usize| i64::try_from(n).unwrap_or(i64::MAX).saturating_mul(row);
        let page = of(hkv.saturating_mul(page_size));
        match self {
            Self::Nhd => PageStrides { page, token: of(hkv), head: row },
            Self::Hnd => PageStrides { page, token: row, head: of(page_size) },
        }
    }
}

/// Checks a page size.
///
/// # Errors
/// [`Error::Value`] unless it is 16, 32, 64, 128 or 256 tokens.
pub fn check_page_size(page_size: usize) -> Result<()> {
    match page_size {
        16 | 32 | 64 | 128 | 256 => Ok(()),
        _ => Err(Error::value("page_size", "16, 32, 64, 128 or 256", page_size)),
    }
}

/// K or V.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvTensor {
    /// Keys.
    K,
    /// Values.
    V,
}

/// A borrowed view of a paged KV cache: pages of e4m3 rows of 128 contiguous elements, and the page table.
#[derive(Clone, Copy, Debug)]
pub struct PagedKv<'a> {
    /// Pages of K.
    pub k_pages: &'a [F8E4M3],
    /// Pages of V.
    pub v_pages: &'a [F8E4M3],
    /// Strides of K, in bytes.
    pub k_strides: PageStrides,
    /// Strides of V, in bytes.
    pub v_strides: PageStrides,
    /// Tokens in a page.
    pub page_size: usize,
    /// Pages of the pool; table entries are below it.
    pub pages: usize,
    /// KV heads.
    pub hkv: usize,
    /// `[batch, table_stride]`: physical page of each logical page; entries past a request's last page are not read.
    pub table: &'a [i32],
    /// Entries of one request.
    pub table_stride: usize,
    /// Where the scales of single keys are, if keys have any.
    pub k_token_scales: TokenScaleLayout,
    /// Those scales, where they are in a tensor of their own.
    pub k_token: &'a [f32],
}

impl<'a> PagedKv<'a> {
    /// Checks page size, extents and every table entry that a request of `geometry` uses.
    ///
    /// # Errors
    /// [`Error::Shape`] when the table or the pages are too small, [`Error::Value`] for a negative stride, a page size
    /// that is not supported or an entry outside `0..pages`; the message names `page_table`, `k_pages`, `v_pages` or `k_token_scale`.
    pub fn validate(&self, geometry: &Geometry) -> Result<()> {
        check_page_size(self.page_size)?;
        for (name, pages, strides) in [("k_pages", self.k_pages, self.k_strides), ("v_pages", self.v_pages, self.v_strides)] {
            let last = offset(strides, self.pages.saturating_sub(1), self.page_size - 1, self.hkv.saturating_sub(1));
            let end = last.and_then(|at| at.checked_add(HEAD_DIM));
            if self.pages > 0 && self.hkv > 0 && end.is_none_or(|end| end > pages.len()) {
                let expected = format!("strides {strides:?} that keep {} pages of {} tokens inside", self.pages, self.page_size);
                return Err(Error::shape(name, expected, format!("{} elements", pages.len())));
            }
        }
        let needed = self.k_token_scales.end(self.pages, self.page_size, self.hkv)?;
        let given = match self.k_token_scales {
            TokenScaleLayout::InPages { .. } => self.k_pages.len(),
            TokenScaleLayout::None | TokenScaleLayout::Separate(_) => size_of_val(self.k_token),
        };
        if needed > given {
            return Err(Error::shape("k_token_scale", format!("{needed} bytes"), format!("{given} bytes")));
        }
        check_table(self.table, self.table_stride, geometry, self.page_size, self.pages)
    }

    /// The scale of the key of one token and head: 1 where keys have none of their own, and for a token without a page.
    pub fn token_scale(&self, request: usize, head: usize, token: usize) -> f32 {
        let at = self.page_of(request, head, token).and_then(|page| self.k_token_scales.at(page, token % self.page_size, head));
        let Some(at) = at else { return 1.0 };
        match self.k_token_scales {
            TokenScaleLayout::InPages { .. } => {
                let bytes = self.k_pages.get(at..).and_then(|b| b.first_chunk::<4>());
                bytes.map_or(1.0, |b| f32::from_le_bytes(b.map(|b| b.to_bits())))
            }
            TokenScaleLayout::None | TokenScaleLayout::Separate(_) => self.k_token.get(at / size_of::<f32>()).copied().unwrap_or(1.0),
        }
    }

    /// The 128 elements of one token and head, or `None` when the token has no page or lies outside the pages.
    pub fn row(&self, tensor: KvTensor, request: usize, head: usize, token: usize) -> Option<&'a [F8E4M3; HEAD_DIM]> {
        let (pages, strides) = match tensor {
            KvTensor::K => (self.k_pages, self.k_strides),
            KvTensor::V => (self.v_pages, self.v_strides),
        };
        pages.get(self.position(strides, request, head, token)?..)?.first_chunk()
    }

    fn position(&self, strides: PageStrides, request: usize, head: usize, token: usize) -> Option<usize> {
        offset(strides, self.page_of(request, head, token)?, token % self.page_size, head)
    }

    /// The page of a token, where the table leads to one.
    fn page_of(&self, request: usize, head: usize, token: usize) -> Option<usize> {
        let page = *self.table_row(request)?.get(token.checked_div(self.page_size)?)?;
        usize::try_from(page).ok().filter(|&page| page < self.pages && head < self.hkv)
    }

    fn table_row(&self, request: usize) -> Option<&'a [i32]> {
        table_row(self.table, self.table_stride, request)
    }
}

fn table_row(table: &[i32], stride: usize, request: usize) -> Option<&[i32]> {
    table.get(request.checked_mul(stride)?..)?.get(..stride)
}

/// Checks every entry of a page table `[batch, stride]` that a request of `geometry` uses.
pub(super) fn check_table(table: &[i32], stride: usize, geometry: &Geometry, page_size: usize, pages: usize) -> Result<()> {
    check_page_size(page_size)?;
    for (b, request) in geometry.requests.iter().enumerate() {
        let used = (request.kv_len.max(0) as usize).div_ceil(page_size);
        let row = table_row(table, stride, b).and_then(|row| row.get(..used)).ok_or_else(|| {
            let got = format!("{} entries in rows of {stride}", table.len());
            Error::shape("page_table", format!("{used} entries for request {b}"), got)
        })?;
        if let Some((i, page)) = row.iter().enumerate().find(|(_, page)| usize::try_from(**page).map_or(true, |p| p >= pages)) {
            return Err(Error::value("page_table", format!("a page in 0..{pages} at [{b}, {i}]"), page));
        }
    }
    Ok(())
}

fn offset(strides: PageStrides, page: usize, token: usize, head: usize) -> Option<usize> {
    let part = |stride: i64, n: usize| usize::try_from(stride).ok()?.checked_mul(n);
    part(strides.page, page)?.checked_add(part(strides.token, token)?)?.checked_add(part(strides.head, head)?)
}

/// Owned pages and page table, filled from ragged contiguous K and V.
#[derive(Clone, Debug)]
pub struct PagedTensors {
    /// Pages of K; elements no token owns are 0.
    pub k_pages: Vec<F8E4M3>,
    /// Pages of V; elements no token owns are 0.
    pub v_pages: Vec<F8E4M3>,
    /// Strides of both.
    pub strides: PageStrides,
    /// Tokens in a page.
    pub page_size: usize,
    /// Pages.
    pub pages: usize,
    /// KV heads.
    pub hkv: usize,
    /// `[batch, table_stride]`; unused entries are -1.
    pub table: Vec<i32>,
    /// Entries of one request: enough for whole 128-token blocks.
    pub table_stride: usize,
    /// Where the scales of single keys are, if keys have any.
    pub k_token_scales: TokenScaleLayout,
    /// Those scales, where they are in a tensor of their own; 1 where no token owns them.
    pub k_token: Vec<f32>,
}

impl PagedTensors {
    /// Pages `k` and `v` (`[total_kv, hkv, 128]`, request b in rows `cu_seqlens_kv[b]..cu_seqlens_kv[b + 1]`).
    ///
    /// Logical pages are numbered over the requests in order; `order[n]` is the physical page of logical page n. Without
    /// an order the pages are sequential and as many as needed; with one, the pool is as long as the order.
    ///
    /// # Errors
    /// [`Error::Value`] for a page size that is not supported, falling offsets, or an order that is not a permutation;
    /// [`Error::Shape`] when `k` or `v` has another length; [`Error::OutOfPages`] when the order is too short.
    pub fn build(
        k: &[F8E4M3],
        v: &[F8E4M3],
        hkv: usize,
        cu_seqlens_kv: &[i32],
        page_size: usize,
        layout: PageLayout,
        order: Option<&[i32]>,
    ) -> Result<Self> {
        check_page_size(page_size)?;
        let too_large = || Error::shape("k", "a size that fits the address space", format!("{hkv} heads"));
        let row = hkv.checked_mul(HEAD_DIM).ok_or_else(too_large)?;
        let mut lens = Vec::with_capacity(cu_seqlens_kv.len().saturating_sub(1));
        for pair in cu_seqlens_kv.windows(2) {
            match *pair {
                [start, end] if 0 <= start && start <= end => lens.push((start as usize, (end - start) as usize)),
                _ => return Err(Error::value("cu_seqlens_kv", "offsets that start at 0 and never fall", format!("{pair:?}"))),
            }
        }
        let total = lens.last().map_or(0, |(start, len)| start + len).checked_mul(row).ok_or_else(too_large)?;
        for (name, tensor) in [("k", k), ("v", v)] {
            if tensor.len() != total {
                return Err(Error::shape(name, format!("{total} elements"), tensor.len()));
            }
        }
        let needed: usize = lens.iter().map(|(_, len)| len.div_ceil(page_size)).sum();
        let pages = order.map_or(needed, <[i32]>::len);
        if needed > pages {
            return Err(Error::OutOfPages { needed, free: pages, total: pages });
        }
        if let Some(order) = order {
            check_permutation(order)?;
        }
        let table_stride = lens.iter().map(|(_, len)| (len.div_ceil(BLOCK) * BLOCK).div_ceil(page_size)).max().unwrap_or(0).max(1);
        let strides = layout.strides(hkv, page_size);
        let elements = pages.checked_mul(page_size).and_then(|tokens| tokens.checked_mul(row)).ok_or_else(too_large)?;
        let mut paged = Self {
            k_pages: vec![F8E4M3::from_bits(0); elements],
            v_pages: vec![F8E4M3::from_bits(0); elements],
            strides,
            page_size,
            pages,
            hkv,
            table: vec![-1; lens.len() * table_stride],
            table_stride,
            k_token_scales: TokenScaleLayout::None,
            k_token: Vec::new(),
        };
        let mut logical = 0;
        for (&(start, len), table) in lens.iter().zip(paged.table.chunks_exact_mut(table_stride)) {
            for (first, entry) in (0..len).step_by(page_size).zip(table) {
                let page = order.map_or(logical as i32, |order| order[logical]);
                (*entry, logical) = (page, logical + 1);
                for token in first..len.min(first + page_size) {
                    for head in 0..hkv {
                        let from = (start + token) * row + head * HEAD_DIM;
                        let Some(to) = offset(strides, page as usize, token - first, head) else { continue };
                        paged.k_pages[to..to + HEAD_DIM].copy_from_slice(&k[from..from + HEAD_DIM]);
                        paged.v_pages[to..to + HEAD_DIM].copy_from_slice(&v[from..from + HEAD_DIM]);
                    }
                }
            }
        }
        Ok(paged)
    }

    /// The 128 elements of one token and head, to write, or `None` when the token has no page.
    pub fn row_mut(&mut self, tensor: KvTensor, request: usize, head: usize, token: usize) -> Option<&mut [F8E4M3; HEAD_DIM]> {
        let at = self.view().position(self.strides, request, head, token)?;
        let pages = match tensor {
            KvTensor::K => &mut self.k_pages,
            KvTensor::V => &mut self.v_pages,
        };
        pages.get_mut(at..)?.first_chunk_mut()
    }

    /// A view of the pages.
    pub fn view(&self) -> PagedKv<'_> {
        PagedKv {
            k_pages: &self.k_pages,
            v_pages: &self.v_pages,
            k_strides: self.strides,
            v_strides: self.strides,
            page_size: self.page_size,
            pages: self.pages,
            hkv: self.hkv,
            table: &self.table,
            table_stride: self.table_stride,
            k_token_scales: self.k_token_scales,
            k_token: &self.k_token,
        }
    }

    /// The same pages with a scale for every key: `scales` `[total_kv, hkv]`, request b in rows
    /// `cu_seqlens_kv[b]..cu_seqlens_kv[b + 1]`. `layout` is that of the pages; in rows of the pages where `in_pages`, else in a
    /// tensor of their own.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of scales.
    pub fn with_token_scales(self, scales: &[f32], cu_seqlens_kv: &[i32], layout: PageLayout, in_pages: bool) -> Result<Self> {
        let (hkv, page_size) = (self.hkv, self.page_size);
        let total = cu_seqlens_kv.last().map_or(0, |&n| n.max(0) as usize).checked_mul(hkv);
        if total != Some(scales.len()) {
            return Err(Error::shape("k_scale", format!("{} x {hkv} scales", cu_seqlens_kv.last().unwrap_or(&0)), scales.len()));
        }
        let mut paged = if in_pages {
            self.with_scale_rows(layout)?
        } else {
            let k_token_scales = TokenScaleLayout::Separate(layout.scale_strides(hkv, page_size));
            Self { k_token: vec![1.0; self.pages * page_size * hkv], k_token_scales, ..self }
        };
        for (b, pair) in cu_seqlens_kv.windows(2).enumerate() {
            for token in pair[0]..pair[1] {
                for head in 0..hkv {
                    let scale = scales[token as usize * hkv + head];
                    paged.set_token_scale(b, head, (token - pair[0]) as usize, scale);
                }
            }
        }
        Ok(paged)
    }

    /// The same pages with rows for the scales of their keys.
    fn with_scale_rows(self, layout: PageLayout) -> Result<Self> {
        let (strides, k_token_scales) = layout.with_scale_rows(self.hkv, self.page_size);
        let page = usize::try_from(strides.page).ok().and_then(|page| page.checked_mul(self.pages));
        let elements = page.ok_or_else(|| Error::shape("k", "a size that fits the address space", format!("{} pages", self.pages)))?;
        let blank = || vec![F8E4M3::from_bits(0); elements];
        let mut wide = Self { k_pages: blank(), v_pages: blank(), strides, k_token_scales, ..self.clone() };
        for i in 0..self.pages * self.page_size * self.hkv {
            let (page, token, head) = (i / self.hkv / self.page_size, i / self.hkv % self.page_size, i % self.hkv);
            let places = offset(self.strides, page, token, head).zip(offset(strides, page, token, head));
            for (from, to) in [(&self.k_pages, &mut wide.k_pages), (&self.v_pages, &mut wide.v_pages)] {
                let rows = places.and_then(|(a, b)| Some((from.get(a..)?.get(..HEAD_DIM)?, to.get_mut(b..)?.get_mut(..HEAD_DIM)?)));
                if let Some((from, to)) = rows {
                    to.copy_from_slice(from);
                }
            }
        }
        Ok(wide)
    }

    /// Sets the scale of the key of one token and head, where keys have scales and the token has a page.
    pub fn set_token_scale(&mut self, request: usize, head: usize, token: usize, scale: f32) {
        let view = self.view();
        let at = view.page_of(request, head, token).and_then(|page| self.k_token_scales.at(page, token % self.page_size, head));
        let Some(at) = at else { return };
        match self.k_token_scales {
            TokenScaleLayout::InPages { .. } => {
                if let Some(bytes) = self.k_pages.get_mut(at..).and_then(|b| b.first_chunk_mut::<4>()) {
                    *bytes = scale.to_le_bytes().map(F8E4M3::from_bits);
                }
            }
            TokenScaleLayout::None | TokenScaleLayout::Separate(_) => {
                if let Some(to) = self.k_token.get_mut(at / size_of::<f32>()) {
                    *to = scale;
                }
            }
        }
    }
}

fn check_permutation(order: &[i32]) -> Result<()> {
    let mut seen = vec![false; order.len()];
    for &page in order {
        match usize::try_from(page).ok().and_then(|page| seen.get_mut(page)) {
            Some(seen) if !*seen => *seen = true,
            _ => return Err(Error::value("page order", format!("a permutation of 0..{}", order.len()), page)),
        }
    }
    Ok(())
}
