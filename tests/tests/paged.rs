//! Paged K and V against the contiguous tensors they were made from.

use float8::F8E4M3;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rstest::rstest;
use stem_attn::kv::PageTable;
use stem_attn::kv::layout::{KvTensor, PageLayout, PagedKv, PagedTensors};
use stem_attn::{Error, Geometry};
use stem_attn_kernels::abi::PageStrides;
use stem_attn_tests::batch::Batch;

fn shuffled(pages: usize) -> Vec<i32> {
    let mut order: Vec<i32> = (0..pages as i32).collect();
    order.shuffle(&mut StdRng::seed_from_u64(1));
    order
}

fn rows_equal(batch: &Batch, kv: &PagedKv<'_>) {
    for (b, pair) in batch.cu_seqlens_kv.windows(2).enumerate() {
        for token in 0..(pair[1] - pair[0]) as usize {
            for head in 0..batch.hkv {
                let at = ((pair[0] as usize + token) * batch.hkv + head) * 128;
                for (tensor, from) in [(KvTensor::K, &batch.k), (KvTensor::V, &batch.v)] {
                    let row = kv.row(tensor, b, head, token).expect("a token with a page");
                    let bits = |row: &[F8E4M3]| row.iter().map(F8E4M3::to_bits).collect::<Vec<_>>();
                    assert_eq!(bits(row), bits(&from[at..at + 128]), "{tensor:?} of request {b}, head {head}, token {token}");
                }
            }
        }
    }
}

#[rstest]
fn rows_are_the_contiguous_rows(
    #[values(16, 32, 64, 128, 256)] page_size: usize,
    #[values(PageLayout::Nhd, PageLayout::Hnd)] layout: PageLayout,
    #[values(false, true)] permuted: bool,
) {
    let batch = Batch::random(1, 3, 3, &[(1, 1), (0, 0), (127, 127), (128, 128), (129, 300)]);
    let order = shuffled(60);
    let paged = batch.paged(page_size, layout, permuted.then_some(&order[..]));
    paged.view().validate(&batch.geometry(true, None)).unwrap();
    rows_equal(&batch, &paged.view());
    // Whole 128-token blocks of the longest request have entries, used or not.
    assert!(paged.table_stride * page_size >= 384);
}

/// Pages with the f32 scales of their tokens behind the rows, as strided views of such pools have them.
#[test]
fn strides_may_leave_gaps() {
    let batch = Batch::random(2, 2, 2, &[(100, 100)]);
    let dense = batch.paged(32, PageLayout::Nhd, None);
    let (rows, page) = (32 * 2 * 128, 33 * 2 * 128);
    let spread = |from: &[F8E4M3]| {
        let mut to = vec![F8E4M3::from_bits(0x7F); 4 * page];
        from.chunks(rows).zip(to.chunks_mut(page)).for_each(|(from, to)| to[..rows].copy_from_slice(from));
        to
    };
    let (k, v) = (spread(&dense.k_pages), spread(&dense.v_pages));
    let strides = PageStrides { page: page as i64, ..dense.strides };
    let view = PagedKv { k_pages: &k, v_pages: &v, k_strides: strides, v_strides: strides, ..dense.view() };
    view.validate(&batch.geometry(true, None)).unwrap();
    rows_equal(&batch, &view);
}

#[test]
fn rows_outside_are_none() {
    let batch = Batch::random(3, 2, 2, &[(100, 100), (10, 10)]);
    let paged = batch.paged(64, PageLayout::Nhd, None);
    let view = paged.view();
    for (request, head, token) in [(2, 0, 0), (0, 2, 0), (0, 0, 128), (1, 0, 64), (0, 0, usize::MAX), (usize::MAX, 0, 0)] {
        assert!(view.row(KvTensor::K, request, head, token).is_none(), "request {request}, head {head}, token {token}");
    }
    for entry in [-1, 3, i32::MAX, i32::MIN] {
        let table = [entry, 1, 2, -1];
        assert!(PagedKv { table: &table, ..view }.row(KvTensor::V, 0, 0, 0).is_none());
    }
    let huge = PageStrides { page: i64::MAX, token: i64::MAX, head: i64::MAX };
    assert!(PagedKv { k_strides: huge, ..view }.row(KvTensor::K, 0, 1, 65).is_none());
    assert!(PagedKv { page_size: 0, ..view }.row(KvTensor::K, 0, 0, 0).is_none());
}

#[test]
fn bad_views_are_named() {
    let batch = Batch::random(4, 2, 2, &[(100, 100), (10, 10)]);
    let geometry = batch.geometry(true, None);
    let paged = batch.paged(64, PageLayout::Hnd, None);
    let view = paged.view();
    let named = |view: PagedKv<'_>| match view.validate(&geometry) {
        Err(Error::Shape { tensor: name, .. } | Error::Value { name, .. }) => name,
        other => panic!("{other:?}"),
    };
    assert_eq!(named(PagedKv { page_size: 48, ..view }), "page_size");
    assert_eq!(named(PagedKv { page_size: 0, ..view }), "page_size");
    assert_eq!(named(PagedKv { table: &[0, 3, 1, -1], ..view }), "page_table");
    assert_eq!(named(PagedKv { table: &[0, -1, 1, -1], ..view }), "page_table");
    assert_eq!(named(PagedKv { table: &[0, 1], ..view }), "page_table");
    assert_eq!(named(PagedKv { table_stride: 1, ..view }), "page_table");
    assert_eq!(named(PagedKv { table_stride: usize::MAX, ..view }), "page_table");
    assert_eq!(named(PagedKv { k_pages: &paged.k_pages[1..], ..view }), "k_pages");
    assert_eq!(named(PagedKv { v_pages: &[], ..view }), "v_pages");
    assert_eq!(named(PagedKv { v_strides: PageStrides { token: -128, ..paged.strides }, ..view }), "v_pages");
    assert_eq!(named(PagedKv { pages: 99, ..view }), "k_pages");
    // An entry no request uses may hold anything.
    PagedKv { table: &[0, 1, 2, 12345], ..view }.validate(&geometry).unwrap();
}

#[test]
fn page_tables_are_checked_against_the_pool() {
    let geometry = Batch::random(6, 1, 1, &[(100, 100), (10, 10)]).geometry(true, None);
    let table = |entries: &[i32], stride| PageTable { entries: entries.to_vec(), stride }.validate(&geometry, 64, 3);
    table(&[0, 1, 2, -1], 2).unwrap();
    for (entries, stride) in [(&[0, 3, 1, -1], 2), (&[0, -1, 1, -1], 2), (&[0, 1, 2, -1], 1), (&[0, 1, 2, -1], usize::MAX)] {
        match table(entries, stride) {
            Err(Error::Shape { tensor: name, .. } | Error::Value { name, .. }) => assert_eq!(name, "page_table"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn strides_that_do_not_fit_are_refused_later() {
    for layout in [PageLayout::Nhd, PageLayout::Hnd] {
        let strides = layout.strides(1 << 60, 256);
        assert_eq!(strides.page, i64::MAX);
        assert!(PagedTensors::build(&[], &[], 1 << 56, &[0, 0], 256, layout, None).is_ok_and(|paged| paged.pages == 0));
    }
}

#[test]
fn bad_pagings_are_refused() {
    let batch = Batch::random(5, 1, 1, &[(100, 100)]);
    let build =
        |page_size, cu: &[i32], order: Option<&[i32]>| PagedTensors::build(&batch.k, &batch.v, 1, cu, page_size, PageLayout::Nhd, order);
    assert!(matches!(build(100, &[0, 100], None), Err(Error::Value { name: "page_size", .. })));
    assert!(matches!(build(64, &[0, 99], None), Err(Error::Shape { tensor: "k", .. })));
    assert!(matches!(build(64, &[0, -1], None), Err(Error::Value { name: "cu_seqlens_kv", .. })));
    assert!(matches!(build(64, &[0, 100], Some(&[0])), Err(Error::OutOfPages { needed: 2, free: 1, total: 1 })));
    for order in [[0, 0], [0, 2], [-1, 0]] {
        assert!(matches!(build(64, &[0, 100], Some(&order)), Err(Error::Value { name: "page order", .. })), "{order:?}");
    }
    let v = &batch.v[..128];
    assert!(matches!(PagedTensors::build(&batch.k, v, 1, &[0, 100], 64, PageLayout::Nhd, None), Err(Error::Shape { tensor: "v", .. })));
}

#[test]
fn an_empty_batch_has_no_pages() {
    let paged = PagedTensors::build(&[], &[], 4, &[0], 64, PageLayout::Nhd, None).unwrap();
    assert_eq!((paged.pages, paged.table.len()), (0, 0));
    paged.view().validate(&Geometry::new(&[0], &[0], &[], true, None).unwrap()).unwrap();
}
