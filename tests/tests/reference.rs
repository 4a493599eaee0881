//! The CPU backend: summaries, append and attention against loops over the contiguous tensors.

use float8::F8E4M3;
use half::bf16;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rstest::rstest;
use stem_attn::kv::layout::{KvTensor, PageLayout};
use stem_attn::reference::{self, AttendInputs, error::relative};
use stem_attn::{BlockLists, Error, Geometry, PrefillOptions, PrefillOutput, Preset, Schedule, Selection, StemConfig, fp8};
use stem_attn_kernels::layout::v_tile_offset;
use stem_attn_tests::batch::Batch;

/// Attention of one query token and head over the listed keys, in f64, and what the kernel's roundings may change.
struct Row {
    out: Vec<f64>,
    lse: f64,
    bound: Vec<f64>,
}

/// The definition: logits of every key, softmax, weighted values. `keeps(key block)` says which blocks are attended to.
fn naive_row(batch: &Batch, b: usize, t: usize, head: usize, causal: bool, keeps: impl Fn(i32) -> bool) -> Row {
    let (q0, q1) = (batch.cu_seqlens_q[b] as usize, batch.cu_seqlens_q[b + 1] as usize);
    let (k0, k1) = (batch.cu_seqlens_kv[b] as usize, batch.cu_seqlens_kv[b + 1] as usize);
    let kv_head = head / (batch.hq / batch.hkv);
    let value = |x: &F8E4M3| f64::from(fp8::decode(*x));
    let (k_scale, v_scale) = (f64::from(batch.k_scale[kv_head]), f64::from(batch.v_scale[kv_head]));
    let at = (q0 + t) * batch.hq + head;
    let query: Vec<f64> = batch.q[at * 128..][..128].iter().map(|x| value(x) * f64::from(batch.q_scale[at])).collect();
    let position = (k1 - k0) as isize - (q1 - q0) as isize + t as isize;
    let keys: Vec<usize> = (0..k1 - k0).filter(|&u| keeps((u / 128) as i32) && (!causal || u as isize <= position)).collect();
    let row = |u: usize| ((k0 + u) * batch.hkv + kv_head) * 128;
    let logits: Vec<f64> = keys
        .iter()
        .map(|&u| query.iter().zip(&batch.k[row(u)..]).map(|(q, k)| q * value(k) * k_scale).sum::<f64>() / 128f64.sqrt())
        .collect();
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|l| (l - max).exp()).sum();
    let (mut out, mut bound) = (vec![0f64; 128], vec![0f64; 128]);
    for (&u, logit) in keys.iter().zip(&logits) {
        let p = (logit - max).exp();
        for ((out, bound), v) in out.iter_mut().zip(&mut bound).zip(&batch.v[row(u)..]) {
            *out += p / sum * value(v) * v_scale;
            // e4m3 of P * 2^8: half a step is 1/16 of P, or 2^-10 where P is subnormal. f32 elsewhere: far below 2^-12.
            *bound += ((p / 16.0).max(2f64.powi(-18)) + p * 2f64.powi(-12)) / sum * (value(v) * v_scale).abs();
        }
    }
    for (bound, out) in bound.iter_mut().zip(&out) {
        *bound += (out.abs() + *bound) * 2f64.powi(-8) + 1e-30;
    }
    let lse = if keys.is_empty() { f64::NEG_INFINITY } else { max + sum.ln() };
    Row { out, lse, bound }
}

/// Checks a prefill's output and LSE row by row, and returns its relative error.
fn check(batch: &Batch, output: &PrefillOutput, causal: bool) -> f64 {
    let geometry = batch.geometry(causal, None);
    let lse = output.lse.as_ref().unwrap();
    let (mut got, mut exact) = (Vec::new(), Vec::new());
    for row in 0..geometry.total_qb() {
        let (block, request) = geometry.row(row).unwrap();
        for t in geometry.tokens(row) {
            for head in 0..batch.hq {
                let list = output.lists.row(head, row);
                let naive = naive_row(batch, block.request as usize, t, head, causal, |b| list.contains(&b));
                let at = (request.q_start as usize + t) * batch.hq + head;
                for d in 0..128 {
                    let x = output.out[at * 128 + d].to_f64();
                    assert!(
                        (x - naive.out[d]).abs() <= naive.bound[d],
                        "row {row}, token {t}, head {head}, {d}: {x}, exact {}, bound {}",
                        naive.out[d],
                        naive.bound[d]
                    );
                    got.push(x);
                }
                let close = lse[at] == naive.lse as f32 || (f64::from(lse[at]) - naive.lse).abs() < 1e-4;
                assert!(close, "row {row}, token {t}, head {head}: LSE {}, exact {}", lse[at], naive.lse);
                exact.extend(naive.out);
            }
        }
    }
    relative(&got, &exact)
}

fn run(batch: &Batch, selection: Selection<'_>, causal: bool, page_size: usize) -> PrefillOutput {
    let options = PrefillOptions { page_size, causal, lse: true, ..Default::default() };
    reference::prefill(&batch.inputs(), selection, &options).unwrap()
}

#[rstest]
#[case::one_token(1, 1, &[(1, 1)])]
#[case::below_a_block(2, 1, &[(127, 127)])]
#[case::a_block(2, 2, &[(128, 128)])]
#[case::above_a_block(3, 1, &[(129, 129)])]
#[case::unaligned_history(4, 2, &[(100, 333)])]
#[case::one_token_after_history(8, 1, &[(1, 300)])]
#[case::aligned_history(2, 1, &[(130, 386)])]
#[case::ragged(2, 1, &[(5, 5), (0, 0), (0, 200), (129, 257), (1, 129), (128, 300)])]
fn dense_attention_is_the_definition(
    #[case] hq: usize,
    #[case] hkv: usize,
    #[case] lens: &[(usize, usize)],
    #[values(true, false)] causal: bool,
    #[values(16, 64, 256)] page_size: usize,
) {
    let batch = Batch::random(1, hq, hkv, lens);
    let output = run(&batch, Selection::Dense, causal, page_size);
    let error = check(&batch, &output, causal);
    assert!(error < 0.03, "{error}");
    assert_eq!(output.lists, BlockLists::dense(hq, &batch.geometry(causal, None)).unwrap());
    assert!(output.scores.is_none());
}

#[rstest]
fn any_lists_are_attended_to(#[values(true, false)] causal: bool) {
    let batch = Batch::random(2, 4, 2, &[(400, 700), (0, 64), (300, 300)]);
    let geometry = batch.geometry(causal, None);
    let mut rng = StdRng::seed_from_u64(3);
    let rows: Vec<Vec<i32>> = (0..4 * geometry.total_qb())
        .map(|row| (0..geometry.candidates(row % geometry.total_qb()) as i32).filter(|_| rng.random_bool(0.4)).collect())
        .collect();
    assert!(rows.iter().any(Vec::is_empty) && rows.iter().any(|row| row.len() > 2), "empty and full rows");
    let lists = BlockLists::from_rows(4, geometry.total_qb(), 1, &rows).unwrap();
    let output = run(&batch, Selection::Lists(&lists), causal, 32);
    check(&batch, &output, causal);
    assert_eq!(output.lists, lists);
    for (row, list) in rows.iter().enumerate().filter(|(_, list)| list.is_empty()) {
        let (head, row) = (row / geometry.total_qb(), row % geometry.total_qb());
        let first = geometry.row(row).unwrap().1.q_start as usize;
        for t in geometry.tokens(row).map(|t| (first + t) * 4 + head) {
            assert!(output.out[t * 128..(t + 1) * 128].iter().all(|x| x.to_bits() == 0), "{list:?} gives zeros");
            assert_eq!(output.lse.as_ref().unwrap()[t], f32::NEG_INFINITY);
        }
    }
}

#[test]
fn stem_selects_and_attends() {
    let batch = Batch { prompt_lens: vec![900, 2000], ..Batch::random(4, 2, 1, &[(900, 900), (250, 777)]) };
    let config = StemConfig {
        schedule: Schedule::Ratio { ratio: 0.2, floor: 1 },
        sink: 1,
        window: 1,
        alpha: 0.7,
        ..StemConfig::preset(Preset::Hpc)
    };
    let output = run(&batch, Selection::Stem(&config), true, 64);
    check(&batch, &output, true);
    let geometry = batch.geometry(true, Some(&config));
    output.lists.validate(2, &geometry).unwrap();
    assert!(output.lists.density(&geometry) < 0.8, "{}", output.lists.density(&geometry));
    assert_eq!(output.scores.unwrap().len(), 2 * geometry.total_qb() * output.score_stride);
}

#[test]
fn nothing_in_nothing_out() {
    let batch = Batch::random(5, 2, 1, &[]);
    for selection in [Selection::Dense, Selection::Stem(&StemConfig::preset(Preset::Hpc))] {
        let output = run(&batch, selection, true, 64);
        assert!(output.out.is_empty() && output.lse.unwrap().is_empty() && output.lists.counts.is_empty());
    }
}

#[test]
fn dense_rows_are_the_definition() {
    let batch = Batch::random(6, 4, 2, &[(40, 200), (0, 9), (0, 0), (150, 150)]);
    for causal in [true, false] {
        let rows = [0, 39, 40, 189, 100];
        let got = reference::dense_rows(&batch.inputs(), causal, &rows).unwrap();
        for (i, &row) in rows.iter().enumerate() {
            let (b, t) = if row < 40 { (0, row) } else { (3, row - 40) };
            for head in 0..4 {
                let naive = naive_row(&batch, b, t, head, causal, |_| true);
                let error = relative(&got[(i * 4 + head) * 128..][..128], &naive.out);
                assert!(error < 1e-12, "row {row}, head {head}: {error}");
            }
        }
    }
    assert!(matches!(reference::dense_rows(&batch.inputs(), true, &[190]), Err(Error::Value { name: "rows", .. })));
}

fn attend_inputs<'a>(batch: &'a Batch, kv: stem_attn::kv::layout::PagedKv<'a>, geometry: &'a Geometry) -> AttendInputs<'a> {
    AttendInputs {
        q: &batch.q,
        q_scale: &batch.q_scale,
        kv,
        k_scale: &batch.k_scale,
        v_scale: &batch.v_scale,
        hq: batch.hq,
        geometry,
        lists: None,
        softmax_scale: reference::default_softmax_scale(),
    }
}

#[test]
fn f64_attention_is_exact_and_the_model_is_not() {
    let batch = Batch::random(7, 2, 1, &[(200, 500)]);
    let (geometry, paged) = (batch.geometry(true, None), batch.paged(64, PageLayout::Nhd, None));
    let inputs = attend_inputs(&batch, paged.view(), &geometry);
    let exact = reference::attend_f64(&inputs).unwrap();
    let naive: Vec<f64> = (0..200).flat_map(|t| (0..2).flat_map(move |head| [(t, head)])).fold(Vec::new(), |mut all, (t, head)| {
        let row = naive_row(&batch, 0, t, head, true, |_| true);
        assert!((exact.lse[t * 2 + head] - row.lse).abs() < 1e-12);
        all.extend(row.out);
        all
    });
    assert!(relative(&exact.out, &naive) < 1e-13);
    let model = reference::attend_model(&inputs).unwrap();
    let error = relative(&model.out, &naive);
    assert!((0.015..0.03).contains(&error), "rounding P to e4m3 costs about 0.026 on random data: {error}");
}

/// A prompt fed in chunks, cut anywhere, attends bit for bit as the whole: blocks are cut from the absolute position.
#[test]
fn chunks_attend_as_the_whole() {
    let whole = Batch::random(8, 2, 2, &[(600, 600)]);
    let all = run(&whole, Selection::Dense, true, 64);
    let mut start = 0;
    for end in [77, 128, 333, 600] {
        let chunk = Batch {
            q: whole.q[start * 256..end * 256].to_vec(),
            q_scale: whole.q_scale[start * 2..end * 2].to_vec(),
            k: whole.k[..end * 256].to_vec(),
            v: whole.v[..end * 256].to_vec(),
            cu_seqlens_q: vec![0, (end - start) as i32],
            cu_seqlens_kv: vec![0, end as i32],
            ..whole.clone()
        };
        assert_eq!(run(&chunk, Selection::Dense, true, 64).out, all.out[start * 256..end * 256], "{start}..{end}");
        start = end;
    }
}

/// Page size, layout and order, and whatever unowned elements of a page hold, change nothing.
#[rstest]
fn pages_do_not_matter(#[values(16, 128, 256)] page_size: usize, #[values(PageLayout::Nhd, PageLayout::Hnd)] layout: PageLayout) {
    let batch = Batch::random(9, 2, 2, &[(100, 300), (70, 70)]);
    let geometry = batch.geometry(false, None);
    let plain = batch.paged(64, PageLayout::Nhd, None);
    let order: Vec<i32> = (0..40).rev().collect();
    let mut paged = batch.paged(page_size, layout, Some(&order));
    let owned: std::collections::HashSet<usize> = {
        let (view, base) = (paged.view(), paged.k_pages.as_ptr() as usize);
        let rows = [(0, 300), (1, 70)].into_iter().flat_map(|(b, len)| (0..len).flat_map(move |t| [(b, 0, t), (b, 1, t)]));
        rows.map(|(b, head, t)| view.row(KvTensor::K, b, head, t).unwrap().as_ptr() as usize - base).collect()
    };
    for at in (0..paged.k_pages.len()).step_by(128).filter(|at| !owned.contains(at)) {
        paged.k_pages[at..at + 128].fill(F8E4M3::from_bits(0x7F));
        paged.v_pages[at..at + 128].fill(F8E4M3::from_bits(0x7F));
    }
    let a = reference::attend_model(&attend_inputs(&batch, plain.view(), &geometry)).unwrap();
    let b = reference::attend_model(&attend_inputs(&batch, paged.view(), &geometry)).unwrap();
    assert_eq!(a, b);
    let a = reference::summarize_kv(&plain.view(), &geometry, &batch.k_scale, &batch.v_scale).unwrap();
    let b = reference::summarize_kv(&paged.view(), &geometry, &batch.k_scale, &batch.v_scale).unwrap();
    let bits = |codes: &[F8E4M3]| codes.iter().map(F8E4M3::to_bits).collect::<Vec<_>>();
    assert_eq!((a.k_sums, a.run_norms, bits(&a.v_tiles)), (b.k_sums, b.run_norms, bits(&b.v_tiles)));
}

#[test]
fn summaries_of_every_key_block() {
    let batch = Batch::random(10, 2, 2, &[(10, 300), (0, 0), (17, 17)]);
    let (geometry, paged) = (batch.geometry(true, None), batch.paged(32, PageLayout::Hnd, None));
    let summaries = reference::summarize_kv(&paged.view(), &geometry, &batch.k_scale, &batch.v_scale).unwrap();
    let total_kb = geometry.total_kb();
    for head in 0..2 {
        for (i, block) in geometry.key_blocks.iter().enumerate() {
            let start = batch.cu_seqlens_kv[block.request as usize] as usize;
            let len = geometry.requests[block.request as usize].kv_len as usize;
            let at =
                |t: usize| (block.block as usize * 128 + t < len).then_some(((start + block.block as usize * 128 + t) * 2 + head) * 128);
            for d in 0..128 {
                for g in 0..16 {
                    // The rounding is part of the contract: one a token, in order.
                    let sum = (0..8)
                        .filter_map(|r| at(g + 16 * r))
                        .fold(0f32, |sum, at| batch.k_scale[head].mul_add(fp8::decode(batch.k[at + d]), sum));
                    assert_eq!(
                        summaries.k_sums[((head * total_kb + i) * 16 + 15 - g) * 128 + d],
                        bf16::from_f32(sum),
                        "block {i}, group {g}"
                    );
                }
                for t in 0..128 {
                    let code = summaries.v_tiles[(i * 2 + head) * 16384 + v_tile_offset(d, t)];
                    assert_eq!(code.to_bits(), at(t).map_or(0, |at| batch.v[at + d].to_bits()), "block {i}, token {t}");
                }
            }
            for run in 0..8 {
                let norm = |at: usize| batch.v[at..at + 128].iter().map(|&v| f64::from(fp8::decode(v)).powi(2)).sum::<f64>().sqrt();
                let largest = (16 * run..16 * run + 16).filter_map(at).map(norm).fold(0.0, f64::max) * f64::from(batch.v_scale[head]);
                let got = f64::from(summaries.run_norms[(head * total_kb + i) * 8 + run]);
                assert!((got - (largest + 1e-6).ln()).abs() < 1e-5, "block {i}, run {run}: {got}");
            }
        }
    }
}

#[test]
fn append_writes_the_new_tokens_only() {
    let batch = Batch::random(11, 2, 2, &[(30, 100), (0, 20), (64, 64)]);
    let geometry = batch.geometry(true, None);
    let before = batch.paged(64, PageLayout::Nhd, None);
    let mut pages = before.clone();
    let (k, v): (Vec<_>, Vec<_>) =
        (0..94 * 256).map(|i| (bf16::from_f32((i % 977) as f32 * 0.01 - 5.0), bf16::from_f32((i % 311) as f32))).unzip();
    reference::append_kv(&k, &v, &geometry, &batch.k_scale, &[0.5], &mut pages).unwrap();
    for (b, (new, len)) in [(30, 100), (0, 20), (64, 64)].into_iter().enumerate() {
        for (token, head) in (0..len).flat_map(|token| [(token, 0), (token, 1)]) {
            for (tensor, rows, scale) in [(KvTensor::K, &k, batch.k_scale[head]), (KvTensor::V, &v, 0.5)] {
                let got = pages.view().row(tensor, b, head, token).unwrap().map(|x| x.to_bits());
                let want = match (token + new).checked_sub(len) {
                    None => before.view().row(tensor, b, head, token).unwrap().map(|x| x.to_bits()),
                    Some(t) => {
                        let at = ((geometry.requests[b].q_start as usize + t) * 2 + head) * 128;
                        std::array::from_fn(|d| fp8::encode(rows[at + d].to_f32() * (1.0 / scale)).to_bits())
                    }
                };
                assert_eq!(got, want, "{tensor:?} of request {b}, head {head}, token {token}");
            }
        }
    }
    assert!(matches!(reference::append_kv(&k[1..], &v, &geometry, &[1.0], &[1.0], &mut pages), Err(Error::Shape { tensor: "k", .. })));
    assert!(matches!(reference::append_kv(&k, &v, &geometry, &[1.0], &[1.0; 3], &mut pages), Err(Error::Shape { tensor: "v_scale", .. })));
}

#[test]
fn relative_error() {
    assert_eq!(relative(&[3.0f64, 4.0], &[3.0f64, 4.0]), 0.0);
    assert_eq!(relative(&[0f32; 2], &[0f64; 2]), 0.0);
    assert!((relative(&[3.0f32, 4.5], &[3.0f64, 4.0]) - 0.1).abs() < 1e-12);
    assert!(relative(&[1f32], &[0f64]).is_infinite() && relative(&[f32::NAN], &[1f64]).is_nan() && relative(&[1f32], &[1f64; 2]).is_nan());
}

#[test]
fn a_nan_reaches_the_rows_that_see_it_and_no_other() {
    let mut batch = Batch::random(12, 1, 1, &[(300, 300)]);
    batch.v[200 * 128] = F8E4M3::from_bits(0x7F);
    let output = run(&batch, Selection::Dense, true, 64);
    for t in 0..300 {
        assert_eq!(
            output.out[t * 128].is_nan(),
            t >= 128 && t / 128 * 128 + 128 > 200,
            "token {t}: the block's product reads the whole tile"
        );
        assert!(!output.out[t * 128 + 1].is_nan());
    }
}
