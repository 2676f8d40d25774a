//! Making things: create, mknod, mkdir, symlink. The bucket has them soon after.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::fs::attr::{Attr, Caller};
use crate::fs::error::FsError;
use crate::fs::filesystem::{Entry, FileSystem};
use crate::fs::inode::Inode;
use crate::fs::tree::{Known, Tree};
use crate::store::FileKind;

/// New files of such a directory belong to its group.
const SETGID: u32 = 0o2000;

/// Longest target of a symbolic link, in bytes: the kernel's PATH_MAX without its NUL.
pub(crate) const TARGET_MAX: usize = 4095;

/// What create is to do about a name that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfExists {
    /// Fail: O_EXCL.
    Fail,
    /// Open what is there.
    Open,
    /// Open it and empty it: O_TRUNC.
    Truncate,
}

impl FileSystem {
    /// Opens a file for writing, making it if it is not there.
    pub async fn create(
        self: &Arc<Self>,
        parent: u64,
        name: &OsStr,
        mode: u32,
        caller: Caller,
        if_exists: IfExists,
    ) -> Result<(Entry, u64), FsError> {
        self.check_writable()?;
        let name = self.parse_new_name(parent, name)?;
        let inode = match self.find_linked(parent, &name).await? {
            Some(_) if if_exists == IfExists::Fail => return Err(FsError::Exists),
            Some(inode) => inode,
            None => {
                let attr = self.new_attr(parent, FileKind::File, mode, caller)?;
                let inode = self.insert(parent, &name, attr, b"")?;
                self.changed(inode.ino);
                inode
            }
        };
        let fh = self.open_inode(&inode, true, if_exists == IfExists::Truncate)?;
        Ok((self.entry(&inode), fh))
    }

    /// Opens what [`FileSystem::create`] has made in an earlier process that did not live to say so.
    pub async fn create_again(
        self: &Arc<Self>,
        parent: u64,
        name: &OsStr,
    ) -> Result<(Entry, u64), FsError> {
        let name = self.parse_new_name(parent, name)?;
        let found = self.find_linked(parent, &name).await?;
        let inode = found.ok_or(FsError::NoEntry)?;
        let fh = self.open_inode(&inode, true, false)?;
        Ok((self.entry(&inode), fh))
    }

    /// Makes a regular file, pipe, socket or device node.
    pub async fn mknod(
        self: &Arc<Self>,
        parent: u64,
        name: &OsStr,
        kind: FileKind,
        mode: u32,
        rdev: u32,
        caller: Caller,
    ) -> Result<Entry, FsError> {
        let mut attr = self.new_attr(parent, kind, mode, caller)?;
        attr.rdev = rdev;
        self.make(parent, name, attr, b"").await
    }

    /// Makes a symbolic link.
    pub async fn symlink(
        self: &Arc<Self>,
        parent: u64,
        name: &OsStr,
        target: &[u8],
        caller: Caller,
    ) -> Result<Entry, FsError> {
        if target.len() > TARGET_MAX {
            return Err(FsError::Invalid("the target of the link is too long"));
        }
        let mut attr = self.new_attr(parent, FileKind::Symlink, 0o777, caller)?;
        attr.size = target.len() as u64;
        self.make(parent, name, attr, target).await
    }

    /// Makes a directory.
    pub async fn mkdir(
        self: &Arc<Self>,
        parent: u64,
        name: &OsStr,
        mode: u32,
        caller: Caller,
    ) -> Result<Entry, FsError> {
        let attr = self.new_attr(parent, FileKind::Directory, mode, caller)?;
        self.make(parent, name, attr, b"").await
    }

    /// Makes something that nobody has open.
    async fn make(
        self: &Arc<Self>,
        parent: u64,
        name: &OsStr,
        attr: Attr,
        content: &[u8],
    ) -> Result<Entry, FsError> {
        self.check_writable()?;
        let name = self.parse_new_name(parent, name)?;
        if self.find(parent, &name).await?.is_some() {
            return Err(FsError::Exists);
        }
        let inode = self.insert(parent, &name, attr, content)?;
        self.complete(inode.ino);
        Ok(self.entry(&inode))
    }

    /// Puts something new under a name that is free.
    fn insert(
        &self,
        parent: u64,
        name: &Arc<str>,
        attr: Attr,
        content: &[u8],
    ) -> Result<Arc<Inode>, FsError> {
        let record = |tree: &mut Tree, inode: &Arc<Inode>| self.record_new(tree, inode, content);
        self.insert_as(parent, name, |_| Ok(attr), record)
    }

    /// Likewise, something of these attributes that is written down by `record`. If it cannot be, it is not there.
    pub(super) fn insert_as(
        &self,
        parent: u64,
        name: &Arc<str>,
        attr: impl FnOnce(&Tree) -> Result<Attr, FsError>,
        record: impl FnOnce(&mut Tree, &Arc<Inode>) -> Result<(), FsError>,
    ) -> Result<Arc<Inode>, FsError> {
        self.journal.check_room()?;
        let now = self.now();
        let mut tree = self.tree.lock();
        // Somebody else may have made it while we asked.
        match tree.look(parent, name, now, self.settings.metadata_ttl) {
            Known::Fresh(_) | Known::Stale(_) => return Err(FsError::Exists),
            Known::Absent | Known::Unknown => {}
        }
        tree.check_parent(parent)?;
        let attr = attr(&tree)?;
        let inode = tree.insert(parent, name, attr, now);
        let recorded = self.count_new(&tree, &inode).and_then(|()| {
            let recorded = record(&mut tree, &inode);
            recorded.inspect_err(|_| self.count_no_more(&inode))
        });
        if let Err(error) = recorded {
            self.part(&mut tree, inode.ino);
            tree.remove(parent, name, now);
            self.staging.remove(inode.ino);
            return Err(error);
        }
        drop(tree);
        self.touch_directory(parent);
        Ok(inode)
    }

    fn new_attr(
        &self,
        parent: u64,
        kind: FileKind,
        mode: u32,
        caller: Caller,
    ) -> Result<Attr, FsError> {
        let parent = self.inode(parent)?.state.lock().attr;
        let mut attr = Attr::new(kind, mode, caller, self.settings.clock.wall());
        if parent.mode & SETGID != 0 {
            attr.gid = parent.gid;
            if kind == FileKind::Directory {
                attr.mode |= SETGID;
            }
        }
        Ok(attr)
    }
}
