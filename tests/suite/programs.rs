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
use crate::common::process::{cannot_run, succeed};

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

/// Requests that the mount has sent so far, by verb, once everything is in the bucket.
fn requests(mounted: &Mounted) -> BTreeMap<String, u64> {
    succeed(mounted.bucketvol(60).arg("sync").arg(mounted.path("")));
    let status = succeed(mounted.bucketvol(60).args(["status", "--json"]));
    let status: Vec<serde_json::Value> = serde_json::from_str(&status).expect("JSON");
    // Other mounts of root's may be there.
    let mut mounts = status.iter().map(|process| &process["mounts"][0]);
    let ours = |mount: &&serde_json::Value| {
        let point = mount["mountpoint"].as_str();
        point.is_some_and(|point| mounted.path("").starts_with(point))
    };
    let mount = mounts.find(ours).expect("it is mounted");
    serde_json::from_value(mount["requests"].clone()).expect("a number for each verb")
}

/// Those of them that change the bucket.
fn writing(mounted: &Mounted) -> BTreeMap<String, u64> {
    let mut requests = requests(mounted);
    requests.retain(|verb, _| !matches!(verb.as_str(), "get" | "head" | "list" | "list_multipart"));
    requests
}
