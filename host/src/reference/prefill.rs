//! The whole prefill on the CPU.

use super::attend::{AttendInputs, attend_model, default_softmax_scale};
use super::probe_pool::{key_means, query_means};
use super::probe_scores::{ProbeInputs, probe_scores};
use super::select::{ScoreInputs, query_sums, scores, topk, value_bias};
use super::summarize_kv::{KvSummaries, summarize_kv};
use crate::backend::{PrefillOptions, PrefillOutput, StageTime, StageTimes};
use crate::config::{ProbeConfig, Selection, Selector, StemConfig};
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::kv::layout::{PageLayout, PagedKv, PagedTensors, check_page_size};
use crate::mask::BlockLists;
use crate::tensor::PrefillInputs;
use std::time::Instant;

/// Attention of one layer: page K and V, summarise the keys, select blocks, attend to them.
///
/// Each stage runs `options.repeat` times; times are wall clock.
///
/// # Errors
/// Any error of [`PrefillInputs::validate`], [`StemConfig::validate`], [`Geometry::new`] or [`BlockLists::validate`], and
/// [`Error::Unsupported`] for the probe selector with a K scale per token, and [`Error::Value`] for a page size that is not supported, `repeat` 0, or options and configuration that disagree on `causal`;
/// all before anything is computed.
pub fn prefill(inputs: &PrefillInputs<'_>, selection: Selection<'_>, options: &PrefillOptions) -> Result<PrefillOutput> {
    let geometry = validate(inputs, selection, options)?;
    let paged = PagedTensors::build(inputs.k, inputs.v, inputs.hkv, inputs.cu_seqlens_kv, options.page_size, PageLayout::Nhd, None)?;
    let paged = match inputs.k_token_scale() {
        Some(scales) => paged.with_token_scales(scales, inputs.cu_seqlens_kv, PageLayout::Nhd, false)?,
        None => paged,
    };
    let (kv, k_scale) = (paged.view(), inputs.k_head_scale());
    let (summaries, summarize_time) = timed(options.repeat, || summarize_kv(&kv, &geometry, k_scale, inputs.v_scale))?;
    let score_stride = geometry.max_kb.max(1);
    let mut times = StageTimes { summarize_kv: summarize_time, ..StageTimes::default() };
    let (lists, scores) = match selection {
        Selection::Dense => (BlockLists::dense(inputs.hq, &geometry)?, None),
        Selection::Lists(lists) => (lists.clone(), None),
        Selection::Stem(config) => {
            let ((lists, scores), time) = timed(options.repeat, || select(inputs, &summaries, &kv, &geometry, config))?;
            times.select = time;
            (lists, Some(scores))
        }
    };
    let attend_inputs = AttendInputs {
        q: inputs.q,
        q_scale: inputs.q_scale,
        kv,
        k_scale,
        v_scale: inputs.v_scale,
        hq: inputs.hq,
        geometry: &geometry,
        lists: (!matches!(selection, Selection::Dense)).then_some(&lists),
        softmax_scale: default_softmax_scale(),
    };
    let (attended, attend_time) = timed(options.repeat, || attend_model(&attend_inputs))?;
    times.attend = attend_time;
    let lse = options.lse.then(|| attended.lse.iter().map(|&lse| lse as f32).collect());
    Ok(PrefillOutput { out: attended.out, lse, lists, scores, score_stride, times })
}

/// Checks the arguments of [`prefill`] and cuts the batch into blocks.
pub(crate) fn validate(inputs: &PrefillInputs<'_>, selection: Selection<'_>, options: &PrefillOptions) -> Result<Geometry> {
    inputs.validate(options.causal)?;
    check_page_size(options.page_size)?;
    if options.repeat == 0 {
        return Err(Error::value("repeat", "at least 1", 0));
    }
    let config = match selection {
        Selection::Stem(config) => Some(config),
        Selection::Dense | Selection::Lists(_) => None,
    };
    if let Some(config) = config {
        config.validate()?;
        if config.causal != options.causal {
            return Err(Error::value("causal", format!("{}, as in the options", options.causal), config.causal));
        }
        if config.selector != Selector::Stem {
            ProbeConfig::require_head_scales(inputs.k_token_scale().is_some())?;
        }
    }
    let geometry = Geometry::new(inputs.cu_seqlens_q, inputs.cu_seqlens_kv, inputs.prompt_lens, options.causal, config)?;
    if let Selection::Lists(lists) = selection {
        lists.validate(inputs.hq, &geometry)?;
    }
    Ok(geometry)
}

/// Lists of every row, and the scores `[hq, total_qb, max(max_kb, 1)]` they were made of.
pub(crate) fn select(
    inputs: &PrefillInputs<'_>,
    summaries: &KvSummaries,
    kv: &PagedKv<'_>,
    geometry: &Geometry,
    config: &StemConfig,
) -> Result<(BlockLists, Vec<f32>)> {
    let score_stride = geometry.max_kb.max(1);
    let scores = match &config.selector {
        Selector::Stem => stem_scores(inputs, summaries, geometry, config)?,
        Selector::Probe(probe) => {
            let keys = key_means(kv, geometry, probe)?;
            let queries = query_means(inputs.q, inputs.q_scale, inputs.hq, geometry, probe)?;
            let softmax_scale = default_softmax_scale();
            let inputs = ProbeInputs { queries: &queries, keys: &keys, k_scale: inputs.k_head_scale(), softmax_scale, score_stride };
            probe_scores(&inputs, geometry, probe)?
        }
    };
    Ok((topk(&scores, score_stride, inputs.hq, geometry, config)?, scores))
}

/// Scores of the Output-Aware Metric.
fn stem_scores(inputs: &PrefillInputs<'_>, summaries: &KvSummaries, geometry: &Geometry, config: &StemConfig) -> Result<Vec<f32>> {
    let score_stride = geometry.max_kb.max(1);
    let q_sums = query_sums(inputs.q, inputs.q_scale, inputs.hq, geometry)?;
    let v_bias = value_bias(&summaries.run_norms, inputs.hkv, geometry, &config.oam)?;
    let score_inputs =
        ScoreInputs { q_sums: &q_sums, k_sums: &summaries.k_sums, v_bias: &v_bias, hq: inputs.hq, hkv: inputs.hkv, score_stride };
    scores(&score_inputs, geometry, &config.oam)
}

/// Runs a stage `repeat` times (at least once) and returns its last result with the times.
fn timed<T>(repeat: usize, mut stage: impl FnMut() -> Result<T>) -> Result<(T, StageTime)> {
    let mut samples = Vec::with_capacity(repeat);
    loop {
        let start = Instant::now();
        let result = stage()?;
        samples.push(start.elapsed().as_secs_f64() * 1e3);
        if samples.len() >= repeat {
            return Ok((result, StageTime::from_samples(samples)));
        }
    }
}
