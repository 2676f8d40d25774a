//! Durability: flush, fsync, drain.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};

use crate::config::options::Durability;
use crate::fs::blocking::blocking;
use crate::fs::error::FsError;
use crate::fs::filesystem::FileSystem;
use crate::fs::inode::{Inode, Linked};
use crate::fs::tree::RESERVED;
use crate::fs::upload::worker::Progress;

/// Files that a drain uploads at once; each may have several parts in flight.
const DRAIN_FILES: usize = 16;

/// How often a drain looks again for what lost a conflict meanwhile.
const DRAIN_CONFLICTS: u32 = 3;

impl FileSystem {
    /// A file description is being closed. With `durability=close` the bucket has what was written, or the
    /// close says why not; else it says why an earlier upload failed, if nobody was told.
    pub async fn flush(self: &Arc<Self>, fh: u64) -> Result<(), FsError> {
        let handle = self.handles.file(fh)?;
        if !handle.writable {
            return Ok(());
        }
        handle.check_lineage(&handle.inode.state.lock())?;
        if self.settings.write.durability == Durability::Close {
            for name in self.names_of(&handle.inode) {
                self.upload_in_time(&name).await?;
            }
            return Ok(());
        }
        handle.take_failure().map_or(Ok(()), Err)
    }

    /// The bucket has what was written before, or the fsync says why not. With `durability=local` it is this
    /// host's disk that has it.
    pub async fn fsync(self: &Arc<Self>, fh: u64) -> Result<(), FsError> {
        let handle = self.handles.file(fh)?;
        handle.check_lineage(&handle.inode.state.lock())?;
        if self.settings.write.durability == Durability::Local {
            self.sync_to_disk(&handle.inode).await?;
            return handle.take_failure().map_or(Ok(()), Err);
        }
        let synced = self.sync_to_bucket(&handle.inode).await;
        // It is reported by this very call.
        handle.take_failure();
        synced
    }

    /// The bucket has an inode, under each name that it has here.
    async fn sync_to_bucket(self: &Arc<Self>, inode: &Arc<Inode>) -> Result<(), FsError> {
        for name in self.names_of(inode) {
            self.sync_name(&name).await?;
        }
        Ok(())
    }

    /// A file and the hard links to it, which follow it.
    fn names_of(&self, inode: &Arc<Inode>) -> Vec<Arc<Inode>> {
        let mut names = vec![Arc::clone(inode)];
        names.extend(self.tree.lock().links_to(inode.ino));
        names
    }

    async fn sync_name(self: &Arc<Self>, inode: &Arc<Inode>) -> Result<(), FsError> {
        let (is_sent, linked) = {
            let state = inode.state.lock();
            (!state.unsent.any(), state.linked)
        };
        if linked == Linked::No {
            // If the host forgot that the name is gone, it would come back with bytes from before this fsync.
            return Ok(self.journal.sync().await?);
        }
        if !is_sent {
            return self.upload_in_time(inode).await;
        }
        // Its object may be where it belongs below a directory that is not.
        let depth = self.tree.lock().depth(inode.ino);
        for _ in 0..depth {
            let Some(above) = self.tree.lock().displaced_ancestor(inode.ino) else {
                break;
            };
            self.upload_in_time(&above).await?;
        }
        // Names that have come back to where they were sent nothing, and what is half undone must not come back.
        Ok(self.journal.sync().await?)
    }

    /// What was written survives a crash of the host.
    async fn sync_to_disk(self: &Arc<Self>, inode: &Inode) -> Result<(), FsError> {
        let file = {
            let mut state = inode.state.lock();
            state.staged.as_mut().map(|staged| staged.keep())
        };
        if let Some(file) = file {
            blocking(move || file.sync_data()).await?;
        }
        self.journal.sync().await?;
        self.give_back_dead(inode).await;
        Ok(())
    }

    /// The bucket has the directory as it is here: the files that names were given to, with what was written to
    /// them, and nothing under the names that were taken away.
    pub async fn fsyncdir(self: &Arc<Self>, ino: u64) -> Result<(), FsError> {
        if self.settings.write.durability == Durability::Local {
            return Ok(self.journal.sync().await?);
        }
        // Of what was made and removed here the bucket has never heard.
        self.journal.sync().await?;
        self.sync_to_bucket(&self.inode(ino)?).await?;
        let (changed, doomed) = {
            let tree = self.tree.lock();
            let directory = tree.key_of(ino).ok_or(FsError::NoEntry)?;
            let mut changed: Vec<Arc<Inode>> = tree
                .children(ino)
                .into_iter()
                .filter_map(|child| tree.inode(child.ino))
                .filter(|inode| inode.state.lock().unsent.any())
                .collect();
            // What has gone elsewhere leaves its objects here until they are there.
            let files = tree.moved_from_below(&directory).into_iter();
            let gone = files.chain(tree.occupants_below(&directory));
            changed.extend(gone.filter_map(|ino| tree.inode(ino)));
            let mut doomed = tree.orphans_below(&directory);
            // What was brought aside for whoever has it open is nobody's name.
            doomed.retain(|(key, _)| key.as_str().split('/').next() != Some(RESERVED));
            (changed, doomed)
        };
        for inode in changed {
            self.upload_in_time(&inode).await?;
        }
        for (_, inode) in doomed {
            self.delete_orphan(&inode).await?;
        }
        Ok(())
    }

    /// Brings all that is not in the bucket there, for at most `limit`.
    pub async fn drain(self: &Arc<Self>, limit: Duration) -> Result<(), FsError> {
        let passes = async {
            let mut conflicts = 0;
            loop {
                let pending = self.pending();
                let abandoned = self.abandoned.numbers();
                if pending.is_empty() && abandoned.is_empty() {
                    // Nor does a crash of the host bring back what is gone.
                    return Ok(self.journal.sync().await?);
                }
                match self.bring_all(pending).await {
                    // What lost a conflict has another name now, and is to go there.
                    Err(FsError::Conflict { .. }) if conflicts < DRAIN_CONFLICTS => conflicts += 1,
                    Err(error) => return Err(error),
                    // What was brought may have left something to be deleted.
                    Ok(()) => {}
                }
                for number in abandoned {
                    self.abort(number).await?;
                }
            }
        };
        match tokio::time::timeout(limit, passes).await {
            Ok(result) => result,
            Err(_) => Err(FsError::TimedOut(limit)),
        }
    }

    /// What the bucket does not have yet, or has too much.
    fn pending(&self) -> Vec<Arc<Inode>> {
        let tree = self.tree.lock();
        let changed = tree
            .inodes_in_core()
            .filter(|inode| inode.state.lock().is_pending());
        let doomed = tree.orphans().filter(|inode| inode.state.lock().opens == 0);
        changed.chain(doomed).map(Arc::clone).collect()
    }

    async fn bring_all(self: &Arc<Self>, pending: Vec<Arc<Inode>>) -> Result<(), FsError> {
        stream::iter(pending)
            .map(|inode| {
                let fs = Arc::clone(self);
                // A task of its own: an upload outlives whoever waits for it.
                async move {
                    let task = tokio::spawn(async move { fs.bring(&inode).await });
                    task.await.unwrap_or(Err(FsError::Stale))
                }
            })
            .buffer_unordered(DRAIN_FILES)
            .fold(Ok(()), |first, result| async move { first.and(result) })
            .await
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
            self.note_upload_error(inode, error);
        }
        result
    }

    /// Uploads in a task of its own, which outlives whoever waits for it.
    async fn upload_detached(
        self: Arc<Self>,
        inode: Arc<Inode>,
        progress: Arc<Progress>,
    ) -> Result<(), FsError> {
        let task = tokio::spawn(async move {
            let result = self.upload(&inode, &progress).await;
            // Whoever waits for the bucket does not wait for this.
            tokio::spawn(async move {
                self.give_back_dead(&inode).await;
                self.trim_journal().await;
            });
            result
        });
        task.await.unwrap_or(Err(FsError::Stale))
    }
}
