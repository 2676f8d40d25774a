//! An executable that can be started again after its file was replaced.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::descriptors;

/// A file held open, and where it was found. The file at that path may be another one by now.
#[derive(Debug)]
pub(super) struct Executable {
    file: OwnedFd,
    path: PathBuf,
    /// Device and inode.
    id: (u64, u64),
}

impl Executable {
    /// Opens what lies at `path` now, at a descriptor of `lowest` or above.
    pub(super) fn open(path: &Path, lowest: RawFd) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            // Neither the right to read it nor its bytes are needed here.
            .custom_flags(nix::libc::O_PATH)
            .open(path)?;
        Self::of(file.into(), path.to_owned(), lowest)
    }

    /// The executable that `file` is, which was found at `path`.
    pub(super) fn of(file: OwnedFd, path: PathBuf, lowest: RawFd) -> io::Result<Self> {
        let file = descriptors::lift(file.as_fd(), lowest)?;
        let metadata = fs::metadata(proc_path(&file))?;
        if !metadata.is_file() || metadata.mode() & 0o111 == 0 {
            let kind = io::ErrorKind::PermissionDenied;
            return Err(io::Error::new(kind, "it is not an executable file"));
        }
        Ok(Self {
            file,
            path,
            id: (metadata.dev(), metadata.ino()),
        })
    }

    /// The path by which this very file can be executed, whatever lies where it was found.
    pub(super) fn proc_path(&self) -> String {
        proc_path(&self.file)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// Whether this process runs this very file.
    pub(super) fn is_ours(&self) -> bool {
        fs::metadata("/proc/self/exe").is_ok_and(|own| (own.dev(), own.ino()) == self.id)
    }
}

fn proc_path(file: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", descriptors::number(file))
}
