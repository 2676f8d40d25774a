//! How what an earlier process left comes back.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use super::snapshot;
use crate::config::options::Durability;
use crate::fs::error::FsError;
use crate::fs::filesystem::FileSystem;
use crate::fs::inode::{Attempt, InodeState, Unsent};
use crate::fs::journal::Left;
use crate::fs::journal::record::{Multipart, Record, SentObject};
use crate::fs::journal::replay::{Replay, ReplayedInode};
use crate::fs::kept::LeftOpen;
use crate::fs::tree::{Origin, ROOT, Tree};

impl FileSystem {
    /// Takes up what an earlier process left behind, then begins a journal with nothing else in it, if there is room
    /// for one. Returns the inodes that are to be sent.
    pub(crate) async fn restore(
        self: &Arc<Self>,
        mut left: Left,
        open: LeftOpen,
    ) -> Result<Vec<u64>, FsError> {
        let other_boot = left.other_boot;
        {
            let mut tree = self.tree.lock();
            tree.reserve_inos(Some(open.last_ino));
            for segment in left.replay.long_segments.iter().chain(&open.long_segments) {
                tree.note_segment(segment);
            }
        }
        self.handles.reserve(open.last_handle, &self.kept);
        self.find_places(&mut left.replay)?;
        let directories = self.look_for_ends(&mut left.replay).await?;
        let (changed, is_told) = self.take_up(left, &directories, open)?;
        if !self.journal.is_empty()
            && let Err(error) = self.rewrite_journal().await
        {
            tracing::warn!(bucket = %self.bucket.location(), %error, "the journal stays as it was left");
            if other_boot && is_told {
                self.journal.note_boot()?;
            }
        }
        Ok(changed)
    }

    /// Makes the inodes that an earlier process knew, under their names, and says where the objects of directories
    /// are.
    fn find_places(&self, replay: &mut Replay) -> Result<(), FsError> {
        // What is new has no place before all of it is in the journal.
        let Replay { inodes, places, .. } = replay;
        let mut tree = self.tree.lock();
        tree.reserve_inos(places.keys().chain(inodes.keys()).copied().max());
        inodes.retain(|ino, _| {
            let is_placed = *ino == ROOT || places.contains_key(ino);
            if !is_placed {
                self.append_or_warn(&Record::Settled { ino: *ino });
            }
            is_placed
        });
        for ino in replay.inodes.keys() {
            place(&mut tree, replay, *ino)?;
        }
        for (link, target) in &replay.links {
            if [link, target].iter().all(|ino| tree.inode(**ino).is_some()) {
                tree.add_link(*link, *target);
            }
        }
        let directories = replay.inodes.iter().filter_map(|(ino, inode)| {
            let directory = inode.changed.directory.clone()?;
            Some((tree.depth(*ino), *ino, directory))
        });
        let mut directories: Vec<_> = directories.collect();
        // Whether a directory is in place depends on those above it.
        directories.sort_unstable_by_key(|(depth, ..)| *depth);
        for (_, ino, directory) in directories {
            tree.set_migration(ino, directory.migration, self.now());
            tree.set_origin(ino, directory.origin, self.now());
        }
        Ok(())
    }

    /// Uploads may have been done of whose ends the journal knows nothing. Who reads the file would miss the object
    /// before; and when the host went down, what was sent may be nowhere but in the object.
    /// Returns the directories whose markers were found.
    async fn look_for_ends(&self, replay: &mut Replay) -> Result<Vec<u64>, FsError> {
        let mut directories = Vec::new();
        for (ino, Attempt { key, write }) in replay.open_ends() {
            let found = self.bucket.head_written(&key).await?;
            if let Some((object, Some(made_by))) = found
                && made_by.is_of_the_write_of(&write)
            {
                let (is_in_place, is_directory) = {
                    let mut tree = self.tree.lock();
                    if tree.origin(ino) == Origin::Nowhere {
                        tree.set_origin(ino, Origin::Elsewhere(key.clone()), self.now());
                    }
                    let is_directory = tree.is_directory(ino) == Some(true);
                    let is_in_place = tree.settled_key_of(ino).as_ref() == Some(&key);
                    (is_in_place, is_directory)
                };
                let object = SentObject {
                    key,
                    size: object.size,
                    version: object.version,
                };
                let found = replay.found(ino, object, made_by == write, is_in_place);
                if let Some(found) = found {
                    self.append_or_warn(&found);
                }
                directories.extend(is_directory.then_some(ino));
            }
        }
        Ok(directories)
    }

    /// Like [`FileSystem::restore`], of inodes that have their places: what the journal says is what they are, but
    /// for what is written down here. That is next to nothing: the disk may be full. Returns the inodes that are to be
    /// sent, and whether the journal knows what a crash of the host took.
    fn take_up(
        &self,
        left: Left,
        found: &[u64],
        open: LeftOpen,
    ) -> Result<(Vec<u64>, bool), FsError> {
        let Left {
            mut replay,
            other_boot,
        } = left;
        let mut changed: Vec<u64> = replay.inodes.keys().copied().collect();
        changed.sort_unstable();
        let in_use = changed.iter().chain(open.inodes.keys()).copied();
        self.staging.sweep(&in_use.collect::<HashSet<u64>>())?;
        let mut tree = self.tree.lock();
        let mut is_told = true;
        for (ino, mut replayed) in std::mem::take(&mut replay.inodes) {
            let inode = tree.inode(ino).ok_or(FsError::NoEntry)?;
            let size = replayed.changed.attr.size;
            if other_boot && let Some(to) = replayed.go_back(self.staging.verifier(ino)) {
                tracing::error!(
                    bucket = %self.bucket.location(), ino, was = size, is = replayed.changed.attr.size,
                    "bytes that nobody synced were lost when the host went down: the file is what it was before",
                );
                is_told &= self.append_or_warn(&Record::WentBack { ino, to });
            }
            let mut state = inode.state.lock();
            self.fill(ino, &mut state, replayed)?;
            // A journal that is written anew tells of all of a file at once: what somebody synced is lost with what
            // nobody did.
            if let (Durability::Local, Some(staged)) =
                (self.settings.write.durability, &mut state.staged)
            {
                staged.keep().sync_data()?;
            }
        }
        for ino in &changed {
            let inode = tree.inode(*ino).ok_or(FsError::NoEntry)?;
            tree.note_place(&inode, self.now());
            let mut state = inode.state.lock();
            if state.unsent.content && state.content_is_nowhere() && !state.is_hard_linked {
                // It was to follow a file of which the journal, in the format before, could not say which.
                state.part();
            }
            if !state.unsent.any() && state.is_hard_linked {
                // Its attributes may be others by now.
                state.resolved = false;
            } else if !state.unsent.any() {
                self.settle(*ino, &mut state);
            } else if found.contains(ino) {
                // One record: a directory has no extents.
                // If it is not told, the next process finds it too.
                let directory = tree.changed_directory(*ino);
                for record in snapshot(*ino, &state, directory) {
                    self.append_or_warn(&record);
                }
            }
        }
        self.reopen(&mut tree, open, &replay.doomed)?;
        let keepers = self.handles.keepers();
        for object in std::mem::take(&mut replay.doomed).into_values() {
            let key = object.key.clone();
            if let Some(keeper) = keepers.get(&(key.clone(), object.version.clone())) {
                tree.add_orphan(key, Arc::clone(keeper));
                continue;
            }
            let inode = tree.nameless(self.remote_of(object));
            changed.push(inode.ino);
            tree.add_orphan(key, inode);
        }
        let in_doubt = std::mem::take(&mut replay.in_doubt);
        for attempt in in_doubt.into_values().flatten() {
            if let Some((key, inode)) = self.doubted(&mut tree, Some(attempt)) {
                changed.push(inode.ino);
                tree.add_orphan(key, inode);
            }
        }
        for (upload, key) in std::mem::take(&mut replay.multiparts) {
            changed.push(self.abandon_as(&mut tree, Multipart { key, upload }));
        }
        Ok((changed, is_told))
    }

    fn fill(&self, ino: u64, state: &mut InodeState, replayed: ReplayedInode) -> io::Result<()> {
        let ReplayedInode {
            changed, content, ..
        } = replayed;
        if let Some(map) = content {
            state.staged = Some(Box::new(self.staging.reopen(ino, map)?));
        }
        state.attr = changed.attr;
        state.resolved = true;
        state.metadata = changed.metadata;
        state.remote = changed.remote.map(|object| self.remote_of(object));
        state.overwrites = changed.overwrites;
        state.unsent = Unsent {
            place: state.unsent.place,
            ..changed.unsent
        };
        state.attempt = changed.attempt;
        state.journaled = true;
        Ok(())
    }
}

/// Makes the directories above a changed inode, and a file to be filled.
fn place(tree: &mut Tree, replay: &Replay, ino: u64) -> Result<(), FsError> {
    let mut missing = Vec::new();
    let mut at = ino;
    while at != ROOT && tree.inode(at).is_none() {
        let placement = replay.places.get(&at).ok_or(FsError::NoEntry)?;
        // A loop would never come to the root.
        if missing.len() > replay.places.len() {
            return Err(FsError::NoEntry);
        }
        missing.push((at, placement));
        at = placement.parent;
    }
    for (ino, placement) in missing.into_iter().rev() {
        let name: Arc<str> = Arc::from(placement.name.as_str());
        tree.restore(ino, placement.parent, &name, placement.is_directory);
    }
    Ok(())
}
