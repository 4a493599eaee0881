//! What a plan is made from, and every check that needs no GPU.

use super::workspace::Layout;
use crate::config::{ProbeConfig, Selector, StemConfig};
use crate::driver::Launch;
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::kv::TokenScaleLayout;
use crate::ops::{self, Heads, PageDesc, check_select_grid};
use stem_attn_kernels::config::HEAD_DIM;

/// Where the blocks that attention visits come from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PlanSelection {
    /// Every visible block.
    Dense,
    /// Scored and selected on the GPU.
    Stem(StemConfig),
    /// The caller's lists, in device memory.
    Lists {
        /// Capacity of one list.
        stride: usize,
    },
}

/// A batch, the shape of its KV cache, and what to select.
#[derive(Clone, Copy, Debug)]
pub struct PlanDesc<'a> {
    /// Query heads; a multiple of `hkv`.
    pub hq: usize,
    /// KV heads.
    pub hkv: usize,
    /// `[batch + 1]` offsets into the query rows, from 0 to `total_q`.
    pub cu_seqlens_q: &'a [i32],
    /// `[batch + 1]` offsets of the visible KV tokens, from 0 to `total_kv`.
    pub cu_seqlens_kv: &'a [i32],
    /// `[batch]` tokens of the whole prompt; at least the request's KV length.
    pub prompt_lens: &'a [i32],
    /// Pages and page table.
    pub pages: PageDesc,
    /// Where the blocks come from.
    pub selection: PlanSelection,
    /// Whether keys after a query are masked (bottom-right aligned).
    pub causal: bool,
    /// Multiplies the logits; [`default_softmax_scale`] unless the model says otherwise.
    pub softmax_scale: f32,
}

/// `1 / sqrt(128)`.
pub fn default_softmax_scale() -> f32 {
    (HEAD_DIM as f64).sqrt().recip() as f32
}

/// A description that has passed every check.
#[derive(Debug)]
pub(super) struct Checked {
    pub heads: Heads,
    pub geometry: Geometry,
    pub layout: Layout,
}

impl PlanDesc<'_> {
    /// Checks everything that can be checked without a GPU, and cuts the batch into blocks. [`super::Plan::new`] does the same.
    ///
    /// # Errors
    /// [`Error::Value`], [`Error::Shape`] or [`Error::Unsupported`] naming the field, what was expected and what came.
    pub fn validate(&self) -> Result<Geometry> {
        self.check().map(|checked| checked.geometry)
    }

    /// Bytes of workspace that a plan of this description needs.
    ///
    /// # Errors
    /// As [`Self::validate`].
    pub fn workspace_bytes(&self) -> Result<usize> {
        self.check().map(|checked| checked.layout.bytes())
    }

    pub(super) fn check(&self) -> Result<Checked> {
        let heads = Heads::new(self.hq, self.hkv)?;
        let config = match &self.selection {
            PlanSelection::Stem(config) => Some(config),
            PlanSelection::Dense | PlanSelection::Lists { .. } => None,
        };
        if let Some(config) = config {
            config.validate()?;
            if config.causal != self.causal {
                return Err(Error::value("causal", format!("{}, as in the plan", self.causal), config.causal));
            }
        }
        if !(self.softmax_scale.is_finite() && self.softmax_scale > 0.0) {
            return Err(Error::value("softmax_scale", "a positive finite number", self.softmax_scale));
        }
        if let PlanSelection::Lists { stride: 0 } = self.selection {
            return Err(Error::value("lists", "a capacity of at least 1", 0));
        }
        let geometry = Geometry::new(self.cu_seqlens_q, self.cu_seqlens_kv, self.prompt_lens, self.causal, config)?;
        let longest = geometry.requests.iter().map(|r| r.kv_len.max(0) as usize).max().unwrap_or(0);
        self.pages.check(longest, self.hkv)?;
        check_grids(&geometry, heads)?;
        if let Some(Selector::Probe(probe)) = config.map(|config| &config.selector) {
            ops::require_probe(&geometry, probe)?;
            ProbeConfig::require_head_scales(self.pages.k_token_scales != TokenScaleLayout::None)?;
            ops::probe_items(&geometry, heads.hq, probe)?;
        }
        let layout = Layout::new(&geometry, heads, &self.selection)?;
        Ok(Checked { heads, geometry, layout })
    }
}

/// Checks every grid that the stages will launch.
fn check_grids(geometry: &Geometry, heads: Heads) -> Result<()> {
    for (kernel, grid) in [
        ("summarize_kv", Launch::grid(geometry.total_kb(), heads.hkv, 1)),
        ("append_kv", Launch::grid(geometry.total_qb(), heads.hkv, 1)),
        ("attend's query blocks and heads", Launch::grid(geometry.total_qb().saturating_mul(heads.hq), 1, 1)),
    ] {
        grid.validate(kernel)?;
    }
    check_select_grid(geometry, heads.hq)
}
