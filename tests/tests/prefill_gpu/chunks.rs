//! A prompt in chunks over one workspace: every chunk summarises its own blocks and finds the rest where it was left.

use super::{Case, choosy};
use rstest::rstest;
use stem_attn::config::{ProbeConfig, Selector};
use stem_attn::driver::buffer;
use stem_attn::plan::{PrefillOutputs, Workspace};
use stem_attn::{Selection, StemConfig};
use stem_attn_tests::batch::{Batch, offsets};
use stem_attn_tests::gpu::{POISON, backend};

/// Tokens of the prompts when all of them are there.
const PROMPTS: [usize; 3] = [2500, 130, 1999];

/// The chunk of every prompt from token `from` to token `to` of it.
fn chunk(whole: &Batch, from: [usize; 3], to: [usize; 3]) -> Batch {
    let rows = |of: &[float8::F8E4M3], heads: usize, from: [usize; 3]| -> Vec<float8::F8E4M3> {
        let starts = offsets(PROMPTS);
        let token = |b: usize, t: usize| (starts[b] as usize + t) * heads * 128;
        (0..3).flat_map(|b| of[token(b, from[b])..token(b, to[b])].to_vec()).collect()
    };
    let starts = offsets(PROMPTS);
    let scales = |b: usize| (starts[b] as usize + from[b]) * whole.hq..(starts[b] as usize + to[b]) * whole.hq;
    let key_scales = |b: usize| starts[b] as usize * whole.hkv..(starts[b] as usize + to[b]) * whole.hkv;
    Batch {
        q: rows(&whole.q, whole.hq, from),
        q_scale: (0..3).flat_map(|b| whole.q_scale[scales(b)].to_vec()).collect(),
        k: rows(&whole.k, whole.hkv, [0; 3]),
        v: rows(&whole.v, whole.hkv, [0; 3]),
        k_scale: match whole.inputs().k_token_scale() {
            Some(own) => (0..3).flat_map(|b| own[key_scales(b)].to_vec()).collect(),
            None => whole.k_scale.clone(),
        },
        cu_seqlens_q: offsets((0..3).map(|b| to[b] - from[b])),
        cu_seqlens_kv: offsets(to),
        ..whole.clone()
    }
}

/// The first two stages as a run queues them leave what they leave when each is waited for.
#[rstest]
fn summaries_and_lists_in_one_go_are_those_of_two_stages(
    #[values(Selector::Stem, Selector::Probe(ProbeConfig::default()))] selector: Selector,
) {
    let Some(gpu) = backend() else { return };
    let stream = gpu.stream();
    let batch = Batch::random(53, 4, 2, &[(9000, 9000), (129, 517), (700, 17_000)]);
    let config = StemConfig { selector, ..choosy(0.7) };
    let case = Case::new(&batch, Selection::Stem(&config));
    let inputs = case.upload(gpu);
    let plan = case.plan(gpu, &inputs);
    let both = |together: bool| {
        let mut workspace = Workspace::new(stream, plan.workspace_bytes()).expect("workspace");
        buffer::fill_bytes(stream, workspace.buffer_mut(), POISON).expect("poison");
        if together {
            plan.summarize_and_select(stream, &inputs.tensors(), &mut workspace).expect("both");
        } else {
            plan.summarize_kv(stream, &inputs.tensors(), &mut workspace).expect("summaries");
            stream.synchronize().expect("summaries");
            plan.select(stream, &inputs.tensors(), &mut workspace).expect("lists");
        }
        let lists = plan.download_lists(stream, &workspace).expect("lists").expect("a selecting plan");
        (lists, plan.download_summaries(stream, &workspace).expect("download"))
    };
    let (got, want) = (both(true), both(false));
    assert!(want.0.counts.iter().any(|&n| n < 40), "some row has to choose");
    for head in 0..batch.hq {
        for row in 0..plan.geometry().total_qb() {
            assert_eq!(got.0.row(head, row), want.0.row(head, row), "head {head}, row {row}");
        }
    }
    assert!(got.1.v_tiles.iter().zip(&want.1.v_tiles).all(|(a, b)| a.to_bits() == b.to_bits()), "V tiles");
    assert!(got.1.k_sums.iter().zip(&want.1.k_sums).all(|(a, b)| a.to_bits() == b.to_bits()), "key sums");
}

#[rstest]
#[case::dense(None, false)]
#[case::dense_and_a_scale_per_key(None, true)]
#[case::stem(Some(Selector::Stem), false)]
#[case::stem_and_a_scale_per_key(Some(Selector::Stem), true)]
#[case::probe(Some(Selector::Probe(ProbeConfig::default())), false)]
fn a_chunk_pays_for_its_own_blocks_only(#[case] selector: Option<Selector>, #[case] own_scales: bool) {
    let Some(gpu) = backend() else { return };
    let stream = gpu.stream();
    let whole = Batch::random(51, 4, 2, &PROMPTS.map(|n| (n, n)));
    let whole = if own_scales { whole.with_token_scales(52) } else { whole };
    let config = StemConfig { selector: selector.unwrap_or_default(), ..choosy(0.7) };
    let selection = if selector.is_some() { Selection::Stem(&config) } else { Selection::Dense };
    // Chunks that end inside a block, at its end, and one that leaves a prompt waiting.
    let ends = [[0, 0, 0], [1000, 0, 128], [1000, 130, 1280], [2431, 130, 1281], PROMPTS];
    let mut kept: Option<Workspace> = None;
    for pair in ends.windows(2) {
        let batch = chunk(&whole, pair[0], pair[1]);
        let case = Case::new(&batch, selection);
        let inputs = case.upload(gpu);
        let (all, new) = (case.plan(gpu, &inputs), case.plan(gpu, &inputs).continuing(true));
        let fresh = || {
            let mut workspace = Workspace::new(stream, all.workspace_bytes().max(1 << 26)).expect("workspace");
            buffer::fill_bytes(stream, workspace.buffer_mut(), POISON).expect("poison");
            workspace
        };
        let mut other = fresh();
        let workspace = kept.get_or_insert_with(fresh);
        let run = |plan: &stem_attn::plan::Plan, workspace: &mut Workspace| {
            let mut out = buffer::zeroed(stream, batch.q.len()).expect("out");
            let mut outputs = PrefillOutputs { out: out.as_view_mut(), lse: None };
            plan.run(stream, &inputs.tensors(), workspace, &mut outputs).expect("run");
            let lists = plan.download_lists(stream, workspace).expect("lists");
            (buffer::download(stream, &out, batch.q.len()).expect("out"), lists)
        };
        let (got, want) = (run(&new, workspace), run(&all, &mut other));
        assert!(got.0 == want.0, "{pair:?}: outputs differ from those of a run that summarises everything");
        assert_eq!(got.1, want.1, "{pair:?}");
        // Blocks that a prompt has no token of yet stay as they were in both: poisoned.
        let (got, want) =
            (new.download_summaries(stream, workspace).expect("download"), all.download_summaries(stream, &other).expect("download"));
        assert!(got.v_tiles.iter().zip(&want.v_tiles).all(|(a, b)| a.to_bits() == b.to_bits()), "{pair:?}: V tiles");
        assert!(got.k_sums.iter().zip(&want.k_sums).all(|(a, b)| a.to_bits() == b.to_bits()), "{pair:?}: key sums");
        assert!(got.run_norms.iter().zip(&want.run_norms).all(|(a, b)| a.to_bits() == b.to_bits()), "{pair:?}: run norms");
    }
}
