//! The probe selector's key means as a part of its own: queued alone, and read back.

use super::tensors::write;
use super::workspace::Placed;
use super::{Plan, PrefillTensors, Workspace, fetch};
use crate::driver::CudaStream;
use crate::error::Result;
use crate::fp8;
use crate::geometry::Geometry;
use crate::reference::KeyMeans;
use float8::F8E4M3;
use rayon::prelude::*;
use std::sync::Arc;
use stem_attn_kernels::config::HEAD_DIM;
use stem_attn_kernels::config::probe_sel::{KEY_TILE_BYTES, SUB_BLOCKS, TILE_BLOCKS};
use stem_attn_kernels::layout::probe_sel::{first_tile, mean_offset};

impl Plan {
    /// The part of [`Self::summarize_kv`] that only the probe selector needs: key means, of all blocks or of the new ones. Queues
    /// nothing for another plan.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn probe_means(&self, stream: &Arc<CudaStream>, tensors: &PrefillTensors<'_>, workspace: &mut Workspace) -> Result<()> {
        let (tensors, _inputs) = tensors.spans(stream)?;
        let (scratch, _scratch) = write("workspace", workspace.buffer_mut(), stream)?;
        self.stage_probe_means(&self.launcher(stream), &tensors, &Placed::new(scratch, &self.layout)?)
    }

    /// The key means that the last `summarize_kv` left in the workspace, in the reference's order; empty for a plan without the
    /// probe selector. Waits for the stream.
    ///
    /// # Errors
    /// As [`Self::download_lists`].
    pub fn download_key_means(&self, stream: &Arc<CudaStream>, workspace: &Workspace) -> Result<KeyMeans> {
        let hkv = self.heads.hkv;
        let means = match self.layout.probe {
            Some(regions) => from_tiles(&fetch::<F8E4M3>(stream, workspace, regions.k_tiles)?, self.geometry(), hkv),
            None => Vec::new(),
        };
        Ok(KeyMeans { means, variances: Vec::new(), hkv })
    }
}

/// Means `[hkv, total_kb, 16, 128]` from tiles [`crate::ops::key_tiles`].
fn from_tiles(tiles: &[F8E4M3], geometry: &Geometry, hkv: usize) -> Vec<f32> {
    let (total_kb, of_head) = (geometry.total_kb(), tiles.len() / hkv.max(1));
    let mut means = vec![0f32; hkv * total_kb * SUB_BLOCKS * HEAD_DIM];
    means.par_chunks_exact_mut(SUB_BLOCKS * HEAD_DIM).enumerate().for_each(|(i, means)| {
        let tile = || {
            let block = geometry.key_blocks.get(i % total_kb)?;
            let request = geometry.requests.get(usize::try_from(block.request).ok()?)?;
            let first = usize::try_from(first_tile(block.request, request.kb_start)).ok()?;
            let block = usize::try_from(block.block).ok()?;
            let tile = tiles.get(i / total_kb * of_head + (first + block / TILE_BLOCKS) * KEY_TILE_BYTES..)?;
            Some((tile.get(..KEY_TILE_BYTES)?, block % TILE_BLOCKS))
        };
        let Some((tile, block)) = tile() else { return };
        for (at, mean) in means.iter_mut().enumerate() {
            *mean = fp8::decode(tile[mean_offset(block, at / HEAD_DIM, at % HEAD_DIM)]);
        }
    });
    means
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops;

    #[test]
    fn every_mean_is_found_in_its_tile() {
        // Two requests: the second one's tiles begin in the middle of none of the first one's.
        let (tokens, hkv) = ([0, 20 * 128, 20 * 128 + 300], 2);
        let geometry = Geometry::new(&tokens, &tokens, &[20 * 128, 300], true, None).unwrap();
        let [_, count, _] = ops::key_tiles(&geometry, hkv);
        let mut tiles = vec![F8E4M3::from_bits(0x7f); hkv * count * KEY_TILE_BYTES];
        let code = |head: usize, block: usize, at: usize| F8E4M3::from_bits(((head * 77 + block * 31 + at) % 0x70) as u8);
        for (head, block) in (0..hkv).flat_map(|h| (0..geometry.total_kb()).map(move |b| (h, b))) {
            let (request, own) = if block < 20 { (0, block) } else { (1, block - 20) };
            let tile = (head * count + first_tile(request, if request == 0 { 0 } else { 20 }) as usize + own / 16) * KEY_TILE_BYTES;
            for at in 0..16 * 128 {
                tiles[tile + mean_offset(own % 16, at / 128, at % 128)] = code(head, block, at);
            }
        }
        let means = from_tiles(&tiles, &geometry, hkv);
        assert_eq!(means.len(), hkv * 23 * 16 * 128);
        for (i, mean) in means.into_iter().enumerate() {
            let (block, at) = (i / 2048, i % 2048);
            assert_eq!(mean, fp8::decode(code(block / 23, block % 23, at)), "block {block}, element {at}");
        }
    }
}
