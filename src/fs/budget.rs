//! How much of the host's disk may hold bytes that are not in their buckets.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::statvfs::statvfs;
use tokio::sync::Notify;

use crate::config::options::MinFree;

/// The daemon's staging budget, shared by all its volumes.
#[derive(Debug)]
pub struct StagingBudget {
    limit: u64,
    min_free: MinFree,
    used: AtomicU64,
    released: Notify,
}

impl StagingBudget {
    /// At most `limit` bytes staged, and so much of the disk left free.
    pub fn new(limit: u64, min_free: MinFree) -> Arc<Self> {
        Arc::new(Self {
            limit,
            min_free,
            used: AtomicU64::new(0),
            released: Notify::new(),
        })
    }

    /// Whether `bytes` more may be staged in `directory`. A file system that does not say how full it is counts as
    /// having room: the write itself will tell.
    pub(crate) fn has_room(&self, bytes: u64, directory: &Path) -> bool {
        if self.used.load(Ordering::Relaxed).saturating_add(bytes) > self.limit {
            return false;
        }
        statvfs(directory).is_ok_and(|disk| {
            let unit = disk.fragment_size();
            let free = disk.blocks_available().saturating_mul(unit);
            let total = disk.blocks().saturating_mul(unit);
            free >= self.min_free.of(total).saturating_add(bytes)
        })
    }

    /// Waits until somebody gives room back.
    pub(crate) async fn released(&self) {
        self.released.notified().await;
    }

    /// An account in the budget.
    pub(crate) fn account(self: &Arc<Self>) -> StagingAccount {
        StagingAccount {
            budget: Arc::clone(self),
            bytes: 0,
        }
    }
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
