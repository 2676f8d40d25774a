//! The thread that has the file: opens it, writes what is handed over in batches, and sees to it when it breaks.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::file::{CacheFile, FileError};

/// How long what was handed over waits for more: each batch is one fdatasync.
const BATCH_WAIT: Duration = Duration::from_secs(1);

/// Entries of a batch.
const BATCH_MAX: usize = 2048;

/// The other process that has the file may be at its end: a worker that hands over, a mount that was unmounted.
const TAKEN_WAIT: Duration = Duration::from_secs(1);

/// A disk that cannot be written to may have room again later.
const FAILED_WAIT: Duration = Duration::from_secs(30);

/// What the thread is told.
#[derive(Debug)]
pub(super) enum Note {
    /// An entry to keep.
    Put { key: Vec<u8>, value: Vec<u8> },
    /// Answer when all that came before is in the file.
    Flush(SyncSender<()>),
    /// Somebody could not read the file.
    Broken(FileError),
}

/// What becomes of the file.
#[derive(Debug)]
pub(super) enum State {
    /// That is not known yet.
    Opening,
    /// It can be read.
    Open(Arc<CacheFile>),
    /// There is none, for now.
    Without,
}

/// Why the thread no longer serves a file.
enum End {
    /// Nobody is left to hand anything over.
    Closed,
    Broken(FileError),
}

/// Serves the file at `path` until nobody is left to hand anything over.
pub(super) fn run(path: &Path, limit: u64, notes: &Receiver<Note>, state: &watch::Sender<State>) {
    let mut said = None;
    loop {
        let error = match guarded(|| CacheFile::open(path, limit)) {
            Ok(file) => {
                let file = Arc::new(file);
                state.send_replace(State::Open(Arc::clone(&file)));
                said = None;
                match serve(&file, notes) {
                    End::Closed => return,
                    End::Broken(error) => error,
                }
            }
            Err(error) => error,
        };
        state.send_replace(State::Without);
        let (begins_anew, wait) = match &error {
            FileError::Damaged(_) => (CacheFile::set_aside(path).is_ok(), FAILED_WAIT),
            FileError::Failed(_) => (false, FAILED_WAIT),
            FileError::Taken => (false, TAKEN_WAIT),
        };
        let text = error.to_string();
        if said.as_ref() != Some(&text) {
            let path = path.display();
            match (&error, begins_anew) {
                (FileError::Taken, _) => {
                    tracing::info!("objects' attributes are not kept: {path}: {text}");
                }
                (_, true) => {
                    tracing::warn!("the cache of attributes {path} is begun anew: {text}");
                }
                (_, false) => {
                    tracing::warn!("objects' attributes are not kept: {path}: {text}");
                }
            }
            said = Some(text);
        }
        if !begins_anew && !pass(notes, wait) {
            return;
        }
    }
}

/// Writes what comes.
fn serve(file: &CacheFile, notes: &Receiver<Note>) -> End {
    let mut batch = Vec::new();
    let mut due: Option<Instant> = None;
    loop {
        let next = match due {
            None => notes.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(due) => notes.recv_timeout(due.saturating_duration_since(Instant::now())),
        };
        let mut flushed = None;
        let is_over = match next {
            Ok(Note::Put { key, value }) => {
                batch.push((key, value));
                due.get_or_insert_with(|| Instant::now() + BATCH_WAIT);
                if batch.len() < BATCH_MAX {
                    continue;
                }
                false
            }
            Ok(Note::Flush(reply)) => {
                flushed = Some(reply);
                false
            }
            Ok(Note::Broken(error)) => return End::Broken(error),
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => true,
        };
        if let Err(error) = guarded(|| file.write(&batch)) {
            return End::Broken(error);
        }
        batch.clear();
        due = None;
        if let Some(reply) = flushed {
            // Whoever has stopped waiting needs no answer.
            let _ = reply.try_send(());
        }
        if is_over {
            return End::Closed;
        }
    }
}

/// Lets time pass in which there is no file: what comes is dropped. `false`: nobody is left to hand anything over.
fn pass(notes: &Receiver<Note>, time: Duration) -> bool {
    let until = Instant::now() + time;
    loop {
        match notes.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Note::Flush(reply)) => {
                let _ = reply.try_send(());
            }
            Ok(Note::Put { .. } | Note::Broken(_)) => {}
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
}

/// A database that meets what it never wrote may panic.
fn guarded<T>(work: impl FnOnce() -> Result<T, FileError>) -> Result<T, FileError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(FileError::Damaged("it cannot be read".to_owned())))
}
