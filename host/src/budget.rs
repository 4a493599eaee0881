//! Token Position Decay: how many key blocks a query block may keep.
//!
//! A budget depends on the prompt's length and the block's absolute position only, so it does not change when the
//! prompt arrives in chunks. All arithmetic is f32 with one rounding per operation, as in the operators the schedules
//! come from; the first 2^24 blocks are exact.

use crate::config::{Schedule, StemConfig};

/// Budget, in key blocks, of the query block with absolute index `block` in a prompt of `prompt_blocks` blocks.
///
/// With k the schedule's start value: k for `block < k` and for prompts of at most k + 1 blocks; otherwise
/// `floor(k + t (alpha k - k))` with `t = (block - k) / (prompt_blocks - k - 1)`, at least 1 and at most k. Always in
/// `1..=max(prompt_blocks, 1)`. Constant time.
///
/// ```
/// use stem_attn::{Preset, StemConfig, budget::budget};
/// let config = StemConfig { alpha: 0.7, ..StemConfig::preset(Preset::Hpc) };
/// assert_eq!(budget(&config, 55, 54), 55); // short prompts keep everything
/// assert_eq!(budget(&config, 1024, 0), 132); // trunc(0.1 * 1024) + 30
/// assert_eq!(budget(&config, 1024, 1023), 92); // 0.7 of it at the end
/// ```
pub fn budget(config: &StemConfig, prompt_blocks: u32, block: u32) -> u32 {
    let k = start_value(&config.schedule, prompt_blocks);
    if block < k || prompt_blocks.saturating_sub(k) <= 1 {
        return k;
    }
    let start = k as f32;
    let t = (block - k) as f32 / (prompt_blocks - k - 1) as f32;
    let decayed = start + t * (config.alpha * start - start);
    // `as` saturates, and takes NaN to 0: every input lands in the range.
    (decayed.floor() as u32).clamp(1, k)
}

/// The schedule's start value k for a prompt of `prompt_blocks` blocks, in `1..=max(prompt_blocks, 1)`.
fn start_value(schedule: &Schedule, prompt_blocks: u32) -> u32 {
    let blocks = prompt_blocks as f32;
    let k = match *schedule {
        Schedule::Hpc if prompt_blocks < 56 => prompt_blocks,
        Schedule::Hpc if prompt_blocks < 160 => (0.2f32 * blocks) as u32 + 30,
        Schedule::Hpc => (0.1f32 * blocks) as u32 + 30,
        Schedule::Ratio { ratio, floor } => ((ratio * blocks).ceil() as u32).max(floor),
    };
    // More than every block is every block; one block is the least a row can keep.
    k.min(prompt_blocks).max(1)
}
