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
use crate::fs::error::FsError;
use crate::fs::filesystem::FileSystem;
use crate::fs::inode::{Frozen, Inode, Remote};
use crate::fs::staging::ContentSource;
use crate::fs::tree::{RESERVED, Tree};
use crate::store::{
    CopyOptions, Key, MetadataDirective, ObjectVersion, PartTag, Precondition, StoreError, UploadId,
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
        let Some(frozen) = inode.state.lock().freeze() else {
            return Ok(());
        };
        match self.send(&key, &frozen, progress).await {
            Ok(remote) => {
                let mut tree = self.tree.lock();
                inode.state.lock().uploaded(&frozen, remote);
                tree.touch(inode.ino, self.now());
                Ok(())
            }
            Err(error) => {
                inode.state.lock().not_uploaded(&frozen);
                Err(if error.is_conflict() {
                    FsError::Conflict {
                        key: key.as_str().to_owned(),
                    }
                } else {
                    error
                })
            }
        }
    }

    async fn send(
        &self,
        key: &Key,
        frozen: &Frozen,
        progress: &Progress,
    ) -> Result<Remote, FsError> {
        self.settle_orphans(key).await?;
        let metadata = frozen.metadata.clone();
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
            self.tree.lock().remove_orphan(&key, inode.ino, self.now());
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
        let Some(remote) = inode.state.lock().remote.clone() else {
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
        let staged = self.staged(&mut state)?;
        for (piece, source) in staged.sources(0..end) {
            if source == ContentSource::Base {
                let at = |offset| usize::try_from(offset).expect("at most FETCH_MAX");
                staged.write(piece.start, &whole[at(piece.start)..at(piece.end)])?;
            }
        }
        state.remote = None;
        state.overwrites = Some(remote.version.clone());
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
            drop(state);
            tree.add_orphan(aside, Arc::clone(inode));
        }
        // Its last close may have come meanwhile and have found nothing to delete.
        if inode.state.lock().opens == 0 {
            self.delete_orphan(inode).await;
        }
        Ok(())
    }
}
