//! Open files and directories: what a `fh` of the kernel means.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::error::FsError;
use super::inode::{Inode, InodeState, Linked};
use super::kept::{Bookmarks, Kept, KeptHandle, KeptOpen, NUMBERS_AHEAD};
use super::ops::dir::DirStream;
use super::readahead::Readahead;
use super::request::RequestId;
use crate::store::{Key, ObjectVersion};

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
    /// A description that nothing was done with yet.
    pub(crate) fn new(inode: &Arc<Inode>, writable: bool, lineage: u32) -> Self {
        Self {
            inode: Arc::clone(inode),
            writable,
            readahead: Mutex::new(Readahead::default()),
            lineage,
            reported: AtomicU32::new(0),
        }
    }

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
    request: Option<RequestId>,
    pub(crate) bookmarks: Mutex<Bookmarks>,
    /// The one lock held across requests to the store: readers of one open directory take turns.
    pub(crate) stream: tokio::sync::Mutex<DirStream>,
}

impl DirHandle {
    /// A description that `request` has opened, and that was read up to one of the `bookmarks` by an earlier process.
    pub(crate) fn new(ino: u64, request: Option<RequestId>, bookmarks: Bookmarks) -> Self {
        Self {
            ino,
            request,
            stream: tokio::sync::Mutex::default(),
            bookmarks: Mutex::new(bookmarks),
        }
    }

    /// What a later process has to know of it.
    pub(crate) fn kept(&self) -> KeptHandle {
        KeptHandle {
            ino: self.ino,
            request: self.request,
            what: KeptOpen::Directory(self.bookmarks.lock().clone()),
        }
    }
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
    /// What an earlier process had opened for these requests, whose answers may not have arrived.
    earlier: Mutex<HashMap<RequestId, u64>>,
}

impl Handles {
    /// A number for a file or directory that is opened now. It is never used twice, by a later process neither: the
    /// close of an earlier file may still come.
    pub(crate) fn new_number(&self, kept: &Kept) -> u64 {
        let fh = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        if fh.is_multiple_of(NUMBERS_AHEAD) {
            kept.reserve_handles(fh + NUMBERS_AHEAD);
        }
        fh
    }

    /// No number up to `fh` is given to anything new.
    pub(crate) fn reserve(&self, fh: u64, kept: &Kept) {
        self.last.fetch_max(fh, Ordering::Relaxed);
        kept.reserve_handles(fh + NUMBERS_AHEAD);
    }

    /// Opens a file.
    pub(crate) fn add_file(&self, fh: u64, handle: FileHandle) {
        self.add(fh, Handle::File(Arc::new(handle)));
    }

    /// Opens a directory.
    pub(crate) fn add_directory(&self, fh: u64, handle: DirHandle) {
        self.add(fh, Handle::Directory(Arc::new(handle)));
    }

    fn add(&self, fh: u64, handle: Handle) {
        self.last.fetch_max(fh, Ordering::Relaxed);
        self.open.write().insert(fh, handle);
    }

    /// An earlier process has opened this, for a request that may come again.
    pub(crate) fn restored(&self, fh: u64, request: Option<RequestId>) {
        if let Some(request) = request {
            self.earlier.lock().insert(request, fh);
        }
    }

    /// What an earlier process has opened for the request that is sent again, and nobody was told.
    pub(crate) fn opened_earlier(&self, request: RequestId) -> Option<u64> {
        self.earlier.lock().remove(&request)
    }

    /// The inodes without a name that are open, by their objects.
    pub(crate) fn keepers(&self) -> HashMap<(Key, ObjectVersion), Arc<Inode>> {
        let open = self.open.read();
        let keepers = open.values().filter_map(|handle| {
            let Handle::File(file) = handle else {
                return None;
            };
            let state = file.inode.state.lock();
            let remote = state
                .remote
                .as_ref()
                .filter(|_| state.linked == Linked::No)?;
            let object = (remote.key.clone(), remote.version.clone());
            Some((object, Arc::clone(&file.inode)))
        });
        keepers.collect()
    }

    /// The open file of this number.
    pub(crate) fn file(&self, fh: u64) -> Result<Arc<FileHandle>, FsError> {
        match self.open.read().get(&fh) {
            Some(Handle::File(handle)) => Ok(Arc::clone(handle)),
            _ => Err(FsError::BadHandle),
        }
    }

    /// Likewise, of one that was opened for writing.
    pub(crate) fn writable_file(&self, fh: u64) -> Result<Arc<FileHandle>, FsError> {
        let handle = self.file(fh)?;
        match handle.writable {
            true => Ok(handle),
            false => Err(FsError::BadHandle),
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
