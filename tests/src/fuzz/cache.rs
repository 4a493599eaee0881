//! Paged caches with strides of every kind, whatever no token owns being NaN.

use float8::F8E4M3;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, RngExt};
use stem_attn::kv::{PageLayout, PagedKv, TokenScaleLayout};
use stem_attn::ops::PageDesc;
use stem_attn_kernels::abi::{PageStrides, ScaleStrides};

/// Bytes of a row.
const ROW: usize = 128;

/// NaN.
const NAN: F8E4M3 = F8E4M3::from_bits(0x7f);

/// A paged cache in host memory.
#[derive(Clone, Debug)]
pub struct Cache {
    /// Pages of K.
    pub k: Vec<F8E4M3>,
    /// Pages of V.
    pub v: Vec<F8E4M3>,
    /// Scales of single keys, where they have a tensor of their own.
    pub k_token: Vec<f32>,
    /// `[batch, table_stride]`.
    pub table: Vec<i32>,
    /// Shape of all that.
    pub desc: PageDesc,
    hkv: usize,
}

/// Where scales of single keys go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnScales {
    /// Nowhere.
    None,
    /// Into a tensor of their own.
    Separate,
    /// Into rows of the pages.
    InPages,
}

/// Dense tensors to be paged: `[total_kv, hkv, 128]` and `[total_kv, hkv]`.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Keys.
    pub k: &'a [F8E4M3],
    /// Values.
    pub v: &'a [F8E4M3],
    /// Scales of single keys.
    pub own: &'a [f32],
    /// Where those go.
    pub scales: OwnScales,
    /// KV heads.
    pub hkv: usize,
    /// Lengths of the requests.
    pub kv_lens: &'a [usize],
}

/// Strides of a tensor with extents `dims`, in units of `unit` bytes, in a random order of the dimensions with random gaps;
/// `inner` is the size of an element. Gives the tensor's size, too.
fn strides<const N: usize>(rng: &mut StdRng, dims: [usize; N], inner: usize, unit: usize, gaps: bool) -> ([i64; N], usize) {
    let mut order: [usize; N] = std::array::from_fn(|i| i);
    order.shuffle(rng);
    let (mut strides, mut size) = ([0; N], inner);
    for dim in order {
        let gap = if gaps { unit * rng.random_range(0..3) } else { 0 };
        strides[dim] = (size + gap) as i64;
        size = (size + gap) * dims[dim].max(1);
    }
    (strides, size)
}

impl Cache {
    /// Pages `from` in pages of `page_size` tokens, in random places of a pool with pages to spare.
    pub fn random(rng: &mut StdRng, from: &Source<'_>, page_size: usize) -> Self {
        let hkv = from.hkv;
        let used = |len: usize| len.div_ceil(page_size);
        let pages = from.kv_lens.iter().map(|&len| used(len)).sum::<usize>() + rng.random_range(1..4);
        let table_stride = from.kv_lens.iter().map(|&len| used(len)).max().unwrap_or(0) + rng.random_range(0..3);
        let mut free: Vec<i32> = (0..pages as i32).collect();
        free.shuffle(rng);
        // What is past a request's last page may be anything.
        let mut table: Vec<i32> =
            (0..from.kv_lens.len() * table_stride).map(|_| [-1, i32::MAX, i32::MIN, pages as i32][rng.random_range(0..4)]).collect();
        for (b, &len) in from.kv_lens.iter().enumerate() {
            for entry in table.iter_mut().skip(b * table_stride).take(used(len)) {
                *entry = free.pop().expect("a page for every token");
            }
        }
        let dims = [pages, page_size, hkv];
        let mut page_strides = |gaps| match rng.random_range(0..4) {
            0 => {
                let s = PageLayout::Nhd.strides(hkv, page_size);
                (s, pages * s.page as usize)
            }
            1 => {
                let s = PageLayout::Hnd.strides(hkv, page_size);
                (s, pages * s.page as usize)
            }
            _ => {
                let ([page, token, head], size) = strides(rng, dims, ROW, 16, gaps);
                (PageStrides { page, token, head }, size)
            }
        };
        let (mut k_strides, mut k_size) = page_strides(true);
        let (v_strides, v_size) = page_strides(true);
        let (mut k_token, mut k_token_scales) = (Vec::new(), TokenScaleLayout::None);
        match from.scales {
            OwnScales::None => {}
            OwnScales::Separate => {
                let ([page, token, head], size) = strides(rng, dims, 4, 4, true);
                k_token = vec![f32::NAN; size / 4];
                k_token_scales = TokenScaleLayout::Separate(ScaleStrides { page, chunk: 32 * token, token, head });
            }
            OwnScales::InPages => {
                let layout = if rng.random() { PageLayout::Nhd } else { PageLayout::Hnd };
                (k_strides, k_token_scales) = layout.with_scale_rows(hkv, page_size);
                k_size = pages * k_strides.page as usize;
            }
        }
        let desc = PageDesc { page_size, pages, k_strides, v_strides, table_stride, k_token_scales };
        let mut cache = Self { k: vec![NAN; k_size], v: vec![NAN; v_size], k_token, table, desc, hkv };
        cache.fill(from);
        cache
    }

    /// Writes every token to its place, by arithmetic of its own.
    fn fill(&mut self, from: &Source<'_>) {
        let PageDesc { page_size, k_strides, v_strides, table_stride, .. } = self.desc;
        let at = |s: PageStrides, page: usize, token: usize, head: usize| {
            page * s.page as usize + token * s.token as usize + head * s.head as usize
        };
        let mut first = 0;
        for (b, &len) in from.kv_lens.iter().enumerate() {
            for t in 0..len {
                let page = self.table[b * table_stride + t / page_size] as usize;
                for head in 0..self.hkv {
                    let row = (first + t) * self.hkv + head;
                    let codes = row * ROW..(row + 1) * ROW;
                    self.k[at(k_strides, page, t % page_size, head)..][..ROW].copy_from_slice(&from.k[codes.clone()]);
                    self.v[at(v_strides, page, t % page_size, head)..][..ROW].copy_from_slice(&from.v[codes]);
                    let in_page = t % page_size;
                    let place = |first: usize, s: ScaleStrides| {
                        first
                            + page * s.page as usize
                            + in_page / 32 * s.chunk as usize
                            + in_page % 32 * s.token as usize
                            + head * s.head as usize
                    };
                    match self.desc.k_token_scales {
                        TokenScaleLayout::None => {}
                        TokenScaleLayout::Separate(s) => self.k_token[place(0, s) / 4] = from.own[row],
                        TokenScaleLayout::InPages { offset, strides } => {
                            let bytes = from.own[row].to_le_bytes().map(F8E4M3::from_bits);
                            self.k[place(offset, strides)..][..4].copy_from_slice(&bytes);
                        }
                    }
                }
            }
            first += len;
        }
    }

    /// As the CPU backend sees it.
    pub fn view(&self) -> PagedKv<'_> {
        PagedKv {
            k_pages: &self.k,
            v_pages: &self.v,
            k_strides: self.desc.k_strides,
            v_strides: self.desc.v_strides,
            page_size: self.desc.page_size,
            pages: self.desc.pages,
            hkv: self.hkv,
            table: &self.table,
            table_stride: self.desc.table_stride,
            k_token_scales: self.desc.k_token_scales,
            k_token: &self.k_token,
        }
    }
}

/// `n` codes of N(0, 1) times `size`, from a table: random numbers at the speed of memory.
pub fn normal_codes(rng: &mut StdRng, n: usize, size: f32) -> Vec<F8E4M3> {
    use rand_distr::StandardNormal;
    let half: Vec<f32> = (0..1 << 11).map(|_| size * rng.sample::<f32, _>(StandardNormal)).collect();
    // With every number its negative: a mean that is not 0 would show in sums over many keys.
    let table: Vec<F8E4M3> = half.iter().flat_map(|&x| [x, -x]).map(stem_attn::fp8::encode).collect();
    let mut codes = Vec::with_capacity(n + 4);
    while codes.len() < n {
        let bits = rng.next_u64();
        codes.extend((0..4).map(|i| table[(bits >> (16 * i)) as usize % table.len()]));
    }
    codes.truncate(n);
    codes
}
