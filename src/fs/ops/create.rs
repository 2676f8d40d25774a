//! Making things: create, mknod, mkdir, symlink.

use std::ffi::OsStr;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::fs::attr::{Attr, Caller};
use crate::fs::error::FsError;
use crate::fs::filesystem::{Entry, FileSystem};
use crate::fs::inode::{Inode, Unsent};
use crate::fs::journal::record::Record;
use crate::fs::tree::{Known, Tree};
use crate::fs::upload::schedule::Footprint;
use crate::store::{FileKind, Key, Precondition, StoreError};

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
    /// Opens a file for writing, making it if it is not there. The bucket has it when it is closed.
    pub async fn create(
        self: &Arc<Self>,
        parent: u64,
        name: &OsStr,
        mode: u32,
        caller: Caller,
        if_exists: IfExists,
    ) -> Result<(Entry, u64), FsError> {
        self.check_writable()?;
        let name = Self::parse_new_name(parent, name)?;
        let inode = match self.find(parent, &name).await? {
            Some(_) if if_exists == IfExists::Fail => return Err(FsError::Exists),
            Some(inode) => inode,
            None => {
                let attr = self.new_attr(parent, FileKind::File, mode, caller)?;
                self.insert_file(parent, &name, attr)?
            }
        };
        let fh = self.open_inode(&inode, true, if_exists == IfExists::Truncate)?;
        Ok((self.entry(&inode), fh))
    }

    /// Makes a regular file, pipe, socket or device node; the bucket has it when this returns.
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
        self.make_object(parent, name, attr, Bytes::new()).await
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
        self.make_object(parent, name, attr, Bytes::copy_from_slice(target))
            .await
    }

    /// Makes a directory: its marker.
    pub async fn mkdir(
        self: &Arc<Self>,
        parent: u64,
        name: &OsStr,
        mode: u32,
        caller: Caller,
    ) -> Result<Entry, FsError> {
        let attr = self.new_attr(parent, FileKind::Directory, mode, caller)?;
        self.make_object(parent, name, attr, Bytes::new()).await
    }

    /// Puts something new into the bucket, then under its name.
    async fn make_object(
        self: &Arc<Self>,
        parent: u64,
        name: &OsStr,
        attr: Attr,
        body: Bytes,
    ) -> Result<Entry, FsError> {
        self.check_writable()?;
        let name = Self::parse_new_name(parent, name)?;
        if self.find(parent, &name).await?.is_some() {
            return Err(FsError::Exists);
        }
        let spell = |tree: &Tree| {
            tree.check_parent(parent)?;
            if tree.child(parent, &name).is_some() {
                return Err(FsError::Exists);
            }
            tree.child_key(parent, &name, attr.kind == FileKind::Directory)
                .ok_or(FsError::NoEntry)
        };
        // What lies below a directory that was removed may still wait for its last close.
        let footprint = |key: &Key| match attr.kind {
            FileKind::Directory => Footprint::below(key.clone()),
            _ => Footprint::key(key.clone()),
        };
        let over = |key: &Key| vec![key.clone()];
        let (_turn, key) = self.turn_at_vacated(spell, over, footprint).await?;
        self.settle_orphans(&key, None).await?;
        let metadata = Self::metadata_of(attr);
        let size = body.len() as u64;
        let put = self
            .bucket
            .put(&key, body, metadata.clone(), Precondition::Absent)
            .await;
        let version = match put {
            Ok(version) => version,
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => {
                self.tree.lock().distrust_listing(parent);
                return Err(FsError::Exists);
            }
            Err(error) => return Err(error.into()),
        };
        let remote = self.written(key, size, version);
        let inode = self
            .tree
            .lock()
            .insert(parent, &name, attr, Some(remote), self.now());
        inode.state.lock().metadata = metadata;
        self.touch_directory(parent);
        Ok(self.entry(&inode))
    }

    fn insert_file(&self, parent: u64, name: &Arc<str>, attr: Attr) -> Result<Arc<Inode>, FsError> {
        let now = self.now();
        let mut tree = self.tree.lock();
        // Somebody else may have made it while we asked.
        match tree.look(parent, name, now, self.settings.metadata_ttl) {
            Known::Fresh(_) | Known::Stale(_) => return Err(FsError::Exists),
            Known::Absent | Known::Unknown => {}
        }
        tree.check_parent(parent)?;
        if tree.is_hidden(parent, name, true) {
            return Err(FsError::IsDirectory);
        }
        let inode = tree.insert(parent, name, attr, None, now);
        if let Err(error) = self.record_new(&tree, &inode) {
            tree.remove(parent, name, now);
            return Err(error.into());
        }
        drop(tree);
        self.changed(inode.ino);
        self.touch_directory(parent);
        Ok(inode)
    }

    fn record_new(&self, tree: &Tree, inode: &Inode) -> io::Result<()> {
        self.place_in_journal(tree, inode.ino)?;
        let mut state = inode.state.lock();
        state.changed(Unsent {
            content: true,
            attributes: true,
            place: false,
        });
        let (ino, attr) = (inode.ino, state.attr);
        self.record(ino, &mut state, &Record::Attributes { ino, attr })
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
