//! The `stem` program.
fn main() {}
