//! The keeper is the last process of all to be sacrificed when memory is short; its worker is as any other.

use std::fs;
use std::io;

const FILE: &str = "/proc/self/oom_score_adj";
/// The least likely victim but for those that are none at all.
const PROTECTED: &str = "-999";

/// Protects this process; what it had before. Needs CAP_SYS_RESOURCE: without it, all stays as it is.
pub(super) fn protect() -> Option<i32> {
    let before = fs::read_to_string(FILE).ok()?.trim().parse().ok()?;
    if let Err(error) = fs::write(FILE, PROTECTED) {
        tracing::debug!("the keeper is not protected from the OOM killer: {error}");
    }
    Some(before)
}

/// Gives a worker what its keeper had before.
pub(super) fn set(score_adj: i32) -> io::Result<()> {
    fs::write(FILE, score_adj.to_string())
}
