//! Objects that have lost their name: given away before their key is used again, deleted when nobody has them
//! open.

use std::collections::HashMap;
use std::sync::Arc;

use uuid::Uuid;

use super::schedule::Footprint;
use super::vacate::{Counterpart, counterpart};
use super::worker::Progress;
use crate::fs::error::FsError;
use crate::fs::filesystem::FileSystem;
use crate::fs::inode::{Attempt, Frozen, Inode, Remote};
use crate::fs::journal::record::{Record, SentObject};
use crate::fs::staging::ContentSource;
use crate::fs::tree::{RESERVED, Tree};
use crate::store::{CopyOptions, Key, MetadataDirective, ObjectVersion, Precondition, StoreError};

/// An open file that loses its object is fetched whole up to this size; a larger one is copied aside.
const FETCH_MAX: u64 = 8 * 1024 * 1024;

/// A deletion looks so often for a directory that has to be in the bucket first.
const FIRST_MAX: u32 = 4;

impl FileSystem {
    /// Before `key` is written: open files that lost their name there get their bytes elsewhere, and their objects,
    /// which wait for the last close, go now; but for what `upload` is about to overwrite, and what its own inode has
    /// left there if that has lost its name since it began.
    pub(crate) async fn settle_orphans_at(
        &self,
        key: &Key,
        upload: Option<&Frozen>,
    ) -> Result<(), FsError> {
        let orphans = self.tree.lock().orphans_at(key);
        for inode in orphans {
            if upload.is_none_or(|upload| !self.was_left_by(upload, key, &inode)) {
                self.settle_orphan(key, &inode, upload).await?;
            }
        }
        match counterpart(key) {
            Counterpart::File(file) => {
                let orphans = self.tree.lock().orphans_at(&file);
                for inode in orphans {
                    self.settle_orphan(&file, &inode, None).await?;
                }
                Ok(())
            }
            Counterpart::Directory(directory) => self.settle_orphans_below(&directory).await,
        }
    }

    /// Whether an inode without a name stands for what an upload that is about to be sent finds or makes at `key`. That
    /// is known when the upload has ended, and until then the journal has to say it: the process may end first.
    fn was_left_by(&self, upload: &Frozen, key: &Key, inode: &Inode) -> bool {
        if upload.ino == inode.ino {
            return true;
        }
        let state = inode.state.lock();
        let of_this_upload = |attempt: &Attempt| attempt.write.is_of_the_write_of(&upload.write);
        if state.attempt.as_ref().is_some_and(of_this_upload) {
            return true;
        }
        let version = state.version().filter(|_| state.opens == 0);
        let is_overwritten =
            version.is_some_and(|v| upload.precondition == Precondition::Version(v));
        drop(state);
        // As long as the key is what the upload's inode is called, it is written down with it what it overwrites.
        is_overwritten && self.tree.lock().settled_key_of(upload.ino).as_ref() != Some(key)
    }

    /// Likewise, before anything is put below a directory.
    pub(crate) async fn settle_orphans_below(&self, directory: &Key) -> Result<(), FsError> {
        let orphans = self.tree.lock().orphans_below(directory);
        for (key, inode) in orphans {
            self.settle_orphan(&key, &inode, None).await?;
        }
        Ok(())
    }

    async fn settle_orphan(
        &self,
        key: &Key,
        inode: &Arc<Inode>,
        upload: Option<&Frozen>,
    ) -> Result<(), FsError> {
        let (kept, attempt) = {
            let state = inode.state.lock();
            (state.remote.clone(), state.attempt.clone())
        };
        let version = kept.as_ref().map(|remote| remote.version.clone());
        let stays = |version: &ObjectVersion| {
            let overwritten = Precondition::Version(version.clone());
            upload.is_some_and(|upload| upload.precondition == overwritten)
                || self.is_to_be_overwritten(key, version)
        };
        if let Some(attempt) = attempt.filter(|attempt| kept.is_none() && attempt.key == *key) {
            // The upload may have made an object after all, and that may be known by now: then who has it sees to it.
            if let Some((found, Some(write))) = self.bucket.head_written(key).await?
                && write.is_of_the_write_of(&attempt.write)
                && !stays(&found.version)
                && !self.tree.lock().has_orphan(key, &found.version)
            {
                self.delete_version(key, &found.version).await?;
            }
            self.append_or_warn(&Record::Resolved(attempt));
        }
        if let Some(remote) = kept.filter(|remote| remote.key == *key) {
            match self.make_independent(inode).await {
                Err(error) if error.is_conflict() => {
                    self.note_error(&format!("{key:?}, open without a name"), &error);
                }
                done => done?,
            }
            if !stays(&remote.version) {
                self.delete_version(key, &remote.version).await?;
                self.forget_deleted(key, &remote.version);
            }
        }
        self.forget_doomed(key, inode, version);
        Ok(())
    }

    /// An upload has put `version` at `key`: what was to be deleted there before, it has overwritten.
    pub(super) fn forget_overwritten(&self, key: &Key, version: &ObjectVersion) {
        let unused = self.tree.lock().unused_orphans_at(key);
        for (orphan, before) in unused {
            if before != *version {
                self.forget_doomed(key, &orphan, Some(before));
            }
        }
    }

    /// The object of this version at `key` is gone. More than one may stand for it: one that had it open and has been
    /// closed, say, and one that stands for what the file of its name was to overwrite, and lost its name too.
    fn forget_deleted(&self, key: &Key, version: &ObjectVersion) {
        let unused = self.tree.lock().unused_orphans_at(key);
        for (orphan, deleted) in unused {
            if deleted == *version {
                self.forget_doomed(key, &orphan, None);
            }
        }
    }

    /// Keeps the object at its key, hidden, until it is deleted.
    pub(super) fn leave(&self, tree: &mut Tree, left: SentObject) -> Arc<Inode> {
        let key = left.key.clone();
        let nameless = tree.nameless(self.remote_of(left));
        tree.add_orphan(key, Arc::clone(&nameless));
        nameless
    }

    /// An object without a name could not be deleted: it is tried again.
    pub(crate) fn delete_later(&self, inode: &Inode, error: &FsError) {
        let key = self.tree.lock().orphan_key(inode.ino);
        self.note_error(
            &format!("delete of {:?}", key.unwrap_or_else(Key::root)),
            error,
        );
        let now = self.now();
        self.uploader.tell(|queue| queue.urgent(inode.ino, now));
    }

    /// Deletes objects without names, whose keys the caller has the turn at; several in one request, which knows no
    /// conditions.
    pub(super) async fn delete_together(&self, nameless: &[Arc<Inode>]) {
        let remote = |inode: &Arc<Inode>| inode.state.lock().remote.clone();
        let version_of = |inode: &&Arc<Inode>| inode.state.lock().version();
        let mut left: HashMap<Key, &Arc<Inode>> = nameless
            .iter()
            .filter_map(|inode| Some((remote(inode)?.key, inode)))
            .collect();
        if left.is_empty() {
            return;
        }
        let keys: Vec<Key> = left.keys().cloned().collect();
        let deleted = async {
            if let ([key], Some(version)) = (&keys[..], left.values().next().and_then(version_of)) {
                self.delete_version(key, &version).await?;
                return Ok(Vec::new());
            }
            self.journal.sync().await?;
            Ok::<_, FsError>(self.bucket.delete_many(&keys).await?)
        };
        let failed: Vec<(Key, FsError)> = match deleted.await {
            Ok(failed) => failed
                .into_iter()
                .map(|(key, error)| (key, error.into()))
                .collect(),
            Err(error) => keys
                .iter()
                .map(|key| (key.clone(), error.clone()))
                .collect(),
        };
        for (key, error) in failed {
            if let Some(inode) = left.remove(&key) {
                self.delete_later(inode, &error);
            }
        }
        for (key, inode) in left {
            let version = inode.state.lock().version();
            if let Some(version) = &version {
                self.forget_deleted(&key, version);
            }
            self.forget_doomed(&key, inode, version);
        }
    }

    /// Deletes this version of an object, which the journal on the disk has to call nameless first; what another host
    /// has put there meanwhile is not ours to delete.
    pub(crate) async fn delete_version(
        &self,
        key: &Key,
        version: &ObjectVersion,
    ) -> Result<(), FsError> {
        self.journal.sync().await?;
        let condition = if version.is_any() {
            Precondition::None
        } else {
            Precondition::Version(version.clone())
        };
        match self.bucket.delete(key, condition).await {
            Ok(()) | Err(StoreError::Precondition { .. } | StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives an open file bytes that no longer depend on the object it was read from.
    pub(crate) async fn make_independent(&self, inode: &Arc<Inode>) -> Result<(), FsError> {
        let kept = {
            let state = inode.state.lock();
            state.remote.clone().filter(|_| state.opens > 0)
        };
        let Some(remote) = kept else {
            return Ok(());
        };
        if remote.size <= FETCH_MAX {
            self.fetch_whole(inode, &remote).await
        } else {
            self.copy_aside(inode, &remote).await
        }
    }

    async fn fetch_whole(&self, inode: &Arc<Inode>, remote: &Remote) -> Result<(), FsError> {
        let mut whole = Vec::new();
        if remote.size > 0 {
            for bytes in self
                .settings
                .cache
                .read(&self.object_source(remote), 0..remote.size)
                .await?
            {
                whole.extend_from_slice(&bytes);
            }
        }
        let mut state = inode.state.lock();
        let end = state.attr.size.min(remote.size);
        let staged = self.staged(inode.ino, &mut state)?;
        for (piece, source) in staged.sources(0..end) {
            if source == ContentSource::Base {
                let at = |offset| usize::try_from(offset).expect("at most FETCH_MAX");
                let extents = staged.stage(piece.start, &whole[at(piece.start)..at(piece.end)])?;
                staged.record(&extents);
            }
        }
        state.remote = None;
        self.keep_open(inode.ino, &state);
        Ok(())
    }

    async fn copy_aside(&self, inode: &Arc<Inode>, remote: &Remote) -> Result<(), FsError> {
        let (aside, version) = self.copy_to_reserved("orphans", inode, remote).await?;
        {
            let mut tree = self.tree.lock();
            let mut state = inode.state.lock();
            state.remote = Some(Remote {
                key: aside.clone(),
                version,
                modified: None,
                ..remote.clone()
            });
            self.keep_open(inode.ino, &state);
            drop(state);
            self.doom(&mut tree, aside, inode);
        }
        // Its last close may have come meanwhile and have found nothing to delete.
        if inode.state.lock().opens == 0 {
            let now = self.now();
            self.uploader.tell(|queue| queue.urgent(inode.ino, now));
        }
        Ok(())
    }

    /// Copies the object of an inode to a key of its own in a folder that nobody sees. The answer may be lost: until
    /// it is here the copy is one that is to be deleted, and the next attempt goes to the same key.
    pub(super) async fn copy_to_reserved(
        &self,
        folder: &str,
        inode: &Inode,
        remote: &Remote,
    ) -> Result<(Key, ObjectVersion), FsError> {
        let key = {
            let new = || Key::new(format!("{RESERVED}/{folder}/{}", Uuid::now_v7()));
            inode.state.lock().aside.get_or_insert_with(new).clone()
        };
        // Whoever deletes what has no name waits until this has ended.
        let _turn = self.turnstile.enter(Footprint::key(key.clone())).await;
        let doomed = self.doom_copy(&key, remote.size);
        let options = CopyOptions {
            source_version: Some(remote.version.clone()),
            metadata: MetadataDirective::Copy,
        };
        let copied = async {
            self.journal.sync().await?;
            self.copy(&remote.key, &key, &options, remote.size).await
        };
        let copied = copied.await;
        match &copied {
            Err(error) if error.is_transient() => {
                let now = self.now();
                self.uploader.tell(|queue| queue.urgent(doomed.ino, now));
            }
            // It is the inode's, or was never made.
            _ => {
                inode.state.lock().aside = None;
                self.forget_doomed(&key, &doomed, Some(ObjectVersion::any()));
            }
        }
        Ok((key, copied?))
    }

    /// What is going to be at `key` is to be deleted, if nothing else is said before the next start.
    fn doom_copy(&self, key: &Key, size: u64) -> Arc<Inode> {
        let mut tree = self.tree.lock();
        if let Some(doomed) = tree.orphans_at(key).pop() {
            return doomed;
        }
        let copy = SentObject {
            key: key.clone(),
            size,
            version: ObjectVersion::any(),
        };
        let doomed = tree.nameless(self.remote_of(copy));
        self.doom(&mut tree, key.clone(), &doomed);
        doomed
    }

    /// Whether a file that has taken the name is to overwrite this very version.
    pub(crate) fn is_to_be_overwritten(&self, key: &Key, version: &ObjectVersion) -> bool {
        let taker = self.tree.lock().named(key);
        taker.is_some_and(|taker| taker.state.lock().overwrites.as_ref() == Some(version))
    }

    /// Deletes the object of an inode that has no name any more. Who has it open gets the bytes elsewhere.
    pub(crate) async fn delete_orphan(&self, inode: &Arc<Inode>) -> Result<(), FsError> {
        for _ in 0..FIRST_MAX {
            let Some(first) = self.before_deletion(inode) else {
                break;
            };
            self.upload(&first, &Progress::default()).await?;
        }
        let spell = |tree: &Tree| tree.orphan_key(inode.ino).ok_or(FsError::NoEntry);
        let turn = self.turn_at(spell, |key| Footprint::key(key.clone())).await;
        // Somebody who needed the key may have seen to it.
        let Ok((_turn, key)) = turn else {
            return Ok(());
        };
        self.settle_orphan(&key, inode, None).await
    }

    /// The directory that has to be in the bucket before the object goes: one that would be gone with its last
    /// object, or one whose objects are being copied and that has to find what it has copied so far.
    fn before_deletion(&self, inode: &Inode) -> Option<Arc<Inode>> {
        let tree = self.tree.lock();
        let key = tree.orphan_key(inode.ino)?;
        if let Some(migrating) = tree.migrating_over(&key) {
            return tree.inode(migrating);
        }
        let (parent, _) = tree.find_parent(&key)?;
        let parent = tree.inode(parent)?;
        let has_to_stay = parent.state.lock().unsent.content;
        has_to_stay.then_some(parent)
    }
}
