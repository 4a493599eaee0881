//! Budgets against a model in exact integers, and the block tables built from them.

use proptest::prelude::*;
use rstest::rstest;
use stem_attn::budget::budget;
use stem_attn::{Error, Geometry, Preset, Schedule, StemConfig, TieRule};
use stem_attn_tests::budgets::{decayed_budget, hpc_start_value};

fn hpc(permille: u64) -> StemConfig {
    StemConfig { alpha: permille as f32 / 1000.0, ..StemConfig::preset(Preset::Hpc) }
}

fn check(config: &StemConfig, k: u64, blocks: u64, block: u64, permille: u64) {
    let got = u64::from(budget(config, blocks as u32, block as u32));
    let exact = decayed_budget(k, blocks, block, permille);
    assert!(exact.contains(&got), "Pb {blocks}, p {block}, alpha {permille}/1000: {got}, exact {exact:?}");
}

#[rstest]
fn hpc_schedule_and_decay(
    #[values(1, 2, 30, 55, 56, 57, 64, 100, 159, 160, 161, 320, 1024, 8192)] blocks: u64,
    #[values(300, 500, 700, 901, 950, 1000)] permille: u64,
) {
    for block in 0..blocks {
        check(&hpc(permille), hpc_start_value(blocks), blocks, block, permille);
    }
}

#[test]
fn start_values_at_the_steps_of_the_schedule() {
    let starts: Vec<u32> = [1, 55, 56, 57, 159, 160, 161, 1024].map(|blocks| budget(&hpc(1000), blocks, 0)).into();
    assert_eq!(starts, [1, 55, 41, 41, 61, 46, 46, 132]);
}

#[test]
fn decay_ends_at_alpha_times_the_start() {
    assert_eq!(budget(&hpc(500), 1024, 131), 132, "below k nothing decays");
    assert_eq!(budget(&hpc(500), 1024, 132), 132);
    assert_eq!(budget(&hpc(500), 1024, 1023), 66);
    assert!(budget(&hpc(500), 1024, 133) < 132);
}

#[test]
fn ratio_schedule_has_a_floor_and_never_exceeds_the_prompt() {
    let config = StemConfig { schedule: Schedule::Ratio { ratio: 0.25, floor: 54 }, ..StemConfig::preset(Preset::Paper) };
    let starts: Vec<u32> = [1, 54, 55, 216, 217, 220, 221, 1024].map(|blocks| budget(&config, blocks, 0)).into();
    assert_eq!(starts, [1, 54, 54, 54, 55, 55, 56, 256]);
}

proptest! {
    #[test]
    fn any_alpha_and_prompt(permille in 300u64..=1000, blocks in 1u64..20_000, at in 0f64..1.0) {
        let block = ((blocks as f64 * at) as u64).min(blocks - 1);
        check(&hpc(permille), hpc_start_value(blocks), blocks, block, permille);
    }

    #[test]
    fn never_rises_and_stays_in_range(alpha in 0.01f32..=1.0, ratio in 0.01f32..=1.0, floor in 0u32..100, blocks in 1u32..2000) {
        let config = StemConfig { alpha, schedule: Schedule::Ratio { ratio, floor }, ..StemConfig::preset(Preset::Paper) };
        let budgets: Vec<u32> = (0..blocks).map(|block| budget(&config, blocks, block)).collect();
        prop_assert!(budgets.iter().all(|b| (1..=blocks).contains(b)));
        prop_assert!(budgets.windows(2).all(|b| b[0] >= b[1]));
    }

    /// A prompt in chunks, aligned or not, gets the budgets of the whole.
    #[test]
    fn chunks_have_the_budgets_of_the_whole(prompt in 1i32..60_000, cuts in prop::collection::vec(0f64..1.0, 0..4)) {
        let config = hpc(700);
        let whole = Geometry::new(&[0, prompt], &[0, prompt], &[prompt], true, Some(&config)).unwrap();
        let mut ends: Vec<i32> = cuts.iter().map(|cut| (f64::from(prompt) * cut) as i32).chain([prompt]).collect();
        ends.sort_unstable();
        let mut start = 0;
        for end in ends {
            let chunk = Geometry::new(&[0, end - start], &[0, end], &[prompt], true, Some(&config)).unwrap();
            let mut covered = 0;
            for (row, block) in chunk.query_blocks.iter().enumerate() {
                let same = &whole.query_blocks[block.block as usize];
                prop_assert_eq!((block.block, block.budget), (same.block, same.budget));
                let tokens = chunk.tokens(row);
                prop_assert_eq!(tokens.start, covered, "blocks follow one another");
                prop_assert!(!tokens.is_empty());
                prop_assert_eq!((start as usize + tokens.start) / 128, block.block as usize);
                prop_assert_eq!((start as usize + tokens.end - 1) / 128, block.block as usize);
                covered = tokens.end;
            }
            prop_assert_eq!(covered as i32, end - start);
            start = end;
        }
    }
}

#[test]
fn tables_of_a_ragged_batch() {
    let geometry = Geometry::new(&[0, 130, 130, 131, 388], &[0, 300, 300, 428, 685], &[300, 0, 128, 257], true, None).unwrap();
    let rows: Vec<_> = geometry.query_blocks.iter().map(|b| (b.request, b.block, b.budget)).collect();
    assert_eq!(rows, [(0, 1, 2), (0, 2, 3), (2, 0, 1), (3, 0, 1), (3, 1, 2), (3, 2, 3)]);
    let tokens: Vec<_> = (0..6).map(|row| geometry.tokens(row)).collect();
    assert_eq!(tokens, [0..86, 86..130, 0..1, 0..128, 128..256, 256..257]);
    let requests: Vec<_> =
        geometry.requests.iter().map(|r| (r.q_start, r.qb_start, r.qb_len, r.kb_start, r.kb_len, r.first_block)).collect();
    assert_eq!(requests, [(0, 0, 2, 0, 3, 1), (130, 2, 0, 3, 0, 0), (130, 2, 1, 3, 1, 0), (131, 3, 3, 4, 3, 0)]);
    let keys: Vec<_> = geometry.key_blocks.iter().map(|b| (b.request, b.block)).collect();
    assert_eq!(keys, [(0, 0), (0, 1), (0, 2), (2, 0), (3, 0), (3, 1), (3, 2)]);
    assert_eq!((geometry.total_q, geometry.total_kv, geometry.max_qb, geometry.max_kb, geometry.list_stride), (388, 685, 3, 3, 3));
    assert_eq!((geometry.visible_pairs(), geometry.candidates(99), geometry.tokens(99)), (12, 0, 0..0));
}

/// What is known of a key block stays at its place from chunk to chunk.
#[test]
fn requests_have_room_for_their_prompts() {
    let prompts = [300, 1000, 128];
    let starts: Vec<Vec<_>> = [[0, 0, 0], [100, 128, 128], [300, 1000, 128]]
        .map(|kv: [i32; 3]| {
            let ends = [0, kv[0], kv[0] + kv[1], kv[0] + kv[1] + kv[2]];
            let chunk = Geometry::new(&[0, 0, 0, 0], &ends, &prompts, true, None).unwrap();
            assert_eq!((chunk.total_kb(), chunk.max_kb), (3 + 8 + 1, (kv[1] as usize).div_ceil(128)));
            chunk.requests.iter().map(|r| r.kb_start).collect()
        })
        .into();
    assert!(starts.iter().all(|s| s == &[0, 3, 11]), "{starts:?}");
}

#[test]
fn capacity_of_the_lists() {
    let prompt = 1024 * 128;
    let capacity = |config: &StemConfig| Geometry::new(&[0, prompt], &[0, prompt], &[prompt], true, Some(config)).unwrap().list_stride;
    // Block 139 is the first that sees more blocks than it may keep; by then the budget has decayed to 131.
    assert_eq!(capacity(&hpc(700)), 131 + 8);
    assert_eq!(capacity(&StemConfig { ties: TieRule::KeepAll, ..hpc(700) }), 1024);
    assert_eq!(capacity(&StemConfig { sink: 1 << 20, ..hpc(700) }), 1024);
    assert_eq!(Geometry::new(&[0], &[0], &[], true, None).unwrap().list_stride, 1);
}

#[rstest]
#[case::empty_table(&[], &[], &[], "cu_seqlens_q")]
#[case::start(&[1, 2], &[0, 2], &[2], "cu_seqlens_q")]
#[case::falls(&[0, 5, 3], &[0, 5, 8], &[5, 3], "cu_seqlens_q")]
#[case::kv_falls(&[0, 1, 2], &[0, 5, 3], &[5, 3], "cu_seqlens_kv")]
#[case::negative(&[0, -1], &[0, 2], &[2], "cu_seqlens_q")]
#[case::lengths(&[0, 1], &[0, 1, 2], &[1], "cu_seqlens_kv")]
#[case::prompts(&[0, 1], &[0, 1], &[1, 1], "prompt_lens")]
#[case::short_prompt(&[0, 1], &[0, 9], &[8], "prompt_lens")]
#[case::causal(&[0, 10], &[0, 9], &[9], "k")]
fn bad_tables_are_named(#[case] q: &[i32], #[case] kv: &[i32], #[case] prompts: &[i32], #[case] named: &str) {
    match Geometry::new(q, kv, prompts, true, None) {
        Err(Error::Shape { tensor, .. }) => assert_eq!(tensor, named),
        Err(Error::Value { name, .. }) => assert_eq!(name, named),
        other => panic!("{other:?}"),
    }
}

#[test]
fn more_queries_than_keys_is_unsupported_when_not_causal() {
    assert!(matches!(Geometry::new(&[0, 10], &[0, 9], &[9], false, None), Err(Error::Unsupported { .. })));
}

#[test]
fn the_longest_lengths_do_not_overflow() {
    // The last token of the longest sequence 32 bits can count.
    let geometry = Geometry::new(&[0, 1], &[0, i32::MAX], &[i32::MAX], true, None).unwrap();
    assert_eq!((geometry.query_blocks[0].block, geometry.tokens(0), geometry.candidates(0)), ((1 << 24) - 1, 0..1, 1 << 24));
}
