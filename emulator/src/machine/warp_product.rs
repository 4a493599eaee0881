//! Products of one warp, and the loads that feed them.

use super::cluster::Cluster;
use super::warp::Warp;
use crate::fault::Result;
use crate::isa::{Addr, Element, LANES, Mma};
use crate::num::{bf16_to_f32, f16_to_f32};
use crate::ptx::W;

impl Warp {
    /// `mma.m16n8k16`: 16 rows, 8 columns, 16 deep, f32 sums.
    pub(super) fn mma(&mut self, product: &Mma) {
        let value = |w: W, lane: usize, half: usize| {
            let code = (self.registers[w][lane] >> (16 * half)) as u16;
            f64::from(if product.element == Element::F16 { f16_to_f32(code) } else { bf16_to_f32(code) })
        };
        // Fragments: two neighbours of the depth in a word, four words of them in four lanes.
        let left: [[f64; 16]; 16] =
            std::array::from_fn(|row| std::array::from_fn(|k| value(product.left[2 * (k / 8) + row / 8], row % 8 * 4 + k % 8 / 2, k % 2)));
        let right: [[f64; 16]; 8] =
            std::array::from_fn(|column| std::array::from_fn(|k| value(product.right[k / 8], column * 4 + k % 8 / 2, k % 2)));
        let sums = product.sums.map(|w| self.registers[w]);
        for (i, to) in product.to.iter().enumerate() {
            self.registers[*to] = std::array::from_fn::<u32, LANES, _>(|lane| {
                let (row, column) = (lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2);
                let sum: f64 = left[row].iter().zip(&right[column]).map(|(x, y)| x * y).sum();
                ((f64::from(f32::from_bits(sums[i][lane])) + sum) as f32).to_bits()
            });
        }
    }
}

impl Cluster<'_> {
    /// `ldmatrix`: matrix j has its rows at the addresses of lanes 8j to 8j + 7.
    pub(super) fn ldmatrix(&mut self, warp: &mut Warp, to: &[W], transpose: bool, at: Addr) -> Result<()> {
        let mut matrices = [[[0u16; 8]; 8]; 4];
        for (j, matrix) in matrices.iter_mut().enumerate().take(to.len()) {
            for (i, row) in matrix.iter_mut().enumerate() {
                let bytes = self.read_row(warp, 8 * j + i, at.of(&warp.registers, 8 * j + i))?;
                *row = std::array::from_fn(|k| u16::from_le_bytes([bytes[2 * k], bytes[2 * k + 1]]));
            }
        }
        for (to, matrix) in to.iter().zip(&matrices) {
            warp.registers[*to] = std::array::from_fn(|lane| {
                let (i, k) = (lane / 4, 2 * (lane % 4));
                let (low, high) = if transpose { (matrix[k][i], matrix[k + 1][i]) } else { (matrix[i][k], matrix[i][k + 1]) };
                u32::from(low) | u32::from(high) << 16
            });
        }
        Ok(())
    }
}
