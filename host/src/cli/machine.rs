//! What a number was measured on.

use crate::backend::Backend;

/// The machine behind a backend.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// `cuda` or `cpu`.
    pub backend: &'static str,
    /// GPU name; none on the CPU backend.
    pub gpu: Option<String>,
    /// Driver version (kernel module, else the CUDA version it supports).
    pub driver: Option<String>,
    /// The GPU's place on the PCI bus; none on the CPU backend.
    pub pci_address: Option<String>,
    /// Streaming multiprocessors; none on the CPU backend.
    pub sm_count: Option<u32>,
}

impl Machine {
    /// The machine of `backend`.
    pub fn of(backend: &Backend) -> Self {
        let cpu = Self { backend: backend.name(), ..Self::default() };
        match backend {
            Backend::Cpu => cpu,
            #[cfg(feature = "cuda")]
            Backend::Cuda(cuda) => {
                let info = cuda.info();
                Self {
                    gpu: Some(info.name.clone()),
                    driver: info.driver_version.clone().or_else(|| Some(format!("CUDA {}", info.cuda_version))),
                    pci_address: Some(info.pci_address.clone()),
                    sm_count: Some(info.sm_count),
                    ..cpu
                }
            }
        }
    }

    /// "cuda, NVIDIA H100 80GB HBM3, driver 580.65.06" or "cpu, 16 threads".
    pub fn describe(&self) -> String {
        match (&self.gpu, &self.driver) {
            (Some(gpu), Some(driver)) => format!("{}, {gpu}, driver {driver}", self.backend),
            _ => format!("{}, {} threads", self.backend, rayon::current_num_threads()),
        }
    }
}
