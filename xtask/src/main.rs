//! Workspace automation: `cargo xtask <command>`. This package depends on no other package of the workspace, so that it
//! builds and runs when they do not.

/// `println!` that leaves a reader who has hung up (`| head`) in peace: `println!` panics there.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        // Nobody is left to tell.
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

mod audit;
mod bench;
mod build_ptx;
mod check;
mod demo;
mod doctor;
mod hash;
mod manifest;
mod package_gpu;
mod plot;
mod ptx;
mod ptxas;
mod sh;
mod test;
mod tidy;
mod toolchain;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, check and run stem-attn", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compile the kernels to host/ptx
    BuildPtx(build_ptx::Args),
    /// Assemble the PTX and check registers, spills, warnings, launch bounds and instruction counts
    Audit(audit::Args),
    /// Everything that can be checked without running code, cheapest first
    Check(check::Args),
    /// Run the tests: CPU, PTX, and GPU where there is one
    Test(test::Args),
    /// Run `stem prefill` on the capture that ships with the repository
    Demo(demo::Args),
    /// Say what this machine lacks and which command mends it
    Doctor,
    /// Compare two commits' records; ends with 1 where something became slower
    Bench(bench::Args),
    /// Draw every figure of the documentation from the committed records
    Plot(plot::Args),
    /// Collect test, bench and `stem` binaries in a folder that runs on a GPU machine without Rust
    PackageGpu(package_gpu::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::BuildPtx(args) => build_ptx::run(&args),
        Command::Audit(args) => audit::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Doctor => doctor::run(),
        Command::Bench(args) => bench::run(&args),
        Command::Plot(args) => plot::run(&args),
        Command::PackageGpu(args) => package_gpu::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Not returned from main: a backtrace of this program helps nobody who reads that a kernel spills.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
