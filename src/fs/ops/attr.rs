//! Attributes: getattr, setattr.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::fs::attr::{Attr, SetAttr};
use crate::fs::error::FsError;
use crate::fs::filesystem::FileSystem;
use crate::fs::inode::{Inode, InodeState, Linked, Unsent};
use crate::fs::tree::Tree;
use crate::fs::upload::plan::SIZE_MAX;
use crate::fs::upload::schedule::Footprint;
use crate::store::{FileKind, Precondition};

impl FileSystem {
    /// The attributes of an inode, and how long they may be believed.
    pub async fn getattr(&self, ino: u64) -> Result<(Attr, Duration), FsError> {
        let inode = self.inode(ino)?;
        self.resolve(&inode).await?;
        let attr = inode.state.lock().attr;
        Ok((attr, self.kernel_ttl()))
    }

    /// Changes attributes or the size. What is not open for writing is in the bucket when this returns; a
    /// file that is goes there with its content. A change to the same value sends nothing.
    pub async fn setattr(
        self: &Arc<Self>,
        ino: u64,
        change: SetAttr,
    ) -> Result<(Attr, Duration), FsError> {
        self.check_writable()?;
        if change.size.is_some_and(|size| size > SIZE_MAX) {
            return Err(FsError::TooLarge(SIZE_MAX));
        }
        let inode = self.inode(ino)?;
        self.resolve(&inode).await?;
        let kind = inode.state.lock().attr.kind;
        match (kind, change.size) {
            (FileKind::Directory, Some(_)) => return Err(FsError::IsDirectory),
            (FileKind::Directory, None) => self.set_directory_attr(&inode, &change).await?,
            (FileKind::File, _) | (_, None) => self.set_file_attr(&inode, &change).await?,
            (_, Some(_)) => return Err(FsError::Invalid("only a regular file has a size to set")),
        }
        let attr = inode.state.lock().attr;
        Ok((attr, self.kernel_ttl()))
    }

    /// Makes sure that the attributes shown are the object's own.
    pub(crate) async fn resolve(&self, inode: &Arc<Inode>) -> Result<(), FsError> {
        if inode.state.lock().resolved {
            return Ok(());
        }
        let Some((parent, name)) = self.tree.lock().place_of(inode.ino) else {
            return Ok(());
        };
        match self.ask_again(parent, &name, inode).await? {
            Some(found) if found.ino == inode.ino => Ok(()),
            _ => Err(FsError::Stale),
        }
    }

    async fn set_file_attr(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        change: &SetAttr,
    ) -> Result<(), FsError> {
        let (before, send, count) = {
            let mut state = inode.state.lock();
            let before = state.attr;
            if let Some(size) = change.size {
                self.resize(&mut state, size)?;
            }
            let now = self.settings.clock.wall();
            if let Some(attr) = state.attr.changed_by(change, now) {
                state.attr = attr;
                state.changed(Unsent {
                    content: false,
                    attributes: true,
                });
            }
            if state.attr == before {
                return Ok(());
            }
            // A file that is being written takes its attributes along when its content goes.
            let being_written = state.opens > 0 && (state.unsent.content || state.remote.is_none());
            (
                before,
                !being_written && state.linked == Linked::Yes,
                state.change,
            )
        };
        if !send {
            return Ok(());
        }
        let sent = self.upload_in_time(inode).await;
        if sent.is_err() {
            let mut state = inode.state.lock();
            // A refused chmod did not happen. A truncation has: its bytes are gone from the staging file.
            if state.change == count && !state.unsent.content {
                state.attr = before;
                state.unsent.attributes = false;
            }
        }
        sent
    }

    /// Sets a file's size: what is beyond it is cut off, what is missing is zeros.
    pub(crate) fn resize(&self, state: &mut InodeState, size: u64) -> Result<(), FsError> {
        if state.attr.size == size {
            return Ok(());
        }
        self.staged(state)?.resize(size);
        state.content_changed(size, self.settings.clock.wall());
        Ok(())
    }

    async fn set_directory_attr(
        &self,
        inode: &Arc<Inode>,
        change: &SetAttr,
    ) -> Result<(), FsError> {
        let spell = |tree: &Tree| {
            let directory = tree.key_of(inode.ino).ok_or(FsError::NoEntry)?;
            Ok(self.marker_key(&directory))
        };
        let (_turn, key) = self
            .turn_at(spell, |key| Footprint::key(key.clone()))
            .await?;
        let _busy = inode.busy();
        let (attr, mut metadata, marker) = {
            let state = inode.state.lock();
            let Some(attr) = state.attr.changed_by(change, self.settings.clock.wall()) else {
                return Ok(());
            };
            (attr, state.metadata.clone(), state.remote.clone())
        };
        attr.to_attributes().write_to(&mut metadata);
        let version = match &marker {
            // A marker can have a body that somebody else gave it: it stays.
            Some(marker) if marker.size > 0 => {
                self.bucket
                    .replace_metadata(&key, marker.size, &marker.version, metadata.clone())
                    .await?
            }
            _ => {
                self.bucket
                    .put(&key, Bytes::new(), metadata.clone(), Precondition::None)
                    .await?
            }
        };
        let mut tree = self.tree.lock();
        {
            let mut state = inode.state.lock();
            state.attr = attr;
            state.metadata = metadata;
            state.remote = Some(self.written(key, marker.map_or(0, |m| m.size), version));
        }
        tree.touch(inode.ino, self.now());
        Ok(())
    }

    /// A directory's times move when its names do. This is not written to the bucket.
    pub(crate) fn touch_directory(&self, ino: u64) {
        if let Ok(inode) = self.inode(ino) {
            let now = self.settings.clock.wall();
            let mut state = inode.state.lock();
            state.attr.mtime = now;
            state.attr.ctime = now;
        }
    }
}
