//! K scales per token and head of a paged cache: beside the pages, or in rows of the pages themselves.

use super::layout::PageLayout;
use crate::error::{Error, Result};
use stem_attn_kernels::abi::{PageStrides, ScaleStrides};
use stem_attn_kernels::config::HEAD_DIM;
use stem_attn_kernels::layout::pages::scale_offset;

/// Scales in one 128-byte row of a page.
const ROW_SCALES: usize = HEAD_DIM / size_of::<f32>();

/// Where the scales of single keys are. They multiply the scale of the tensor or head, `k_scale`; one that is not wanted is 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TokenScaleLayout {
    /// Keys have no scale of their own.
    #[default]
    None,
    /// In a tensor of their own.
    Separate(ScaleStrides),
    /// In the buffer of the K pages, as in Tencent's hpc-ops: see [`PageLayout::with_scale_rows`].
    InPages {
        /// Bytes from the first row of the pages to the first scale.
        offset: usize,
        /// Where the others are.
        strides: ScaleStrides,
    },
}

impl TokenScaleLayout {
    /// The strides, and the bytes from the start of the tensor that holds the scales to the first of them.
    pub fn strides(&self) -> Option<(usize, ScaleStrides)> {
        match *self {
            Self::None => None,
            Self::Separate(strides) => Some((0, strides)),
            Self::InPages { offset, strides } => Some((offset, strides)),
        }
    }

    /// Bytes that the tensor of the scales must have for `pages` pages of `page_size` tokens; 0 without scales.
    ///
    /// # Errors
    /// [`Error::Value`] naming `k_token_scale` for strides or an offset that are negative, no multiples of 4 or past 63 bits.
    pub fn end(&self, pages: usize, page_size: usize, hkv: usize) -> Result<usize> {
        let Some((first, s)) = self.strides() else { return Ok(0) };
        let (chunk, token) = (page_size.saturating_sub(1) / 32, page_size.saturating_sub(1).min(31));
        let parts = [(s.page, pages.saturating_sub(1)), (s.chunk, chunk), (s.token, token), (s.head, hkv.saturating_sub(1))];
        let end = parts.into_iter().try_fold(first, |end, (stride, n)| {
            let stride = usize::try_from(stride).ok().filter(|s| s.is_multiple_of(size_of::<f32>()))?;
            end.checked_add(stride.checked_mul(n)?)
        });
        let end = end.filter(|_| first.is_multiple_of(size_of::<f32>())).and_then(|end| end.checked_add(size_of::<f32>()));
        let end = end.filter(|&end| i64::try_from(end).is_ok());
        match end {
            Some(_) if pages == 0 || hkv == 0 => Ok(0),
            Some(end) => Ok(end),
            None => {
                Err(Error::value("k_token_scale", "an offset and strides that are multiples of 4 and not negative", format!("{self:?}")))
            }
        }
    }

    /// Bytes from the start of the tensor that holds the scales to one of them; `None` without scales or past the address space.
    pub(super) fn at(&self, page: usize, in_page: usize, head: usize) -> Option<usize> {
        let (first, strides) = self.strides()?;
        let [page, in_page, head] = [i32::try_from(page).ok()?, i32::try_from(in_page).ok()?, i32::try_from(head).ok()?];
        first.checked_add(usize::try_from(scale_offset(&strides, page, in_page, head)).ok()?)
    }
}

impl PageLayout {
    /// Strides of scales `[pages, page_size, hkv]` (NHD) or `[pages, hkv, page_size]` (HND), densely packed.
    pub fn scale_strides(self, hkv: usize, page_size: usize) -> ScaleStrides {
        let of = |n: usize| i64::try_from(n.saturating_mul(size_of::<f32>())).unwrap_or(i64::MAX);
        let page = of(hkv.saturating_mul(page_size));
        match self {
            Self::Nhd => ScaleStrides { page, chunk: of(hkv.saturating_mul(32)), token: of(hkv), head: of(1) },
            Self::Hnd => ScaleStrides { page, chunk: of(32), token: of(1), head: of(page_size) },
        }
    }

    /// Pages that hold the scales of their keys, in rows of 32 behind the rows of the tokens: `[pages, page_size + rows, hkv, 128]`
    /// (NHD) or `[pages, hkv, page_size + rows, 128]` (HND) with `rows = ceil(page_size / 32)`. Strides of the pages, and where the
    /// scales are.
    pub fn with_scale_rows(self, hkv: usize, page_size: usize) -> (PageStrides, TokenScaleLayout) {
        let strides = self.strides(hkv, page_size.saturating_add(page_size.div_ceil(ROW_SCALES)));
        let offset = usize::try_from(strides.token).unwrap_or(usize::MAX).saturating_mul(page_size);
        let scales = ScaleStrides { page: strides.page, chunk: strides.token, token: size_of::<f32>() as i64, head: strides.head };
        (strides, TokenScaleLayout::InPages { offset, strides: scales })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_has_a_place_of_its_own_for_every_scale_and_fills_its_tensor() {
        let (pages, hkv) = (3, 2);
        for layout in [PageLayout::Nhd, PageLayout::Hnd] {
            for page_size in [16, 32, 64, 128, 256] {
                let (strides, inside) = layout.with_scale_rows(hkv, page_size);
                for scales in [TokenScaleLayout::Separate(layout.scale_strides(hkv, page_size)), inside] {
                    let mut places: Vec<usize> = (0..pages * page_size * hkv)
                        .map(|i| scales.at(i / hkv / page_size, i / hkv % page_size, i % hkv).expect("a place"))
                        .collect();
                    places.sort_unstable();
                    places.dedup();
                    assert_eq!(places.len(), pages * page_size * hkv, "{scales:?}");
                    assert_eq!(places.last().map(|at| at + 4), scales.end(pages, page_size, hkv).ok(), "{scales:?}");
                    if let TokenScaleLayout::InPages { .. } = scales {
                        // None of them lies in a token's row.
                        let rows: Vec<usize> = (0..pages * page_size * hkv)
                            .map(|i| {
                                let (page, token, head) = (i / hkv / page_size, i / hkv % page_size, i % hkv);
                                page * strides.page as usize + token * strides.token as usize + head * strides.head as usize
                            })
                            .collect();
                        assert!(places.iter().all(|at| rows.iter().all(|row| !(row..&(row + 128)).contains(&at))), "{scales:?}");
                        assert!(places.iter().all(|&at| at < pages * strides.page as usize), "{scales:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn bad_strides_are_refused() {
        let good = PageLayout::Nhd.scale_strides(2, 64);
        assert_eq!(TokenScaleLayout::None.end(5, 64, 2).ok(), Some(0));
        for bad in [
            ScaleStrides { page: -4, ..good },
            ScaleStrides { token: 6, ..good },
            ScaleStrides { page: i64::MAX - 3, ..good },
            ScaleStrides { head: i64::MIN, ..good },
        ] {
            assert!(matches!(TokenScaleLayout::Separate(bad).end(5, 64, 2), Err(Error::Value { name: "k_token_scale", .. })), "{bad:?}");
        }
        assert!(TokenScaleLayout::InPages { offset: 2, strides: good }.end(5, 64, 2).is_err());
        assert!(TokenScaleLayout::InPages { offset: usize::MAX - 3, strides: good }.end(5, 64, 2).is_err());
    }
}
