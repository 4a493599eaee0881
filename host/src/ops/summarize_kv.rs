//! `summarize_kv`: key sums, run norms and transposed V tiles of every key block.

use super::{Launcher, Paged, Scales, Span, int};
use crate::driver::{Arg, Launch};
use crate::error::Result;
use half::bf16;
use stem_attn_kernels::abi::{KeyBlock, QueryBlock, Request, SummarizeKvParams};
use stem_attn_kernels::config::{RUNS, SUM_LEN, TILE_BYTES};

/// Buffers of [`summarize_kv`].
#[derive(Clone, Copy, Debug)]
pub struct SummarizeKv {
    /// Pages and page table.
    pub kv: Paged,
    /// Dequantisation scales.
    pub scales: Scales,
    /// Out, where selection needs it: `[hkv, total_kb, 16, 128]`, group g at 15 - g.
    pub k_sums: Option<Span<bf16>>,
    /// Out, where selection needs it: `[hkv, total_kb, 8]`.
    pub run_norms: Option<Span<f32>>,
    /// Out: e4m3 codes `[total_kb, hkv, 16384]` in operand order.
    pub v_tiles: Span<u8>,
    /// Which blocks to summarise.
    pub blocks: Blocks,
}

/// Blocks along the second extent of the grid, at most.
const ROWS: usize = 32_768;

/// Key blocks of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocks {
    /// Every block with a token.
    All,
    /// Blocks with a new token. What is known of the others must be in the outputs already: a chunk of a prompt pays for its own
    /// blocks only.
    New,
}

impl Blocks {
    /// The first block of a request.
    fn first(self, request: &Request) -> i32 {
        match self {
            Self::All => 0,
            Self::New => request.first_block,
        }
    }

    /// The table that names the blocks: its address, the bytes of an entry, and how many it has.
    pub(super) fn table(self, at: &Launcher<'_>) -> (u64, usize, usize) {
        let geometry = at.geometry.host();
        match self {
            Self::All => (at.geometry.key_blocks().address(), size_of::<KeyBlock>(), geometry.total_kb()),
            Self::New => (at.geometry.query_blocks().address(), size_of::<QueryBlock>(), geometry.total_qb()),
        }
    }
}

/// Summarises key blocks of the batch. Room that a request has for the rest of its prompt stays as it is.
///
/// # Errors
/// [`crate::Error::Shape`] or [`crate::Error::Value`] naming the tensor, before anything is launched; [`crate::Error::Driver`].
pub fn summarize_kv(at: &Launcher<'_>, args: &SummarizeKv) -> Result<()> {
    let geometry = at.geometry.host();
    let (hkv, total_kb) = (at.heads.hkv, geometry.total_kb());
    args.kv.check(geometry.requests.len(), at.geometry.longest(), hkv)?;
    let [k_scale_stride, v_scale_stride] = args.scales.strides(hkv)?;
    let k_token = args.kv.token_scales(&args.scales, hkv)?;
    args.v_tiles.require_vectors("v_tiles", &[total_kb, hkv, TILE_BYTES])?;
    if let Some(k_sums) = &args.k_sums {
        k_sums.require_vectors("k_sums", &[hkv, total_kb, SUM_LEN])?;
    }
    if let Some(run_norms) = &args.run_norms {
        run_norms.require("run_norms", &[hkv, total_kb, RUNS])?;
    }
    let (blocks, block_stride, count) = args.blocks.table(at);
    let one = match geometry.requests.as_slice() {
        [request] => Some(*request),
        _ => None,
    };
    let params = SummarizeKvParams {
        k_pages: args.kv.k_pages.address(),
        v_pages: args.kv.v_pages.address(),
        page_table: args.kv.table.address(),
        requests: at.geometry.requests().address(),
        blocks,
        k_scale: args.scales.k.address(),
        v_scale: args.scales.v.address(),
        k_sums: args.k_sums.map_or(0, |s| s.address()),
        run_norms: args.run_norms.map_or(0, |s| s.address()),
        v_tiles: args.v_tiles.address(),
        k_strides: args.kv.desc.k_strides,
        v_strides: args.kv.desc.v_strides,
        k_token,
        k_scale_stride,
        v_scale_stride,
        page_size: int("page_size", args.kv.desc.page_size)?,
        table_stride: int("table_stride", args.kv.desc.table_stride)?,
        pages: int("pages", args.kv.desc.pages)?,
        total_kb: int("total_kb", total_kb)?,
        hkv: int("hkv", hkv)?,
        block_stride: if one.is_some() { 0 } else { int("block_stride", block_stride)? },
        request: one.unwrap_or_default(),
        first_block: one.map_or(0, |request| args.blocks.first(&request)),
        count: int("blocks", count)?,
    };
    let grid = grid(hkv, count);
    let kernel = if k_token.first == 0 { &at.kernels.summarize_kv } else { &at.kernels.summarize_kv_token_scales };
    // SAFETY: the kernel takes this one block; every extent it touches was checked above, the spans promise the memory, and
    // tokens of a page-table entry outside `0..pages` read as zeros.
    unsafe { kernel.launch(at.stream, &grid, &[Arg::of(&params)]) }
}

/// Heads first: their rows lie side by side in a page. The other two extents of a grid have 16 bits.
fn grid(hkv: usize, count: usize) -> Launch {
    Launch::grid(hkv, count.min(ROWS), count.div_ceil(ROWS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_have_room_for_every_block_and_stay_inside_the_limits() {
        assert!(grid(4, 0).is_empty());
        for count in [1, 7, ROWS - 1, ROWS, ROWS + 1, 3 * ROWS + 5, 65_536, 1 << 26] {
            let launch = grid(4, count);
            assert!(launch.validate("summarize_kv").is_ok(), "{count}");
            let [heads, rows, layers] = launch.grid.map(|extent| extent as usize);
            assert_eq!(heads, 4);
            assert!(rows * layers >= count && rows * (layers - 1) < count, "{count}");
        }
    }
}
