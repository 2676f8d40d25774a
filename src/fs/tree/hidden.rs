//! Objects that are in the bucket and not to be seen: those of open files that lost their name, to be
//! deleted at the last close, and the copies of a rename that is under way.

use std::sync::Arc;
use std::time::Duration;

use super::{Buried, ROOT, Tombstone, Tree};
use crate::fs::inode::{Inode, Linked};
use crate::fs::name::Name;
use crate::store::Key;

impl Tree {
    /// What is at `key` is not to be seen until [`Tree::show`] has been called as often.
    pub(crate) fn hide(&mut self, key: &Key) {
        *self.hidden.entry(key.clone()).or_default() += 1;
    }

    /// What is at `key` from now on may be seen; answers that were asked for before say nothing about it.
    pub(crate) fn show(&mut self, key: &Key, now: Duration) {
        if let Some(times) = self.hidden.get_mut(key) {
            *times -= 1;
            if *times == 0 {
                self.hidden.remove(key);
            }
        }
        self.sequence += 1;
        let sequence = self.sequence;
        let Some((parent, name)) = self.find_parent(key) else {
            return;
        };
        if let Some(directory) = self.directory_mut(parent)
            && !directory.children.contains_key(&name)
        {
            let tombstone = Tombstone {
                changed: sequence,
                since: now,
                buried: if key.is_dir() {
                    Buried::Directory
                } else {
                    Buried::File
                },
            };
            directory.bury(&name, tombstone, now);
        }
    }

    /// Whether what a name stands for in the bucket, as a file or as a directory, is hidden.
    pub(crate) fn is_hidden(&self, parent: u64, name: &str, is_directory: bool) -> bool {
        !self.hidden.is_empty()
            && self
                .child_key(parent, name, is_directory)
                .is_some_and(|key| self.hidden.contains_key(&key))
    }

    /// Takes note of whether an inode's object is where its name says. An object that is elsewhere is hidden,
    /// and whatever is to be put there has to wait for it.
    pub(crate) fn note_place(&mut self, inode: &Inode, now: Duration) {
        let key = self.key_of(inode.ino);
        let mut state = inode.state.lock();
        let elsewhere = match (&state.remote, state.linked) {
            (Some(remote), Linked::Yes | Linked::Going) if Some(&remote.key) != key.as_ref() => {
                Some(remote.key.clone())
            }
            _ => None,
        };
        state.unsent.place = elsewhere.is_some();
        let before = std::mem::replace(&mut state.moved_from, elsewhere.clone());
        drop(state);
        if before == elsewhere {
            return;
        }
        if let Some(before) = before {
            if self.moved.get(&before) == Some(&inode.ino) {
                self.moved.remove(&before);
            }
            self.show(&before, now);
        }
        if let Some(elsewhere) = elsewhere {
            self.hide(&elsewhere);
            self.moved.insert(elsewhere, inode.ino);
        }
    }

    /// The inode whose object is still at `key` though its name is another.
    pub(crate) fn moved_from(&self, key: &Key) -> Option<u64> {
        self.moved.get(key).copied()
    }

    /// The inodes whose objects are still below `directory` though they are called otherwise, and those below
    /// it whose objects are elsewhere.
    pub(crate) fn moving_over(&self, directory: &Key) -> Vec<u64> {
        let is_below = |key: &Key| key.as_str().starts_with(directory.as_str());
        self.moved
            .iter()
            .filter(|(from, ino)| {
                is_below(from) || self.key_of(**ino).is_some_and(|key| is_below(&key))
            })
            .map(|(_, ino)| *ino)
            .collect()
    }

    /// Keeps the object at `key`, hidden, for an open inode that lost its name.
    pub(crate) fn add_orphan(&mut self, key: Key, inode: Arc<Inode>) {
        self.hide(&key);
        self.orphans.entry(key).or_default().push(inode);
    }

    /// The open inodes without a name whose objects are at `key`, or below it if it is a directory's.
    pub(crate) fn orphans_at(&self, key: &Key) -> Vec<(Key, Arc<Inode>)> {
        self.orphans
            .iter()
            .filter(|(k, _)| *k == key || (key.is_dir() && k.as_str().starts_with(key.as_str())))
            .flat_map(|(key, inodes)| inodes.iter().map(|inode| (key.clone(), Arc::clone(inode))))
            .collect()
    }

    /// The keys of objects without a name that nobody has open.
    pub(crate) fn orphan_keys(&self) -> impl Iterator<Item = &Key> {
        self.orphans.iter().flat_map(|(key, inodes)| {
            let unused = inodes.iter().filter(|inode| inode.state.lock().opens == 0);
            unused.map(move |_| key)
        })
    }

    /// The inode of this number, though it may have lost its name.
    pub(crate) fn inode_to_send(&self, ino: u64) -> Option<Arc<Inode>> {
        self.inode(ino).or_else(|| {
            self.orphans()
                .find(|inode| inode.ino == ino)
                .map(Arc::clone)
        })
    }

    /// All inodes without a name whose objects are still there.
    pub(crate) fn orphans(&self) -> impl Iterator<Item = &Arc<Inode>> {
        self.orphans.values().flatten()
    }

    /// The key that the object of an open inode without a name is at.
    pub(crate) fn orphan_key(&self, ino: u64) -> Option<Key> {
        self.orphans
            .iter()
            .find(|(_, inodes)| inodes.iter().any(|inode| inode.ino == ino))
            .map(|(key, _)| key.clone())
    }

    /// The object that was kept at `key` for the inode is gone.
    pub(crate) fn remove_orphan(&mut self, key: &Key, ino: u64, now: Duration) {
        let Some(inodes) = self.orphans.get_mut(key) else {
            return;
        };
        let before = inodes.len();
        inodes.retain(|inode| inode.ino != ino);
        let is_removed = inodes.len() < before;
        if inodes.is_empty() {
            self.orphans.remove(key);
        }
        if is_removed {
            self.show(key, now);
        }
    }

    /// The inode whose name spells `key`.
    pub(crate) fn named(&self, key: &Key) -> Option<Arc<Inode>> {
        let (parent, name) = self.find_parent(key)?;
        self.inode(self.child(parent, &name)?)
    }

    /// A name that was removed here stands for something else in the bucket after all.
    pub(crate) fn forget_removal(&mut self, parent: u64, name: &str) {
        if let Some(directory) = self.directory_mut(parent) {
            directory.removed.remove(name);
            directory.listed = None;
        }
    }

    fn find_parent(&self, key: &Key) -> Option<(u64, Arc<str>)> {
        let mut at = ROOT;
        let mut segments = key.as_str().trim_end_matches('/').split('/').peekable();
        while let Some(segment) = segments.next() {
            let name = Name::from_segment(segment).ok()?;
            if segments.peek().is_none() {
                return Some((at, name));
            }
            at = self.directory(at)?.children.get(&name)?.ino;
        }
        None
    }
}
