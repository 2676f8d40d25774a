//! Which key a name spells, and which name a key belongs to.
//!
//! A directory that was renamed has its objects where they were until they have followed it: the keys of all
//! names below it begin with its [`Origin`] until then. So every question to the store, every upload and every
//! deletion below it goes to where things are, and only the directory itself knows that they are to go elsewhere.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ROOT, Tree};
use crate::fs::error::FsError;
use crate::fs::inode::Inode;
use crate::fs::journal::record::ChangedDirectory;
use crate::fs::name::{Name, NameError};
use crate::store::Key;

/// Where in the bucket a directory's objects are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Origin {
    /// Where its name says.
    #[default]
    InPlace,
    /// Below this key: the directory was renamed, and they are still to follow.
    Elsewhere(Key),
    /// Nowhere: the directory was made here, and its marker is still to be sent. No question about a name in it
    /// needs the store.
    Nowhere,
}

impl Tree {
    /// The key at which the bucket has, or is to have, the inode; a directory's with its slash. `None` if it has
    /// no name.
    pub(crate) fn key_of(&self, ino: u64) -> Option<Key> {
        self.spell(ino, |at| match self.origin(at) {
            Origin::Elsewhere(key) => Some(key),
            Origin::InPlace | Origin::Nowhere => None,
        })
    }

    /// Likewise, if the directory above has a place in the bucket. Until then the key is only what the names spell: it
    /// changes with them, and an object that stands there is another's, or was left there under another name.
    pub(crate) fn settled_key_of(&self, ino: u64) -> Option<Key> {
        self.key_of(ino).filter(|_| self.has_settled_parent(ino))
    }

    /// The key that the inode's name spells in a bucket that has followed every rename.
    pub(crate) fn final_key(&self, ino: u64) -> Option<Key> {
        self.spell(ino, |_| None)
    }

    /// The key that a directory's own name spells: where its objects belong once those of the directories above
    /// it are in place.
    pub(crate) fn destination(&self, ino: u64) -> Option<Key> {
        match self.place_of(ino) {
            Some((parent, name)) => self.child_key(parent, &name, true),
            None => (ino == ROOT).then(Key::root),
        }
    }

    /// Puts names together up to the root, or up to a directory of which `base` knows the key.
    fn spell(&self, ino: u64, base: impl Fn(u64) -> Option<Key>) -> Option<Key> {
        let mut names = Vec::new();
        let mut at = ino;
        let mut key = loop {
            if let Some(key) = base(at) {
                break key.as_str().to_owned();
            }
            if at == ROOT {
                break String::new();
            }
            let place = self.nodes.get(at)?.place.as_ref()?;
            names.push(&place.name);
            at = place.parent;
        };
        for name in names.iter().rev() {
            key.push_str(&self.parse(name).ok()?.segment);
            key.push('/');
        }
        if !names.is_empty() && !self.is_directory(ino)? {
            key.pop();
        }
        Some(Key::new(key))
    }

    /// What a name stands for.
    pub(crate) fn parse(&self, name: &str) -> Result<Name, NameError> {
        Name::parse(name.as_bytes(), &self.long_names)
    }

    /// A segment of a key was seen, which may be too long to be a name.
    pub(crate) fn note_segment(&mut self, segment: &str) {
        self.long_names.note(segment);
    }

    /// A name as a later process is to be told of it.
    pub(crate) fn stored_name<'a>(&self, name: &'a str) -> Cow<'a, str> {
        self.long_names.stored(name)
    }

    /// The key of an inode that has to have this name still.
    pub(crate) fn key_of_name(&self, parent: u64, name: &str, ino: u64) -> Result<Key, FsError> {
        if self.child(parent, name) != Some(ino) {
            return Err(FsError::Stale);
        }
        self.key_of(ino).ok_or(FsError::NoEntry)
    }

    /// The key that a name of a directory spells.
    pub(crate) fn child_key(&self, parent: u64, name: &str, is_directory: bool) -> Option<Key> {
        let parent = self.key_of(parent)?;
        let segment = self.parse(name).ok()?.segment;
        Some(if is_directory {
            parent.join_dir(&segment)
        } else {
            parent.join_file(&segment)
        })
    }

    /// The inode that has, or is to have, its object at `key`.
    pub(crate) fn named(&self, key: &Key) -> Option<Arc<Inode>> {
        let (parent, name) = self.find_parent(key)?;
        let ino = self.child(parent, &name)?;
        (self.key_of(ino).as_ref() == Some(key))
            .then(|| self.inode(ino))
            .flatten()
    }

    /// The directory and the name that `key` belongs to.
    pub(crate) fn find_parent(&self, key: &Key) -> Option<(u64, Arc<str>)> {
        let (mut at, rest) = match self.origin_above(key) {
            Some((origin, ino)) => (ino, &key.as_str()[origin.as_str().len()..]),
            None => (ROOT, key.as_str()),
        };
        if rest.is_empty() {
            return self.place_of(at);
        }
        let mut segments = rest.trim_end_matches('/').split('/').peekable();
        while let Some(segment) = segments.next() {
            let name = Name::from_segment(segment).ok()?;
            if segments.peek().is_none() {
                return Some((at, name));
            }
            at = self.directory(at)?.children.get(&name)?.ino;
            if self.directory(at)?.origin != Origin::InPlace {
                return None;
            }
        }
        None
    }

    /// Where a directory's objects are.
    pub(crate) fn origin(&self, ino: u64) -> Origin {
        self.directory(ino)
            .map_or(Origin::InPlace, |directory| directory.origin.clone())
    }

    /// Looks again whether an inode's objects are where they belong, when the directories above it have come to
    /// their place.
    pub(crate) fn find_place(&mut self, inode: &Inode, now: Duration) {
        if self.is_directory(inode.ino) == Some(true) {
            self.set_origin(inode.ino, self.origin(inode.ino), now);
        } else {
            self.note_place(inode, now);
        }
    }

    /// Takes note of where a directory's objects are. Those that are elsewhere are hidden there, and whatever is
    /// to be put there has to wait for them.
    pub(crate) fn set_origin(&mut self, ino: u64, origin: Origin, now: Duration) {
        let origin = match origin {
            // A copy that was begun is to be finished all the same.
            Origin::Elsewhere(key)
                if self.migration(ino).is_none()
                    && self.has_settled_parent(ino)
                    && self.destination(ino).as_ref() == Some(&key) =>
            {
                Origin::InPlace
            }
            origin => origin,
        };
        let Some(directory) = self.directory_mut(ino) else {
            return;
        };
        let before = std::mem::replace(&mut directory.origin, origin.clone());
        if let Some(inode) = self.inode(ino) {
            inode.state.lock().unsent.place = matches!(origin, Origin::Elsewhere(_));
        }
        if before == origin {
            return;
        }
        if let Origin::Elsewhere(key) = &origin {
            self.origins.insert(key.clone(), ino);
            self.hide(key);
        }
        if let Origin::Elsewhere(key) = before {
            if self.origins.get(&key) == Some(&ino) {
                self.origins.remove(&key);
            }
            self.show(&key, now);
        }
    }

    /// Whether the directory above has a place in the bucket.
    fn has_settled_parent(&self, ino: u64) -> bool {
        self.parent(ino)
            .is_none_or(|parent| self.origin(parent) != Origin::Nowhere)
    }

    /// What the journal has to know of a directory besides its attributes.
    pub(crate) fn changed_directory(&self, ino: u64) -> Option<ChangedDirectory> {
        let directory = self.directory(ino)?;
        Some(ChangedDirectory {
            origin: directory.origin.clone(),
            migration: directory.migration.clone(),
        })
    }

    /// Where the copy of a directory's objects goes that was begun and is to be finished.
    pub(crate) fn migration(&self, ino: u64) -> Option<Key> {
        self.directory(ino)?.migration.clone()
    }

    /// See [`Tree::migration`]. The copies are hidden until all are there.
    pub(crate) fn set_migration(&mut self, ino: u64, to: Option<Key>, now: Duration) {
        let Some(directory) = self.directory_mut(ino) else {
            return;
        };
        let before = std::mem::replace(&mut directory.migration, to.clone());
        if before == to {
            return;
        }
        if let Some(to) = to {
            self.hide(&to);
            self.migrations.insert(to, ino);
        }
        if let Some(before) = before {
            self.migrations.remove(&before);
            self.show(&before, now);
        }
    }

    /// Whether the objects of any directory are being copied.
    pub(crate) fn has_migrations(&self) -> bool {
        !self.migrations.is_empty()
    }

    /// The directory whose objects are being copied from a place that has `key` in it.
    pub(crate) fn migrating_over(&self, key: &Key) -> Option<u64> {
        prefixes(key)
            .filter_map(|prefix| self.origins.get(&prefix).copied())
            .find(|ino| self.migration(*ino).is_some())
    }

    /// The innermost origin that `key` is, or is below, and whose it is.
    pub(super) fn origin_above(&self, key: &Key) -> Option<(Key, u64)> {
        prefixes(key).find_map(|prefix| {
            let ino = *self.origins.get(&prefix)?;
            Some((prefix, ino))
        })
    }

    /// The directories whose objects are around `key` or exactly there, or are being copied there, whatever they
    /// are called by now.
    pub(crate) fn occupants_around(&self, key: &Key) -> Vec<u64> {
        let maps = [&self.origins, &self.migrations];
        prefixes(key)
            .flat_map(|prefix| maps.map(|map| map.get(&prefix).copied()))
            .flatten()
            .collect()
    }

    /// The directories whose objects are below `directory`, or are being copied there, whatever they are called by
    /// now.
    pub(crate) fn occupants_below(&self, directory: &Key) -> Vec<u64> {
        [&self.origins, &self.migrations]
            .into_iter()
            .flat_map(|map| below(map, directory))
            .map(|(_, ino)| *ino)
            .collect()
    }

    /// Where below `origin` the objects of directories are that have no name below `directory`.
    pub(crate) fn foreign_below(&self, origin: &Key, directory: u64) -> Vec<Key> {
        below(&self.origins, origin)
            .filter(|(_, ino)| !self.is_within(**ino, directory))
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// The nearest to the root of the directories above an inode whose objects are not in place yet.
    pub(crate) fn displaced_ancestor(&self, ino: u64) -> Option<Arc<Inode>> {
        let displaced = |ino: &u64| self.origin(*ino) != Origin::InPlace;
        self.inode(self.upwards(ino).skip(1).filter(displaced).last()?)
    }

    /// How many directories are above an inode.
    pub(crate) fn depth(&self, ino: u64) -> usize {
        self.upwards(ino).count() - 1
    }

    /// Whether an inode is the directory or has a name below it.
    pub(crate) fn is_within(&self, ino: u64, directory: u64) -> bool {
        self.upwards(ino).any(|at| at == directory)
    }

    /// An inode and the directories above it.
    fn upwards(&self, ino: u64) -> impl Iterator<Item = u64> + '_ {
        let above = |ino: &u64| self.parent(*ino).filter(|parent| parent != ino);
        std::iter::successors(Some(ino), above)
    }
}

/// What a map has at a directory's key and below it.
pub(super) fn below<'a, T>(
    map: &'a BTreeMap<Key, T>,
    directory: &'a Key,
) -> impl Iterator<Item = (&'a Key, &'a T)> {
    map.range((Bound::Included(directory), Bound::Unbounded))
        .take_while(|(key, _)| key.as_str().starts_with(directory.as_str()))
}

/// A key that is a directory's, and those of the directories above it, innermost first.
pub(crate) fn prefixes(key: &Key) -> impl Iterator<Item = Key> + '_ {
    let text = key.as_str();
    text.rmatch_indices('/')
        .map(|(at, _)| Key::new(&text[..=at]))
}
