//! How a block of eight warps turns 128 value rows (tokens) into a tile of 128 dimensions, byte by byte.
//!
//! Rows lie in shared memory as they were copied, their chunks of 16 bytes in an order ([`stage_offset`]) in which everything that
//! is read or written together lies in different banks. A warp transposes one chunk, 16 dimensions of all tokens, four runs at a
//! time: a transposing load of 16-bit elements, whose rows are chosen ([`matrix_row`]) so that a lane gets all 16 tokens of one run
//! for two neighbouring dimensions. Two byte permutations a word ([`SPLIT`]) separate the dimensions, and the lane stores 16
//! bytes of each ([`unit_offset`]): one run is exactly one chunk of the output rows, whatever the order inside. Four lanes store half a
//! row.

use crate::config::{HEAD_DIM, RUN};

/// Byte offset in shared memory of the 16-byte chunk `chunk` of token `token` (0..16) of run `run`: rows of 128 bytes, chunks xored
/// with a number that tells apart four runs and the two tokens of a pair.
pub const fn stage_offset(run: u32, token: u32, chunk: u32) -> u32 {
    (run * RUN as u32 + token) * HEAD_DIM as u32 + ((chunk ^ ((run % 4) | (token % 2 * 4))) * 16)
}

/// Which row lane `lane` names for load `part` (0 or 1): run (0..4) of the four, and token. Matrix i of the load has the tokens
/// 2 m and 2 m + 1 of the four runs, where m = 4 `part` + i.
pub const fn matrix_row(lane: u32, part: u32) -> [u32; 2] {
    let (matrix, row) = (4 * part + lane / 8, lane % 8);
    [row / 2, 2 * matrix + row % 2]
}

/// Which piece of the tile a lane makes from the four runs `4 * half ..`: all tokens of one run for two dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit {
    /// The run.
    pub run: u32,
    /// The first of the two dimensions.
    pub dim: u32,
}

/// The piece of lane `lane` of the warp that has chunk `chunk`.
pub const fn unit(chunk: u32, lane: u32, half: u32) -> Unit {
    Unit { run: 4 * half + lane % 4, dim: 16 * chunk + lane / 4 * 2 }
}

/// Selectors of bytes for `ptx::int::prmt`: from words m and m + 4 of what the lane has loaded (tokens 2 m, 2 m + 1 and
/// 2 m + 8, 2 m + 9, two dimensions each) to word m of the chunk of the first and of the second dimension
/// ([`super::V_TOKEN_ORDER`]).
pub const SPLIT: [u32; 2] = [0x6420, 0x7531];

/// Byte offset in the tile of the unit's chunk of dimension `unit.dim + e`.
pub const fn unit_offset(unit: Unit, e: u32) -> u32 {
    // `v_row` and `swizzle_128`, in 32 bits.
    let d = unit.dim + e;
    let row = d / 32 * 32 + d / 2 % 4 * 8 + d / 8 % 4 * 2 + d % 2;
    row * HEAD_DIM as u32 + ((unit.run ^ (row % 8)) * 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::v_tile_offset;

    fn prmt(a: u32, b: u32, selector: u32) -> u32 {
        let bytes = [a.to_le_bytes(), b.to_le_bytes()].concat();
        u32::from_le_bytes([0, 4, 8, 12].map(|s| bytes[(selector >> s & 7) as usize]))
    }

    /// What lane `lane` gets of a transposing load: of matrix i, elements `lane / 4` of rows `2 (lane % 4)` and the next.
    fn load(stage: &[Option<u8>], rows: &[u32], lane: usize) -> [u32; 4] {
        [0, 1, 2, 3].map(|i| {
            let element = |row: usize| rows[8 * i + row] as usize + lane / 4 * 2;
            let (a, b) = (element(lane % 4 * 2), element(lane % 4 * 2 + 1));
            u32::from_le_bytes([a, a + 1, b, b + 1].map(|at| stage[at].unwrap()))
        })
    }

    /// The whole block, lane by lane, on (token, dimension) labels: what lands where `v_tile_offset` says.
    #[test]
    fn warps_together_write_the_tile() {
        let value = |d: u32, t: u32| (d.wrapping_mul(167) ^ t.wrapping_mul(59) ^ ((d * t) >> 3)) as u8;
        let mut stage = vec![None; 128 * 128];
        for t in 0..128 {
            for d in 0..128 {
                let at = (stage_offset(t / 16, t % 16, d / 16) + d % 16) as usize;
                assert_eq!(stage[at].replace(value(d, t)), None, "two bytes in one place");
            }
        }
        let mut tile = vec![None; 128 * 128];
        for chunk in 0..8 {
            for half in 0..2 {
                let rows = [0, 1].map(|part| {
                    let row = |lane| {
                        let [run, token] = matrix_row(lane, part);
                        stage_offset(4 * half + run, token, chunk)
                    };
                    (0..32).map(row).collect::<Vec<_>>()
                });
                for lane in 0..32 {
                    let [low, high] = [0, 1].map(|part: usize| load(&stage, &rows[part], lane));
                    let unit = unit(chunk, lane as u32, half);
                    for e in 0..2 {
                        let at = unit_offset(unit, e) as usize;
                        assert_eq!(at % 16, 0);
                        for m in 0..4 {
                            for (b, byte) in prmt(low[m], high[m], SPLIT[e as usize]).to_le_bytes().into_iter().enumerate() {
                                assert_eq!(tile[at + 4 * m + b].replace(byte), None, "two lanes write one byte");
                            }
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

    /// Whether the 16-byte pieces at `offsets` lie in different banks.
    fn apart(offsets: impl Iterator<Item = u32>) -> bool {
        let mut groups: Vec<u32> = offsets.map(|at| at / 16 % 8).collect();
        groups.sort();
        groups == [0, 1, 2, 3, 4, 5, 6, 7]
    }

    #[test]
    fn shared_memory_reads_and_writes_are_free_of_bank_conflicts() {
        for run in 0..8 {
            for token in 0..16 {
                // Copies and key sums: the row of a token at a time.
                assert!(apart((0..8).map(|chunk| stage_offset(run, token, chunk))));
            }
            for pair in 0..8 {
                for chunks in [0, 4] {
                    // Norms: eight lanes have half of the rows of two tokens.
                    assert!(apart((0..8).map(|lane| stage_offset(run, 2 * pair + lane / 4, chunks + lane % 4))));
                }
            }
        }
        for chunk in 0..8 {
            for (half, part) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                for matrix in 0..4 {
                    assert!(apart((8 * matrix..8 * matrix + 8).map(|lane| {
                        let [run, token] = matrix_row(lane, part);
                        stage_offset(4 * half + run, token, chunk)
                    })));
                }
            }
        }
    }

    #[test]
    fn four_lanes_store_half_a_row() {
        for lane in (0..32).step_by(4) {
            for (half, e) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let mut offsets: Vec<u32> = (lane..lane + 4).map(|lane| unit_offset(unit(5, lane, half), e)).collect();
                offsets.sort();
                let first = offsets[0];
                assert_eq!(first % 64, 0);
                assert!(offsets.iter().enumerate().all(|(i, &o)| o == first + 16 * i as u32));
            }
        }
    }
}
