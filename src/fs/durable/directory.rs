//! Directories in the journal. What is written down of one is always all of it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use super::{
    FileSystem, Inode, InodeState, Key, Nameless, ObjectVersion, Record, Remote, Tree, sent,
};
use crate::fs::inode::{Attempt, Unsent};
use crate::fs::journal::record::{ChangedDirectory, SentObject};
use crate::fs::tree::Origin;

/// Objects that one record names: it stays far below the longest that the journal takes.
const OBJECTS_PER_RECORD: usize = 256;

/// The objects of a directory, copied.
#[derive(Debug)]
pub(crate) struct Migrated {
    pub(crate) from: Key,
    pub(crate) to: Key,
    pub(crate) copies: Vec<Copied>,
    /// Those that were not, because they did not move with it when it was begun.
    pub(crate) skipped: HashSet<Key>,
    /// Copies of those, which an earlier attempt has made.
    pub(crate) needless: Vec<SentObject>,
    /// Where the objects of directories were that were not below it then.
    pub(crate) foreign: Vec<Key>,
}

/// An object of a directory, and its copy.
#[derive(Debug, Clone)]
pub(crate) struct Copied {
    pub(crate) original: SentObject,
    pub(crate) copy: SentObject,
}

impl FileSystem {
    /// Writes down all of a directory as it is now, and where it is in the tree.
    pub(crate) fn record_directory(
        &self,
        tree: &Tree,
        ino: u64,
        state: &mut InodeState,
    ) -> io::Result<()> {
        self.record_directory_as(tree, ino, state, tree.changed_directory(ino))
    }

    fn record_directory_as(
        &self,
        tree: &Tree,
        ino: u64,
        state: &mut InodeState,
        directory: Option<ChangedDirectory>,
    ) -> io::Result<()> {
        // The place first: if that fails, nothing was said of the directory.
        self.place_in_journal(tree, ino)?;
        self.append_snapshot(ino, state, directory)?;
        state.journaled = true;
        Ok(())
    }

    /// Changes a directory, here and in the journal; its marker will follow.
    pub(crate) fn change_directory(
        &self,
        tree: &Tree,
        inode: &Inode,
        unsent: Unsent,
        change: impl FnOnce(&mut InodeState),
    ) -> io::Result<()> {
        {
            let mut state = inode.state.lock();
            let before = (state.attr, state.unsent);
            change(&mut state);
            state.changed(unsent);
            if let Err(error) = self.record_directory(tree, inode.ino, &mut state) {
                (state.attr, state.unsent) = before;
                return Err(error);
            }
        }
        self.complete(inode.ino);
        Ok(())
    }

    /// Gives a directory another name, here and in the journal. Its objects will follow; what had the name, a
    /// directory without entries, has none any more.
    pub(crate) fn move_directory(
        &self,
        tree: &mut Tree,
        inode: &Arc<Inode>,
        (parent, name): (u64, &Arc<str>),
        replaced: Option<&Arc<Inode>>,
    ) -> io::Result<()> {
        let (ino, now) = (inode.ino, self.now());
        if tree.place_of(ino).is_none() {
            return Ok(());
        }
        self.place_in_journal(tree, parent)?;
        let left = self.depart(tree, inode)?;
        let replaced = replaced.and_then(|replaced| {
            let (place, key) = (tree.place_of(replaced.ino)?, tree.key_of(replaced.ino)?);
            Some((replaced, place, key))
        });
        let mut nameless = match &replaced {
            Some((replaced, _, key)) => self.left_by(tree, replaced, key),
            None => Nameless::default(),
        };
        self.journal.complete(&Record::Renamed {
            ino,
            parent,
            name: tree.stored_name(name).into_owned(),
            is_directory: true,
            replaced: replaced.as_ref().map(|(replaced, ..)| replaced.ino),
            overwrites: None,
            doomed: std::mem::take(&mut nameless.doomed),
            in_doubt: nameless.in_doubt.clone(),
        })?;
        if let Some((replaced, (parent, name), key)) = replaced {
            self.unname(tree, replaced, (parent, &name), nameless);
            tree.leave_ghost(&key);
        }
        self.journal.note_place(ino, parent, name);
        self.disturb_count();
        tree.rename(ino, parent, name, now);
        self.arrive(tree, inode, left);
        Ok(())
    }

    /// Lets two inodes change places, here and in the journal by one record. Their objects will follow.
    pub(crate) fn exchange_places(
        &self,
        tree: &mut Tree,
        inodes: [&Arc<Inode>; 2],
    ) -> io::Result<()> {
        let keys = inodes.map(|inode| tree.key_of(inode.ino).unwrap_or_else(Key::root));
        let is_directory = inodes.map(|inode| tree.is_directory(inode.ino) == Some(true));
        let mut nameless = Nameless::default();
        let left = [self.depart(tree, inodes[0])?, self.depart(tree, inodes[1])?];
        // What stands at a file's key and is to be overwritten, the file that comes there overwrites.
        let mut overwrites = inodes.map(|inode| inode.state.lock().overwrites.clone());
        overwrites.swap(0, 1);
        for (at, coming) in [(0, 1), (1, 0)] {
            if let Some(version) = overwrites[coming].take_if(|_| is_directory[coming]) {
                self.leave_overwritten(tree, &keys[at], version, &mut nameless);
            }
        }
        self.journal.complete(&Record::Exchanged {
            inos: inodes.map(|inode| inode.ino),
            overwrites: overwrites.clone(),
            doomed: std::mem::take(&mut nameless.doomed),
        })?;
        if is_directory.contains(&true) {
            self.disturb_count();
        }
        self.count_moved(&inodes, keys.each_ref());
        tree.exchange(inodes[0].ino, inodes[1].ino, self.now());
        for ((inode, left), overwrites) in inodes.into_iter().zip(left).zip(overwrites) {
            if let Some((parent, name)) = tree.place_of(inode.ino) {
                self.journal.note_place(inode.ino, parent, &name);
            }
            inode.state.lock().overwrites = overwrites;
            tree.note_place(inode, self.now());
            self.arrive(tree, inode, left);
        }
        self.add_orphans(tree, nameless.orphans);
        Ok(())
    }

    /// Writes down where an inode's objects are, before its name changes. Returns where a directory leaves some.
    fn depart(&self, tree: &Tree, inode: &Inode) -> io::Result<Option<Key>> {
        let ino = inode.ino;
        let mut state = inode.state.lock();
        let mut directory = tree.changed_directory(ino);
        let left = directory.as_mut().and_then(|directory| {
            let left = match &directory.origin {
                Origin::InPlace => tree.key_of(ino),
                Origin::Elsewhere(key) => Some(key.clone()),
                // Its marker may be there, though nobody was told.
                Origin::Nowhere => state.attempt.as_ref().map(|attempt| attempt.key.clone()),
            };
            directory.origin = left.clone().map_or(Origin::Nowhere, Origin::Elsewhere);
            left
        });
        if directory.is_none() && state.journaled {
            // A snapshot of a file is many records, and a crash between them would take what it has staged.
            self.place_in_journal(tree, ino)?;
        } else {
            self.record_directory_as(tree, ino, &mut state, directory)?;
        }
        Ok(left)
    }

    /// An inode's name has changed; a directory's objects are still where it has left them.
    fn arrive(&self, tree: &mut Tree, inode: &Inode, left: Option<Key>) {
        if let Some(left) = left {
            tree.set_origin(inode.ino, Origin::Elsewhere(left), self.now());
        }
        let mut state = inode.state.lock();
        if state.unsent.any() {
            drop(state);
            self.complete(inode.ino);
        } else {
            self.settle(inode.ino, &mut state);
        }
    }

    /// Takes the name of a directory without entries away.
    pub(crate) fn remove_directory(&self, tree: &mut Tree, inode: &Arc<Inode>) -> io::Result<()> {
        let (Some(place), Some(key)) = (tree.place_of(inode.ino), tree.key_of(inode.ino)) else {
            return Ok(());
        };
        self.unlink_inode(tree, inode, (place.0, &place.1), &key)?;
        tree.leave_ghost(&key);
        Ok(())
    }

    /// All objects of a directory have been copied. From now on it and all below it are there; of those that have
    /// lost their name meanwhile, or were given one elsewhere, the copies are doomed, of the others the originals.
    /// Returns what is doomed.
    pub(crate) fn commit_migration(
        &self,
        inode: &Arc<Inode>,
        migrated: &Migrated,
    ) -> io::Result<Vec<Arc<Inode>>> {
        let directory = inode.ino;
        let now = self.now();
        let mut tree = self.tree.lock();
        let (kept, strayed): (Vec<&Copied>, Vec<&Copied>) = migrated
            .copies
            .iter()
            .partition(|copied| tree.moves_with(&copied.original.key, directory));
        let originals = kept.iter().map(|copied| copied.original.clone());
        let copies = strayed.iter().map(|copied| copied.copy.clone());
        let needless = migrated.needless.iter().cloned();
        let left: Vec<SentObject> = originals.chain(copies).chain(needless).collect();
        let copies: HashMap<&Key, &Copied> = kept
            .iter()
            .map(|copied| (&copied.original.key, *copied))
            .collect();
        let mut inodes = vec![Arc::clone(inode)];
        inodes.extend(tree.below(directory));
        let carried: Vec<Carried> = inodes
            .iter()
            .map(|inode| carry(&tree, inode, migrated, &copies))
            .collect();

        self.journal.append(&Record::Carrying { directory })?;
        for objects in left.chunks(OBJECTS_PER_RECORD) {
            let objects = objects.to_vec();
            self.journal.append(&Record::Left { directory, objects })?;
        }
        for (inode, carried) in inodes.iter().zip(&carried) {
            if inode.state.lock().journaled {
                self.journal.append(&Record::Carried {
                    directory,
                    ino: inode.ino,
                    remote: carried.remote.as_ref().map(sent),
                    overwrites: carried.overwrites.clone(),
                    attempt: carried.attempt.clone(),
                    below: carried.below.clone(),
                })?;
            }
        }
        self.journal.append(&Record::Migrated { directory })?;

        tree.set_migration(directory, None, now);
        tree.set_origin(directory, Origin::Elsewhere(migrated.to.clone()), now);
        for (inode, carried) in inodes.iter().zip(carried) {
            {
                let mut state = inode.state.lock();
                state.remote = carried.remote;
                state.overwrites = carried.overwrites;
                state.attempt = carried.attempt;
                if !state.journaled {
                    self.keep_open(inode.ino, &state);
                }
            }
            if let Some(below) = carried.below.filter(|_| inode.ino != directory) {
                tree.set_migration(inode.ino, below.migration, now);
                tree.set_origin(inode.ino, below.origin, now);
            }
            tree.note_place(inode, now);
            tree.touch(inode.ino, now);
            if inode.state.lock().unsent.place {
                self.complete(inode.ino);
            }
        }
        let mut doomed = Vec::with_capacity(left.len());
        for object in left {
            let key = object.key.clone();
            let nameless = tree.nameless(self.remote_of(object));
            tree.add_orphan(key, Arc::clone(&nameless));
            doomed.push(nameless);
        }
        Ok(doomed)
    }
}

/// What holds of an inode when the objects of a directory above it have been copied.
#[derive(Debug)]
struct Carried {
    remote: Option<Remote>,
    overwrites: Option<ObjectVersion>,
    attempt: Option<Attempt>,
    below: Option<ChangedDirectory>,
}

fn carry(
    tree: &Tree,
    inode: &Inode,
    migrated: &Migrated,
    copies: &HashMap<&Key, &Copied>,
) -> Carried {
    let key = tree.key_of(inode.ino);
    let below = tree.changed_directory(inode.ino).map(|directory| {
        let origin = match directory.origin {
            Origin::Elsewhere(key) => {
                Origin::Elsewhere(migrated.moved_directory(&key).unwrap_or(key))
            }
            // It has come here while the others were copied.
            Origin::InPlace => match &key {
                Some(key) if migrated.foreign.contains(key) => Origin::Elsewhere(key.clone()),
                _ => Origin::InPlace,
            },
            Origin::Nowhere => Origin::Nowhere,
        };
        let migration = directory.migration;
        let migration = migration.map(|to| migrated.moved_directory(&to).unwrap_or(to));
        ChangedDirectory { origin, migration }
    });
    let state = inode.state.lock();
    let remote = state.remote.clone().map(|remote| {
        let Some(key) = migrated.moved_object(&remote.key) else {
            return remote;
        };
        let (key, version) = match copies.get(&remote.key) {
            Some(copied) if copied.original.version == remote.version => {
                (copied.copy.key.clone(), copied.copy.version.clone())
            }
            // Another host has changed it meanwhile, or taken it away: whoever reads it will find out.
            _ => (key, remote.version),
        };
        Remote {
            key,
            version,
            modified: None,
            ..remote
        }
    });
    let overwrites = match (&state.overwrites, key) {
        (Some(version), Some(key)) if migrated.rebased(&key).is_some() => copies
            .get(&key)
            .filter(|copied| copied.original.version == *version)
            .map(|copied| copied.copy.version.clone()),
        (overwrites, _) => overwrites.clone(),
    };
    let attempt = state.attempt.clone().map(|attempt| Attempt {
        key: migrated.moved_object(&attempt.key).unwrap_or(attempt.key),
        ..attempt
    });
    Carried {
        remote,
        overwrites,
        attempt,
        below,
    }
}

impl Migrated {
    /// Where the object that was at `key` is by now; `None` if it is still there: it is not below the directory, or
    /// was not when its objects were copied.
    fn moved_object(&self, key: &Key) -> Option<Key> {
        self.rebased(key).filter(|_| !self.skipped.contains(key))
    }

    /// Likewise, of the objects below `directory`.
    fn moved_directory(&self, directory: &Key) -> Option<Key> {
        let is_foreign = |foreign: &Key| directory.as_str().starts_with(foreign.as_str());
        self.rebased(directory)
            .filter(|_| !self.foreign.iter().any(is_foreign))
    }

    /// Where what is at `key` is copied to; `None` if it is not below the directory.
    pub(crate) fn rebased(&self, key: &Key) -> Option<Key> {
        let rest = key.as_str().strip_prefix(self.from.as_str())?;
        Some(Key::new(format!("{}{rest}", self.to.as_str())))
    }
}
