//! Device memory as the launchers see it, and the checks on it.

use super::{int, product};
use crate::error::{Error, Result};
use crate::kv::{PageLayout, TokenScaleLayout, check_page_size};
use float8::F8E4M3;
use std::fmt;
use std::marker::PhantomData;
use stem_attn_kernels::abi::{self, PageStrides, TokenScales};
use stem_attn_kernels::config::HEAD_DIM;

/// Vector loads, bulk copies and tensor maps move 16 bytes at a time.
const VECTOR_BYTES: u64 = 16;

/// Strides of a tensor map have 40 bits.
pub(super) const MAX_STRIDE: u64 = 1 << 40;

/// `len` elements of device memory.
pub struct Span<T> {
    address: u64,
    len: usize,
    element: PhantomData<fn() -> T>,
}

impl<T> Clone for Span<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Span<T> {}

impl<T> fmt::Debug for Span<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}[{}]", self.address, self.len)
    }
}

impl<T> Span<T> {
    /// The `len` elements at device address `address`.
    ///
    /// # Safety
    /// They are device memory of the stream's context that stays allocated until every kernel launched with this span has
    /// run; work on other streams that touches it is ordered against those kernels; and what a kernel writes to no
    /// host reference points to.
    pub const unsafe fn from_raw(address: u64, len: usize) -> Self {
        Self { address, len, element: PhantomData }
    }

    /// Device address.
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// Elements.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no element.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes.
    pub const fn bytes(&self) -> u64 {
        self.len as u64 * size_of::<T>() as u64
    }

    /// Checks that the elements of `extents` are there and aligned.
    pub(super) fn require(&self, name: &'static str, extents: &[usize]) -> Result<()> {
        if self.len < product(name, extents)? {
            return Err(Error::shape(name, format!("{extents:?}"), format!("{} elements", self.len)));
        }
        if !self.address.is_multiple_of(align_of::<T>() as u64) {
            return Err(Error::value(
                name,
                format!("an address that is a multiple of {}", align_of::<T>()),
                format!("{:#x}", self.address),
            ));
        }
        Ok(())
    }

    /// Checks that the rows of a `[tokens, heads, 128]` tensor with these strides are there and aligned to 16 bytes; gives the
    /// strides in bytes.
    pub(super) fn require_rows(&self, name: &'static str, strides: RowStrides, tokens: usize, heads: usize) -> Result<abi::RowStrides> {
        let bytes = strides.bytes::<T>(name)?;
        self.require_vectors(name, &[reach(name, [(strides.token, tokens), (strides.head, heads)], HEAD_DIM)?])?;
        Ok(bytes)
    }

    /// As [`Self::require`], for a tensor that kernels read or write 16 bytes at a time.
    pub(super) fn require_vectors(&self, name: &'static str, extents: &[usize]) -> Result<()> {
        self.require(name, extents)?;
        if !self.address.is_multiple_of(VECTOR_BYTES) {
            return Err(Error::value(name, format!("an address that is a multiple of {VECTOR_BYTES}"), format!("{:#x}", self.address)));
        }
        Ok(())
    }
}

/// Elements up to the end of the last row of a tensor of rows of `row` elements, which has two more extents with a stride each.
fn reach(name: &'static str, extents: [(usize, usize); 2], row: usize) -> Result<usize> {
    if extents.iter().any(|&(_, n)| n == 0) {
        return Ok(0);
    }
    let last = extents.iter().try_fold(0usize, |sum, &(stride, n)| sum.checked_add(stride.checked_mul(n - 1)?));
    let too_large = || Error::shape(name, "a size that fits the address space", format!("(stride, extent) {extents:?}"));
    last.and_then(|last| last.checked_add(row)).ok_or_else(too_large)
}

/// Elements from one token, and from one head, of a `[tokens, heads, 128]` tensor to the next; the 128 are contiguous. Both are
/// multiples of 16 bytes below 2^40.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowStrides {
    /// From one token to the next.
    pub token: usize,
    /// From one head to the next.
    pub head: usize,
}

impl RowStrides {
    /// Heads side by side, tokens one after another.
    pub fn packed(heads: usize) -> Self {
        Self { token: heads.saturating_mul(HEAD_DIM), head: HEAD_DIM }
    }

    /// Byte strides for elements of type `T`.
    pub(crate) fn bytes<T>(&self, name: &'static str) -> Result<abi::RowStrides> {
        let bytes = |n: usize| {
            let bytes = u64::try_from(n).ok()?.checked_mul(size_of::<T>() as u64)?;
            (bytes.is_multiple_of(VECTOR_BYTES) && bytes < MAX_STRIDE).then_some(bytes as i64)
        };
        let both = bytes(self.token).zip(bytes(self.head)).map(|(token, head)| abi::RowStrides { token, head });
        both.ok_or_else(|| {
            Error::value(name, format!("strides that are multiples of {VECTOR_BYTES} bytes below 2^40"), format!("{self:?} elements"))
        })
    }

    /// Checks that no two rows of 128 overlap.
    pub(crate) fn apart(&self, name: &'static str, tokens: usize, heads: usize) -> Result<()> {
        let mut dims = [(self.token, tokens), (self.head, heads)];
        dims.sort_unstable();
        let mut free = HEAD_DIM;
        for (stride, n) in dims.into_iter().filter(|&(_, n)| n > 1) {
            if stride < free {
                return Err(Error::value(name, "strides that keep its rows apart", format!("{self:?} of [{tokens}, {heads}, 128]")));
            }
            free = stride.saturating_mul(n - 1).saturating_add(free);
        }
        Ok(())
    }
}

/// Elements from one token, and from one head, of the `[tokens, heads]` scales of the queries to the next. `[heads, tokens]` takes the
/// fewest bytes from device memory: what selection reads of a head's scales then lies side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScaleStrides {
    /// From one token to the next; below 2^29.
    pub token: usize,
    /// From one head to the next; below 2^38.
    pub head: usize,
}

impl ScaleStrides {
    /// `[tokens, heads]`.
    pub fn packed(heads: usize) -> Self {
        Self { token: heads, head: 1 }
    }

    /// `[heads, tokens]`, or with `tokens` from one head to the next where there is room for more than there are.
    pub fn heads_first(tokens: usize) -> Self {
        Self { token: 1, head: tokens }
    }

    /// Strides in bytes.
    pub(crate) fn bytes(&self, name: &'static str) -> Result<abi::RowStrides> {
        let bytes = |n: usize, limit: u64| {
            let bytes = u64::try_from(n).ok()?.checked_mul(size_of::<f32>() as u64)?;
            (bytes < limit).then_some(bytes as i64)
        };
        let both = bytes(self.token, 1 << 31).zip(bytes(self.head, MAX_STRIDE)).map(|(token, head)| abi::RowStrides { token, head });
        both.ok_or_else(|| Error::value(name, "strides below 2^29 elements a token and 2^38 a head", format!("{self:?}")))
    }
}

impl Span<f32> {
    /// Checks that `[tokens, heads]` elements with these strides are there; gives the strides in bytes.
    pub(super) fn require_scales(&self, name: &'static str, strides: ScaleStrides, tokens: usize, heads: usize) -> Result<abi::RowStrides> {
        let bytes = strides.bytes(name)?;
        self.require(name, &[reach(name, [(strides.token, tokens), (strides.head, heads)], 1)?])?;
        Ok(bytes)
    }
}

/// Head counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads, a multiple of `hkv`.
    pub hq: usize,
    /// KV heads.
    pub hkv: usize,
}

impl Heads {
    /// Checks the ratio.
    ///
    /// # Errors
    /// [`Error::Value`] unless `hq` is a positive multiple of `hkv`.
    pub fn new(hq: usize, hkv: usize) -> Result<Self> {
        if hkv == 0 || hq == 0 || !hq.is_multiple_of(hkv) {
            return Err(Error::value("heads", "query heads a positive multiple of KV heads", format!("{hq} and {hkv}")));
        }
        Ok(Self { hq, hkv })
    }

    /// Query heads per KV head.
    pub fn group(&self) -> usize {
        self.hq / self.hkv
    }
}

/// Dequantisation scales of K and V: `[1]` or `[hkv]` each, and those of single keys.
#[derive(Clone, Copy, Debug)]
pub struct Scales {
    /// Multiplies K.
    pub k: Span<f32>,
    /// Multiplies V.
    pub v: Span<f32>,
    /// Multiply K per token and head, where [`PageDesc::k_token_scales`] says that they are in a tensor of their own.
    pub k_token: Option<Span<f32>>,
}

impl Scales {
    /// Strides of both (0: one for all heads).
    pub(super) fn strides(&self, hkv: usize) -> Result<[i32; 2]> {
        let stride = |name, span: &Span<f32>| {
            span.require(name, &[1])?;
            match span.len {
                1 => Ok(0),
                n if n == hkv => Ok(1),
                n => Err(Error::shape(name, format!("[1] or [{hkv}]"), format!("[{n}]"))),
            }
        };
        Ok([stride("k_scale", &self.k)?, stride("v_scale", &self.v)?])
    }
}

/// Shape of a paged KV cache and of its page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageDesc {
    /// Tokens in a page: 16, 32, 64, 128 or 256.
    pub page_size: usize,
    /// Pages.
    pub pages: usize,
    /// Byte strides of K: multiples of 16; rows of 128 bytes are contiguous.
    pub k_strides: PageStrides,
    /// Byte strides of V.
    pub v_strides: PageStrides,
    /// Entries of one request in the page table.
    pub table_stride: usize,
    /// Where the scales of single keys are, if keys have any.
    pub k_token_scales: TokenScaleLayout,
}

impl PageDesc {
    /// Densely packed pages, without scales of single keys.
    pub fn dense(layout: PageLayout, hkv: usize, page_size: usize, pages: usize, table_stride: usize) -> Self {
        let strides = layout.strides(hkv, page_size);
        Self { page_size, pages, k_strides: strides, v_strides: strides, table_stride, k_token_scales: TokenScaleLayout::None }
    }

    /// Checks everything but the buffers, for a batch whose longest request has `longest` tokens; gives the elements that
    /// the K and V buffers must have.
    ///
    /// # Errors
    /// [`Error::Value`] or [`Error::Shape`] naming the field.
    pub fn check(&self, longest: usize, hkv: usize) -> Result<[usize; 2]> {
        check_page_size(self.page_size)?;
        int("pages", self.pages)?;
        int("table_stride", self.table_stride)?;
        if self.pages == 0 && longest > 0 {
            return Err(Error::value("pages", "at least 1", 0));
        }
        let used = longest.div_ceil(self.page_size);
        if used > self.table_stride {
            return Err(Error::shape("page_table", format!("{used} entries a request"), self.table_stride));
        }
        let end = |name, strides| {
            page_end(strides, self.pages, self.page_size, hkv).ok_or_else(|| {
                Error::value(name, format!("strides from 0 to 2^40 bytes, multiples of {VECTOR_BYTES}"), format!("{strides:?}"))
            })
        };
        let scales = self.k_token_scales.end(self.pages, self.page_size, hkv)?;
        let in_pages = matches!(self.k_token_scales, TokenScaleLayout::InPages { .. });
        Ok([end("k_pages", self.k_strides)?.max(if in_pages { scales } else { 0 }), end("v_pages", self.v_strides)?])
    }
}

/// A paged KV cache in device memory.
#[derive(Clone, Copy, Debug)]
pub struct Paged {
    /// e4m3 pages of K.
    pub k_pages: Span<F8E4M3>,
    /// e4m3 pages of V.
    pub v_pages: Span<F8E4M3>,
    /// `[batch, table_stride]`; entries outside `0..pages` read as zeros.
    pub table: Span<i32>,
    /// Shape of the three.
    pub desc: PageDesc,
}

impl Paged {
    /// Checks page size, strides, and the extents of pages and table for a batch whose longest request has `longest` tokens.
    pub(super) fn check(&self, batch: usize, longest: usize, hkv: usize) -> Result<()> {
        let [k, v] = self.desc.check(longest, hkv)?;
        self.table.require("page_table", &[batch, self.desc.table_stride])?;
        self.k_pages.require_vectors("k_pages", &[k])?;
        self.v_pages.require_vectors("v_pages", &[v])
    }

    /// Scales of single keys as the kernels take them, all zero where keys have none. `check` has passed.
    pub(super) fn token_scales(&self, scales: &Scales, hkv: usize) -> Result<TokenScales> {
        let Some((offset, strides)) = self.desc.k_token_scales.strides() else { return Ok(TokenScales::default()) };
        let first = match (self.desc.k_token_scales, scales.k_token) {
            (TokenScaleLayout::InPages { .. }, _) => self.k_pages.address() + offset as u64,
            (_, Some(span)) => {
                let bytes = self.desc.k_token_scales.end(self.desc.pages, self.desc.page_size, hkv)?;
                span.require("k_token_scale", &[bytes / size_of::<f32>()])?;
                span.address()
            }
            (_, None) => return Err(Error::shape("k_token_scale", "a scale per token and head, as the pages say", "none")),
        };
        Ok(TokenScales { first, strides, pages: int("pages", self.desc.pages)?, reserved: 0 })
    }
}

/// Bytes from the first row to the end of the last, or `None` for strides that no tensor map can hold.
fn page_end(strides: PageStrides, pages: usize, page_size: usize, hkv: usize) -> Option<usize> {
    let part = |stride: i64, n: usize| {
        let stride = u64::try_from(stride).ok().filter(|&s| s.is_multiple_of(VECTOR_BYTES) && s < MAX_STRIDE)?;
        usize::try_from(stride).ok()?.checked_mul(n.saturating_sub(1))
    };
    let last = part(strides.page, pages)?.checked_add(part(strides.token, page_size)?)?.checked_add(part(strides.head, hkv)?)?;
    if pages == 0 { Some(0) } else { last.checked_add(HEAD_DIM) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span<T>(address: u64, len: usize) -> Span<T> {
        // SAFETY: the tests launch nothing.
        unsafe { Span::from_raw(address, len) }
    }

    fn paged(layout: PageLayout) -> Paged {
        let elements = 5 * 16 * 2 * 128;
        Paged {
            k_pages: span(0x1000, elements),
            v_pages: span(0x2000, elements),
            table: span(0x40, 12),
            desc: PageDesc::dense(layout, 2, 16, 5, 4),
        }
    }

    #[test]
    fn dense_pages_fit_to_the_byte() {
        for layout in [PageLayout::Nhd, PageLayout::Hnd] {
            let kv = paged(layout);
            assert!(kv.check(3, 64, 2).is_ok());
            let short = Paged { v_pages: span(0x2000, kv.v_pages.len() - 1), ..kv };
            assert!(matches!(short.check(3, 64, 2), Err(Error::Shape { tensor: "v_pages", .. })));
        }
    }

    #[test]
    fn bad_pages_are_named() {
        let kv = paged(PageLayout::Nhd);
        let desc = kv.desc;
        let strides = desc.k_strides;
        let with = |desc| Paged { desc, ..kv };
        for (name, bad) in [
            ("page_size", with(PageDesc { page_size: 24, ..desc })),
            ("pages", with(PageDesc { pages: 0, ..desc })),
            ("page_table", Paged { table: span(0x40, 11), ..kv }),
            ("page_table", with(PageDesc { table_stride: 3, ..desc })),
            ("k_pages", with(PageDesc { pages: 6, ..desc })),
            ("k_pages", with(PageDesc { k_strides: PageStrides { token: -16, ..strides }, ..desc })),
            ("k_pages", with(PageDesc { k_strides: PageStrides { head: 8, ..strides }, ..desc })),
            ("v_pages", with(PageDesc { v_strides: PageStrides { page: i64::MAX - 15, ..strides }, ..desc })),
            ("k_pages", Paged { k_pages: span(0x1008, usize::MAX), ..kv }),
        ] {
            match bad.check(3, 64, 2) {
                Err(Error::Shape { tensor, .. }) => assert_eq!(tensor, name),
                Err(Error::Value { name: got, .. }) => assert_eq!(got, name),
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    #[test]
    fn scales_are_one_or_one_per_head() {
        let scales = |k, v| Scales { k: span(16, k), v: span(16, v), k_token: None };
        assert_eq!(scales(1, 4).strides(4).ok(), Some([0, 1]));
        assert!(matches!(scales(2, 1).strides(4), Err(Error::Shape { tensor: "k_scale", .. })));
        assert!(matches!(scales(1, 0).strides(4), Err(Error::Shape { tensor: "v_scale", .. })));
    }

    #[test]
    fn scales_of_single_keys_lie_inside_their_tensor() {
        let kv = paged(PageLayout::Hnd);
        let scales = |k_token| Scales { k: span(16, 1), v: span(16, 1), k_token };
        assert_eq!(kv.token_scales(&scales(None), 2).ok(), Some(TokenScales::default()));
        let separate = TokenScaleLayout::Separate(PageLayout::Hnd.scale_strides(2, 16));
        let kv = Paged { desc: PageDesc { k_token_scales: separate, ..kv.desc }, ..kv };
        let found = kv.token_scales(&scales(Some(span(0x800, 5 * 16 * 2))), 2).expect("scales");
        assert_eq!((found.first, found.pages), (0x800, 5));
        for bad in [None, Some(span(0x800, 5 * 16 * 2 - 1)), Some(span(0x802, 5 * 16 * 2))] {
            assert!(kv.token_scales(&scales(bad), 2).is_err(), "{bad:?}");
        }

        let (strides, inside) = PageLayout::Hnd.with_scale_rows(2, 16);
        let desc = PageDesc { k_strides: strides, v_strides: strides, k_token_scales: inside, ..kv.desc };
        let kv = Paged { k_pages: span(0x1000, 5 * 17 * 2 * 128), v_pages: span(0x8000, 5 * 17 * 2 * 128), desc, ..kv };
        assert!(kv.check(3, 64, 2).is_ok());
        assert_eq!(kv.token_scales(&scales(None), 2).expect("scales").first, 0x1000 + 16 * 128);
        // The last row is needed for the scales alone.
        let short = Paged { k_pages: span(0x1000, 5 * 17 * 2 * 128 - 128), ..kv };
        assert!(matches!(short.check(3, 64, 2), Err(Error::Shape { tensor: "k_pages", .. })));
    }

    #[test]
    fn rows_with_strides_lie_inside_and_apart() {
        let strides = RowStrides { token: 3 * 128 + 16, head: 128 };
        let need = 9 * (3 * 128 + 16) + 2 * 128 + 128;
        assert_eq!(span::<F8E4M3>(16, need).require_rows("q", strides, 10, 3).ok(), Some(abi::RowStrides { token: 400, head: 128 }));
        assert!(matches!(span::<F8E4M3>(16, need - 1).require_rows("q", strides, 10, 3), Err(Error::Shape { tensor: "q", .. })));
        assert!(matches!(span::<F8E4M3>(8, need).require_rows("q", strides, 10, 3), Err(Error::Value { name: "q", .. })));
        assert!(span::<F8E4M3>(16, 1).require_rows("q", strides, 0, 3).is_ok(), "no rows");
        for bad in
            [RowStrides { token: 392, ..strides }, RowStrides { head: 1 << 40, ..strides }, RowStrides { token: usize::MAX, ..strides }]
        {
            assert!(matches!(span::<F8E4M3>(16, usize::MAX).require_rows("q", bad, 10, 3), Err(Error::Value { name: "q", .. })), "{bad:?}");
        }
        // Eight bf16 are 16 bytes.
        assert!(RowStrides { token: 384, head: 136 }.bytes::<half::bf16>("out").is_ok());
        assert!(RowStrides { token: 384, head: 132 }.bytes::<half::bf16>("out").is_err());

        let apart = |token, head, tokens, heads| RowStrides { token, head }.apart("out", tokens, heads).is_ok();
        assert!(apart(384, 128, 10, 3) && apart(128, 1280, 10, 3) && apart(0, 128, 1, 3) && apart(128, 0, 10, 1));
        assert!(!apart(368, 128, 10, 3) && !apart(128, 1272, 10, 3) && !apart(112, 128, 10, 1) && !apart(128, 128, 2, 2));
    }

    #[test]
    fn scales_with_strides_lie_inside() {
        let found = |address, len, strides| span::<f32>(address, len).require_scales("q_scale", strides, 10, 3);
        assert_eq!(found(4, 30, ScaleStrides::packed(3)).ok(), Some(abi::RowStrides { token: 12, head: 4 }));
        assert_eq!(found(4, 30, ScaleStrides::heads_first(10)).ok(), Some(abi::RowStrides { token: 4, head: 40 }));
        assert!(matches!(found(4, 29, ScaleStrides::packed(3)), Err(Error::Shape { tensor: "q_scale", .. })));
        let padded = ScaleStrides::heads_first(16);
        assert!(found(4, 2 * 16 + 10, padded).is_ok(), "room behind the last token");
        assert!(matches!(found(4, 2 * 16 + 9, padded), Err(Error::Shape { tensor: "q_scale", .. })));
        assert!(matches!(found(2, 64, padded), Err(Error::Value { name: "q_scale", .. })));
        assert!(found(4, 10, ScaleStrides { token: 1, head: 0 }).is_ok(), "one scale for all heads");
        assert!(span::<f32>(4, 0).require_scales("q_scale", padded, 0, 3).is_ok(), "no scales");
        for bad in [
            ScaleStrides { token: 1 << 29, head: 1 },
            ScaleStrides { token: 1, head: 1 << 38 },
            ScaleStrides { token: usize::MAX, head: 1 },
        ] {
            assert!(matches!(found(4, usize::MAX, bad), Err(Error::Value { name: "q_scale", .. })), "{bad:?}");
        }
    }

    #[test]
    fn head_ratios() {
        assert_eq!(Heads::new(32, 4).ok().map(|h| h.group()), Some(8));
        for (hq, hkv) in [(0, 1), (1, 0), (3, 2), (2, 4)] {
            assert!(Heads::new(hq, hkv).is_err(), "{hq}/{hkv}");
        }
    }
}
