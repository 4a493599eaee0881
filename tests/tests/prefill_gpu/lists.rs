//! Lists written straight to device memory, unseen by `upload_lists`.

use super::{Case, RANDOM, RANDOM_ROW};
use rstest::rstest;
use stem_attn::driver::buffer;
use stem_attn::{BlockLists, Geometry, Selection};
use stem_attn_tests::batch::Batch;
use stem_attn_tests::gpu::backend;

/// As many as there are kinds of lists: every row has each kind in one head.
const HQ: usize = 6;

/// Shorter than what long rows can see, longer than what short ones can.
const STRIDE: usize = 5;

/// A list in device memory and what it stands for.
struct Row {
    count: i32,
    entries: Vec<i32>,
    /// The valid list with the same result; `None` where there is none: the row only has to come out finite.
    like: Option<Vec<i32>>,
}

/// The list of one row, which can see `visible` of the `kb_len` blocks of its request.
fn row(kind: usize, turn: usize, visible: i32, kb_len: i32) -> Row {
    let most = visible.min(STRIDE as i32);
    let outside = [-1, i32::MIN, i32::MAX, visible, kb_len, kb_len + 1, 1 << 24, -visible][turn % 8];
    let ascending = || (0..most).collect::<Vec<_>>();
    let last = |end: i32| ascending().into_iter().take(most as usize - 1).chain([end]).collect::<Vec<_>>();
    let some = || (0..most).filter(|j| j % 2 == (visible - 1) % 2).collect::<Vec<_>>();
    let (count, mut entries, like) = match kind {
        // Valid, what lies past the count is not.
        0 => (some().len() as i32, some(), Some(some())),
        1 => ([0, -1, i32::MIN, -(STRIDE as i32)][turn % 4], ascending(), Some(vec![])),
        // Counts past what the row can see, past the capacity, past the buffer.
        2 => ([most + 1, STRIDE as i32 + 1, 1 << 20, i32::MAX][turn % 4], ascending(), Some(ascending())),
        // An index outside becomes the last visible block.
        3 => (most, last(outside), Some(last(visible - 1))),
        4 => ([1, most, i32::MAX][turn % 3], vec![], None),
        // Blocks that the row can see, falling.
        _ => (i32::MAX, (0..most).map(|j| (visible - 1 - j).max(0)).collect(), None),
    };
    entries.resize(STRIDE, outside);
    Row { count, entries, like }
}

/// Rows in the order of the lists.
fn rows(geometry: &Geometry) -> Vec<Row> {
    let row_of = |i: usize| {
        let (head, at) = (i / geometry.total_qb(), i % geometry.total_qb());
        let (_, request) = geometry.row(at).expect("a row");
        row((at + head) % HQ, at, geometry.candidates(at) as i32, request.kb_len)
    };
    (0..HQ * geometry.total_qb()).map(row_of).collect()
}

#[rstest]
fn lists_from_device_memory_cannot_leave_the_buffers(#[values(true, false)] causal: bool) {
    let Some(gpu) = backend() else { return };
    let stream = gpu.stream();
    let batch = Batch::random(41, HQ, 2, &[(200, 200), (0, 300), (1, 1), (129, 517), (300, 1000), (128, 256), (1, 2049)]);
    let geometry = batch.geometry(causal, None);
    let rows = rows(&geometry);
    // The same batch with the lists that the valid rows have and the others stand for; nothing where they stand for none.
    let like: Vec<Vec<i32>> = rows.iter().map(|row| row.like.clone().unwrap_or_default()).collect();
    let like = BlockLists::from_rows(HQ, geometry.total_qb(), STRIDE, &like).expect("lists");
    let case = Case { causal, ..Case::new(&batch, Selection::Lists(&like)) };
    let want = case.check(gpu, RANDOM, RANDOM_ROW);

    let mut inputs = case.upload(gpu);
    let plan = case.plan(gpu, &inputs);
    let lists: Vec<i32> = rows.iter().flat_map(|row| row.entries.iter().copied()).collect();
    let counts: Vec<i32> = rows.iter().map(|row| row.count).collect();
    let upload = |data: &[i32]| buffer::upload(stream, data).expect("upload");
    inputs.set_lists(Some((upload(&lists), upload(&counts))));
    let got = case.launch(gpu, &plan, &inputs);

    let mut seen = [0; 3];
    for (i, row) in rows.iter().enumerate() {
        let (head, at) = (i / geometry.total_qb(), i % geometry.total_qb());
        let (_, request) = geometry.row(at).expect("a row");
        for token in geometry.tokens(at) {
            let at = (request.q_start as usize + token) * HQ + head;
            let (out, lse) = (&got.out[at * 128..][..128], got.lse[at]);
            let name = format!("row {i}, token {token}, count {}, list {:?}", row.count, row.entries);
            // What nobody wrote is NaN.
            assert!(out.iter().all(|x| x.is_finite()), "{name}: {out:?}");
            if row.count <= 0 {
                assert!(out.iter().all(|x| x.to_bits() == 0) && lse == f32::NEG_INFINITY, "{name}: log-sum-exp {lse}");
                seen[0] += 1;
            } else {
                assert!(lse.is_finite(), "{name}: log-sum-exp {lse}");
            }
            if row.like.is_some() {
                assert!(out == &want.out[at * 128..][..128] && lse.to_bits() == want.lse[at].to_bits(), "{name}: not as its valid list");
                seen[1] += 1;
            } else {
                seen[2] += 1;
            }
        }
    }
    assert!(seen.iter().all(|&n| n > 0), "{seen:?}: the case is meant to have rows of every kind");
}
