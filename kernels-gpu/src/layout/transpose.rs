//! How one thread block of 128 turns 128 value rows (tokens) into a tile of 128 dimensions, byte by byte.
//!
//! In: thread (token r of a run, chunk c) holds 16 bytes of row 16 R + r for every run R. They go to shared memory so
//! that what a warp reads next, four words of one chunk from eight runs at once, lies in 32 different banks
//! ([`stage_offset`]). Out: a thread gathers the 16 tokens of one run for four dimensions, transposes 4 x 4 bytes in
//! registers ([`transpose_4x4`]), and stores 16 bytes a dimension; eight neighbouring lanes fill a row of 128
//! ([`unit()`], [`unit_offset`]). One run is exactly one 16-byte chunk of the output rows, whatever the order inside.

use super::{swizzle_128, v_row};
use crate::config::{HEAD_DIM, RUN};

/// Byte offset in shared memory of the 16-byte chunk `chunk` of token `token`: rows of 128 bytes, chunks xored with the
/// run so that the same chunk of eight runs lies in eight different groups of banks.
pub const fn stage_offset(token: u32, chunk: u32) -> u32 {
    token * HEAD_DIM as u32 + ((chunk ^ (token / RUN as u32)) * 16)
}

/// Which piece of the tile a thread makes: all tokens of one run for four dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit {
    /// The run: tokens `16 * run ..`.
    pub run: u32,
    /// The first of four consecutive dimensions.
    pub dim: u32,
}

/// Piece number `pass` (0 or 1) of thread `thread` (0..128). Lanes go through the eight runs first: what they store is
/// one whole row of the tile.
pub const fn unit(thread: u32, pass: u32) -> Unit {
    let (warp, lane) = (thread / 32, thread % 32);
    Unit { run: lane % 8, dim: (warp + 4 * pass) * 16 + lane / 8 * 4 }
}

/// Byte offset in shared memory of the unit's four dimensions of token `i` (0..16) of its run.
pub const fn unit_source(unit: Unit, i: u32) -> u32 {
    stage_offset(unit.run * RUN as u32 + i, unit.dim / 16) + unit.dim % 16
}

/// The four tokens of the run that make bytes 4 m .. 4 m + 4 of its chunk, in order ([`super::V_TOKEN_ORDER`]).
pub const fn word_tokens(m: u32) -> [u32; 4] {
    [2 * m, 2 * m + 1, 2 * m + 8, 2 * m + 9]
}

/// Byte offset in the tile of the unit's chunk of dimension `unit.dim + e`.
pub const fn unit_offset(unit: Unit, e: u32) -> u32 {
    swizzle_128(v_row((unit.dim + e) as usize) * HEAD_DIM + (unit.run * RUN as u32) as usize) as u32
}

/// Transposes 4 x 4 bytes: byte j of result e is byte e of input j.
#[inline(always)]
pub const fn transpose_4x4(w: [u32; 4]) -> [u32; 4] {
    /// Bytes 0 and 2 of `a` and of `b`, interleaved: a0 b0 a2 b2.
    const fn even(a: u32, b: u32) -> u32 {
        (a & 0x00ff_00ff) | ((b & 0x00ff_00ff) << 8)
    }
    /// Bytes 1 and 3: a1 b1 a3 b3.
    const fn odd(a: u32, b: u32) -> u32 {
        ((a >> 8) & 0x00ff_00ff) | (b & 0xff00_ff00)
    }
    let (e01, e23) = (even(w[0], w[1]), even(w[2], w[3]));
    let (o01, o23) = (odd(w[0], w[1]), odd(w[2], w[3]));
    [(e01 & 0xffff) | (e23 << 16), (o01 & 0xffff) | (o23 << 16), (e01 >> 16) | (e23 & 0xffff_0000), (o01 >> 16) | (o23 & 0xffff_0000)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::v_tile_offset;

    #[test]
    fn four_by_four() {
        let w = [0x0302_0100u32, 0x1312_1110, 0x2322_2120, 0x3332_3130];
        assert_eq!(transpose_4x4(w), [0x3020_1000, 0x3121_1101, 0x3222_1202, 0x3323_1303]);
        assert_eq!(transpose_4x4(transpose_4x4(w)), w);
    }

    /// The whole block, thread by thread, on (token, dimension) labels: what lands where `v_tile_offset` says.
    #[test]
    fn threads_together_write_the_tile() {
        let value = |d: u32, t: u32| (d.wrapping_mul(167) ^ t.wrapping_mul(59) ^ ((d * t) >> 3)) as u8;
        let mut stage = vec![None; 128 * 128];
        for thread in 0..128u32 {
            let (chunk, r) = (thread % 8, thread / 8);
            for run in 0..8 {
                let token = 16 * run + r;
                for b in 0..16 {
                    let at = (stage_offset(token, chunk) + b) as usize;
                    assert_eq!(stage[at].replace(value(chunk * 16 + b, token)), None, "two threads write one byte");
                }
            }
        }
        let mut tile = vec![None; 128 * 128];
        for thread in 0..128 {
            for pass in 0..2 {
                let unit = unit(thread, pass);
                for m in 0..4 {
                    let words = word_tokens(m).map(|i| {
                        let at = unit_source(unit, i) as usize;
                        assert_eq!(at % 4, 0);
                        u32::from_le_bytes([0, 1, 2, 3].map(|b| stage[at + b].unwrap()))
                    });
                    for (e, word) in transpose_4x4(words).into_iter().enumerate() {
                        let at = unit_offset(unit, e as u32) as usize;
                        assert_eq!(at % 16, 0);
                        for (b, byte) in word.to_le_bytes().into_iter().enumerate() {
                            assert_eq!(tile[at + 4 * m as usize + b].replace(byte), None, "two threads write one byte");
                        }
                    }
                }
            }
        }
        for d in 0..128 {
            for t in 0..128 {
                assert_eq!(tile[v_tile_offset(d, t)], Some(value(d as u32, t as u32)), "dimension {d}, token {t}");
            }
        }
    }

    #[test]
    fn shared_memory_reads_and_writes_are_free_of_bank_conflicts() {
        for warp in 0..4 {
            for pass in 0..2 {
                for i in 0..16 {
                    let mut banks = [0; 32];
                    for lane in 0..32 {
                        banks[(unit_source(unit(warp * 32 + lane, pass), i) / 4 % 32) as usize] += 1;
                    }
                    assert_eq!(banks, [1; 32]);
                }
            }
            // 16-byte stores go eight lanes at a time.
            for run in 0..8 {
                for quarter in 0..4 {
                    let mut groups = [0; 8];
                    for lane in 0..8 {
                        let thread = warp * 32 + quarter * 8 + lane;
                        groups[(stage_offset(16 * run + thread / 8, thread % 8) / 16 % 8) as usize] += 1;
                    }
                    assert_eq!(groups, [1; 8]);
                }
            }
        }
    }

    #[test]
    fn eight_lanes_store_whole_rows() {
        for thread in (0..128).step_by(8) {
            for e in 0..4 {
                let mut offsets: Vec<u32> = (thread..thread + 8).map(|t| unit_offset(unit(t, 1), e)).collect();
                offsets.sort();
                let first = offsets[0];
                assert_eq!(first % 128, 0);
                assert!(offsets.iter().enumerate().all(|(i, &o)| o == first + 16 * i as u32));
            }
        }
    }
}
