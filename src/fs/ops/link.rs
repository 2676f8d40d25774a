//! link: a further name for a file. The bucket has an object of the same bytes at each.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::fs::attr::Attr;
use crate::fs::error::FsError;
use crate::fs::filesystem::{Entry, FileSystem};
use crate::fs::inode::{Inode, Linked, Unsent};
use crate::fs::journal::record::Record;
use crate::fs::tree::Tree;

/// Names that a file can have: as many as on ext4. Each costs a copy inside the store when the file has changed.
const NAMES_MAX: u32 = 65_000;

/// Another host may replace a file under one of its names so often at most while one name is looked up.
const FOLLOW_ATTEMPTS: u32 = 4;

impl FileSystem {
    /// Gives a file a further name.
    pub async fn link(
        self: &Arc<Self>,
        ino: u64,
        new_parent: u64,
        new_name: &OsStr,
    ) -> Result<Entry, FsError> {
        self.check_writable()?;
        let name = self.parse_new_name(new_parent, new_name)?;
        self.check_directory(new_parent)?;
        let target = self.inode(ino)?;
        self.resolve(&target).await?;
        if self.find(new_parent, &name).await?.is_some() {
            return Err(FsError::Exists);
        }
        // Asked once: the journal may come to another format meanwhile.
        let is_recorded = self.keeps_links();
        let attr = |tree: &Tree| check_target(tree, &target);
        let link = self.insert_as(new_parent, &name, attr, |tree, link| {
            tree.add_link(link.ino, target.ino);
            if is_recorded {
                return self.record_link(tree, link, &target);
            }
            link.state.lock().changed(Unsent {
                content: true,
                attributes: true,
                place: false,
            });
            Ok(())
        })?;
        if is_recorded {
            self.complete(link.ino);
        } else {
            self.link_by_copy(&link, (new_parent, &name)).await?;
        }
        self.touch_inode(&target);
        Ok(self.entry(&target))
    }

    /// Brings a hard link that the journal cannot be told of into the bucket: whatever comes then, its name is there, and
    /// its bytes are.
    async fn link_by_copy(
        self: &Arc<Self>,
        link: &Arc<Inode>,
        (parent, name): (u64, &Arc<str>),
    ) -> Result<(), FsError> {
        if let Err(error) = self.upload_in_time(link).await {
            let mut tree = self.tree.lock();
            if let Ok(key) = tree.key_of_name(parent, name, link.ino) {
                self.unlink_inode(&mut tree, link, (parent, name), &key)?;
            }
            return Err(error);
        }
        Ok(self.journal.complete(&Record::Done(Vec::new()))?)
    }

    /// Like [`FileSystem::find`]; what a hard link's name stands for is its target. Both are asked about: the target may
    /// have been replaced under its own name.
    pub(crate) async fn find_linked(
        &self,
        parent: u64,
        name: &Arc<str>,
    ) -> Result<Option<Arc<Inode>>, FsError> {
        for _ in 0..FOLLOW_ATTEMPTS {
            let Some(found) = self.find(parent, name).await? else {
                return Ok(None);
            };
            let target = {
                let tree = self.tree.lock();
                let target = tree.link_target(found.ino);
                target.and_then(|target| Some((tree.place_of(target.ino)?, target)))
            };
            let Some(((parent, name), target)) = target else {
                return Ok(Some(found));
            };
            if let Some(there) = self.find(parent, &name).await?
                && there.ino == target.ino
            {
                return Ok(Some(target));
            }
        }
        Err(FsError::Stale)
    }

    /// The inode that the kernel knows by a name: a hard link's target, or the one whose name it is.
    pub(crate) fn linked_inode(&self, inode: Arc<Inode>) -> Arc<Inode> {
        self.tree.lock().link_target(inode.ino).unwrap_or(inode)
    }
}

/// The attributes of what is to have a further name, if it can.
fn check_target(tree: &Tree, target: &Inode) -> Result<Attr, FsError> {
    if tree.is_directory(target.ino) == Some(true) {
        return Err(FsError::NotPermitted("a hard link to a directory"));
    }
    if tree.nlink(target.ino) >= NAMES_MAX {
        return Err(FsError::TooManyLinks(NAMES_MAX));
    }
    let state = target.state.lock();
    match state.linked {
        Linked::No => Err(FsError::NoEntry),
        Linked::Yes | Linked::Going => Ok(state.attr),
    }
}
