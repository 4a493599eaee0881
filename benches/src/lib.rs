//! Inputs of the prefill bench, random N(0, 1) data in e4m3 drawn once per shape, the records of its stages, and the rates of
//! single instructions ([`rates`]).

pub mod rates;

use float8::F8E4M3;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rand_distr::StandardNormal;
use std::io::Write;
use stem_attn::record::{self, Record};
use stem_attn::{Backend, PrefillInputs, PrefillOptions, PrefillOutput, fp8};

/// One request whose tokens are all new; all scales are 1.
pub struct Layer {
    q: Vec<F8E4M3>,
    k: Vec<F8E4M3>,
    v: Vec<F8E4M3>,
    q_scale: Vec<f32>,
    lens: [i32; 2],
    heads: [usize; 2],
}

impl Layer {
    /// `tokens` tokens, `hq` query heads on `hkv` KV heads.
    pub fn random(tokens: usize, hq: usize, hkv: usize) -> Self {
        let mut rng = StdRng::seed_from_u64(tokens as u64);
        let mut draw = |heads: usize| (0..tokens * heads * 128).map(|_| fp8::encode(rng.sample(StandardNormal))).collect();
        let (q, k, v) = (draw(hq), draw(hkv), draw(hkv));
        Self { q, k, v, q_scale: vec![1.0; tokens * hq], lens: [0, tokens as i32], heads: [hq, hkv] }
    }

    /// The form that backends take.
    pub fn inputs(&self) -> PrefillInputs<'_> {
        PrefillInputs {
            q: &self.q,
            q_scale: &self.q_scale,
            k: &self.k,
            v: &self.v,
            k_scale: &[1.0],
            v_scale: &[1.0],
            hq: self.heads[0],
            hkv: self.heads[1],
            cu_seqlens_q: &self.lens,
            cu_seqlens_kv: &self.lens,
            prompt_lens: &self.lens[1..],
        }
    }
}

/// Names a file that the benches append their records to.
pub const RECORDS: &str = "STEM_RECORDS";

/// The record of a prefill of `layer` (a multiple of 128 tokens): its stages' times added, on the GPU by CUDA events.
pub fn record(backend: &Backend, layer: &Layer, preset: &str, options: &PrefillOptions, output: &PrefillOutput) -> Record {
    let [hq, hkv] = layer.heads;
    let tokens = layer.lens[1] as u64;
    let (kept, rows) = (output.lists.kept(), tokens / 128 * hq as u64);
    let (below, diagonal) = (128 * 128, 128 * 129 / 2);
    let times = [output.times.summarize_kv, output.times.select, output.times.attend];
    let ms = times.iter().map(|t| t.ms).sum::<f64>();
    // 4 x 128 FLOPs a visible pair of query and key; every row keeps its diagonal block.
    let tflops = |pairs: u64| Some(512.0 * pairs as f64 / (ms * 1e9)).filter(|rate| rate.is_finite());
    let info = match backend {
        Backend::Cuda(cuda) => Some(cuda.info()),
        _ => None,
    };
    Record {
        bench: "prefill".into(),
        backend: backend.name().into(),
        gpu: info.map(|i| i.name.clone()),
        driver: info.and_then(|i| i.driver_version.clone()),
        hq,
        hkv,
        d: 128,
        seq: tokens as usize,
        page: options.page_size,
        skip: Some(1.0 - kept as f64 / ((tokens / 128) * (tokens / 128 + 1) / 2 * hq as u64) as f64),
        softmax: Some("exact".into()),
        preset: Some(preset.into()),
        ms,
        p10: times.iter().map(|t| t.p10).sum(),
        p90: times.iter().map(|t| t.p90).sum(),
        repeat: options.repeat,
        l2: info.map(|_| "warm".into()),
        tflops_selected: tflops(kept.saturating_sub(rows) * below + rows * diagonal),
        tflops_dense_equiv: tflops(tokens * (tokens + 1) / 2 * hq as u64),
        command: "cargo bench --package stem-attn-benches".into(),
        commit: record::commit(),
        date: record::now(),
        ..Record::default()
    }
}

/// Appends a record to the file that [`RECORDS`] names, if it does.
///
/// # Errors
/// When the file cannot be written.
pub fn append(record: &Record) -> std::io::Result<()> {
    let Some(path) = std::env::var_os(RECORDS) else { return Ok(()) };
    std::fs::OpenOptions::new().create(true).append(true).open(path)?.write_all(record.to_line().as_bytes())
}
