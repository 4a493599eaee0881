//! Sparse prefill attention of one layer: host tensors in, host tensors out.
//!
//! `cargo run --release --example 01-prefill`

use stem_attn::{Backend, PrefillInputs, PrefillOptions, Preset, Selection, StemConfig, fp8};

fn main() -> stem_attn::Result<()> {
    let (tokens, hq, hkv) = (8192, 2, 1);
    let wave = |n: usize, step: f32| (0..n).map(|i| (i as f32 * step).sin()).collect::<Vec<f32>>();
    let (q, q_scale) = fp8::quantize_per_token_head("q", &wave(tokens * hq * 128, 0.37))?;
    let (k, k_scale) = fp8::quantize_per_tensor("k", &wave(tokens * hkv * 128, 0.11))?;
    let (v, v_scale) = fp8::quantize_per_tensor("v", &wave(tokens * hkv * 128, 0.23))?;

    let lens = [0, tokens as i32]; // one request; all of its tokens are new
    let inputs = PrefillInputs {
        q: &q,
        q_scale: &q_scale,
        k: &k,
        v: &v,
        k_scale: &[k_scale],
        v_scale: &[v_scale],
        hq,
        hkv,
        cu_seqlens_q: &lens,
        cu_seqlens_kv: &lens,
        prompt_lens: &lens[1..],
    };
    let config = StemConfig { alpha: 0.7, ..StemConfig::preset(Preset::Hpc) };
    let backend = Backend::auto(); // the GPU where there is a Hopper one, else the CPU
    let result = backend.prefill(&inputs, Selection::Stem(&config), &PrefillOptions::default())?;
    println!("{}: {} values, {} blocks kept, {:.3} ms", backend.name(), result.out.len(), result.lists.kept(), result.times.attend.ms);
    Ok(())
}
