//! What is left of a mount that was unmounted while no process served it: changes that are to get into the bucket.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::contents;
use super::filesystems::FileSystems;
use super::kept::Kept;
use crate::config::Options;
use crate::fs::FileSystem;
use crate::plugin::bucket::{Mount, MountError, MountStatus, Salvage};

/// A mount as it is after its end.
pub(super) struct Ended {
    mountpoint: PathBuf,
    filesystem: Arc<FileSystem>,
}

impl Ended {
    /// Goes on with what the journal of this label says.
    pub(super) async fn new(
        kept: &Arc<Kept>,
        filesystems: &FileSystems,
        dir: &Path,
        label: &str,
        options: &Options,
    ) -> Result<Self, MountError> {
        let lease = filesystems.acquire_mounted(options, Some(label)).await?;
        let filesystem = Arc::clone(lease.filesystem());
        // It lives until all of it is in the bucket.
        lease.release().await;
        let (kept, label, left) = (Arc::clone(kept), label.to_owned(), Arc::clone(&filesystem));
        tokio::spawn(async move { kept.forget_settled(&label, &left).await });
        let mountpoint = std::path::absolute(dir).unwrap_or_else(|_| dir.to_path_buf());
        Ok(Self {
            mountpoint,
            filesystem,
        })
    }
}

#[async_trait]
impl Mount for Ended {
    fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    fn is_alive(&self) -> bool {
        false
    }

    fn is_attached(&self) -> bool {
        false
    }

    async fn is_held(&self) -> bool {
        false
    }

    async fn drain(&self, limit: Duration) -> Result<(), MountError> {
        contents::drain(&self.filesystem, limit).await
    }

    async fn detach(&self) -> Result<(), MountError> {
        Ok(())
    }

    async fn salvage(&self, key: &str, how: &Salvage) -> Result<Vec<Range<u64>>, MountError> {
        contents::salvage(&self.filesystem, key, how).await
    }

    fn status(&self) -> MountStatus {
        contents::status(&self.filesystem)
    }
}
