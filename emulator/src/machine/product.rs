//! Products of a warpgroup, which run behind its back.

use super::SHARED_BASE;
use super::cluster::Cluster;
use super::races::{Kind, What};
use super::warp::{Wait, Warp};
use crate::fault::{Result, fault};
use crate::isa::{Element, Factor, LANES, Op, Registers, Wgmma};
use crate::num::{bf16_to_f32, e4m3_to_f32, f16_to_f32, f32_to_f16};

/// Warps of a warpgroup.
const WARPS: usize = 4;
/// Rows of a warp.
const ROWS: usize = 16;
/// Deepest factor.
const DEPTH: usize = 32;

/// A product that was issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Issue {
    pc: usize,
    /// Descriptors; that of a left factor in registers is 0.
    left: u64,
    right: u64,
    keep: bool,
    /// Number among the warp's products, from 1.
    ticket: u64,
}

/// Rows of a factor as numbers.
type Rows = [[f32; DEPTH]; ROWS];

impl Cluster<'_> {
    /// Places of the other warps of the warpgroup.
    fn others(&self, warp: &Warp) -> impl Iterator<Item = usize> + use<> {
        let per_block = self.launch.threads.div_ceil(32) as usize;
        let (index, base) = (warp.index as usize, warp.block * per_block);
        let first = index - index % WARPS;
        (first..(first + WARPS).min(per_block)).filter(move |i| *i != index).map(move |i| base + i)
    }

    /// Whether all warps of the warpgroup have issued a product: the tensor core takes the four together.
    pub(super) fn issued_by_all(&self, warp: &Warp, ticket: u64) -> bool {
        warp.issued >= ticket && self.others(warp).all(|i| self.warps[i].issued >= ticket)
    }

    /// `wgmma.mma_async`.
    pub(super) fn issue(&mut self, warp: &mut Warp, product: &Wgmma, pc: usize) -> Result<()> {
        if self.others(warp).count() != WARPS - 1 {
            fault!("a warpgroup of less than {WARPS} warps");
        }
        let same = |values: &[u64; LANES]| match values.iter().all(|v| v == &values[0]) {
            true => Ok(values[0]),
            false => fault!("descriptors that differ between lanes"),
        };
        let left = match product.left {
            Factor::Registers(_) => 0,
            Factor::Shared(d) => same(&warp.registers[d])?,
        };
        let right = same(&warp.registers[product.right])?;
        let keep = warp.registers[product.keep];
        if keep != 0 && keep != !0 {
            fault!("whether to keep the sums differs between lanes");
        }
        warp.issued += 1;
        let ticket = warp.issued;
        warp.products.push_back(Issue { pc, left, right, keep: keep != 0, ticket });
        if let Some(races) = &mut self.races {
            warp.product_pasts.push_back(races.issue_product(warp));
        }
        // It may be done at once, or as late as its wait.
        if self.issued_by_all(warp, ticket) && self.random.below(4) < self.eager {
            self.retire(warp, ticket)?;
        }
        Ok(())
    }

    /// `wgmma.wait_group`.
    pub(super) fn wait_products(&mut self, warp: &mut Warp, k: usize, pc: usize, left: u32) -> Result<()> {
        let ended = warp.product_groups.len().saturating_sub(left as usize);
        let Some(ticket) = ended.checked_sub(1).and_then(|i| warp.product_groups.get(i)).copied() else { return Ok(()) };
        if !self.issued_by_all(warp, ticket) {
            warp.parts[k].pc = pc;
            warp.parts[k].wait = Wait::Warpgroup { ticket };
            return Ok(());
        }
        warp.product_groups.drain(..ended);
        self.retire(warp, ticket)?;
        if let Some(races) = &mut self.races {
            races.leave_products(warp, ticket);
        }
        Ok(())
    }

    /// Does the products up to one, for the four warps.
    fn retire(&mut self, warp: &mut Warp, ticket: u64) -> Result<()> {
        let kernel = self.launch.kernel;
        while let Some(issue) = warp.products.front().copied().filter(|i| i.ticket <= ticket) {
            warp.products.pop_front();
            let Op::Wgmma(product) = &kernel.code[issue.pc].op else { fault!("no product") };
            self.right_factor(warp.block, product, issue.right)?;
            self.note_product(warp, product, &issue)?;
            self.multiply(warp, product, issue)?;
            for i in self.others(warp) {
                let mut other = std::mem::take(&mut self.warps[i]);
                let theirs = other.products.pop_front();
                let result = if theirs == Some(issue) {
                    self.note_product(&mut other, product, &issue).and_then(|()| self.multiply(&mut other, product, issue))
                } else {
                    Ok(())
                };
                self.warps[i] = other;
                result?;
                if theirs != Some(issue) {
                    fault!("the warps of a warpgroup do not issue the same product: {issue:?}, {theirs:?}");
                }
            }
            self.activity += 1;
        }
        Ok(())
    }

    /// Decodes the right factor, eight columns at a time.
    fn right_factor(&mut self, block: usize, product: &Wgmma, descriptor: u64) -> Result<()> {
        let depth = product.element.depth();
        let mut tiles = std::mem::take(&mut self.right);
        tiles.clear();
        tiles.resize(product.columns / 8 * depth, [0.0; 8]);
        for column in 0..product.columns {
            let row = self.factor_row(block, product.element, descriptor, column)?;
            for (tile, value) in tiles[column / 8 * depth..].iter_mut().zip(&row[..depth]) {
                tile[column % 8] = *value;
            }
        }
        self.right = tiles;
        Ok(())
    }

    /// Notes what a warp's part of a product reads: its rows of the left factor, and the right factor.
    fn note_product(&mut self, warp: &mut Warp, product: &Wgmma, issue: &Issue) -> Result<()> {
        let Some(past) = warp.product_pasts.pop_front() else { return Ok(()) };
        let first = warp.index as usize % WARPS * ROWS;
        let left = (first..first + ROWS).filter(|_| matches!(product.left, Factor::Shared(_))).map(|row| (issue.left, row));
        let right = (0..product.columns).map(|row| (issue.right, row));
        for (descriptor, row) in left.chain(right) {
            for at in factor_chunks(descriptor, row)? {
                let what = What { at: (warp.block, at), bytes: 16, kind: Kind::Product, pc: issue.pc };
                self.touch_by_product(warp, issue.ticket, &what, &past)?;
            }
        }
        Ok(())
    }

    /// A row of a factor in shared memory as numbers.
    fn factor_row(&self, block: usize, element: Element, descriptor: u64, row: usize) -> Result<[f32; DEPTH]> {
        let shared = &self.blocks[block].shared;
        let mut bytes = [0; 32];
        for (chunk, at) in bytes.chunks_exact_mut(16).zip(factor_chunks(descriptor, row)?) {
            let at = at as usize;
            let Some(from) = shared.get(at..at + 16).filter(|_| at >= SHARED_BASE as usize) else {
                fault!("a factor at {at}, outside the launch's shared memory");
            };
            chunk.copy_from_slice(from);
        }
        let mut out = [0.0; DEPTH];
        decode(element, &bytes, &mut out);
        Ok(out)
    }

    /// The rows of one warp.
    fn multiply(&mut self, warp: &mut Warp, product: &Wgmma, issue: Issue) -> Result<()> {
        let mut left: Rows = [[0.0; DEPTH]; ROWS];
        match product.left {
            Factor::Registers(registers) => left_in_registers(product.element, registers.map(|r| warp.registers[r]), &mut left),
            Factor::Shared(_) => {
                let first = warp.index as usize % WARPS * ROWS;
                for (i, row) in left.iter_mut().enumerate() {
                    *row = self.factor_row(warp.block, product.element, issue.left, first + i)?;
                }
            }
        }
        let depth = product.element.depth();
        for (tile, right) in self.right.chunks_exact(depth).enumerate() {
            for rows in [0, 4, 8, 12] {
                let mut sums = [[0f32; 8]; 4];
                for (k, right) in right.iter().enumerate() {
                    for (sums, left) in sums.iter_mut().zip(&left[rows..rows + 4]) {
                        for (sum, right) in sums.iter_mut().zip(right) {
                            *sum += left[k] * right;
                        }
                    }
                }
                for (i, sums) in sums.iter_mut().enumerate() {
                    if product.negate {
                        sums.iter_mut().for_each(|s| *s = -*s);
                    }
                    add(&mut warp.registers, product, issue.keep, (rows + i, tile), sums);
                }
            }
        }
        Ok(())
    }
}

/// Where the two chunks of 16 bytes of a factor's row lie: the swizzle places them.
fn factor_chunks(descriptor: u64, row: usize) -> Result<[u32; 2]> {
    let start = (descriptor & 0x3fff) << 4;
    let stride = (descriptor >> 32 & 0x3fff) << 4;
    let (width, bits) = match descriptor >> 62 {
        1 => (128, 0x70),
        2 => (64, 0x30),
        3 => (32, 0x10),
        _ => fault!("a factor without swizzle is not modelled"),
    };
    if descriptor >> 49 & 7 != 0 {
        fault!("a factor with a base offset is not modelled");
    }
    Ok([0, 1].map(|i| {
        let at = start + (row as u64 / 8) * stride + (row as u64 % 8) * width + 16 * i;
        (at ^ (at >> 3 & bits)) as u32
    }))
}

/// Adds eight sums of a row to the registers that hold them.
fn add(registers: &mut Registers, product: &Wgmma, keep: bool, (row, tile): (usize, usize), sums: &[f32; 8]) {
    for (column, sum) in sums.iter().enumerate() {
        let lane = row % 8 * 4 + column / 2;
        if product.half {
            let word = &mut registers[product.sums[2 * tile + row / 8]][lane];
            let shift = 16 * (column as u32 & 1);
            let old = if keep { f16_to_f32((*word >> shift) as u16) } else { 0.0 };
            *word = *word & !(0xffff << shift) | u32::from(f32_to_f16(old + sum)) << shift;
        } else {
            let word = &mut registers[product.sums[4 * tile + 2 * (row / 8) + column % 2]][lane];
            let old = if keep { f32::from_bits(*word) } else { 0.0 };
            *word = (old + sum).to_bits();
        }
    }
}

/// Rows of a left factor in four registers: rows 0 to 7 in the first and third, four bytes of depth in each of four lanes.
fn left_in_registers(element: Element, words: [[u32; LANES]; 4], out: &mut Rows) {
    for (i, row) in out.iter_mut().enumerate() {
        let mut bytes = [0; 32];
        for (j, word) in bytes.chunks_exact_mut(4).enumerate() {
            let value = words[2 * (j / 4) + i / 8][i % 8 * 4 + j % 4];
            word.copy_from_slice(&value.to_le_bytes());
        }
        decode(element, &bytes, row);
    }
}

/// 32 bytes as numbers.
fn decode(element: Element, bytes: &[u8; 32], out: &mut [f32; DEPTH]) {
    let pairs = bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match element {
        Element::E4m3 => out.iter_mut().zip(bytes).for_each(|(to, code)| *to = e4m3_to_f32(*code)),
        Element::F16 => out.iter_mut().zip(pairs).for_each(|(to, code)| *to = f16_to_f32(code)),
        Element::Bf16 => out.iter_mut().zip(pairs).for_each(|(to, code)| *to = bf16_to_f32(code)),
    }
}
