//! The directory below which the plugin's volumes are mounted, one directory per volume.
//!
//! It is a shared mount of its own: what is mounted below it reaches running containers, which is how a
//! new daemon heals what a dead one left. Under every volume lies a read-only empty tmpfs, so that a
//! volume without its file system neither shows nor fills the host's disk.

use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::MsFlags;

use super::mount::{AttachError, FS_TYPE, detach_top, read_table};
use super::mountinfo::{MountEntry, MountTable};
use super::namespaces::{self, Anchor, PLACEHOLDER_SOURCE};

/// A daemon that ends lets go of the directory within this time.
const LOCK_LIMIT: Duration = Duration::from_secs(5);

/// For looking at the mounts of all other processes.
const SCAN_LIMIT: Duration = Duration::from_secs(5);

/// Mounts at one path that are worked through; more than a few mean that something fights us.
const STACK_LIMIT: usize = 64;

/// The directory of all volumes' mount points, held by one daemon at a time. Its methods block.
#[derive(Debug)]
pub struct BaseDir {
    path: PathBuf,
    /// Made by us, so that a clean end removes it again.
    created: bool,
    /// Locked for as long as we live. What is mounted below without being ours is of an earlier life.
    _lock: File,
}

impl BaseDir {
    /// Makes the directory where it is missing, takes hold of it and makes it a shared mount.
    pub fn open(path: &Path) -> Result<Self, AttachError> {
        let created = make_dir(path, 0o700)?;
        let path = std::fs::canonicalize(path).map_err(|error| io_error(path, error))?;
        let lock = lock(&path)?;
        let table = read_table()?;
        let top = table.top_at(&path);
        if top.is_none() {
            mount(Some(&path), &path, None, MsFlags::MS_BIND, None)?;
        }
        if !top.is_some_and(|top| top.shared) {
            mount(
                None,
                &path,
                None,
                MsFlags::MS_SHARED | MsFlags::MS_REC,
                None,
            )?;
        }
        Ok(Self {
            path,
            created,
            _lock: lock,
        })
    }

    /// Where a volume is or would be mounted.
    pub fn mountpoint(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether there is a file system of ours at the volume's place. To be asked after
    /// [`BaseDir::sweep`] and before anything is mounted: then it is a dead one that a container uses.
    pub fn is_left_behind(&self, name: &str) -> bool {
        read_table()
            .is_ok_and(|table| matches!(top_of(&table, &self.mountpoint(name)), Top::Volume(_)))
    }

    /// Makes a volume's mount point ready: what an earlier life left there is unmounted, or kept to be
    /// mounted over where a container still looks at it; otherwise the placeholder is on top.
    pub fn prepare(&self, name: &str) -> Result<PathBuf, AttachError> {
        let path = self.mountpoint(name);
        make_dir(&path, 0o755)?;
        for _ in 0..STACK_LIMIT {
            let table = read_table()?;
            match top_of(&table, &path) {
                Top::Nothing => mount(
                    Some(Path::new(PLACEHOLDER_SOURCE)),
                    &path,
                    Some("tmpfs"),
                    MsFlags::MS_RDONLY
                        | MsFlags::MS_NODEV
                        | MsFlags::MS_NOSUID
                        | MsFlags::MS_NOEXEC,
                    Some("size=4k,nr_inodes=2,mode=0555"),
                )?,
                Top::Placeholder => return Ok(path),
                Top::Volume(entry) if is_used_elsewhere(&table, entry)? => {
                    // Mounting over it propagates to where it is used; unmounting it first would not.
                    tracing::info!(path = %path.display(), "mounting over a dead mount that is in use");
                    return Ok(path);
                }
                Top::Volume(_) => detach_top(&path)?,
                Top::Foreign(entry) => return Err(covered(&path, entry)),
            }
        }
        Err(io_error(
            &path,
            io::Error::other("mounts keep appearing here"),
        ))
    }

    /// Removes what [`BaseDir::prepare`] made, once the volume is detached. Whatever is in use stays and
    /// is seen to by the next `prepare`.
    pub fn clear(&self, name: &str) -> Result<(), AttachError> {
        let path = self.mountpoint(name);
        for _ in 0..STACK_LIMIT {
            let table = read_table()?;
            match top_of(&table, &path) {
                Top::Nothing => {
                    return match std::fs::remove_dir(&path) {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => {
                            Err(io_error(&path, error))
                        }
                        _ => Ok(()),
                    };
                }
                Top::Volume(entry) if is_used_elsewhere(&table, entry)? => return Ok(()),
                Top::Volume(_) | Top::Placeholder => detach_top(&path)?,
                Top::Foreign(entry) => return Err(covered(&path, entry)),
            }
        }
        Err(io_error(
            &path,
            io::Error::other("mounts keep appearing here"),
        ))
    }

    /// Clears what an earlier life left and nobody uses. Only for a daemon that has taken nothing over
    /// and mounted nothing yet: every volume here that no container uses is taken for dead.
    pub fn sweep(&self) -> Result<(), AttachError> {
        self.clear_where(|_| true)
    }

    /// Undoes [`BaseDir::open`] when no volume is left.
    pub fn close(&self) -> Result<(), AttachError> {
        // Where a volume ended by itself its directory is still there.
        self.clear_where(|top| matches!(top, Top::Nothing | Top::Placeholder))?;
        if self.names()?.next().is_some() {
            return Ok(());
        }
        let table = read_table()?;
        let is_own_bind = table.top_at(&self.path).is_some_and(|top| {
            table
                .ancestors(top)
                .next()
                .is_some_and(|below| below.device == top.device)
        });
        if is_own_bind {
            detach_top(&self.path)?;
        }
        if self.created {
            std::fs::remove_dir(&self.path).map_err(|error| io_error(&self.path, error))?;
        }
        Ok(())
    }

    fn clear_where(&self, wanted: impl Fn(&Top<'_>) -> bool) -> Result<(), AttachError> {
        for name in self.names()?.collect::<Vec<_>>() {
            let table = read_table()?;
            if wanted(&top_of(&table, &self.mountpoint(&name)))
                && let Err(error) = self.clear(&name)
            {
                tracing::warn!(%error, "left as it is");
            }
        }
        Ok(())
    }

    /// The names below; nothing there is looked at. Volume names are ASCII, others are not ours.
    fn names(&self) -> Result<impl Iterator<Item = String>, AttachError> {
        let entries = std::fs::read_dir(&self.path).map_err(|error| io_error(&self.path, error))?;
        Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()))
    }
}

/// What a program would see at a volume's mount point.
enum Top<'a> {
    Nothing,
    Placeholder,
    /// A file system of ours. Those of this life are taken off before anybody looks here.
    Volume(&'a MountEntry),
    Foreign(&'a MountEntry),
}

fn top_of<'a>(table: &'a MountTable, path: &Path) -> Top<'a> {
    match table.top_at(path) {
        None => Top::Nothing,
        Some(top) if namespaces::is_placeholder(top) => Top::Placeholder,
        Some(top) if top.fs_type == FS_TYPE => Top::Volume(top),
        Some(top) => Top::Foreign(top),
    }
}

fn is_used_elsewhere(table: &MountTable, entry: &MountEntry) -> Result<bool, AttachError> {
    let Some(anchor) = Anchor::of(table, entry) else {
        return Ok(false);
    };
    namespaces::is_used_elsewhere(entry.device, &entry.mount_point, &anchor, SCAN_LIMIT)
        .map_err(|error| io_error(Path::new("/proc"), error))
}

fn covered(path: &Path, entry: &MountEntry) -> AttachError {
    AttachError::Covered {
        path: path.to_path_buf(),
        fs_type: entry.fs_type.clone(),
        by: entry.source.to_string_lossy().into_owned(),
    }
}

/// Makes a directory and its parents; says whether it was missing. It is not looked at: a dead mount may
/// lie there.
fn make_dir(path: &Path, mode: u32) -> Result<bool, AttachError> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|error| io_error(parent, error))?;
    }
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(io_error(path, error)),
    }
}

fn lock(path: &Path) -> Result<File, AttachError> {
    let dir = File::open(path).map_err(|error| io_error(path, error))?;
    let deadline = Instant::now() + LOCK_LIMIT;
    loop {
        match dir.try_lock() {
            Ok(()) => return Ok(dir),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(TryLockError::WouldBlock) => {
                let text = "another bucketvol mounts its volumes here (stop it, or choose another --base-dir)";
                return Err(io_error(path, io::Error::other(text)));
            }
            Err(TryLockError::Error(error)) => return Err(io_error(path, error)),
        }
    }
}

fn mount(
    source: Option<&Path>,
    path: &Path,
    fs_type: Option<&str>,
    flags: MsFlags,
    options: Option<&str>,
) -> Result<(), AttachError> {
    nix::mount::mount(source, path, fs_type, flags, options).map_err(|error| AttachError::Mount {
        path: path.to_path_buf(),
        error: error.into(),
        hint: match error {
            nix::errno::Errno::EPERM => " (mounting needs CAP_SYS_ADMIN)",
            _ => "",
        },
    })
}

fn io_error(path: &Path, error: io::Error) -> AttachError {
    AttachError::Io {
        path: path.to_path_buf(),
        error,
    }
}
