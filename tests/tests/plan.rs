//! What the CUDA half refuses before it touches a GPU, and what it says on a machine that has none.

use rstest::rstest;
use stem_attn::config::{ProbeConfig, Selector};
use stem_attn::driver::{Device, available};
use stem_attn::kv::{PageLayout, TokenScaleLayout};
use stem_attn::ops::PageDesc;
use stem_attn::plan::{PlanDesc, PlanSelection, default_softmax_scale};
use stem_attn::{Backend, BackendKind, Error, Preset, StemConfig};
use stem_attn_kernels::abi::{PageStrides, ScaleStrides};

const LENS: [i32; 3] = [0, 300, 1000];

fn desc() -> PlanDesc<'static> {
    PlanDesc {
        hq: 8,
        hkv: 2,
        cu_seqlens_q: &LENS,
        cu_seqlens_kv: &LENS,
        prompt_lens: &[300, 700],
        pages: PageDesc::dense(PageLayout::Nhd, 2, 64, 32, 16),
        selection: PlanSelection::Stem(StemConfig::preset(Preset::Hpc)),
        causal: true,
        softmax_scale: default_softmax_scale(),
    }
}

fn strides(change: impl Fn(&mut PageStrides)) -> PageDesc {
    let mut pages = desc().pages;
    change(&mut pages.k_strides);
    pages
}

fn token_scales(change: impl Fn(&mut ScaleStrides)) -> TokenScaleLayout {
    let mut strides = PageLayout::Nhd.scale_strides(2, 64);
    change(&mut strides);
    TokenScaleLayout::Separate(strides)
}

#[test]
fn a_good_description_passes() {
    let geometry = desc().validate().expect("valid");
    assert_eq!((geometry.total_qb(), geometry.total_kb(), geometry.max_kb), (3 + 6, 3 + 6, 6));
    // V tiles, key sums, run norms, lists, counts: no scores.
    let rows = [9 * 2 * 16_384, 2 * 9 * 4096, 2 * 9 * 32, 8 * 9 * geometry.list_stride * 4, 8 * 9 * 4];
    assert_eq!(desc().workspace_bytes().expect("valid"), rows.iter().map(|r| r.next_multiple_of(256)).sum::<usize>());
    let dense = PlanDesc { selection: PlanSelection::Dense, ..desc() };
    assert_eq!(dense.workspace_bytes().expect("valid"), 9 * 2 * 16_384);
}

#[rstest]
#[case("heads", PlanDesc { hq: 7, ..desc() })]
#[case("heads", PlanDesc { hkv: 0, ..desc() })]
#[case("cu_seqlens_q", PlanDesc { cu_seqlens_q: &[0, 300, 200], ..desc() })]
#[case("cu_seqlens_q", PlanDesc { cu_seqlens_q: &[1, 300, 1000], ..desc() })]
#[case("cu_seqlens_kv", PlanDesc { cu_seqlens_kv: &[0, 300], ..desc() })]
#[case("k", PlanDesc { cu_seqlens_kv: &[0, 299, 1000], ..desc() })]
#[case("prompt_lens", PlanDesc { prompt_lens: &[300], ..desc() })]
#[case("prompt_lens", PlanDesc { prompt_lens: &[300, 699], ..desc() })]
#[case("causal", PlanDesc { causal: false, ..desc() })]
#[case("softmax_scale", PlanDesc { softmax_scale: f32::NAN, ..desc() })]
#[case("softmax_scale", PlanDesc { softmax_scale: 0.0, ..desc() })]
#[case("lists", PlanDesc { selection: PlanSelection::Lists { stride: 0 }, ..desc() })]
#[case("alpha", PlanDesc { selection: PlanSelection::Stem(StemConfig { alpha: 2.0, ..StemConfig::preset(Preset::Hpc) }), ..desc() })]
#[case("page_size", PlanDesc { pages: PageDesc { page_size: 48, ..desc().pages }, ..desc() })]
#[case("pages", PlanDesc { pages: PageDesc { pages: 0, ..desc().pages }, ..desc() })]
#[case("page_table", PlanDesc { pages: PageDesc { table_stride: 10, ..desc().pages }, ..desc() })]
#[case("k_pages", PlanDesc { pages: strides(|s| s.token = 130), ..desc() })]
#[case("k_pages", PlanDesc { pages: strides(|s| s.page = -16), ..desc() })]
#[case("k_pages", PlanDesc { pages: strides(|s| s.head = i64::MAX - 15), ..desc() })]
#[case("k_token_scale", PlanDesc { pages: PageDesc { k_token_scales: token_scales(|s| s.head = 2), ..desc().pages }, ..desc() })]
#[case("k_token_scale", PlanDesc { pages: PageDesc { k_token_scales: token_scales(|s| s.chunk = -128), ..desc().pages }, ..desc() })]
fn bad_descriptions_are_named(#[case] name: &str, #[case] desc: PlanDesc<'_>) {
    match desc.validate() {
        Err(Error::Shape { tensor, .. }) => assert_eq!(tensor, name),
        Err(Error::Value { name: got, .. }) => assert_eq!(got, name),
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn the_probe_selector_takes_no_scale_per_key() {
    let config = StemConfig { selector: Selector::Probe(ProbeConfig::default()), ..StemConfig::preset(Preset::Hpc) };
    let plain = PlanDesc { selection: PlanSelection::Stem(config), ..desc() };
    plain.validate().expect("valid");
    let scaled = PlanDesc { pages: PageDesc { k_token_scales: token_scales(|_| ()), ..desc().pages }, ..plain };
    assert!(matches!(scaled.validate(), Err(Error::Unsupported { what: "probe selector", .. })));
    let stem = PlanDesc { selection: desc().selection, ..scaled };
    stem.validate().expect("Stem's score does");
}

#[test]
fn grids_past_the_hardware_are_refused() {
    // One KV head more than a grid is high.
    let desc = PlanDesc { hq: 65_536, hkv: 65_536, selection: PlanSelection::Dense, ..desc() };
    assert!(matches!(desc.validate(), Err(Error::Value { name: "grid", .. })));
}

#[test]
fn scores_need_memory_only_past_131_072_tokens() {
    let bytes = |tokens: i32| {
        let lens = [0, tokens];
        let pages = PageDesc { pages: 8192, table_stride: 4096, ..desc().pages };
        let desc = PlanDesc { hq: 2, cu_seqlens_q: &[0, 128], cu_seqlens_kv: &lens, prompt_lens: &lens[1..], pages, ..desc() };
        desc.workspace_bytes().expect("valid")
    };
    let block = 2 * 16_384 + 2 * 4096 + 2 * 32;
    assert!(bytes(131_072) - bytes(131_072 - 128) <= block);
    // 128 thread blocks of 32 rows; a query block more, because the chunk is no longer aligned.
    assert!(bytes(131_073) - bytes(131_072) > 128 * 32 * 1025 * 4);
}

#[test]
fn without_a_usable_gpu_everything_is_an_error_value() {
    match available() {
        Ok(()) => {
            assert!(Device::open(0).is_ok());
            assert!(matches!(Device::open(1000), Err(Error::Unavailable(_))));
        }
        Err(Error::Unavailable(reason)) => {
            println!("no GPU here: {reason}");
            assert!(matches!(Device::open(0), Err(Error::Unavailable(r)) if r == reason));
            assert!(matches!(Backend::open(BackendKind::Cuda), Err(Error::Unavailable(r)) if r == reason));
            assert_eq!(Backend::auto().name(), "cpu");
        }
        Err(other) => panic!("{other:?}"),
    }
}
