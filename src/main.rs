//! The `rsmount` command: parse, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    rsmount::cli::run(std::env::args_os().collect())
}
