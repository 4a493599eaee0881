//! PTX modules and their kernels.

use super::{Arg, CudaContext, CudaStream, Device, Launch, describe, driver_error};
use crate::error::{Error, Result};
use cudarc::driver::{result, sys};
use std::ffi::{CString, c_void};
use std::ptr;
use std::sync::Arc;

/// Bytes kept of each of the JIT's two logs.
const LOG_BYTES: usize = 16 * 1024;

/// A PTX module loaded into a context.
#[derive(Debug)]
pub struct Module {
    raw: sys::CUmodule,
    device: Device,
    name: String,
}

// SAFETY: a CUmodule is a handle that the driver lets any thread use; each use binds the context first.
unsafe impl Send for Module {}
// SAFETY: as above; the driver synchronises access to the handle.
unsafe impl Sync for Module {}

impl Drop for Module {
    fn drop(&mut self) {
        let context = self.device.context();
        context.record_err(context.bind_to_thread());
        // SAFETY: the handle came from cuModuleLoadDataEx and every kernel holds an Arc of this module.
        context.record_err(unsafe { result::module::unload(self.raw) });
    }
}

impl Module {
    /// Compiles PTX text for the device and loads it. `name` appears in errors.
    ///
    /// # Errors
    /// [`Error::Jit`] with the JIT's log.
    pub fn load(device: &Device, name: &str, ptx: &str) -> Result<Arc<Self>> {
        let jit = |message: String, log: String| Error::Jit { module: name.to_owned(), message, log };
        let image = CString::new(ptx).map_err(|e| jit(format!("the PTX text holds a NUL byte at {}", e.nul_position()), String::new()))?;
        device.context().bind_to_thread().map_err(driver_error("cuCtxSetCurrent"))?;
        let (mut info, mut error) = (vec![0u8; LOG_BYTES], vec![0u8; LOG_BYTES]);
        let mut options = [
            sys::CUjit_option::CU_JIT_INFO_LOG_BUFFER,
            sys::CUjit_option::CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES,
            sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
            sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        // Numbers travel in the pointer-sized slots themselves.
        let size = ptr::without_provenance_mut::<c_void>(LOG_BYTES);
        let mut values = [info.as_mut_ptr().cast::<c_void>(), size, error.as_mut_ptr().cast::<c_void>(), size];
        let mut raw: sys::CUmodule = ptr::null_mut();
        // SAFETY: the image is NUL-terminated PTX; options and values are arrays of the length given; the log buffers are
        // writable, LOG_BYTES long and outlive the call; the context is current.
        let loaded = unsafe {
            sys::cuModuleLoadDataEx(&mut raw, image.as_ptr().cast(), options.len() as u32, options.as_mut_ptr(), values.as_mut_ptr())
        };
        loaded.result().map_err(|e| {
            let log = [text_of(&error), text_of(&info)].into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join("\n");
            jit(describe(e), log)
        })?;
        Ok(Arc::new(Self { raw, device: device.clone(), name: name.to_owned() }))
    }

    /// Name given at loading.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The entry `entry`, launched with `threads` threads a block and `shared_bytes` of dynamic shared memory (opted in
    /// to when that is more than the default 48 KiB).
    ///
    /// # Errors
    /// [`Error::Jit`] when the module has no such entry; [`Error::Value`] when the block is larger than the device
    /// allows; [`Error::Driver`].
    pub fn kernel(self: &Arc<Self>, entry: &'static str, threads: u32, shared_bytes: u32) -> Result<Kernel> {
        let limit = self.device.info().shared_bytes_per_block;
        if shared_bytes > limit {
            return Err(Error::value("shared_bytes", format!("at most {limit} for {entry}"), shared_bytes));
        }
        if threads == 0 || threads > 1024 {
            return Err(Error::value("threads", format!("1 to 1024 for {entry}"), threads));
        }
        let jit = |message: String| Error::Jit { module: self.name.clone(), message, log: String::new() };
        let symbol = CString::new(entry).map_err(|_| jit(format!("{entry:?} is no entry name")))?;
        self.context().bind_to_thread().map_err(driver_error("cuCtxSetCurrent"))?;
        // SAFETY: the module is loaded and the name NUL-terminated.
        let function = unsafe { result::module::get_function(self.raw, symbol) }.map_err(|e| jit(format!("{entry}: {}", describe(e))))?;
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function handle is valid. `shared_bytes` is below the device's limit, which fits i32.
        unsafe { result::function::set_function_attribute(function, attribute, shared_bytes as i32) }
            .map_err(driver_error("cuFuncSetAttribute"))?;
        Ok(Kernel { function, module: self.clone(), entry, threads, shared_bytes })
    }

    fn context(&self) -> &Arc<CudaContext> {
        self.device.context()
    }
}

/// Text up to the first NUL.
fn text_of(log: &[u8]) -> String {
    let end = log.iter().position(|&b| b == 0).unwrap_or(log.len());
    String::from_utf8_lossy(&log[..end]).trim().to_owned()
}

/// One entry of a module, with its block size and dynamic shared memory.
#[derive(Clone, Debug)]
pub struct Kernel {
    function: sys::CUfunction,
    module: Arc<Module>,
    entry: &'static str,
    threads: u32,
    shared_bytes: u32,
}

// SAFETY: a CUfunction is a handle that any thread may use while its module lives, and the Arc keeps that alive.
unsafe impl Send for Kernel {}
// SAFETY: as above; launching takes the handle by value.
unsafe impl Sync for Kernel {}

impl Kernel {
    /// Entry name.
    pub fn entry(&self) -> &'static str {
        self.entry
    }

    /// Threads of a block.
    pub fn threads(&self) -> u32 {
        self.threads
    }

    /// Registers of a thread, as the JIT allotted them.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn registers(&self) -> Result<u32> {
        self.attribute(sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)
    }

    /// Bytes of local memory of a thread: anything but 0 means spills.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn local_bytes(&self) -> Result<u32> {
        self.attribute(sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)
    }

    /// How many blocks the whole GPU can hold at a time when they come in clusters of `cluster` blocks: a cluster has to fit into one
    /// group of multiprocessors, and groups differ in size.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn resident_blocks(&self, cluster: u32) -> Result<usize> {
        let context = self.module.context();
        context.bind_to_thread().map_err(driver_error("cuCtxSetCurrent"))?;
        let launch = Launch::grid(cluster as usize, 1, 1).cluster([cluster, 1, 1]);
        launch.validate(self.entry)?;
        let (mut attributes, count) = launch.attributes();
        let config = self.config(&launch, &mut attributes, count, ptr::null_mut());
        let mut clusters = 0;
        // SAFETY: config and attributes live to the end of the call, which only reads them; the handle is valid.
        unsafe { sys::cuOccupancyMaxActiveClusters(&mut clusters, self.function, &config) }
            .result()
            .map_err(driver_error("cuOccupancyMaxActiveClusters"))?;
        Ok(clusters.max(0) as usize * cluster as usize)
    }

    fn config(&self, launch: &Launch, attributes: &mut [sys::CUlaunchAttribute], count: u32, stream: sys::CUstream) -> sys::CUlaunchConfig {
        let [grid_x, grid_y, grid_z] = launch.grid;
        sys::CUlaunchConfig {
            gridDimX: grid_x,
            gridDimY: grid_y,
            gridDimZ: grid_z,
            blockDimX: self.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: self.shared_bytes,
            hStream: stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: count,
        }
    }

    fn attribute(&self, attribute: sys::CUfunction_attribute) -> Result<u32> {
        self.module.context().bind_to_thread().map_err(driver_error("cuCtxSetCurrent"))?;
        // SAFETY: the function handle is valid while the module lives.
        let value = unsafe { result::function::get_function_attribute(self.function, attribute) };
        value.map(|v| v.max(0) as u32).map_err(driver_error("cuFuncGetAttribute"))
    }

    /// Queues a launch on `stream`. A grid with an extent of 0 launches nothing.
    ///
    /// # Errors
    /// [`Error::Value`] when the stream is of another context or the grid is past the hardware's limits (then nothing
    /// is launched); [`Error::Driver`]. A fault inside the kernel shows at a later call.
    ///
    /// # Safety
    /// - `args` match the kernel's parameters in number, order, size and meaning.
    /// - Every device address in them is valid for what the kernel touches until the kernel has run, and other streams
    ///   are ordered against it.
    pub unsafe fn launch(&self, stream: &Arc<CudaStream>, launch: &Launch, args: &[Arg<'_>]) -> Result<()> {
        let context = self.module.context();
        if stream.context() != context {
            return Err(Error::value("stream", format!("a stream of device {}'s context", context.ordinal()), "one of another context"));
        }
        launch.validate(self.entry)?;
        if launch.is_empty() {
            return Ok(());
        }
        context.bind_to_thread().map_err(driver_error("cuCtxSetCurrent"))?;
        let (mut attributes, count) = launch.attributes();
        let config = self.config(launch, &mut attributes, count, stream.cu_stream());
        // The driver's signature is not const; it only reads. `Arg` is transparent over one pointer.
        let pointers = args.as_ptr().cast_mut().cast::<*mut c_void>();
        // SAFETY: config, attributes and the argument values live to the end of the call, which copies them; the handle is
        // valid and its context current; the rest is the caller's promise.
        unsafe { sys::cuLaunchKernelEx(&config, self.function, pointers, ptr::null_mut()) }
            .result()
            .map_err(driver_error("cuLaunchKernelEx"))
    }
}
