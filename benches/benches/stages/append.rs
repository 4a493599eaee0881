//! New K and V into their pages: bf16 in, e4m3 out.

use criterion::{BenchmarkId, Criterion, Throughput};
use stem_attn::cli::bench::Stage;
use stem_attn_benches::{Machine, time};

pub fn append(c: &mut Criterion, machine: &Machine) {
    let mut group = machine.group(c, "append");
    for &tokens in machine.lengths {
        let case = machine.case(tokens);
        let mut engine = machine.engine(&case, Stage::AppendKv, None);
        // K and V: two bytes of every value read, one written.
        group.throughput(Throughput::Bytes((2 * 3 * case.problem.k.len()) as u64));
        group.bench_function(BenchmarkId::new("append_kv", tokens), |b| b.iter_custom(|launches| time(engine.as_mut(), launches)));
    }
    group.finish();
}
