//! Block masks to lists on the GPU: byte masks and compressed rows, also such as nobody would make on purpose. Skipped, with
//! a printed reason, where there is no GPU.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rstest::rstest;
use stem_attn::ops::{self, Heads, Indptr};
use stem_attn::{BlockLists, Error, Geometry};
use stem_attn_tests::gpu::{POISON, gpu};
use stem_attn_tests::stages::{Bench, cut};

/// New and visible tokens of each request; the last batch has more key blocks than a window of bits.
const BATCHES: [&[(i32, i32)]; 4] = [
    &[(1, 1), (0, 300), (4097, 4097), (129, 131), (0, 0)],
    &[(300, 777), (128, 256), (5, 1029)],
    &[(3000, 40_000), (260, 33_000)],
    &[(140, 8_500_000)],
];

/// Entries past the end of the lists that must stay as they are.
const GUARD: usize = 64;

/// Lists on a GPU that a launch has filled.
fn lists(
    geometry: &Geometry,
    heads: Heads,
    stride: usize,
    launch: impl FnOnce(&Bench, ops::Lists) -> stem_attn::Result<()>,
) -> Option<BlockLists> {
    let bench = Bench::new(gpu()?, geometry, heads);
    let rows = heads.hq * geometry.total_qb();
    let (lists, counts) = (bench.gpu.poisoned::<i32>(rows * stride + GUARD), bench.gpu.poisoned::<i32>(rows + GUARD));
    let out = ops::Lists { lists: bench.span(&lists, rows * stride), counts: bench.span(&counts, rows), stride };
    launch(&bench, out).expect("launch");
    let untouched = i32::from_le_bytes([POISON; 4]);
    let mut all = bench.gpu.download(&lists, rows * stride + GUARD);
    let mut counts = bench.gpu.download(&counts, rows + GUARD);
    assert!(all.split_off(rows * stride).iter().chain(&counts.split_off(rows)).all(|&x| x == untouched), "written past the end");
    for (list, &count) in all.chunks_exact(stride).zip(&counts) {
        assert!(list[count as usize..].iter().all(|&j| j == untouched), "written past the count");
    }
    Some(BlockLists { hq: heads.hq, total_qb: geometry.total_qb(), stride, counts, lists: all })
}

/// Rows cut to a capacity.
fn capped(hq: usize, geometry: &Geometry, stride: usize, rows: &[Vec<i32>]) -> BlockLists {
    let rows: Vec<&[i32]> = rows.iter().map(|row| &row[..row.len().min(stride)]).collect();
    BlockLists::from_rows(hq, geometry.total_qb(), stride, &rows).expect("lists")
}

#[rstest]
fn byte_masks(#[values(0, 1, 2, 3)] batch: usize, #[values(true, false)] causal: bool, #[values(0, 13)] spare: usize) {
    let geometry = cut(BATCHES[batch], causal, None);
    let heads = Heads::new(4, 2).expect("heads");
    let columns = geometry.max_kb + spare;
    let rng = &mut StdRng::seed_from_u64(batch as u64);
    // Bytes of a row's own share, bytes past what it can see among them.
    let mask: Vec<u8> = (0..heads.hq * geometry.total_qb())
        .flat_map(|_| {
            let share = [0.0, 0.02, 0.5, 1.0][rng.random_range(0..4)];
            (0..columns).map(|_| if rng.random_bool(share) { rng.random_range(1..=255) } else { 0 }).collect::<Vec<u8>>()
        })
        .collect();
    let want = BlockLists::from_mask(&mask, [heads.hq, geometry.total_qb(), columns], heads.hq, &geometry).expect("lists");
    let rows: Vec<Vec<i32>> =
        (0..heads.hq * geometry.total_qb()).map(|i| want.row(i / geometry.total_qb(), i % geometry.total_qb()).to_vec()).collect();
    for stride in [geometry.list_stride, 5] {
        let got = lists(&geometry, heads, stride, |bench, lists| {
            let bytes = bench.gpu.upload(&mask);
            ops::lists_from_mask(&bench.at(), &ops::MaskLists { mask: bench.span(&bytes, mask.len()), columns, lists })?;
            bench.gpu.stream.synchronize().map_err(|e| Error::Driver { call: "cuStreamSynchronize", message: e.to_string() })
        });
        let Some(got) = got else { return };
        assert_eq!(got, capped(heads.hq, &geometry, stride, &rows), "capacity {stride}");
    }
}

/// What a row of any compressed rows comes to.
fn model(indptr: &[i64], indices: &[i32], i: usize, visible: usize) -> Vec<i32> {
    let within = |at: i64| at.clamp(0, indices.len() as i64) as usize;
    let (start, end) = (within(indptr[i]), within(indptr[i + 1]));
    let row = indices.get(start..end).unwrap_or(&[]);
    let mut list: Vec<i32> = row.iter().take(visible).copied().filter(|&j| (0..visible as i64).contains(&i64::from(j))).collect();
    list.sort_unstable();
    list.dedup();
    list
}

#[rstest]
fn compressed_rows(
    #[values(0, 1, 2, 3)] batch: usize,
    #[values(true, false)] causal: bool,
    #[values(true, false)] wide: bool,
    #[values(true, false)] hostile: bool,
) {
    let geometry = cut(BATCHES[batch], causal, None);
    let heads = Heads::new(4, 2).expect("heads");
    let rows = heads.hq * geometry.total_qb();
    let rng = &mut StdRng::seed_from_u64(batch as u64 + 10);
    let (mut indptr, mut indices) = (vec![0i64], Vec::new());
    for i in 0..rows {
        let visible = geometry.candidates(i % geometry.total_qb()) as i32;
        for _ in 0..rng.random_range(0..=visible.min(700)) {
            indices.push(if hostile && rng.random_bool(0.2) { rng.random() } else { rng.random_range(0..visible) });
        }
        indptr.push(indices.len() as i64);
    }
    if hostile {
        // Offsets before the start, past the end, falling, and rows that claim everything.
        let bad = [-1, i64::from(i32::MIN), i64::from(i32::MAX), indices.len() as i64 + 1, 0, indices.len() as i64];
        for at in &mut indptr {
            if rng.random_bool(0.3) {
                *at = bad[rng.random_range(0..bad.len())];
            }
        }
        if wide && let Some(first) = indptr.first_mut() {
            *first = i64::MIN;
        }
    }
    let want: Vec<Vec<i32>> = (0..rows).map(|i| model(&indptr, &indices, i, geometry.candidates(i % geometry.total_qb()))).collect();
    for stride in [geometry.list_stride, 5] {
        let got = lists(&geometry, heads, stride, |bench, lists| {
            let narrow: Vec<i32> = indptr.iter().map(|&at| at as i32).collect();
            let (wide_at, narrow_at) = (bench.gpu.upload(&indptr), bench.gpu.upload(&narrow));
            let device = bench.gpu.upload(&indices);
            let indptr = match wide {
                true => Indptr::I64(bench.span(&wide_at, indptr.len())),
                false => Indptr::I32(bench.span(&narrow_at, narrow.len())),
            };
            ops::lists_from_csr(&bench.at(), &ops::CsrLists { indptr, indices: bench.span(&device, indices.len()), lists })?;
            bench.gpu.stream.synchronize().map_err(|e| Error::Driver { call: "cuStreamSynchronize", message: e.to_string() })
        });
        let Some(got) = got else { return };
        assert_eq!(got, capped(heads.hq, &geometry, stride, &want), "capacity {stride}");
    }
}

#[test]
fn masks_that_do_not_fit_are_named() {
    let geometry = cut(BATCHES[1], true, None);
    let heads = Heads::new(4, 2).expect("heads");
    let Some(gpu) = gpu() else { return };
    let bench = Bench::new(gpu, &geometry, heads);
    let (rows, stride) = (heads.hq * geometry.total_qb(), geometry.list_stride);
    let (lists, counts) = (bench.gpu.poisoned::<i32>(rows * stride), bench.gpu.poisoned::<i32>(rows));
    let (bytes, words, offsets) =
        (bench.gpu.upload(&vec![1u8; rows * 9]), bench.gpu.upload(&[0i32; 4]), bench.gpu.upload(&vec![0i64; rows]));
    let out = ops::Lists { lists: bench.span(&lists, rows * stride), counts: bench.span(&counts, rows), stride };
    let named = |result: stem_attn::Result<()>, name: &str| match result {
        Err(Error::Shape { tensor, .. }) => assert_eq!(tensor, name),
        other => panic!("{name}: {other:?}"),
    };
    let mask = bench.span(&bytes, rows * 9);
    named(ops::lists_from_mask(&bench.at(), &ops::MaskLists { mask, columns: geometry.max_kb - 1, lists: out }), "block_mask");
    named(ops::lists_from_mask(&bench.at(), &ops::MaskLists { mask, columns: 10, lists: out }), "block_mask");
    let indptr = Indptr::I64(bench.span(&offsets, rows));
    named(ops::lists_from_csr(&bench.at(), &ops::CsrLists { indptr, indices: bench.span(&words, 4), lists: out }), "indptr");
    let short = ops::Lists { lists: bench.span(&lists, rows * stride - 1), ..out };
    named(ops::lists_from_mask(&bench.at(), &ops::MaskLists { mask, columns: 9, lists: short }), "lists");
    assert!(bench.gpu.download(&counts, rows).iter().all(|&n| n == -1), "nothing was launched");
}
