//! Block lists: byte masks, compressed rows, and the checks on lists from outside.

use proptest::prelude::*;
use rstest::rstest;
use stem_attn::mask::Csr;
use stem_attn::{BlockLists, Error, Geometry};
use stem_attn_tests::batch::offsets;

/// Two requests: query blocks see 2, 3 and 1, 2 key blocks when causal.
fn geometry(causal: bool) -> Geometry {
    Geometry::new(&offsets([172, 150]), &offsets([300, 150]), &[300, 150], causal, None).unwrap()
}

fn lists(rows: &[&[i32]]) -> BlockLists {
    BlockLists::from_rows(1, rows.len(), 4, rows).unwrap()
}

#[test]
fn dense_lists_hold_every_visible_block() {
    let causal = BlockLists::dense(2, &geometry(true)).unwrap();
    for head in 0..2 {
        let rows: Vec<_> = (0..4).map(|row| causal.row(head, row)).collect();
        assert_eq!(rows, [&[0, 1][..], &[0, 1, 2], &[0], &[0, 1]]);
    }
    assert_eq!((causal.kept(), causal.density(&geometry(true))), (16, 1.0));
    let full = BlockLists::dense(1, &geometry(false)).unwrap();
    assert_eq!(full.counts, [3, 3, 2, 2]);
    assert_eq!(causal.row(2, 0), [] as [i32; 0], "no such head");
    assert_eq!(causal.row(0, 4), [] as [i32; 0], "no such row");
}

#[test]
fn a_mask_keeps_what_a_row_can_see() {
    // Every byte set, some to other values than 1: blocks above the diagonal or past the request are no blocks of the row.
    let mask: Vec<u8> = (0..2 * 4 * 5).map(|i| 1 + i as u8).collect();
    assert_eq!(BlockLists::from_mask(&mask, [2, 4, 5], 2, &geometry(true)).unwrap(), BlockLists::dense(2, &geometry(true)).unwrap());
    assert_eq!(BlockLists::from_mask(&mask, [2, 4, 5], 2, &geometry(false)).unwrap(), BlockLists::dense(2, &geometry(false)).unwrap());
    let none = BlockLists::from_mask(&[0; 12], [1, 4, 3], 1, &geometry(true)).unwrap();
    assert_eq!((none.kept(), none.density(&geometry(true))), (0, 0.0));
}

#[test]
fn heads_have_densities_of_their_own() {
    let geometry = geometry(true);
    let rows: Vec<Vec<i32>> = [&[0, 1][..], &[0, 1, 2], &[0], &[0, 1], &[1], &[], &[0], &[]].iter().map(|row| row.to_vec()).collect();
    let lists = BlockLists::from_rows(2, 4, 4, &rows).unwrap();
    assert_eq!(lists.head_densities(&geometry), [1.0, 0.25]);
    assert_eq!(lists.density(&geometry), 0.625);
}

#[test]
fn equality_ignores_capacity_and_padding() {
    let (a, mut b) = (lists(&[&[0, 1], &[2]]), BlockLists::from_rows(1, 2, 9, &[vec![0, 1], vec![2]]).unwrap());
    b.lists[5] = 77;
    assert_eq!(a, b);
    assert_ne!(a, lists(&[&[0, 1], &[1]]));
    assert_ne!(a, lists(&[&[0, 1], &[]]));
}

proptest! {
    #[test]
    fn forms_round_trip(bytes in prop::collection::vec(0u8..2, 3 * 4 * 3), causal in any::<bool>()) {
        let geometry = geometry(causal);
        let lists = BlockLists::from_mask(&bytes, [3, 4, 3], 3, &geometry).unwrap();
        lists.validate(3, &geometry).unwrap();
        let mask = lists.to_mask(3).unwrap();
        let visible = |i: usize| i % 3 < geometry.candidates(i / 3 % 4);
        for (i, (&got, &byte)) in mask.iter().zip(&bytes).enumerate() {
            prop_assert_eq!(got, if visible(i) { byte } else { 0 });
        }
        prop_assert_eq!(&BlockLists::from_mask(&mask, [3, 4, 3], 3, &geometry).unwrap(), &lists);
        let csr = lists.to_csr();
        prop_assert_eq!(csr.indptr.len(), 13);
        prop_assert_eq!(csr.indices.len() as u64, lists.kept());
        prop_assert_eq!(&csr.indices[csr.indptr[5] as usize..csr.indptr[6] as usize], lists.row(1, 1));
        prop_assert_eq!(&BlockLists::from_csr(&csr, 3, 4).unwrap(), &lists);
        prop_assert_eq!(lists.kept(), mask.iter().map(|&b| u64::from(b)).sum::<u64>());
    }
}

#[rstest]
#[case::heads([2, 4, 3], 24)]
#[case::rows([1, 3, 3], 9)]
#[case::columns([1, 4, 2], 8)]
#[case::bytes([1, 4, 3], 11)]
#[case::overflow([1, 4, usize::MAX], 12)]
fn a_mask_of_another_shape_is_refused(#[case] shape: [usize; 3], #[case] bytes: usize) {
    let result = BlockLists::from_mask(&vec![1; bytes], shape, 1, &geometry(true));
    assert!(matches!(result, Err(Error::Shape { tensor: "block_mask", .. })), "{result:?}");
}

#[rstest]
#[case::short(Csr { indptr: vec![0, 1], indices: vec![0] })]
#[case::start(Csr { indptr: vec![1, 1, 1, 1, 1], indices: vec![0] })]
#[case::end(Csr { indptr: vec![0, 0, 0, 0, 2], indices: vec![0] })]
#[case::falls(Csr { indptr: vec![0, 2, 1, 1, 2], indices: vec![0, 1] })]
#[case::beyond(Csr { indptr: vec![0, i64::MAX, 1, 1, 1], indices: vec![0] })]
#[case::negative(Csr { indptr: vec![0, -1, 0, 1, 1], indices: vec![0] })]
fn bad_compressed_rows_are_refused(#[case] csr: Csr) {
    match BlockLists::from_csr(&csr, 1, 4) {
        Err(Error::Shape { tensor: "indptr", .. } | Error::Value { name: "indptr", .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[rstest]
#[case::fine(lists(&[&[0, 1], &[0, 2], &[], &[1]]), None)]
#[case::above_the_diagonal(lists(&[&[0, 2], &[], &[], &[]]), Some("lists"))]
#[case::other_request(lists(&[&[0], &[0], &[0], &[0, 2]]), Some("lists"))]
#[case::negative(lists(&[&[-1], &[], &[], &[]]), Some("lists"))]
#[case::falls(lists(&[&[1, 0], &[], &[], &[]]), Some("lists"))]
#[case::repeats(lists(&[&[1, 1], &[], &[], &[]]), Some("lists"))]
#[case::rows(lists(&[&[0], &[0]]), Some("lists"))]
#[case::heads(BlockLists::dense(2, &geometry(true)).unwrap(), Some("lists"))]
#[case::count(BlockLists { counts: vec![5, 0, 0, 0], ..lists(&[&[], &[], &[], &[]]) }, Some("counts"))]
#[case::negative_count(BlockLists { counts: vec![-1, 0, 0, 0], ..lists(&[&[], &[], &[], &[]]) }, Some("counts"))]
#[case::counts(BlockLists { counts: vec![0; 3], ..lists(&[&[], &[], &[], &[]]) }, Some("counts"))]
#[case::storage(BlockLists { lists: vec![0; 3], ..lists(&[&[], &[], &[], &[]]) }, Some("lists"))]
#[case::overflow(BlockLists { stride: usize::MAX, ..lists(&[&[], &[], &[], &[]]) }, Some("lists"))]
fn lists_from_outside_are_checked(#[case] lists: BlockLists, #[case] named: Option<&str>) {
    match (lists.validate(1, &geometry(true)), named) {
        (Ok(()), None) => {}
        (Err(Error::Shape { tensor: name, .. } | Error::Value { name, .. }), Some(named)) => assert_eq!(name, named),
        (got, _) => panic!("{got:?}"),
    }
    // Whatever the lists hold, reading them is safe.
    for row in 0..5 {
        let _ = (lists.row(0, row), lists.row(1, row));
    }
    let _ = (lists.to_csr(), lists.to_mask(2).unwrap());
}

#[test]
fn blocks_above_the_diagonal_are_fine_when_not_causal() {
    lists(&[&[0, 2], &[], &[], &[]]).validate(1, &geometry(false)).unwrap();
}
