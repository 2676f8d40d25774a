//! How much of it there is: statfs, the quota, and the count behind both.
//!
//! What is counted how is decided in `usage`. A count is a listing of the volume in a task of its own; nobody waits
//! for it.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::dir::PAGE_KEYS;
use crate::fs::error::FsError;
use crate::fs::filesystem::FileSystem;
use crate::fs::inode::{Inode, InodeState, Linked};
use crate::fs::lock::{Ordered, USAGE};
use crate::fs::tree::Tree;
use crate::fs::usage::{Counted, Ledger, OverQuota};
use crate::store::{FileKind, Key, ListEntry, ListRequest};

/// What statfs(2) says of a volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// Bytes that its files may have together; `None`: as many as the store takes.
    pub size: Option<u64>,
    /// Bytes that they have, as far as is known.
    pub used_bytes: u64,
    /// How many they are, as far as is known.
    pub used_files: u64,
    /// A count has ended; until then what is known grows.
    pub is_counted: bool,
}

/// The ledger, and what wakes the task that counts.
#[derive(Debug)]
pub(crate) struct Usage {
    ledger: Ordered<Ledger, USAGE>,
    wanted: Notify,
    task: Mutex<Option<AbortHandle>>,
}

impl Usage {
    /// The usage of a volume of which the files may have `size` bytes together.
    pub(crate) fn new(size: Option<u64>) -> Self {
        Self {
            ledger: Ordered::new(Ledger::new(size)),
            wanted: Notify::new(),
            task: Mutex::default(),
        }
    }

    /// Nothing is counted any more.
    pub(crate) fn stop(&self) {
        if let Some(task) = self.task.lock().take() {
            task.abort();
        }
    }
}

impl From<OverQuota> for FsError {
    fn from(over: OverQuota) -> Self {
        Self::OverQuota(over.limit)
    }
}

impl FileSystem {
    /// What is known now. Sends no request.
    pub fn space(&self) -> Space {
        let ledger = self.usage.ledger.lock();
        let (used_bytes, used_files) = ledger.used();
        Space {
            size: self.settings.size,
            used_bytes,
            used_files,
            is_counted: ledger.is_counted(),
        }
    }

    /// Somebody wants to know: counts in the background, unless that was done lately.
    pub fn want_count(&self) {
        if self.usage.ledger.lock().is_due(self.now()) {
            self.usage.wanted.notify_one();
        }
    }

    /// Starts the task that counts. It ends with the file system.
    pub(crate) fn start_counter(self: &Arc<Self>) {
        let task = tokio::spawn(run(Arc::downgrade(self), Arc::clone(&self.usage)));
        *self.usage.task.lock() = Some(task.abort_handle());
        if self.settings.size.is_some() && !self.settings.read_only {
            self.want_count();
        }
    }

    /// Makes a file `size` bytes long by `change`, if it may be.
    pub(crate) fn sized<T>(
        &self,
        ino: u64,
        state: &mut InodeState,
        size: u64,
        change: impl FnOnce(&mut InodeState) -> Result<T, FsError>,
    ) -> Result<T, FsError> {
        let before = counted(ino, state);
        if before.bytes.is_none_or(|bytes| bytes == size) {
            return change(state);
        }
        self.allow(before, size)?;
        let bytes = before.bytes;
        change(state).inspect_err(|_| {
            let now = Counted {
                bytes: Some(size),
                ..counted(ino, state)
            };
            self.usage.ledger.lock().set(now, bytes);
        })
    }

    /// Whatever a change makes of a file's size is counted: a hard link follows its target, whose change was allowed.
    pub(crate) fn resized(
        &self,
        ino: u64,
        state: &mut InodeState,
        change: impl FnOnce(&mut InodeState),
    ) {
        let Counted { object, bytes, .. } = counted(ino, state);
        let object = object.cloned();
        change(state);
        let now = counted(ino, state).bytes;
        if now != bytes {
            let object = object.as_ref();
            let before = Counted { ino, object, bytes };
            self.usage.ledger.lock().set(before, now);
        }
    }

    /// Counts what was just put under a name, if it may be there.
    pub(crate) fn count_new(&self, tree: &Tree, inode: &Inode) -> Result<(), FsError> {
        let state = inode.state.lock();
        let new = counted(inode.ino, &state);
        let Some(bytes) = new.bytes else {
            return Ok(());
        };
        let key = tree.key_of(inode.ino);
        self.usage.ledger.lock().pass_over(key);
        self.allow(Counted { bytes: None, ..new }, bytes)
    }

    /// An inode loses its name: whatever is written to it from now on counts nothing.
    pub(crate) fn count_no_more(&self, inode: &Inode) {
        let mut state = inode.state.lock();
        let last = counted(inode.ino, &state);
        if last.bytes.is_some() {
            self.usage.ledger.lock().set(last, None);
            state.linked = Linked::No;
        }
    }

    /// These files are going to be at some of these keys.
    pub(crate) fn count_moved(&self, inodes: &[&Arc<Inode>], keys: [&Key; 2]) {
        for inode in inodes {
            let state = inode.state.lock();
            self.usage.ledger.lock().keep(counted(inode.ino, &state));
        }
        self.usage.ledger.lock().pass_over(keys.map(Clone::clone));
    }

    /// Directories are on their way in the bucket.
    pub(crate) fn disturb_count(&self) {
        self.usage.ledger.lock().disturb();
    }

    /// A file is not what it was, for a reason of which the ledger knows nothing.
    pub(crate) fn doubt_count(&self) {
        self.usage.ledger.lock().doubt();
    }

    fn allow(&self, file: Counted<'_>, bytes: u64) -> Result<(), FsError> {
        let (allowed, is_known) = {
            let mut ledger = self.usage.ledger.lock();
            (ledger.change(file, Some(bytes)), ledger.is_counted())
        };
        // Another host may have made room; or the first count has failed.
        if allowed.is_err() || !is_known && self.settings.size.is_some() {
            self.want_count();
        }
        Ok(allowed?)
    }

    async fn count(&self) {
        if !self.begin_count() {
            return;
        }
        let mut continuation = None;
        loop {
            let request = ListRequest {
                prefix: Key::root(),
                delimiter: false,
                max_keys: PAGE_KEYS,
                continuation,
            };
            let page = self.bucket.list(&request).await;
            let mut ledger = self.usage.ledger.lock();
            let page = match page {
                Ok(page) => page,
                Err(error) => {
                    tracing::warn!(bucket = %self.bucket.location(), %error, "files could not be counted");
                    return ledger.fail(self.now());
                }
            };
            ledger.page(page.entries.into_iter().filter_map(|entry| match entry {
                ListEntry::Object { key, size, .. } => Some((key, size)),
                ListEntry::Prefix(_) => None,
            }));
            continuation = page.continuation;
            if continuation.is_none() {
                return ledger.end(self.now());
            }
        }
    }

    /// Takes stock of what the listing will not have as it is here.
    fn begin_count(&self) -> bool {
        let tree = self.tree.lock();
        {
            let mut ledger = self.usage.ledger.lock();
            if !ledger.is_due(self.now()) {
                return false;
            }
            ledger.begin();
            if tree.has_migrations() {
                ledger.disturb();
            }
        }
        let mut keys = Vec::new();
        for inode in tree.inodes_in_core() {
            let state = inode.state.lock();
            let file = counted(inode.ino, &state);
            if file.bytes.is_none() || !state.unsent.any() {
                continue;
            }
            self.usage.ledger.lock().keep(file);
            let attempt = state.attempt.as_ref().map(|attempt| attempt.key.clone());
            keys.extend(attempt);
            drop(state);
            keys.extend(tree.key_of(inode.ino));
            keys.extend(tree.final_key(inode.ino));
        }
        keys.extend(
            tree.orphans()
                .filter_map(|inode| tree.orphan_key(inode.ino)),
        );
        keys.retain(|key| !is_settled(&tree, key));
        let mut ledger = self.usage.ledger.lock();
        ledger.pass_over(keys);
        ledger.began();
        true
    }
}

async fn run(fs: Weak<FileSystem>, usage: Arc<Usage>) {
    loop {
        usage.wanted.notified().await;
        let Some(fs) = fs.upgrade() else { return };
        fs.count().await;
    }
}

/// What an inode counts.
fn counted(ino: u64, state: &InodeState) -> Counted<'_> {
    let is_file = state.attr.kind != FileKind::Directory && state.linked != Linked::No;
    let bytes = match &state.remote {
        Some(remote) if !state.unsent.content => remote.size,
        _ => state.attr.size,
    };
    Counted {
        ino,
        object: state.remote.as_ref().map(|remote| &remote.key),
        bytes: is_file.then_some(bytes),
    }
}

/// Whether a file is in the bucket at this key as it is here.
fn is_settled(tree: &Tree, key: &Key) -> bool {
    tree.named(key).is_some_and(|inode| {
        let state = inode.state.lock();
        let at = state.remote.as_ref().map(|remote| &remote.key);
        !state.unsent.any() && at == Some(key)
    })
}
