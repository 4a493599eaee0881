//! The stages of a run, each also on its own so that it can be timed and tested.

use super::tensors::{read, write};
use super::workspace::{Placed, ProbeRegions, SelectRegions};
use super::{Plan, PlanSelection, PrefillOutputs, PrefillTensors, RawOutputs, RawTensors, Workspace};
use crate::config::{ProbeConfig, Selector, StemConfig};
use crate::driver::{CudaStream, buffer};
use crate::error::{Error, Result};
use crate::ops::{self, Attend, Launcher, Lists, RowStrides, ScaleStrides, ScoreSpace, Span};
use std::sync::Arc;

impl Plan {
    /// Summarises the keys, selects where the plan selects, and attends: queues everything on `stream` and returns.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::Value`] naming the tensor that does not fit the plan, before anything is queued;
    /// [`Error::Driver`]. Faults of a kernel show at a later call.
    pub fn run(
        &self,
        stream: &Arc<CudaStream>,
        tensors: &PrefillTensors<'_>,
        workspace: &mut Workspace,
        outputs: &mut PrefillOutputs<'_>,
    ) -> Result<()> {
        let (tensors, _inputs) = tensors.spans(stream)?;
        let (scratch, _scratch) = write("workspace", workspace.buffer_mut(), stream)?;
        let (outputs, _outputs) = outputs.spans(stream)?;
        self.run_raw(stream, &tensors, scratch, &outputs)
    }

    /// As [`Self::run`], on spans: no event is recorded or waited for, so the stream may be capturing.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_raw(&self, stream: &Arc<CudaStream>, tensors: &RawTensors, workspace: Span<u8>, outputs: &RawOutputs) -> Result<()> {
        let at = self.launcher(stream);
        let placed = Placed::new(workspace, &self.layout)?;
        // Every stage checks what it reads; the last stage's outputs must not be found short once the first is queued.
        self.attend_args(tensors, &placed, outputs, true)?.check(&at)?;
        self.stage_selection(&at, tensors, &placed)?;
        self.stage_attend(&at, tensors, &placed, outputs, true)
    }

    /// First stage: key sums and run norms, where the plan selects, and V tiles, into the workspace: of all blocks, or of the
    /// new ones ([`Plan::continuing`]).
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn summarize_kv(&self, stream: &Arc<CudaStream>, tensors: &PrefillTensors<'_>, workspace: &mut Workspace) -> Result<()> {
        let (tensors, _inputs) = tensors.spans(stream)?;
        let (scratch, _scratch) = write("workspace", workspace.buffer_mut(), stream)?;
        self.stage_summarize_kv(&self.launcher(stream), &tensors, &Placed::new(scratch, &self.layout)?)
    }

    /// Second stage: lists, from what the first left in the workspace. Queues nothing for a plan that does not select.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn select(&self, stream: &Arc<CudaStream>, tensors: &PrefillTensors<'_>, workspace: &mut Workspace) -> Result<()> {
        let (tensors, _inputs) = tensors.spans(stream)?;
        let (scratch, _scratch) = write("workspace", workspace.buffer_mut(), stream)?;
        self.stage_select(&self.launcher(stream), &tensors, &Placed::new(scratch, &self.layout)?, None, false)
    }

    /// The first two stages as a run queues them, the second allowed to start while the first ends: everything before attention.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn summarize_and_select(&self, stream: &Arc<CudaStream>, tensors: &PrefillTensors<'_>, workspace: &mut Workspace) -> Result<()> {
        let (tensors, _inputs) = tensors.spans(stream)?;
        let (scratch, _scratch) = write("workspace", workspace.buffer_mut(), stream)?;
        self.stage_selection(&self.launcher(stream), &tensors, &Placed::new(scratch, &self.layout)?)
    }

    /// The second stage once more, with its scores: `[hq, total_qb, score_stride]`, from what the first stage left in the
    /// workspace; `None` for a plan that does not score. Columns that a row cannot see are unspecified. A run keeps its scores in
    /// shared memory; the same inputs give the same ones here. Allocates all of them on the device; waits for the stream.
    ///
    /// # Errors
    /// As [`Self::run`]; [`Error::Driver`] also when memory runs out.
    pub fn scores(&self, stream: &Arc<CudaStream>, tensors: &PrefillTensors<'_>, workspace: &mut Workspace) -> Result<Option<Vec<f32>>> {
        if self.layout.selected().is_none() {
            return Ok(None);
        }
        let extents = [self.heads.hq, self.geometry().total_qb(), self.score_stride()];
        let len = extents.iter().try_fold(1usize, |n, &extent| n.checked_mul(extent));
        let len = len.ok_or_else(|| Error::shape("scores", "a size that fits the address space", format!("{extents:?}")))?;
        let mut scores = buffer::zeroed::<f32>(stream, len)?;
        {
            let (tensors, _inputs) = tensors.spans(stream)?;
            let (scratch, _scratch) = write("workspace", workspace.buffer_mut(), stream)?;
            let (out, _out) = write("scores", &mut scores, stream)?;
            self.stage_select(&self.launcher(stream), &tensors, &Placed::new(scratch, &self.layout)?, Some(out), false)?;
        }
        buffer::download(stream, &scores, len).map(Some)
    }

    /// Third stage: attention, from the V tiles and lists in the workspace.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn attend(
        &self,
        stream: &Arc<CudaStream>,
        tensors: &PrefillTensors<'_>,
        workspace: &Workspace,
        outputs: &mut PrefillOutputs<'_>,
    ) -> Result<()> {
        let (tensors, _inputs) = tensors.spans(stream)?;
        let (scratch, _scratch) = read("workspace", workspace.buffer(), stream)?;
        let (outputs, _outputs) = outputs.spans(stream)?;
        self.stage_attend(&self.launcher(stream), &tensors, &Placed::new(scratch, &self.layout)?, &outputs, false)
    }

    pub(super) fn launcher<'a>(&'a self, stream: &'a Arc<CudaStream>) -> Launcher<'a> {
        Launcher { kernels: &self.kernels, stream, geometry: &self.geometry, heads: self.heads }
    }

    fn q_rows(&self) -> RowStrides {
        self.rows.q.unwrap_or(RowStrides::packed(self.heads.hq))
    }

    fn q_scale_rows(&self) -> ScaleStrides {
        self.rows.q_scale.unwrap_or(ScaleStrides::packed(self.heads.hq))
    }

    /// The configuration and the regions of a plan that selects.
    fn selecting(&self) -> Option<(&StemConfig, &SelectRegions)> {
        match (&self.selection, &self.layout.select) {
            (PlanSelection::Stem(config), Some(regions)) => Some((config, regions)),
            _ => None,
        }
    }

    /// The configuration and the regions of a plan that selects by probes.
    fn probing(&self) -> Option<(&StemConfig, &ProbeConfig, &ProbeRegions)> {
        match (&self.selection, &self.layout.probe) {
            (PlanSelection::Stem(config @ StemConfig { selector: Selector::Probe(probe), .. }), Some(regions)) => {
                Some((config, probe, regions))
            }
            _ => None,
        }
    }

    fn stage_selection(&self, at: &Launcher<'_>, tensors: &RawTensors, placed: &Placed) -> Result<()> {
        self.stage_summarize_kv(at, tensors, placed)?;
        self.stage_select(at, tensors, placed, None, true)
    }

    fn stage_summarize_kv(&self, at: &Launcher<'_>, tensors: &RawTensors, placed: &Placed) -> Result<()> {
        let select = self.layout.select;
        self.stage_probe_means(at, tensors, placed)?;
        ops::summarize_kv(
            at,
            &ops::SummarizeKv {
                kv: tensors.paged(self.pages),
                scales: tensors.scales,
                k_sums: select.map(|s| placed.at(s.k_sums)),
                run_norms: select.map(|s| placed.at(s.run_norms)),
                v_tiles: placed.at(self.layout.v_tiles),
                blocks: self.blocks,
            },
        )
    }

    pub(super) fn stage_probe_means(&self, at: &Launcher<'_>, tensors: &RawTensors, placed: &Placed) -> Result<()> {
        let Some((.., regions)) = self.probing() else { return Ok(()) };
        let args = ops::ProbeMeans { kv: tensors.paged(self.pages), k_tiles: placed.at(regions.k_tiles), blocks: self.blocks };
        ops::probe_means(at, &args)
    }

    /// `scores`: where all scores go, if anywhere. `overlap`: whether `summarize_kv` was queued right before.
    fn stage_select(
        &self,
        at: &Launcher<'_>,
        tensors: &RawTensors,
        placed: &Placed,
        scores: Option<Span<f32>>,
        overlap: bool,
    ) -> Result<()> {
        if let Some((config, probe, regions)) = self.probing() {
            let args = ops::Probe {
                q: tensors.q,
                q_rows: self.q_rows(),
                q_scale: tensors.q_scale,
                q_scale_rows: self.q_scale_rows(),
                scales: tensors.scales,
                k_tiles: placed.at(regions.k_tiles),
                lists: placed.lists([regions.lists, regions.counts], regions.list_stride),
                scores: scores.map(|scores| (scores, self.score_stride())),
                softmax_scale: self.softmax_scale,
            };
            return ops::probe(at, &args, probe, config);
        }
        let Some((config, select)) = self.selecting() else { return Ok(()) };
        let scratch = ScoreSpace::Scratch(placed.at(select.scratch));
        let args = ops::Select {
            q: tensors.q,
            q_rows: self.q_rows(),
            q_scale: tensors.q_scale,
            q_scale_rows: self.q_scale_rows(),
            k_sums: placed.at(select.k_sums),
            run_norms: placed.at(select.run_norms),
            lists: placed.lists([select.lists, select.counts], select.list_stride),
            scores: scores.map_or(scratch, |scores| ScoreSpace::All { scores, stride: select.score_stride }),
            overlap,
        };
        ops::select(at, &args, config)
    }

    /// `overlap`: whether another stage was queued right before.
    fn stage_attend(&self, at: &Launcher<'_>, tensors: &RawTensors, placed: &Placed, outputs: &RawOutputs, overlap: bool) -> Result<()> {
        ops::attend(at, &self.attend_args(tensors, placed, outputs, overlap)?)
    }

    fn attend_args(&self, tensors: &RawTensors, placed: &Placed, outputs: &RawOutputs, overlap: bool) -> Result<Attend> {
        let lists = match (&self.selection, self.layout.selected(), tensors.lists) {
            (PlanSelection::Dense, ..) => None,
            (PlanSelection::Lists { stride }, _, Some([lists, counts])) => Some(Lists { lists, counts, stride: *stride }),
            (PlanSelection::Stem(_), Some((regions, stride)), _) => Some(placed.lists(regions, stride)),
            _ => return Err(Error::shape("lists", "the caller's lists, as the plan says", "none")),
        };
        Ok(Attend {
            q: tensors.q,
            q_rows: self.q_rows(),
            q_scale: tensors.q_scale,
            q_scale_rows: self.q_scale_rows(),
            kv: tensors.paged(self.pages),
            scales: tensors.scales,
            v_tiles: placed.at(self.layout.v_tiles),
            lists,
            out: outputs.out,
            out_rows: self.rows.out.unwrap_or(RowStrides::packed(self.heads.hq)),
            lse: outputs.lse,
            softmax_scale: self.softmax_scale,
            overlap,
        })
    }
}
