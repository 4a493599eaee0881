//! The CUDA backend: host tensors in, host tensors out, on one Hopper GPU.

mod inputs;

pub use inputs::DeviceInputs;

use crate::backend::{PrefillOptions, PrefillOutput, StageTime, StageTimes};
use crate::config::Selection;
use crate::driver::{CudaStream, Device, DeviceInfo, EventTimer, buffer, driver_error};
use crate::error::Result;
use crate::kv::PageLayout;
use crate::mask::BlockLists;
use crate::ops::Kernels;
use crate::plan::{Plan, PlanDesc, PlanSelection, PrefillOutputs, Workspace, default_softmax_scale};
use crate::tensor::PrefillInputs;
use std::sync::Arc;

/// One Hopper GPU, its kernels, and a stream.
#[derive(Debug)]
pub struct CudaBackend {
    kernels: Arc<Kernels>,
    stream: Arc<CudaStream>,
}

impl CudaBackend {
    /// Opens device `ordinal`, loads the kernels, and creates the backend's stream.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`] without a driver, such a device, or compute capability 9.0; [`crate::Error::Jit`] with
    /// the driver's log; [`crate::Error::Driver`].
    pub fn open(ordinal: usize) -> Result<Self> {
        let device = Device::open(ordinal)?;
        let kernels = Kernels::load(&device)?;
        let stream = device.context().new_stream().map_err(driver_error("cuStreamCreate"))?;
        Ok(Self { kernels, stream })
    }

    /// Facts of the GPU.
    pub fn info(&self) -> &DeviceInfo {
        self.kernels.device().info()
    }

    /// The GPU.
    pub fn device(&self) -> &Device {
        self.kernels.device()
    }

    /// The loaded kernels, for plans of one's own.
    pub fn kernels(&self) -> &Arc<Kernels> {
        &self.kernels
    }

    /// The backend's stream.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Attention of one layer, whole batch: copies the tensors in, K and V into scattered pages of `options.page_size`,
    /// runs every stage once and then `options.repeat` times under CUDA events, and copies the results out.
    ///
    /// # Errors
    /// As [`crate::reference::prefill`] for its arguments, before anything is copied; [`crate::Error::Driver`].
    pub fn prefill(&self, inputs: &PrefillInputs<'_>, selection: Selection<'_>, options: &PrefillOptions) -> Result<PrefillOutput> {
        let geometry = crate::reference::validate(inputs, selection, options)?;
        let stream = &self.stream;
        let mut device_inputs = DeviceInputs::upload(stream, inputs, options.page_size, PageLayout::Nhd)?;
        let plan = Plan::new(
            &self.kernels,
            stream,
            &PlanDesc {
                hq: inputs.hq,
                hkv: inputs.hkv,
                cu_seqlens_q: inputs.cu_seqlens_q,
                cu_seqlens_kv: inputs.cu_seqlens_kv,
                prompt_lens: inputs.prompt_lens,
                pages: device_inputs.pages(),
                selection: match selection {
                    Selection::Dense => PlanSelection::Dense,
                    Selection::Stem(config) => PlanSelection::Stem(*config),
                    Selection::Lists(lists) => PlanSelection::Lists { stride: lists.stride },
                },
                causal: options.causal,
                softmax_scale: default_softmax_scale(),
            },
        )?;
        if let Selection::Lists(lists) = selection {
            device_inputs.set_lists(Some(plan.upload_lists(stream, lists)?));
        }
        let mut workspace = Workspace::new(stream, plan.workspace_bytes())?;
        let (rows, elements) = (inputs.q_scale.len(), inputs.q.len());
        let mut out = buffer::zeroed(stream, elements)?;
        let mut lse = if options.lse { Some(buffer::zeroed::<f32>(stream, rows)?) } else { None };
        let tensors = device_inputs.tensors();
        let mut outputs = PrefillOutputs { out: out.as_view_mut(), lse: lse.as_mut().map(|l| l.as_view_mut()) };

        let summarize_kv = self.timed(options.repeat, || plan.summarize_kv(stream, &tensors, &mut workspace))?;
        let select = match selection {
            Selection::Stem(_) => self.timed(options.repeat, || plan.select(stream, &tensors, &mut workspace))?,
            Selection::Dense | Selection::Lists(_) => StageTime::default(),
        };
        let attend = self.timed(options.repeat, || plan.attend(stream, &tensors, &workspace, &mut outputs))?;

        let lists = match selection {
            Selection::Dense => BlockLists::dense(inputs.hq, &geometry)?,
            Selection::Lists(lists) => lists.clone(),
            Selection::Stem(_) => plan.download_lists(stream, &workspace)?.unwrap_or_default(),
        };
        Ok(PrefillOutput {
            out: buffer::download(stream, &out, elements)?,
            lse: lse.map(|l| buffer::download(stream, &l, rows)).transpose()?,
            lists,
            scores: plan.scores(stream, &tensors, &mut workspace)?,
            score_stride: geometry.max_kb.max(1),
            times: StageTimes { summarize_kv, select, attend },
        })
    }

    /// Runs a stage once to warm up (modules load lazily, caches fill), then `repeat` times under events.
    fn timed(&self, repeat: usize, mut stage: impl FnMut() -> Result<()>) -> Result<StageTime> {
        stage()?;
        let timers = (0..repeat).map(|_| EventTimer::new(self.device())).collect::<Result<Vec<_>>>()?;
        for timer in &timers {
            timer.start(&self.stream)?;
            stage()?;
            timer.stop(&self.stream)?;
        }
        Ok(StageTime::from_samples(timers.iter().map(EventTimer::elapsed_ms).collect::<Result<Vec<_>>>()?))
    }
}
