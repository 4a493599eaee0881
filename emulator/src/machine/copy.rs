//! Asynchronous copies: small ones of lanes, boxes of tensors, and runs of bytes.

use super::cluster::Cluster;
use super::memory::BLOCK_SHIFT;
use super::races::{Kind, Past, What};
use super::tensor::{Map, RANK};
use super::warp::Warp;
use crate::fault::{Result, fault};
use crate::isa::{Addr, Bulk, Space, Tensor, lanes};
use crate::ptx::W;

/// A block that no cluster has, with a number that an address can hold.
const NO_BLOCK: u32 = 0xfe;

/// A `cp.async` of one lane.
#[derive(Clone, Debug)]
pub(super) struct SmallCopy {
    lane: usize,
    to: u64,
    from: u64,
    /// Bytes to write, and how many of them are read; the others are zeros.
    bytes: usize,
    used: usize,
    /// The instruction, and what is ordered before it.
    pc: usize,
    past: Option<Past>,
}

impl SmallCopy {
    fn what(&self, block: usize) -> What {
        What { at: (block, self.to as u32), bytes: self.bytes as u32, kind: Kind::SmallCopy, pc: self.pc }
    }
}

/// A copy that will complete at some time.
pub(super) struct Copy {
    what: Work,
    /// The instruction, and what is ordered before it.
    pc: usize,
    past: Option<Past>,
}

/// What a copy does.
enum Work {
    /// Small copies, and then arrivals at mbarriers of the block.
    Small { block: usize, copies: Vec<SmallCopy>, arrivals: Vec<u32> },
    /// A box, to some blocks. Its bytes count at one mbarrier, or at that of each block with `multicast`.
    Tensor { blocks: Vec<usize>, to: u32, map: Box<Map>, at: [i32; RANK], done: (usize, u32), multicast: bool },
    /// Bytes of device memory.
    Bulk { block: usize, to: u32, from: u64, bytes: usize, done: (usize, u32) },
    /// Bytes of a block's shared memory to that of another: block and address of both.
    Across { from: (usize, u32), to: (usize, u32), bytes: usize, done: (usize, u32) },
}

impl Cluster<'_> {
    /// Does one of the copies, any.
    pub(super) fn complete_a_copy(&mut self) -> Result<()> {
        let which = self.random.index(self.copies.len());
        let copy = self.copies.swap_remove(which);
        if let Err(error) = self.complete(copy) {
            fault!("{}", self.report(&format!("a copy: {error}")));
        }
        Ok(())
    }

    fn complete(&mut self, copy: Copy) -> Result<()> {
        let Copy { what, pc, past } = copy;
        let past = past.as_ref();
        match what {
            Work::Small { block, copies, arrivals } => {
                for copy in &copies {
                    if let Some(first) = arrivals.first() {
                        self.touch_by_copy((block, *first), &copy.what(block), copy.past.as_ref())?;
                    }
                    self.small_copy(block, copy)?;
                }
                arrivals.iter().try_for_each(|at| self.count((block, *at), 1, 0))
            }
            Work::Tensor { blocks, to, map, at, done, multicast } => {
                let bytes = self.gather(&map, at)?;
                for block in blocks {
                    // An address of the own block, so that a block that has exited is not asked for its state.
                    let done = if multicast { self.mbarrier_at(block, u64::from(done.1), Space::Shared)? } else { done };
                    self.touch_by_copy(done, &What { at: (block, to), bytes: bytes.len() as u32, kind: Kind::Copy, pc }, past)?;
                    let shared = &mut self.blocks[block].shared;
                    for (i, chunk) in bytes.chunks_exact(16).enumerate() {
                        let to = map.swizzled(to + 16 * i as u32) as usize;
                        shared[to..to + 16].copy_from_slice(chunk);
                    }
                    self.count(done, 0, -(bytes.len() as i64))?;
                }
                Ok(())
            }
            Work::Bulk { block, to, from, bytes, done } => {
                self.touch_by_copy(done, &What { at: (block, to), bytes: bytes as u32, kind: Kind::Copy, pc }, past)?;
                let mut data = vec![0; bytes];
                self.read_global(from, &mut data)?;
                self.blocks[block].shared[to as usize..to as usize + bytes].copy_from_slice(&data);
                self.count(done, 0, -(bytes as i64))
            }
            Work::Across { from, to, bytes, done } => {
                if let Some((gone, _)) = [from, to].iter().find(|(block, _)| self.blocks[*block].running == 0) {
                    fault!("shared memory of block {gone}, which has exited");
                }
                for (at, kind) in [(from, Kind::CopySource), (to, Kind::Copy)] {
                    self.touch_by_copy(done, &What { at, bytes: bytes as u32, kind, pc }, past)?;
                }
                let range = |at: u32| at as usize..at as usize + bytes;
                let data = self.blocks[from.0].shared[range(from.1)].to_vec();
                self.blocks[to.0].shared[range(to.1)].copy_from_slice(&data);
                self.count(done, 0, -(bytes as i64))
            }
        }
    }

    /// The bytes of a box, zeros where it lies outside the tensor.
    fn gather(&mut self, map: &Map, at: [i32; RANK]) -> Result<Vec<u8>> {
        let mut bytes = vec![0; map.box_bytes() as usize];
        for row in map.rows(at).filter(|r| r.bytes > 0) {
            let first = (row.to + row.skip) as usize;
            self.read_global(row.from, &mut bytes[first..first + row.bytes as usize])?;
        }
        Ok(bytes)
    }

    fn small_copy(&mut self, block: usize, copy: &SmallCopy) -> Result<()> {
        let mut data = [0; 16];
        if copy.used > 0 {
            self.read_global(copy.from, &mut data[..copy.used])?;
        }
        let (_, at) = self.shared(block, copy.to, copy.bytes, Space::Shared)?;
        self.blocks[block].shared[at as usize..at as usize + copy.bytes].copy_from_slice(&data[..copy.bytes]);
        Ok(())
    }

    /// `cp.async`.
    pub(super) fn start_small(&mut self, warp: &mut Warp, (to, from): (Addr, Addr), bytes: u32, used: Option<W>, mask: u32) -> Result<()> {
        for lane in lanes(mask) {
            let r = &warp.registers;
            let used = used.map_or(bytes, |u| r[u][lane]);
            let (to, from, bytes) = (to.of(r, lane), from.of(r, lane), bytes as usize);
            if used as usize > bytes || !from.is_multiple_of(bytes as u64) {
                fault!("a copy of {used} bytes at {from:#x}: too many, or not aligned");
            }
            self.shared(warp.block, to, bytes, Space::Shared)?;
            let past = self.races.as_mut().map(|races| races.issue_copy(warp, lane));
            warp.copies.push(SmallCopy { lane, to, from, bytes, used: used as usize, pc: self.pc, past });
        }
        Ok(())
    }

    /// `cp.async.wait_group` and `wait_all`. Copies are done here, as late as can be.
    pub(super) fn wait_small(&mut self, warp: &mut Warp, left: Option<u32>) -> Result<()> {
        if left.is_none() {
            warp.copy_groups.push_back(std::mem::take(&mut warp.copies));
        }
        while warp.copy_groups.len() > left.unwrap_or(0) as usize {
            let group = warp.copy_groups.pop_front().unwrap_or_default();
            for copy in &group {
                self.touch(warp, copy.lane, &copy.what(warp.block), copy.past.as_ref())?;
                self.small_copy(warp.block, copy)?;
            }
        }
        Ok(())
    }

    /// `cp.async.mbarrier.arrive`: what these lanes have started completes with an arrival of each.
    pub(super) fn arrive_small(&mut self, warp: &mut Warp, at: Addr, counted: bool, mask: u32) -> Result<()> {
        let mut copies = Vec::new();
        for group in warp.copy_groups.iter_mut().chain([&mut warp.copies]) {
            copies.extend(group.extract_if(.., |c| mask >> c.lane & 1 != 0));
        }
        let mut arrivals = Vec::new();
        for lane in lanes(mask) {
            let at = self.mbarrier_at(warp.block, at.of(&warp.registers, lane), Space::Shared)?;
            if !counted {
                self.count(at, -1, 0)?;
            }
            arrivals.push(at.1);
        }
        self.copies.push(Copy { what: Work::Small { block: warp.block, copies, arrivals }, pc: self.pc, past: None });
        Ok(())
    }

    /// `cp.async.bulk.tensor`, each lane for itself.
    pub(super) fn start_tensor(&mut self, warp: &Warp, tensor: &Tensor, mask: u32) -> Result<()> {
        for lane in lanes(mask) {
            let r = &warp.registers;
            let address = r[tensor.map][lane];
            let mut bytes = [0; 128];
            self.read_global(address, &mut bytes)?;
            let (words, _) = bytes.as_chunks::<8>();
            let words = std::array::from_fn(|i| u64::from_le_bytes(words[i]));
            let Some(map) = Map::decode(&words).filter(|_| address.is_multiple_of(64)) else { fault!("no tensor map at {address:#x}") };
            if map.rank != tensor.at.len() {
                fault!("{} coordinates for a map of rank {}", tensor.at.len(), map.rank);
            }
            let mut at = [0; RANK];
            for (to, from) in at.iter_mut().zip(&tensor.at) {
                *to = r[*from][lane] as i32;
            }
            let (block, to) = self.bytes_at(warp, tensor.to.of(r, lane), (map.box_bytes(), 128), Space::Cluster)?;
            let done = self.mbarrier_at(warp.block, tensor.done.of(r, lane), Space::Cluster)?;
            let blocks = tensor.multicast.map_or(vec![block], |m| lanes(r[m][lane] & 0xffff).collect());
            if let Some(none) = blocks.iter().find(|b| **b >= self.blocks.len()) {
                fault!("a copy to block {none}, which is not in the cluster");
            }
            let (map, multicast) = (Box::new(map), tensor.multicast.is_some());
            self.start(warp, lane, Work::Tensor { blocks, to, map, at, done, multicast });
        }
        Ok(())
    }

    /// `cp.async.bulk`, each lane for itself.
    pub(super) fn start_bulk(&mut self, warp: &Warp, bulk: &Bulk, mask: u32) -> Result<()> {
        for lane in lanes(mask) {
            let r = &warp.registers;
            let (from, bytes) = (bulk.from.of(r, lane), r[bulk.bytes][lane]);
            if bytes % 16 != 0 || from % 16 != 0 {
                fault!("a copy of {bytes} bytes from {from:#x}: not aligned to 16");
            }
            let (block, to) = self.bytes_at(warp, bulk.to.of(r, lane), (u64::from(bytes), 16), Space::Cluster)?;
            let done = self.mbarrier_at(warp.block, bulk.done.of(r, lane), Space::Cluster)?;
            self.knows(warp, lane, done)?;
            let work = if bulk.source == Space::Global {
                Work::Bulk { block, to, from, bytes: bytes as usize, done }
            } else {
                if done.0 != block {
                    fault!("a copy to block {block} that counts in block {}", done.0);
                }
                let from = self.bytes_at(warp, from, (u64::from(bytes), 16), bulk.source)?;
                Work::Across { from, to: (block, to), bytes: bytes as usize, done }
            };
            self.start(warp, lane, work);
        }
        Ok(())
    }

    fn start(&mut self, warp: &Warp, lane: usize, what: Work) {
        let past = self.races.as_mut().map(|races| races.issue_copy(warp, lane));
        self.copies.push(Copy { what, pc: self.pc, past });
    }

    /// Block and address of the bytes in shared memory that a copy writes or reads, so many of such an alignment.
    fn bytes_at(&self, warp: &Warp, at: u64, (bytes, align): (u64, u64), space: Space) -> Result<(usize, u32)> {
        let (block, at) = self.shared(warp.block, at, 16, space)?;
        if u64::from(at) + bytes > self.blocks[block].shared.len() as u64 || !u64::from(at).is_multiple_of(align) {
            fault!("a copy of {bytes} bytes at {at}: past the end, or not aligned to {align}");
        }
        Ok((block, at))
    }

    /// `mapa`: the address of another block's shared memory. That of a block which is not there is an error where it is used.
    pub(super) fn map_address(&self, warp: &mut Warp, (to, at, block): (W, W, W), mask: u32) {
        for lane in lanes(mask) {
            let r = &mut warp.registers;
            let number = r[block][lane].min(NO_BLOCK) + 1;
            r[to][lane] = r[at][lane] & ((1 << BLOCK_SHIFT) - 1) | number << BLOCK_SHIFT;
        }
    }
}
