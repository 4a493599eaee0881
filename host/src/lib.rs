//! Stem sparse prefill attention for NVIDIA Hopper.
//!
//! Tensors in, tensors out: FP8 queries and a paged FP8 KV cache go in; per block of 128 queries the key blocks that
//! matter are selected, attended to, and a bf16 output comes back. On a machine without a Hopper GPU the CPU backend
//! computes the same thing, slowly.
//!
//! - [`PrefillInputs`] / [`Backend`]: host tensors in, host tensors out, on whichever backend there is.
//! - `Plan` (feature `cuda`): device tensors; everything validated once, `run` only launches.
//! - [`mod@reference`]: every stage on the CPU, the oracle of the tests.

pub mod backend;
pub mod budget;
pub mod config;
pub mod error;
pub mod fp8;
pub mod geometry;
pub mod kv;
pub mod mask;
pub mod reference;
pub mod tensor;

#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "cuda")]
pub mod driver;
#[cfg(feature = "cuda")]
pub mod ops;
#[cfg(feature = "cuda")]
pub mod plan;
#[cfg(feature = "cuda")]
pub mod ptx;

#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
#[cfg(feature = "cli")]
pub mod record;

pub use backend::{Backend, BackendKind, PrefillOptions, PrefillOutput, StageTimes};
pub use config::{Guards, OamConfig, Preset, ProbeConfig, Schedule, Selection, Selector, StemConfig, TieRule};
pub use error::{Error, Result};
pub use geometry::Geometry;
pub use mask::BlockLists;
pub use tensor::PrefillInputs;

/// The README's example must compile.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
