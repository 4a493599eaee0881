//! What the host spends, by its own clock: on making a plan (checking a batch, copying its tables) and on queueing a prefill
//! on one. On the CPU backend: on cutting a batch into blocks, and on checking a call.

use criterion::{BenchmarkId, Criterion};
use stem_attn::cli::bench::Stage;
use stem_attn_benches::{Machine, time};

pub fn host(c: &mut Criterion, machine: &Machine) {
    let mut group = machine.group(c, "host");
    for &tokens in machine.lengths {
        let case = machine.case(tokens);
        for stage in [Stage::HostPlan, Stage::HostRun] {
            let mut engine = machine.engine(&case, stage, None);
            group.bench_function(BenchmarkId::new(stage.name(), tokens), |b| b.iter_custom(|launches| time(engine.as_mut(), launches)));
        }
    }
    group.finish();
}
