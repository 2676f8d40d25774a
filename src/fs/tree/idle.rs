//! Names that the kernel does not hold, most of them from listings: kept for who looks them up next, as long as there
//! are not too many in the daemon.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{ROOT, Tree};

/// Bytes of memory that an idle name counts as.
const NAME_BYTES: u64 = 256;

/// Each volume may have this part of all idle names, whatever the others have.
const OWN_SHARE: usize = 64;

/// Names that are looked at for each that comes: some of them may have to stay.
const LOOKED_AT: usize = 2;

/// How many idle names the volumes of a daemon have, and may have.
#[derive(Debug)]
pub(crate) struct IdleNames {
    count: AtomicUsize,
    max: usize,
}

impl IdleNames {
    /// As many as there is room for in so many bytes of memory.
    pub(crate) fn new(memory: u64) -> Self {
        Self {
            count: AtomicUsize::new(0),
            max: usize::try_from(memory / NAME_BYTES).unwrap_or(usize::MAX),
        }
    }
}

/// A volume's idle names, oldest first; some of them are not idle any more.
#[derive(Debug)]
pub(super) struct Idle {
    inos: VecDeque<u64>,
    all: Arc<IdleNames>,
}

impl Idle {
    pub(super) fn new(all: Arc<IdleNames>) -> Self {
        Self {
            inos: VecDeque::new(),
            all,
        }
    }

    fn push(&mut self, ino: u64) {
        self.inos.push_back(ino);
        self.all.count.fetch_add(1, Ordering::Relaxed);
    }

    /// The oldest, if there are too many.
    fn pop_excess(&mut self) -> Option<u64> {
        let is_excess = self.all.count.load(Ordering::Relaxed) > self.all.max
            && self.inos.len() > self.all.max / OWN_SHARE;
        if !is_excess {
            return None;
        }
        let oldest = self.inos.pop_front()?;
        self.all.count.fetch_sub(1, Ordering::Relaxed);
        Some(oldest)
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        self.all.count.fetch_sub(self.inos.len(), Ordering::Relaxed);
    }
}

impl Tree {
    /// The kernel does not hold the inode: if it has a name, that stays until there are too many such.
    pub(super) fn note_idle(&mut self, ino: u64) {
        let Some(node) = self.nodes.get_mut(ino) else {
            return;
        };
        if ino == ROOT || std::mem::replace(&mut node.is_queued, true) {
            return;
        }
        self.idle.push(ino);
        for _ in 0..LOOKED_AT {
            let Some(oldest) = self.idle.pop_excess() else {
                return;
            };
            if self.is_idle(oldest) && !self.drop_idle(oldest) {
                self.idle.push(oldest);
            } else if let Some(node) = self.nodes.get_mut(oldest) {
                node.is_queued = false;
            }
        }
    }

    fn is_idle(&self, ino: u64) -> bool {
        self.nodes
            .get(ino)
            .is_some_and(|node| node.nlookup == 0 && node.place.is_some())
    }

    /// Drops a name, unless it is of use. What is missing may be there from now on.
    fn drop_idle(&mut self, ino: u64) -> bool {
        let has_children = self.has_children(ino);
        // What cannot be packed is in use, or known better here than in the bucket.
        if has_children || !self.pack(ino) {
            return false;
        }
        self.keep_no_more(ino);
        self.sequence += 1;
        let sequence = self.sequence;
        if let Some(node) = self.nodes.remove(ino)
            && let Some(place) = node.place
            && let Some(directory) = self.directory_mut(place.parent)
        {
            directory.children.remove(&place.name);
            if node.directory.is_some() {
                directory.subdirectories -= 1;
            }
            directory.listed = None;
            directory.dropped = sequence;
        }
        true
    }
}
