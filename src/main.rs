//! The `bucketvol` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    bucketvol::cli::run()
}
