//! Keys -> files, without ever leaving the directory, and the steps by which a file appears.
//!
//! Every path is resolved by the kernel below the root's descriptor with symbolic links forbidden
//! (openat2). What changes names holds `publishing`, so that a condition that was checked still holds
//! when the name appears; programs beside us are not stopped by it.

use std::fs::{File, FileTimes, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, RenameFlags, ResolveFlag, openat2, renameat2};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use parking_lot::Mutex;
use uuid::Uuid;

use super::attributes;
use crate::clock::Clock;
use crate::store::{Key, Metadata, ObjectVersion, Precondition, StoreError};

/// Our own corner of the directory. What is in these two is no object.
pub(super) const OURS: &str = ".bucketvol";
pub(super) const OUR_OWN: [&str; 2] = ["tmp", "uploads"];

/// A draft this old belongs to a process that is gone.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// The root and what is needed to publish below it.
#[derive(Debug)]
pub(super) struct Tree {
    root: File,
    path: PathBuf,
    place: String,
    clock: Arc<dyn Clock>,
    publishing: Mutex<()>,
    drafts: AtomicU64,
}

/// What a key means in a directory.
#[derive(Debug)]
pub(super) enum Place<'a> {
    File {
        parents: Vec<&'a str>,
        name: &'a str,
    },
    Directory(Vec<&'a str>),
}

/// An open file or directory and what it says of itself.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) file: File,
    pub(super) size: u64,
    pub(super) version: ObjectVersion,
    pub(super) modified: SystemTime,
    pub(super) is_dir: bool,
}

impl Tree {
    pub(super) fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        let place = format!("file://{}", path.display());
        let root = OpenOptions::new()
            .read(true)
            .custom_flags((OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).bits())
            .open(path);
        let root = root.map_err(|error| StoreError::Refused {
            place: place.clone(),
            reason: format!("the directory cannot be opened: {error}"),
            mend: Some("create it, or correct the path".to_owned()),
            denied: error.kind() == io::ErrorKind::PermissionDenied,
        })?;
        let publishing = Mutex::default();
        let drafts = AtomicU64::new(0);
        Ok(Self {
            root,
            path: path.to_owned(),
            place,
            clock,
            publishing,
            drafts,
        })
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// What a key means; what cannot be a path is refused.
    pub(super) fn place_of<'a>(&self, key: &'a Key) -> Result<Place<'a>, StoreError> {
        parse(key).ok_or_else(|| {
            self.refused(&format!(
                "key {:?} cannot be a path in a directory",
                key.as_str()
            ))
        })
    }

    /// The object of a key. A directory without a mark and with something in it is none.
    pub(super) fn find(&self, key: &Key) -> Result<Found, StoreError> {
        let missing = || StoreError::NotFound { key: key.clone() };
        let (segments, is_dir) = match parse(key).ok_or_else(missing)? {
            Place::Directory(segments) => (segments, true),
            Place::File { mut parents, name } => {
                parents.push(name);
                (parents, false)
            }
        };
        let file = self.open_below(&segments).map_err(|error| match error {
            // A path that meets a link or a file where a directory should be names nothing.
            Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV | Errno::ENXIO => {
                missing()
            }
            error => self.error(key, &error.into()),
        })?;
        let found = self.describe(key, &file)?;
        let is_object = match (is_dir, found.is_dir) {
            (true, true) => self
                .is_marker(&found.file)
                .map_err(|e| self.error(key, &e))?,
            (false, false) => found.file.metadata().is_ok_and(|m| m.is_file()),
            _ => false,
        };
        if is_object { Ok(found) } else { Err(missing()) }
    }

    /// What an open file says of itself at this moment.
    pub(super) fn describe(&self, key: &Key, file: &File) -> Result<Found, StoreError> {
        let describe = || {
            let stat = file.metadata()?;
            let is_dir = stat.is_dir();
            Ok(Found {
                file: file.try_clone()?,
                size: if is_dir { 0 } else { stat.size() },
                version: version_of(&stat),
                modified: stat.modified()?,
                is_dir,
            })
        };
        describe().map_err(|error| self.error(key, &error))
    }

    /// Opens what is at this path below the root, without waiting for a pipe's other end.
    pub(super) fn open_below(&self, segments: &[&str]) -> Result<File, Errno> {
        if segments.is_empty() {
            return open_under(&self.root, ".", OFlag::O_DIRECTORY);
        }
        open_under(&self.root, &segments.join("/"), OFlag::empty())
    }

    /// Whether a directory is an object: put as one, or not to be seen otherwise.
    pub(super) fn is_marker(&self, directory: &File) -> io::Result<bool> {
        Ok(attributes::is_present(directory)? || is_empty(directory)?)
    }

    /// Makes a directory an object.
    pub(super) fn publish_marker(
        &self,
        key: &Key,
        metadata: &Metadata,
        condition: &Precondition,
    ) -> Result<ObjectVersion, StoreError> {
        let _publishing = self.publishing.lock();
        self.check(key, condition)?;
        let Place::Directory(segments) = self.place_of(key)? else {
            return Err(self.refused("a file cannot be a marker"));
        };
        let directory = self.make_directories(key, &segments)?;
        attributes::write(&directory, metadata).map_err(|error| self.error(key, &error))?;
        directory
            .sync_all()
            .map_err(|error| self.error(key, &error))?;
        Ok(self.describe(key, &directory)?.version)
    }

    /// Replaces what travels beside a file that is there.
    pub(super) fn replace_metadata(
        &self,
        key: &Key,
        version: Option<&ObjectVersion>,
        metadata: &Metadata,
    ) -> Result<ObjectVersion, StoreError> {
        let _publishing = self.publishing.lock();
        let found = self.find(key)?;
        if version.is_some_and(|version| *version != found.version) {
            return Err(StoreError::Precondition { key: key.clone() });
        }
        let replace = || {
            attributes::write(&found.file, metadata)?;
            found.file.sync_all()
        };
        replace().map_err(|error| self.error(key, &error))?;
        Ok(found.version)
    }

    /// Removes an object, and the directories that were only implied by it.
    pub(super) fn remove(&self, key: &Key, condition: &Precondition) -> Result<(), StoreError> {
        let _publishing = self.publishing.lock();
        let found = match self.find(key) {
            Ok(found) => found,
            Err(StoreError::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        if *condition != Precondition::None {
            self.check(key, condition)?;
        }
        let (mut parents, name, flag) = match self.place_of(key)? {
            Place::File { parents, name } => (parents, name, UnlinkatFlags::NoRemoveDir),
            Place::Directory(mut segments) => match segments.pop() {
                Some(name) => (segments, name, UnlinkatFlags::RemoveDir),
                None => return Ok(()),
            },
        };
        let failed = |error: Errno| self.error(key, &error.into());
        let parent = self.open_below(&parents).map_err(failed)?;
        match unlinkat(&parent, name, flag) {
            Ok(()) | Err(Errno::ENOENT) => {}
            // With something in it, it is no longer an object but still implied.
            Err(Errno::ENOTEMPTY | Errno::EEXIST) => {
                return attributes::clear(&found.file).map_err(|error| self.error(key, &error));
            }
            Err(error) => return Err(failed(error)),
        }
        while let Some(name) = parents.pop() {
            let implied = self
                .open_below(&[&parents[..], &[name]].concat())
                .map(|directory| !attributes::is_present(&directory).unwrap_or(true))
                .unwrap_or(false);
            let removed = implied
                && self
                    .open_below(&parents)
                    .and_then(|parent| unlinkat(&parent, name, UnlinkatFlags::RemoveDir))
                    .is_ok();
            if !removed {
                break;
            }
        }
        Ok(())
    }

    /// Begins a file that nobody sees until it is published at `key`.
    pub(super) fn draft(&self, key: &Key) -> Result<Draft<'_>, StoreError> {
        let name = Uuid::new_v4().simple().to_string();
        let directory = self
            .our_directory(OUR_OWN[0])
            .map_err(|e| self.error(key, &e))?;
        if self.drafts.fetch_add(1, Ordering::Relaxed) == 0 {
            self.sweep(&directory);
        }
        let how = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
        let file = open_under(&directory, name.as_str(), how)
            .map_err(|error| self.error(key, &error.into()))?;
        Ok(Draft {
            tree: self,
            directory,
            name,
            file,
            published: false,
        })
    }

    /// A directory of our own corner, made when it is first needed.
    pub(super) fn our_directory(&self, name: &str) -> io::Result<File> {
        let make = |under: &File, name: &str| {
            match mkdirat(under, name, Mode::from_bits_truncate(0o700)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(error) => return Err(io::Error::from(error)),
            }
            Ok(open_under(under, name, OFlag::O_DIRECTORY)?)
        };
        make(&make(&self.root, OURS)?, name)
    }

    /// Removes what processes that are gone have left half done.
    fn sweep(&self, drafts: &File) {
        let Ok(names) = names_in(drafts) else { return };
        for name in names {
            let old = open_under(drafts, name.as_str(), OFlag::empty())
                .ok()
                .and_then(|file| file.metadata().and_then(|stat| stat.modified()).ok())
                .and_then(|modified| self.clock.wall().duration_since(modified).ok())
                .is_some_and(|age| age > ABANDONED);
            if old {
                let _ = unlinkat(drafts, name.as_str(), UnlinkatFlags::NoRemoveDir);
            }
        }
    }

    /// Whether the condition holds at this moment. The caller holds `publishing`.
    fn check(&self, key: &Key, condition: &Precondition) -> Result<(), StoreError> {
        if *condition == Precondition::None {
            return Ok(());
        }
        let found = match self.find(key) {
            Ok(found) => Some(found.version),
            Err(StoreError::NotFound { .. }) => None,
            Err(error) => return Err(error),
        };
        match (condition, found) {
            (Precondition::Absent, Some(_)) => Err(StoreError::AlreadyExists { key: key.clone() }),
            (Precondition::Version(version), found) if found.as_ref() != Some(version) => {
                Err(StoreError::Precondition { key: key.clone() })
            }
            _ => Ok(()),
        }
    }

    /// The directory of these names, with all above it made.
    fn make_directories(&self, key: &Key, segments: &[&str]) -> Result<File, StoreError> {
        let make = || {
            let mut directory = open_under(&self.root, ".", OFlag::O_DIRECTORY)?;
            for segment in segments {
                match mkdirat(&directory, *segment, Mode::from_bits_truncate(0o755)) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(error) => return Err(error),
                }
                directory = open_under(&directory, segment, OFlag::O_DIRECTORY)?;
            }
            Ok(directory)
        };
        make().map_err(|error: Errno| self.error(key, &error.into()))
    }

    pub(super) fn refused(&self, reason: &str) -> StoreError {
        StoreError::Refused {
            place: self.place.clone(),
            reason: reason.to_owned(),
            mend: None,
            denied: false,
        }
    }

    /// An error of the file system about one key.
    pub(super) fn error(&self, key: &Key, error: &io::Error) -> StoreError {
        let name = key.as_str();
        let (reason, mend) = match error.kind() {
            io::ErrorKind::NotFound => return StoreError::NotFound { key: key.clone() },
            // The file became shorter under a read.
            io::ErrorKind::UnexpectedEof => return StoreError::Precondition { key: key.clone() },
            io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::DirectoryNotEmpty => (
                format!("{name:?} cannot be put: a path is a file or a directory, not both"),
                Some("use another name, or move what is in the way"),
            ),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                (format!("{name:?}: the disk is full"), Some("free space"))
            }
            io::ErrorKind::Unsupported => (
                format!("{name:?}: the file system keeps no user attributes"),
                Some("use one that does, such as ext4, xfs or btrfs"),
            ),
            _ if error.raw_os_error() == Some(Errno::ELOOP as i32) => (
                format!("{name:?} cannot be put: a symbolic link is on its path"),
                Some("links are not followed; use another name"),
            ),
            _ => (format!("{name:?}: {error}"), None),
        };
        StoreError::Refused {
            place: self.place.clone(),
            reason,
            mend: mend.map(str::to_owned),
            denied: error.kind() == io::ErrorKind::PermissionDenied,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// A file on its way to its name. Dropped unpublished, it is gone.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    tree: &'a Tree,
    directory: File,
    name: String,
    file: File,
    published: bool,
}

impl Draft<'_> {
    /// Writes into it.
    pub(super) fn write<F>(&mut self, key: &Key, write: F) -> Result<(), StoreError>
    where
        F: FnOnce(&mut File) -> io::Result<()>,
    {
        write(&mut self.file).map_err(|error| self.tree.error(key, &error))
    }

    /// Lets it appear at `key`, whole and durable, if the condition holds.
    pub(super) fn publish(
        mut self,
        key: &Key,
        metadata: &Metadata,
        condition: &Precondition,
    ) -> Result<ObjectVersion, StoreError> {
        let tree = self.tree;
        let failed = |error: io::Error| tree.error(key, &error);
        let Place::File { parents, name } = tree.place_of(key)? else {
            return Err(tree.refused("a directory cannot be a file"));
        };
        // The kernel's own times move in steps of milliseconds: two files of one size written in one
        // step, the second in the first one's inode, would be the same version.
        let beat = self.tree.drafts.load(Ordering::Relaxed) % 1000;
        let modified = tree.clock.wall() + Duration::from_nanos(beat);
        let finish = || {
            attributes::write(&self.file, metadata)?;
            self.file
                .set_times(FileTimes::new().set_modified(modified))?;
            self.file.sync_all()
        };
        finish().map_err(failed)?;
        let version = tree.describe(key, &self.file)?.version;

        let _publishing = tree.publishing.lock();
        tree.check(key, condition)?;
        let parent = tree.make_directories(key, &parents)?;
        let flags = match condition {
            Precondition::Absent => RenameFlags::RENAME_NOREPLACE,
            Precondition::None | Precondition::Version(_) => RenameFlags::empty(),
        };
        match renameat2(&self.directory, self.name.as_str(), &parent, name, flags) {
            Ok(()) => self.published = true,
            Err(Errno::EEXIST) if *condition == Precondition::Absent => {
                return Err(StoreError::AlreadyExists { key: key.clone() });
            }
            Err(error) => return Err(failed(error.into())),
        }
        parent.sync_all().map_err(failed)?;
        Ok(version)
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.published {
            let _ = unlinkat(
                &self.directory,
                self.name.as_str(),
                UnlinkatFlags::NoRemoveDir,
            );
        }
    }
}

/// What a key means as a path; `None`: nothing.
fn parse(key: &Key) -> Option<Place<'_>> {
    let mut segments: Vec<&str> = key.as_str().split('/').collect();
    let name = segments.pop()?;
    let fits = |s: &&str| {
        !s.is_empty() && s.len() <= 255 && !matches!(*s, "." | "..") && !s.contains('\0')
    };
    let ours = matches!(segments.first(), Some(&OURS))
        && OUR_OWN.contains(segments.get(1).unwrap_or(&name));
    if ours || !segments.iter().all(fits) {
        return None;
    }
    match name {
        "" if segments.is_empty() => None,
        "" => Some(Place::Directory(segments)),
        name => fits(&name).then_some(Place::File {
            parents: segments,
            name,
        }),
    }
}

/// Opens a path under a directory; no link is followed and no `..` leads out.
pub(super) fn open_under(directory: &File, path: &str, flags: OFlag) -> Result<File, Errno> {
    let mut how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    if flags.contains(OFlag::O_CREAT) {
        how = how.mode(Mode::from_bits_truncate(0o644));
    }
    let opened: OwnedFd = openat2(directory.as_fd(), path, how)?;
    Ok(File::from(opened))
}

/// The names in a directory, without `.` and `..`; those that are not UTF-8 are no keys.
pub(super) fn names_in(directory: &File) -> io::Result<Vec<String>> {
    let entries = entries_in(directory)?.into_iter();
    Ok(entries.map(|(name, _)| name).collect())
}

/// Likewise, with what they are, where the file system says that in passing.
pub(super) fn entries_in(directory: &File) -> io::Result<Vec<(String, Option<Type>)>> {
    let own = open_under(directory, ".", OFlag::O_DIRECTORY)?;
    let mut listing = Dir::from_fd(own.into())?;
    let mut entries = Vec::new();
    for entry in listing.iter() {
        let entry = entry?;
        match entry.file_name().to_str() {
            Ok("." | "..") | Err(_) => {}
            Ok(name) => entries.push((name.to_owned(), entry.file_type())),
        }
    }
    Ok(entries)
}

fn is_empty(directory: &File) -> io::Result<bool> {
    Ok(names_in(directory)?.is_empty())
}

/// The version of a file: who it is, when it was written, how long it is. A directory has no content.
pub(super) fn version_of(stat: &std::fs::Metadata) -> ObjectVersion {
    let (inode, size) = (stat.ino(), stat.size());
    if stat.is_dir() {
        return ObjectVersion(Arc::from(format!("\"{inode:x}-dir\"")));
    }
    let nanos = i128::from(stat.mtime()) * 1_000_000_000 + i128::from(stat.mtime_nsec());
    ObjectVersion(Arc::from(format!("\"{inode:x}-{nanos:x}-{size:x}\"")))
}
