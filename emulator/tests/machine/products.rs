//! Products of a warpgroup against plain loops.

use super::{Run, WAIT};
use stem_emulator::num::{f32_to_bf16, f32_to_e4m3};
use stem_emulator::settings::Settings;

/// Rows and columns.
const M: usize = 64;
const N: usize = 8;

/// A small whole number for a place of a factor, so that every order of summation gives the same.
fn entry(row: usize, k: usize) -> f32 {
    ((row * 5 + k * 3) % 7) as f32 - 3.0
}

/// Products of the factors, `[M][N]`.
fn plain(depth: usize) -> Vec<f32> {
    let sum = |row: usize, column: usize| (0..depth).map(|k| entry(row, k) * entry(column + 100, k)).sum();
    (0..M).flat_map(|row| (0..N).map(move |column| (row, column))).map(|(row, column)| sum(row, column)).collect()
}

/// Rows of 32 bytes as the 32-byte swizzle places them: in odd groups of four rows of 256 bytes the halves change places.
fn swizzled(rows: usize, bytes: impl Fn(usize, usize) -> u8) -> Vec<u8> {
    let mut out = vec![0; rows * 32];
    for (row, k) in (0..rows).flat_map(|row| (0..32).map(move |k| (row, k))) {
        let half = (k / 16) ^ (row / 4 % 2);
        out[row * 32 + half * 16 + k % 16] = bytes(row, k);
    }
    out
}

/// Copies `bytes` of input to the start of shared memory, and makes descriptors of factors there: `%rd4` of one at its start,
/// `%rd5` of one at `right`.
fn load(bytes: usize, right: usize) -> String {
    format!(
        "add.u32 %r1, %r63, 4096; setp.eq.u32 %p0, %r0, 0;
        @%p0 mbarrier.init.shared::cta.b64 [%r1], 1; bar.sync 0;
        @%p0 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], {bytes};
        @%p0 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r63], [%rd1], {bytes}, [%r1];
        {WAIT}
        shr.u32 %r2, %r63, 4; cvt.u64.u32 %rd4, %r2; or.b64 %rd4, %rd4, 0xC000001000000000; add.s64 %rd5, %rd4, {};",
        right / 16
    )
}

/// Stores four sums of each thread.
const STORE: &str = "mul.wide.u32 %rd6, %r0, 16; add.s64 %rd6, %rd6, %rd0; st.global.v4.u32 [%rd6], {%r10, %r11, %r12, %r13};";

/// The sums where the threads hold them, `[M][N]`.
fn gathered(out: &[u32]) -> Vec<f32> {
    let mut all = vec![f32::NAN; M * N];
    for (i, word) in out.iter().enumerate() {
        let (thread, j) = (i / 4, i % 4);
        let (warp, lane) = (thread / 32, thread % 32);
        all[(16 * warp + lane / 4 + 8 * (j / 2)) * N + 2 * (lane % 4) + j % 2] = f32::from_bits(*word);
    }
    all
}

fn runs(input: &[u8], seed: u64) -> Run<'_> {
    Run { threads: 128, out: M * N, input, ..Run::default() }.under(Settings { seed, mode: None, ..Settings::default() })
}

/// Bytes of both factors in e4m3, the right one after the left one.
fn e4m3_factors() -> Vec<u8> {
    let mut bytes = swizzled(M, |row, k| f32_to_e4m3(entry(row, k)));
    bytes.extend(swizzled(N, |column, k| f32_to_e4m3(entry(column + 100, k))));
    bytes
}

#[test]
fn factors_in_shared_memory() {
    let input = e4m3_factors();
    // The first product ignores what the registers held, the second adds to the first.
    let product = "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {%r10, %r11, %r12, %r13}, %rd4, %rd5, %p2, 1, 1;";
    let body = format!(
        "{} setp.ne.u32 %p2, %r0, %r0; wgmma.fence.sync.aligned; {product}
        setp.eq.u32 %p2, %r0, %r0; {product}
        wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0; {STORE}",
        load(input.len(), M * 32)
    );
    let want: Vec<f32> = plain(32).iter().map(|x| 2.0 * x).collect();
    for seed in 0..6 {
        assert_eq!(gathered(&runs(&input, seed).run(&body).unwrap()), want, "seed {seed}");
    }
}

#[test]
fn a_left_factor_in_registers() {
    // Words of the left factor by thread, then the right factor.
    let bf16 = |row, k| f32_to_bf16(entry(row, k)).to_le_bytes();
    let mut input: Vec<u8> = (0..128 * 4)
        .flat_map(|i| {
            let (warp, lane, j) = (i / 128, i / 4 % 32, i % 4);
            let (row, k) = (16 * warp + lane / 4 + 8 * (j % 2), 2 * (lane % 4) + 8 * (j / 2));
            [bf16(row, k), bf16(row, k + 1)].concat()
        })
        .collect();
    let right = input.len();
    input.extend(swizzled(N, |column, byte| bf16(column + 100, byte / 2)[byte % 2]));
    let body = format!(
        "{} mul.wide.u32 %rd7, %r0, 16; add.s64 %rd7, %rd7, %rd1; ld.global.v4.u32 {{%r20, %r21, %r22, %r23}}, [%rd7];
        setp.ne.u32 %p2, %r0, %r0; wgmma.fence.sync.aligned;
        wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {{%r10, %r11, %r12, %r13}}, {{%r20, %r21, %r22, %r23}}, %rd5, %p2, 1, 1, 0;
        wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0; {STORE}",
        load(input.len(), right)
    );
    assert_eq!(gathered(&runs(&input, 3).run(&body).unwrap()), plain(16));
}

#[test]
fn sums_are_not_there_before_the_wait() {
    let input = e4m3_factors();
    let body = format!(
        "{} setp.ne.u32 %p2, %r0, %r0; mov.b32 %r10, 0; mov.b32 %r11, 0; mov.b32 %r12, 0; mov.b32 %r13, 0;
        wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {{%r10, %r11, %r12, %r13}}, %rd4, %rd5, %p2, 1, 1;
        wgmma.commit_group.sync.aligned; {STORE} wgmma.wait_group.sync.aligned 0;",
        load(input.len(), M * 32)
    );
    let early = (0..20).filter(|seed| gathered(&runs(&input, *seed).run(&body).unwrap()) != plain(32)).count();
    assert!(early > 0, "every schedule hides the missing wait");
}

#[test]
fn a_warpgroup_acts_as_one() {
    let input = e4m3_factors();
    let load = load(input.len(), M * 32);
    let product = "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {%r10, %r11, %r12, %r13}, %rd4, RIGHT, %p2, 1, 1;";
    let keep = "setp.ne.u32 %p2, %r0, %r0;";
    let other = product.replace("RIGHT", "%rd8");
    let product = product.replace("RIGHT", "%rd5");
    let done = "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;";

    // The last warp's descriptor is another.
    let differs = format!("{load} {keep} setp.ge.u32 %p3, %r0, 96; selp.b64 %rd8, %rd4, %rd5, %p3; {other} {done}");
    let report = runs(&input, 1).fails(&differs);
    assert!(report.contains("do not issue the same product"), "{report}");

    // The last warp stays away.
    let stays = format!("{load} {keep} setp.ge.u32 %p3, %r0, 96; @%p3 bra $wait; {product} {done}").replacen("$wait:", "$first:", 1);
    let stays = stays.replacen("bra $wait;", "bra $first;", 1).replacen("bra $wait;", "bra $end;", 1) + " $end: bar.sync 0;";
    let report = runs(&input, 1).fails(&stays);
    assert!(report.contains("waits for its warpgroup to issue product 1"), "{report}");

    // An exit without a wait.
    let report = runs(&input, 2).under(Settings { seed: 2, ..Settings::default() });
    let seeds = (0..8).map(|seed| Run { input: &input, threads: 128, ..Run::default() }.under(Settings { seed, ..report.settings }));
    let found =
        seeds.filter_map(|run| run.run(&format!("{load} {keep} {product}")).err()).any(|e| e.to_string().contains("products in flight"));
    assert!(found);
}
