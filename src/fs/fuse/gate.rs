//! How a connection comes to rest, so that its process can end and leave nothing unanswered that it has read.
//!
//! fuser's threads cannot be told to read no more. But each comes by here when it is done with a request, and stays if
//! the gate is shut; one that waits in read(2) is sent here by a request of our own. When all are here, what others ask
//! waits in the kernel for the next process.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use nix::sys::statfs::statfs;

use super::connection::Connection;
use super::session::{LOOPS, Session};
use crate::fs::{FileSystem, Format};

/// How long requests in hand are waited for. Where the kernel can send them again, the next process is not kept
/// waiting by a store that is slow; elsewhere, what is not answered is interrupted.
const LIMIT: Duration = Duration::from_secs(1);
const LIMIT_OF_OLD_KERNELS: Duration = Duration::from_secs(10);

/// How often it is looked whether the connection is at rest.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Where the threads of a connection come by between two requests.
#[derive(Debug, Default)]
pub(super) struct Gate {
    is_shut: AtomicBool,
    /// Threads that stay here.
    held: AtomicUsize,
    /// Requests that have left their thread and are not answered.
    in_hand: Arc<AtomicUsize>,
}

/// A request that has left its thread, until it is answered.
#[derive(Debug)]
pub(super) struct InHand(Arc<AtomicUsize>);

impl Drop for InHand {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Gate {
    /// The request of this thread goes on elsewhere.
    pub(super) fn leave_thread(&self) -> InHand {
        self.in_hand.fetch_add(1, Ordering::SeqCst);
        InHand(Arc::clone(&self.in_hand))
    }

    pub(super) fn is_shut(&self) -> bool {
        self.is_shut.load(Ordering::SeqCst)
    }

    /// This thread is done with its request. If the gate is shut, it never returns: its process is about to end.
    pub(super) fn pass(&self) {
        if !self.is_shut() {
            return;
        }
        self.held.fetch_add(1, Ordering::SeqCst);
        loop {
            std::thread::park();
        }
    }

    fn is_at_rest(&self) -> bool {
        // In this order: who is held leaves nothing in hand uncounted.
        self.held.load(Ordering::SeqCst) == LOOPS && self.in_hand.load(Ordering::SeqCst) == 0
    }
}

/// A session that can be handed over. It holds nothing that the session's end would let go.
#[derive(Debug, Clone)]
pub struct Served {
    connection: Weak<Connection>,
    filesystem: Weak<FileSystem>,
    /// What is asked by ourselves goes there.
    mountpoint: PathBuf,
}

impl Served {
    /// A session that `filesystem` serves by what it notes of its `connection`.
    pub fn new(
        session: &Session,
        connection: &Arc<Connection>,
        filesystem: &Arc<FileSystem>,
    ) -> Self {
        Self {
            connection: Arc::downgrade(connection),
            filesystem: Arc::downgrade(filesystem),
            mountpoint: session.attachment().path().to_owned(),
        }
    }

    /// Whether the session has not ended.
    pub fn is_alive(&self) -> bool {
        self.connection.strong_count() > 0
    }

    /// What the next process finds is of this format from now on. Tables first: see [`crate::fs::Format`].
    pub fn set_format(&self, format: Format) {
        let (Some(connection), Some(filesystem)) =
            (self.connection.upgrade(), self.filesystem.upgrade())
        else {
            return;
        };
        let done = connection.set_format(format);
        if let Err(error) = done.and_then(|()| filesystem.set_format(format)) {
            let mountpoint = self.mountpoint.display();
            tracing::error!(%mountpoint, %error, "what is left to the next worker stays of the format before");
        }
    }

    /// Reads no more requests, answers those that were read, and notes that this process ends by itself. It must end
    /// then. After a limit it may: what is left unanswered the kernel sends again, or interrupts before 6.9.
    pub async fn hand_over(&self) {
        let Some(connection) = self.connection.upgrade() else {
            return;
        };
        let limit = match connection.resends() {
            true => LIMIT,
            false => LIMIT_OF_OLD_KERNELS,
        };
        let gate = &connection.gate;
        gate.is_shut.store(true, Ordering::SeqCst);
        self.wake_threads();
        let rest = async {
            while !gate.is_at_rest() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        if tokio::time::timeout(limit, rest).await.is_err() {
            tracing::info!(
                mountpoint = %self.mountpoint.display(),
                requests = gate.in_hand.load(Ordering::SeqCst),
                "left to the next worker unanswered",
            );
        }
        connection.hand_over();
    }

    /// Asks what no cache answers, once for each thread. What finds no thread any more is dropped with this process. If
    /// something else lies on the mount point now, a thread may stay in read(2), and what it reads there be left
    /// unanswered.
    fn wake_threads(&self) {
        for _ in 0..LOOPS {
            let mountpoint = self.mountpoint.clone();
            let ask = move || statfs(&mountpoint).is_ok();
            let thread = std::thread::Builder::new().name("fuse-wake".into());
            if let Err(error) = thread.spawn(ask) {
                tracing::warn!(%error, "no thread to come to rest with");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_at_rest_when_every_thread_is_held_and_all_is_answered() {
        let gate = Arc::new(Gate::default());
        gate.pass();
        gate.is_shut.store(true, Ordering::SeqCst);
        let (first, second) = (gate.leave_thread(), gate.leave_thread());
        for held in 1..=LOOPS {
            let ours = Arc::clone(&gate);
            std::thread::spawn(move || ours.pass());
            while gate.held.load(Ordering::SeqCst) < held {
                std::thread::yield_now();
            }
            assert!(!gate.is_at_rest());
        }
        drop(second);
        assert!(!gate.is_at_rest());
        drop(first);
        assert!(gate.is_at_rest());
    }
}
