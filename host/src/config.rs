//! What to select: the parameters of the Output-Aware Metric, Token Position Decay and the selection rules.
//!
//! Source of every formula and number: the two published statements of Stem (Tencent hpc-ops' operators and the torch
//! reference in AngelSlim), here as presets of one parametrised form.

mod probe;

pub use probe::{GroupNorm, KeyModel, Normaliser, ProbeConfig};

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// A published parameter set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// Tencent hpc-ops' operators.
    #[default]
    Hpc,
    /// The Stem paper and AngelSlim's torch reference.
    Paper,
}

/// Output-Aware Metric: the score of a (query block, key block) pair.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OamConfig {
    /// Weight of the anti-diagonal sum of group products.
    pub qk_scale: f32,
    /// Weight of the value term.
    pub lambda: f32,
    /// Whether runs past the last token count in the mean and deviation of the value norms (as ln 1e-6).
    pub count_empty_runs: bool,
    /// Whether the score is rounded to bf16.
    pub round_bf16: bool,
}

/// Start value k of the budget as a function of the prompt's blocks Pb.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// k = Pb below 56 blocks, trunc(0.2 Pb) + 30 below 160, trunc(0.1 Pb) + 30 from there.
    Hpc,
    /// k = ceil(ratio * Pb), at least `floor` blocks.
    Ratio {
        /// Share of the prompt's blocks.
        ratio: f32,
        /// Least budget in blocks (54 in the paper).
        floor: u32,
    },
}

/// Whether sink and window blocks use up budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guards {
    /// The `budget` best of all candidates, and the guards that are not among them (hpc).
    #[default]
    InsideBudget,
    /// The guards, and the `budget` best of the others.
    OnTop,
}

/// What happens to equal scores at the threshold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TieRule {
    /// Exact count: the lower block index wins.
    #[default]
    LowestIndex,
    /// Every tie is kept (hpc).
    KeepAll,
}

/// How block pairs are scored. Budgets, guards and ties are the same for both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Selector {
    /// The Output-Aware Metric: cheapest, blind to a single key among 128.
    #[default]
    Stem,
    /// Pooled queries against pooled keys: keeps what sharp heads look for.
    Probe(ProbeConfig),
}

/// Everything that decides which key blocks a query block attends to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StemConfig {
    /// Which score.
    #[serde(default)]
    pub selector: Selector,
    /// Stem's score.
    pub oam: OamConfig,
    /// Start value of the budgets.
    pub schedule: Schedule,
    /// Decay of the budget along the prompt: the last block keeps about `alpha * k`; 1 is no decay.
    pub alpha: f32,
    /// First key blocks always kept.
    pub sink: u32,
    /// Last key blocks, the diagonal included, always kept; at least 1.
    pub window: u32,
    /// Whether sink and window use up budget.
    pub guards: Guards,
    /// Equal scores at the threshold.
    pub ties: TieRule,
    /// Causal (bottom-right aligned) or full attention.
    pub causal: bool,
}

/// Where the lists that `attend` reads come from.
#[derive(Clone, Copy, Debug)]
pub enum Selection<'a> {
    /// Every visible block.
    Dense,
    /// Scored and selected.
    Stem(&'a StemConfig),
    /// The caller's own lists.
    Lists(&'a crate::mask::BlockLists),
}

impl StemConfig {
    /// The parameters of a published set, causal, without decay.
    pub fn preset(preset: Preset) -> Self {
        let (oam, schedule) = match preset {
            Preset::Hpc => (OamConfig { qk_scale: 1.0 / 64.0, lambda: 0.3, count_empty_runs: true, round_bf16: true }, Schedule::Hpc),
            Preset::Paper => (
                OamConfig { qk_scale: 1.0 / (64.0 * 16.0 * 128f32.sqrt()), lambda: 0.2, count_empty_runs: false, round_bf16: false },
                Schedule::Ratio { ratio: 0.25, floor: 54 },
            ),
        };
        Self {
            selector: Selector::Stem,
            oam,
            schedule,
            alpha: 1.0,
            sink: 4,
            window: 4,
            guards: Guards::InsideBudget,
            ties: TieRule::LowestIndex,
            causal: true,
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Value`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let checks = [
            ("qk_scale", self.oam.qk_scale.is_finite(), "a finite number", self.oam.qk_scale),
            ("lambda", self.oam.lambda.is_finite() && self.oam.lambda >= 0.0, "a finite number of at least 0", self.oam.lambda),
            ("alpha", self.alpha.is_finite() && self.alpha > 0.0 && self.alpha <= 1.0, "a number in (0, 1]", self.alpha),
            ("window", self.window >= 1 && self.window <= 1 << 20, "at least 1 block (the diagonal)", self.window as f32),
            ("sink", self.sink <= 1 << 20, "at most 1,048,576 blocks", self.sink as f32),
        ];
        for (name, ok, expected, got) in checks {
            if !ok {
                return Err(Error::value(name, expected, got));
            }
        }
        if let Selector::Probe(probe) = &self.selector {
            probe.validate()?;
        }
        match self.schedule {
            Schedule::Ratio { ratio, .. } if !(ratio.is_finite() && ratio > 0.0 && ratio <= 1.0) => {
                Err(Error::value("ratio", "a number in (0, 1]", ratio))
            }
            _ => Ok(()),
        }
    }
}
