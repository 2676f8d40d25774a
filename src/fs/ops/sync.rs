//! Durability: flush, fsync, drain; and statfs.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};

use crate::fs::error::FsError;
use crate::fs::filesystem::FileSystem;
use crate::fs::inode::{Inode, Linked};
use crate::fs::upload::worker::Progress;

/// Files that a drain uploads at once; each may have several parts in flight.
const DRAIN_FILES: usize = 16;

impl FileSystem {
    /// A file description is being closed: the bucket has what was written, or the close says why not.
    pub async fn flush(self: &Arc<Self>, fh: u64) -> Result<(), FsError> {
        let handle = self.handles.file(fh)?;
        if !handle.writable {
            return Ok(());
        }
        self.upload_in_time(&handle.inode).await
    }

    /// The bucket has what was written before, or the fsync says why not.
    pub async fn fsync(self: &Arc<Self>, fh: u64) -> Result<(), FsError> {
        let handle = self.handles.file(fh)?;
        self.upload_in_time(&handle.inode).await
    }

    /// What names were added to or taken from the directory is in the bucket already; the files among its
    /// children follow now.
    pub async fn fsyncdir(self: &Arc<Self>, ino: u64) -> Result<(), FsError> {
        let children = self.tree.lock().children(ino);
        for child in children {
            if child.inode.state.lock().unsent.any() {
                self.upload_in_time(&child.inode).await?;
            }
        }
        Ok(())
    }

    /// Brings all that is not in the bucket there, for at most `limit`.
    pub async fn drain(self: &Arc<Self>, limit: Duration) -> Result<(), FsError> {
        let dirty: Vec<Arc<Inode>> = self
            .tree
            .lock()
            .inodes()
            .filter(|inode| {
                let state = inode.state.lock();
                state.unsent.any() && state.linked == Linked::Yes
            })
            .map(Arc::clone)
            .collect();
        let uploads = stream::iter(dirty)
            .map(|inode| {
                let fs = Arc::clone(self);
                async move { fs.upload_detached(inode, Arc::default()).await }
            })
            .buffer_unordered(DRAIN_FILES)
            .fold(Ok(()), |first, result| async move { first.and(result) });
        match tokio::time::timeout(limit, uploads).await {
            Ok(result) => result,
            Err(_) => Err(FsError::TimedOut(limit)),
        }
    }

    /// Uploads a file; gives up waiting when nothing has moved for the volume's fsync timeout. The upload
    /// itself goes on then.
    pub(crate) async fn upload_in_time(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
    ) -> Result<(), FsError> {
        if !inode.state.lock().unsent.any() {
            return Ok(());
        }
        let progress = Arc::new(Progress::default());
        let mut upload =
            Box::pin(Arc::clone(self).upload_detached(Arc::clone(inode), Arc::clone(&progress)));
        let limit = self.settings.fsync_timeout;
        let mut moved = progress.moved();
        let result = loop {
            match tokio::time::timeout(limit, &mut upload).await {
                Ok(result) => break result,
                Err(_) if progress.moved() > moved => moved = progress.moved(),
                Err(_) => break Err(FsError::TimedOut(limit)),
            }
        };
        if let Err(error) = &result {
            let key = self
                .key_of(inode.ino)
                .unwrap_or_else(|_| crate::store::Key::root());
            self.note_error(&format!("upload of {:?}", key.as_str()), error);
        }
        result
    }

    /// Uploads in a task of its own, which outlives whoever waits for it.
    async fn upload_detached(
        self: Arc<Self>,
        inode: Arc<Inode>,
        progress: Arc<Progress>,
    ) -> Result<(), FsError> {
        let task = tokio::spawn(async move { self.upload(&inode, &progress).await });
        task.await.unwrap_or(Err(FsError::Stale))
    }
}
