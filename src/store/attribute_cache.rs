//! What objects' HEADs have said of their metadata, from one mount to the next.
//!
//! A listing tells which objects there are, not their modes, owners or targets. Where it names the version, size and
//! time that a HEAD once named, what that HEAD said still holds (`entry` has the rule), and nobody asks again.
//!
//! It is a cache: whatever is lost of it, or cannot be read, is asked for again. Nobody waits for its disk but a
//! listing for one look, on a thread where waiting is allowed; what is to be kept is handed to a thread of its own, and
//! dropped when that one has too much to do.

mod entry;
mod file;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use self::entry::{Entry, Place};
use self::file::CacheFile;
use self::writer::{Note, State};
use super::{Key, ListEntry, Object};

/// What may wait to be written. Most entries are some 300 bytes, none is larger than [`ENTRY_MAX`].
const QUEUE: usize = 2048;

/// Bytes of the largest entry that is kept: S3 gives 2 KiB for user metadata and 1 KiB for a key.
const ENTRY_MAX: usize = 4 * 1024;

/// So long after the beginning no listing waits any more for the file to be opened: the store is asked instead. A large
/// file is verified in about that time.
const OPEN_WAIT: Duration = Duration::from_secs(1);

/// A cache of objects' metadata in one file, for any number of buckets.
#[derive(Debug)]
pub struct AttributeCache {
    notes: SyncSender<Note>,
    state: watch::Receiver<State>,
    begun: Instant,
}

impl AttributeCache {
    /// Bytes of keys and metadata that a cache keeps when nothing else is said: some 800 000 objects. The file is at
    /// most about twice as large.
    pub const LIMIT: u64 = 256 << 20;

    /// The cache in the file at `path`, which is made if it is not there, with its directory. It is opened by a thread
    /// of the cache's own: whatever is wrong there is one line in the log.
    ///
    /// Holds at most `limit` bytes: when it is full, the half goes that was not asked for the longest.
    pub fn open(path: PathBuf, limit: u64) -> Arc<Self> {
        let (notes, work) = mpsc::sync_channel(QUEUE);
        let (tell, state) = watch::channel(State::Opening);
        let run = move || writer::run(&path, limit, &work, &tell);
        let thread = std::thread::Builder::new().name("attributes".to_owned());
        if let Err(error) = thread.spawn(run) {
            // The ends of both channels went with it: nothing is found and nothing is kept.
            tracing::warn!(%error, "objects' attributes are not kept on this host");
        }
        Arc::new(Self {
            notes,
            state,
            begun: Instant::now(),
        })
    }

    /// The part of the cache that belongs to one bucket. `place` says all that tells the bucket from others: endpoint,
    /// name, and who asks. No part holds a NUL.
    pub fn of(self: &Arc<Self>, place: &[impl AsRef<[u8]>]) -> BucketAttributes {
        BucketAttributes {
            cache: Arc::clone(self),
            place: Place::of(place),
        }
    }

    /// Waits, but not longer than `limit`, until all that was handed over is in the file.
    pub async fn flush(&self, limit: Duration) {
        let (reply, written) = mpsc::sync_channel(1);
        let notes = self.notes.clone();
        let flush = tokio::task::spawn_blocking(move || {
            // A closed channel: there is no file, and nothing to wait for.
            if notes.send(Note::Flush(reply)).is_ok() {
                let _ = written.recv_timeout(limit);
            }
        });
        let _ = tokio::time::timeout(limit, flush).await;
    }

    /// Hands something over, unless too much waits already.
    fn note(&self, note: Note) {
        let _ = self.notes.try_send(note);
    }

    /// The file, once it is open; `None` if there is none to be had.
    async fn file(&self) -> Option<Arc<CacheFile>> {
        let mut state = self.state.clone();
        let opened = state.wait_for(|state| !matches!(state, State::Opening));
        let wait = OPEN_WAIT.saturating_sub(self.begun.elapsed());
        match &*tokio::time::timeout(wait, opened).await.ok()?.ok()? {
            State::Open(file) => Some(Arc::clone(file)),
            State::Opening | State::Without => None,
        }
    }
}

/// What is known of one bucket's objects.
#[derive(Debug, Clone)]
pub struct BucketAttributes {
    cache: Arc<AttributeCache>,
    place: Place,
}

impl BucketAttributes {
    /// Keeps what a HEAD has said of the object at `key`, if that will hold.
    pub(super) fn learn(&self, key: &Key, object: &Object) {
        let Some(entry) = Entry::of(object) else {
            return;
        };
        let (key, value) = (self.place.key(key), entry.encode());
        if key.len() + value.len() <= ENTRY_MAX {
            self.cache.note(Note::Put { key, value });
        }
    }

    /// Adds to what a listing says of objects what is known of them. Their time becomes the one that the HEAD said,
    /// which may be the coarser one: what is shown of a file is the same whoever tells.
    pub(super) async fn complete(&self, listed: &mut [ListEntry]) {
        let objects = listed.iter().filter_map(|entry| match entry {
            ListEntry::Object { key, metadata, .. } if metadata.is_none() => Some(key),
            _ => None,
        });
        let keys: Vec<Vec<u8>> = objects.map(|key| self.place.key(key)).collect();
        if keys.is_empty() {
            return;
        }
        let Some(file) = self.cache.file().await else {
            return;
        };
        let read = tokio::task::spawn_blocking(move || file.read(keys)).await;
        let found = match read {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return self.cache.note(Note::Broken(error)),
            Err(panic) => return self.cache.note(Note::Broken(panic.into())),
        };
        let mut found = found.into_iter();
        for listed in listed {
            let ListEntry::Object {
                version,
                size,
                modified,
                metadata: metadata @ None,
                ..
            } = listed
            else {
                continue;
            };
            let Some(Some(found)) = found.next() else {
                continue;
            };
            let entry = Entry::decode(&found.value)
                .filter(|entry| entry.is_about(version, *size, *modified));
            if let Some(entry) = entry {
                *modified = entry.modified;
                *metadata = Some(entry.metadata);
                if found.is_old {
                    let (key, value) = (found.key, found.value);
                    self.cache.note(Note::Put { key, value });
                }
            }
        }
    }
}
