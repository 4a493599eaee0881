//! The stages on the CPU reference.

use super::engine::{Engine, Job, Output, Stage};
use super::problem::Problem;
use crate::config::StemConfig;
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::mask::BlockLists;
use crate::reference::{self, AttendInputs, KvSummaries};
use half::bf16;
use std::time::Instant;

type Launch<'a> = Box<dyn FnMut() -> Result<Output> + 'a>;

/// One stage of one problem.
pub struct CpuEngine<'a> {
    launch: Launch<'a>,
    output: Option<Output>,
}

impl<'a> CpuEngine<'a> {
    /// Prepares what the stage reads.
    pub fn new(job: Job<'a>) -> Result<Self> {
        let Job { stage, problem, config, lists, .. } = job;
        let geometry = problem.geometry(stage.selects().then_some(config))?;
        let launch: Launch<'a> = match stage {
            Stage::SummarizeKv | Stage::SummarizeChunk => Box::new(move || Ok(Output::Summaries(summarize(problem, &geometry)?))),
            Stage::ProbeMeans => {
                let probe = super::probe(config)?;
                Box::new(move || Ok(Output::KeyMeans(reference::key_means(&problem.paged.view(), &geometry, probe)?)))
            }
            Stage::Select => {
                let summaries = summarize(problem, &geometry)?;
                Box::new(move || select(problem, &summaries, &geometry, config))
            }
            Stage::Selection => Box::new(move || select(problem, &summarize(problem, &geometry)?, &geometry, config)),
            Stage::Attend => {
                let attended = lists.cloned().map_or_else(|| BlockLists::dense(problem.shape.hq, &geometry), Ok)?;
                Box::new(move || Ok(Output::Attention { out: attend(problem, &geometry, lists)?, lists: attended.clone() }))
            }
            Stage::Prefill => Box::new(move || {
                let summaries = summarize(problem, &geometry)?;
                let (lists, _) = reference::select(&problem.inputs(), &summaries, &problem.paged.view(), &geometry, config)?;
                Ok(Output::Attention { out: attend(problem, &geometry, Some(&lists))?, lists })
            }),
            Stage::AppendKv => {
                let (k, v) = problem.new_rows();
                let mut pages = problem.paged.clone();
                Box::new(move || {
                    reference::append_kv(&k, &v, &geometry, &[1.0], &[1.0], &mut pages)?;
                    Ok(Output::Pages { k: pages.k_pages.clone(), v: pages.v_pages.clone() })
                })
            }
            Stage::HostPlan => Box::new(move || Ok(Output::Geometry(problem.geometry(Some(config))?))),
            Stage::HostRun => Box::new(move || {
                problem.inputs().validate(true)?;
                Ok(Output::Geometry(problem.geometry(Some(config))?))
            }),
        };
        Ok(Self { launch, output: None })
    }
}

impl Engine for CpuEngine<'_> {
    fn time(&mut self, n: usize) -> Result<Vec<f64>> {
        (0..n)
            .map(|_| {
                let start = Instant::now();
                self.output = Some((self.launch)()?);
                Ok(start.elapsed().as_secs_f64() * 1e3)
            })
            .collect()
    }

    fn output(&mut self) -> Result<Output> {
        self.output.take().ok_or_else(|| Error::value("output", "a launch before it", "none"))
    }
}

fn summarize(problem: &Problem, geometry: &Geometry) -> Result<KvSummaries> {
    reference::summarize_kv(&problem.paged.view(), geometry, &[1.0], &[1.0])
}

fn select(problem: &Problem, summaries: &KvSummaries, geometry: &Geometry, config: &StemConfig) -> Result<Output> {
    let (lists, scores) = reference::select(&problem.inputs(), summaries, &problem.paged.view(), geometry, config)?;
    Ok(Output::Selection { scores, score_stride: geometry.max_kb.max(1), lists })
}

fn attend(problem: &Problem, geometry: &Geometry, lists: Option<&BlockLists>) -> Result<Vec<bf16>> {
    let inputs = AttendInputs {
        q: &problem.q,
        q_scale: &problem.q_scale,
        kv: problem.paged.view(),
        k_scale: &[1.0],
        v_scale: &[1.0],
        hq: problem.shape.hq,
        geometry,
        lists,
        softmax_scale: reference::default_softmax_scale(),
    };
    Ok(reference::attend_model(&inputs)?.out)
}
