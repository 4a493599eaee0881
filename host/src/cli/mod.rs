//! The `stem` program: argument types and the way errors leave the process.
//!
//! Not part of the library's interface; public so that the binary can call [`main`].

/// `println!` that leaves a reader who has hung up (`| head`) in peace: `println!` panics there.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        // Nobody is left to tell.
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

mod accuracy;
mod args;
pub mod bench;
mod clocks;
mod commas;
mod files;
mod heatmap;
mod info;
pub mod input;
mod machine;
mod prefill;
mod progress;
mod table;
pub mod work;

use crate::error::Error;
use clap::Parser;
use std::process::ExitCode;

/// Parses the command line and runs the command.
///
/// Exit code 0: done. 2: the caller can mend it (arguments, files, tensors, no GPU). 1: something failed on the way
/// (the driver, a wrong result).
pub fn main() -> ExitCode {
    let outcome = match args::Cli::parse().command {
        args::Command::Prefill(a) => prefill::run(&a),
        args::Command::Bench(a) => bench::run(&a),
        args::Command::Info => info::run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", one_line(&format!("{error:#}")));
            ExitCode::from(exit_code(&error))
        }
    }
}

/// A message on one line of bounded length without control characters, whatever a JIT log or a file's names hold.
fn one_line(message: &str) -> String {
    let lines: Vec<_> = message.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    lines.join(" | ").chars().filter(|c| !c.is_control()).take(4000).collect()
}

fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<Error>() {
        Some(Error::Driver { .. } | Error::Jit { .. }) | None => 1,
        Some(_) => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_one_line() {
        assert_eq!(one_line("a\n\n  b\u{1b}[31m\r\nc"), "a | b[31m | c");
    }

    #[test]
    fn exit_codes_tell_who_can_mend_it() {
        assert_eq!(exit_code(&Error::shape("q", "a", "b").into()), 2);
        assert_eq!(exit_code(&Error::Unavailable("no driver".into()).into()), 2);
        assert_eq!(exit_code(&Error::Driver { call: "cuLaunch", message: String::new() }.into()), 1);
        assert_eq!(exit_code(&anyhow::anyhow!("wrong result")), 1);
    }
}
