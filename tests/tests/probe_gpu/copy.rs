//! Asynchronous copies: what lies where in shared memory.

use crate::{address, launch, rng, run};
use rand::{Rng, RngExt};
use rstest::rstest;
use stem_attn::driver::{ElementType, Launch, Swizzle, TensorMap, TensorMapDesc};
use stem_attn_kernels::abi_probe::{ProbeParams, UNTOUCHED};
use stem_attn_kernels::config::TILE_BYTES;
use stem_attn_kernels::layout::swizzle_128;
use stem_attn_tests::gpu::{Gpu, gpu};

/// A u8 tensor whose rows are 128 bytes, to be loaded in boxes with the 128-byte swizzle.
struct Source<'a> {
    bytes: &'a [u8],
    dims: &'a [u64],
    strides: &'a [u64],
    box_dims: &'a [u32],
}

/// Runs a probe with a map of `source`; returns the tile's bytes, after checking that the load with `on` = 0 did nothing.
fn load(gpu: &Gpu, entry: &'static str, source: &Source<'_>, list: &[i32], params: ProbeParams) -> Vec<u8> {
    let (tensor, list, out) = (gpu.upload(source.bytes), gpu.upload(list), gpu.poisoned::<u8>(2 * TILE_BYTES));
    let desc = TensorMapDesc {
        name: "probe",
        element: ElementType::U8,
        address: address(gpu, &tensor),
        bytes: source.bytes.len() as u64,
        dims: source.dims,
        strides: source.strides,
        box_dims: source.box_dims,
        swizzle: Swizzle::B128,
    };
    let map = TensorMap::encode(&gpu.device, &desc).expect("encode");
    let params = ProbeParams { a: address(gpu, &list), out: address(gpu, &out), ..params };
    launch(gpu, entry, Launch::grid(1, 1, 1), &params, Some(&map));
    let mut got = gpu.download(&out, 2 * TILE_BYTES);
    let off = got.split_off(TILE_BYTES);
    assert!(off.chunks(4).all(|w| w == UNTOUCHED.to_le_bytes()), "a load with `on` = 0 wrote");
    got
}

/// Checks a tile of 128 rows against a function that gives the row expected at each place.
fn check_tile(got: &[u8], row: impl Fn(usize) -> [u8; 128]) {
    for r in 0..128 {
        for (c, &expected) in row(r).iter().enumerate() {
            assert_eq!(got[swizzle_128(r * 128 + c)], expected, "row {r}, byte {c}");
        }
    }
}

/// 128 bytes at `at`, or zeros.
fn row_at(bytes: &[u8], at: Option<usize>) -> [u8; 128] {
    at.map_or([0; 128], |at| bytes[at..at + 128].try_into().expect("128 bytes"))
}

fn random_bytes(rng: &mut impl Rng, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rng.fill_bytes(&mut bytes);
    bytes
}

#[test]
fn bulk_copies_land_and_complete_their_phase() {
    let Some(gpu) = gpu() else { return };
    let mut rng = rng("bulk_load");
    let rounds = 5;
    let a = random_bytes(&mut rng, rounds * 2048);
    let params = ProbeParams { count: rounds as i32, ..Default::default() };
    let out: Vec<u8> = run(&gpu, "probe_bulk_load", params, &a, (rounds + 1) * 2048);
    assert!(out[..a.len()] == a[..]);
    assert!(out[a.len()..].chunks(4).all(|w| w == UNTOUCHED.to_le_bytes()), "a copy with `on` = 0 wrote");
}

#[rstest]
#[case::first(0)]
#[case::middle(100)]
#[case::past_the_end(250)]
#[case::wholly_outside(300)]
#[case::before_the_start(-5)]
fn boxes_of_a_2d_tensor_are_swizzled_and_zero_filled(#[case] x: i32) {
    let Some(gpu) = gpu() else { return };
    let mut rng = rng("tma_2d");
    let rows = 300;
    let bytes = random_bytes(&mut rng, rows * 128);
    let source = Source { bytes: &bytes, dims: &[128, rows as u64], strides: &[128], box_dims: &[128, 128] };
    let got = load(&gpu, "probe_tma_2d", &source, &[0], ProbeParams { x, ..Default::default() });
    check_tile(&got, |r| {
        let at = usize::try_from(x + r as i32).ok().filter(|&row| row < rows);
        row_at(&bytes, at.map(|row| row * 128))
    });
}

#[rstest]
#[case(0, 0)]
#[case(72, 2)]
#[case(150, 1)]
fn boxes_of_one_head_of_the_queries(
    #[case] x: usize,
    #[case] head: usize,
    #[values("probe_tma_3d", "probe_tma_3d_elected")] kernel: &'static str,
) {
    let Some(gpu) = gpu() else { return };
    let mut rng = rng("tma_3d");
    let (rows, heads) = (200, 3);
    let bytes = random_bytes(&mut rng, rows * heads * 128);
    let source =
        Source { bytes: &bytes, dims: &[128, heads as u64, rows as u64], strides: &[128, heads as u64 * 128], box_dims: &[128, 1, 128] };
    let got = load(&gpu, kernel, &source, &[0], ProbeParams { x: x as i32, y: head as i32, ..Default::default() });
    check_tile(&got, |r| row_at(&bytes, (x + r < rows).then_some(((x + r) * heads + head) * 128)));
}

#[rstest]
fn pages_are_gathered_into_a_tile(
    #[values(16, 32, 64, 128, 256)] page_size: usize,
    #[values(false, true)] head_major: bool,
    #[values("probe_tma_pages", "probe_tma_pages_elected")] kernel: &'static str,
) {
    let Some(gpu) = gpu() else { return };
    let mut rng = rng("tma_pages");
    let (heads, pages, head) = (3, 40, 2);
    let bytes = random_bytes(&mut rng, pages * page_size * heads * 128);
    // (token, head) strides: NHD or HND.
    let (token, of_head) = if head_major { (128, page_size * 128) } else { (heads * 128, 128) };
    let page = page_size * heads * 128;
    let rows = page_size.min(128);
    let mut list: Vec<i32> = (0..128 / rows).map(|_| rng.random_range(0..pages as i32)).collect();
    if list.len() > 2 {
        // Entries that name no page read as zero.
        (list[0], list[2]) = (-1, pages as i32);
    }
    let first = if page_size > 128 { 128 } else { 0 };
    let source = Source {
        bytes: &bytes,
        dims: &[128, page_size as u64, heads as u64, pages as u64],
        strides: &[token as u64, of_head as u64, page as u64],
        box_dims: &[128, rows as u32, 1, 1],
    };
    let params = ProbeParams { count: list.len() as i32, x: rows as i32, y: head as i32, z: first as i32, ..Default::default() };
    let got = load(&gpu, kernel, &source, &list, params);
    check_tile(&got, |r| {
        let number = usize::try_from(list[r / rows]).ok().filter(|&n| n < pages);
        row_at(&bytes, number.map(|n| n * page + (first + r % rows) * token + head * of_head))
    });
}
