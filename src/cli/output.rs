//! What a script relies on: data on stdout, messages on stderr, four exit statuses.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

/// What the exit statuses mean, for `--help`.
pub(super) const EXIT_STATUS: &str =
    "Exit status: 0 done; 1 error; 2 wrong usage; 3 the time was over and bytes are left.";

/// Something took longer than the caller wanted to wait; it goes on by itself.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct TimedOut(pub(super) String);

/// Prints data. A reader that went away is no error of ours.
pub(super) fn print(text: impl Display) {
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
}

/// Prints a message for a person.
pub(super) fn say(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "bucketvol: {text}");
}

/// Prints an error, its causes behind it, on one line, and chooses the exit status.
pub(super) fn report(error: &anyhow::Error) -> ExitCode {
    say(one_line(error));
    match error.downcast_ref::<TimedOut>() {
        Some(_) => ExitCode::from(3),
        None => ExitCode::from(1),
    }
}

/// The chain of causes without what a cause repeats of the one before it.
pub(super) fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if line.contains(&text) {
            continue;
        }
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(&text);
    }
    line
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn an_error_and_its_causes_are_one_line_without_repetition() {
        let error = Err::<(), _>(io::Error::other("disk\n  gone"))
            .context("disk gone")
            .context("mount /mnt")
            .expect_err("an error");
        assert_eq!(one_line(&error), "mount /mnt: disk gone");
    }
}
