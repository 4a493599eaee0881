//! Tensor maps of `select_stem`.

use super::span::MAX_STRIDE;
use super::{Launcher, Span};
use crate::driver::{ElementType, Swizzle, TensorMap, TensorMapDesc};
use crate::error::Result;
use float8::F8E4M3;
use half::bf16;
use stem_attn_kernels::abi::RowStrides;
use stem_attn_kernels::config::select::{PART_TOKENS, STEP, TILE};
use stem_attn_kernels::config::{GROUPS, HEAD_DIM, SUM_LEN};

/// Sums as `[2048, total_kb, hkv]` in boxes of 64 elements of so many tiles of 64 key blocks of one head.
pub(super) fn key_sums(at: &Launcher<'_>, sums: &Span<bf16>, tiles: u32) -> Result<TensorMap> {
    let (blocks, heads) = (at.geometry.host().total_kb() as u64, at.heads.hkv as u64);
    let row = (SUM_LEN * size_of::<bf16>()) as u64;
    let desc = TensorMapDesc {
        name: "k_sums",
        element: ElementType::Bf16,
        address: sums.address(),
        bytes: sums.bytes(),
        dims: &[SUM_LEN as u64, blocks, heads],
        strides: &[row, row * blocks],
        box_dims: &[STEP, tiles * TILE, 1],
        swizzle: Swizzle::B128,
    };
    TensorMap::encode(at.kernels.device(), &desc)
}

/// The same in boxes of one and of two tiles, every second one of the tensor's, as `select_stem_wide` has them:
/// `[2048, first key blocks, tiles, hkv]`. A map ends where all tiles of a box are in the tensor.
pub(super) fn every_second_tile(at: &Launcher<'_>, sums: &Span<bf16>) -> Result<[TensorMap; 2]> {
    let map = |tiles| {
        let view = TileView::new(at.geometry.host().total_kb(), at.heads.hkv, tiles);
        TensorMap::encode(at.kernels.device(), &view.desc(sums))
    };
    Ok([map(1)?, map(2)?])
}

/// Key sums in boxes of some tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TileView {
    dims: [u64; 4],
    strides: [u64; 3],
    box_dims: [u32; 4],
}

impl TileView {
    fn new(total_kb: usize, hkv: usize, tiles: u32) -> Self {
        let row = (SUM_LEN * size_of::<bf16>()) as u64;
        let there = total_kb.saturating_sub((2 * TILE * (tiles - 1)) as usize) as u64;
        // There has to be a map: of the first key block, if it is one the kernel does not look at.
        let dims = if there > 0 { [SUM_LEN as u64, there, tiles.into(), hkv as u64] } else { [SUM_LEN as u64, 1, 1, 1] };
        Self { dims, strides: [row, u64::from(2 * TILE) * row, row * total_kb as u64], box_dims: [STEP, TILE, tiles, 1] }
    }

    fn desc(&self, sums: &Span<bf16>) -> TensorMapDesc<'_> {
        TensorMapDesc {
            name: "k_sums",
            element: ElementType::Bf16,
            address: sums.address(),
            bytes: sums.bytes(),
            dims: &self.dims,
            strides: &self.strides,
            box_dims: &self.box_dims,
            swizzle: Swizzle::B128,
        }
    }
}

/// The map of the queries, which are there and have checked strides, and how many tokens it reaches.
pub(super) fn queries(at: &Launcher<'_>, q: &Span<F8E4M3>, rows: RowStrides) -> Result<(TensorMap, usize)> {
    let view = QueryView::new(at.geometry.host().total_q, at.heads.hq, rows);
    Ok((TensorMap::encode(at.kernels.device(), &view.desc(q))?, view.mapped))
}

/// Queries as `[128, 16, sixteens of tokens, hq]`: a box has every sixteenth token from any one on, which is one group of the query
/// blocks, whatever token they begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct QueryView {
    dims: [u64; 4],
    strides: [u64; 3],
    /// Tokens of the batch that it reaches, from the first: whole sixteens, for a tensor has no ragged edge.
    mapped: usize,
}

impl QueryView {
    const BOX: [u32; 4] = [HEAD_DIM as u32, 1, PART_TOKENS, 1];

    fn new(total_q: usize, hq: usize, rows: RowStrides) -> Self {
        let (token, row) = (rows.token.unsigned_abs(), HEAD_DIM as u64);
        // The stride of a single head is never used, and may be anything.
        let head = if hq == 1 { row } else { rows.head.unsigned_abs() };
        let (group, sixteens) = (token.saturating_mul(GROUPS as u64), total_q / GROUPS);
        if sixteens == 0 || token < row || head < row || group >= MAX_STRIDE {
            // There has to be a map: of the first row, which the kernel does not look at. Rows that overlap, and tokens 64 GiB apart,
            // need not be fast.
            return Self { dims: [row, 1, 1, 1], strides: [row; 3], mapped: 0 };
        }
        Self { dims: [row, GROUPS as u64, sixteens as u64, hq as u64], strides: [token, group, head], mapped: sixteens * GROUPS }
    }

    fn desc(&self, q: &Span<F8E4M3>) -> TensorMapDesc<'_> {
        TensorMapDesc {
            name: "q",
            element: ElementType::U8,
            address: q.address(),
            bytes: q.bytes(),
            dims: &self.dims,
            strides: &self.strides,
            box_dims: &Self::BOX,
            swizzle: Swizzle::B128,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops;

    fn span(len: usize) -> Span<F8E4M3> {
        // SAFETY: nothing is launched.
        unsafe { Span::from_raw(0x7f00_0000_0000, len) }
    }

    /// Element (k, j, t, h) of a map of key sums is key block j + 128 t of head h; none lies behind the tensor.
    #[test]
    fn maps_of_every_second_tile_stay_inside_the_tensor() {
        for total_kb in [1, 63, 64, 65, 127, 128, 129, 192, 193, 1000, 8192] {
            for (hkv, tiles) in [(1, 1), (1, 2), (4, 1), (4, 2)] {
                // SAFETY: nothing is launched.
                let sums = unsafe { Span::from_raw(0x7f00_0000_0000, hkv * total_kb * SUM_LEN) };
                let view = TileView::new(total_kb, hkv, tiles);
                view.desc(&sums).validate().unwrap_or_else(|e| panic!("{total_kb}, {hkv}, {tiles}: {e}"));
                let blocks = total_kb.saturating_sub(128 * (tiles as usize - 1)) as u64;
                let there = [SUM_LEN as u64, blocks, tiles.into(), hkv as u64];
                assert_eq!(view.dims, if blocks > 0 { there } else { [SUM_LEN as u64, 1, 1, 1] });
                assert_eq!(view.strides, [1, 128, total_kb as u64].map(|rows| rows * 4096));
            }
        }
    }

    /// Every map is legal, and ends where the tensor does or before.
    #[test]
    fn maps_of_queries_stay_inside_the_tensor() {
        for total_q in [1, 15, 16, 17, 31, 32, 1000, 8191, 8192, 1 << 20] {
            for hq in [1, 2, 32, 40] {
                let gap = ops::RowStrides { token: 144, head: total_q * 144 + 32 };
                let far = ops::RowStrides { token: 1 << 36, head: 128 };
                let nothing = ops::RowStrides { token: 0, head: 0 };
                let near = ops::RowStrides { token: hq * 128, head: 16 };
                let heads_first = ops::RowStrides { token: 128, head: total_q * 128 };
                for strides in [ops::RowStrides::packed(hq), heads_first, gap, far, nothing, near] {
                    let len = (total_q - 1) * strides.token + (hq - 1) * strides.head + HEAD_DIM;
                    let q = span(len);
                    let rows = q.require_rows("q", strides, total_q, hq).expect("rows that are there");
                    let view = QueryView::new(total_q, hq, rows);
                    view.desc(&q).validate().unwrap_or_else(|e| panic!("{total_q}, {hq}, {strides:?}: {e}"));
                    let reachable = strides.token >= 128 && strides.token < 1 << 36 && (strides.head >= 128 || hq == 1);
                    assert_eq!(view.mapped, if reachable { total_q / 16 * 16 } else { 0 }, "{total_q}, {hq}, {strides:?}");
                }
            }
        }
    }

    /// Element (d, r, s, h) is token 16 s + r of head h.
    #[test]
    fn a_box_is_every_sixteenth_token() {
        for strides in [RowStrides { token: 4096, head: 128 }, RowStrides { token: 128, head: 128 * 1000 }] {
            let view = QueryView::new(1000, 32, strides);
            assert_eq!((view.dims, view.mapped), ([128, 16, 62, 32], 992));
            for (token, head) in [(0, 0), (17, 3), (991, 31)] {
                let [low, high, heads] = view.strides;
                let at = token % 16 * low + token / 16 * high + head * heads;
                assert_eq!(at as i64, token as i64 * strides.token + head as i64 * strides.head);
            }
        }
        // One head has whatever stride.
        assert_eq!(QueryView::new(32, 1, RowStrides { token: 128, head: 0 }).dims, [128, 16, 2, 1]);
    }
}
