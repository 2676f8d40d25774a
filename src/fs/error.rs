//! What a file system operation can fail with. `fuse::errno` has the one table that maps it to errno.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::name::NameError;
use crate::store::StoreError;

/// Why an operation was not done.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FsError {
    /// No such name, or the inode is gone.
    #[error("no such file or directory")]
    NoEntry,
    /// The name is taken.
    #[error("file exists")]
    Exists,
    /// It is no directory.
    #[error("not a directory")]
    NotDirectory,
    /// It is a directory.
    #[error("is a directory")]
    IsDirectory,
    /// The directory has entries.
    #[error("directory not empty")]
    NotEmpty,
    /// No such operation on this, or no such flag.
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    /// Nobody may do this.
    #[error("not permitted: {0}")]
    NotPermitted(&'static str),
    /// The file has as many names as it can have.
    #[error("a file can have {0} names")]
    TooManyLinks(u32),
    /// This is not done here.
    #[error("not supported: {0}")]
    Unsupported(&'static str),
    /// No such extended attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// An object cannot have so much metadata.
    #[error("extended attributes and metadata would be more than an object can have")]
    MetadataFull,
    /// The name cannot be part of a key.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The handle was not opened, or not for this.
    #[error("bad file handle")]
    BadHandle,
    /// The volume is mounted read-only.
    #[error("volume is read-only")]
    ReadOnly,
    /// The name is kept for the file system's own use.
    #[error("`.bucketvol` is reserved")]
    Reserved,
    /// The file would be larger than a store takes.
    #[error("file would be larger than {0} bytes")]
    TooLarge(u64),
    /// The files of the volume would have more bytes together than its quota.
    #[error("the files would be larger together than the volume's `size`, {}", bytesize::ByteSize(*.0))]
    OverQuota(u64),
    /// The inode no longer is what its name stands for.
    #[error("the object was replaced")]
    Stale,
    /// Another host changed the object that this write was based on.
    #[error("object {key} was changed by someone else while it was written here")]
    Conflict {
        /// The object's key in the volume.
        key: String,
    },
    /// The store did not answer in time; what was to be written stays and is tried again.
    #[error("the store did not answer within {}", humantime::format_duration(*.0))]
    TimedOut(Duration),
    /// No more bytes may wait on this host.
    #[error(
        "no room to stage writes for {}: `staging_limit` or `min_free` is reached, and the store takes nothing",
        humantime::format_duration(*.0)
    )]
    NoRoom(Duration),
    /// The store did not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The staging directory on this host failed.
    #[error("staging: {0}")]
    Staging(Arc<io::Error>),
}

impl FsError {
    /// Whether the store said that an object is not what we took it for: changed, gone, or there at all.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(
            self,
            Self::Store(
                StoreError::Precondition { .. }
                    | StoreError::AlreadyExists { .. }
                    | StoreError::NotFound { .. }
            )
        )
    }
}

impl From<io::Error> for FsError {
    fn from(error: io::Error) -> Self {
        Self::Staging(Arc::new(error))
    }
}
