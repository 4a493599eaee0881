//! The probe selector: block scores from pooled queries and pooled keys, finer than Stem's sums over whole blocks.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use stem_attn_kernels::config::BLOCK;

/// What stands for the keys of one sub-block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyModel {
    /// Their mean.
    #[default]
    Mean,
    /// Their mean and the variance of every dimension: the logit gains half the variance of q.k, the second cumulant of the
    /// sub-block's attention mass. Costs a second product.
    Gauss,
}

/// What the logits of one query group are measured against, so that the groups of a block can be compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normaliser {
    /// The log-sum-exp of the group's logits over all visible sub-blocks.
    Sums,
    /// The log-sum-exp of the largest logit of each key block: a sixteenth of the exponentials.
    Maxima,
    /// The same in one pass over the keys that keeps no logit of a group: strips of 16 key blocks, from the diagonal
    /// towards the first, each measured against what has been seen so far; at the end the score of a block is corrected by
    /// what its strongest group has gained since. What the GPU computes.
    #[default]
    Running,
}

/// How the shares of a block's query groups become one score.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupNorm {
    /// The largest share.
    Max,
    /// The 3-norm of the shares: led by the largest, lifted by up to (log2 of the groups) / 3 where several agree.
    #[default]
    Cubic,
}

/// The probe selector's settings. A query group's logit of a sub-block is `mean(q) . mean(k) / sqrt(128)`; the largest of a
/// key block's sub-blocks, less the group's normaliser, is the base-2 logarithm of the group's share for that block; the
/// norm of the shares over the groups of the query block is the score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeConfig {
    /// Consecutive keys in a sub-block: 8 or 16.
    pub key_pool: u32,
    /// Consecutive queries in a group: 1, 2, 4 or 8.
    pub query_pool: u32,
    /// What stands for a sub-block.
    pub keys: KeyModel,
    /// What logits are measured against.
    pub normaliser: Normaliser,
    /// How groups become one score.
    pub groups: GroupNorm,
    /// Whether the means are rounded to e4m3, as the FP8 tensor core takes them.
    pub fp8: bool,
}

impl Default for ProbeConfig {
    /// Means of 8 keys and of 8 queries, in e4m3, normalised in one pass: 0.8 % of the multiplications of dense attention.
    fn default() -> Self {
        Self { key_pool: 8, query_pool: 8, keys: KeyModel::Mean, normaliser: Normaliser::Running, groups: GroupNorm::Cubic, fp8: true }
    }
}

impl ProbeConfig {
    /// Means of 8 keys and of 4 queries: twice the cost of the default, and more margin where single tokens matter.
    pub fn fine() -> Self {
        Self { query_pool: 4, ..Self::default() }
    }

    /// Checks the pool sizes.
    ///
    /// # Errors
    /// [`Error::Value`] naming the field.
    pub fn validate(&self) -> Result<()> {
        if !matches!(self.key_pool, 8 | 16) {
            return Err(Error::value("key_pool", "8 or 16 keys", self.key_pool));
        }
        if !matches!(self.query_pool, 1 | 2 | 4 | 8) {
            return Err(Error::value("query_pool", "1, 2, 4 or 8 queries", self.query_pool));
        }
        Ok(())
    }

    /// Checks that the GPU kernel computes this setting: means of 8 keys in e4m3, normalised in one pass, 3-norm.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming the setting; those of [`Self::validate`].
    pub fn require_gpu(&self) -> Result<()> {
        self.validate()?;
        let built = Self { query_pool: self.query_pool, ..Self::default() };
        if *self == built { Ok(()) } else { Err(Error::Unsupported { what: "probe selector on the GPU", got: format!("{self:?}") }) }
    }

    /// Checks that keys have no scales of their own: means are e4m3 codes in units of the head's scale.
    pub(crate) fn require_head_scales(token_scales: bool) -> Result<()> {
        let got = "k_token_scale: a K scale for every token and head";
        if token_scales { Err(Error::Unsupported { what: "probe selector", got: got.into() }) } else { Ok(()) }
    }

    /// Sub-blocks of a key block.
    pub(crate) fn sub_blocks(&self) -> usize {
        BLOCK / self.key_pool.max(1) as usize
    }

    /// Query groups of a query block.
    pub(crate) fn query_groups(&self) -> usize {
        BLOCK / self.query_pool.max(1) as usize
    }
}
