//! Addresses and accesses, each checked.

use super::cluster::Cluster;
use super::races::{Kind, What};
use super::warp::Warp;
use crate::fault::{Result, fault};
use crate::isa::{Addr, Base, Load, Reduce, Registers, Space, Store, Values, lanes};
use crate::memory;
use crate::ptx::W;

/// Bytes of the largest access of a lane.
const WIDEST: usize = 32;
/// Bits of an address within a block's shared memory; above them stands the block's number plus 1, or 0 for the own block.
pub(super) const BLOCK_SHIFT: u32 = 24;

impl Addr {
    /// The address in one lane.
    #[inline(always)]
    pub(super) fn of(self, registers: &Registers, lane: usize) -> u64 {
        match self.base {
            // Shared addresses have 32 bits.
            Base::Word(r) => u64::from(registers[r][lane].wrapping_add(self.offset as u32)),
            Base::Double(r) => registers[r][lane].wrapping_add(self.offset as u64),
            Base::None => self.offset as u64,
        }
    }
}

impl Cluster<'_> {
    /// Checks an access to device memory. Parameters can be read.
    #[inline(always)]
    pub(super) fn global(&mut self, at: u64, bytes: u64, write: bool) -> Result<()> {
        let end = at.saturating_add(bytes);
        if at >= self.extent.0 && end <= self.extent.1 {
            return Ok(());
        }
        let params = self.launch.params.as_ptr_range();
        if !write && at >= params.start as u64 && end <= params.end as u64 {
            return Ok(());
        }
        self.extent = memory::extent(at, bytes)?;
        Ok(())
    }

    /// Reads device memory or parameters.
    pub(super) fn read_global(&mut self, at: u64, out: &mut [u8]) -> Result<()> {
        self.global(at, out.len() as u64, false)?;
        // SAFETY: these bytes lie in one allocation or in the parameters; `out` is memory of this function's caller.
        unsafe { std::ptr::copy_nonoverlapping(at as *const u8, out.as_mut_ptr(), out.len()) };
        Ok(())
    }

    fn write_global(&mut self, at: u64, data: &[u8]) -> Result<()> {
        self.global(at, data.len() as u64, true)?;
        // SAFETY: these bytes lie in one allocation, which holds no Rust value.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), at as *mut u8, data.len()) };
        Ok(())
    }

    /// Block and address of an access to shared memory, aligned to its size or 16 bytes.
    #[inline(always)]
    pub(super) fn shared(&self, own: usize, at: u64, bytes: usize, space: Space) -> Result<(usize, u32)> {
        let Ok(address) = u32::try_from(at) else { fault!("{at:#x} is no shared address") };
        let (block, at) = match (address >> BLOCK_SHIFT) as usize {
            0 => (own, address),
            number => (number - 1, address & ((1 << BLOCK_SHIFT) - 1)),
        };
        if block != own && space != Space::Cluster {
            fault!("an access to block {block} as if it were the own");
        }
        let Some(there) = self.blocks.get(block) else { fault!("shared memory of block {block}, which is not in the cluster") };
        if block != own && there.running == 0 {
            fault!("shared memory of block {block}, which has exited");
        }
        if at < super::SHARED_BASE || at as usize + bytes > there.shared.len() {
            let offset = i64::from(at) - i64::from(super::SHARED_BASE);
            fault!("shared access of {bytes} bytes at {offset}: the launch has {}", self.launch.shared_bytes);
        }
        if !(at as usize).is_multiple_of(bytes.clamp(1, 16)) {
            fault!("shared access of {bytes} bytes at {}: not aligned", at - super::SHARED_BASE);
        }
        Ok((block, at))
    }

    #[inline(always)]
    fn read(&mut self, (warp, lane): (&Warp, usize), space: Space, at: u64, out: &mut [u8], kind: Kind) -> Result<()> {
        if space == Space::Global {
            aligned(at, out.len())?;
            return self.read_global(at, out);
        }
        let (block, at) = self.shared(warp.block, at, out.len(), space)?;
        self.note((warp, lane), (block, at), out.len(), kind)?;
        out.copy_from_slice(&self.blocks[block].shared[at as usize..at as usize + out.len()]);
        Ok(())
    }

    #[inline(always)]
    fn write(&mut self, (warp, lane): (&Warp, usize), space: Space, at: u64, data: &[u8], kind: Kind) -> Result<()> {
        if space == Space::Global {
            aligned(at, data.len())?;
            return self.write_global(at, data);
        }
        let (block, at) = self.shared(warp.block, at, data.len(), space)?;
        self.note((warp, lane), (block, at), data.len(), kind)?;
        self.blocks[block].shared[at as usize..at as usize + data.len()].copy_from_slice(data);
        Ok(())
    }

    /// An access of a lane to shared memory.
    #[inline(always)]
    fn note(&mut self, (warp, lane): (&Warp, usize), at: (usize, u32), bytes: usize, kind: Kind) -> Result<()> {
        if self.races.is_none() {
            return Ok(());
        }
        let what = What { at, bytes: bytes as u32, kind, pc: self.pc };
        self.touch(warp, lane, &what, None)
    }

    /// A lane reads 16 bytes of the own block's shared memory.
    pub(super) fn read_row(&mut self, warp: &Warp, lane: usize, at: u64) -> Result<[u8; 16]> {
        let mut row = [0; 16];
        self.read((warp, lane), Space::Shared, at, &mut row, Kind::Load)?;
        Ok(row)
    }

    /// `ld`.
    pub(super) fn load(&mut self, warp: &mut Warp, load: &Load, mask: u32) -> Result<()> {
        let mut buffer = [0; WIDEST];
        let Some(bytes) = buffer.get_mut(..load.bytes * load.to.len()) else { fault!("an access of more than {WIDEST} bytes") };
        for lane in lanes(mask) {
            self.read((warp, lane), load.space, load.at.of(&warp.registers, lane), bytes, Kind::Load)?;
            match &load.to {
                Values::Words(to) => {
                    for (to, element) in to.iter().zip(bytes.chunks_exact(load.bytes)) {
                        warp.registers[*to][lane] = extend(element, load.signed) as u32;
                    }
                }
                Values::Doubles(to) => {
                    for (to, element) in to.iter().zip(bytes.chunks_exact(load.bytes)) {
                        warp.registers[*to][lane] = extend(element, load.signed);
                    }
                }
            }
        }
        Ok(())
    }

    /// `st`.
    pub(super) fn store(&mut self, warp: &Warp, store: &Store, mask: u32) -> Result<()> {
        let mut buffer = [0; WIDEST];
        let Some(bytes) = buffer.get_mut(..store.bytes * store.from.len()) else { fault!("an access of more than {WIDEST} bytes") };
        for lane in lanes(mask) {
            let put = |element: &mut [u8], value: u64| element.copy_from_slice(&value.to_le_bytes()[..element.len()]);
            match &store.from {
                Values::Words(from) => {
                    let each = from.iter().zip(bytes.chunks_exact_mut(store.bytes));
                    each.for_each(|(from, element)| put(element, u64::from(warp.registers[*from][lane])));
                }
                Values::Doubles(from) => {
                    let each = from.iter().zip(bytes.chunks_exact_mut(store.bytes));
                    each.for_each(|(from, element)| put(element, warp.registers[*from][lane]));
                }
            }
            self.write((warp, lane), store.space, store.at.of(&warp.registers, lane), bytes, Kind::Store)?;
        }
        Ok(())
    }

    /// `atom` and `red`, lane after lane.
    pub(super) fn atomic(
        &mut self,
        warp: &mut Warp,
        space: Space,
        (reduce, at, with): (Reduce, Addr, W),
        old: Option<W>,
        mask: u32,
    ) -> Result<()> {
        for lane in lanes(mask) {
            let (at, y) = (at.of(&warp.registers, lane), warp.registers[with][lane]);
            let mut word = [0; 4];
            self.read((warp, lane), space, at, &mut word, Kind::Atomic)?;
            let x = u32::from_le_bytes(word);
            self.write((warp, lane), space, at, &reduce.apply(x, y).to_le_bytes(), Kind::Atomic)?;
            if let Some(old) = old {
                warp.registers[old][lane] = x;
            }
        }
        Ok(())
    }

    /// A parameter into all lanes of `mask`.
    pub(super) fn load_param(&self, warp: &mut Warp, to: &Values, (offset, bytes): (usize, usize), signed: bool, mask: u32) -> Result<()> {
        let range = offset..offset.saturating_add(bytes);
        let Some(element) = self.launch.params.get(range) else { fault!("a parameter at {offset}, past the last") };
        let value = extend(element, signed);
        for lane in lanes(mask) {
            match to {
                Values::Words(to) => to.iter().for_each(|to| warp.registers[*to][lane] = value as u32),
                Values::Doubles(to) => to.iter().for_each(|to| warp.registers[*to][lane] = value),
            }
        }
        Ok(())
    }
}

fn aligned(at: u64, bytes: usize) -> Result<()> {
    if !at.is_multiple_of(bytes as u64) {
        fault!("global access of {bytes} bytes at {at:#x}: not aligned");
    }
    Ok(())
}

/// Up to 8 bytes as a number.
#[inline(always)]
fn extend(bytes: &[u8], signed: bool) -> u64 {
    if let Ok(word) = <[u8; 4]>::try_from(bytes) {
        let word = u32::from_le_bytes(word);
        return if signed { i64::from(word as i32) as u64 } else { u64::from(word) };
    }
    let mut all = [0; 8];
    for (to, from) in all.iter_mut().zip(bytes) {
        *to = *from;
    }
    let value = u64::from_le_bytes(all);
    let unused = 64 - 8 * bytes.len().clamp(1, 8);
    if signed { ((value << unused) as i64 >> unused) as u64 } else { value }
}
