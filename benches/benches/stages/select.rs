//! What comes before attention: the summaries of the keys, and the selection of blocks (preset hpc, alpha 0.7).

use criterion::{BenchmarkId, Criterion, Throughput};
use stem_attn::cli::bench::Stage;
use stem_attn_benches::{Machine, time};

pub fn select(c: &mut Criterion, machine: &Machine) {
    let mut group = machine.group(c, "select");
    for &tokens in machine.lengths {
        let case = machine.case(tokens);
        group.throughput(Throughput::Elements(tokens as u64));
        for stage in [Stage::SummarizeKv, Stage::Select] {
            let mut engine = machine.engine(&case, stage, None);
            group.bench_function(BenchmarkId::new(stage.name(), tokens), |b| b.iter_custom(|launches| time(engine.as_mut(), launches)));
        }
    }
    group.finish();
}
