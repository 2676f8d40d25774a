//! The `bucketvol` program.

use std::process::ExitCode;

use bucketvol::fs::Format;

fn main() -> ExitCode {
    bucketvol::cli::run(Format::CURRENT)
}
