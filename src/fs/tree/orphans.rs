//! Open files that lost their name while their object is still in the bucket, to be deleted at the last
//! close.

use std::sync::Arc;
use std::time::Duration;

use super::{ROOT, Tombstone, Tree};
use crate::fs::inode::Inode;
use crate::fs::name::Name;
use crate::store::Key;

impl Tree {
    /// Keeps the object at `key` for an open inode that lost its name.
    pub(crate) fn add_orphan(&mut self, key: Key, inode: Arc<Inode>) {
        self.orphans.entry(key).or_default().push(inode);
    }

    /// The open inodes without a name whose objects are at `key`, or below it if it is a directory's. They
    /// are orphans no longer.
    pub(crate) fn take_orphans(&mut self, key: &Key) -> Vec<(Key, Arc<Inode>)> {
        let keys: Vec<Key> = self
            .orphans
            .keys()
            .filter(|k| *k == key || (key.is_dir() && k.as_str().starts_with(key.as_str())))
            .cloned()
            .collect();
        keys.into_iter()
            .flat_map(|key| {
                let inodes = self.orphans.remove(&key).unwrap_or_default();
                inodes.into_iter().map(move |inode| (key.clone(), inode))
            })
            .collect()
    }

    /// The key that the object of an open inode without a name is at.
    pub(crate) fn orphan_key(&self, ino: u64) -> Option<Key> {
        self.orphans
            .iter()
            .find(|(_, inodes)| inodes.iter().any(|inode| inode.ino == ino))
            .map(|(key, _)| key.clone())
    }

    /// Takes one inode off the orphans; returns the key that its object is at.
    pub(crate) fn take_orphan(&mut self, ino: u64) -> Option<Key> {
        let key = self.orphan_key(ino)?;
        if let Some(inodes) = self.orphans.get_mut(&key) {
            inodes.retain(|inode| inode.ino != ino);
            if inodes.is_empty() {
                self.orphans.remove(&key);
            }
        }
        Some(key)
    }

    /// The object of a removed name is gone at last: the name may be seen again.
    pub(crate) fn release_held(&mut self, key: &Key, now: Duration) {
        self.sequence += 1;
        let sequence = self.sequence;
        let Some((parent, name)) = self.find_parent(key) else {
            return;
        };
        if let Some(tombstone) = self
            .directory_mut(parent)
            .and_then(|d| d.removed.get_mut(&name))
        {
            *tombstone = Tombstone {
                changed: sequence,
                since: Some(now),
            };
        }
    }

    fn find_parent(&self, key: &Key) -> Option<(u64, Arc<str>)> {
        let mut at = ROOT;
        let mut segments = key.as_str().split('/').peekable();
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
