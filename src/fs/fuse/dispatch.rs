//! How a request is run and answered.
//!
//! It is begun on the FUSE thread it arrived on. If it can be answered without waiting (a cached block, a
//! known name, a write) it is answered there; else what is left of it moves to the runtime: the hop costs
//! two thirds of the rate of small cached reads.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fuser::{Errno, ReplyData, ReplyEmpty, Request};
use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::connection::Connection;
use crate::fs::sparse::SparseArray;
use crate::fs::{FileSystem, FsError, RequestId};

/// A question that only reads is given up after this: a request that is never answered leaves its caller
/// unkillable. Changes are not given up half-way; each of their requests to the store has a limit of its
/// own.
const QUESTION_DEADLINE: Duration = Duration::from_secs(60);

/// The kernel sets this bit of a request's number when it sends the request again (`FUSE_UNIQUE_RESEND`).
const RESENT: u64 = 1 << 63;

/// Runs requests.
#[derive(Debug)]
pub(super) struct Dispatch {
    runtime: Handle,
    connection: Arc<Connection>,
}

impl Dispatch {
    /// What has to wait waits on `runtime`.
    pub(super) fn new(runtime: Handle, connection: Arc<Connection>) -> Self {
        Self {
            runtime,
            connection,
        }
    }

    /// Does at once what the request asks; else like [`Dispatch::make`].
    pub(super) fn make_now<T, R>(
        &self,
        request: &Request,
        change: impl FnOnce() -> Result<T, FsError>,
        reply: R,
        answer: impl FnOnce(R, Result<T, Errno>),
    ) {
        self.note(request);
        let done = self.id(request).sync_scope(change);
        answer(reply, done.map_err(|error| Errno::from(&error)));
        self.connection.gate.pass();
    }

    /// What was asked is answered without any of this.
    pub(super) fn answered(&self) {
        self.connection.gate.pass();
    }

    /// Whether the process is about to end, and reads no more requests.
    pub(super) fn is_ending(&self) -> bool {
        self.connection.gate.is_shut()
    }

    /// Thousands of a kind may come in a row, and each has a number.
    pub(super) fn note(&self, request: &Request) {
        self.connection.note_request(request.unique().0 & !RESENT);
    }

    /// What the journal calls a request.
    pub(super) fn id(&self, request: &Request) -> RequestId {
        RequestId::new(self.connection.epoch(), request.unique().0)
    }

    /// Does what the request asks, unless an earlier process has done it and only the answer is missing: then
    /// `repeated` says that.
    pub(super) fn make_once<T: Send + 'static, R: Send + 'static>(
        &self,
        fs: &FileSystem,
        request: &Request,
        change: impl Future<Output = Result<T, FsError>> + Send + 'static,
        repeated: impl Future<Output = Result<T, FsError>> + Send + 'static,
        reply: R,
        answer: impl FnOnce(R, Result<T, Errno>) + Send + 'static,
    ) {
        if is_resent(request) && fs.was_done(self.id(request)) {
            self.make(request, repeated, reply, answer);
        } else {
            self.make(request, change, reply, answer);
        }
    }

    /// Does a question, which is given up at its deadline.
    pub(super) fn ask<T: Send + 'static, R: Send + 'static>(
        &self,
        request: &Request,
        question: impl Future<Output = Result<T, FsError>> + Send + 'static,
        reply: R,
        answer: impl FnOnce(R, Result<T, Errno>) + Send + 'static,
    ) {
        let _runtime = self.runtime.enter();
        let limited = tokio::time::timeout(QUESTION_DEADLINE, question)
            .map(|done| done.unwrap_or(Err(FsError::TimedOut(QUESTION_DEADLINE))));
        self.make(request, limited, reply, answer);
    }

    /// Does what the request asks; what it writes into the journal carries the request's id.
    pub(super) fn make<T: Send + 'static, R: Send + 'static>(
        &self,
        request: &Request,
        change: impl Future<Output = Result<T, FsError>> + Send + 'static,
        reply: R,
        answer: impl FnOnce(R, Result<T, Errno>) + Send + 'static,
    ) {
        let _runtime = self.runtime.enter();
        let unique = request.unique().0;
        self.note(request);
        let again = is_resent(request).then(|| Arc::clone(&self.connection));
        if let Some(connection) = &again
            && !connection.begin_again(unique & !RESENT)
        {
            tracing::error!(
                unique = unique & !RESENT,
                "a request that was in hand at two crashes is not begun a third time"
            );
            return answer(reply, Err(Errno::EIO));
        }
        let answer = move |reply, done| {
            answer(reply, done);
            if let Some(connection) = again {
                connection.answered(unique & !RESENT);
            }
        };
        // A panic is one failed request, not the end of the mount.
        let change = self.id(request).scope(change);
        let guarded = AssertUnwindSafe(change)
            .catch_unwind()
            .map(|done| match done {
                Ok(Ok(value)) => Ok(value),
                Ok(Err(error)) => {
                    tracing::debug!("{error}");
                    Err(Errno::from(&error))
                }
                Err(_) => Err(Errno::EIO),
            });
        let mut guarded = Box::pin(guarded);
        match guarded.as_mut().now_or_never() {
            Some(done) => answer(reply, done),
            None => {
                let in_hand = self.connection.gate.leave_thread();
                let noted = self.connection.begin_to_wait(unique);
                let connection = noted.then(|| Arc::clone(&self.connection));
                self.runtime.spawn(async move {
                    answer(reply, guarded.await);
                    if let Some(connection) = connection {
                        connection.answered(unique);
                    }
                    drop(in_hand);
                });
            }
        }
        self.connection.gate.pass();
    }
}

/// Whether the kernel has sent the request before, to a process that did not answer it.
pub(super) fn is_resent(request: &Request) -> bool {
    request.unique().0 & RESENT != 0
}

/// What this connection's kernel knows: it is forgotten with the connection.
#[derive(Debug)]
pub(super) struct Known {
    fs: Arc<FileSystem>,
    connection: Arc<Connection>,
    nlookup: Mutex<SparseArray<u64>>,
}

impl Known {
    /// It knows so much already, of an earlier process.
    pub(super) fn new(
        fs: Arc<FileSystem>,
        connection: Arc<Connection>,
        lookups: Vec<(u64, u64)>,
    ) -> Arc<Self> {
        let is_there = |(ino, times): &(u64, u64)| fs.remember_times(*ino, *times);
        let mut nlookup = SparseArray::default();
        nlookup.reserve(lookups.len());
        for (ino, times) in lookups.into_iter().filter(is_there) {
            nlookup.insert(ino, times);
        }
        Arc::new(Self {
            fs,
            connection,
            nlookup: Mutex::new(nlookup),
        })
    }

    /// The kernel is about to be told of an inode otherwise than by an entry; `false` if there is none.
    pub(super) fn remember(&self, ino: u64) -> bool {
        let is_there = self.fs.remember(ino);
        if is_there {
            self.add(ino);
        }
        is_there
    }

    /// The kernel is about to be told of an inode by an entry, which the core has counted.
    pub(super) fn add(&self, ino: u64) {
        let mut known = self.nlookup.lock();
        let times = known.get(ino).copied().unwrap_or(0) + 1;
        known.insert(ino, times);
        self.connection.keep_lookups(ino, times);
    }

    pub(super) fn forget(&self, ino: u64, nlookup: u64) {
        {
            let mut known = self.nlookup.lock();
            if let Some(count) = known.get_mut(ino) {
                *count = count.saturating_sub(nlookup);
                self.connection.keep_lookups(ino, *count);
                if *count == 0 {
                    known.remove(ino);
                }
            }
        }
        self.fs.forget(ino, nlookup);
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        for (ino, nlookup) in self.nlookup.get_mut().iter() {
            self.fs.forget(ino, *nlookup);
        }
    }
}

pub(super) fn answer_empty(reply: ReplyEmpty, done: Result<(), Errno>) {
    match done {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

pub(super) fn answer_data(reply: ReplyData, done: Result<Vec<Bytes>, Errno>) {
    match done {
        // fuser takes one slice; most reads lie in one block and are not copied.
        Ok(pieces) => match pieces.as_slice() {
            [one] => reply.data(one),
            pieces => reply.data(&pieces.concat()),
        },
        Err(errno) => reply.error(errno),
    }
}
