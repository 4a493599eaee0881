//! All kernels, compiled for one device.

use crate::driver::{Device, Kernel, Module};
use crate::error::Result;
use crate::ptx::{KernelId, PtxModule};
use std::sync::Arc;

/// Every kernel of the library, loaded once per device and shared by its plans.
#[derive(Clone, Debug)]
pub struct Kernels {
    device: Device,
    pub(super) append_kv: Kernel,
    pub(super) summarize_kv: Kernel,
    pub(super) query_sums: Kernel,
    pub(super) value_bias: Kernel,
    pub(super) scores: Kernel,
    pub(super) topk: Kernel,
    pub(super) probe_means: Kernel,
    pub(super) probe: Kernel,
    pub(super) attend: Kernel,
}

impl Kernels {
    /// Multiprocessors of the GPU they are loaded on: the size of a persistent grid.
    pub(super) fn sm_count(&self) -> usize {
        self.device.info().sm_count as usize
    }

    /// Compiles and loads them. Takes seconds the first time on a machine; the driver caches the result.
    ///
    /// # Errors
    /// [`crate::Error::Jit`] with the JIT's log, [`crate::Error::Driver`].
    pub fn load(device: &Device) -> Result<Arc<Self>> {
        let module = |m: PtxModule| Module::load(device, m.name(), m.text());
        let (append, summarize) = (module(PtxModule::AppendKv)?, module(PtxModule::SummarizeKv)?);
        let (select, attend) = (module(PtxModule::Select)?, module(PtxModule::Attend)?);
        let select_probe = module(PtxModule::SelectProbe)?;
        let kernel = |id: KernelId| {
            let module = match id.module() {
                PtxModule::AppendKv => &append,
                PtxModule::SummarizeKv => &summarize,
                PtxModule::Select => &select,
                PtxModule::SelectProbe => &select_probe,
                PtxModule::Attend => &attend,
            };
            module.kernel(id.entry(), id.threads(), id.shared_bytes())
        };
        Ok(Arc::new(Self {
            device: device.clone(),
            append_kv: kernel(KernelId::AppendKv)?,
            summarize_kv: kernel(KernelId::SummarizeKv)?,
            query_sums: kernel(KernelId::QuerySums)?,
            value_bias: kernel(KernelId::ValueBias)?,
            scores: kernel(KernelId::Scores)?,
            topk: kernel(KernelId::Topk)?,
            probe_means: kernel(KernelId::ProbeMeans)?,
            probe: kernel(KernelId::Probe)?,
            attend: kernel(KernelId::Attend)?,
        }))
    }

    /// The device they are loaded on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// One of them.
    pub fn get(&self, id: KernelId) -> &Kernel {
        match id {
            KernelId::AppendKv => &self.append_kv,
            KernelId::SummarizeKv => &self.summarize_kv,
            KernelId::QuerySums => &self.query_sums,
            KernelId::ValueBias => &self.value_bias,
            KernelId::Scores => &self.scores,
            KernelId::Topk => &self.topk,
            KernelId::ProbeMeans => &self.probe_means,
            KernelId::Probe => &self.probe,
            KernelId::Attend => &self.attend,
        }
    }
}
