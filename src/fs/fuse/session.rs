//! Runs a file system on a FUSE connection, from the kernel's INIT until the kernel lets go of it.
//!
//! Opening and mounting the device are steps of their own (`mount`), so that a connection that another
//! process kept can be run as well ([`Session::resume`]). Unmounting ends nothing by itself: as long as a container or an open
//! file holds the file system the session serves it, and its end (ENODEV) is the sign that nobody does.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use fuser::{Config, Filesystem, Notifier, SessionACL};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout_at};

use super::handshake::{self, Agreement, Unanswered};
use super::mount::{AttachError, Attachment, FuseDevice, MountRequest};

/// Loops that read requests. Hits are answered on them and misses leave them, so a few suffice.
pub(super) const LOOPS: usize = 4;

/// Why a file system could not be brought to answer.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// It could not be mounted.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The kernel and we did not come to terms, or it was unmounted meanwhile.
    #[error("{path}: FUSE handshake: {error}", path = path.display())]
    Handshake {
        /// The mount point.
        path: PathBuf,
        /// What went wrong.
        #[source]
        error: io::Error,
    },
    /// It is mounted, and its root cannot be looked at.
    #[error("{path}: the root cannot be read: {error}", path = path.display())]
    Root {
        /// The mount point.
        path: PathBuf,
        /// What the file system answered.
        #[source]
        error: io::Error,
    },
    /// It did not answer in time.
    #[error("{path}: no answer within {} s after mounting", limit.as_secs(), path = path.display())]
    TimedOut {
        /// The mount point.
        path: PathBuf,
        /// How long it was given.
        limit: Duration,
    },
}

/// A file system the kernel can reach.
///
/// Dropping it neither unmounts nor stops it: a daemon that ends leaves its mounts to the next one, and
/// one that goes on serves whoever still has files open.
#[derive(Debug)]
pub struct Session {
    attachment: Attachment,
    agreement: Agreement,
    device: FuseDevice,
    notifier: Notifier,
    end: SessionEnd,
}

/// Learns of a session's end.
#[derive(Debug, Clone)]
pub struct SessionEnd(watch::Receiver<()>);

impl SessionEnd {
    /// Whether the kernel has let go of the file system: it is mounted nowhere and no file is open.
    pub fn has_come(&self) -> bool {
        // The thread that serves holds the sender, so that even its panic is an end.
        self.0.has_changed().is_err()
    }

    /// Waits for it.
    pub async fn wait(&mut self) {
        while self.0.changed().await.is_ok() {}
    }
}

impl Session {
    /// Mounts a file system. When it returns, the mount point has answered; on an error nothing stays
    /// mounted. `limit` bounds the whole.
    pub async fn mount<F: Filesystem>(
        filesystem: F,
        request: MountRequest,
        limit: Duration,
    ) -> Result<Self, SessionError> {
        let deadline = Instant::now() + limit;
        let path = request.mountpoint.clone();
        // Guarded from its first moment: this future may be dropped while the mount is being made.
        let open = move || Attachment::open(&request).map(|(device, at)| (device, Undo(Some(at))));
        let (device, undo) = blocking(open)
            .await
            .map_err(|error| SessionError::Handshake { path, error })??;
        Self::run_until(filesystem, device, undo, deadline, limit).await
    }

    /// Serves a connection that is mounted already and waits for its INIT. On an error it is unmounted.
    pub async fn run<F: Filesystem>(
        filesystem: F,
        device: FuseDevice,
        attachment: Attachment,
        limit: Duration,
    ) -> Result<Self, SessionError> {
        let undo = Undo(Some(attachment));
        Self::run_until(filesystem, device, undo, Instant::now() + limit, limit).await
    }

    /// Goes on with a connection that an earlier process has served until it died, and that somebody has kept. Those
    /// who waited for its answers get them (or EINTR, on kernels before 6.9: then `unanswered` tells which those may
    /// be). On an error the connection stays as it is.
    pub async fn resume<F: Filesystem>(
        filesystem: F,
        device: FuseDevice,
        attachment: Attachment,
        agreement: Agreement,
        unanswered: Unanswered,
        limit: Duration,
    ) -> Result<Self, SessionError> {
        let deadline = Instant::now() + limit;
        let begin = Begin::Resumed(agreement, unanswered);
        Self::start(filesystem, device, attachment, begin, deadline, limit).await
    }

    async fn run_until<F: Filesystem>(
        filesystem: F,
        device: FuseDevice,
        undo: Undo,
        deadline: Instant,
        limit: Duration,
    ) -> Result<Self, SessionError> {
        let attachment = undo.0.clone().expect("only disarming empties it");
        let session =
            Self::start(filesystem, device, attachment, Begin::New, deadline, limit).await?;
        session.attachment.raise_read_ahead();
        timeout_at(deadline, look_at_root(&session.attachment))
            .await
            .map_err(|_| SessionError::TimedOut {
                path: session.attachment.path().to_path_buf(),
                limit,
            })??;
        undo.disarm();
        Ok(session)
    }

    async fn start<F: Filesystem>(
        filesystem: F,
        device: FuseDevice,
        attachment: Attachment,
        begin: Begin,
        deadline: Instant,
        limit: Duration,
    ) -> Result<Self, SessionError> {
        let path = attachment.path().to_path_buf();
        let handshake = |error| SessionError::Handshake {
            path: path.clone(),
            error,
        };
        let (ready, is_ready) = oneshot::channel();
        let (alive, end) = watch::channel(());
        let kept = device.try_clone().map_err(handshake)?;
        let served = attachment.clone();
        std::thread::Builder::new()
            .name("fuse-session".into())
            .spawn(move || {
                serve(filesystem, device, &served, begin, ready);
                drop(alive);
            })
            .map_err(handshake)?;
        let (notifier, agreement) = timeout_at(deadline, is_ready)
            .await
            .map_err(|_| SessionError::TimedOut {
                path: path.clone(),
                limit,
            })?
            .map_err(|_| handshake(io::Error::other("the session's thread panicked")))?
            .map_err(handshake)?;
        Ok(Self {
            attachment,
            agreement,
            device: kept,
            notifier,
            end: SessionEnd(end),
        })
    }

    /// What a later process has to know to go on with the connection.
    pub fn agreement(&self) -> &Agreement {
        &self.agreement
    }

    /// The connection, for whoever keeps it for a later process.
    pub fn device(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    /// Where it is mounted.
    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    /// Whether a program that opens the mount point now comes to us.
    pub fn is_visible(&self) -> bool {
        self.is_alive() && self.attachment.is_visible()
    }

    /// Whether another mount namespace (a container) uses the file system. Looks for at most about
    /// `limit`; what it could not see counts as a use.
    pub async fn is_used_elsewhere(&self, limit: Duration) -> bool {
        if !self.is_alive() {
            return false;
        }
        let attachment = self.attachment.clone();
        match blocking(move || attachment.is_used_elsewhere(limit)).await {
            Ok(Ok(is_used)) => is_used,
            Ok(Err(error)) | Err(error) => {
                tracing::warn!(%error, "other mount namespaces cannot be looked at");
                true
            }
        }
    }

    /// Tells the kernel what it must forget. Not to be used from within a handler.
    pub fn notifier(&self) -> Notifier {
        self.notifier.clone()
    }

    /// Whether somebody can still reach the file system.
    pub fn is_alive(&self) -> bool {
        !self.end.has_come()
    }

    /// Learns of the session's end.
    pub fn end(&self) -> SessionEnd {
        self.end.clone()
    }

    /// Takes the file system off its mount point; whoever has it open keeps it, and the session goes on
    /// until the last of them is gone.
    pub async fn detach(&self) -> Result<(), AttachError> {
        if !self.is_alive() {
            return Ok(());
        }
        let attachment = self.attachment.clone();
        blocking(move || attachment.detach())
            .await
            .map_err(|error| AttachError::Io {
                path: self.attachment.path().to_path_buf(),
                error,
            })?
    }
}

/// How a connection begins.
enum Begin {
    /// The kernel asks its INIT.
    New,
    /// An earlier process has answered it, and has left these requests.
    Resumed(Agreement, Unanswered),
}

/// The session's thread: shakes hands, then serves until the kernel says ENODEV.
fn serve<F: Filesystem>(
    filesystem: F,
    device: FuseDevice,
    attachment: &Attachment,
    begin: Begin,
    ready: oneshot::Sender<io::Result<(Notifier, Agreement)>>,
) {
    let mut config = Config::default();
    // Who may come in is the kernel's to decide (allow_other, default_permissions).
    config.acl = SessionACL::All;
    config.n_threads = Some(LOOPS);
    // Requests read through a cloned descriptor die with it; those of the original survive us.
    config.clone_fd = false;
    let begun = match begin {
        Begin::New => handshake::begin(filesystem, &device, config),
        Begin::Resumed(agreement, unanswered) => {
            handshake::resume(filesystem, &device, &agreement, &unanswered, config)
                .map(|session| (session, agreement))
        }
    };
    // The session has a descriptor of its own.
    drop(device);
    let (session, agreement) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    // The other side may have given up; then it has unmounted, and the loops end at once.
    let _ = ready.send(Ok((session.notifier(), agreement)));
    match session.run() {
        Ok(()) => tracing::debug!(path = %attachment.path().display(), "session ended"),
        Err(error) => {
            // Nobody answers any more, but the notifier still holds the connection open: without this
            // every caller would wait for ever.
            tracing::error!(path = %attachment.path().display(), %error, "session broke");
            attachment.abort();
            if let Err(error) = attachment.detach() {
                tracing::warn!(%error, "broken session stays mounted");
            }
        }
    }
}

/// Asks for the attributes of the root, as a container's first access will. On a thread of its own: it
/// waits for a handler that may need any of the runtime's.
async fn look_at_root(attachment: &Attachment) -> Result<(), SessionError> {
    let path = attachment.path().to_path_buf();
    let root = |error| SessionError::Root {
        path: attachment.path().to_path_buf(),
        error,
    };
    let (tell, told) = oneshot::channel();
    std::thread::Builder::new()
        .name("fuse-ready".into())
        .spawn(move || {
            let _ = tell.send(std::fs::symlink_metadata(path));
        })
        .map_err(root)?;
    let metadata = told
        .await
        .map_err(|_| root(io::Error::other("the thread that looks panicked")))?
        .map_err(root)?;
    let device = attachment.device();
    if metadata.dev() != nix::libc::makedev(device.major, device.minor) {
        return Err(AttachError::Vanished {
            path: attachment.path().to_path_buf(),
        }
        .into());
    }
    Ok(())
}

/// Runs what may block in the kernel where it holds up no task.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)
}

/// Unmounts what did not become ready.
struct Undo(Option<Attachment>);

impl Undo {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        let Some(attachment) = self.0.take() else {
            return;
        };
        // Detach first: the abort lets a look at the root return that would keep the session for ever.
        let undo = move || {
            if let Err(error) = attachment.detach() {
                tracing::warn!(%error, "unfinished mount stays");
            }
            attachment.abort();
        };
        // Waited for, so that nothing is left when the error is reported; it makes system calls only.
        match std::thread::Builder::new()
            .name("fuse-undo".into())
            .spawn(undo)
        {
            Ok(thread) => drop(thread.join()),
            Err(error) => tracing::warn!(%error, "unfinished mount stays"),
        }
    }
}
