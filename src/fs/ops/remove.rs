//! Taking things away: unlink, rmdir.

use std::ffi::OsStr;
use std::sync::Arc;

use bytes::Bytes;

use crate::fs::error::FsError;
use crate::fs::filesystem::FileSystem;
use crate::fs::inode::{Going, Inode};
use crate::fs::tree::{ROOT, Tree};
use crate::fs::upload::schedule::Footprint;
use crate::store::{Key, ListEntry, ListRequest, Precondition, StoreError};

impl FileSystem {
    /// Removes a name that is no directory's. A file that is open stays readable until it is closed.
    pub async fn unlink(self: &Arc<Self>, parent: u64, name: &OsStr) -> Result<(), FsError> {
        self.check_writable()?;
        let (name, _) = Self::parse_name(name).map_err(|_| FsError::NoEntry)?;
        let inode = self.find_existing(parent, &name).await?;
        if self.tree.lock().is_directory(inode.ino) == Some(true) {
            return Err(FsError::IsDirectory);
        }
        if inode.state.lock().remote.is_some() {
            self.keep_parent(parent, &name).await?;
        }
        loop {
            let key = {
                let mut tree = self.tree.lock();
                let key = tree.key_of_name(parent, &name, inode.ino)?;
                // The objects of a directory that is being moved are between two places.
                if !tree.is_moving(parent) {
                    self.unlink_file(&mut tree, &inode, (parent, &name), &key)?;
                    break;
                }
                key
            };
            self.turnstile.enter(Footprint::key(key)).await;
        }
        self.touch_directory(parent);
        Ok(())
    }

    /// Removes an empty directory: its marker, and nothing else.
    pub async fn rmdir(self: &Arc<Self>, parent: u64, name: &OsStr) -> Result<(), FsError> {
        self.check_writable()?;
        let (name, _) = Self::parse_name(name).map_err(|_| FsError::NoEntry)?;
        let inode = self.find_existing(parent, &name).await?;
        if self.tree.lock().is_directory(inode.ino) != Some(true) {
            return Err(FsError::NotDirectory);
        }
        let spell = |tree: &Tree| tree.key_of_name(parent, &name, inode.ino);
        let (_turn, key) = self
            .turn_at_vacated(
                spell,
                |key| vec![key.clone()],
                |key| Footprint::below(key.clone()),
            )
            .await?;
        let _busy = inode.busy();
        self.settle_orphans(&key, None).await?;
        let _going = self.close_empty(&inode, &key).await?;
        self.keep_parent(parent, &name).await?;
        self.bucket.delete(&key, Precondition::None).await?;
        self.tree.lock().remove(parent, &name, self.now());
        self.touch_directory(parent);
        Ok(())
    }

    /// Makes sure that a directory has no entry, neither here nor in the bucket, and gets none while the
    /// guard lives.
    pub(crate) async fn close_empty<'a>(
        &self,
        directory: &'a Inode,
        key: &Key,
    ) -> Result<Going<'a>, FsError> {
        let going = directory.going();
        if self.is_empty(directory.ino, key).await? {
            Ok(going)
        } else {
            Err(FsError::NotEmpty)
        }
    }

    async fn is_empty(&self, ino: u64, key: &Key) -> Result<bool, FsError> {
        let has_local = self
            .tree
            .lock()
            .children(ino)
            .iter()
            .any(|child| child.inode.state.lock().unsent.any());
        if has_local {
            return Ok(false);
        }
        let request = ListRequest {
            prefix: key.clone(),
            delimiter: false,
            max_keys: 2,
            continuation: None,
        };
        let page = self.bucket.list(&request).await?;
        Ok(page.entries.iter().all(|entry| match entry {
            ListEntry::Object { key: found, .. } => found == key,
            ListEntry::Prefix(_) => false,
        }))
    }

    /// A directory outlives its last entry: one that exists only by the keys below it gets a marker before
    /// the last of them goes.
    pub(crate) async fn keep_parent(&self, parent: u64, leaving: &str) -> Result<(), FsError> {
        if parent == ROOT || self.tree.lock().has_other_remote_child(parent, leaving) {
            return Ok(());
        }
        let directory = self.inode(parent)?;
        let attr = {
            let state = directory.state.lock();
            if state.remote.is_some() {
                return Ok(());
            }
            state.attr
        };
        let key = self.key_of(parent)?;
        let metadata = Self::metadata_of(attr);
        match self
            .bucket
            .put(&key, Bytes::new(), metadata.clone(), Precondition::Absent)
            .await
        {
            Ok(version) => {
                let mut state = directory.state.lock();
                state.remote = Some(self.written(key, 0, version));
                state.metadata = metadata;
                state.resolved = true;
                Ok(())
            }
            // Somebody else's marker serves as well.
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
