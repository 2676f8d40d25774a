//! Open files and directories: what a `fh` of the kernel means.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::error::FsError;
use super::inode::{Inode, InodeState};
use super::ops::dir::DirStream;
use super::readahead::Readahead;

/// One open file description.
#[derive(Debug)]
pub(crate) struct FileHandle {
    pub(crate) inode: Arc<Inode>,
    pub(crate) writable: bool,
    pub(crate) readahead: Mutex<Readahead>,
    /// The inode's when it was opened.
    pub(crate) lineage: u32,
    /// The inode's failure that this handle has reported.
    pub(crate) reported: AtomicU32,
}

impl FileHandle {
    /// Fails if the name that was opened is another host's file by now.
    pub(crate) fn check_lineage(&self, state: &InodeState) -> Result<(), FsError> {
        if self.lineage == state.lineage {
            Ok(())
        } else {
            Err(FsError::Stale)
        }
    }

    /// The upload's failure that this handle has not reported yet.
    pub(crate) fn take_failure(&self) -> Option<FsError> {
        let state = self.inode.state.lock();
        let failure = state.failure.as_ref()?;
        let reported = self.reported.swap(failure.count, Ordering::Relaxed);
        (reported < failure.count).then(|| failure.error.clone())
    }
}

/// One open directory.
#[derive(Debug)]
pub(crate) struct DirHandle {
    pub(crate) ino: u64,
    /// The one lock held across requests to the store: readers of one open directory take turns.
    pub(crate) stream: tokio::sync::Mutex<DirStream>,
}

#[derive(Debug, Clone)]
enum Handle {
    File(Arc<FileHandle>),
    Directory(Arc<DirHandle>),
}

/// The open files and directories of one volume.
#[derive(Debug, Default)]
pub(crate) struct Handles {
    open: RwLock<HashMap<u64, Handle>>,
    last: AtomicU64,
}

impl Handles {
    /// Opens a file; the number is never used twice.
    pub(crate) fn add_file(&self, handle: FileHandle) -> u64 {
        self.add(Handle::File(Arc::new(handle)))
    }

    /// Opens a directory.
    pub(crate) fn add_directory(&self, handle: DirHandle) -> u64 {
        self.add(Handle::Directory(Arc::new(handle)))
    }

    fn add(&self, handle: Handle) -> u64 {
        let fh = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.open.write().insert(fh, handle);
        fh
    }

    /// The open file of this number.
    pub(crate) fn file(&self, fh: u64) -> Result<Arc<FileHandle>, FsError> {
        match self.open.read().get(&fh) {
            Some(Handle::File(handle)) => Ok(Arc::clone(handle)),
            _ => Err(FsError::BadHandle),
        }
    }

    /// The open directory of this number.
    pub(crate) fn directory(&self, fh: u64) -> Result<Arc<DirHandle>, FsError> {
        match self.open.read().get(&fh) {
            Some(Handle::Directory(handle)) => Ok(Arc::clone(handle)),
            _ => Err(FsError::BadHandle),
        }
    }

    /// Closes a file; `None` if it was not open.
    pub(crate) fn remove_file(&self, fh: u64) -> Option<Arc<FileHandle>> {
        let mut open = self.open.write();
        match open.remove(&fh)? {
            Handle::File(handle) => Some(handle),
            directory @ Handle::Directory(_) => {
                open.insert(fh, directory);
                None
            }
        }
    }

    /// Closes a directory.
    pub(crate) fn remove_directory(&self, fh: u64) {
        let mut open = self.open.write();
        if let Some(Handle::Directory(_)) = open.get(&fh) {
            open.remove(&fh);
        }
    }
}
