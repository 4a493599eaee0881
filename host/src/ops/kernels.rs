//! All kernels, compiled for one device.

use crate::driver::{Device, Kernel, Module};
use crate::error::Result;
use crate::ptx::{KernelId, PtxModule};
use std::sync::Arc;

/// Every kernel of the library, loaded once per device and shared by its plans.
#[derive(Clone, Debug)]
pub struct Kernels {
    device: Device,
    select_blocks: [usize; 2],
    pub(super) append_kv: Kernel,
    pub(super) summarize_kv: Kernel,
    pub(super) summarize_kv_token_scales: Kernel,
    pub(super) lists_from_mask: Kernel,
    pub(super) lists_from_csr: Kernel,
    pub(super) select: Kernel,
    pub(super) select_wide: Kernel,
    pub(super) probe_means: Kernel,
    pub(super) probe: Kernel,
    pub(super) attend: Kernel,
    pub(super) attend_token_scales: Kernel,
}

impl Kernels {
    /// Multiprocessors of the GPU they are loaded on: the size of a persistent grid.
    pub(super) fn sm_count(&self) -> usize {
        self.device.info().sm_count as usize
    }

    /// Blocks of `select` that run at a time in clusters of 1 and of 2; 0 where the driver cannot tell. `select_wide` takes as much.
    pub(super) fn select_blocks(&self) -> [usize; 2] {
        self.select_blocks
    }

    /// Whether a launch may overlap the one before it. Drivers before CUDA 12.3 cannot capture such launches in a graph.
    pub(super) fn overlaps(&self) -> bool {
        let version = self.device.info().cuda_version.split_once('.');
        let number = |text: &str| text.parse::<u32>().unwrap_or(0);
        version.is_some_and(|(major, minor)| (number(major), number(minor)) >= (12, 3))
    }

    /// Compiles and loads them. Takes seconds the first time on a machine; the driver caches the result.
    ///
    /// # Errors
    /// [`crate::Error::Jit`] with the JIT's log, [`crate::Error::Driver`].
    pub fn load(device: &Device) -> Result<Arc<Self>> {
        let module = |m: PtxModule| Module::load(device, m.name(), m.text());
        let (append, summarize) = (module(PtxModule::AppendKv)?, module(PtxModule::SummarizeKv)?);
        let (select_stem, lists, attend) = (module(PtxModule::Select)?, module(PtxModule::Lists)?, module(PtxModule::Attend)?);
        let select_probe = module(PtxModule::SelectProbe)?;
        let kernel = |id: KernelId| {
            let module = match id.module() {
                PtxModule::AppendKv => &append,
                PtxModule::SummarizeKv => &summarize,
                PtxModule::Select => &select_stem,
                PtxModule::Lists => &lists,
                PtxModule::SelectProbe => &select_probe,
                PtxModule::Attend => &attend,
            };
            module.kernel(id.entry(), id.threads(), id.shared_bytes())
        };
        let select = kernel(KernelId::Select)?;
        // Nothing but the size of a grid depends on it: a driver that cannot tell is no reason to fail.
        let resident = |cluster| select.resident_blocks(cluster).unwrap_or(0);
        Ok(Arc::new(Self {
            device: device.clone(),
            select_blocks: [resident(1), resident(2)],
            append_kv: kernel(KernelId::AppendKv)?,
            summarize_kv: kernel(KernelId::SummarizeKv)?,
            summarize_kv_token_scales: kernel(KernelId::SummarizeKvTokenScales)?,
            lists_from_mask: kernel(KernelId::ListsFromMask)?,
            lists_from_csr: kernel(KernelId::ListsFromCsr)?,
            select,
            select_wide: kernel(KernelId::SelectWide)?,
            probe_means: kernel(KernelId::ProbeMeans)?,
            probe: kernel(KernelId::Probe)?,
            attend: kernel(KernelId::Attend)?,
            attend_token_scales: kernel(KernelId::AttendTokenScales)?,
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
            KernelId::SummarizeKvTokenScales => &self.summarize_kv_token_scales,
            KernelId::ListsFromMask => &self.lists_from_mask,
            KernelId::ListsFromCsr => &self.lists_from_csr,
            KernelId::Select => &self.select,
            KernelId::SelectWide => &self.select_wide,
            KernelId::ProbeMeans => &self.probe_means,
            KernelId::Probe => &self.probe,
            KernelId::Attend => &self.attend,
            KernelId::AttendTokenScales => &self.attend_token_scales,
        }
    }
}
