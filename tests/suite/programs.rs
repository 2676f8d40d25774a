//! Programs of others on a real mount: what they do all day works, and what they leave is in the bucket.
//!
//! Needs root, /dev/fuse, fusermount3 and the programs; what is not installed is said, and is a failure on CI.

mod databases;
mod dialects;
mod packages;
mod s3fs;
mod trees;

use std::collections::BTreeMap;

use crate::common::mounted::Mounted;
use crate::common::process::cannot_run;

/// Whether this machine has these programs; says so where it has not.
fn has(programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |program: &&&str| std::env::split_paths(&path).any(|p| p.join(program).exists());
    let missing = programs.iter().find(|program| !is_there(program));
    if let Some(program) = missing {
        cannot_run(&format!("{program} is not installed"));
    }
    missing.is_none()
}

/// Requests that have changed the bucket so far, once everything is in it.
fn writing(mounted: &Mounted) -> BTreeMap<String, u64> {
    let mut requests = mounted.requests();
    requests.retain(|verb, _| !matches!(verb.as_str(), "get" | "head" | "list" | "list_multipart"));
    requests
}
