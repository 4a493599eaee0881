//! Device kernels of stem-attn, and the contract they share with the host.
//!
//! The crate compiles twice. For `nvptx64-nvidia-cuda` it is `no_std` device code in four layers whose imports run one
//! way, `ptx <- tile <- pipeline <- kernels`. For the host only the contract compiles: [`abi`] and [`abi_probe`] (parameter blocks),
//! [`config`] (compile-time numbers with their reasons) and [`layout`] (page, swizzle, descriptor and fragment
//! arithmetic as plain functions that the CPU tests reach).
#![cfg_attr(target_arch = "nvptx64", no_std)]
#![cfg_attr(target_arch = "nvptx64", feature(abi_gpu_kernel, asm_experimental_arch, stdarch_nvptx))]
// By-value `#[repr(C)]` blocks are how parameters travel; the PTX they become (`.param .align 8 .b8 p[size]`) is audited.
#![cfg_attr(target_arch = "nvptx64", allow(improper_gpu_kernel_arg))]

pub mod abi;
pub mod abi_probe;
pub mod config;
pub mod layout;

#[cfg(target_arch = "nvptx64")]
pub mod kernels;
#[cfg(target_arch = "nvptx64")]
pub mod pipeline;
#[cfg(target_arch = "nvptx64")]
pub mod ptx;
#[cfg(target_arch = "nvptx64")]
pub mod tile;

#[cfg(target_arch = "nvptx64")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
