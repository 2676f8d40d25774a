//! Attributes: getattr, setattr.

use std::sync::Arc;
use std::time::Duration;

use crate::fs::attr::{Attr, Caller, SetAttr};
use crate::fs::error::FsError;
use crate::fs::filesystem::FileSystem;
use crate::fs::inode::{Inode, InodeState, Unsent};
use crate::fs::journal::record::Record;
use crate::fs::refusal::hint;
use crate::fs::tree::ROOT;
use crate::fs::upload::plan::SIZE_MAX;
use crate::store::FileKind;

impl FileSystem {
    /// The attributes of an inode, and how long they may be believed.
    pub async fn getattr(&self, ino: u64) -> Result<(Attr, Duration), FsError> {
        let inode = self.inode(ino)?;
        self.resolve(&inode).await?;
        let attr = inode.state.lock().shown_attr();
        Ok((attr, self.kernel_ttl()))
    }

    /// Somebody has the kernel ask for the root's attributes, for which it may have to be refused.
    pub(crate) fn root_asked(&self, caller: Caller) {
        if !self.root_watch.is_refusal(self.now()) {
            return;
        }
        let Ok(root) = self.inode(ROOT) else { return };
        let hint = {
            let state = root.state.lock();
            hint(&state.attr, state.remote.is_some(), caller)
        };
        if let Some(hint) = hint.filter(|_| self.root_watch.is_first()) {
            tracing::warn!(bucket = %self.bucket.location(), "{hint}");
            *self.last_error.lock() = Some(hint);
        }
    }

    /// The kernel is told the root's attributes.
    pub(crate) fn root_told(&self, ttl: Duration) {
        self.root_watch.told(self.now(), ttl);
    }

    /// How many names lead to an inode; two and one for each known subdirectory to a directory.
    pub fn nlink(&self, ino: u64) -> u32 {
        self.tree.lock().nlink(ino)
    }

    /// Changes attributes or the size. They go to the bucket with the content. A change to the same value sends
    /// nothing.
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
            (FileKind::Directory, None) => self.set_directory_attr(&inode, &change)?,
            (FileKind::File, _) | (_, None) => self.set_file_attr(&inode, &change)?,
            (_, Some(_)) => return Err(FsError::Invalid("only a regular file has a size to set")),
        }
        let attr = inode.state.lock().shown_attr();
        Ok((attr, self.kernel_ttl()))
    }

    /// A file is about to be changed by somebody who may not leave it what it lends to who runs it.
    pub fn drop_privileges(&self, ino: u64) -> Result<(), FsError> {
        let inode = self.inode(ino)?;
        let attr = inode.state.lock().attr;
        if attr.without_privileges() == attr.mode {
            return Ok(());
        }
        self.check_writable()?;
        let change = SetAttr {
            drop_privileges: true,
            ..SetAttr::default()
        };
        self.set_file_attr(&inode, &change)
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

    fn set_file_attr(&self, inode: &Arc<Inode>, change: &SetAttr) -> Result<(), FsError> {
        let is_open = {
            let tree = self.tree.lock();
            self.place_in_journal(&tree, inode.ino)?;
            let mut state = inode.state.lock();
            drop(tree);
            let before = state.attr;
            if let Some(size) = change.size {
                self.resize(inode.ino, &mut state, size)?;
            }
            let now = self.settings.clock.wall();
            if let Some(attr) = state.attr.changed_by(change, now) {
                let ino = inode.ino;
                self.record(ino, &mut state, &Record::Attributes { ino, attr })?;
                state.attr = attr;
                state.changed(Unsent {
                    content: false,
                    attributes: true,
                    place: false,
                });
            }
            if state.attr == before {
                return Ok(());
            }
            self.keep_nameless(inode.ino, &state);
            state.opens > 0
        };
        if is_open {
            self.changed(inode.ino);
        } else {
            self.complete(inode.ino);
        }
        Ok(())
    }

    /// Sets a file's size: what is beyond it is cut off, what is missing is zeros.
    pub(crate) fn resize(
        &self,
        ino: u64,
        state: &mut InodeState,
        size: u64,
    ) -> Result<(), FsError> {
        if state.attr.size == size {
            return Ok(());
        }
        self.sized(ino, state, size, |state| {
            self.staged(ino, state)?;
            let time = self.settings.clock.wall();
            self.record(ino, state, &Record::Resized { ino, size, time })?;
            self.staged(ino, state)?.resize(size);
            state.content_changed(size, time);
            Ok(())
        })
    }

    fn set_directory_attr(&self, inode: &Inode, change: &SetAttr) -> Result<(), FsError> {
        let tree = self.tree.lock();
        let now = self.settings.clock.wall();
        let changed = inode.state.lock().attr.changed_by(change, now);
        let Some(attr) = changed else { return Ok(()) };
        let unsent = Unsent {
            attributes: true,
            ..Unsent::default()
        };
        Ok(self.change_directory(&tree, inode, unsent, |state| state.attr = attr)?)
    }

    /// An inode's ctime moves when it gets a name or loses one. This is not written to the bucket.
    pub(crate) fn touch_inode(&self, inode: &Inode) {
        inode.state.lock().attr.ctime = self.settings.clock.wall();
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
