//! Sends what was changed.
//!
//! Order is the contract: the parts, then the conditional complete, then the inode takes the new version. An
//! upload that fails leaves the inode as dirty as it was.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::plan::{Part, UploadPlan};
use crate::fs::blocking::blocking;
use crate::fs::durable;
use crate::fs::error::FsError;
use crate::fs::filesystem::FileSystem;
use crate::fs::inode::{Attempt, Frozen, Inode, InodeState, LinkTarget, Remote};
use crate::fs::journal::record::{Record, SentObject};
use crate::fs::ops::io::KEPT_BASE_MAX;
use crate::fs::staging::ContentSource;
use crate::fs::tree::Tree;
use crate::store::{
    CopyOptions, Key, MetadataDirective, PartTag, Precondition, StoreError, UploadId, WriteId,
};

/// Parts of one file in flight at most: beyond this one line to one store gains nothing.
const PARTS_IN_FLIGHT: usize = 16;

/// Lets whoever waits for an upload see that it moves.
#[derive(Debug, Default)]
pub(crate) struct Progress(AtomicU64);

impl Progress {
    /// Requests done so far.
    pub(crate) fn moved(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn advance(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// How often an upload begins again because it finds something else than it was based on in the bucket.
const ADOPTIONS_MAX: u32 = 3;

/// The object that an upload has made, and its bytes if they were sent in one piece.
type Sent = (Remote, Option<Bytes>);

/// How an upload begins.
enum Begun {
    /// This is to be sent, with this mark.
    Sending(Box<Frozen>, WriteId),
    NothingToSend,
    /// The inode's name spells another key.
    Renamed,
}

impl FileSystem {
    /// Returns `false` if the inode is not called so any more.
    pub(super) async fn upload_to(
        &self,
        inode: &Arc<Inode>,
        key: &Key,
        progress: &Progress,
    ) -> Result<bool, FsError> {
        // The inode may get another name meanwhile: then nobody shall take its object for another file.
        let _hidden = self.hide(key);
        // What the inode was called before may have its bytes, though nobody was told.
        let earlier = inode.state.lock().attempt.clone();
        if let Some(earlier) = earlier.filter(|earlier| earlier.key != *key) {
            let is_ours = self.adopt(inode, &earlier.key, &earlier.write).await?;
            inode.state.lock().attempt = None;
            if is_ours {
                return Ok(false);
            }
        }
        let mut adoptions = 0;
        loop {
            self.take_over(inode, key)?;
            let (frozen, write) = match self.begin_upload(inode, key)? {
                Begun::Sending(frozen, write) => (*frozen, write),
                Begun::NothingToSend => return Ok(true),
                Begun::Renamed => return Ok(false),
            };
            let error = match self.send_in_order(key, &frozen, progress).await {
                Ok(sent) => {
                    let left = self.end_upload(inode, key, &frozen, sent)?;
                    // The turn covers its key too.
                    self.delete_together(&left.into_iter().collect::<Vec<_>>())
                        .await;
                    return Ok(true);
                }
                Err(error) => error,
            };
            {
                let mut state = inode.state.lock();
                state.sending = false;
                state.not_uploaded(&frozen);
            }
            if !error.is_conflict() {
                return Err(error);
            }
            adoptions += 1;
            if adoptions > ADOPTIONS_MAX {
                return Err(error);
            }
            let can_go_on = self.adopt(inode, key, &write).await?
                || self.resolve_conflict(inode, key, &frozen).await?;
            if !can_go_on {
                return Err(FsError::Conflict {
                    key: key.as_str().to_owned(),
                });
            }
        }
    }

    /// Something of the inode's name was removed, and its object is still to be deleted: the inode's overwrites it
    /// instead. (What it was to overwrite before, that object has replaced: its upload was under way.)
    fn take_over(&self, inode: &Inode, key: &Key) -> Result<(), FsError> {
        let (orphan, version) = {
            let tree = self.tree.lock();
            let unused = tree.unused_orphans_at(key).into_iter().next();
            let Some((orphan, version)) = unused else {
                return Ok(());
            };
            let mut state = inode.state.lock();
            let is_in_place = state.remote.as_ref().is_some_and(|own| own.key == *key);
            if tree.settled_key_of(inode.ino).as_ref() != Some(key)
                || is_in_place
                || !state.unsent.any()
            {
                return Ok(());
            }
            let base = (state.remote.clone(), Some(version.clone()));
            self.record_base(inode.ino, &mut state, base, None)?;
            (orphan, version)
        };
        // Both are said of it for a moment: what is to be overwritten is not deleted.
        self.forget_doomed(key, &orphan, Some(version));
        Ok(())
    }

    /// Freezes what is to be sent, and writes down that it is. If nobody knows how the upload before has ended, this
    /// is another attempt at the same write.
    fn begin_upload(&self, inode: &Inode, key: &Key) -> Result<Begun, FsError> {
        let tree = self.tree.lock();
        if tree.settled_key_of(inode.ino).as_ref() != Some(key) {
            return Ok(Begun::Renamed);
        }
        let target = self.target_to_send(&tree, inode)?;
        let mut state = inode.state.lock();
        drop(tree);
        let write = state.next_write();
        let Some(frozen) = state.freeze(inode.ino, key, &write, target) else {
            // Its object has come back to where the name is, or was found there.
            self.settle(inode.ino, &mut state);
            return Ok(Begun::NothingToSend);
        };
        if let Err(error) = self.begin_attempt(inode.ino, &mut state, key, &write) {
            state.not_uploaded(&frozen);
            return Err(error.into());
        }
        Ok(Begun::Sending(Box::new(frozen), write))
    }

    /// What a hard link that is to be sent is to become. The bucket has its target: the caller has seen to that, and has
    /// the turn at it.
    fn target_to_send(&self, tree: &Tree, inode: &Inode) -> Result<Option<LinkTarget>, FsError> {
        if !inode.state.lock().unsent.content {
            return Ok(None);
        }
        let Some(target) = tree.link_target(inode.ino) else {
            return Ok(None);
        };
        let target = LinkTarget::of(&target.state.lock());
        target.ok_or(FsError::Stale).map(Some)
    }

    /// Writes down what is going to be sent where.
    pub(super) fn begin_attempt(
        &self,
        ino: u64,
        state: &mut InodeState,
        key: &Key,
        write: &WriteId,
    ) -> std::io::Result<()> {
        let attempt = Attempt {
            key: key.clone(),
            write: write.clone(),
        };
        let sending = Record::Sending {
            ino,
            attempt: attempt.clone(),
        };
        self.record(ino, state, &sending)?;
        state.sending = true;
        state.attempt = Some(attempt);
        Ok(())
    }

    /// The bucket has what was frozen. The object that was the inode's before, under another key, is doomed, and
    /// returned. Meanwhile the inode may have got another name, or lost it.
    fn end_upload(
        &self,
        inode: &Arc<Inode>,
        key: &Key,
        frozen: &Frozen,
        (remote, body): Sent,
    ) -> Result<Option<Arc<Inode>>, FsError> {
        let object = durable::sent(&remote);
        self.forget_overwritten(key, &object.version);
        let left = frozen.base.as_ref().filter(|base| base.key != *key);
        let left = left.map(durable::sent);
        let mut tree = self.tree.lock();
        let has_name = tree.key_of(inode.ino).is_some();
        let is_in_place = tree.settled_key_of(inode.ino).as_ref() == Some(key);
        {
            // The record first, and no write in between: from then on the staged bytes may be given away.
            let mut state = inode.state.lock();
            state.sending = false;
            let is_clean = is_in_place && state.is_as_in(frozen);
            let settled = is_clean && !self.stays_journaled(&state);
            let overwrites = state.overwrites.clone().filter(|_| !is_in_place);
            let ino = inode.ino;
            if is_clean {
                self.keep_open_as(ino, &state, |kept| {
                    kept.metadata.clone_from(&frozen.metadata);
                    kept.remote = Some(object.clone());
                    kept.staged = None;
                });
            }
            let said = if has_name {
                let sent = Record::Sent {
                    ino,
                    remote: object,
                    overwrites: overwrites.clone(),
                    doomed: left.clone(),
                    settled,
                };
                self.record(ino, &mut state, &sent)
            } else {
                self.record_nameless([Some(object), left.clone()])
            };
            if let Err(error) = said {
                // The next attempt finds its own object.
                state.not_uploaded(frozen);
                return Err(error.into());
            }
            // Some of its bytes have changed meanwhile, or may: who has the file open has read them here. Another host
            // may replace the object before it could be read back, and then ours is to be whole all the same.
            let is_needed = (!is_clean || state.opens > 0) && remote.size <= KEPT_BASE_MAX;
            if let Some(body) = body.filter(|_| is_needed) {
                self.settings.cache.keep(remote.content, &body);
            }
            self.resized(ino, &mut state, |state| state.uploaded(frozen, remote));
            state.attempt = None;
            state.overwrites = overwrites;
            if settled {
                self.forget_changed(ino, &mut state);
            } else if is_clean {
                self.settle(ino, &mut state);
            }
            self.keep_nameless(ino, &state);
        }
        self.links_follow(&tree, inode.ino);
        Ok(self.arrived(&mut tree, inode, key, left))
    }

    /// Writes down that these objects have no names.
    fn record_nameless(&self, objects: [Option<SentObject>; 2]) -> std::io::Result<()> {
        let mut objects = objects.into_iter().flatten();
        objects.try_for_each(|object| self.journal.append(&Record::Doomed(object)))
    }

    /// The inode's object is at `key` from now on, and `left`, which it was before, has no name any more.
    fn arrived(
        &self,
        tree: &mut Tree,
        inode: &Arc<Inode>,
        key: &Key,
        left: Option<SentObject>,
    ) -> Option<Arc<Inode>> {
        let now = self.now();
        tree.note_place(inode, now);
        if tree.key_of(inode.ino).is_some() {
            tree.touch(inode.ino, now);
        } else {
            if let Some(old) = tree.orphan_key(inode.ino) {
                tree.remove_orphan(&old, inode.ino, now);
            }
            self.add_orphans(tree, vec![(key.clone(), Arc::clone(inode))]);
        }
        left.map(|left| self.leave(tree, left))
    }

    /// Whether what stands at the key is what an attempt at this upload made, whose answer was lost. The file is
    /// based on it from then on: it differs from the earlier base only where the file is dirty.
    pub(crate) async fn adopt(
        &self,
        inode: &Arc<Inode>,
        key: &Key,
        write: &WriteId,
    ) -> Result<bool, FsError> {
        let Some((object, Some(made_by))) = self.bucket.head_written(key).await? else {
            return Ok(false);
        };
        if !made_by.is_of_the_write_of(write) {
            return Ok(false);
        }
        self.forget_overwritten(key, &object.version);
        let found = self.written(key.clone(), object.size, object.version);
        let left = {
            let mut tree = self.tree.lock();
            let has_name = tree.key_of(inode.ino).is_some();
            let is_in_place = tree.settled_key_of(inode.ino).as_ref() == Some(key);
            let left = {
                let mut state = inode.state.lock();
                let left = state.remote.as_ref().filter(|base| base.key != *key);
                let left = left.map(durable::sent);
                if has_name {
                    let overwrites = state.overwrites.clone().filter(|_| !is_in_place);
                    let base = (Some(found.clone()), overwrites.clone());
                    match self.record_base(inode.ino, &mut state, base, left.clone()) {
                        // The attempt is written down: the next process finds its object too.
                        Err(_) if left.is_none() => {
                            state.remote = Some(found);
                            state.overwrites = overwrites;
                        }
                        said => said?,
                    }
                } else {
                    self.record_nameless([Some(durable::sent(&found)), left.clone()])?;
                    state.remote = Some(found);
                    self.keep_open(inode.ino, &state);
                }
                left
            };
            self.arrived(&mut tree, inode, key, left)
        };
        self.delete_together(&left.into_iter().collect::<Vec<_>>())
            .await;
        Ok(true)
    }

    /// No request leaves before the journal is on the disk.
    async fn send_in_order(
        &self,
        key: &Key,
        frozen: &Frozen,
        progress: &Progress,
    ) -> Result<Sent, FsError> {
        self.journal.sync().await?;
        self.send(key, frozen, progress).await
    }

    async fn send(&self, key: &Key, frozen: &Frozen, progress: &Progress) -> Result<Sent, FsError> {
        self.settle_orphans_at(key, Some(frozen)).await?;
        let metadata = frozen.marked.clone();
        let source = frozen.target.as_ref().or(frozen.base.as_ref());
        if let (None, Some(source)) = (&frozen.content, source) {
            if source.key != *key {
                self.look_before_copy(key, &frozen.precondition).await?;
            }
            let options = CopyOptions {
                source_version: Some(source.version.clone()),
                metadata: MetadataDirective::Replace(metadata),
            };
            let version = match self.copy(&source.key, key, &options, source.size).await {
                // Another host has replaced the target: the link's own name is nobody's but ours.
                Err(error) if error.is_conflict() && frozen.target.is_some() => {
                    return self.send_what_was_read(key, frozen, source).await;
                }
                copied => copied?,
            };
            let copy = Remote {
                key: key.clone(),
                version,
                modified: None,
                ..source.clone()
            };
            return Ok((copy, None));
        }
        let size = frozen.attr.size;
        if frozen.content.is_none() && size > 0 {
            // Bytes that are nowhere are not sent as zeros.
            return Err(FsError::Stale);
        }
        let (dirty, base_len) = match (&frozen.content, &frozen.base) {
            (Some(content), Some(_)) => (content.dirty(), content.base_len()),
            _ => (Vec::new(), 0),
        };
        let version = match UploadPlan::new(size, self.settings.part_size, &dirty, base_len) {
            UploadPlan::Put => {
                let _memory = self.settings.cache.reserve_upload(size).await;
                let body = self.assemble(frozen, 0..size).await?;
                let condition = frozen.precondition.clone();
                let put = self.bucket.put(key, body.clone(), metadata, condition);
                let remote = self.written(key.clone(), size, put.await?);
                return Ok((remote, Some(body)));
            }
            UploadPlan::Multipart(parts) => {
                let upload = self.bucket.create_multipart(key, metadata).await?;
                self.in_parts(key, &upload, async {
                    let tags = self
                        .send_parts(key, frozen, &upload, parts, progress)
                        .await?;
                    let condition = frozen.precondition.clone();
                    let completed = self
                        .bucket
                        .complete_multipart(key, &upload, &tags, condition);
                    Ok(completed.await?)
                })
                .await?
            }
        };
        Ok((self.written(key.clone(), size, version), None))
    }

    /// Puts what the cache has of an object that is no more to a hard link's key. Without all of it the link stays as it
    /// is, which `status` says.
    async fn send_what_was_read(
        &self,
        key: &Key,
        frozen: &Frozen,
        source: &Remote,
    ) -> Result<Sent, FsError> {
        if source.size > self.settings.part_size {
            return Err(FsError::Stale);
        }
        let _memory = self.settings.cache.reserve_upload(source.size).await;
        let object = self.object_source(source);
        let read = self.settings.cache.read(&object, 0..source.size).await;
        let body = Bytes::from(read.map_err(|_| FsError::Stale)?.concat());
        let (metadata, condition) = (frozen.marked.clone(), frozen.precondition.clone());
        let put = self.bucket.put(key, body.clone(), metadata, condition);
        let remote = self.written(key.clone(), source.size, put.await?);
        Ok((remote, Some(body)))
    }

    /// No store checks what a copy overwrites: we look, then act.
    async fn look_before_copy(
        &self,
        key: &Key,
        precondition: &Precondition,
    ) -> Result<(), FsError> {
        let found = self.bucket.head(key).await?.map(|object| object.version);
        if found.map_or(Precondition::Absent, Precondition::Version) == *precondition {
            return Ok(());
        }
        Err(StoreError::Precondition { key: key.clone() }.into())
    }

    async fn send_parts(
        &self,
        key: &Key,
        frozen: &Frozen,
        upload: &UploadId,
        parts: Vec<Part>,
        progress: &Progress,
    ) -> Result<Vec<PartTag>, FsError> {
        stream::iter(parts.into_iter().zip(1u32..))
            .map(|(part, number)| async move {
                let tag = match (part, &frozen.base) {
                    (Part::Copy(range), Some(base)) => {
                        self.bucket
                            .copy_part(key, upload, number, &base.key, range, &base.version)
                            .await?
                    }
                    (Part::Copy(range) | Part::Send(range), _) => {
                        let _memory = self
                            .settings
                            .cache
                            .reserve_upload(range.end - range.start)
                            .await;
                        let body = self.assemble(frozen, range).await?;
                        self.bucket.put_part(key, upload, number, body).await?
                    }
                };
                progress.advance();
                Ok::<_, FsError>((number, tag))
            })
            // In whatever order they end: a part that has to be read first holds up none that is copied.
            .buffer_unordered(self.settings.concurrency.min(PARTS_IN_FLIGHT))
            .try_collect::<BTreeMap<u32, PartTag>>()
            .await
            .map(|tags| tags.into_values().collect())
    }

    /// The bytes of a range of the file as it was frozen.
    async fn assemble(
        &self,
        frozen: &Frozen,
        range: std::ops::Range<u64>,
    ) -> Result<Bytes, FsError> {
        let at =
            |offset: u64| usize::try_from(offset - range.start).expect("a part fits in memory");
        let mut body = vec![0; at(range.end)];
        let Some(content) = &frozen.content else {
            return Ok(body.into());
        };
        let sources = content.sources(range.clone());

        let staged: Vec<_> = sources
            .iter()
            .filter_map(|(piece, source)| match source {
                ContentSource::Staged(place) => Some((at(piece.start)..at(piece.end), *place)),
                ContentSource::Base | ContentSource::Zeros => None,
            })
            .collect();
        if !staged.is_empty() {
            let file = content.file();
            body = blocking(move || {
                use std::os::unix::fs::FileExt;
                for (piece, place) in staged {
                    file.read_exact_at(&mut body[piece], place)?;
                }
                Ok(body)
            })
            .await?;
        }
        for (piece, source) in sources {
            if let (ContentSource::Base, Some(base)) = (source, &frozen.base) {
                let object = self.object_source(base);
                let mut into = at(piece.start);
                for bytes in self.settings.cache.read(&object, piece).await? {
                    body[into..into + bytes.len()].copy_from_slice(&bytes);
                    into += bytes.len();
                }
            }
        }
        Ok(body.into())
    }
}
