//! Scratch memory of a plan: where its intermediate tensors lie.

use super::PlanSelection;
use crate::config::Selector;
use crate::driver::{CudaSlice, CudaStream, buffer};
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::ops::{self, Heads, Lists, Span};
use half::bf16;
use std::sync::Arc;
use stem_attn_kernels::config::{RUNS, SUM_LEN, TILE_BYTES};

/// Alignment of every tensor in the workspace: what the allocator gives, more than any load needs.
const ALIGN: usize = 256;

/// One tensor of the workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    /// Bytes from the workspace's start.
    pub offset: usize,
    /// Bytes.
    pub bytes: usize,
}

/// What selection keeps in the workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SelectRegions {
    /// bf16 `[hkv, total_kb, 16, 128]`.
    pub k_sums: Region,
    /// f32 `[hkv, total_kb, 8]`.
    pub run_norms: Region,
    /// f32: scores of requests too long for shared memory, while they are in work; empty where there is none.
    pub scratch: Region,
    /// i32 `[hq, total_qb, list_stride]`.
    pub lists: Region,
    /// i32 `[hq, total_qb]`.
    pub counts: Region,
    /// Columns of a score row.
    pub score_stride: usize,
    /// Capacity of a list.
    pub list_stride: usize,
}

/// What the probe selector keeps in the workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProbeRegions {
    /// e4m3 codes: [`ops::key_tiles`].
    pub k_tiles: Region,
    /// i32 `[hq, total_qb, list_stride]`.
    pub lists: Region,
    /// i32 `[hq, total_qb]`.
    pub counts: Region,
    /// Columns of a score row, where scores are asked for.
    pub score_stride: usize,
    /// Capacity of a list.
    pub list_stride: usize,
}

/// Where everything lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// e4m3 codes `[total_kb, hkv, 16384]`.
    pub v_tiles: Region,
    /// Intermediate tensors of the selection, when the plan selects by Stem's score.
    pub select: Option<SelectRegions>,
    /// The same, when it selects by probes.
    pub probe: Option<ProbeRegions>,
    bytes: usize,
}

impl Layout {
    /// Places the tensors of a batch.
    pub fn new(geometry: &Geometry, heads: Heads, selection: &PlanSelection) -> Result<Self> {
        let mut bytes = 0;
        let mut region = |name, extents: &[usize], element: usize| place(&mut bytes, name, extents, element);
        let (total_qb, total_kb) = (geometry.total_qb(), geometry.total_kb());
        let v_tiles = region("v_tiles", &[total_kb, heads.hkv, TILE_BYTES], 1)?;
        let select = match selection {
            PlanSelection::Stem(config) if config.selector == Selector::Stem => {
                let (score_stride, list_stride) = (geometry.max_kb.max(1), geometry.list_stride);
                Some(SelectRegions {
                    k_sums: region("k_sums", &[heads.hkv, total_kb, SUM_LEN], size_of::<bf16>())?,
                    run_norms: region("run_norms", &[heads.hkv, total_kb, RUNS], size_of::<f32>())?,
                    scratch: region("score scratch", &[ops::scratch_len(geometry)?], size_of::<f32>())?,
                    lists: region("lists", &[heads.hq, total_qb, list_stride], size_of::<i32>())?,
                    counts: region("counts", &[heads.hq, total_qb], size_of::<i32>())?,
                    score_stride,
                    list_stride,
                })
            }
            _ => None,
        };
        let probe = match selection {
            PlanSelection::Stem(config) if config.selector != Selector::Stem => Some(ProbeRegions {
                k_tiles: region("k_tiles", &ops::key_tiles(geometry, heads.hkv), 1)?,
                lists: region("lists", &[heads.hq, total_qb, geometry.list_stride], size_of::<i32>())?,
                counts: region("counts", &[heads.hq, total_qb], size_of::<i32>())?,
                score_stride: geometry.max_kb.max(1),
                list_stride: geometry.list_stride,
            }),
            _ => None,
        };
        Ok(Self { v_tiles, select, probe, bytes })
    }

    /// Lists and counts of a selection of either kind, and the capacity of a list.
    pub fn selected(&self) -> Option<([Region; 2], usize)> {
        let stem = self.select.map(|s| ([s.lists, s.counts], s.list_stride));
        stem.or_else(|| self.probe.map(|p| ([p.lists, p.counts], p.list_stride)))
    }

    /// Bytes of the whole.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Takes the next aligned place of a tensor.
fn place(end: &mut usize, name: &'static str, extents: &[usize], element: usize) -> Result<Region> {
    let too_large = || Error::shape(name, "a size that fits the address space", format!("{extents:?}"));
    let bytes = extents.iter().try_fold(element, |n, &extent| n.checked_mul(extent)).ok_or_else(too_large)?;
    let offset = *end;
    *end = offset.checked_add(bytes).and_then(|n| n.checked_next_multiple_of(ALIGN)).ok_or_else(too_large)?;
    Ok(Region { offset, bytes })
}

/// The tensors of a workspace at a device address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    base: Span<u8>,
}

impl Placed {
    /// Checks that the memory is large and aligned enough.
    pub fn new(base: Span<u8>, layout: &Layout) -> Result<Self> {
        if base.len() < layout.bytes {
            return Err(Error::shape("workspace", format!("{} bytes", layout.bytes), base.len()));
        }
        if !base.address().is_multiple_of(ALIGN as u64) {
            return Err(Error::value("workspace", format!("an address that is a multiple of {ALIGN}"), format!("{:#x}", base.address())));
        }
        Ok(Self { base })
    }

    /// One tensor.
    pub fn at<T>(&self, region: Region) -> Span<T> {
        // SAFETY: the region lies inside the workspace (checked in `new`), whose span made the same promises.
        unsafe { Span::from_raw(self.base.address() + region.offset as u64, region.bytes / size_of::<T>()) }
    }

    /// The lists.
    pub fn lists(&self, [lists, counts]: [Region; 2], stride: usize) -> Lists {
        Lists { lists: self.at(lists), counts: self.at(counts), stride }
    }
}

/// Scratch memory for plans: at least [`super::Plan::workspace_bytes`]. One serves any number of plans, one run at a time.
#[derive(Debug)]
pub struct Workspace {
    buffer: CudaSlice<u8>,
}

impl Workspace {
    /// Allocates `bytes`, zeroed, in stream order.
    ///
    /// # Errors
    /// [`Error::Driver`], also when memory runs out.
    pub fn new(stream: &Arc<CudaStream>, bytes: usize) -> Result<Self> {
        Ok(Self { buffer: buffer::zeroed(stream, bytes)? })
    }

    /// Uses memory of the caller's.
    pub fn from_buffer(buffer: CudaSlice<u8>) -> Self {
        Self { buffer }
    }

    /// The memory.
    pub fn buffer(&self) -> &CudaSlice<u8> {
        &self.buffer
    }

    /// The memory, to fill or to reuse between runs.
    pub fn buffer_mut(&mut self) -> &mut CudaSlice<u8> {
        &mut self.buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Preset, StemConfig};

    fn geometry(tokens: i32) -> Geometry {
        Geometry::new(&[0, tokens], &[0, tokens], &[tokens], true, None).expect("a batch")
    }

    #[test]
    fn tensors_are_aligned_and_apart() {
        let heads = Heads { hq: 6, hkv: 3 };
        let stem = PlanSelection::Stem(StemConfig::preset(Preset::Hpc));
        let layout = Layout::new(&geometry(1000), heads, &stem).expect("a layout");
        let s = layout.select.expect("a selecting plan");
        let regions = [layout.v_tiles, s.k_sums, s.run_norms, s.scratch, s.lists, s.counts];
        for pair in regions.windows(2) {
            assert!(pair[0].offset + pair[0].bytes <= pair[1].offset && pair[1].offset % ALIGN == 0, "{pair:?}");
        }
        assert!(s.counts.offset + s.counts.bytes <= layout.bytes());
        assert_eq!((s.scratch.bytes, s.lists.bytes), (0, 6 * 8 * 8 * 4));
        assert_eq!(layout.v_tiles.bytes, 8 * 3 * 16_384);
    }

    #[test]
    fn a_plan_that_probes_has_tiles_and_lists_and_no_scores() {
        let selector = Selector::Probe(crate::config::ProbeConfig::default());
        let probe = PlanSelection::Stem(StemConfig { selector, ..StemConfig::preset(Preset::Hpc) });
        let layout = Layout::new(&geometry(3000), Heads { hq: 6, hkv: 3 }, &probe).expect("a layout");
        let p = layout.probe.expect("a plan that probes");
        assert_eq!((layout.select, p.k_tiles.bytes), (None, 3 * 2 * 32_768));
        let regions = [layout.v_tiles, p.k_tiles, p.lists, p.counts];
        for pair in regions.windows(2) {
            assert!(pair[0].offset + pair[0].bytes <= pair[1].offset && pair[1].offset % ALIGN == 0, "{pair:?}");
        }
        assert_eq!(layout.selected(), Some(([p.lists, p.counts], p.list_stride)));
    }

    #[test]
    fn dense_plans_need_only_the_v_tiles() {
        let layout = Layout::new(&geometry(129), Heads { hq: 2, hkv: 1 }, &PlanSelection::Dense).expect("a layout");
        assert_eq!((layout.bytes(), layout.select), (2 * 16_384, None));
    }

    #[test]
    fn sizes_that_overflow_are_errors() {
        let mut end = 0;
        assert!(place(&mut end, "scores", &[usize::MAX, 2], 4).is_err());
        assert!(place(&mut end, "scores", &[usize::MAX], 1).is_err());
        assert_eq!(end, 0);
    }
}
