//! Taking things away: unlink, rmdir. The objects follow.

use std::ffi::OsStr;
use std::sync::Arc;

use super::dir::PAGE_KEYS;
use crate::fs::error::FsError;
use crate::fs::filesystem::FileSystem;
use crate::fs::inode::{Going, Inode, Unsent};
use crate::fs::tree::{ROOT, Tree, prefixes};
use crate::fs::upload::schedule::Footprint;
use crate::fs::upload::worker::Progress;
use crate::store::{ListEntry, ListRequest};

impl FileSystem {
    /// Removes a name that is no directory's. A file that is open stays readable until it is closed.
    pub async fn unlink(self: &Arc<Self>, parent: u64, name: &OsStr) -> Result<(), FsError> {
        self.check_writable()?;
        let (name, _) = self.parse_name(name).map_err(|_| FsError::NoEntry)?;
        let inode = self.find_existing(parent, &name).await?;
        if self.tree.lock().is_directory(inode.ino) == Some(true) {
            return Err(FsError::IsDirectory);
        }
        let file = self.linked_inode(Arc::clone(&inode));
        while let Some(busy) = self.remove_name(&inode, parent, &name)? {
            self.turnstile.enter(busy).await;
        }
        self.touch_inode(&file);
        self.touch_directory(parent);
        Ok(())
    }

    /// Takes a name away that is no directory's; a file that has others goes on under one of them. Returns what has to
    /// be waited for first.
    fn remove_name(
        &self,
        inode: &Arc<Inode>,
        parent: u64,
        name: &Arc<str>,
    ) -> Result<Option<Footprint>, FsError> {
        let mut tree = self.tree.lock();
        let key = tree.key_of_name(parent, name, inode.ino)?;
        let link = tree.links_to(inode.ino).next();
        // The file has to know what an upload puts where it goes.
        if let Some(link) = link.as_ref().filter(|link| link.state.lock().sending) {
            return Ok(Some(Footprint::inode(link.ino)));
        }
        self.keep_parent(&tree, parent, name)?;
        match link {
            Some(link) => self.move_to_link(&mut tree, inode, &link)?,
            None => self.unlink_inode(&mut tree, inode, (parent, name), &key)?,
        }
        Ok(None)
    }

    /// Removes an empty directory: its marker will follow, and nothing else.
    pub async fn rmdir(self: &Arc<Self>, parent: u64, name: &OsStr) -> Result<(), FsError> {
        self.check_writable()?;
        let (name, _) = self.parse_name(name).map_err(|_| FsError::NoEntry)?;
        let inode = self.find_existing(parent, &name).await?;
        if self.tree.lock().is_directory(inode.ino) != Some(true) {
            return Err(FsError::NotDirectory);
        }
        loop {
            let _going = self.close_empty(&inode).await?;
            let mut tree = self.tree.lock();
            tree.key_of_name(parent, &name, inode.ino)?;
            if tree.can_be_removed(inode.ino)? {
                self.keep_parent(&tree, parent, &name)?;
                self.remove_directory(&mut tree, &inode)?;
                break;
            }
        }
        self.touch_directory(parent);
        Ok(())
    }

    /// Makes sure that a directory has no entry, neither here nor in the bucket, and gets none while the
    /// guard lives.
    pub(crate) async fn close_empty<'a>(
        self: &Arc<Self>,
        directory: &'a Arc<Inode>,
    ) -> Result<Going<'a>, FsError> {
        let going = directory.going().ok_or(FsError::NoEntry)?;
        while self.tree.lock().migration(directory.ino).is_some() {
            self.upload(directory, &Progress::default()).await?;
        }
        if self.is_empty(directory.ino).await? {
            Ok(going)
        } else {
            Err(FsError::NotEmpty)
        }
    }

    async fn is_empty(&self, ino: u64) -> Result<bool, FsError> {
        let (key, hidden) = {
            let tree = self.tree.lock();
            if tree.has_children(ino) {
                return Ok(false);
            }
            if tree.is_listed(ino, self.now(), self.settings.metadata_ttl) {
                return Ok(true);
            }
            let key = tree.key_of(ino).ok_or(FsError::NoEntry)?;
            let hidden = tree.hidden_below(&key);
            (key, hidden)
        };
        let mut continuation = None;
        loop {
            let request = ListRequest {
                prefix: key.clone(),
                delimiter: false,
                max_keys: PAGE_KEYS,
                continuation,
            };
            let page = self.bucket.list(&request).await?;
            {
                let mut tree = self.tree.lock();
                let is_entry = |entry: &ListEntry| match entry {
                    ListEntry::Object { key: found, .. } | ListEntry::Prefix(found) => {
                        // What was hidden when we asked may be gone by now, and what is hidden now was not there
                        // for long.
                        let was_hidden = || prefixes(found).any(|above| hidden.contains(&above));
                        *found != key
                            && !tree.is_out_of_sight(found, &key)
                            && !hidden.contains(found)
                            && !was_hidden()
                    }
                };
                if page.entries.iter().any(is_entry) {
                    tree.distrust_listing(ino);
                    return Ok(false);
                }
            }
            continuation = page.continuation;
            if continuation.is_none() {
                return Ok(true);
            }
        }
    }

    /// A directory outlives its last entry: one that exists only by the keys below it gets a marker before
    /// the last of them goes.
    pub(crate) fn keep_parent(
        &self,
        tree: &Tree,
        parent: u64,
        leaving: &str,
    ) -> Result<(), FsError> {
        if parent == ROOT || tree.has_other_remote_child(parent, leaving) {
            return Ok(());
        }
        let directory = tree.inode(parent).ok_or(FsError::NoEntry)?;
        {
            let state = directory.state.lock();
            if state.remote.is_some() || state.unsent.content {
                return Ok(());
            }
        }
        let marker = Unsent {
            content: true,
            ..Unsent::default()
        };
        Ok(self.change_directory(tree, &directory, marker, |_| {})?)
    }
}
