//! Shared-memory swizzle, operand descriptors, fragment maps and page arithmetic as plain `const fn`s, tested on the CPU.

pub mod choice;
pub mod digits;
pub mod octet;
pub mod pages;
pub mod planes;
pub mod probe_sel;
pub mod runs;
pub mod select;
pub mod transpose;
pub mod wide;
pub mod windows;

/// Order of 32 consecutive tokens along a row of a transposed V tile: position p holds token `V_TOKEN_ORDER[p]`.
///
/// The f32 accumulator of S gives lane t (of four) columns 2t, 2t+1 of every group of 8; the e4m3 A fragment of the next
/// wgmma wants four consecutive k per lane. With this order P is packed without shuffles.
pub const V_TOKEN_ORDER: [u8; 32] = {
    let mut order = [0u8; 32];
    let mut p = 0;
    while p < 32 {
        let (half, in_half) = (p / 16, p % 16);
        let (lane, i) = (in_half / 4, in_half % 4);
        let token = if i < 2 { 2 * lane + i } else { 8 + 2 * lane + i - 2 };
        order[p] = (half * 16 + token) as u8;
        p += 1;
    }
    order
};

/// Inverse of [`V_TOKEN_ORDER`]: position of token `t` (0..32).
pub const fn v_token_position(t: usize) -> usize {
    let (half, in_half) = (t / 16, t % 16);
    let (eight, j) = (in_half / 8, in_half % 8);
    half * 16 + (j / 2) * 4 + eight * 2 + j % 2
}

/// Byte offset after the 128-byte swizzle of TMA and wgmma: bits 4..7 are xored with bits 7..10 (the row in eight).
pub const fn swizzle_128(offset: usize) -> usize {
    offset ^ ((offset >> 3) & 0x70)
}

/// Row of a transposed V tile that holds dimension `d` (0..128), and the dimension that row `d` holds: its own inverse.
///
/// A row of the tile is a column of P V, and the accumulator gives lane t (of four) columns 2t, 2t+1 of every group of 8. With
/// this order those of four groups are eight consecutive dimensions: 16 bytes of an output row, stored at once.
pub const fn v_row(d: usize) -> usize {
    let (eight, pair) = (d / 8 % 4, d / 2 % 4);
    d / 32 * 32 + pair * 8 + eight * 2 + d % 2
}

/// Byte offset of value element (dimension `d`, token `t` of the block) in a 16 KiB transposed V tile.
pub const fn v_tile_offset(d: usize, t: usize) -> usize {
    swizzle_128(v_row(d) * 128 + (t / 32) * 32 + v_token_position(t % 32))
}

/// The scale that takes a row whose largest magnitude is `largest` onto the range of e4m3: `largest / 448`, or 1 for a row of
/// zeros. Never so small that its inverse is infinite, and finite also where `largest` is not.
pub const fn row_scale(largest: f32) -> f32 {
    let finite = if largest < f32::MAX { largest } else { f32::MAX };
    let scale = finite / 448.0;
    if largest == 0.0 {
        1.0
    } else if scale > f32::MIN_POSITIVE {
        scale
    } else {
        f32::MIN_POSITIVE
    }
}

/// wgmma operand descriptor of a K-major tile with rows of 128 bytes and the 128-byte swizzle, at shared address `addr`
/// (1,024-byte aligned): address >> 4, leading offset 1, stride 1,024 bytes between groups of eight rows, swizzle mode 1.
/// Advance by +2 for every 32 bytes along K.
pub const fn descriptor_k128(addr: u32) -> u64 {
    (((addr & 0x3_FFFF) >> 4) as u64) | (1 << 16) | (64 << 32) | (1 << 62)
}

/// [`descriptor_k128`], advanced by `by` units of 16 bytes. The address field cannot carry into the upper half, so the advance is a 32-bit
/// addition; left to a 64-bit one, every step costs a carry and a move.
#[inline(always)]
pub const fn descriptor_k128_at(addr: u32, by: u32) -> u64 {
    let descriptor = descriptor_k128(addr);
    (descriptor & !0xFFFF_FFFF) | (descriptor as u32 + by) as u64
}

/// Row (0..64) of accumulator register `i` (0..N/2) of a `m64nNk*` wgmma in thread `thread` (0..128) of the warpgroup.
pub const fn accumulator_row(thread: usize, i: usize) -> usize {
    (thread / 32) * 16 + (thread % 32) / 4 + 8 * ((i / 2) % 2)
}

/// Row (0..64) and k (0..32) of byte `byte` (0..4) of register `reg` (0..4) of an e4m3 A operand held in registers, in
/// thread `thread` (0..128) of the warpgroup.
///
/// Registers 0 and 1 hold k = 0..16 of rows r and r + 8, registers 2 and 3 the same rows of k = 16..32.
pub const fn a_fragment_e4m3(thread: usize, reg: usize, byte: usize) -> (usize, usize) {
    ((thread / 32) * 16 + (thread % 32) / 4 + 8 * (reg % 2), (reg / 2) * 16 + (thread % 4) * 4 + byte)
}

/// Column of accumulator register `i` in thread `thread` of the warpgroup.
pub const fn accumulator_col(thread: usize, i: usize) -> usize {
    (i / 4) * 8 + (thread % 4) * 2 + i % 2
}

/// Which columns of half a tile of scores (64 keys) a thread in lane `lane` sees, where the last visible ones of its two rows
/// are `limit` (negative: none). Bit I of the bytes, from the lowest: columns 8 I + 2 (lane % 4) and the next of the first row,
/// then of the second.
#[inline(always)]
pub const fn visible_pairs(lane: u32, limit: [i32; 2]) -> u32 {
    /// A bit for each of the columns 0, 8 .. 56 up to `limit`.
    #[inline(always)]
    const fn bits(limit: i32) -> u32 {
        let count = (limit >> 3) + 1;
        let count = if count > 0 { count } else { 0 };
        (1 << if count < 8 { count } else { 8 }) - 1
    }
    let first = (lane % 4 * 2) as i32;
    let (a, b) = (limit[0] - first, limit[1] - first);
    bits(a) | bits(a - 1) << 8 | bits(b) << 16 | bits(b - 1) << 24
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_of_rows_are_positive_and_have_finite_inverses() {
        assert_eq!([row_scale(0.0), row_scale(448.0), row_scale(1.0)], [1.0, 1.0, 1.0 / 448.0]);
        for largest in [f32::from_bits(1), f32::MIN_POSITIVE, 1e-37, 1e30, f32::MAX, f32::INFINITY] {
            let scale = row_scale(largest);
            assert!(scale > 0.0 && scale.is_finite() && (1.0 / scale).is_finite(), "{largest}: {scale}");
        }
    }

    #[test]
    fn token_order_and_position_are_inverse() {
        for (p, &t) in V_TOKEN_ORDER.iter().enumerate() {
            assert_eq!(v_token_position(t as usize), p);
        }
        assert_eq!(V_TOKEN_ORDER[..16], [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15]);
    }

    #[test]
    fn v_tile_offsets_are_a_permutation() {
        let mut seen = vec![false; 128 * 128];
        for d in 0..128 {
            for t in 0..128 {
                let o = v_tile_offset(d, t);
                assert!(!seen[o]);
                seen[o] = true;
                assert_eq!(o / 128, v_row(d), "the swizzle stays inside a row");
            }
        }
    }

    #[test]
    fn a_thread_holds_eight_consecutive_dimensions() {
        for d in 0..128 {
            assert_eq!(v_row(v_row(d)), d);
        }
        for thread in 0..128 {
            for four in 0..4 {
                let registers = (0..4).flat_map(|i| [0, 1].map(|c| 16 * four + 4 * i + c));
                let dims: Vec<usize> = registers.map(|i| v_row(accumulator_col(thread, i))).collect();
                let first = 32 * four + thread % 4 * 8;
                assert_eq!(dims, (first..first + 8).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn accumulator_map_covers_the_tile_once() {
        let mut seen = vec![false; 64 * 128];
        for thread in 0..128 {
            for i in 0..64 {
                let at = accumulator_row(thread, i) * 128 + accumulator_col(thread, i);
                assert!(!seen[at]);
                seen[at] = true;
            }
        }
        assert!(seen.into_iter().all(|s| s));
    }

    #[test]
    fn pairs_are_visible_up_to_the_limit() {
        let limits: Vec<i32> = (-200..200).chain([i32::MAX - 64, i32::MIN + 200]).collect();
        for lane in 0..32 {
            for &limit in &limits {
                for (row, limits) in [(0, [limit, -1]), (1, [i32::MAX - 1, limit])] {
                    let pairs = visible_pairs(lane, limits);
                    for i in 0..16usize {
                        // Registers 2 I and 2 I + 1 of the f32 form are the two columns of the first row's pair.
                        let column = accumulator_col(lane as usize, i / 2 * 4 + i % 2) as i32;
                        let bit = 16 * row + 8 * (i % 2) + i / 2;
                        assert_eq!(pairs >> bit & 1 != 0, column <= limit, "lane {lane}, row {row}, column {column}, limit {limit}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_fragment_covers_the_tile_once() {
        let mut seen = vec![false; 64 * 32];
        for thread in 0..128 {
            for reg in 0..4 {
                for byte in 0..4 {
                    let (row, k) = a_fragment_e4m3(thread, reg, byte);
                    assert!(!seen[row * 32 + k]);
                    seen[row * 32 + k] = true;
                }
            }
        }
        assert!(seen.into_iter().all(|s| s));
    }

    /// Packing P needs no shuffle: byte b of A register r of 32-token group c is accumulator register
    /// `16 c + 8 (r / 2) + 4 (b / 2) + 2 (r % 2) + b % 2` of the same thread, at the place where the V tile has its token.
    #[test]
    fn accumulator_feeds_the_a_fragment_of_the_v_tile() {
        for thread in 0..128 {
            for group in 0..4 {
                for reg in 0..4 {
                    for byte in 0..4 {
                        let i = 16 * group + 8 * (reg / 2) + 4 * (byte / 2) + 2 * (reg % 2) + byte % 2;
                        let (row, k) = a_fragment_e4m3(thread, reg, byte);
                        assert_eq!(accumulator_row(thread, i), row);
                        assert_eq!(accumulator_col(thread, i), 32 * group + V_TOKEN_ORDER[k] as usize);
                    }
                }
            }
        }
    }
}
