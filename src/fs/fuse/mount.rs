//! Attaches a FUSE device to a directory with mount(2), and takes it off again.
//!
//! fuser does neither for us: its release unmounts whatever it finds at its path, other people's file
//! systems too. What is ours is decided by mountinfo alone, never by touching the mount point.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{getegid, geteuid};

use super::fusermount;
use super::mountinfo::{Device, MountEntry, MountTable};
use super::namespaces::{self, Anchor};

/// The type our mounts have in mountinfo.
pub const FS_TYPE: &str = "fuse.bucketvol";

/// The largest READ we take, in bytes: what the kernel's default page limit allows.
pub(super) const MAX_READ: u32 = 1 << 20;

/// The kernel's own 128 KiB halve sequential reads; INIT cannot raise it.
const READ_AHEAD_KIB: u32 = 1024;

/// What to mount, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountRequest {
    /// An existing directory: absolute, without symbolic links.
    pub mountpoint: PathBuf,
    /// What `mount` and `df` show: `s3://bucket/prefix`.
    pub source: String,
    /// Whether the kernel refuses every change.
    pub read_only: bool,
}

/// Why a file system could not be attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// There is no FUSE here, or not for us.
    #[error(
        "/dev/fuse: {0} (load the kernel module with `modprobe fuse`; in a container pass --device /dev/fuse)"
    )]
    Device(#[source] io::Error),
    /// mount(2) said no.
    #[error("mount on {path}: {error}{hint}", path = path.display())]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        error: io::Error,
        /// What to do about it, in parentheses; may be empty.
        hint: &'static str,
    },
    /// umount2(2) said no.
    #[error("unmount of {path}: {error}", path = path.display())]
    Unmount {
        /// The mount point.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
    /// The set-user-id helper said no, or is not there.
    #[error("fusermount3 on {path}: {reason}", path = path.display())]
    Helper {
        /// The mount point.
        path: PathBuf,
        /// What it said.
        reason: String,
    },
    /// Somebody mounted over it: unmounting ours would take theirs along.
    #[error("{path} is covered by another mount, a {fs_type} of {by} (unmount that first)", path = path.display())]
    Covered {
        /// The mount point.
        path: PathBuf,
        /// The other mount's type.
        fs_type: String,
        /// The other mount's source.
        by: String,
    },
    /// It was mounted, and was gone when we looked.
    #[error("{path} was unmounted by somebody else while it was being mounted", path = path.display())]
    Vanished {
        /// The mount point.
        path: PathBuf,
    },
    /// mountinfo or the directory could not be read.
    #[error("{path}: {error}", path = path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
}

/// An open `/dev/fuse`: one connection to the kernel once it is mounted.
///
/// The connection lives as long as any duplicate of the descriptor, in any process.
#[derive(Debug)]
pub struct FuseDevice(OwnedFd);

impl FuseDevice {
    /// Opens a new, unmounted connection. The descriptor is close-on-exec, as std makes all of them.
    pub fn open() -> Result<Self, AttachError> {
        let file = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        Ok(Self(file.map_err(AttachError::Device)?.into()))
    }

    /// Whether the kernel still has the connection. It lets go of one that is mounted nowhere and that nobody has open.
    pub fn is_connected(&self) -> bool {
        let mut fds = [PollFd::new(self.as_fd(), PollFlags::empty())];
        // An error is reported whether it is asked for or not.
        let _ = poll(&mut fds, PollTimeout::ZERO);
        let seen = fds[0].revents().unwrap_or(PollFlags::empty());
        !seen.contains(PollFlags::POLLERR)
    }

    /// A second descriptor of the same connection, for whoever keeps it through a restart.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }
}

impl AsFd for FuseDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for FuseDevice {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<FuseDevice> for OwnedFd {
    fn from(device: FuseDevice) -> Self {
        device.0
    }
}

/// A connection's place in the tree of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    path: PathBuf,
    /// The kernel gives both numbers to others once the session has ended; [`super::Session`] sees to
    /// that nothing is decided by them then.
    mount_id: u32,
    device: Device,
    anchor: Option<Anchor>,
    by_helper: bool,
}

impl Attachment {
    /// Opens a device and mounts it: ourselves as root, through fusermount3 as anybody else.
    pub fn open(request: &MountRequest) -> Result<(FuseDevice, Self), AttachError> {
        if geteuid().is_root() {
            let device = FuseDevice::open()?;
            let attachment = Self::mount(&device, request)?;
            return Ok((device, attachment));
        }
        let before = MountIds::read()?;
        let device = fusermount::mount(request)?;
        let attachment = Self::find(&before, request, true)?;
        Ok((device, attachment))
    }

    /// Mounts an open device. Returns before the kernel's INIT is answered: no access to the mount point
    /// comes back until someone serves the device.
    pub fn mount(device: &FuseDevice, request: &MountRequest) -> Result<Self, AttachError> {
        let before = MountIds::read()?;
        let mut flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
        flags.set(MsFlags::MS_RDONLY, request.read_only);
        // The root's mode is a constant: asking for it would touch what is mounted there now, and that
        // may be dead.
        let options = format!(
            "fd={},rootmode=40000,user_id={},group_id={},allow_other,default_permissions,max_read={MAX_READ}",
            device.0.as_raw_fd(),
            geteuid(),
            getegid(),
        );
        nix::mount::mount(
            Some(request.source.as_str()),
            &request.mountpoint,
            Some(FS_TYPE),
            flags,
            Some(options.as_str()),
        )
        .map_err(|error| AttachError::Mount {
            path: request.mountpoint.clone(),
            error: error.into(),
            hint: match error {
                nix::errno::Errno::EPERM => " (mounting needs CAP_SYS_ADMIN)",
                nix::errno::Errno::ENODEV => " (load the kernel module with `modprobe fuse`)",
                _ => "",
            },
        })?;
        Self::find(&before, request, false)
    }

    /// The place of a connection that an earlier process has mounted on `path`: `device` is what it was there. If it
    /// was taken off there since, those who have it open go on with it.
    pub fn adopt(path: &Path, device: Device, by_helper: bool) -> Result<Self, AttachError> {
        let table = read_table()?;
        let is_it = |entry: &&MountEntry| entry.device == device && entry.fs_type == FS_TYPE;
        let entry = table.stack_at(path).into_iter().rev().find(is_it);
        Ok(Self {
            path: path.to_path_buf(),
            // No mount has this number.
            mount_id: entry.map_or(0, |entry| entry.id),
            device,
            anchor: entry.and_then(|entry| Anchor::of(&table, entry)),
            by_helper,
        })
    }

    /// Finds the mount just made: it has our type and source and was not there before.
    fn find(
        before: &MountIds,
        request: &MountRequest,
        by_helper: bool,
    ) -> Result<Self, AttachError> {
        let table = read_table()?;
        let is_new = |entry: &&MountEntry| {
            entry.mount_point == request.mountpoint
                && entry.fs_type == FS_TYPE
                && entry.source.as_encoded_bytes() == request.source.as_bytes()
                && !before.0.contains(&(entry.id, entry.device))
        };
        // The visible one is preferred: where the parent is shared there may be hidden copies of it.
        let visible = table
            .stack_at(&request.mountpoint)
            .into_iter()
            .rev()
            .find(is_new);
        let entry = visible
            .or_else(|| table.entries().iter().find(is_new))
            .ok_or_else(|| AttachError::Vanished {
                path: request.mountpoint.clone(),
            })?;
        Ok(Self {
            path: request.mountpoint.clone(),
            mount_id: entry.id,
            device: entry.device,
            anchor: Anchor::of(&table, entry),
            by_helper,
        })
    }

    /// The mount point.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The device number of the mounted file system.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Whether fusermount3 has mounted it, and has to unmount it.
    pub fn is_by_helper(&self) -> bool {
        self.by_helper
    }

    /// Whether a program that opens the mount point now comes to us.
    pub fn is_visible(&self) -> bool {
        MountTable::of_self().is_ok_and(|table| {
            table
                .top_at(&self.path)
                .is_some_and(|top| self.is_ours(top))
        })
    }

    fn is_ours(&self, entry: &MountEntry) -> bool {
        (entry.id, entry.device) == (self.mount_id, self.device) && entry.fs_type == FS_TYPE
    }

    /// Whether another mount namespace uses the file system; blocks for at most about `limit`.
    pub fn is_used_elsewhere(&self, limit: Duration) -> io::Result<bool> {
        match &self.anchor {
            Some(anchor) => namespaces::is_used_elsewhere(self.device, &self.path, anchor, limit),
            None => Ok(false),
        }
    }

    /// Takes the file system off its mount point; open files go on working. No longer being there is no
    /// error. Blocks: call it off the runtime's threads, and never from one that serves the device.
    pub fn detach(&self) -> Result<(), AttachError> {
        let table = read_table()?;
        let stack = table.stack_at(&self.path);
        if !stack.iter().any(|entry| self.is_ours(entry)) {
            return Ok(());
        }
        // A detach takes along what is mounted on top.
        match stack.last() {
            Some(top) if !self.is_ours(top) => Err(AttachError::Covered {
                path: self.path.clone(),
                fs_type: top.fs_type.clone(),
                by: top.source.to_string_lossy().into_owned(),
            }),
            _ if self.by_helper => fusermount::unmount(&self.path),
            _ => detach_top(&self.path),
        }
    }

    /// Raises the kernel's read-ahead. A wish: it needs root, and a slow mount is better than none.
    pub fn raise_read_ahead(&self) {
        let path = format!("/sys/class/bdi/{}/read_ahead_kb", self.device);
        if let Err(error) = std::fs::write(&path, READ_AHEAD_KIB.to_string()) {
            tracing::debug!(path, %error, "read-ahead stays at the kernel's default");
        }
    }

    /// Ends the connection at once, with an error for every request in hand. Works only where fusectl is
    /// mounted: the last resort for a file system that does not answer.
    pub fn abort(&self) {
        let path = format!("/sys/fs/fuse/connections/{}/abort", self.device.minor);
        if let Err(error) = std::fs::write(&path, "1") {
            tracing::debug!(path, %error, "connection not aborted");
        }
    }
}

/// Takes the top mount off `path`, whatever it is, as root.
pub(super) fn detach_top(path: &Path) -> Result<(), AttachError> {
    match nix::mount::umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        // Not a mount point any more: somebody else was quicker.
        Ok(()) | Err(nix::errno::Errno::EINVAL) => Ok(()),
        Err(error) => Err(AttachError::Unmount {
            path: path.to_path_buf(),
            error: error.into(),
        }),
    }
}

pub(super) fn read_table() -> Result<MountTable, AttachError> {
    MountTable::of_self().map_err(|error| AttachError::Io {
        path: "/proc/self/mountinfo".into(),
        error,
    })
}

/// The mounts there were before ours.
struct MountIds(HashSet<(u32, Device)>);

impl MountIds {
    fn read() -> Result<Self, AttachError> {
        let table = read_table()?;
        Ok(Self(
            table
                .entries()
                .iter()
                .map(|entry| (entry.id, entry.device))
                .collect(),
        ))
    }
}

/// What a person's directory has to be to be mounted on: there, a directory, empty and no mount point
/// yet. Returns its path without symbolic links.
///
/// Blocks, and for as long as the file system that holds the directory takes.
pub fn check_mountpoint(dir: &Path) -> Result<PathBuf, AttachError> {
    let io = |error| AttachError::Io {
        path: dir.to_path_buf(),
        error,
    };
    let other = |text: &str| io(io::Error::other(text.to_owned()));
    let absolute = std::path::absolute(dir).map_err(io)?;
    // The last component is looked up in mountinfo before it is touched: it may be a dead mount.
    let unresolved = match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => std::fs::canonicalize(parent).map_err(io)?.join(name),
        _ => return Err(other("this cannot be a mount point")),
    };
    refuse_mounted(&unresolved)?;
    let path = std::fs::canonicalize(&unresolved).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => other("there is no such directory (create it first)"),
        _ => io(error),
    })?;
    refuse_mounted(&path)?;
    let mut entries = std::fs::read_dir(&path).map_err(io)?;
    match entries.next() {
        None => Ok(path),
        Some(_) => Err(other("the directory is not empty (choose an empty one)")),
    }
}

fn refuse_mounted(path: &Path) -> Result<(), AttachError> {
    let table = read_table()?;
    let Some(top) = table.top_at(path) else {
        return Ok(());
    };
    let mend = match top.fs_type.as_str() {
        FS_TYPE => {
            "`bucketvol unmount` takes it off, with --lazy also when nobody serves it any more"
        }
        _ => "unmount it first",
    };
    let text = format!(
        "already mounted, a {} of {} ({mend})",
        top.fs_type,
        top.source.to_string_lossy()
    );
    Err(AttachError::Io {
        path: path.to_path_buf(),
        error: io::Error::other(text),
    })
}
