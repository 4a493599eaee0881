//! Parameters of the probe kernels: tiny kernels that run one instruction or one layout each, so that a test can compare
//! it with its CPU model.

/// Parameter block of every probe. Which fields a probe reads, and how, is in its doc.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeParams {
    /// Device address of the first input.
    pub a: u64,
    /// Device address of the second input.
    pub b: u64,
    /// Device address of the third input.
    pub c: u64,
    /// Device address of the output.
    pub out: u64,
    /// Elements or rounds.
    pub count: i32,
    /// First extra number.
    pub x: i32,
    /// Second extra number.
    pub y: i32,
    /// Third extra number.
    pub z: i32,
}

/// Threads of a probe, where its doc says nothing else.
pub const THREADS: u32 = 128;
/// Threads of `probe_setmaxnreg`: three warpgroups.
pub const SETMAXNREG_THREADS: u32 = 384;
/// Registers that each consumer thread of `probe_setmaxnreg` holds at once: more than the 168 it is launched with.
pub const SETMAXNREG_LIVE: u32 = 192;
/// Bytes in front of the first region, for barriers.
pub const REGIONS_AT: u32 = 1024;
/// Bytes of one region of shared memory: an operand tile of 136 rows of 128 bytes, rounded up to what 128 threads copy in
/// whole rounds of 16 bytes. A multiple of 1,024, as the swizzle wants.
pub const REGION_BYTES: u32 = 18 * 1024;
/// Dynamic shared memory of every probe: barriers and three regions.
pub const SMEM_BYTES: u32 = REGIONS_AT + 3 * REGION_BYTES;
/// Word that probes fill shared memory with, to show what an instruction did not touch.
pub const UNTOUCHED: u32 = 0xA5A5_A5A5;
/// Words that `probe_smem` writes per thread.
pub const SMEM_WORDS: usize = 9;
/// Words that `probe_warp` writes per thread.
pub const WARP_WORDS: usize = 10;
/// Words that `probe_special` writes per thread.
pub const SPECIAL_WORDS: usize = 10;
/// Words that `probe_mbarrier` writes per thread and round.
pub const MBARRIER_WORDS: usize = 3;
/// Words that `probe_math` writes per element.
pub const MATH_WORDS: usize = 6;

const _: () = {
    assert!(core::mem::size_of::<ProbeParams>() == 48);
    assert!(REGION_BYTES >= 136 * 128 && REGION_BYTES.is_multiple_of(THREADS * 16) && REGION_BYTES.is_multiple_of(1024));
};
