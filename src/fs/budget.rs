//! How much of the host's disk may hold bytes that are not in their buckets.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sys::statvfs::{Statvfs, statvfs};
use tokio::sync::Notify;

use crate::config::options::MinFree;

/// The daemon's staging budget, shared by all its volumes.
#[derive(Debug)]
pub struct StagingBudget {
    limit: u64,
    min_free: MinFree,
    used: AtomicU64,
    released: Notify,
    /// Writers wait, and the log says so.
    is_short: AtomicBool,
}

impl StagingBudget {
    /// At most `limit` bytes staged, and so much of the disk left free.
    pub fn new(limit: u64, min_free: MinFree) -> Arc<Self> {
        Arc::new(Self {
            limit,
            min_free,
            used: AtomicU64::new(0),
            released: Notify::new(),
            is_short: AtomicBool::new(false),
        })
    }

    /// Whether `bytes` more may be staged in `directory`. A file system that does not say how full it is counts as
    /// having room: the write itself will tell.
    pub(crate) fn has_room(&self, bytes: u64, directory: &Path) -> bool {
        if self.used.load(Ordering::Relaxed).saturating_add(bytes) > self.limit {
            return false;
        }
        statvfs(directory).is_ok_and(|disk| {
            let (free, total) = free_of(&disk);
            free >= self.min_free.of(total).saturating_add(bytes)
        })
    }

    /// Waits until somebody gives room back.
    pub(crate) async fn released(&self) {
        self.released.notified().await;
    }

    /// A writer has waited for room in `directory`. Said once, until there is room again.
    pub(crate) fn note_short(&self, directory: &Path) {
        if !self.is_short.swap(true, Ordering::Relaxed) {
            let (free, total) = statvfs(directory).map_or((0, 0), |disk| free_of(&disk));
            tracing::warn!(
                directory = %directory.display(),
                staged_bytes = self.used.load(Ordering::Relaxed), staging_limit = self.limit,
                free_bytes = free, min_free = self.min_free.of(total),
                "writers wait for room on this host's disk",
            );
        }
    }

    /// One that had to wait has found room.
    pub(crate) fn note_room(&self) {
        if self.is_short.swap(false, Ordering::Relaxed) {
            tracing::info!("there is room for writers again");
        }
    }

    /// An account in the budget.
    pub(crate) fn account(self: &Arc<Self>) -> StagingAccount {
        StagingAccount {
            budget: Arc::clone(self),
            bytes: 0,
        }
    }
}

/// Bytes that are free on a file system, and all it has.
pub(super) fn free_of(disk: &Statvfs) -> (u64, u64) {
    let unit = disk.fragment_size();
    let free = disk.blocks_available().saturating_mul(unit);
    (free, disk.blocks().saturating_mul(unit))
}

/// What one staging file takes of the budget; given back when dropped.
#[derive(Debug)]
pub(crate) struct StagingAccount {
    budget: Arc<StagingBudget>,
    bytes: u64,
}

impl StagingAccount {
    /// The file is so many bytes long now.
    pub(crate) fn set(&mut self, bytes: u64) {
        if bytes > self.bytes {
            let more = bytes - self.bytes;
            self.budget.used.fetch_add(more, Ordering::Relaxed);
        } else if bytes < self.bytes {
            let less = self.bytes - bytes;
            self.budget.used.fetch_sub(less, Ordering::Relaxed);
            self.budget.released.notify_waiters();
        }
        self.bytes = bytes;
    }
}

impl Drop for StagingAccount {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_staged_counts_until_it_is_given_back() {
        let budget = StagingBudget::new(100, MinFree::Bytes(0));
        let here = Path::new("/tmp");
        let mut account = budget.account();
        account.set(60);
        assert!(budget.has_room(40, here) && !budget.has_room(41, here));
        account.set(10);
        assert!(budget.has_room(90, here));
        drop(account);
        assert!(budget.has_room(100, here));
        assert!(!StagingBudget::new(100, MinFree::Percent(100)).has_room(1, here));
    }
}
