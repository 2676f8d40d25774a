//! Attributes: getattr, setattr.

use std::sync::Arc;
use std::time::Duration;

use crate::fs::attr::{Attr, SetAttr};
use crate::fs::error::FsError;
use crate::fs::filesystem::FileSystem;
use crate::fs::inode::{Inode, InodeState, Unsent};
use crate::fs::journal::record::Record;
use crate::fs::upload::plan::SIZE_MAX;
use crate::store::FileKind;

impl FileSystem {
    /// The attributes of an inode, and how long they may be believed.
    pub async fn getattr(&self, ino: u64) -> Result<(Attr, Duration), FsError> {
        let inode = self.inode(ino)?;
        self.resolve(&inode).await?;
        let attr = inode.state.lock().attr;
        Ok((attr, self.kernel_ttl()))
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
        self.staged(ino, state)?;
        let time = self.settings.clock.wall();
        self.record(ino, state, &Record::Resized { ino, size, time })?;
        self.staged(ino, state)?.resize(size);
        state.content_changed(size, time);
        Ok(())
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
