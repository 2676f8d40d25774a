//! The task that brings into the bucket what nobody waits for.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::{AbortHandle, JoinSet};

use super::queue::{Failure, UploadQueue};
use crate::fs::error::FsError;
use crate::fs::filesystem::FileSystem;
use crate::fs::inode::{Inode, Linked};

/// Files on their way at once; each may have several parts in flight.
const FILES_IN_FLIGHT: usize = 32;

/// What is to be uploaded, and what wakes the task that does it.
#[derive(Debug)]
pub(crate) struct Uploader {
    queue: Mutex<UploadQueue>,
    woken: Notify,
    slots: Arc<Semaphore>,
    task: Mutex<Option<AbortHandle>>,
}

impl Uploader {
    /// An uploader for a volume with this `upload_delay` and `max_dirty_age`.
    pub(crate) fn new(delay: Duration, max_age: Duration) -> Self {
        Self {
            queue: Mutex::new(UploadQueue::new(delay, max_age)),
            woken: Notify::new(),
            slots: Arc::new(Semaphore::new(FILES_IN_FLIGHT)),
            task: Mutex::default(),
        }
    }

    /// Stops where it is: what is not in the bucket stays in the journal.
    pub(crate) fn stop(&self) {
        if let Some(task) = self.task.lock().take() {
            task.abort();
        }
    }

    /// Changes the queue; the task looks again if something is due earlier now.
    pub(crate) fn tell(&self, change: impl FnOnce(&mut UploadQueue)) {
        let mut queue = self.queue.lock();
        let before = queue.next_due();
        change(&mut queue);
        if queue.next_due() != before {
            self.woken.notify_one();
        }
    }
}

impl FileSystem {
    /// Starts the task. It ends with the file system.
    pub(crate) fn start_uploader(self: &Arc<Self>) {
        let task = tokio::spawn(run(Arc::downgrade(self), Arc::clone(&self.uploader)));
        *self.uploader.task.lock() = Some(task.abort_handle());
    }

    /// Makes the bucket equal to what an inode is now.
    pub(crate) async fn bring(&self, inode: &Arc<Inode>) -> Result<(), FsError> {
        let is_done_with = {
            let state = inode.state.lock();
            state.linked == Linked::No && state.opens == 0
        };
        if is_done_with {
            self.delete_orphan(inode).await
        } else {
            self.upload(inode, &Arc::default()).await
        }
    }

    async fn upload_in_background(self: Arc<Self>, ino: u64, _slot: OwnedSemaphorePermit) {
        let inode = self.tree.lock().inode_to_send(ino);
        let result = match inode {
            Some(inode) => {
                let result = self.bring(&inode).await;
                self.give_back_dead(&inode).await;
                result.inspect_err(|error| self.note_upload_error(&inode, error))
            }
            // It is no inode any more, or never was one.
            None => self.abort(ino).await,
        };
        let now = self.now();
        match result {
            Ok(()) => self.uploader.tell(|queue| queue.sent(ino, now)),
            Err(error) => {
                let failure = if error.is_transient() {
                    Failure::Away
                } else {
                    Failure::Refused
                };
                self.uploader.tell(|queue| queue.failed(ino, failure, now));
            }
        }
        self.remove_retired().await;
        self.trim_journal().await;
    }
}

async fn run(fs: Weak<FileSystem>, uploader: Arc<Uploader>) {
    let Some(clock) = fs.upgrade().map(|fs| fs.clock()) else {
        return;
    };
    // They end with this task.
    let mut uploads = JoinSet::new();
    loop {
        while uploads.try_join_next().is_some() {}
        let woken = uploader.woken.notified();
        let Ok(slot) = Arc::clone(&uploader.slots).acquire_owned().await else {
            return;
        };
        let (ino, next_due) = {
            let mut queue = uploader.queue.lock();
            (queue.take(clock.monotonic()), queue.next_due())
        };
        let Some(fs) = fs.upgrade() else { return };
        if let Some(ino) = ino {
            uploads.spawn(fs.upload_in_background(ino, slot));
            continue;
        }
        drop((slot, fs));
        match next_due {
            Some(due) => {
                tokio::select! {
                    () = woken => {}
                    () = clock.sleep_until(due) => {}
                }
            }
            None => woken.await,
        }
    }
}

impl FsError {
    /// Whether the same upload may succeed later without anybody's help.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Store(error) => error.is_transient(),
            Self::TimedOut(_) | Self::Staging(_) => true,
            _ => false,
        }
    }
}
