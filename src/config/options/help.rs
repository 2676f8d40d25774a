//! The table of keys, for people.

use std::fmt::Write;

use super::{Options, Scope};
use crate::config::keys::{KEYS, KeySpec};

impl Options {
    /// The table of keys as text for `--help`.
    pub fn help_table(scope: Scope) -> String {
        let mut text = String::new();
        for spec in KEYS.iter().filter(|spec| spec.may_be_said(scope)) {
            let aliases = match spec.aliases {
                [] => String::new(),
                aliases => format!(" (also {})", aliases.join(", ")),
            };
            let default = if spec.default == "-" {
                String::new()
            } else {
                format!(" [{}]", spec.default)
            };
            let KeySpec {
                name,
                help,
                accepts,
                ..
            } = spec;
            let _ = writeln!(text, "  {name}{aliases}: {help}{default}\n      {accepts}");
        }
        text
    }

    /// The table of keys as the document docs/OPTIONS.md.
    pub fn help_markdown() -> String {
        let mut text = String::from(
            "# Options\n\n\
             The same words in `docker volume create -o`, `bucketvol volume create -o` and `bucketvol mount -o`.\n\
             An unknown key, a bad value or a contradiction is refused at once. A key without a value means `true`.\n\
             This page is generated from the table in `src/config/keys.rs`; a test compares the two.\n\n\
             | key | default | accepts | meaning |\n|---|---|---|---|\n",
        );
        for spec in KEYS {
            let mut key = format!("`{}`", spec.name);
            for alias in spec.aliases {
                let _ = write!(key, ", `{alias}`");
            }
            let host = match spec.host_only {
                Some(instead) => format!(". Mounts only; for volumes: {instead}"),
                None => String::new(),
            };
            let KeySpec {
                default,
                accepts,
                help,
                ..
            } = spec;
            let _ = writeln!(text, "| {key} | {default} | {accepts} | {help}{host} |");
        }
        text.push_str(
            "\nSizes are bytes or numbers with a unit: `K`, `M`, `G` count in thousands, `KiB`, `MiB`, `GiB` in 1024s.\n",
        );
        text
    }
}
