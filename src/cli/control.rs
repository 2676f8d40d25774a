//! What the commands say to the processes that serve mounts: one small HTTP conversation over a unix
//! socket in a directory that only its user can enter.
//!
//! Both ends share these types; the process's end is [`server`], the commands' is [`client`].

pub(super) mod client;
pub(super) mod server;

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use crate::plugin::bucket::{MountStatus, Salvage};

/// One process that serves mounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProcessStatus {
    pub(super) pid: u32,
    pub(super) version: String,
    /// The command it runs: `serve` or `mount`.
    pub(super) command: String,
    pub(super) mounts: Vec<MountView>,
    /// Volumes of the daemon that are not mounted now.
    pub(super) idle_volumes: Vec<String>,
    /// The keeper that can replace the process. `None`: there is none.
    #[serde(default)]
    pub(super) keeper: Option<KeeperView>,
}

/// The keeper of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeeperView {
    pub(super) pid: i32,
    /// Where it looks for the executable of the next worker.
    pub(super) program: PathBuf,
    /// The file that this worker runs.
    pub(super) executable: FileId,
}

/// One file of this host, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// The file that a path leads to now.
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MountView {
    /// Docker's name of the volume, if it is one.
    pub(super) volume: Option<String>,
    /// The location's URL.
    pub(super) source: String,
    pub(super) mountpoint: PathBuf,
    pub(super) read_only: bool,
    /// By name; never a secret.
    pub(super) credentials: String,
    /// Whether its mount point still leads to it; if not, it goes on for whoever has files open.
    pub(super) alive: bool,
    #[serde(flatten)]
    pub(super) status: MountStatus,
}

/// Asks for a drain.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SyncRequest {
    /// `None`: every mount of the process.
    pub(super) mountpoint: Option<PathBuf>,
    /// `None`: for as long as it takes.
    pub(super) timeout_ms: Option<u64>,
}

/// Asks for an unmount.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct UnmountRequest {
    pub(super) mountpoint: PathBuf,
    /// How long it may drain before; `None`: for as long as it takes.
    pub(super) timeout_ms: Option<u64>,
    /// Take it off at once and drain behind it.
    pub(super) lazy: bool,
}

/// Says what is to become of a change that does not get into the bucket.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SalvageRequest {
    pub(super) mountpoint: PathBuf,
    pub(super) key: String,
    pub(super) how: Salvage,
}

/// Why a process did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub(super) struct Refusal {
    pub(super) kind: RefusalKind,
    pub(super) message: String,
}

/// What follows from a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RefusalKind {
    /// The process does not have that mount.
    NotMine,
    /// The time was over; bytes are left, and they go on by themselves.
    TimedOut,
    /// Anything else.
    Failed,
}

/// Where the sockets of this user's processes are: what `BUCKETVOL_RUN_DIR` says, or the user's run
/// directory.
pub(super) fn run_dir() -> PathBuf {
    let said = std::env::var_os("BUCKETVOL_RUN_DIR").map(PathBuf::from);
    if let Some(dir) = said.filter(|dir| dir.is_absolute()) {
        return dir;
    }
    let uid = geteuid();
    if uid.is_root() {
        return PathBuf::from("/run/bucketvol");
    }
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
        Some(dir) if dir.is_absolute() => dir.join("bucketvol"),
        _ => PathBuf::from(format!("/tmp/bucketvol-{uid}")),
    }
}

/// Makes the directory if it is not there, and refuses one that somebody else could reach into: below
/// `/tmp` anybody may have made it first.
pub(super) fn prepare_run_dir(dir: &Path) -> io::Result<()> {
    match fs::DirBuilder::new()
        .mode(0o700)
        .recursive(false)
        .create(dir)
    {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
        Ok(()) => {}
    }
    check_run_dir(dir)
}

/// Refuses a directory that is not this user's alone.
pub(super) fn check_run_dir(dir: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(dir)?;
    let ours =
        metadata.is_dir() && metadata.uid() == geteuid().as_raw() && metadata.mode() & 0o077 == 0;
    if ours {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!(
            "{} is not a directory of this user alone (mode 0700)",
            dir.display()
        ),
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::cli::ending::tests::{FakeMount, one_mount};
    use crate::cli::output::TimedOut;
    use crate::cli::sync::{self, SyncArgs};
    use crate::cli::unmount::{self, UnmountArgs};
    use crate::cli::worker::Worker;

    /// A process that serves a fake mount, and the directory its socket is in.
    struct Served {
        dir: tempfile::TempDir,
        mount: Arc<FakeMount>,
        stop: CancellationToken,
        task: tokio::task::JoinHandle<()>,
    }

    fn private_dir() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        dir
    }

    fn served(at: &str, drain_takes: Duration) -> Served {
        let dir = private_dir();
        let dirty = AtomicU64::new(4096);
        let mount = Arc::new(FakeMount {
            dirty,
            drain_takes,
            ..FakeMount::default()
        });
        let socket = server::ControlSocket::bind(dir.path()).unwrap();
        assert_eq!(fs::metadata(socket.path()).unwrap().mode() & 0o777, 0o600);
        let stop = CancellationToken::new();
        let serving = socket.serve(
            "mount",
            one_mount(&mount, at),
            Worker::alone(crate::fs::Format::CURRENT),
            stop.clone(),
        );
        let task = tokio::spawn(serving);
        Served {
            dir,
            mount,
            stop,
            task,
        }
    }

    impl Served {
        async fn sync(&self, dir: &str, timeout: Option<Duration>) -> anyhow::Result<()> {
            let args = SyncArgs {
                dir: Some(dir.into()),
                all: false,
                timeout,
            };
            sync::run(args, self.dir.path()).await.map(drop)
        }
    }

    #[tokio::test]
    async fn a_command_finds_the_process_of_a_mount_and_drains_it() {
        let served = served("/made-up-mount", Duration::ZERO);
        let statuses = client::statuses(served.dir.path()).await.unwrap();
        let [(_, status)] = statuses.as_slice() else {
            panic!("one process")
        };
        assert_eq!(
            (status.pid, status.command.as_str()),
            (std::process::id(), "mount")
        );
        assert_eq!(status.mounts[0].status.dirty_bytes, 4096);
        assert_eq!(status.mounts[0].source, "memory://x");

        served.sync("/made-up-mount", None).await.unwrap();
        assert_eq!(served.mount.dirty.load(Ordering::SeqCst), 0);
        let error = served.sync("/another", None).await.expect_err("not served");
        assert!(
            error
                .to_string()
                .contains("no process of this user serves /another"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_sync_that_takes_too_long_is_told_from_an_error() {
        let served = served("/made-up-mount", Duration::from_secs(60));
        let error = served
            .sync("/made-up-mount", Some(Duration::from_millis(20)))
            .await
            .expect_err("slow");
        assert!(error.downcast_ref::<TimedOut>().is_some(), "{error:?}");
    }

    #[tokio::test]
    async fn an_unmount_drains_and_one_that_cannot_leaves_the_mount() {
        let slow = served("/made-up-mount", Duration::from_secs(60));
        let unmount = |timeout, lazy| {
            let args = UnmountArgs {
                dir: "/made-up-mount".into(),
                timeout,
                lazy,
            };
            unmount::run(args, slow.dir.path())
        };
        let error = unmount(Some(Duration::from_millis(20)), false)
            .await
            .expect_err("bytes are left");
        assert!(error.downcast_ref::<TimedOut>().is_some(), "{error:?}");
        assert!(!slow.mount.detached.load(Ordering::SeqCst));
        unmount(None, true).await.unwrap();
        assert!(slow.mount.detached.load(Ordering::SeqCst));

        let quick = served("/made-up-mount", Duration::ZERO);
        let args = UnmountArgs {
            dir: "/made-up-mount".into(),
            timeout: None,
            lazy: false,
        };
        unmount::run(args, quick.dir.path()).await.unwrap();
        assert!(quick.mount.detached.load(Ordering::SeqCst));
        assert_eq!(quick.mount.drains.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn sockets_of_dead_processes_are_removed_and_others_left() {
        let dir = private_dir();
        let dead = dir.path().join("1.sock");
        drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
        fs::write(dir.path().join("notes"), b"").unwrap();
        assert!(client::processes(dir.path()).unwrap().is_empty());
        assert!(!dead.exists() && dir.path().join("notes").exists());
        assert!(
            client::processes(&dir.path().join("missing"))
                .unwrap()
                .is_empty()
        );
    }

    #[tokio::test]
    async fn the_socket_goes_with_the_process() {
        let served = served("/made-up-mount", Duration::ZERO);
        served.stop.cancel();
        served.task.await.unwrap();
        assert_eq!(fs::read_dir(served.dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn two_processes_of_the_same_number_get_sockets_of_their_own() {
        let dir = private_dir();
        let first = server::ControlSocket::bind(dir.path()).unwrap();
        let second = server::ControlSocket::bind(dir.path()).unwrap();
        assert_ne!(first.path(), second.path());
    }

    #[test]
    fn a_directory_that_others_can_reach_into_is_refused() {
        let dir = private_dir();
        assert!(prepare_run_dir(&dir.path().join("new")).is_ok());
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o750)).unwrap();
        assert!(prepare_run_dir(dir.path()).is_err());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join("new"), &link).unwrap();
        assert!(
            prepare_run_dir(&link).is_err(),
            "a link is somebody's choice of another directory"
        );
    }
}
