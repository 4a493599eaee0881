//! How a warp sums an octet, eight tokens of each of eight query blocks, with products of the tensor core (`tile/octet.rs`).
//!
//! The codes lie in shared memory as a tensor copy leaves them: block after block, token after token, 128 bytes each, with the
//! 128-byte swizzle. One product (16 x 16 codes times 16 x 8 scales) takes eight tokens of one block and 32 of its dimensions, a word
//! of each 16-byte chunk: rows g and g + 8 of the codes are the first and the second two dimensions of the word in chunk [`chunk`] of
//! group g (four lanes), and column k = 2 token + parity has the first or the second of the two. So lane 4 g + t, which holds columns
//! 2 t, 2 t + 1, 2 t + 8 and 2 t + 9, loads its chunk of tokens t and t + 4 and converts it as it is. Column 2 b + parity of the scales
//! belongs to block b of four, and is zero where k has the other parity; columns of other blocks are all zeros. Four products, a word of
//! the chunks each, are a block; of the sums of four blocks lane 4 g + t gets all 16 dimensions of its chunk, for block t. A chunk is summed in two halves,
//! which takes half of the registers.

use super::select::sum_offset;
use super::swizzle_128;
use crate::config::{GROUP_TOKENS, HEAD_DIM};

/// Blocks of an octet.
pub const BLOCKS: u32 = 8;
/// Bytes from the codes of one block to those of the next.
pub const BLOCK_BYTES: u32 = (GROUP_TOKENS * HEAD_DIM) as u32;
/// Bytes of the codes of an octet.
pub const BYTES: u32 = BLOCKS * BLOCK_BYTES;

/// Which 16 dimensions, `16 * chunk ..`, lane `lane` loads and gets the sums of. In this order eight lanes that load or store together
/// use all banks once: the groups of a pair differ in the bits of the swizzle that their four rows leave alone.
#[inline(always)]
pub const fn chunk(lane: u32) -> u32 {
    let group = lane / 4;
    group ^ (group % 2 * 6)
}

/// Parts of an octet: for four blocks at a time, half of the dimensions.
pub const PARTS: u32 = 4;

/// Which half of its chunk the lane has in a part: in the same part some lanes have the lower one and others the upper, so that the
/// eight bytes that sixteen lanes load together lie in different banks.
#[inline(always)]
pub const fn half_chunk(lane: u32, part: u32) -> u32 {
    (part + lane / 8) % 2
}

/// Byte offset of the lane's half chunk of its two tokens, t = lane mod 4 and t + 4, of the first block, in part 0. In odd parts bit
/// 3 is the other way.
#[inline(always)]
pub const fn code_offsets(lane: u32) -> [u32; 2] {
    let dimension = chunk(lane) * 16 + half_chunk(lane, 0) * 8;
    let first = swizzle_128((lane % 4 * HEAD_DIM as u32 + dimension) as usize) as u32;
    // Four rows further on, where the swizzle has bit 6 the other way.
    [first, (first ^ 64) + 4 * HEAD_DIM as u32]
}

/// Where the lane's eight sums of a part go in a step (64 dimensions) of the octet's sums: rows of 128 bytes with the 128-byte swizzle. They
/// belong to step `chunk(lane) / 4`.
#[inline(always)]
pub const fn sums_at(lane: u32, part: u32) -> u32 {
    let first = sum_offset(lane % 4, chunk(lane) % 4) ^ (half_chunk(lane, 0) * 16);
    sums_of_part(first, part)
}

/// The same, from the place of part 0, which may be an address.
#[inline(always)]
pub const fn sums_of_part(first: u32, part: u32) -> u32 {
    // Four rows further on the swizzle has bit 6 the other way.
    (first ^ (part % 2 * 16) ^ (part / 2 * 64)) + part / 2 * (4 * 128)
}

/// Which lane has the scales that `lane` multiplies by in blocks `4 * four ..`: lane 4 b + t has those of tokens t and t + 4 of block b.
#[inline(always)]
pub const fn scale_source(lane: u32, four: u32) -> u32 {
    four * 16 + lane / 8 * 4 + lane % 4
}

/// A lane that knows the block whose sums `lane` gets of blocks `4 * four ..`.
#[inline(always)]
pub const fn sum_source(lane: u32, four: u32) -> u32 {
    four * 16 + lane % 4 * 4
}

/// What takes a 16-bit scale of [`scale_source`] to its place among the lane's pair of scales, the half of the column's parity, by
/// multiplication.
#[inline(always)]
pub const fn place(lane: u32) -> u32 {
    1 << (lane / 4 % 2 * 16)
}

/// Whether the lane's column belongs to block `step` of four; the scales of the others' are zeros.
#[inline(always)]
pub const fn is_block(lane: u32, step: u32) -> bool {
    lane / 8 == step
}

const _: () = assert!(GROUP_TOKENS == 8 && HEAD_DIM == 128, "two tokens and 16 bytes a lane");

#[cfg(test)]
mod tests {
    use super::*;

    /// Asserts that `lanes` lanes at a time touch every bank once, 128 / `lanes` bytes each.
    fn assert_no_conflict(lanes: usize, at: impl Fn(u32) -> u32) {
        for first in (0..32).step_by(lanes) {
            let mut units: Vec<u32> = (first as u32..).take(lanes).map(|lane| at(lane) % 128 / (128 / lanes as u32)).collect();
            units.sort_unstable();
            assert!(units.into_iter().eq(0..lanes as u32), "lanes from {first}");
        }
    }

    #[test]
    fn loads_and_stores_use_every_bank_once() {
        for part in 0..PARTS {
            for second in [0, 1] {
                assert_no_conflict(16, |lane| code_offsets(lane)[second] ^ (part % 2 * 8));
            }
            assert_no_conflict(8, |lane| sums_at(lane, part));
        }
    }

    #[test]
    fn sums_land_in_their_rows() {
        for (lane, part) in (0..32).flat_map(|lane| (0..PARTS).map(move |part| (lane, part))) {
            let (row, column) = (part / 2 * 4 + lane % 4, chunk(lane) % 4 * 32 + half_chunk(lane, part) * 16);
            assert_eq!(sums_at(lane, part), swizzle_128((row * 128 + column) as usize) as u32, "lane {lane}, part {part}");
        }
    }

    #[test]
    fn every_chunk_of_every_token_is_loaded_once() {
        let mut seen = vec![false; BLOCK_BYTES as usize / 8];
        for (lane, part) in (0..32).flat_map(|lane| (0..2).map(move |part| (lane, part))) {
            for (second, at) in code_offsets(lane).into_iter().enumerate() {
                let (at, token) = (at ^ (part * 8), lane % 4 + 4 * second as u32);
                let column = chunk(lane) * 16 + half_chunk(lane, part) * 8;
                assert_eq!(at, swizzle_128((token * 128 + column) as usize) as u32, "lane {lane}, token {token}");
                assert!(!std::mem::replace(&mut seen[at as usize / 8], true));
            }
        }
    }

    /// D += A B of a warp, from fragments, as the instruction's documentation places them.
    fn product(d: &mut [[i32; 4]; 32], a: &[[[i32; 2]; 4]; 32], b: &[[[i32; 2]; 2]; 32]) {
        let left = |row: usize, k: usize| a[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2][k % 2];
        let right = |k: usize, column: usize| b[column * 4 + k % 8 / 2][k / 8][k % 2];
        for (lane, d) in d.iter_mut().enumerate() {
            let (g, t) = (lane / 4, lane % 4);
            for (i, d) in d.iter_mut().enumerate() {
                *d += (0..16).map(|k| left(g + i / 2 * 8, k) * right(k, 2 * t + i % 2)).sum::<i32>();
            }
        }
    }

    /// The sums of an octet the way the kernel makes them, with bytes as codes and 16-bit integers as scales.
    #[test]
    fn fragments_give_the_sums_of_every_block() {
        let code = |row: usize, d: usize| ((row * 37 + d * 11 + row * d) % 251) as i32 - 125;
        let scale = |block: usize, token: usize| (block * 7 + token * 3 + block * token) as u32 % 61 + 1;
        let mut stage = vec![0i8; BYTES as usize];
        for (row, d) in (0..64).flat_map(|row| (0..128).map(move |d| (row, d))) {
            stage[swizzle_128(row * 128 + d)] = code(row, d) as i8;
        }
        for part in 0..PARTS {
            let four = part as usize / 2;
            let mut sums = [[[0i32; 4]; 32]; 2];
            for step in 0..4usize {
                let b: [[[i32; 2]; 2]; 32] = std::array::from_fn(|lane| {
                    let source = scale_source(lane as u32, four as u32) as usize;
                    [0, 4].map(|second| {
                        let word =
                            scale(source / 4, source % 4 + second) * place(lane as u32) * u32::from(is_block(lane as u32, step as u32));
                        [word & 0xffff, word >> 16].map(|x| x as i32)
                    })
                });
                for (j, sums) in sums.iter_mut().enumerate() {
                    let a: [[[i32; 2]; 4]; 32] = std::array::from_fn(|lane| {
                        let pair = |second: usize, half: usize| {
                            let at = (code_offsets(lane as u32)[second] ^ (part % 2 * 8)) + (4 * four + step) as u32 * BLOCK_BYTES;
                            let at = at as usize + 4 * j + 2 * half;
                            [i32::from(stage[at]), i32::from(stage[at + 1])]
                        };
                        [pair(0, 0), pair(0, 1), pair(1, 0), pair(1, 1)]
                    });
                    product(sums, &a, &b);
                }
            }
            for (j, (lane, i)) in (0..2).flat_map(|j| (0..32).flat_map(move |lane| (0..4).map(move |i| (j, (lane, i))))) {
                let block = sum_source(lane as u32, four as u32) as usize / 4;
                assert_eq!(block, 4 * four + lane % 4);
                let d = (chunk(lane as u32) * 16 + half_chunk(lane as u32, part) * 8) as usize + 4 * j + i;
                let want: i32 = (0..8).map(|token| scale(block, token) as i32 * code(8 * block + token, d)).sum();
                assert_eq!(sums[j][lane][i], want, "block {block}, dimension {d}");
            }
        }
    }
}
