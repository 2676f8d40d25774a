//! The socket the engine finds us at, and serving a driver on it.
//!
//! A socket file without a listener costs every `docker volume ls` 15 s, so ours goes away on a clean
//! stop; a socket file that somebody answers on, or that is not ours any more, is never touched. A socket
//! may outlive the process that serves it: calls wait in it for the next one.

mod connection;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::middleware::map_response;
use axum::response::Response;
use http::HeaderValue;
use http::header::CONNECTION;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use nix::sys::stat::{Mode, fchmod};
use tokio::net::UnixListener;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::connection::Gate;
pub(super) use self::connection::Line;
use super::driver::VolumeDriver;
use super::router::{Deadlines, router};

/// Bytes of a socket's path, without the zero that ends it in the kernel's structure.
const MAX_PATH: usize = 107;

/// Connections that wait to be accepted: the engine opens one for each volume when it starts.
const BACKLOG: i32 = 1024;

/// After the last call in hand is answered, how long its bytes may take to leave.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// Why there is no socket to serve on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The kernel cannot hold the path.
    #[error("socket path {} has {} bytes, the kernel takes at most {MAX_PATH}", .0.display(), .0.as_os_str().len())]
    PathTooLong(PathBuf),
    /// Something answers there.
    #[error("{}: another daemon answers on this socket; stop it first or choose another --socket", .0.display())]
    InUse(PathBuf),
    /// A file that was not made by a listener.
    #[error("{}: is not a socket; move it away or choose another --socket", .0.display())]
    NotASocket(PathBuf),
    /// The operating system said no.
    #[error("{}: {source}", path.display())]
    Io {
        /// The socket, or the directory it should be in.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// A listening unix socket. Dropping it takes the file away if it is still this listener's, unless
/// [`PluginSocket::outlive`] has said otherwise.
#[derive(Debug)]
pub struct PluginSocket {
    listener: StdListener,
    /// `None` when the socket is somebody else's (systemd's), and its file too.
    file: Option<SocketFile>,
}

/// How serving ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// For good: no more calls come in, and the file goes.
    End,
    /// Another process goes on with the same socket, in which calls wait for it.
    HandOver {
        /// How long the calls in hand may take; the others are broken off.
        limit: Duration,
    },
}

impl PluginSocket {
    /// Listens on `path` with mode 0600: whoever can talk to us can mount with our credentials.
    ///
    /// Makes the directories above it and replaces a socket nobody answers on.
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        let io = |source| ListenError::Io {
            path: path.to_owned(),
            source,
        };
        if path.as_os_str().len() > MAX_PATH {
            return Err(ListenError::PathTooLong(path.to_owned()));
        }
        if let Some(parent) = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(parent)
                .map_err(|source| ListenError::Io {
                    path: parent.to_owned(),
                    source,
                })?;
        }
        remove_dead(path)?;
        let listener = listen_at(path).map_err(|errno| match errno {
            // Somebody was quicker than us.
            nix::errno::Errno::EADDRINUSE => ListenError::InUse(path.to_owned()),
            errno => io(errno.into()),
        })?;
        let file = SocketFile::at(path).map_err(io)?;
        Ok(Self {
            listener,
            file: Some(file),
        })
    }

    /// Takes over a socket that somebody else, such as systemd, listens on and will clean up.
    pub fn inherited(listener: StdListener) -> Self {
        Self {
            listener,
            file: None,
        }
    }

    /// Goes on with the socket of an earlier process: the listener and the file at `path` as
    /// [`PluginSocket::descriptors`] gave them.
    pub fn taken_over(path: &Path, listener: OwnedFd, file: OwnedFd) -> Self {
        let file = SocketFile {
            path: path.to_owned(),
            handle: file.into(),
            goes: Goes::AtTheEnd,
        };
        Self {
            listener: listener.into(),
            file: Some(file),
        }
    }

    /// From here on another process may go on with it: the file stays, however this process ends, unless
    /// it stops for good.
    #[must_use]
    pub fn outlive(mut self) -> Self {
        if let Some(file) = &mut self.file {
            file.goes = Goes::AtTheEnd;
        }
        self
    }

    /// The listener and its file, for another process to go on with. `None` for an inherited socket.
    pub fn descriptors(&self) -> Option<[BorrowedFd<'_>; 2]> {
        let file = self.file.as_ref()?;
        Some([self.listener.as_fd(), file.handle.as_fd()])
    }

    /// Where it listens; `None` for an inherited socket.
    pub fn path(&self) -> Option<&Path> {
        self.file.as_ref().map(|file| file.path.as_path())
    }
}

/// Serves `driver` until `stop` says how it ends, then finishes the calls in hand.
///
/// Each answer ends its connection. One that is kept alive would break at a restart, under the call that
/// the engine sends on it at that moment, and the engine's retry has an empty body.
///
/// At an end for good, connections that merely exist are not waited for. Calls in hand may take up to their
/// deadline; whoever cannot wait that long drops this future. At a hand-over, a connection that was
/// accepted is given a moment to say what it wants; those that were not wait for the next process.
pub async fn serve<D: VolumeDriver>(
    socket: PluginSocket,
    driver: Arc<D>,
    deadlines: Deadlines,
    stop: impl Future<Output = Stop> + Send,
) -> io::Result<Stop> {
    let PluginSocket { listener, file } = socket;
    listener.set_nonblocking(true)?;
    let calls = TaskTracker::new();
    let gate = Gate::new(UnixListener::from_std(listener)?);
    let (door, connections) = (gate.door(), gate.connections());
    let app = router(driver, deadlines, calls.clone()).layer(map_response(end_connection));
    let closing = CancellationToken::new();
    let app = app.into_make_service_with_connect_info::<Line>();
    let server = axum::serve(gate, app).with_graceful_shutdown(closing.clone().cancelled_owned());
    let mut server = std::pin::pin!(server.into_future());
    let stop = tokio::select! {
        ended = &mut server => return ended.map(|()| Stop::End),
        stop = stop => stop,
    };
    calls.close();
    match stop {
        Stop::End => {
            closing.cancel();
            tokio::select! {
                ended = &mut server => ended?,
                () = calls.wait() => {
                    // A peer that connected and says nothing would keep the server for ever.
                    let _ = timeout(LAST_WORDS, &mut server).await;
                }
            }
            if let Some(file) = file {
                file.remove();
            }
        }
        Stop::HandOver { limit } => {
            door.cancel();
            connections.close();
            let no_call_is_left = async {
                sleep(LAST_WORDS).await;
                calls.wait().await;
                let _ = timeout(LAST_WORDS, connections.wait()).await;
            };
            tokio::select! {
                ended = &mut server => ended?,
                () = connections.wait() => {}
                () = no_call_is_left => {}
                () = sleep(limit) => {
                    tracing::warn!("{} calls in hand are broken off after {limit:?}", calls.len());
                }
            }
        }
    }
    Ok(stop)
}

async fn end_connection(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// The name of a socket in the file system, and the file that had it when it was ours.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Held open so that no other file can get its number.
    handle: File,
    goes: Goes,
}

/// When a socket's file goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goes {
    /// With the value.
    WithUs,
    /// When one of the processes that share the socket stops for good.
    AtTheEnd,
}

impl SocketFile {
    fn at(path: &Path) -> io::Result<Self> {
        let handle = File::options()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
            .open(path)?;
        Ok(Self {
            path: path.to_owned(),
            handle,
            goes: Goes::WithUs,
        })
    }

    /// Takes the file away, if that is what the path still leads to.
    fn remove(&self) {
        let id = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let now = fs::symlink_metadata(&self.path).map(id).ok();
        let is_ours = now.is_some() && now == self.handle.metadata().map(id).ok();
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the socket file stays behind");
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.goes == Goes::WithUs {
            self.remove();
        }
    }
}

/// Removes a socket file that nobody listens on; anything else there is an error.
fn remove_dead(path: &Path) -> Result<(), ListenError> {
    let io = |source| ListenError::Io {
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(err) => return Err(io(err)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ListenError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        // EAGAIN: its backlog is full, so it is very much alive.
        Ok(_) => Err(ListenError::InUse(path.to_owned())),
        Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
            Err(ListenError::InUse(path.to_owned()))
        }
        Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => match fs::remove_file(path) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => Err(io(err)),
            _ => Ok(()),
        },
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(err) => Err(io(err)),
    }
}

/// Binds and listens. The mode is set before the file exists: on Linux a socket's file takes its mode
/// from the descriptor, so that there is no moment at which others could connect.
fn listen_at(path: &Path) -> nix::Result<StdListener> {
    let fd = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&fd, Backlog::new(BACKLOG)?)?;
    Ok(StdListener::from(fd))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode_of(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn the_socket_is_its_owners_alone_and_goes_away_with_its_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/docker/plugins/x.sock");
        let socket = PluginSocket::bind(&path).unwrap();
        assert_eq!(mode_of(&path), 0o600);
        assert_eq!(mode_of(path.parent().unwrap()), 0o700);
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_nobody_answers_on_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        drop(StdListener::bind(&path).unwrap());
        assert!(path.exists());
        PluginSocket::bind(&path).unwrap();
    }

    #[test]
    fn a_socket_somebody_answers_on_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        let _other = StdListener::bind(&path).unwrap();
        let err = PluginSocket::bind(&path).unwrap_err();
        assert!(matches!(err, ListenError::InUse(_)), "{err}");
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        fs::write(&path, "precious").unwrap();
        let err = PluginSocket::bind(&path).unwrap_err();
        assert!(matches!(err, ListenError::NotASocket(_)), "{err}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_successors_socket_survives_our_stop() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        let ours = PluginSocket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _theirs = StdListener::bind(&path).unwrap();
        drop(ours);
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn a_socket_that_outlives_its_process_is_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        let first = PluginSocket::bind(&path).unwrap().outlive();
        let [listener, file] = first
            .descriptors()
            .unwrap()
            .map(|fd| fd.try_clone_to_owned().unwrap());
        drop(first);
        assert!(UnixStream::connect(&path).is_ok());
        let next = PluginSocket::taken_over(&path, listener, file);
        assert_eq!(next.path(), Some(path.as_path()));
        drop(next);
        assert!(path.exists(), "it may have crashed: another one comes");
    }

    #[test]
    fn a_path_the_kernel_cannot_hold_is_named_with_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x".repeat(MAX_PATH));
        let err = PluginSocket::bind(&path).unwrap_err();
        assert!(matches!(err, ListenError::PathTooLong(_)), "{err}");
        assert!(err.to_string().contains("at most 107"), "{err}");
    }
}
