//! Sends what was changed.
//!
//! Order is the contract: the parts, then the conditional complete, then the inode takes the new version. An
//! upload that fails leaves the inode as dirty as it was.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use uuid::Uuid;

use super::plan::{Part, UploadPlan};
use super::schedule::Footprint;
use crate::fs::durable;
use crate::fs::error::FsError;
use crate::fs::filesystem::FileSystem;
use crate::fs::inode::{Frozen, Inode, Remote};
use crate::fs::journal::record::Record;
use crate::fs::staging::ContentSource;
use crate::fs::tree::{RESERVED, Tree};
use crate::store::{
    CopyOptions, Key, MetadataDirective, ObjectVersion, PartTag, Precondition, StoreError,
    UploadId, WriteId,
};

/// An open file that loses its object is fetched whole up to this size; a larger one is copied aside.
const FETCH_MAX: u64 = 8 * 1024 * 1024;

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

    fn advance(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// How often an upload begins again because it finds its own earlier attempt in the bucket.
const ADOPTIONS_MAX: u32 = 3;

impl FileSystem {
    /// Brings what was changed about an inode before the call into the bucket.
    pub(crate) async fn upload(
        &self,
        inode: &Arc<Inode>,
        progress: &Progress,
    ) -> Result<(), FsError> {
        let spell = |tree: &Tree| tree.key_of(inode.ino).ok_or(FsError::NoEntry);
        // A file without a name has no key to go to.
        let Ok((_turn, key)) = self.turn_at(spell, |key| Footprint::key(key.clone())).await else {
            return Ok(());
        };
        let mut adoptions = 0;
        loop {
            let Some((frozen, earlier)) = self.begin_upload(inode)? else {
                return Ok(());
            };
            let error = match self.send_in_order(&key, &frozen, progress).await {
                Ok(remote) => return self.end_upload(inode, &frozen, remote),
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
            if adoptions > ADOPTIONS_MAX || !self.adopt(inode, &key, earlier.as_ref()).await? {
                return Err(FsError::Conflict {
                    key: key.as_str().to_owned(),
                });
            }
        }
    }

    /// Freezes what is to be sent, and writes down that it is. Also returns the mark of the upload before, if
    /// nobody knows how that one ended.
    fn begin_upload(&self, inode: &Inode) -> Result<Option<(Frozen, Option<WriteId>)>, FsError> {
        let mut state = inode.state.lock();
        let write = WriteId::new();
        let Some(frozen) = state.freeze(&write) else {
            return Ok(None);
        };
        let ino = inode.ino;
        let sending = Record::Sending {
            ino,
            write: write.clone(),
        };
        if let Err(error) = self.record(ino, &mut state, &sending) {
            state.not_uploaded(&frozen);
            return Err(error.into());
        }
        state.sending = true;
        Ok(Some((frozen, state.write.replace(write))))
    }

    fn end_upload(&self, inode: &Inode, frozen: &Frozen, remote: Remote) -> Result<(), FsError> {
        let mut tree = self.tree.lock();
        {
            let mut state = inode.state.lock();
            let object = durable::sent(&remote);
            state.sending = false;
            state.uploaded(frozen, remote);
            if state.unsent.any() {
                let ino = inode.ino;
                let sent = Record::Sent {
                    ino,
                    remote: object,
                };
                self.record(ino, &mut state, &sent)?;
            } else {
                self.settle(inode.ino, &mut state);
            }
        }
        tree.touch(inode.ino, self.now());
        Ok(())
    }

    /// Whether what stands at the key is what an earlier upload of ours made, whose answer was lost. The file
    /// is based on it from then on: it differs from the earlier base only where the file is dirty.
    async fn adopt(
        &self,
        inode: &Inode,
        key: &Key,
        earlier: Option<&WriteId>,
    ) -> Result<bool, FsError> {
        let Some(earlier) = earlier else {
            return Ok(false);
        };
        let Some((object, Some(write))) = self.bucket.head_written(key).await? else {
            return Ok(false);
        };
        if write != *earlier {
            return Ok(false);
        }
        let mut state = inode.state.lock();
        state.remote = Some(self.written(key.clone(), object.size, object.version));
        state.overwrites = None;
        self.record_base(inode.ino, &mut state)?;
        Ok(true)
    }

    /// No request leaves before the journal is on the disk.
    async fn send_in_order(
        &self,
        key: &Key,
        frozen: &Frozen,
        progress: &Progress,
    ) -> Result<Remote, FsError> {
        self.journal.sync().await?;
        self.send(key, frozen, progress).await
    }

    async fn send(
        &self,
        key: &Key,
        frozen: &Frozen,
        progress: &Progress,
    ) -> Result<Remote, FsError> {
        self.settle_orphans(key).await?;
        let metadata = frozen.marked.clone();
        if let (None, Some(base)) = (&frozen.content, &frozen.base) {
            let version = self
                .bucket
                .replace_metadata(&base.key, base.size, &base.version, metadata)
                .await?;
            return Ok(Remote {
                version,
                modified: None,
                ..base.clone()
            });
        }
        let size = frozen.attr.size;
        let (dirty, base_len) = match (&frozen.content, &frozen.base) {
            (Some(content), Some(_)) => (content.dirty(), content.base_len()),
            _ => (Vec::new(), 0),
        };
        let version = match UploadPlan::new(size, self.settings.part_size, &dirty, base_len) {
            UploadPlan::Put => {
                let _memory = self.settings.cache.reserve_upload(size).await;
                let body = self.assemble(frozen, 0..size).await?;
                self.bucket
                    .put(key, body, metadata, frozen.precondition.clone())
                    .await?
            }
            UploadPlan::Multipart(parts) => {
                let upload = self.bucket.create_multipart(key, metadata).await?;
                let sent = self.send_parts(key, frozen, &upload, parts, progress).await;
                let version = match sent {
                    Ok(tags) => self
                        .bucket
                        .complete_multipart(key, &upload, &tags, frozen.precondition.clone())
                        .await
                        .map_err(FsError::from),
                    Err(error) => Err(error),
                };
                if version.is_err()
                    && let Err(error) = self.bucket.abort_multipart(key, &upload).await
                {
                    self.note_error(&format!("parts of {key:?} were left behind"), &error.into());
                }
                version?
            }
        };
        Ok(self.written(key.clone(), size, version))
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
                Ok::<_, FsError>(tag)
            })
            .buffered(self.settings.concurrency.min(PARTS_IN_FLIGHT))
            .try_collect()
            .await
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
            body = tokio::task::spawn_blocking(move || {
                use std::os::unix::fs::FileExt;
                for (piece, place) in staged {
                    file.read_exact_at(&mut body[piece], place)?;
                }
                Ok::<_, std::io::Error>(body)
            })
            .await
            .map_err(std::io::Error::other)??;
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

    /// Before `key` is written, or a directory is renamed or removed: open files that lost their name there
    /// get their bytes elsewhere, and their objects, which wait for the last close, go now.
    pub(crate) async fn settle_orphans(&self, key: &Key) -> Result<(), FsError> {
        let orphans = self.tree.lock().orphans_at(key);
        for (key, inode) in orphans {
            let kept = inode.state.lock().remote.clone();
            if let Some(remote) = kept.filter(|remote| remote.key == key) {
                match self.make_independent(&inode).await {
                    Err(error) if error.is_conflict() => {
                        self.note_error(&format!("{key:?}, open without a name"), &error);
                    }
                    done => done?,
                }
                self.delete_version(&key, &remote.version).await?;
            }
            self.forget_doomed(&key, inode.ino);
        }
        Ok(())
    }

    /// Deletes this version of an object; what another host has put there meanwhile is not ours to delete.
    pub(crate) async fn delete_version(
        &self,
        key: &Key,
        version: &ObjectVersion,
    ) -> Result<(), FsError> {
        let condition = Precondition::Version(version.clone());
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
        let ino = inode.ino;
        let mut state = inode.state.lock();
        let (size, time) = (state.attr.size, state.attr.mtime);
        let staged = self.staged(ino, &mut state)?;
        let mut extents = Vec::new();
        for (piece, source) in staged.sources(0..size.min(remote.size)) {
            if source == ContentSource::Base {
                let at = |offset| usize::try_from(offset).expect("at most FETCH_MAX");
                let bytes = &whole[at(piece.start)..at(piece.end)];
                let fetched = staged.stage(piece.start, bytes)?;
                staged.record(&fetched);
                extents.push(fetched);
            }
        }
        if state.journaled {
            for extents in extents {
                let written = Record::Written {
                    ino,
                    extents,
                    size,
                    time,
                };
                self.record(ino, &mut state, &written)?;
            }
        }
        state.remote = None;
        state.overwrites = Some(remote.version.clone());
        self.record_base(ino, &mut state)?;
        Ok(())
    }

    async fn copy_aside(&self, inode: &Arc<Inode>, remote: &Remote) -> Result<(), FsError> {
        let aside = Key::new(format!("{RESERVED}/orphans/{}", Uuid::now_v7()));
        let options = CopyOptions {
            source_version: Some(remote.version.clone()),
            metadata: MetadataDirective::Copy,
        };
        let version: ObjectVersion = self
            .bucket
            .copy(&remote.key, &aside, &options, remote.size)
            .await?;
        {
            let mut tree = self.tree.lock();
            let mut state = inode.state.lock();
            state.overwrites = Some(remote.version.clone());
            state.remote = Some(Remote {
                key: aside.clone(),
                version,
                modified: None,
                ..remote.clone()
            });
            self.record_base(inode.ino, &mut state)?;
            drop(state);
            self.doom(&mut tree, aside, inode);
        }
        // Its last close may have come meanwhile and have found nothing to delete.
        if inode.state.lock().opens == 0 {
            self.delete_orphan(inode).await?;
        }
        Ok(())
    }
}
