//! Whole prefill calls as a user of the library makes them, host tensors in and out, on the backend there is. The
//! kernels alone are measured by `stem bench`, whose clock is the GPU's; `STEM_RECORDS=FILE` appends their share of these
//! calls to a file, a record a line.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use stem_attn::{Backend, PrefillOptions, Preset, Selection, StemConfig};
use stem_attn_benches::{Layer, append, record};

fn prefill(c: &mut Criterion) {
    let backend = Backend::auto();
    // The CPU reference is no yardstick: a shape that ends in seconds.
    let (lengths, hq, hkv): (&[usize], _, _) = if backend.name() == "cpu" { (&[1024], 2, 1) } else { (&[8192, 32_768], 32, 4) };
    let config = StemConfig { alpha: 0.7, ..StemConfig::preset(Preset::Hpc) };
    let mut group = c.benchmark_group(format!("prefill-{}", backend.name()));
    group.sample_size(10);
    for &tokens in lengths {
        let layer = Layer::random(tokens, hq, hkv);
        group.throughput(Throughput::Elements(tokens as u64));
        for (name, selection) in [("dense", Selection::Dense), ("stem", Selection::Stem(&config))] {
            group.bench_function(BenchmarkId::new(name, tokens), |b| {
                b.iter(|| backend.prefill(black_box(&layer.inputs()), selection, &PrefillOptions::default()).expect("prefill").out);
            });
            let options = PrefillOptions { repeat: 10, ..PrefillOptions::default() };
            let output = backend.prefill(&layer.inputs(), selection, &options).expect("prefill");
            let preset = if name == "dense" { name } else { "hpc" };
            append(&record(&backend, &layer, preset, &options, &output)).expect("a file that can be written");
        }
    }
    group.finish();
}

criterion_group!(benches, prefill);
criterion_main!(benches);
