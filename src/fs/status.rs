//! What there is to say about a volume: figures, and the changes that are not in the bucket yet.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::filesystem::FileSystem;
use super::inode::{Inode, InodeState, Unsent};
use super::ops::space::Space;
use super::tree::Tree;
use crate::store::{ConditionalWrites, FileKind};

/// Figures of one volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Bytes written that are not in the bucket.
    pub dirty_bytes: u64,
    /// Files that differ from their objects.
    pub dirty_files: u64,
    /// Bytes of the daemon's block cache in use.
    pub cache_bytes: u64,
    /// Bytes of disk that it uses.
    pub cache_disk_bytes: u64,
    /// Blocks that were read from the disk rather than asked of a store.
    pub cache_disk_hits: u64,
    /// Blocks looked up in it.
    pub cache_lookups: u64,
    /// Those that were there.
    pub cache_hits: u64,
    /// Bytes of the journal's file.
    pub journal_bytes: u64,
    /// How many of them a crash of the host leaves.
    pub journal_synced_bytes: u64,
    /// Bytes that the files may have together, and what they come to.
    pub space: Space,
    /// What the store makes of conditional writes; `None`: nothing was written yet.
    pub conditional_writes: Option<ConditionalWrites>,
    /// Requests to the store, by verb.
    pub requests: BTreeMap<String, u64>,
    /// The last failure that a program was told of.
    pub last_error: Option<String>,
    /// Names in the bucket that no directory can have, of the directories that were listed.
    pub unshowable_names: u64,
    /// Changes that are not in the bucket yet.
    pub pending_changes: u64,
    /// At most a thousand of them, by key.
    pub pending: Vec<Pending>,
}

/// A change that is not in the bucket yet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pending {
    /// The key it is to be done at.
    pub key: String,
    /// What is to be done.
    pub change: Change,
    /// Bytes to send.
    pub bytes: u64,
    /// Why the last attempt failed, if the store refused it.
    pub reason: Option<String>,
}

/// What a pending change is about: the first that holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Bytes of a file.
    Content,
    /// Its object is still where its name was.
    Name,
    /// Its attributes.
    Attributes,
    /// An object without a name.
    Removal,
    /// The parts of an upload that came to nothing.
    Parts,
}

/// So many pending changes are shown.
const PENDING_SHOWN: usize = 1000;

impl FileSystem {
    /// Figures to show.
    pub fn status(&self) -> Status {
        let requests = self.bucket.requests().0.into_iter();
        let mut status = Status {
            cache_bytes: self.settings.cache.used_bytes(),
            space: self.space(),
            conditional_writes: self.bucket.conditional_writes(),
            requests: requests
                .map(|(verb, count)| (verb.to_owned(), count))
                .collect(),
            last_error: self.last_error.lock().clone(),
            ..Status::default()
        };
        if let Some(disk) = self.settings.cache.disk() {
            (status.cache_disk_bytes, status.cache_disk_hits) = (disk.used_bytes(), disk.hits());
        }
        (status.cache_lookups, status.cache_hits) = self.settings.cache.lookups_and_hits();
        (status.journal_bytes, status.journal_synced_bytes) = self.journal.bytes_and_synced();
        let tree = self.tree.lock();
        status.unshowable_names = tree.unshowable();
        let changed: Vec<Pending> = tree
            .inodes_in_core()
            .filter_map(|inode| Pending::of(&tree, inode))
            .collect();
        let removed = tree.unused_orphans().map(|key| Pending {
            key: key.to_string(),
            change: Change::Removal,
            bytes: 0,
            reason: None,
        });
        status.dirty_files = changed.len() as u64;
        status.dirty_bytes = changed.iter().map(|pending| pending.bytes).sum();
        status.pending = changed;
        status.pending.extend(removed);
        status.pending.extend(self.abandoned.pending());
        drop(tree);
        status.pending_changes = status.pending.len() as u64;
        status.pending.sort_unstable();
        status.pending.truncate(PENDING_SHOWN);
        status
    }

    /// Whether anything is to be done that is not in the bucket yet.
    pub fn has_pending(&self) -> bool {
        let tree = self.tree.lock();
        let is_pending = |inode: &Arc<Inode>| inode.state.lock().is_pending();
        tree.inodes_in_core().any(is_pending)
            || tree.orphans().next().is_some()
            || !self.abandoned.is_empty()
    }
}

impl Pending {
    fn of(tree: &Tree, inode: &Inode) -> Option<Self> {
        let (change, bytes, reason) = {
            let state = inode.state.lock();
            if !state.is_pending() {
                return None;
            }
            let bytes = state.staged.as_ref().map_or(0, |s| s.dirty_bytes());
            let reason = state.failure.as_ref().map(|f| f.error.to_string());
            (Change::of(&state), bytes, reason)
        };
        let key = tree.final_key(inode.ino);
        Some(Self {
            key: key.map_or_else(String::new, |key| key.to_string()),
            change,
            bytes,
            reason,
        })
    }
}

impl Change {
    fn of(state: &InodeState) -> Self {
        let is_directory = state.attr.kind == FileKind::Directory;
        match state.unsent {
            Unsent { content: true, .. } if !is_directory => Self::Content,
            Unsent { place: true, .. } => Self::Name,
            _ => Self::Attributes,
        }
    }
}
