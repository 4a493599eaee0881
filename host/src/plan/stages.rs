//! The stages of a run, each also on its own so that it can be timed and tested.

use super::tensors::{read, write};
use super::workspace::{Placed, ProbeRegions, SelectRegions};
use super::{Plan, PlanSelection, PrefillOutputs, PrefillTensors, RawOutputs, RawTensors, Workspace};
use crate::config::{ProbeConfig, Selector, StemConfig};
use crate::driver::CudaStream;
use crate::error::{Error, Result};
use crate::ops::{self, Attend, Launcher, Lists, Span};
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
        self.attend_args(tensors, &placed, outputs)?.check(&at)?;
        self.stage_summarize_kv(&at, tensors, &placed)?;
        self.stage_select(&at, tensors, &placed)?;
        self.stage_attend(&at, tensors, &placed, outputs)
    }

    /// First stage: key sums and run norms, where the plan selects, and V tiles, into the workspace.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn summarize_kv(&self, stream: &Arc<CudaStream>, tensors: &PrefillTensors<'_>, workspace: &mut Workspace) -> Result<()> {
        let (tensors, _inputs) = tensors.spans(stream)?;
        let (scratch, _scratch) = write("workspace", workspace.buffer_mut(), stream)?;
        self.stage_summarize_kv(&self.launcher(stream), &tensors, &Placed::new(scratch, &self.layout)?)
    }

    /// Second stage: query sums, value term, scores and lists, from what the first left in the workspace. Queues nothing
    /// for a plan that does not select.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn select(&self, stream: &Arc<CudaStream>, tensors: &PrefillTensors<'_>, workspace: &mut Workspace) -> Result<()> {
        let (tensors, _inputs) = tensors.spans(stream)?;
        let (scratch, _scratch) = write("workspace", workspace.buffer_mut(), stream)?;
        self.stage_select(&self.launcher(stream), &tensors, &Placed::new(scratch, &self.layout)?)
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
        self.stage_attend(&self.launcher(stream), &tensors, &Placed::new(scratch, &self.layout)?, &outputs)
    }

    pub(super) fn launcher<'a>(&'a self, stream: &'a Arc<CudaStream>) -> Launcher<'a> {
        Launcher { kernels: &self.kernels, stream, geometry: &self.geometry, heads: self.heads }
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

    fn stage_summarize_kv(&self, at: &Launcher<'_>, tensors: &RawTensors, placed: &Placed) -> Result<()> {
        let select = self.layout.select;
        if let Some((.., regions)) = self.probing() {
            ops::probe_means(at, &ops::ProbeMeans { kv: tensors.paged(self.pages), k_tiles: placed.at(regions.k_tiles) })?;
        }
        ops::summarize_kv(
            at,
            &ops::SummarizeKv {
                kv: tensors.paged(self.pages),
                scales: tensors.scales,
                k_sums: select.map(|s| placed.at(s.k_sums)),
                run_norms: select.map(|s| placed.at(s.run_norms)),
                v_tiles: placed.at(self.layout.v_tiles),
            },
        )
    }

    fn stage_select(&self, at: &Launcher<'_>, tensors: &RawTensors, placed: &Placed) -> Result<()> {
        if let Some((config, probe, regions)) = self.probing() {
            let args = ops::Probe {
                q: tensors.q,
                q_scale: tensors.q_scale,
                scales: tensors.scales,
                k_tiles: placed.at(regions.k_tiles),
                lists: placed.lists([regions.lists, regions.counts], regions.list_stride),
                scores: None,
                softmax_scale: self.softmax_scale,
            };
            return ops::probe(at, &args, probe, config);
        }
        let Some((config, select)) = self.selecting() else { return Ok(()) };
        let (q_sums, v_bias, scores) = (placed.at(select.q_sums), placed.at(select.v_bias), placed.at(select.scores));
        let stride = select.score_stride;
        ops::query_sums(at, &ops::QuerySums { q: tensors.q, q_scale: tensors.q_scale, q_sums })?;
        ops::value_bias(at, &ops::ValueBias { run_norms: placed.at(select.run_norms), v_bias }, &config.oam)?;
        ops::scores(at, &ops::Scores { q_sums, k_sums: placed.at(select.k_sums), v_bias, scores, stride }, &config.oam)?;
        ops::topk(
            at,
            &ops::Topk { scores, score_stride: stride, lists: placed.lists([select.lists, select.counts], select.list_stride) },
            config,
        )
    }

    fn stage_attend(&self, at: &Launcher<'_>, tensors: &RawTensors, placed: &Placed, outputs: &RawOutputs) -> Result<()> {
        ops::attend(at, &self.attend_args(tensors, placed, outputs)?)
    }

    fn attend_args(&self, tensors: &RawTensors, placed: &Placed, outputs: &RawOutputs) -> Result<Attend> {
        let lists = match (&self.selection, self.layout.selected(), tensors.lists) {
            (PlanSelection::Dense, ..) => None,
            (PlanSelection::Lists { stride }, _, Some([lists, counts])) => Some(Lists { lists, counts, stride: *stride }),
            (PlanSelection::Stem(_), Some((regions, stride)), _) => Some(placed.lists(regions, stride)),
            _ => return Err(Error::shape("lists", "the caller's lists, as the plan says", "none")),
        };
        Ok(Attend {
            q: tensors.q,
            q_scale: tensors.q_scale,
            kv: tensors.paged(self.pages),
            scales: tensors.scales,
            v_tiles: placed.at(self.layout.v_tiles),
            lists,
            out: outputs.out,
            lse: outputs.lse,
            softmax_scale: self.softmax_scale,
        })
    }
}
