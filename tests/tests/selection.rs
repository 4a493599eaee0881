//! Scores against token-pair sums, top-k against counting, and selection in chunks against selection at once.

use float8::F8E4M3;
use half::bf16;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rstest::rstest;
use stem_attn::reference::{self, ScoreInputs};
use stem_attn::{BlockLists, Error, Geometry, Guards, OamConfig, PrefillOptions, Preset, Schedule, Selection, StemConfig, TieRule, fp8};
use stem_attn_tests::batch::Batch;
use stem_attn_tests::budgets::{decayed_budget, hpc_start_value};

/// Small prompts that still have to choose.
fn choosy(alpha: f32) -> StemConfig {
    StemConfig { schedule: Schedule::Ratio { ratio: 0.3, floor: 2 }, alpha, sink: 1, window: 1, ..StemConfig::preset(Preset::Hpc) }
}

/// Scores of a batch, stage by stage.
fn scores_of(batch: &Batch, geometry: &Geometry, oam: &OamConfig) -> Vec<f32> {
    let paged = batch.paged(64, Default::default(), None);
    let summaries = reference::summarize_kv(&paged.view(), geometry, &batch.k_scale, &batch.v_scale).unwrap();
    let q_sums = reference::query_sums(&batch.q, &batch.q_scale, batch.hq, geometry).unwrap();
    let v_bias = reference::value_bias(&summaries.run_norms, batch.hkv, geometry, oam).unwrap();
    let inputs = ScoreInputs {
        q_sums: &q_sums,
        k_sums: &summaries.k_sums,
        v_bias: &v_bias,
        hq: batch.hq,
        hkv: batch.hkv,
        score_stride: geometry.max_kb.max(1),
    };
    reference::scores(&inputs, geometry, oam).unwrap()
}

/// Sum of q.k over the token pairs of a query block and a key block that lie on an anti-diagonal of the 16 x 16 stride
/// grid, and the bound of what rounding the group sums to bf16 can change.
fn antidiagonal(batch: &Batch, geometry: &Geometry, head: usize, row: usize, key_block: usize) -> (f64, f64) {
    let (block, request) = geometry.row(row).unwrap();
    let kv_head = head / (batch.hq / batch.hkv);
    let history = (request.kv_len - request.q_len) as usize;
    let kv_start = batch.cu_seqlens_kv[block.request as usize] as usize;
    let mut q_groups = vec![[0f64; 128]; 16];
    let mut k_groups = vec![[0f64; 128]; 16];
    let mut qk = 0f64;
    for t in 0..request.q_len as usize {
        if (history + t) / 128 != block.block as usize {
            continue;
        }
        let at = (request.q_start as usize + t) * batch.hq + head;
        for u in 128 * key_block..(request.kv_len as usize).min(128 * key_block + 128) {
            let k_at = ((kv_start + u) * batch.hkv + kv_head) * 128;
            if ((history + t) % 16) + (u % 16) == 15 {
                for d in 0..128 {
                    let q = f64::from(fp8::decode(batch.q[at * 128 + d])) * f64::from(batch.q_scale[at]);
                    let k = f64::from(fp8::decode(batch.k[k_at + d])) * f64::from(batch.k_scale[kv_head]);
                    qk += q * k;
                }
            }
        }
        for (sum, &q) in q_groups[(history + t) % 16].iter_mut().zip(&batch.q[at * 128..]) {
            *sum += f64::from(fp8::decode(q)) * f64::from(batch.q_scale[at]);
        }
    }
    for u in 128 * key_block..(request.kv_len as usize).min(128 * key_block + 128) {
        let k_at = ((kv_start + u) * batch.hkv + kv_head) * 128;
        for (sum, &k) in k_groups[u % 16].iter_mut().zip(&batch.k[k_at..]) {
            *sum += f64::from(fp8::decode(k)) * f64::from(batch.k_scale[kv_head]);
        }
    }
    let magnitude: f64 =
        (0..16).flat_map(|g| (0..128).map(move |d| (g, d))).map(|(g, d)| (q_groups[g][d] * k_groups[15 - g][d]).abs()).sum();
    // Each factor is within 2^-9 of itself, and a little for the f32 sums.
    (qk, magnitude * 2.2 * 2f64.powi(-9))
}

/// The value term from V itself.
fn value_term(batch: &Batch, geometry: &Geometry, oam: &OamConfig, kv_head: usize, request: usize, key_block: usize) -> f64 {
    let kv_len = geometry.requests[request].kv_len as usize;
    let start = batch.cu_seqlens_kv[request] as usize;
    let runs = kv_len.div_ceil(128) * 8;
    let log_norm = |run: usize| {
        let norm = |t: usize| {
            let row = &batch.v[((start + t) * batch.hkv + kv_head) * 128..][..128];
            row.iter().map(|&x| (f64::from(fp8::decode(x)) * f64::from(batch.v_scale[kv_head])).powi(2)).sum::<f64>().sqrt()
        };
        ((16 * run)..(16 * run + 16).min(kv_len)).map(norm).fold(0.0, f64::max)
    };
    let logs: Vec<(f64, bool)> = (0..runs).map(|run| ((log_norm(run) + 1e-6).ln(), 16 * run < kv_len)).collect();
    let counted: Vec<f64> = logs.iter().filter(|l| oam.count_empty_runs || l.1).map(|l| l.0).collect();
    let mean = counted.iter().sum::<f64>() / counted.len() as f64;
    let deviation = match counted.len() {
        0 | 1 => 0.0,
        n => (counted.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / (n - 1) as f64).sqrt(),
    };
    let block = &logs[8 * key_block..8 * key_block + 8];
    let z = |l: &(f64, bool)| if oam.count_empty_runs || l.1 { ((l.0 - mean) / (deviation + 1e-6)).max(0.0) } else { 0.0 };
    f64::from(oam.lambda) * block.iter().map(z).sum::<f64>() / 8.0
}

#[rstest]
fn scores_are_antidiagonal_sums_and_value_terms(#[values(Preset::Hpc, Preset::Paper)] preset: Preset, #[values(true, false)] causal: bool) {
    // Whole blocks, a partial last block, unaligned history, an empty request, a single token.
    let batch = Batch::random(1, 4, 2, &[(256, 256), (200, 333), (0, 100), (1, 1), (70, 257)]);
    let config = StemConfig { causal, ..StemConfig::preset(preset) };
    let geometry = batch.geometry(causal, Some(&config));
    let scores = scores_of(&batch, &geometry, &config.oam);
    for head in 0..4 {
        for row in 0..geometry.total_qb() {
            for block in 0..geometry.candidates(row) {
                let (qk, slack) = antidiagonal(&batch, &geometry, head, row, block);
                let value = value_term(&batch, &geometry, &config.oam, head / 2, geometry.query_blocks[row].request as usize, block);
                let scale = f64::from(config.oam.qk_scale);
                let exact = scale * qk + value;
                let rounding = if config.oam.round_bf16 { exact.abs() * 2f64.powi(-8) } else { 0.0 };
                let got = f64::from(scores[(head * geometry.total_qb() + row) * geometry.max_kb + block]);
                assert!(
                    (got - exact).abs() <= scale * slack + rounding + 2e-4,
                    "head {head}, row {row}, block {block}: {got}, exact {exact}"
                );
                if config.oam.round_bf16 {
                    assert_eq!(f64::from(bf16::from_f64(got).to_f32()), got);
                }
            }
        }
    }
}

/// With codes of -1, 0 and 1 every sum is a small integer: nothing is rounded, and the score must be exact.
#[test]
fn integer_scores_are_exact() {
    let mut batch = Batch::random(2, 2, 1, &[(150, 300), (128, 128)]);
    let mut rng = StdRng::seed_from_u64(3);
    for x in batch.q.iter_mut().chain(&mut batch.k) {
        *x = fp8::encode(rng.random_range(-1..=1) as f32);
    }
    batch.q_scale.fill(1.0);
    batch.k_scale = vec![1.0];
    let oam = OamConfig { qk_scale: 1.0, lambda: 0.0, count_empty_runs: false, round_bf16: false };
    let geometry = batch.geometry(true, None);
    let scores = scores_of(&batch, &geometry, &oam);
    for head in 0..2 {
        for row in 0..geometry.total_qb() {
            for block in 0..geometry.max_kb {
                let got = f64::from(scores[(head * geometry.total_qb() + row) * geometry.max_kb + block]);
                match block < geometry.candidates(row) {
                    true => assert_eq!(got, antidiagonal(&batch, &geometry, head, row, block).0),
                    false => assert_eq!(got, f64::NEG_INFINITY, "blocks a row cannot see"),
                }
            }
        }
    }
}

#[test]
fn equal_values_have_no_value_term() {
    let mut batch = Batch::random(4, 1, 1, &[(256, 256)]);
    batch.v.fill(F8E4M3::from_bits(0x38));
    let geometry = batch.geometry(true, None);
    let oam = OamConfig { qk_scale: 0.0, ..StemConfig::preset(Preset::Paper).oam };
    for score in scores_of(&batch, &geometry, &oam).into_iter().filter(|s| s.is_finite()) {
        assert_eq!(score, 0.0);
    }
}

/// The rules of stem.md in words: count who beats whom, no sorting.
fn counted_topk(scores: &[f32], budget: usize, diagonal: usize, config: &StemConfig) -> Vec<i32> {
    let rank = |j: usize| if scores[j].is_finite() { f64::from(scores[j]) } else { f64::NEG_INFINITY };
    let guard = |j: usize| j < config.sink as usize || (j <= diagonal && j + config.window as usize > diagonal);
    let all = budget >= scores.len();
    (0..scores.len())
        .filter(|&j| {
            let rivals = (0..scores.len()).filter(|&i| config.guards == Guards::InsideBudget || !guard(i));
            let better = match config.ties {
                TieRule::LowestIndex => rivals.filter(|&i| rank(i) > rank(j) || (rank(i) == rank(j) && i < j)).count(),
                TieRule::KeepAll => rivals.filter(|&i| rank(i) > rank(j)).count(),
            };
            all || guard(j) || better < budget
        })
        .map(|j| j as i32)
        .collect()
}

/// Scores with plateaus, signed zeros, NaN and infinities.
fn awkward_score() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => (-6i32..6).prop_map(|n| n as f32 / 4.0),
        2 => any::<f32>().prop_map(|x| bf16::from_f32(x).to_f32()),
        1 => prop::sample::select(vec![f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::MIN, f32::MAX, f32::MIN_POSITIVE]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn topk_is_what_counting_gives(
        scores in prop::collection::vec(awkward_score(), 1..60),
        budget in 1usize..64,
        (sink, window) in (0u32..6, 1u32..6),
        above in 0usize..3,
        on_top in any::<bool>(),
        keep_all in any::<bool>(),
    ) {
        let guards = if on_top { Guards::OnTop } else { Guards::InsideBudget };
        let ties = if keep_all { TieRule::KeepAll } else { TieRule::LowestIndex };
        let config = StemConfig { sink, window, guards, ties, ..StemConfig::preset(Preset::Hpc) };
        // A causal row ends at its diagonal.
        let diagonal = scores.len() - 1;
        let got = reference::topk_row(&scores, budget, diagonal, &config);
        prop_assert_eq!(&got, &counted_topk(&scores, budget, diagonal, &config));
        prop_assert!(got.contains(&(diagonal as i32)), "the diagonal stays");
        prop_assert!(got.windows(2).all(|w| w[0] < w[1]));
        if !keep_all {
            prop_assert!(got.len() <= (budget + sink as usize + window as usize).min(scores.len()));
        }
        // Another diagonal than the last candidate must not matter to the ranking either.
        let inner = diagonal.saturating_sub(above);
        prop_assert_eq!(reference::topk_row(&scores, budget, inner, &config), counted_topk(&scores, budget, inner, &config));
    }

    #[test]
    fn keys_order_as_scores_do(a in awkward_score(), b in awkward_score()) {
        let (key_a, key_b) = (reference::score_key(a), reference::score_key(b));
        match (a.is_finite(), b.is_finite()) {
            (true, true) => prop_assert_eq!(key_a.cmp(&key_b), a.partial_cmp(&b).unwrap()),
            (true, false) => prop_assert!(key_a > key_b),
            (false, true) => prop_assert!(key_a < key_b),
            (false, false) => prop_assert_eq!(key_a, key_b),
        }
    }
}

/// A prompt around the steps of the schedule, and the part of it that is there and new.
fn awkward_request() -> impl Strategy<Value = (i32, i32, i32)> {
    let blocks = prop_oneof![50i32..62, 154i32..166, 1i32..300, Just(55), Just(56), Just(159), Just(160)];
    (blocks, 0i32..128, 1i32..5, 0i32..128, any::<bool>(), 0f64..1.0).prop_map(|(blocks, tail, chunk, offset, aligned, place)| {
        let prompt = blocks * 128 - if aligned { 0 } else { tail };
        // A chunk of up to four blocks somewhere in the prompt, often at its end.
        let end = if place < 0.6 { prompt } else { (f64::from(prompt) * place) as i32 };
        let end = if aligned { (end / 128 * 128).max(128).min(prompt) } else { end.max(1) };
        let new = (chunk * 128 + if aligned { 0 } else { offset }).min(end);
        (new, end, prompt)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]

    /// Budgets and top-k of ragged batches, given the scores, against the two rules in words: integers on one side, counting on
    /// the other.
    #[test]
    fn lists_of_any_batch_are_what_the_rules_say(
        requests in prop::collection::vec(awkward_request(), 1..4),
        permille in 300u64..=1000,
        hq in prop::sample::select(vec![1usize, 2, 8, 16]),
        palette in prop::collection::vec(awkward_score(), 1..12),
        (sink, window, on_top, keep_all, causal) in (0u32..6, 1u32..6, any::<bool>(), any::<bool>(), prop::bool::weighted(0.8)),
        seed in any::<u64>(),
    ) {
        let offsets = |of: fn(&(i32, i32, i32)) -> i32| {
            let mut all = vec![0];
            requests.iter().for_each(|r| all.push(all[all.len() - 1] + of(r)));
            all
        };
        let prompts: Vec<i32> = requests.iter().map(|r| r.2).collect();
        let config = StemConfig {
            alpha: permille as f32 / 1000.0,
            sink,
            window,
            guards: if on_top { Guards::OnTop } else { Guards::InsideBudget },
            ties: if keep_all { TieRule::KeepAll } else { TieRule::LowestIndex },
            causal,
            ..StemConfig::preset(Preset::Hpc)
        };
        let geometry = Geometry::new(&offsets(|r| r.0), &offsets(|r| r.1), &prompts, causal, Some(&config)).unwrap();
        let (total_qb, stride) = (geometry.total_qb(), geometry.max_kb);
        // Scores from a small palette in half of the batches: plateaus.
        let mut rng = StdRng::seed_from_u64(seed);
        let plateaus = rng.random_bool(0.5);
        let mut score = || match plateaus {
            true => palette[rng.random_range(0..palette.len())],
            false => bf16::from_f32(rng.random_range(-1.0..1.0)).to_f32(),
        };
        let scores: Vec<f32> = (0..hq * total_qb * stride).map(|_| score()).collect();
        let lists = reference::topk(&scores, stride, hq, &geometry, &config).unwrap();
        prop_assert!(lists.validate(hq, &geometry).is_ok());
        // Counting is quadratic: a few rows of each batch.
        let mut rng = StdRng::seed_from_u64(seed ^ 1);
        for _ in 0..3 {
            let (head, row) = (rng.random_range(0..hq), rng.random_range(0..total_qb));
            let (block, request) = geometry.row(row).unwrap();
            let prompt_blocks = (prompts[block.request as usize] as u64).div_ceil(128);
            let exact = decayed_budget(hpc_start_value(prompt_blocks), prompt_blocks, block.block as u64, permille);
            let budget = block.budget as u64;
            prop_assert!(exact.contains(&budget), "Pb {}, block {}: {}, exact {:?}", prompt_blocks, block.block, budget, exact);
            let diagonal = if causal { block.block.min(request.kb_len - 1) } else { request.kb_len - 1 } as usize;
            let visible = if causal { diagonal + 1 } else { request.kb_len as usize };
            let candidates = &scores[(head * total_qb + row) * stride..][..visible];
            prop_assert_eq!(lists.row(head, row), counted_topk(candidates, budget as usize, diagonal, &config));
        }
    }
}

#[rstest]
fn topk_of_a_ragged_batch(#[values(true, false)] causal: bool, #[values(Guards::InsideBudget, Guards::OnTop)] guards: Guards) {
    let lens = [(1500, 1500), (0, 300), (400, 1111), (1, 1)];
    let batch = Batch { prompt_lens: vec![1500, 300, 3000, 1], ..Batch::random(5, 2, 1, &lens) };
    let config = StemConfig { causal, guards, ..choosy(0.5) };
    let geometry = batch.geometry(causal, Some(&config));
    let stride = geometry.max_kb + 3;
    let mut rng = StdRng::seed_from_u64(6);
    let scores: Vec<f32> = (0..2 * geometry.total_qb() * stride).map(|_| (rng.random_range(-8..8) as f32) / 4.0).collect();
    let lists = reference::topk(&scores, stride, 2, &geometry, &config).unwrap();
    lists.validate(2, &geometry).unwrap();
    assert_eq!(lists.stride, geometry.list_stride, "the capacity the geometry promised is enough");
    let mut dropped = 0;
    for head in 0..2 {
        for row in 0..geometry.total_qb() {
            let (block, request) = geometry.row(row).unwrap();
            let diagonal = if causal { block.block.min(request.kb_len - 1) } else { request.kb_len - 1 } as usize;
            let candidates = &scores[(head * geometry.total_qb() + row) * stride..][..geometry.candidates(row)];
            assert_eq!(lists.row(head, row), counted_topk(candidates, block.budget as usize, diagonal, &config));
            dropped += candidates.len() - lists.row(head, row).len();
        }
    }
    assert!(dropped > 20, "the batch must have something to choose, {dropped}");
}

/// Lists of chunks that end at `ends`, from scores that do not depend on the chunk.
fn chunked_lists(
    prompt: usize,
    ends: &[usize],
    config: &StemConfig,
    scores: &[f32],
    stride: usize,
    hq: usize,
) -> Vec<(i32, Vec<Vec<i32>>)> {
    let mut start = 0;
    let mut rows = Vec::new();
    for &end in ends {
        let geometry = Geometry::new(&[0, (end - start) as i32], &[0, end as i32], &[prompt as i32], true, Some(config)).unwrap();
        let chunk: Vec<f32> = (0..hq)
            .flat_map(|head| geometry.query_blocks.iter().map(move |b| (head, b.block as usize)))
            .flat_map(|(head, block)| scores[(head * prompt.div_ceil(128) + block) * stride..][..stride].to_vec())
            .collect();
        let lists = reference::topk(&chunk, stride, hq, &geometry, config).unwrap();
        for (row, block) in geometry.query_blocks.iter().enumerate() {
            rows.push((block.block, (0..hq).map(|head| lists.row(head, row).to_vec()).collect()));
        }
        start = end;
    }
    rows
}

#[rstest]
#[case::aligned(&[512, 1024, 2048, 8000])]
#[case::unaligned(&[100, 1000, 4097, 8000])]
fn frozen_scores_select_the_same_in_chunks(#[case] ends: &[usize]) {
    let prompt: usize = 8000;
    // 63 blocks: the hpc schedule chooses from 56 on.
    let config = StemConfig { alpha: 0.7, ..StemConfig::preset(Preset::Hpc) };
    let (stride, hq) = (prompt.div_ceil(128), 2);
    let mut rng = StdRng::seed_from_u64(7);
    let scores: Vec<f32> = (0..hq * stride * stride).map(|_| bf16::from_f32(rng.random_range(-1.0..1.0)).to_f32()).collect();
    let whole: Vec<_> = chunked_lists(prompt, &[prompt], &config, &scores, stride, hq);
    assert!(whole.iter().any(|(block, lists)| lists[0].len() < *block as usize + 1), "something must be left out");
    for (block, lists) in chunked_lists(prompt, ends, &config, &scores, stride, hq) {
        assert_eq!(lists, whole[block as usize].1, "block {block}");
    }
}

/// Without the value term, whose statistics grow with the prompt, aligned chunks score, select and attend as the whole does.
#[test]
fn aligned_chunks_prefill_as_the_whole() {
    let prompt = 1700;
    let whole = Batch::random(8, 2, 1, &[(prompt, prompt)]);
    let config = choosy(0.6);
    let config = StemConfig { oam: OamConfig { lambda: 0.0, ..config.oam }, ..config };
    let all = reference::prefill(&whole.inputs(), Selection::Stem(&config), &PrefillOptions::default()).unwrap();
    let mut start = 0;
    for end in [384, 1280, prompt] {
        let chunk = Batch {
            q: whole.q[start * 256..end * 256].to_vec(),
            q_scale: whole.q_scale[start * 2..end * 2].to_vec(),
            k: whole.k[..end * 128].to_vec(),
            v: whole.v[..end * 128].to_vec(),
            cu_seqlens_q: vec![0, (end - start) as i32],
            cu_seqlens_kv: vec![0, end as i32],
            ..whole.clone()
        };
        let part = reference::prefill(&chunk.inputs(), Selection::Stem(&config), &PrefillOptions::default()).unwrap();
        for head in 0..2 {
            for row in 0..part.lists.total_qb {
                assert_eq!(part.lists.row(head, row), all.lists.row(head, start / 128 + row), "head {head}, block {}", start / 128 + row);
            }
        }
        assert_eq!(part.out, all.out[start * 256..end * 256]);
        start = end;
    }
    assert!(all.lists.density(&whole.geometry(true, None)) < 0.7, "something must be left out");
}

#[test]
fn bad_tensors_are_named() {
    let batch = Batch::random(9, 2, 1, &[(200, 200)]);
    let (config, geometry) = (choosy(1.0), batch.geometry(true, None));
    let named = |result: Result<BlockLists, Error>| match result {
        Err(Error::Shape { tensor, .. }) => tensor,
        other => panic!("{other:?}"),
    };
    assert_eq!(named(reference::topk(&[0.0; 7], 2, 2, &geometry, &config)), "scores");
    assert_eq!(named(reference::topk(&[0.0; 4], 1, 2, &geometry, &config)), "scores", "a row has two candidates");
    assert!(matches!(reference::query_sums(&batch.q[1..], &batch.q_scale, 2, &geometry), Err(Error::Shape { tensor: "q", .. })));
    assert!(matches!(reference::query_sums(&batch.q, &batch.q_scale[1..], 2, &geometry), Err(Error::Shape { tensor: "q_scale", .. })));
    assert!(matches!(reference::value_bias(&[0.0; 15], 1, &geometry, &config.oam), Err(Error::Shape { tensor: "run_norms", .. })));
}
