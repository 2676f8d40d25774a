//! Which request of the kernel something is done for.

use std::collections::VecDeque;
use std::future::Future;

use serde::{Deserialize, Serialize};

/// The kernel sets this bit of a request's number when it sends the request again (`FUSE_UNIQUE_RESEND`).
const RESENT: u64 = 1 << 63;

tokio::task_local! {
    static CURRENT: RequestId;
}

/// One request of the kernel. It is the same when the kernel sends the request again to the next process, which finds
/// it in the journal if this one had done what it asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RequestId {
    /// The connection: no two have the same.
    epoch: u64,
    /// The kernel's number, unique in its connection.
    unique: u64,
}

impl RequestId {
    /// The request with the kernel's number `unique` on the connection `epoch`.
    pub fn new(epoch: u64, unique: u64) -> Self {
        Self {
            epoch,
            unique: unique & !RESENT,
        }
    }

    /// The request that the current task works on. `None`: what is done, nobody has asked for just now.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(|id| *id).ok()
    }

    /// What `work` does, but not what it spawns, is done for this request.
    pub fn scope<F: Future>(self, work: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self, work)
    }

    /// Likewise, for what is done at once.
    pub fn sync_scope<T>(self, work: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self, work)
    }
}

/// How many requests are remembered as done: far more than a kernel has in hand of a connection, and it is those that
/// may come again.
const RECENT_MAX: usize = 4096;

/// The requests that were done last.
#[derive(Debug, Clone, Default)]
pub(crate) struct RecentRequests(VecDeque<DoneRequest>);

#[derive(Debug, Clone, Copy)]
struct DoneRequest {
    id: RequestId,
    /// Bytes that its record says were written, if there still is one.
    written: Option<u64>,
}

impl RecentRequests {
    /// One more is done, which has written so many bytes, if that is known.
    pub(crate) fn push(&mut self, id: RequestId, written: Option<u64>) {
        if self.0.len() == RECENT_MAX {
            self.0.pop_front();
        }
        self.0.push_back(DoneRequest { id, written });
    }

    pub(crate) fn contains(&self, request: RequestId) -> bool {
        self.0.iter().any(|done| done.id == request)
    }

    /// How many bytes the request has written, if that is known.
    pub(crate) fn written(&self, request: RequestId) -> Option<u64> {
        self.0.iter().find(|done| done.id == request)?.written
    }

    /// In the order in which they were done.
    pub(crate) fn to_vec(&self) -> Vec<RequestId> {
        self.0.iter().map(|done| done.id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_spawned_is_not_done_for_the_request() {
        let id = RequestId::new(1, 2);
        assert_eq!(RequestId::current(), None);
        let (here, spawned) = id
            .scope(async {
                let spawned = tokio::spawn(async { RequestId::current() });
                (RequestId::current(), spawned.await.unwrap())
            })
            .await;
        assert_eq!((here, spawned), (Some(id), None));
        assert_eq!(id.sync_scope(RequestId::current), Some(id));
    }

    #[test]
    fn a_request_that_is_sent_again_is_the_same() {
        assert_eq!(RequestId::new(1, 2), RequestId::new(1, 2 | RESENT));
        assert_ne!(RequestId::new(1, 2), RequestId::new(2, 2));
    }
}
