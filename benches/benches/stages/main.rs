//! Criterion benches of every stage; `cargo bench --package stem-attn-benches --bench stages -- attend` runs one group.

mod append;
mod attend;
mod host;
mod prefill;
mod select;

use criterion::{Criterion, criterion_group, criterion_main};
use std::time::Duration;
use stem_attn_benches::Machine;

fn stages(c: &mut Criterion) {
    let machine = Machine::open();
    attend::attend(c, &machine);
    select::select(c, &machine);
    append::append(c, &machine);
    prefill::prefill(c, &machine);
    host::host(c, &machine);
}

/// The least that gives a stable median: a launch takes 10 us to 160 ms, and there are 37 benches. The command line may ask for
/// more (`--measurement-time 5`).
fn short() -> Criterion {
    Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1))
}

criterion_group!(name = benches; config = short(); targets = stages);
criterion_main!(benches);
