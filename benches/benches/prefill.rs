//! Benchmarks of the prefill stages.

fn main() {}
