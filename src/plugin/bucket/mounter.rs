//! What the driver asks of whoever can mount: implemented at the composition root, and by a fake in tests.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use uuid::Uuid;

use super::VolumeName;
use crate::config::Options;

/// A volume as far as mounting it is concerned.
#[derive(Debug, Clone)]
pub struct VolumeSpec {
    /// What the volume's state on this host is filed under: a name may be used again, an id never is.
    pub id: Uuid,
    /// Docker's name.
    pub name: VolumeName,
    /// What its creator said.
    pub options: Options,
}

/// Mounts volumes.
#[async_trait]
pub trait Mounter: Send + Sync + 'static {
    /// Where the volume is or would be mounted: absolute, and the same for the volume's whole life.
    fn mountpoint(&self, name: &VolumeName) -> PathBuf;

    /// Whether a daemon that is gone left the volume to containers that still look at it: a dead mount,
    /// which mounting anew heals.
    async fn is_left_behind(&self, name: &VolumeName) -> bool;

    /// Asks the store whether the volume could be mounted.
    async fn check(&self, spec: &VolumeSpec) -> Result<(), MountError>;

    /// Goes on with what an earlier daemon accepted for the volume and could not bring into the bucket, without
    /// mounting it. Returns when that is under way: whether anything is left.
    async fn resume(&self, spec: &VolumeSpec) -> Result<bool, MountError>;

    /// Mounts the volume. When it returns, the mount point can be used.
    async fn mount(&self, spec: &VolumeSpec) -> Result<Box<dyn Mount>, MountError>;
}

/// A mounted volume.
#[async_trait]
pub trait Mount: Send + Sync {
    /// The mount point.
    fn mountpoint(&self) -> &Path;

    /// Whether the kernel still has the session: false once it was unmounted behind our back and the last
    /// user is gone.
    fn is_alive(&self) -> bool;

    /// Whether the mount point still shows the file system: false after somebody else's umount, even while
    /// containers keep it alive.
    fn is_attached(&self) -> bool {
        true
    }

    /// Whether a process outside our mount namespace (a container) still has the file system mounted.
    async fn is_held(&self) -> bool;

    /// Brings every pending change into the bucket, for at most `limit`.
    async fn drain(&self, limit: Duration) -> Result<(), MountError>;

    /// Takes the file system off its mount point. Whoever still has a file open keeps it.
    async fn detach(&self) -> Result<(), MountError>;

    /// What to show of it.
    fn status(&self) -> MountStatus;

    /// Does what a person decided about a change that does not get into the bucket. Returns the ranges of bytes that
    /// could not be exported.
    async fn salvage(&self, key: &str, how: &Salvage) -> Result<Vec<Range<u64>>, MountError> {
        let _ = how;
        Err(MountError::Refused(format!("nothing is known of {key:?}")))
    }
}

/// What is to become of a change that does not get into the bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Salvage {
    /// The whole file is written to this new file of the host.
    Export(PathBuf),
    /// The change is given up.
    Discard,
}

/// What there is to say about a mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct MountStatus {
    /// Bytes written that are not in the bucket yet.
    pub dirty_bytes: u64,
    /// Files with such bytes or attributes.
    pub dirty_files: u64,
    /// Bytes of memory the daemon's block cache uses.
    pub cache_bytes: u64,
    /// Bytes of disk it uses.
    #[serde(default)]
    pub cache_disk_bytes: u64,
    /// Reads answered without the store, and all reads.
    pub cache_hits: u64,
    /// Blocks looked up.
    pub cache_lookups: u64,
    /// Bytes that all files may have together; `None`: as many as the store takes.
    #[serde(default)]
    pub size: Option<u64>,
    /// Bytes that they have; `None`: nobody wanted to know yet.
    #[serde(default)]
    pub used_bytes: Option<u64>,
    /// How many files there are.
    #[serde(default)]
    pub used_files: Option<u64>,
    /// Bytes of the journal's file.
    #[serde(default)]
    pub journal_bytes: u64,
    /// How many of them a crash of the host leaves.
    #[serde(default)]
    pub journal_synced_bytes: u64,
    /// What the store makes of a write that is to hold only if nobody else has written, in words; `None`: nothing was
    /// written yet.
    #[serde(default)]
    pub conditional_writes: Option<String>,
    /// Requests sent to the store, by verb.
    pub requests: std::collections::BTreeMap<String, u64>,
    /// The last error a program was given, if any.
    pub last_error: Option<String>,
    /// Names in the bucket that no directory can have (`.`, `..`, more than 255 bytes), of the directories that were
    /// listed.
    #[serde(default)]
    pub unshowable_names: u64,
    /// Changes that are not in the bucket yet.
    #[serde(default)]
    pub pending_changes: u64,
    /// The first of them.
    #[serde(default)]
    pub pending: Vec<PendingChange>,
}

/// A change that is not in the bucket yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct PendingChange {
    /// The key, below the volume's prefix.
    pub key: String,
    /// What is to be done, in a word.
    pub change: String,
    /// Bytes to send.
    pub bytes: u64,
    /// Why the last attempt failed, if it did.
    pub reason: Option<String>,
}

/// Why something could not be mounted, drained or detached.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MountError {
    /// The store or the host says no, and will say no again.
    #[error("{0}")]
    Refused(String),
    /// The store is away or overloaded.
    #[error("{0}")]
    Unavailable(String),
    /// It was not done in time; what is left goes on by itself.
    #[error("{0}")]
    TimedOut(String),
}

impl MountError {
    /// Whether trying again may help.
    pub fn is_transient(&self) -> bool {
        !matches!(self, Self::Refused(_))
    }
}
