//! Prefill on device tensors: a plan validates a batch once, its runs only launch.
//!
//! ```no_run
//! # fn main() -> stem_attn::Result<()> {
//! # let (hq, hkv, tokens) = (32, 4, 16_384);
//! use stem_attn::driver::{Device, buffer};
//! use stem_attn::kv::{PageLayout, PagePool, PageTable};
//! use stem_attn::ops::{Kernels, PageDesc};
//! use stem_attn::plan::{Plan, PlanDesc, PlanSelection, PrefillOutputs, PrefillTensors, Workspace, default_softmax_scale};
//! use stem_attn::{Preset, StemConfig};
//!
//! let device = Device::open(0)?;
//! let stream = device.context().default_stream();
//! let kernels = Kernels::load(&device)?;
//!
//! let mut pool = PagePool::new(4096, 64)?;
//! let sequence = pool.alloc(tokens)?;
//! let table = PageTable::new(&[&sequence], 64);
//! let lens = [0, tokens as i32];
//! let plan = Plan::new(&kernels, &stream, &PlanDesc {
//!     hq,
//!     hkv,
//!     cu_seqlens_q: &lens,
//!     cu_seqlens_kv: &lens,
//!     prompt_lens: &lens[1..],
//!     pages: PageDesc::dense(PageLayout::Nhd, hkv, 64, pool.total(), table.stride),
//!     selection: PlanSelection::Stem(StemConfig::preset(Preset::Hpc)),
//!     causal: true,
//!     softmax_scale: default_softmax_scale(),
//! })?;
//! let mut workspace = Workspace::new(&stream, plan.workspace_bytes())?;
//!
//! let (q, q_scale) = (buffer::zeroed(&stream, tokens * hq * 128)?, buffer::zeroed(&stream, tokens * hq)?);
//! let k_pages = buffer::zeroed(&stream, pool.total() * 64 * hkv * 128)?;
//! let v_pages = buffer::zeroed(&stream, pool.total() * 64 * hkv * 128)?;
//! let (page_table, one) = (table.upload(&stream)?, buffer::upload(&stream, &[1f32])?);
//! let mut out = buffer::zeroed(&stream, tokens * hq * 128)?;
//! let tensors = PrefillTensors {
//!     q: q.as_view(),
//!     q_scale: q_scale.as_view(),
//!     k_pages: k_pages.as_view(),
//!     v_pages: v_pages.as_view(),
//!     page_table: page_table.as_view(),
//!     k_scale: one.as_view(),
//!     v_scale: one.as_view(),
//!     k_token_scale: None,
//!     lists: None,
//! };
//! plan.run(&stream, &tensors, &mut workspace, &mut PrefillOutputs { out: out.as_view_mut(), lse: None })?;
//! # pool.release(sequence);
//! # Ok(())
//! # }
//! ```

mod append;
mod desc;
mod key_means;
mod lists;
mod stages;
mod tensors;
mod workspace;

pub use append::AppendTensors;
pub use desc::{PlanDesc, PlanSelection, default_softmax_scale};
pub use lists::{CsrTensors, IndptrView, ListOutputs};
pub use tensors::{ListTensors, PrefillOutputs, PrefillTensors, RawOutputs, RawTensors, TensorRows};
pub use workspace::Workspace;

use crate::driver::{CudaSlice, CudaStream, DeviceRepr, ValidAsZeroBits, buffer};
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::mask::BlockLists;
use crate::ops::{Blocks, DeviceGeometry, Heads, Kernels, PageDesc};
use crate::reference::KvSummaries;
use desc::Checked;
use std::sync::Arc;
use workspace::{Layout, Region};

/// A batch that has been validated, its tables in device memory.
///
/// Runs allocate nothing on the device and wait for nothing; [`Plan::run_raw`] can be captured in a CUDA graph, which must
/// not be replayed once the plan is gone. Dropping a plan waits for the device.
#[derive(Debug)]
pub struct Plan {
    kernels: Arc<Kernels>,
    geometry: DeviceGeometry,
    heads: Heads,
    pages: PageDesc,
    selection: PlanSelection,
    softmax_scale: f32,
    layout: Layout,
    rows: TensorRows,
    blocks: Blocks,
}

impl Plan {
    /// Validates a batch and copies its tables to the device; waits for the copy.
    ///
    /// # Errors
    /// [`Error::Value`], [`Error::Shape`] or [`Error::Unsupported`] naming the field, before anything touches the GPU;
    /// [`Error::Driver`].
    pub fn new(kernels: &Arc<Kernels>, stream: &Arc<CudaStream>, desc: &PlanDesc<'_>) -> Result<Self> {
        let Checked { heads, geometry, layout } = desc.check()?;
        Ok(Self {
            kernels: kernels.clone(),
            geometry: DeviceGeometry::upload(stream, geometry)?,
            heads,
            pages: desc.pages,
            selection: desc.selection,
            softmax_scale: desc.softmax_scale,
            layout,
            rows: TensorRows::default(),
            blocks: Blocks::All,
        })
    }

    /// The same plan for tensors that are not packed.
    ///
    /// # Errors
    /// [`Error::Value`] naming the tensor for strides that are too large or no multiples of 16 bytes, or that let rows of `out` overlap.
    pub fn with_rows(self, rows: TensorRows) -> Result<Self> {
        rows.check(self.geometry().total_q, self.heads)?;
        Ok(Self { rows, ..self })
    }

    /// For the later chunks of prompts: `on` promises that the workspace of every run holds what runs of the chunks before left
    /// there, by plans of the same heads and selection for the same prompts (in number, order and `prompt_lens`). Then only
    /// blocks with new tokens are summarised, and a chunk pays for no history. Off, as in a new plan, all blocks are.
    #[must_use]
    pub fn continuing(self, on: bool) -> Self {
        Self { blocks: if on { Blocks::New } else { Blocks::All }, ..self }
    }

    /// How the batch is cut into blocks.
    pub fn geometry(&self) -> &Geometry {
        self.geometry.host()
    }

    /// Head counts.
    pub fn heads(&self) -> Heads {
        self.heads
    }

    /// Where the blocks come from.
    pub fn selection(&self) -> &PlanSelection {
        &self.selection
    }

    /// Bytes of workspace that a run needs.
    pub fn workspace_bytes(&self) -> usize {
        self.layout.bytes()
    }

    /// Columns of a score row; 0 for a plan that does not score.
    pub fn score_stride(&self) -> usize {
        let of_probe = self.layout.probe.map_or(0, |p| p.score_stride);
        self.layout.select.map_or(of_probe, |s| s.score_stride)
    }

    /// Checks lists in host memory against the batch and copies them to the device, for a plan with
    /// [`PlanSelection::Lists`]: lists `[hq, total_qb, stride]` and counts `[hq, total_qb]`.
    ///
    /// # Errors
    /// Any error of [`BlockLists::validate`]; [`Error::Shape`] when the capacity is not the plan's; [`Error::Driver`].
    pub fn upload_lists(&self, stream: &Arc<CudaStream>, lists: &BlockLists) -> Result<(CudaSlice<i32>, CudaSlice<i32>)> {
        lists.validate(self.heads.hq, self.geometry())?;
        match self.selection {
            PlanSelection::Lists { stride } if stride == lists.stride => {}
            PlanSelection::Lists { stride } => return Err(Error::shape("lists", format!("a capacity of {stride}"), lists.stride)),
            _ => return Err(Error::Unsupported { what: "lists", got: "a plan that does not take them".into() }),
        }
        Ok((buffer::upload(stream, &lists.lists)?, buffer::upload(stream, &lists.counts)?))
    }

    /// The lists that the last selection left in the workspace; `None` for a plan that does not select. Waits for the stream.
    ///
    /// # Errors
    /// [`Error::Shape`] when the workspace is not large enough; [`Error::Driver`].
    pub fn download_lists(&self, stream: &Arc<CudaStream>, workspace: &Workspace) -> Result<Option<BlockLists>> {
        let Some(([lists, counts], stride)) = self.layout.selected() else { return Ok(None) };
        Ok(Some(BlockLists {
            hq: self.heads.hq,
            total_qb: self.geometry().total_qb(),
            stride,
            counts: fetch(stream, workspace, counts)?,
            lists: fetch(stream, workspace, lists)?,
        }))
    }

    /// What the last `summarize_kv` left in the workspace. Key sums and run norms are empty for a plan that does not
    /// select. Waits for the stream.
    ///
    /// # Errors
    /// As [`Self::download_lists`].
    pub fn download_summaries(&self, stream: &Arc<CudaStream>, workspace: &Workspace) -> Result<KvSummaries> {
        let select = self.layout.select;
        Ok(KvSummaries {
            k_sums: select.map_or(Ok(Vec::new()), |s| fetch(stream, workspace, s.k_sums))?,
            run_norms: select.map_or(Ok(Vec::new()), |s| fetch(stream, workspace, s.run_norms))?,
            v_tiles: fetch(stream, workspace, self.layout.v_tiles)?,
        })
    }
}

/// Copies one tensor of the workspace to the host.
fn fetch<T: DeviceRepr + ValidAsZeroBits + Copy>(stream: &Arc<CudaStream>, workspace: &Workspace, region: Region) -> Result<Vec<T>> {
    let end = region.offset + region.bytes;
    let short = || Error::shape("workspace", format!("{end} bytes"), workspace.buffer().len());
    let view = workspace.buffer().try_slice(region.offset..end).ok_or_else(short)?;
    let len = region.bytes / size_of::<T>();
    // SAFETY: regions are aligned for every element type, and any bytes are valid i32, f32, bf16 and e4m3.
    let view = unsafe { view.transmute::<T>(len) }.ok_or_else(short)?;
    buffer::download(stream, &view, len)
}
