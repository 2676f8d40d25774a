//! Brings directories into the bucket: their markers, and their objects after a rename.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::vacate::Route;
use super::worker::Progress;
use crate::fs::durable::{Copied, Migrated, sent};
use crate::fs::error::FsError;
use crate::fs::filesystem::FileSystem;
use crate::fs::inode::{Inode, Remote};
use crate::fs::journal::record::{Record, SentObject};
use crate::fs::tree::Origin;
use crate::store::{
    CopyOptions, Key, ListEntry, ListRequest, Metadata, MetadataDirective, Precondition,
    StoreError, WriteId,
};

/// Keys that a page of a listing asks for: S3 gives no more.
const PAGE_KEYS: usize = 1000;

/// Another host may change an object so often while it is being copied.
const COPY_ATTEMPTS: u32 = 4;

impl FileSystem {
    /// Makes one step of bringing a directory where it belongs, with the turn at both ends of its route.
    pub(super) async fn upload_directory(
        &self,
        inode: &Arc<Inode>,
        route: &Route,
        progress: &Progress,
    ) -> Result<(), FsError> {
        if route.to == route.from {
            self.send_marker(inode, &route.to).await
        } else {
            self.migrate(inode, route, progress).await
        }
    }

    /// Makes a directory's marker what the directory is here.
    async fn send_marker(&self, inode: &Arc<Inode>, directory: &Key) -> Result<(), FsError> {
        let key = self.marker_key(directory);
        let (change, unsent, mut metadata, marker, write) = {
            let mut state = inode.state.lock();
            let write = state.next_write();
            self.begin_attempt(inode.ino, &mut state, &key, &write)?;
            let mut metadata = state.metadata.clone();
            state.attr.to_attributes().write_to(&mut metadata);
            let marker = state.remote.clone();
            (state.change, state.unsent, metadata, marker, write)
        };
        let put = self
            .put_marker(&key, marker, &mut metadata, unsent.attributes, &write)
            .await;
        let mut tree = self.tree.lock();
        let mut state = inode.state.lock();
        state.sending = false;
        let remote = put?;
        if tree.place_of(inode.ino).is_none() && !directory.as_str().is_empty() {
            // Its name went meanwhile, and with it the marker.
            state.remote = Some(remote.clone());
            drop(state);
            self.append_or_warn(&Record::Doomed(sent(&remote)));
            if let Some(before) = tree.orphan_key(inode.ino) {
                tree.remove_orphan(&before, inode.ino, self.now());
            }
            self.add_orphans(&mut tree, vec![(key, Arc::clone(inode))]);
            return Ok(());
        }
        state.remote = Some(remote);
        state.resolved = true;
        state.attempt = None;
        state.failure = None;
        if state.change == change {
            state.metadata = metadata;
            state.unsent.content = false;
            state.unsent.attributes = false;
        }
        drop(state);
        if tree.origin(inode.ino) == Origin::Nowhere {
            let origin = Origin::Elsewhere(directory.clone());
            tree.set_origin(inode.ino, origin, self.now());
        }
        tree.touch(inode.ino, self.now());
        self.record_directory(&tree, inode.ino, &mut inode.state.lock())?;
        Ok(())
    }

    /// Puts a marker, or gives the one that is there these metadata. A marker that another host has made meanwhile
    /// serves as well, unless its attributes are to be ours: `metadata` is what the bucket has then.
    async fn put_marker(
        &self,
        key: &Key,
        marker: Option<Remote>,
        metadata: &mut Metadata,
        with_attributes: bool,
        write: &WriteId,
    ) -> Result<Remote, FsError> {
        self.journal.sync().await?;
        self.settle_orphans_at(key, None).await?;
        let marked = |metadata: &Metadata| write.mark(metadata.clone());
        let mut marker = marker.map(|marker| (marker.size, marker.version));
        if marker.is_none() {
            let put = self
                .bucket
                .put(key, Bytes::new(), marked(metadata), Precondition::Absent)
                .await;
            match put {
                Ok(version) => return Ok(self.written(key.clone(), 0, version)),
                Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            if let Some(found) = self.bucket.head(key).await? {
                if !with_attributes {
                    *metadata = found.metadata;
                    return Ok(self.written(key.clone(), found.size, found.version));
                }
                marker = Some((found.size, found.version));
            }
        }
        let (size, version) = match marker {
            // A marker can have a body that somebody else gave it: it stays.
            Some((size, version)) if size > 0 => {
                let replaced = self
                    .bucket
                    .replace_metadata(key, size, &version, marked(metadata));
                (size, replaced.await?)
            }
            _ => {
                let put = self
                    .bucket
                    .put(key, Bytes::new(), marked(metadata), Precondition::None);
                (0, put.await?)
            }
        };
        Ok(self.written(key.clone(), size, version))
    }

    /// Brings all objects of a directory that was renamed to where they belong: copies all, makes the copies the
    /// directory's, deletes the originals. A copy that fails midway is finished by the next attempt, whatever the
    /// directory is called by then.
    pub(super) async fn migrate(
        &self,
        inode: &Arc<Inode>,
        route: &Route,
        progress: &Progress,
    ) -> Result<(), FsError> {
        {
            let mut tree = self.tree.lock();
            self.disturb_count();
            tree.set_migration(inode.ino, Some(route.to.clone()), self.now());
            self.record_directory(&tree, inode.ino, &mut inode.state.lock())?;
        }
        self.journal.sync().await?;
        self.settle_orphans_at(&route.to, None).await?;
        self.settle_orphans_below(&route.to).await?;
        let mut migrated = Migrated {
            from: route.from.clone(),
            to: route.to.clone(),
            copies: Vec::new(),
            skipped: HashSet::new(),
            needless: Vec::new(),
            foreign: Vec::new(),
        };
        let there = self.objects_below(&route.to).await?;
        let there: HashMap<Key, SentObject> = there
            .into_iter()
            .map(|object| (object.key.clone(), object))
            .collect();
        let objects = self.objects_below(&route.from).await?;
        self.copy_all(inode.ino, objects, &mut migrated, &there, progress)
            .await?;
        let doomed = self.commit_migration(inode, &migrated)?;
        self.delete_together(&doomed).await;
        Ok(())
    }

    /// Copies the objects of a directory, but for those that do not move with it. Copies that an earlier attempt has
    /// made are taken over.
    async fn copy_all(
        &self,
        directory: u64,
        objects: Vec<SentObject>,
        migrated: &mut Migrated,
        there: &HashMap<Key, SentObject>,
        progress: &Progress,
    ) -> Result<(), FsError> {
        let mut taken: HashSet<Key> = there.keys().cloned().collect();
        {
            // At one moment: what comes below the directory later, or leaves it, is seen to at the end.
            let tree = self.tree.lock();
            migrated.foreign = tree.foreign_below(&migrated.from, directory);
            let stays = |object: &&SentObject| !tree.moves_with(&object.key, directory);
            let staying = objects.iter().filter(stays);
            migrated.skipped = staying.map(|object| object.key.clone()).collect();
        }
        let mut to_copy = Vec::new();
        for original in objects {
            let Some(to) = migrated.rebased(&original.key) else {
                continue;
            };
            let found = there.get(&to);
            let copy = match found {
                Some(found) if self.is_copy(&original, found).await? => Some(found.clone()),
                _ => None,
            };
            match (migrated.skipped.contains(&original.key), copy) {
                (true, copy) => migrated.needless.extend(copy),
                (false, Some(copy)) => migrated.copies.push(Copied { original, copy }),
                (false, None) => {
                    let to = if found.is_some() && !to.is_dir() {
                        self.key_beside(&to, &taken)
                    } else {
                        to
                    };
                    taken.insert(to.clone());
                    to_copy.push((original, to));
                }
            }
        }
        let copies: Vec<Option<Copied>> = stream::iter(to_copy)
            .map(|(original, to)| async move {
                let copied = self.copy_one(original, to).await;
                progress.advance();
                copied
            })
            .buffer_unordered(self.settings.concurrency)
            .try_collect()
            .await?;
        migrated.copies.extend(copies.into_iter().flatten());
        Ok(())
    }

    /// Whether what is there is a copy that an earlier attempt has made, not another host's object.
    async fn is_copy(&self, original: &SentObject, found: &SentObject) -> Result<bool, FsError> {
        if found.size != original.size {
            return Ok(false);
        }
        if found.version == original.version {
            return Ok(true);
        }
        // Some stores give each copy a version of its own.
        let (original, found) = futures_util::try_join!(
            self.bucket.head(&original.key),
            self.bucket.head(&found.key)
        )?;
        Ok(match (original, found) {
            (Some(original), Some(found)) => original.metadata == found.metadata,
            _ => false,
        })
    }

    /// `None`: another host has deleted it meanwhile.
    async fn copy_one(&self, mut original: SentObject, to: Key) -> Result<Option<Copied>, FsError> {
        for _ in 0..COPY_ATTEMPTS {
            let options = CopyOptions {
                source_version: Some(original.version.clone()),
                metadata: MetadataDirective::Copy,
            };
            let copy = self.copy(&original.key, &to, &options, original.size).await;
            match copy {
                Ok(version) => {
                    let copy = SentObject {
                        key: to,
                        size: original.size,
                        version,
                    };
                    return Ok(Some(Copied { original, copy }));
                }
                Err(FsError::Store(
                    StoreError::NotFound { .. } | StoreError::Precondition { .. },
                )) => {
                    let Some(found) = self.bucket.head(&original.key).await? else {
                        return Ok(None);
                    };
                    original.version = found.version;
                    original.size = found.size;
                }
                Err(error) => return Err(error),
            }
        }
        Err(FsError::Stale)
    }

    async fn objects_below(&self, directory: &Key) -> Result<Vec<SentObject>, FsError> {
        let mut objects = Vec::new();
        let mut continuation = None;
        loop {
            let request = ListRequest {
                prefix: directory.clone(),
                delimiter: false,
                max_keys: PAGE_KEYS,
                continuation,
            };
            let page = self.bucket.list(&request).await?;
            objects.extend(page.entries.into_iter().filter_map(|entry| match entry {
                ListEntry::Object {
                    key, size, version, ..
                } => Some(SentObject { key, size, version }),
                ListEntry::Prefix(_) => None,
            }));
            continuation = page.continuation;
            if continuation.is_none() {
                return Ok(objects);
            }
        }
    }
}
