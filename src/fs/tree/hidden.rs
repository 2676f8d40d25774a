//! Objects that are in the bucket and not to be seen: those of files that lost their name, to be deleted at the
//! last close, those that have not followed a rename yet, and the copies of one that is under way.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::keys::{below, prefixes};
use super::{Buried, Tombstone, Tree};
use crate::fs::inode::{Inode, Linked};
use crate::store::{Key, ObjectVersion};

impl Tree {
    /// What is at `key` is not to be seen until [`Tree::show`] has been called as often.
    pub(crate) fn hide(&mut self, key: &Key) {
        *self.hidden.entry(key.clone()).or_default() += 1;
    }

    /// What is at `key` from now on may be seen; answers that were asked for before say nothing about it.
    pub(crate) fn show(&mut self, key: &Key, now: Duration) {
        self.unhide(key);
        self.bury_at(key, now);
        if self.hidden.contains_key(key) {
            return;
        }
        if key.is_dir() && self.named(key).is_none() {
            self.leave_ghost(key);
        }
        let laid: Vec<Key> = prefixes(key)
            .filter(|above| self.ghosts.contains(above) && !self.has_hidden_below(above))
            .collect();
        for ghost in laid {
            self.lay_ghost(&ghost);
            self.bury_at(&ghost, now);
        }
    }

    /// Whatever was asked before says nothing about what had its name at `key`.
    fn bury_at(&mut self, key: &Key, now: Duration) {
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

    /// A directory is gone from `key`, but not all the objects below it that are not to be seen: until they are,
    /// there is no directory either.
    pub(crate) fn leave_ghost(&mut self, key: &Key) {
        if self.has_hidden_below(key) && self.ghosts.insert(key.clone()) {
            self.hide(key);
        }
    }

    /// There is a directory at `key` again.
    pub(super) fn lay_ghost(&mut self, key: &Key) {
        if self.ghosts.remove(key) {
            self.unhide(key);
        }
    }

    /// Takes one [`Tree::hide`] back.
    pub(super) fn unhide(&mut self, key: &Key) {
        if let Some(times) = self.hidden.get_mut(key) {
            *times -= 1;
            if *times == 0 {
                self.hidden.remove(key);
            }
        }
    }

    /// What is hidden below a directory.
    pub(crate) fn hidden_below(&self, directory: &Key) -> HashSet<Key> {
        below(&self.hidden, directory)
            .map(|(key, _)| key.clone())
            .filter(|key| key != directory)
            .collect()
    }

    fn has_hidden_below(&self, directory: &Key) -> bool {
        below(&self.hidden, directory).any(|(key, _)| key != directory)
    }

    /// Whether what a name stands for in the bucket, as a file or as a directory, is hidden.
    pub(crate) fn is_hidden(&self, parent: u64, name: &str, is_directory: bool) -> bool {
        !self.hidden.is_empty()
            && self
                .child_key(parent, name, is_directory)
                .is_some_and(|key| self.hidden.contains_key(&key))
    }

    /// Whether the keys below a name are all of them hidden, and no directory here has the name.
    pub(crate) fn is_no_directory(&self, parent: u64, name: &str) -> bool {
        self.is_hidden(parent, name, true)
            && self
                .child(parent, name)
                .is_none_or(|ino| self.is_directory(ino) != Some(true))
    }

    /// Whether the object at `key`, below `directory`, is hidden, or anything between the two is.
    pub(crate) fn is_out_of_sight(&self, key: &Key, directory: &Key) -> bool {
        self.hidden.contains_key(key)
            || prefixes(key)
                .take_while(|above| above.as_str().len() > directory.as_str().len())
                .any(|above| self.hidden.contains_key(&above))
    }

    /// Takes note of whether an inode's object is where its name says. An object that is elsewhere is hidden,
    /// and whatever is to be put there has to wait for it.
    pub(crate) fn note_place(&mut self, inode: &Inode, now: Duration) {
        // Where a directory's objects are is its origin.
        if self.directory(inode.ino).is_some() {
            return;
        }
        let key = self.settled_key_of(inode.ino);
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

    /// The files whose objects are still below `directory`, whatever they are called by now.
    pub(crate) fn moved_from_below(&self, directory: &Key) -> Vec<u64> {
        below(&self.moved, directory).map(|(_, ino)| *ino).collect()
    }

    /// Whether the object at `key`, which is below the key that a directory has, moves with it: not if it has no
    /// name any more or has been given one elsewhere.
    pub(crate) fn moves_with(&self, key: &Key, directory: u64) -> bool {
        let Some(from) = self.key_of(directory) else {
            return false;
        };
        if self.orphans.contains_key(key) {
            return false;
        }
        let within = |(origin, ino): (Key, u64)| {
            let is_within = origin.as_str().len() > from.as_str().len();
            is_within.then_some(ino)
        };
        let owner = self
            .moved_from(key)
            .or_else(|| self.origin_above(key).and_then(within));
        owner.is_none_or(|owner| self.is_within(owner, directory))
    }

    /// Keeps the object at `key`, hidden, for an open inode that lost its name.
    pub(crate) fn add_orphan(&mut self, key: Key, inode: Arc<Inode>) {
        self.hide(&key);
        self.orphan_keys.insert(inode.ino, key.clone());
        self.orphans.entry(key).or_default().push(inode);
    }

    /// The inodes without a name whose objects are at `key`.
    pub(crate) fn orphans_at(&self, key: &Key) -> Vec<Arc<Inode>> {
        self.orphans.get(key).cloned().unwrap_or_default()
    }

    /// Those of them that nobody has open, with the versions of their objects.
    pub(crate) fn unused_orphans_at(&self, key: &Key) -> Vec<(Arc<Inode>, ObjectVersion)> {
        let version_of = |orphan: &Arc<Inode>| {
            let state = orphan.state.lock();
            let remote = state.remote.as_ref().filter(|_| state.opens == 0)?;
            let is_known = remote.key == *key && !remote.version.is_any();
            is_known.then(|| remote.version.clone())
        };
        let orphans = self.orphans_at(key).into_iter();
        let unused = orphans.filter_map(|orphan| version_of(&orphan).map(|v| (orphan, v)));
        unused.collect()
    }

    /// Whether this very object is one of theirs.
    pub(crate) fn has_orphan(&self, key: &Key, version: &ObjectVersion) -> bool {
        self.orphans_at(key).iter().any(|inode| {
            let state = inode.state.lock();
            let remote = state.remote.as_ref();
            remote.is_some_and(|remote| remote.key == *key && remote.version == *version)
        })
    }

    /// The inodes without a name whose objects are below a directory, or are its marker; with their keys.
    pub(crate) fn orphans_below(&self, directory: &Key) -> Vec<(Key, Arc<Inode>)> {
        below(&self.orphans, directory)
            .flat_map(|(key, inodes)| inodes.iter().map(|inode| (key.clone(), Arc::clone(inode))))
            .collect()
    }

    /// The keys of objects without a name that nobody has open.
    pub(crate) fn unused_orphans(&self) -> impl Iterator<Item = &Key> {
        self.orphans.iter().flat_map(|(key, inodes)| {
            let unused = inodes.iter().filter(|inode| inode.state.lock().opens == 0);
            unused.map(move |_| key)
        })
    }

    /// The inode of this number, though it may have lost its name.
    pub(crate) fn inode_to_send(&self, ino: u64) -> Option<Arc<Inode>> {
        self.inode(ino).or_else(|| {
            let at_key = self.orphans.get(self.orphan_keys.get(&ino)?)?;
            at_key.iter().find(|inode| inode.ino == ino).map(Arc::clone)
        })
    }

    /// All inodes without a name whose objects are still there.
    pub(crate) fn orphans(&self) -> impl Iterator<Item = &Arc<Inode>> {
        self.orphans.values().flatten()
    }

    /// The key that the object of an inode without a name is at.
    pub(crate) fn orphan_key(&self, ino: u64) -> Option<Key> {
        self.orphan_keys.get(&ino).cloned()
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
            // It may be kept elsewhere by now.
            if self.orphan_keys.get(&ino) == Some(key) {
                self.orphan_keys.remove(&ino);
            }
            self.show(key, now);
        }
    }

    /// A name that was removed here stands for something else in the bucket after all.
    pub(crate) fn forget_removal(&mut self, parent: u64, name: &str) {
        if let Some(directory) = self.directory_mut(parent) {
            directory.removed.remove(name);
            directory.listed = None;
        }
    }
}
