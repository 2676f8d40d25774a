//! The daemon's memory, by what it is for. Who reads comes first: a share of his own waits for nobody else. Uploads come
//! next, then what is read ahead, which takes what is left over and never waits. What is at rest makes room for nobody:
//! it has what the others cannot have.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The unit that a semaphore counts memory in.
const KIB: u64 = 1024;

/// A share is never less than a large read of the kernel's takes, however little memory there is.
const SHARE_MIN: u64 = 1 << 20;

/// What of a daemon's memory is for what, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shares {
    /// Blocks on their way to who waits for them.
    demand: u64,
    /// Parts of uploads, and blocks on their way ahead of any reader.
    moving: u64,
    /// Of that so much is not for what is read ahead: an upload that begins is not to wait for it.
    upload: u64,
    /// Names that nobody holds.
    pub(crate) names: u64,
    /// Blocks that are here.
    pub(crate) at_rest: u64,
}

impl Shares {
    /// What each gets of `memory` bytes.
    pub(crate) fn of(memory: u64) -> Self {
        let (demand, names) = (memory / 8, memory / 16);
        let moving = memory / 8 * 3;
        Self {
            demand: demand.max(SHARE_MIN),
            moving: moving.max(SHARE_MIN),
            upload: moving / 4,
            names,
            at_rest: memory - demand - moving - names,
        }
    }
}

/// Memory that is given back when this is dropped.
pub(crate) type Reserved = OwnedSemaphorePermit;

/// Who has what of a daemon's memory that is not at rest.
#[derive(Debug)]
pub(crate) struct MemoryBudget {
    demand: Pool,
    moving: Pool,
    upload: u64,
}

impl MemoryBudget {
    /// Nobody has anything.
    pub(crate) fn new(shares: &Shares) -> Self {
        Self {
            demand: Pool::new(shares.demand),
            moving: Pool::new(shares.moving),
            upload: shares.upload,
        }
    }

    /// Waits for memory to read what somebody waits for: for nobody but others who read.
    pub(crate) async fn demand(&self, bytes: u64) -> Reserved {
        self.demand.take(bytes).await
    }

    /// Waits for the memory of an upload's part. A part larger than all there is gets all of it.
    pub(crate) async fn upload(&self, bytes: u64) -> Reserved {
        self.moving.take(bytes).await
    }

    /// Memory to read ahead into, if there is so much that nobody needs.
    pub(crate) fn readahead(&self, bytes: u64) -> Option<Reserved> {
        if bytes > self.readahead_room() {
            return None;
        }
        self.moving.try_take(bytes)
    }

    /// Bytes that may be read ahead now.
    pub(crate) fn readahead_room(&self) -> u64 {
        self.moving.left().saturating_sub(self.upload)
    }
}

#[derive(Debug)]
struct Pool {
    kib: Arc<Semaphore>,
    all: u32,
}

impl Pool {
    fn new(bytes: u64) -> Self {
        // A semaphore counts to 2^29 on the smallest machines.
        let all = u32::try_from(bytes / KIB).unwrap_or(u32::MAX).min(1 << 28);
        let permits = usize::try_from(all).expect("usize has at least 32 bits");
        Self {
            kib: Arc::new(Semaphore::new(permits)),
            all,
        }
    }

    fn left(&self) -> u64 {
        self.kib.available_permits() as u64 * KIB
    }

    fn kib_of(&self, bytes: u64) -> u32 {
        let kib = u32::try_from(bytes.div_ceil(KIB)).unwrap_or(u32::MAX);
        kib.clamp(1, self.all)
    }

    /// In the order in which they came.
    async fn take(&self, bytes: u64) -> Reserved {
        let permit = Arc::clone(&self.kib).acquire_many_owned(self.kib_of(bytes));
        permit.await.expect("the semaphore is never closed")
    }

    fn try_take(&self, bytes: u64) -> Option<Reserved> {
        let permit = Arc::clone(&self.kib).try_acquire_many_owned(self.kib_of(bytes));
        permit.ok()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_shares_are_all_of_the_memory_and_no_more() {
        for memory in [8 * MIB, 64 * MIB, 256 * MIB, 5000 * MIB] {
            let shares = Shares::of(memory);
            let all = shares.demand + shares.moving + shares.names + shares.at_rest;
            assert_eq!(all, memory);
            assert!(shares.at_rest >= memory * 7 / 16);
        }
        let shares = Shares::of(256 * MIB);
        assert_eq!((shares.demand, shares.moving), (32 * MIB, 96 * MIB));
        // Too little is better than nothing at all.
        assert_eq!(Shares::of(0).demand, SHARE_MIN);
    }

    #[test]
    fn who_reads_waits_for_no_upload_and_an_upload_for_nothing_that_is_read_ahead() {
        let budget = MemoryBudget::new(&Shares::of(256 * MIB));
        let ahead = budget.readahead(72 * MIB).unwrap();
        assert!(budget.readahead(1).is_none());
        let part = budget.upload(24 * MIB).now_or_never().unwrap();
        assert!(budget.upload(1).now_or_never().is_none());
        let read = budget.demand(32 * MIB).now_or_never().unwrap();
        assert!(budget.demand(1).now_or_never().is_none(), "but for others");
        drop((ahead, part, read));
        let all = budget.upload(1 << 40).now_or_never().unwrap();
        assert_eq!(budget.readahead_room(), 0);
        drop(all);
        assert_eq!(budget.readahead_room(), 72 * MIB);
    }

    #[tokio::test]
    async fn nothing_is_read_ahead_while_an_upload_waits() {
        let budget = MemoryBudget::new(&Shares::of(256 * MIB));
        let first = budget.upload(60 * MIB).await;
        let mut second = Box::pin(budget.upload(60 * MIB));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(budget.readahead(MIB).is_none());
        drop(first);
        assert!(second.now_or_never().is_some());
    }
}
