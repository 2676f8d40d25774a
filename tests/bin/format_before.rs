//! The program as it was before this release's formats: it writes those before, and reads no later ones.

use std::process::ExitCode;

use bucketvol::fs::Format;

fn main() -> ExitCode {
    bucketvol::cli::run(Format::FIRST)
}
