//! What must survive: every change that is not in the bucket yet, written down before it is answered.
//!
//! - `record`: the format;
//! - `log`: the file, its checksums and its torn tail;
//! - `reserve`: room for records on a disk that is full;
//! - `replay` (pure): what the records come to;
//! - `history` (pure): what a file was before bytes that the disk does not have were written.
//!
//! An append survives a crash of the process; [`Journal::sync`] makes all earlier ones survive a crash of the
//! host. Lock order: the tree's, an inode's, the journal's.

use std::collections::{BTreeMap, HashMap};
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::log::{LogError, LogFile};
use self::record::{Multipart, Record};
use self::replay::Replay;
use crate::fs::blocking::blocking;
use crate::fs::format::{Format, Formats};
use crate::fs::lock::{JOURNAL, Ordered};
use crate::fs::request::{RecentRequests, RequestId};
use crate::store::{Key, UploadId};

mod history;
pub(crate) mod log;
pub(crate) mod record;
pub(crate) mod replay;
mod reserve;

/// The directory of the staging files, and the file whose lock keeps other processes out.
const FILES: &str = "files";
const LOCK: &str = "lock";

/// A log is written anew when it is this long and several times as long as it was when it was new.
const REWRITE_BYTES: u64 = 8 << 20;

/// Requests that one record names: it stays far below the longest that the journal takes.
const REQUESTS_PER_RECORD: usize = 1024;

/// How many times as long.
const REWRITE_GROWTH: u64 = 4;

/// Why a log stays that was to be written anew.
const NO_SUCCESSOR: &str = "the new log could not take a record";

/// The journal of one volume.
#[derive(Debug)]
pub(crate) struct Journal {
    directory: PathBuf,
    inner: Ordered<Inner, JOURNAL>,
    /// One fdatasync at a time: who waits for it finds that it has done its own work too.
    syncing: tokio::sync::Mutex<()>,
    /// One at a time trims it.
    trimming: tokio::sync::Mutex<()>,
    /// Keeps every other process out.
    _lock: File,
}

#[derive(Debug)]
struct Inner {
    /// Of every new log.
    format: Format,
    log: LogFile,
    /// The log that is to replace it, while it is written: it takes every record as well.
    successor: Option<LogFile>,
    /// Bytes of the log when it was new.
    first_len: u64,
    /// Tree places that the log has.
    placed: HashMap<u64, (u64, Arc<str>)>,
    /// Multipart uploads that were begun and have not ended.
    multiparts: BTreeMap<UploadId, Key>,
    /// The requests that were done last, by this process and those before.
    requests: RecentRequests,
    /// Records appended, and how many of them are on the disk.
    appended: u64,
    synced: u64,
    /// After a crash of the host the directory may still have the log before: nothing counts as synced until it is
    /// synced itself.
    is_moving: bool,
}

/// What an earlier process left behind.
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) replay: Replay,
    /// The host was started anew since.
    pub(crate) other_boot: bool,
}

impl Journal {
    /// Takes hold of the journal below `directory`, which is made if it is not there. It goes on where the process
    /// before has ended: that needs no room on the disk.
    pub(crate) fn open(directory: &Path, formats: Formats) -> Result<(Self, Left), LogError> {
        let io = LogError::io(directory);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(&io)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(directory.join(LOCK))
            .map_err(&io)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => LogError::InUse {
                path: directory.to_path_buf(),
            },
            TryLockError::Error(cause) => io(cause),
        })?;
        let mut left = Left {
            replay: Replay::default(),
            other_boot: false,
        };
        let path = current(directory);
        let log = if let Some(journaled) = log::read(&path, formats)? {
            let log = LogFile::reopen(&path, &journaled)?;
            left.other_boot = journaled.other_boot;
            for (request, record) in journaled.records {
                let written = record.written();
                left.replay.apply(record);
                if let Some(request) = request {
                    left.replay.requests.push(request, written);
                }
            }
            log
        } else {
            let mut log = LogFile::create(&successor(directory), formats.written())?;
            log.file().sync_all().map_err(&io)?;
            log.synced(log.end());
            std::fs::rename(successor(directory), &path).map_err(&io)?;
            sync_directory(directory).map_err(&io)?;
            log
        };
        // Who left a later format was trusted with it: to go back would lose what only that can say.
        let format = formats.written().max(log.format());
        let mut inner = Inner::new(log, format);
        // What earlier processes said may be anything: the next rewrite is due as if it were nothing.
        inner.first_len = 0;
        inner.multiparts.clone_from(&left.replay.multiparts);
        inner.requests.clone_from(&left.replay.requests);
        let places = left.replay.places.iter();
        let places = places.map(|(ino, place)| (*ino, (place.parent, Arc::from(&*place.name))));
        inner.placed = places.collect();
        if let Err(error) = inner.log.replenish() {
            tracing::warn!(journal = %directory.display(), %error, "no room to keep back for removals");
        }
        let journal = Self {
            inner: Ordered::new(inner),
            directory: directory.to_path_buf(),
            syncing: tokio::sync::Mutex::default(),
            trimming: tokio::sync::Mutex::default(),
            _lock: lock,
        };
        Ok((journal, left))
    }

    /// The log is of this format from now on.
    pub(crate) fn set_format(&self, format: Format) -> io::Result<()> {
        let mut inner = self.inner.lock();
        inner.format = format;
        if let Some(successor) = &mut inner.successor {
            successor.set_format(format)?;
        }
        inner.log.set_format(format)
    }

    /// Whether nothing was ever written down.
    pub(crate) fn is_empty(&self) -> bool {
        self.inner.lock().log.is_empty()
    }

    /// What a crash of the host took of what was left is written down: of the next process's other boots this is none.
    pub(crate) fn note_boot(&self) -> io::Result<()> {
        let mut inner = self.inner.lock();
        inner.log.file().sync_data()?;
        let end = inner.log.end();
        inner.log.synced(end);
        inner.synced = inner.appended;
        inner.log.set_boot()
    }

    /// What a record that is appended now has to be said in: the log may have been left in another format than it will
    /// be written anew in.
    pub(crate) fn format(&self) -> Format {
        let inner = self.inner.lock();
        inner.format.min(inner.log.format())
    }

    /// Refuses what can wait when the disk is full: the room that is left is for what makes room, removals and the
    /// ends of uploads. The error says which disk.
    pub(crate) fn check_room(&self) -> io::Result<()> {
        self.inner.lock().log.replenish().map_err(|error| {
            let shown = self.directory.display();
            let text = format!(
                "{shown}: {error}; what room its journal has is kept for removals and uploads: make room on that disk"
            );
            io::Error::new(error.kind(), text)
        })
    }

    /// Writes down what nobody asked for, or what is not yet all that somebody asked for.
    pub(crate) fn append(&self, record: &Record) -> io::Result<()> {
        self.inner.lock().append((None, record))
    }

    /// Writes down anew, for [`Journal::rewrite`], what the log has already. The log itself does not get it: a process
    /// that ends between two records of one inode would have taken back what the log says of it.
    pub(crate) fn restate(&self, record: &Record) {
        self.inner.lock().append_to_successor((None, record));
    }

    /// Writes down the last of what the kernel's current request asks: if the request comes again to the next process,
    /// it was done.
    pub(crate) fn complete(&self, record: &Record) -> io::Result<()> {
        let request = RequestId::current();
        let mut inner = self.inner.lock();
        inner.append((request, record))?;
        if let Some(request) = request {
            inner.requests.push(request, record.written());
        }
        Ok(())
    }

    /// Writes down that a multipart upload was begun. It is of use until [`Journal::end_multipart`], whatever becomes
    /// of the log.
    pub(crate) fn begin_multipart(&self, begun: Multipart) -> io::Result<()> {
        let mut inner = self.inner.lock();
        inner.append((None, &Record::MultipartBegun(begun.clone())))?;
        inner.multiparts.insert(begun.upload, begun.key);
        Ok(())
    }

    /// Writes down that nothing is left of a multipart upload but its object. Should that fail, the next process
    /// aborts it once more, which the store takes for done.
    pub(crate) fn end_multipart(&self, upload: &UploadId) -> io::Result<()> {
        let mut inner = self.inner.lock();
        inner.multiparts.remove(upload);
        inner.append((None, &Record::MultipartEnded(upload.clone())))
    }

    /// Writes an inode's tree place down, if that is news. `stored` is the name as the next process is to be told of it.
    pub(crate) fn place(
        &self,
        ino: u64,
        parent: u64,
        (name, stored): (&Arc<str>, &str),
        is_directory: bool,
    ) -> io::Result<()> {
        let mut inner = self.inner.lock();
        if inner
            .placed
            .get(&ino)
            .is_some_and(|(p, n)| *p == parent && n == name)
        {
            return Ok(());
        }
        let placed = Record::Placed {
            ino,
            parent,
            name: stored.to_owned(),
            is_directory,
        };
        inner.append((None, &placed))?;
        inner.placed.insert(ino, (parent, Arc::clone(name)));
        Ok(())
    }

    /// A record has told of an inode's new tree place.
    pub(crate) fn note_place(&self, ino: u64, parent: u64, name: &Arc<str>) {
        let mut inner = self.inner.lock();
        inner.placed.insert(ino, (parent, Arc::clone(name)));
    }

    /// All that was appended before the call is on the disk when this returns.
    pub(crate) async fn sync(&self) -> io::Result<()> {
        let target = self.inner.lock().appended;
        let _turn = self.syncing.lock().await;
        self.sync_in_turn(target).await
    }

    /// Likewise of the first `target` records, by who has the turn.
    async fn sync_in_turn(&self, target: u64) -> io::Result<()> {
        let (file, end, appended, is_moving) = {
            let inner = self.inner.lock();
            if inner.synced >= target && !inner.is_moving {
                return Ok(());
            }
            let file = inner.log.file();
            (file, inner.log.end(), inner.appended, inner.is_moving)
        };
        let directory = is_moving.then(|| self.directory.clone());
        blocking(move || {
            file.sync_data()?;
            directory.as_deref().map_or(Ok(()), sync_directory)
        })
        .await?;
        let mut inner = self.inner.lock();
        inner.synced = appended;
        inner.log.synced(end);
        inner.is_moving = false;
        Ok(())
    }

    /// Bytes of the log, and how many of them are known to be on the disk.
    pub(crate) fn bytes_and_synced(&self) -> (u64, u64) {
        let inner = self.inner.lock();
        (inner.log.end(), inner.log.synced_end())
    }

    /// If most of the log is about what is long settled, and nobody is about to write it anew: the turn to do so.
    pub(crate) fn begin_trim(&self) -> Option<impl Drop + '_> {
        let turn = self.trimming.try_lock().ok()?;
        let inner = self.inner.lock();
        let is_overgrown = inner.log.end() > REWRITE_BYTES.max(inner.first_len * REWRITE_GROWTH);
        is_overgrown.then_some(turn)
    }

    /// Nothing is in it and nothing will be: the directory goes, if nothing else is in it.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let _inner = self.inner.lock();
        std::fs::remove_file(current(&self.directory))?;
        std::fs::remove_dir(self.directory.join(FILES))?;
        std::fs::remove_file(self.directory.join(LOCK))?;
        std::fs::remove_dir(&self.directory)
    }

    /// Where staging files are, beside the log.
    pub(crate) fn files(&self) -> PathBuf {
        self.directory.join(FILES)
    }

    /// Begins a new log. From now on records go to both, so that `snapshot`, which is to [`restate`](Self::restate)
    /// all that is still of use, can go through the inodes one by one: what is said of an inode before its snapshot,
    /// the snapshot replaces. Then the new log takes the old one's place.
    ///
    /// If that fails, for want of room for one, the old log stays, and is as good.
    pub(crate) async fn rewrite(
        &self,
        snapshot: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> Result<(), LogError> {
        let written = self.write_successor(snapshot).await;
        if written.is_err() {
            self.inner.lock().successor = None;
            // What it takes of a full disk is needed elsewhere.
            let _ = std::fs::remove_file(successor(&self.directory));
        }
        written
    }

    async fn write_successor(
        &self,
        snapshot: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> Result<(), LogError> {
        let io = LogError::io(&self.directory);
        let _turn = self.syncing.lock().await;
        let format = self.inner.lock().format;
        let mut new = LogFile::create(&successor(&self.directory), format)?;
        {
            // Without a reserve of its own it is no better than the one that is long.
            let mut inner = self.inner.lock();
            new.replenish().map_err(&io)?;
            for (upload, key) in &inner.multiparts {
                let (key, upload) = (key.clone(), upload.clone());
                let begun = Record::MultipartBegun(Multipart { key, upload });
                new.append((None, &begun)).map_err(&io)?;
            }
            for requests in inner.requests.to_vec().chunks(REQUESTS_PER_RECORD) {
                let done = Record::Done(requests.to_vec());
                new.append((None, &done)).map_err(&io)?;
            }
            inner.placed.clear();
            inner.successor = Some(new);
        }
        blocking(snapshot).await.map_err(&io)?;
        // Nobody who appends waits for the disk: all but the last of it is synced by now when it takes its place, and
        // of that nobody was told that it is.
        let written = {
            let inner = self.inner.lock();
            inner.successor.as_ref().map(|log| (log.file(), log.end()))
        };
        let Some((file, synced_end)) = written else {
            return Err(io(io::Error::other(NO_SUCCESSOR)));
        };
        blocking(move || file.sync_all()).await.map_err(&io)?;
        let appended = {
            let mut inner = self.inner.lock();
            let Some(mut log) = inner.successor.take() else {
                return Err(io(io::Error::other(NO_SUCCESSOR)));
            };
            log.synced(synced_end);
            std::fs::rename(successor(&self.directory), current(&self.directory)).map_err(&io)?;
            inner.first_len = log.end();
            inner.log = log;
            inner.is_moving = true;
            inner.appended
        };
        self.sync_in_turn(appended).await.map_err(&io)
    }
}

impl Inner {
    fn new(log: LogFile, format: Format) -> Self {
        Self {
            format,
            first_len: log.end(),
            log,
            successor: None,
            placed: HashMap::new(),
            multiparts: BTreeMap::new(),
            requests: RecentRequests::default(),
            appended: 0,
            synced: 0,
            is_moving: false,
        }
    }

    fn append(&mut self, recorded: (Option<RequestId>, &Record)) -> io::Result<()> {
        self.log.append(recorded)?;
        self.append_to_successor(recorded);
        self.appended += 1;
        Ok(())
    }

    /// A successor that cannot take a record never becomes the log.
    fn append_to_successor(&mut self, recorded: (Option<RequestId>, &Record)) {
        if let Some(successor) = &mut self.successor
            && let Err(error) = successor.append(recorded)
        {
            tracing::debug!(%error, "the new log is given up");
            self.successor = None;
        }
    }
}

fn current(directory: &Path) -> PathBuf {
    directory.join("journal")
}

fn successor(directory: &Path) -> PathBuf {
    directory.join("journal.new")
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::fs::attr::{Attr, Caller};
    use crate::fs::inode::Unsent;
    use crate::fs::journal::record::ChangedInode;
    use crate::store::{FileKind, Metadata};

    fn changed(ino: u64) -> Record {
        let caller = Caller { uid: 0, gid: 0 };
        let now = std::time::SystemTime::UNIX_EPOCH;
        Record::Changed(Box::new(ChangedInode {
            ino,
            attr: Attr::new(FileKind::File, 0o644, caller, now),
            metadata: Metadata::default(),
            remote: None,
            overwrites: None,
            unsent: Unsent {
                content: true,
                ..Unsent::default()
            },
            base_len: None,
            attempt: None,
            directory: None,
        }))
    }

    fn opened(directory: &Path) -> (Arc<Journal>, Left) {
        let (journal, left) = Journal::open(directory, Formats::default()).unwrap();
        (Arc::new(journal), left)
    }

    #[tokio::test]
    async fn what_is_said_while_the_log_is_written_anew_is_in_the_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = opened(dir.path());
        for ino in 2..1000 {
            journal.append(&changed(ino)).unwrap();
            journal.append(&Record::Settled { ino }).unwrap();
        }
        for ino in [1000, 1001] {
            journal.append(&changed(ino)).unwrap();
        }
        let long = journal.inner.lock().log.end();
        let teller = Arc::clone(&journal);
        journal
            .rewrite(move || {
                // Said by another thread before and after this inode's turn comes.
                teller.append(&Record::Settled { ino: 1001 })?;
                teller.append(&changed(1000))?;
                teller.append(&changed(1002))
            })
            .await
            .unwrap();
        assert!(journal.inner.lock().log.end() < long / 100);
        journal.append(&changed(1003)).unwrap();
        journal.sync().await.unwrap();
        drop(journal);
        let (_, left) = Journal::open(dir.path(), Formats::default()).unwrap();
        let mut inos: Vec<u64> = left.replay.inodes.into_keys().collect();
        inos.sort_unstable();
        assert_eq!(inos, [1000, 1002, 1003]);
    }

    #[tokio::test]
    async fn a_process_that_ends_while_the_log_is_written_anew_leaves_it_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = opened(dir.path());
        journal.append(&changed(2)).unwrap();
        let path = current(dir.path());
        let before = std::fs::read(&path).unwrap();
        let meanwhile = Arc::default();
        let (teller, seen, read_from) =
            (Arc::clone(&journal), Arc::clone(&meanwhile), path.clone());
        journal
            .rewrite(move || {
                teller.restate(&changed(2));
                *std::sync::Mutex::lock(&seen).unwrap() = std::fs::read(read_from)?;
                Ok(())
            })
            .await
            .unwrap();
        assert_eq!(*std::sync::Mutex::lock(&meanwhile).unwrap(), before);
        drop(journal);
        let (_, left) = Journal::open(dir.path(), Formats::default()).unwrap();
        assert!(left.replay.inodes.contains_key(&2));
    }

    #[tokio::test]
    async fn a_multipart_upload_is_known_until_it_has_ended_however_often_the_log_is_written_anew()
    {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = opened(dir.path());
        let key = Key::new("k");
        for upload in ["open", "ended", "ended later"] {
            let (key, upload) = (key.clone(), UploadId(upload.to_owned()));
            journal.begin_multipart(Multipart { key, upload }).unwrap();
        }
        let end = |name: &str| journal.end_multipart(&UploadId(name.to_owned())).unwrap();
        end("ended");
        journal.rewrite(|| Ok(())).await.unwrap();
        end("ended later");
        journal.rewrite(|| Ok(())).await.unwrap();
        drop(journal);
        let (_, left) = Journal::open(dir.path(), Formats::default()).unwrap();
        let open = BTreeMap::from([(UploadId("open".to_owned()), key)]);
        assert_eq!(left.replay.multiparts, open);
    }

    #[test]
    fn a_journal_has_one_owner() {
        let dir = tempfile::tempdir().unwrap();
        let (_journal, _) = opened(dir.path());
        assert!(matches!(
            Journal::open(dir.path(), Formats::default()),
            Err(LogError::InUse { .. })
        ));
    }
}
