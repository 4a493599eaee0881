//! One GPU: whether there is one, and its facts.

use super::{CudaContext, driver_error};
use crate::error::{Error, Result};
use cudarc::driver::{result, sys};
use std::ffi::c_int;
use std::sync::Arc;

/// Compute capability the kernels are built for: `sm_90a` code runs on 9.0 and on nothing else.
const CAPABILITY: (i32, i32) = (9, 0);
/// Oldest driver interface whose JIT takes the kernels' PTX 8.0 and which has tensor maps.
const OLDEST_DRIVER: i32 = 12_000;

/// Whether a driver and a GPU that can run the kernels are there. Every constructor of the CUDA half calls it first.
///
/// # Errors
/// [`Error::Unavailable`] saying what is missing: libcuda, a recent driver, a GPU, or one of compute capability 9.0.
pub fn available() -> Result<()> {
    usable_device(0).map(|_| ())
}

/// Checks everything up to the compute capability of device `ordinal`, without creating a context.
fn usable_device(ordinal: usize) -> Result<sys::CUdevice> {
    // SAFETY: only tries to open the library. cudarc panics in any other call when it is missing.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::Unavailable("the CUDA driver library (libcuda) was not found".into()));
    }
    let unavailable = |what: &'static str| move |e| Error::Unavailable(format!("{what}: {}", super::describe(e)));
    let mut version: c_int = 0;
    // SAFETY: the out pointer is valid; the call is allowed before cuInit.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(unavailable("cuDriverGetVersion"))?;
    if version < OLDEST_DRIVER {
        return Err(Error::Unavailable(format!(
            "the driver supports CUDA {}, the kernels need {} or later",
            version_text(version),
            version_text(OLDEST_DRIVER)
        )));
    }
    result::init().map_err(unavailable("cuInit"))?;
    let count = result::device::get_count().map_err(unavailable("cuDeviceGetCount"))?;
    let index = i32::try_from(ordinal)
        .ok()
        .filter(|&i| i < count)
        .ok_or_else(|| Error::Unavailable(format!("device {ordinal} asked for, the driver sees {count}")))?;
    let device = result::device::get(index).map_err(unavailable("cuDeviceGet"))?;
    let attribute = |a| {
        // SAFETY: `device` came from cuDeviceGet.
        unsafe { result::device::get_attribute(device, a) }.map_err(unavailable("cuDeviceGetAttribute"))
    };
    let capability = (
        attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    );
    if capability != CAPABILITY {
        let name = result::device::get_name(device).unwrap_or_else(|_| "unnamed".into());
        return Err(Error::Unavailable(format!(
            "the kernels need compute capability {}.{} (Hopper), device {ordinal} ({name}) has {}.{}",
            CAPABILITY.0, CAPABILITY.1, capability.0, capability.1
        )));
    }
    Ok(device)
}

/// `12080` as `12.8`.
fn version_text(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// Facts of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The driver's name of it, as "NVIDIA H100 80GB HBM3".
    pub name: String,
    /// CUDA version the driver supports, as "12.8".
    pub cuda_version: String,
    /// Version of the kernel module, as "580.65.06"; `None` where the system does not show it.
    pub driver_version: Option<String>,
    /// Place on the PCI bus, as "00000000:1b:00.0": the name that other tools know the device by, whatever ordinal it has here.
    pub pci_address: String,
    /// Streaming multiprocessors.
    pub sm_count: u32,
    /// Peak SM clock in MHz.
    pub sm_clock_mhz: u32,
    /// Peak memory clock in MHz.
    pub memory_clock_mhz: u32,
    /// Device memory in bytes.
    pub memory_bytes: usize,
    /// L2 cache in bytes.
    pub l2_bytes: usize,
    /// Most dynamic shared memory a block may opt in to, in bytes.
    pub shared_bytes_per_block: u32,
}

/// One Hopper GPU and its primary context.
#[derive(Clone, Debug)]
pub struct Device {
    context: Arc<CudaContext>,
    info: Arc<DeviceInfo>,
}

impl Device {
    /// Opens device `ordinal` and retains its primary context.
    ///
    /// # Errors
    /// [`Error::Unavailable`] as [`available`]; [`Error::Driver`] when the context cannot be created.
    pub fn open(ordinal: usize) -> Result<Self> {
        usable_device(ordinal)?;
        let context = CudaContext::new(ordinal).map_err(driver_error("cuDevicePrimaryCtxRetain"))?;
        Self::from_checked(context)
    }

    /// Uses a context that another crate opened.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when its device cannot run the kernels; [`Error::Driver`].
    pub fn from_context(context: &Arc<CudaContext>) -> Result<Self> {
        usable_device(context.ordinal())?;
        Self::from_checked(context.clone())
    }

    fn from_checked(context: Arc<CudaContext>) -> Result<Self> {
        use sys::CUdevice_attribute as A;
        let attribute = |a: A| context.attribute(a).map(|v| v.max(0) as u32).map_err(driver_error("cuDeviceGetAttribute"));
        let mut version: c_int = 0;
        // SAFETY: the out pointer is valid.
        unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(driver_error("cuDriverGetVersion"))?;
        let info = DeviceInfo {
            name: context.name().map_err(driver_error("cuDeviceGetName"))?,
            cuda_version: version_text(version),
            driver_version: kernel_module_version(),
            pci_address: format!(
                "{:08x}:{:02x}:{:02x}.0",
                attribute(A::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID)?,
                attribute(A::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID)?,
                attribute(A::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID)?
            ),
            sm_count: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            sm_clock_mhz: attribute(A::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)? / 1000,
            memory_clock_mhz: attribute(A::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)? / 1000,
            memory_bytes: context.total_mem().map_err(driver_error("cuDeviceTotalMem"))?,
            l2_bytes: attribute(A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize,
            shared_bytes_per_block: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        };
        Ok(Self { context, info: Arc::new(info) })
    }

    /// Its context.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// Its facts.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }
}

/// The version Linux shows of NVIDIA's kernel module.
fn kernel_module_version() -> Option<String> {
    std::fs::read_to_string("/sys/module/nvidia/version").ok().map(|s| s.trim().to_owned()).filter(|s| !s.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_people_write_them() {
        assert_eq!(version_text(12_080), "12.8");
        assert_eq!(version_text(13_000), "13.0");
    }

    #[test]
    fn an_ordinal_past_the_last_device_is_an_error_value() {
        assert!(matches!(Device::open(usize::MAX), Err(Error::Unavailable(_))));
    }
}
