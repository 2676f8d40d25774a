//! Connections as they are accepted: counted while they are open, broken off where no answer is better than any, and
//! none any more once the door is closed.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// A listener that can be told to accept no more while what it has accepted goes on.
#[derive(Debug)]
pub(super) struct Gate {
    listener: UnixListener,
    door: CancellationToken,
    connections: TaskTracker,
}

impl Gate {
    pub(super) fn new(listener: UnixListener) -> Self {
        Self {
            listener,
            door: CancellationToken::new(),
            connections: TaskTracker::new(),
        }
    }

    /// Cancelled, it lets nobody in.
    pub(super) fn door(&self) -> CancellationToken {
        self.door.clone()
    }

    /// The connections that are open.
    pub(super) fn connections(&self) -> TaskTracker {
        self.connections.clone()
    }
}

impl Listener for Gate {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let accepted = Listener::accept(&mut self.listener);
        match self.door.run_until_cancelled(accepted).await {
            Some((stream, address)) => {
                let connection = Connection {
                    stream,
                    line: Line::default(),
                    _open: self.connections.token(),
                };
                (connection, address)
            }
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// One connection, counted until it is dropped.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    line: Line,
    _open: TaskTrackerToken,
}

/// What a call has of its connection.
#[derive(Debug, Clone, Default)]
pub(in crate::plugin) struct Line(Arc<AtomicBool>);

impl Line {
    /// Nothing is written any more: whatever the call is answered, its caller sees that the connection has ended.
    pub(in crate::plugin) fn break_off(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn check(&self) -> io::Result<()> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(io::ErrorKind::ConnectionAborted.into()),
            false => Ok(()),
        }
    }
}

impl Connected<IncomingStream<'_, Gate>> for Line {
    fn connect_info(stream: IncomingStream<'_, Gate>) -> Self {
        stream.io().line.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.line.check()?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.line.check()?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
