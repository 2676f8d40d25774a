//! Joins the plugin to the file system: mounts volumes, and single directories for the command line.
//!
//! A mount is a session of its own on a [`FileSystem`] that it may share. Retrying a store that is away
//! is the caller's: an attempt here is made once and says whether another may help.

pub(super) mod attributes;
mod contents;
mod ended;
mod filesystems;
mod kept;

use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};

use self::ended::Ended;
use self::filesystems::{FileSystems, Lease, filed_under};
use self::kept::{Kept, Orphaned};
use super::worker::Worker;
use crate::clock::Clock;
use crate::config::Options;
use crate::config::credentials::Ambient;
use crate::fs::fuse::adapter::FuseAdapter;
use crate::fs::fuse::mount::{AttachError, check_mountpoint};
use crate::fs::fuse::{BaseDir, Connection, MountRequest, Session, SessionError};
use crate::fs::{BlockCache, FileSystem, StagingBudget};
use crate::plugin::bucket::{
    Mount, MountError, MountStatus, Mounter, Salvage, VolumeName, VolumeSpec,
};
use crate::store::AttributeCache;

/// From mount(2) to the root's first answer. The root is known by then, so only a host in trouble needs
/// seconds.
const READY_LIMIT: Duration = Duration::from_secs(15);

/// For looking at the mounts of all other processes.
const SCAN_LIMIT: Duration = Duration::from_secs(5);

/// A session that nobody uses any more ends in milliseconds; one in use is not waited for.
const END_LIMIT: Duration = Duration::from_millis(500);

/// What all mounts of this process share.
#[derive(Debug, Clone)]
pub struct Host {
    /// Each mount's staging is a directory below it.
    pub state_dir: PathBuf,
    /// Where credentials may come from.
    pub ambient: Ambient,
    /// How much of the disk may hold what waits to be uploaded.
    pub staging: Arc<StagingBudget>,
    /// The blocks that were read.
    pub cache: Arc<BlockCache>,
    /// What HEADs have said of objects, to earlier processes too; `None`: it is not kept.
    pub attributes: Option<Arc<AttributeCache>>,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
    /// What keeps the mounts through this process's end.
    pub worker: Arc<Worker>,
}

/// Mounts volumes below a base directory.
#[derive(Debug)]
pub struct FuseMounter {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    base: BaseDir,
    kept: Arc<Kept>,
    filesystems: FileSystems,
}

impl FuseMounter {
    /// Takes hold of the base directory. Dead mounts of an earlier life that no container uses go; the
    /// others are left behind, for mounting anew to heal.
    pub async fn open(base_dir: &Path, host: Host) -> Result<Self, MountError> {
        let base_dir = base_dir.to_path_buf();
        let kept = Kept::of_volumes(Arc::clone(&host.worker)).map_err(of_another_release)?;
        let kept = Arc::new(kept);
        // Whoever takes over mounts has nothing to clear; and as long as nobody serves them, looking at other
        // processes may take for ever.
        let takes_over = !kept.labels().is_empty();
        // What was written to them is brought into their buckets, and the next Mount mounts them anew.
        kept.ended().iter().for_each(|label| kept.forget(label));
        let open = move || {
            let base = BaseDir::open(&base_dir)?;
            if !takes_over {
                base.sweep()?;
            }
            Ok(base)
        };
        let base = blocking(open).await?.map_err(refused)?;
        let filesystems = FileSystems::new(host, Arc::clone(&kept));
        let shared = Arc::new(Shared {
            base,
            kept,
            filesystems,
        });
        Ok(Self { shared })
    }

    /// Gives the base directory back, if no volume is mounted there any more.
    pub async fn close(&self) -> Result<(), MountError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || shared.base.close())
            .await?
            .map_err(refused)
    }
}

#[async_trait]
impl Mounter for FuseMounter {
    fn mountpoint(&self, name: &VolumeName) -> PathBuf {
        self.shared.base.mountpoint(name.as_str())
    }

    async fn is_left_behind(&self, name: &VolumeName) -> bool {
        let (shared, name) = (Arc::clone(&self.shared), name.to_string());
        if shared.kept.labels().contains(&Kept::label(&name)) {
            return true;
        }
        blocking(move || shared.base.is_left_behind(&name))
            .await
            .unwrap_or(false)
    }

    async fn check(&self, spec: &VolumeSpec) -> Result<(), MountError> {
        self.shared.filesystems.check(&spec.options).await?;
        Ok(())
    }

    async fn resume(&self, spec: &VolumeSpec) -> Result<bool, MountError> {
        self.shared.filesystems.resume(&spec.options).await
    }

    async fn mount(&self, spec: &VolumeSpec) -> Result<Box<dyn Mount>, MountError> {
        let (tell, told) = oneshot::channel();
        let work = Arc::clone(&self.shared).mount(spec.clone());
        // On a task of its own, so that a caller who goes away in the middle leaves nothing half done.
        tokio::spawn(async move {
            if let Err(Ok(unwanted)) = tell.send(work.await)
                && let Err(error) = unwanted.detach().await
            {
                tracing::warn!(%error, "a mount that nobody waits for any more stays");
            }
        });
        let mount = told
            .await
            .map_err(|_| MountError::Refused("mounting panicked".into()))??;
        Ok(Box::new(mount))
    }
}

impl Shared {
    async fn mount(self: Arc<Self>, spec: VolumeSpec) -> Result<FuseMount, MountError> {
        let label = Kept::label(spec.name.as_str());
        let place = VolumePlace {
            shared: Arc::clone(&self),
            name: spec.name,
        };
        let (kept, filesystems) = (&self.kept, &self.filesystems);
        if let Some(orphaned) = kept.take(&label) {
            match resume(kept, filesystems, &label, None, &spec.options, orphaned).await {
                Ok(Some(mount)) => {
                    return Ok(FuseMount {
                        place: Some(place),
                        ..mount
                    });
                }
                Ok(None) => {}
                Err(error) => {
                    kept.forget(&label);
                    tracing::error!(volume = %place.name, %error, "a mount could not be gone on with, mounting anew");
                }
            }
        }
        let lease = filesystems.acquire(&spec.options, None).await?;
        let mountpoint = place.prepare().await?;
        match start(kept, &label, lease, &spec.options, mountpoint).await {
            Ok(mount) => Ok(FuseMount {
                place: Some(place),
                ..mount
            }),
            Err(error) => {
                place.clear().await;
                Err(error)
            }
        }
    }
}

/// Mounts one directory, for the command line; or goes on with the mount of the process before, and with what is left
/// of one that was unmounted meanwhile.
pub async fn mount_at(
    dir: &Path,
    options: &Options,
    host: Host,
) -> Result<Box<dyn Mount>, MountError> {
    let kept = Kept::of_one_mount(Arc::clone(&host.worker)).map_err(of_another_release)?;
    let kept = Arc::new(kept);
    let filesystems = FileSystems::new(host, Arc::clone(&kept));
    if let Some(label) = kept.ended().first() {
        return Ok(Box::new(
            Ended::new(&kept, &filesystems, dir, label, options).await?,
        ));
    }
    if let Some(label) = kept.labels().pop()
        && let Some(orphaned) = kept.take(&label)
    {
        let journal = Some(label.as_str());
        let resumed = resume(&kept, &filesystems, &label, journal, options, orphaned).await?;
        if let Some(mount) = resumed {
            return Ok(Box::new(mount));
        }
    }
    let dir = dir.to_path_buf();
    let shown = dir.display().to_string();
    // A directory on a file system that hangs must not hang the command.
    let mountpoint = tokio::time::timeout(READY_LIMIT, blocking(move || check_mountpoint(&dir)))
        .await
        .map_err(|_| MountError::Refused(format!("{shown} does not answer")))??
        .map_err(refused)?;
    let label = label(&mountpoint, options);
    let lease = filesystems.acquire(options, Some(&label)).await?;
    let mount = start(&kept, &label, lease, options, mountpoint).await?;
    Ok(Box::new(mount))
}

/// What the staging of a command-line mount is filed under: the same again for the same bucket on the
/// same directory, and nobody else's.
fn label(mountpoint: &Path, options: &Options) -> String {
    let endpoint = options.endpoint.url.as_deref().unwrap_or_default();
    let location = options.location.to_string();
    let mountpoint = mountpoint.as_os_str().as_bytes();
    filed_under(
        "mount-",
        &[endpoint.as_bytes(), location.as_bytes(), mountpoint],
    )
}

/// Mounts a leased file system; the lease ends with the session.
async fn start(
    kept: &Arc<Kept>,
    label: &str,
    lease: Lease,
    options: &Options,
    mountpoint: PathBuf,
) -> Result<FuseMount, MountError> {
    let filesystem = Arc::clone(lease.filesystem());
    let request = MountRequest {
        mountpoint,
        source: options.location.to_string(),
        read_only: options.read_only,
    };
    let connection = Arc::new(Connection::new(kept.formats().written()).map_err(no_memory)?);
    let (fs, runtime) = (Arc::clone(&filesystem), Handle::current());
    let adapter = FuseAdapter::new(fs, runtime, Arc::clone(&connection));
    let session = match Session::mount(adapter, request, READY_LIMIT).await {
        Ok(session) => session,
        Err(error) => {
            lease.release().await;
            return Err(session_error(&error));
        }
    };
    if let Err(error) = kept.keep(label, &session, &connection, &lease) {
        // It serves all the same; a restart will not find it.
        tracing::error!(%error, "this mount will not outlive a restart");
    }
    Ok(FuseMount::serving(kept, label, session, lease))
}

/// Goes on with the connection of an earlier process. On an error it is lost: whoever has it open gets errors. `None`:
/// so it is, and nothing is known of it any more.
async fn resume(
    kept: &Arc<Kept>,
    filesystems: &FileSystems,
    label: &str,
    journal: Option<&str>,
    options: &Options,
    mut orphaned: Orphaned,
) -> Result<Option<FuseMount>, MountError> {
    let lease = filesystems.acquire_mounted(options, journal).await?;
    let (connection, mut left) = match orphaned.connection().await {
        Ok(read) => read,
        Err(error) => {
            tracing::error!(label, "a mount of the process before is lost: {error}");
            kept.forget(label);
            lease.release().await;
            return Ok(None);
        }
    };
    let agreement = left.terms.agreement().clone();
    let attachment = left.terms.attachment().map_err(refused)?;
    let connection = Arc::new(connection);
    let (fs, runtime) = (Arc::clone(lease.filesystem()), Handle::current());
    let unanswered = std::mem::take(&mut left.unanswered);
    let adapter = FuseAdapter::resume(fs, runtime, Arc::clone(&connection), left);
    let interrupted = unanswered.clone();
    let resumed = Session::resume(
        adapter,
        orphaned.device,
        attachment,
        agreement,
        unanswered,
        READY_LIMIT,
    );
    match resumed.await {
        Ok(session) => {
            connection.interrupted(&interrupted);
            kept.serve(&session, &connection, &lease);
            Ok(Some(FuseMount::serving(kept, label, session, lease)))
        }
        Err(error) => {
            lease.release().await;
            Err(session_error(&error))
        }
    }
}

/// A volume's directory below the base.
struct VolumePlace {
    shared: Arc<Shared>,
    name: VolumeName,
}

impl VolumePlace {
    async fn prepare(&self) -> Result<PathBuf, MountError> {
        let (shared, name) = (Arc::clone(&self.shared), self.name.clone());
        let prepared = blocking(move || shared.base.prepare(name.as_str())).await?;
        if prepared.is_err() {
            self.clear().await;
        }
        prepared.map_err(refused)
    }

    /// What cannot be removed does no harm and is removed by the next mount's end.
    async fn clear(&self) {
        let (shared, name) = (Arc::clone(&self.shared), self.name.clone());
        let cleared = blocking(move || shared.base.clear(name.as_str())).await;
        if let Err(error) = cleared.and_then(|cleared| cleared.map_err(refused)) {
            tracing::warn!(volume = %self.name, %error, "mount point not cleared");
        }
    }
}

/// A session, and what it stands on.
struct FuseMount {
    session: Session,
    filesystem: Arc<FileSystem>,
    /// Closed once the session has ended and the file system was given back.
    closed: watch::Receiver<()>,
    /// `None`: a directory of the user's own.
    place: Option<VolumePlace>,
}

impl FuseMount {
    fn serving(kept: &Arc<Kept>, label: &str, session: Session, lease: Lease) -> Self {
        let filesystem = Arc::clone(lease.filesystem());
        let (open, closed) = watch::channel(());
        let mut end = session.end();
        let is_whole_process = !kept.is_of_volumes();
        let (kept, label) = (Arc::clone(kept), label.to_owned());
        tokio::spawn(async move {
            end.wait().await;
            let filesystem = Arc::clone(lease.filesystem());
            if !is_whole_process {
                kept.forget(&label);
            }
            lease.release().await;
            drop(open);
            if is_whole_process {
                kept.forget_settled(&label, &filesystem).await;
            }
        });
        Self {
            session,
            filesystem,
            closed,
            place: None,
        }
    }
}

#[async_trait]
impl Mount for FuseMount {
    fn mountpoint(&self) -> &Path {
        self.session.attachment().path()
    }

    fn is_alive(&self) -> bool {
        // The sender goes with the session.
        self.closed.has_changed().is_ok()
    }

    /// False when the session goes on for others and the mount point no longer leads to it: a container
    /// must not be given what lies there now.
    fn is_attached(&self) -> bool {
        self.session.is_visible()
    }

    async fn is_held(&self) -> bool {
        self.session.is_used_elsewhere(SCAN_LIMIT).await
    }

    async fn drain(&self, limit: Duration) -> Result<(), MountError> {
        contents::drain(&self.filesystem, limit).await
    }

    async fn detach(&self) -> Result<(), MountError> {
        self.session.detach().await.map_err(refused)?;
        if let Some(place) = &self.place {
            place.clear().await;
        }
        let mut closed = self.closed.clone();
        let gone = async { while closed.changed().await.is_ok() {} };
        let _ = tokio::time::timeout(END_LIMIT, gone).await;
        Ok(())
    }

    async fn salvage(&self, key: &str, how: &Salvage) -> Result<Vec<Range<u64>>, MountError> {
        contents::salvage(&self.filesystem, key, how).await
    }

    fn status(&self) -> MountStatus {
        contents::status(&self.filesystem)
    }
}

fn no_memory(error: std::io::Error) -> MountError {
    MountError::Refused(format!("memory for the mount: {error}"))
}

fn of_another_release(error: std::io::Error) -> MountError {
    MountError::Refused(format!(
        "a mount of another release cannot be gone on with: {error}"
    ))
}

fn refused(error: AttachError) -> MountError {
    MountError::Refused(error.to_string())
}

fn session_error(error: &SessionError) -> MountError {
    let text = error.to_string();
    match error {
        SessionError::Attach(_) | SessionError::Handshake { .. } => MountError::Refused(text),
        SessionError::Root { .. } | SessionError::TimedOut { .. } => MountError::Unavailable(text),
    }
}

/// Runs what may block in the kernel where it holds up no task.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, MountError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| MountError::Refused(format!("mounting: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Location, Scheme};

    #[test]
    fn staging_is_filed_under_bucket_and_directory() {
        let options = |prefix: &str| {
            let (bucket, prefix) = ("b".to_owned(), prefix.to_owned());
            Options::at(Location {
                scheme: Scheme::S3,
                bucket,
                prefix,
            })
        };
        let one = label(Path::new("/m"), &options("p"));
        assert_eq!(one, label(Path::new("/m"), &options("p")));
        assert_ne!(one, label(Path::new("/n"), &options("p")));
        assert_ne!(one, label(Path::new("/m"), &options("q")));
        assert_eq!(one.len(), "mount-".len() + 16);
    }
}
