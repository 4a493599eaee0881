//! End to end: summaries, selection and attention of one layer on the device (`layer`, timed in turns with the dense
//! attention that it replaces), and the whole call as a user of the library makes it, host tensors in and out (`call`, by
//! the wall clock).

use criterion::{BenchmarkId, Criterion, Throughput};
use std::hint::black_box;
use stem_attn::cli::bench::Stage;
use stem_attn::{PrefillOptions, Selection};
use stem_attn_benches::{Machine, time_in_turns};

/// The longest call whose copies to and from the device are worth waiting for.
const LONGEST_CALL: usize = 32_768;

pub fn prefill(c: &mut Criterion, machine: &Machine) {
    let mut group = machine.group(c, "prefill");
    for &tokens in machine.lengths {
        let case = machine.case(tokens);
        group.throughput(Throughput::Elements(tokens as u64));
        {
            let mut stem = machine.engine(&case, Stage::Prefill, None);
            let mut dense = machine.engine(&case, Stage::Attend, None);
            group.bench_function(BenchmarkId::new("layer, stem", tokens), |b| {
                b.iter_custom(|launches| time_in_turns(stem.as_mut(), dense.as_mut(), launches));
            });
            group.bench_function(BenchmarkId::new("layer, dense", tokens), |b| {
                b.iter_custom(|launches| time_in_turns(dense.as_mut(), stem.as_mut(), launches));
            });
        }
        if tokens <= LONGEST_CALL {
            for (name, selection) in [("call, dense", Selection::Dense), ("call, stem", Selection::Stem(&case.config))] {
                group.bench_function(BenchmarkId::new(name, tokens), |b| {
                    let options = PrefillOptions::default();
                    b.iter(|| machine.backend.prefill(black_box(&case.problem.inputs()), selection, &options).expect("prefill").out);
                });
            }
        }
    }
    group.finish();
}
