//! Criterion benches of every stage; `cargo bench --package stem-attn-benches --bench stages -- attend` runs one group.

mod append;
mod attend;
mod host;
mod prefill;
mod select;

use criterion::{Criterion, criterion_group, criterion_main};
use stem_attn_benches::Machine;

fn stages(c: &mut Criterion) {
    let machine = Machine::open();
    attend::attend(c, &machine);
    select::select(c, &machine);
    append::append(c, &machine);
    prefill::prefill(c, &machine);
    host::host(c, &machine);
}

criterion_group!(benches, stages);
criterion_main!(benches);
