//! The process's end of the control socket.
//!
//! It converts: what a mount is and does belongs to [`Mounts`]. Work that must not stop half-way runs in
//! a task of its own, since a client that hangs up ends its handler.

use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{
    FileId, KeeperView, MountView, ProcessStatus, Refusal, RefusalKind, SalvageRequest,
    SyncRequest, UnmountRequest,
};
use crate::cli::worker::Worker;
use crate::plugin::bucket::{MountError, Salvage};

/// When nobody says how long a drain may take.
const AS_LONG_AS_IT_TAKES: Duration = Duration::from_secs(365 * 24 * 3600);

/// After the stop, how long an answer may take to leave.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The mounts of this process.
#[async_trait]
pub(in crate::cli) trait Mounts: Send + Sync + 'static {
    /// All of them.
    fn list(&self) -> Vec<MountView>;

    /// Volumes that could be mounted and are not.
    async fn idle_volumes(&self) -> Vec<String>;

    /// Drains one mount, or all of them. `None`: there is no such mount here.
    async fn sync(
        &self,
        mountpoint: Option<&Path>,
        limit: Duration,
    ) -> Option<Result<(), MountError>>;

    /// Does what a person decided about a change that does not get into the bucket. `None`: there is no such mount
    /// here.
    async fn salvage(
        &self,
        mountpoint: &Path,
        key: &str,
        how: &Salvage,
    ) -> Option<Result<Vec<Range<u64>>, MountError>>;

    /// Drains within the limit and unmounts; with `lazy` the other way round, and it does not wait for the
    /// drain. A mount that could not be drained stays.
    async fn unmount(
        &self,
        mountpoint: &Path,
        limit: Duration,
        lazy: bool,
    ) -> Option<Result<(), MountError>>;
}

/// Answers for this process until `stop` is cancelled. Its mounts are what matters: without a control
/// socket they can still be ended by a signal or a plain umount.
pub(in crate::cli) fn start(
    command: &'static str,
    mounts: Arc<dyn Mounts>,
    worker: &Arc<Worker>,
    stop: CancellationToken,
) -> Option<JoinHandle<()>> {
    match ControlSocket::bind(&super::run_dir()) {
        Ok(socket) => {
            let worker = Arc::clone(worker);
            Some(tokio::spawn(socket.serve(command, mounts, worker, stop)))
        }
        Err(error) => {
            tracing::warn!(
                "no control socket, so that no other command sees what this process serves: {error}"
            );
            None
        }
    }
}

/// A listening control socket; the file goes with it.
#[derive(Debug)]
pub(in crate::cli) struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Listens in `dir` under this process's number.
    pub(in crate::cli) fn bind(dir: &Path) -> io::Result<Self> {
        super::prepare_run_dir(dir)?;
        let pid = std::process::id();
        // In another pid namespace somebody may have the same number: they share the directory, not us.
        for attempt in 0..16 {
            let name = if attempt == 0 {
                format!("{pid}.sock")
            } else {
                format!("{pid}-{attempt}.sock")
            };
            let path = dir.join(name);
            match UnixListener::bind(&path) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    if is_dead(&path) {
                        fs::remove_file(&path)?;
                        return Self::listening(UnixListener::bind(&path)?, path);
                    }
                }
                Err(error) => return Err(error),
                Ok(listener) => return Self::listening(listener, path),
            }
        }
        Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("no free name in {}", dir.display()),
        ))
    }

    fn listening(listener: UnixListener, path: PathBuf) -> io::Result<Self> {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, path })
    }

    /// Where it listens.
    #[cfg(test)]
    pub(in crate::cli) fn path(&self) -> &Path {
        &self.path
    }

    /// Answers until `stop` is cancelled, then finishes the answers in hand.
    pub(in crate::cli) async fn serve(
        self,
        command: &'static str,
        mounts: Arc<dyn Mounts>,
        worker: Arc<Worker>,
        stop: CancellationToken,
    ) {
        let Self { listener, path } = self;
        let app = Router::new()
            .route("/status", get(status))
            .route("/sync", post(sync))
            .route("/unmount", post(unmount))
            .route("/salvage", post(salvage))
            .layer(DefaultBodyLimit::max(64 * 1024))
            .with_state(Process {
                command,
                mounts,
                worker,
            });
        let stopped = stop.clone();
        let server = axum::serve(listener, app)
            .with_graceful_shutdown(async move { stopped.cancelled().await });
        let mut server = std::pin::pin!(server.into_future());
        let ended = tokio::select! {
            ended = &mut server => ended,
            () = async { stop.cancelled().await; tokio::time::sleep(LAST_WORDS).await } => Ok(()),
        };
        if let Err(error) = ended {
            tracing::warn!(%error, socket = %path.display(), "the control socket is closed");
        }
        let _ = fs::remove_file(&path);
    }
}

/// Whether nobody listens on a socket any more.
pub(super) fn is_dead(path: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(path)
        .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

#[derive(Clone)]
struct Process {
    command: &'static str,
    mounts: Arc<dyn Mounts>,
    worker: Arc<Worker>,
}

type Answer<T> = Result<Json<T>, (StatusCode, Json<Refusal>)>;

async fn status(State(process): State<Process>) -> Json<ProcessStatus> {
    Json(ProcessStatus {
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        command: process.command.to_owned(),
        mounts: process.mounts.list(),
        idle_volumes: process.mounts.idle_volumes().await,
        keeper: keeper_of(&process.worker),
    })
}

fn keeper_of(worker: &Worker) -> Option<KeeperView> {
    let program = std::env::args_os().next()?;
    Some(KeeperView {
        pid: worker.keeper_pid()?,
        program: program.into(),
        executable: FileId::at(Path::new("/proc/self/exe")).ok()?,
    })
}

async fn sync(State(process): State<Process>, Json(request): Json<SyncRequest>) -> Answer<()> {
    let limit = limit(request.timeout_ms);
    answer(
        process
            .mounts
            .sync(request.mountpoint.as_deref(), limit)
            .await,
    )
}

async fn salvage(
    State(process): State<Process>,
    Json(request): Json<SalvageRequest>,
) -> Answer<Vec<Range<u64>>> {
    let SalvageRequest {
        mountpoint,
        key,
        how,
    } = request;
    answer(process.mounts.salvage(&mountpoint, &key, &how).await)
}

async fn unmount(
    State(process): State<Process>,
    Json(request): Json<UnmountRequest>,
) -> Answer<()> {
    let limit = limit(request.timeout_ms);
    let work = tokio::spawn(async move {
        process
            .mounts
            .unmount(&request.mountpoint, limit, request.lazy)
            .await
    });
    let done = work.await.unwrap_or_else(|_| {
        Some(Err(MountError::Refused(
            "the unmount broke off; see the log".to_owned(),
        )))
    });
    answer(done)
}

fn limit(timeout_ms: Option<u64>) -> Duration {
    timeout_ms.map_or(AS_LONG_AS_IT_TAKES, Duration::from_millis)
}

fn answer<T>(done: Option<Result<T, MountError>>) -> Answer<T> {
    let (kind, message) = match done {
        Some(Ok(answer)) => return Ok(Json(answer)),
        None => (
            RefusalKind::NotMine,
            "no such mount in this process".to_owned(),
        ),
        Some(Err(MountError::TimedOut(message))) => (RefusalKind::TimedOut, message),
        Some(Err(error)) => (RefusalKind::Failed, error.to_string()),
    };
    Err((StatusCode::CONFLICT, Json(Refusal { kind, message })))
}
