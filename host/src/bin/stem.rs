//! The `stem` program: prefill on tensors from a file, facts about this machine, benchmarks.

fn main() -> std::process::ExitCode {
    stem_attn::cli::main()
}
