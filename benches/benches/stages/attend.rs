//! Attention over every visible block and over random lists. Each is timed in turns with the dense one, so that the cost of
//! skipping, time(s) / ((1 - s) time(0)), does not depend on what the GPU's clock did meanwhile. Criterion's "elements" are
//! FLOPs of the selected pairs.

use criterion::{BenchmarkId, Criterion, Throughput};
use stem_attn::cli::bench::Stage;
use stem_attn_benches::{Machine, time_in_turns};

pub fn attend(c: &mut Criterion, machine: &Machine) {
    let mut group = machine.group(c, "attend");
    for &tokens in machine.lengths {
        let case = machine.case(tokens);
        let mut dense = machine.engine(&case, Stage::Attend, None);
        for skip in [0.0, 0.5, 0.75, 0.9] {
            let lists = (skip > 0.0).then(|| case.lists(skip));
            let mut engine = machine.engine(&case, Stage::Attend, lists.as_ref());
            group.throughput(Throughput::Elements(case.flops(lists.as_ref())));
            group.bench_function(BenchmarkId::new(format!("skip {skip}"), tokens), |b| {
                b.iter_custom(|launches| time_in_turns(engine.as_mut(), dense.as_mut(), launches));
            });
        }
    }
    group.finish();
}
