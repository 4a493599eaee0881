//! How a warp sums an octet, eight tokens of each of eight query blocks (`tile/octet.rs`).
//!
//! The codes lie in shared memory as a tensor copy leaves them: block after block, token after token, 128 bytes each, with the
//! 128-byte swizzle. An octet is summed in two parts of four blocks; in each, eight lanes have a block, 16 dimensions each.

use super::select::sum_offset;
pub use crate::config::select::PARTS;
use crate::config::{GROUP_TOKENS, HEAD_DIM};

/// Blocks of an octet.
pub const BLOCKS: u32 = 8;
/// Bytes from the codes of one block to those of the next.
pub const BLOCK_BYTES: u32 = (GROUP_TOKENS * HEAD_DIM) as u32;
/// Bytes of the codes of an octet.
pub const BYTES: u32 = BLOCKS * BLOCK_BYTES;
/// Blocks of a part.
pub const PART_BLOCKS: u32 = BLOCKS / PARTS;
/// Bytes of the codes of a part.
pub const PART_BYTES: u32 = PART_BLOCKS * BLOCK_BYTES;

/// Which 16 dimensions, `16 * chunk ..`, the lane loads and sums.
#[inline(always)]
pub const fn chunk(lane: u32) -> u32 {
    lane % 8
}

/// Which block of the octet the lane has in part `part`.
#[inline(always)]
pub const fn block(lane: u32, part: u32) -> u32 {
    part * PART_BLOCKS + lane / 8
}

/// Byte offset of the lane's codes of its block's first token among the codes of a part.
#[inline(always)]
pub const fn code_offset(lane: u32) -> u32 {
    lane / 8 * BLOCK_BYTES + chunk(lane) * 16
}

/// The same, or an address, for token `token` of the block.
#[inline(always)]
pub const fn code_of_token(first: u32, token: u32) -> u32 {
    (first ^ (token * 16)) + token * HEAD_DIM as u32
}

/// Where the lane's sums of part 0 go among the octet's rows of a group of query sums ([`sum_offset`]): the lower eight dimensions; the
/// upper eight lie at the offset with bit 4 flipped.
#[inline(always)]
pub const fn sums_at<const WIDE: bool>(lane: u32) -> u32 {
    sum_offset::<WIDE>(lane / 8, chunk(lane))
}

/// The same, or an address, for part `part`.
#[inline(always)]
pub const fn sums_of_part(first: u32, part: u32) -> u32 {
    // Four rows further on the swizzle has bit 6 the other way.
    (first ^ (part * 64)) + part * (PART_BLOCKS * 128)
}

const _: () = assert!(GROUP_TOKENS == 8 && HEAD_DIM == 128, "rows of the swizzle, and eight lanes a row");

#[cfg(test)]
mod tests {
    use super::super::swizzle_128;
    use super::*;

    #[test]
    fn loads_use_every_bank_once() {
        for token in 0..8 {
            for first in (0..32).step_by(8) {
                let mut units: Vec<u32> = (first..first + 8).map(|lane| code_of_token(code_offset(lane), token) % 128 / 16).collect();
                units.sort_unstable();
                assert!(units.into_iter().eq(0..8), "token {token}, lanes from {first}");
            }
        }
    }

    #[test]
    fn every_code_is_loaded_by_the_lane_of_its_block() {
        for (part, lane, token) in (0..PARTS).flat_map(|p| (0..32).flat_map(move |lane| (0..8).map(move |t| (p, lane, t)))) {
            let at = code_of_token(code_offset(lane) + part * PART_BYTES, token);
            let want = block(lane, part) * BLOCK_BYTES + token * 128 + chunk(lane) * 16;
            assert_eq!(at, swizzle_128(want as usize) as u32, "part {part}, lane {lane}, token {token}");
        }
    }

    #[test]
    fn sums_land_in_their_rows() {
        for (lane, part) in (0..32).flat_map(|lane| (0..PARTS).map(move |part| (lane, part))) {
            assert_eq!(
                sums_of_part(sums_at::<false>(lane), part),
                sum_offset::<false>(block(lane, part), chunk(lane)),
                "lane {lane}, part {part}"
            );
        }
    }
}
