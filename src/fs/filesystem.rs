//! [`FileSystem`]: one volume as an async API, without a kernel.
//!
//! The operations are in `ops`, by family. This file holds what they share: the parts, how fresh truth is
//! told from stale, and what an answer to the kernel looks like.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::attr::{Attr, Caller};
use super::budget::StagingBudget;
use super::cache::{BlockCache, BlockPlace, ObjectSource};
use super::error::FsError;
use super::format::{Format, Formats};
use super::handles::Handles;
use super::inode::{Inode, Remote, UploadFailure};
use super::journal::Journal;
use super::kept::{Kept, LeftOpen};
use super::lock::{Ordered, TREE};
use super::lookahead::Lookaheads;
use super::name::{LongNames, Name, NameError};
use super::ops::space::Usage;
use super::refusal::RootWatch;
use super::request::{RecentRequests, RequestId};
use super::staging::Staging;
use super::tree::{Observed, ROOT, Tree};
use super::upload::multipart::Abandoned;
use super::upload::schedule::{Footprint, Turn, Turnstile};
use super::upload::uploader::Uploader;
use crate::clock::Clock;
use crate::config::options::{Options, Ownership, WriteOptions};
use crate::store::{Attributes, Bucket, FileKind, Key};

/// How long a name or attribute is believed when the user asserts that nobody else writes.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Dead bytes of one file's staging that are left until there are more: to give them back takes system calls, and some
/// milliseconds each on a disk that is told of it.
const STAGING_SLACK: u64 = 16 << 20;

/// The journal of a volume whose own cannot be read, below that one's directory.
const JOURNAL_OF_A_READER: &str = "reader";

/// Where the root's attributes are kept in a bucket used whole: it has no marker of its own.
const ROOT_ATTRIBUTES: &str = ".bucketvol/root";

/// How a volume behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What an object that carries no attributes looks like.
    pub ownership: Ownership,
    /// No change is accepted.
    pub read_only: bool,
    /// How long a remote name or attribute is believed.
    pub metadata_ttl: Duration,
    /// Bytes that all files may have together.
    pub size: Option<u64>,
    /// Whether the kernel is told of extended attributes; `None`: if it does not ask for one before every write then.
    pub xattr: Option<bool>,
    /// What waits for the bucket, and when changes leave for it.
    pub write: WriteOptions,
    /// How long a flush or fsync waits for the store.
    pub fsync_timeout: Duration,
    /// Bytes of an upload's part, at least.
    pub part_size: u64,
    /// Requests of this volume in flight at once.
    pub concurrency: usize,
    /// The volume's own directory on this host: its journal and what waits to be uploaded.
    pub staging_dir: PathBuf,
    /// How much of the host's disk may hold what waits to be uploaded.
    pub staging: Arc<StagingBudget>,
    /// Bytes of a file's staging that nobody needs any more before they are given back to the disk.
    pub staging_slack: u64,
    /// The daemon's block cache.
    pub cache: Arc<BlockCache>,
    /// What a later process finds the volume's blocks under on this host's disk; `None`: nothing of them is kept there.
    pub place: Option<BlockPlace>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The formats of what is left to the next process.
    pub formats: Formats,
}

impl Settings {
    /// The settings that a volume's options say.
    pub fn from_options(
        options: &Options,
        staging_dir: PathBuf,
        staging: Arc<StagingBudget>,
        cache: Arc<BlockCache>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            ownership: options.ownership,
            read_only: options.read_only,
            metadata_ttl: options.metadata_ttl.unwrap_or(FOREVER),
            size: options.size,
            xattr: options.xattr,
            write: options.write,
            fsync_timeout: options.fsync_timeout,
            part_size: options.transfer.part_size,
            concurrency: options.transfer.concurrency,
            staging_dir,
            staging,
            staging_slack: STAGING_SLACK,
            cache,
            place: None,
            clock,
            formats: Formats::default(),
        }
    }
}

/// One volume.
#[derive(Debug)]
pub struct FileSystem {
    /// For what goes on beside the request that has begun it.
    pub(crate) this: Weak<Self>,
    pub(crate) bucket: Arc<Bucket>,
    pub(crate) settings: Settings,
    pub(crate) tree: Ordered<Tree, TREE>,
    /// What is asked ahead of lookups.
    pub(crate) lookaheads: Lookaheads,
    /// How many attributes of directories' entries may be asked for at once.
    pub(crate) attributes_in_flight: Arc<Semaphore>,
    pub(crate) handles: Handles,
    pub(crate) staging: Staging,
    pub(crate) journal: Journal,
    /// What the kernel knows, for a process that takes over.
    pub(crate) kept: Arc<Kept>,
    /// Where requests to the store run that a FUSE thread begins.
    pub(crate) runtime: Handle,
    /// Kernels' connections there have been. More than one (two volumes of one place) is more than one page
    /// cache, and none of them hears of the others' writes.
    connections: AtomicU32,
    /// Orders changes of the bucket that touch a common key.
    pub(crate) turnstile: Arc<Turnstile>,
    pub(crate) uploader: Arc<Uploader>,
    /// Multipart uploads that came to nothing.
    pub(crate) abandoned: Abandoned,
    /// What its files come to.
    pub(crate) usage: Arc<Usage>,
    pub(crate) last_error: Mutex<Option<String>>,
    pub(crate) root_watch: RootWatch,
    /// What earlier processes had done by then, as the journal says.
    earlier_requests: Mutex<RecentRequests>,
}

/// A name's answer to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The inode's number.
    pub ino: u64,
    /// Its attributes.
    pub attr: Attr,
    /// How long the kernel may believe both.
    pub ttl: Duration,
}

/// See [`FileSystem::hide`].
#[derive(Debug)]
pub(crate) struct Hidden<'a> {
    fs: &'a FileSystem,
    key: Key,
}

impl Drop for Hidden<'_> {
    fn drop(&mut self) {
        let now = self.fs.now();
        self.fs.tree.lock().show(&self.key, now);
    }
}

impl FileSystem {
    /// Opens a volume: one request, for the root's attributes. What an earlier process could not bring into the
    /// bucket is taken up. If that cannot be read the volume is read-only, and
    /// [`Status::last_error`](super::Status::last_error) says why.
    pub async fn open(bucket: Arc<Bucket>, settings: Settings) -> Result<Arc<Self>, FsError> {
        let kept = Kept::new(settings.formats.written())?;
        Self::open_with(bucket, settings, kept, None).await
    }

    /// Goes on where a process has ended that the kernel still takes for the one that serves the volume. `memory` is
    /// what [`FileSystem::kept`] was there: inodes keep their numbers, and what was open stays so.
    pub async fn resume(
        bucket: Arc<Bucket>,
        settings: Settings,
        memory: OwnedFd,
    ) -> Result<Arc<Self>, FsError> {
        let (kept, left) = Kept::reopen(memory, settings.formats)?;
        Self::open_with(bucket, settings, kept, Some(left)).await
    }

    /// Leaves what it leaves in this format from now on.
    pub fn set_format(&self, format: Format) -> io::Result<()> {
        self.kept.set_format(format)?;
        self.journal.set_format(format)?;
        self.record_links()
    }

    /// What a later process needs in order to take over: memory, to be kept for it from now on.
    pub fn kept(&self) -> BorrowedFd<'_> {
        self.kept.as_fd()
    }

    async fn open_with(
        bucket: Arc<Bucket>,
        mut settings: Settings,
        kept: Kept,
        left_open: Option<LeftOpen>,
    ) -> Result<Arc<Self>, FsError> {
        let mut unreadable = None;
        let formats = settings.formats;
        let (journal, left) = match Journal::open(&settings.staging_dir, formats) {
            Err(error) if error.is_unreadable() => {
                let error = format!("the volume is read-only: {error}");
                tracing::error!(bucket = %bucket.location(), "{error}");
                unreadable = Some(error);
                settings.read_only = true;
                // Nothing will be written down, and what cannot be read stays for somebody who can.
                Journal::open(&settings.staging_dir.join(JOURNAL_OF_A_READER), formats)
            }
            opened => opened,
        }
        .map_err(io::Error::other)?;
        let staging = Staging::open(journal.files(), Arc::clone(&settings.staging))?;
        let now = settings.clock.wall();
        let ownership = settings.ownership;
        let caller = Caller {
            uid: ownership.uid,
            gid: ownership.gid,
        };
        let root = Attr::new(FileKind::Directory, ownership.dir_mode, caller, now);
        let kept = Arc::new(kept);
        let fs = Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            bucket,
            tree: Ordered::new(Tree::new(
                root,
                ownership,
                Arc::clone(&kept),
                settings.cache.idle_names(),
            )),
            kept,
            lookaheads: Lookaheads::default(),
            attributes_in_flight: Arc::new(Semaphore::new(settings.concurrency)),
            handles: Handles::default(),
            staging,
            journal,
            runtime: Handle::current(),
            connections: AtomicU32::new(0),
            turnstile: Arc::default(),
            uploader: Arc::new(Uploader::new(
                settings.write.upload_delay,
                settings.write.max_dirty_age,
            )),
            abandoned: Abandoned::default(),
            usage: Arc::new(Usage::new(settings.size)),
            last_error: Mutex::new(unreadable),
            root_watch: RootWatch::default(),
            earlier_requests: Mutex::default(),
            settings,
        });
        let knows_root = left_open.as_ref().is_some_and(LeftOpen::has_root);
        if !knows_root {
            fs.read_root().await?;
        }
        *fs.earlier_requests.lock() = left.replay.requests.clone();
        let changed = fs.restore(left, left_open.unwrap_or_default()).await?;
        let now = fs.now();
        fs.uploader.tell(|queue| {
            for ino in changed {
                queue.urgent(ino, now);
            }
        });
        fs.start_uploader();
        fs.start_counter();
        Ok(fs)
    }

    async fn read_root(&self) -> Result<(), FsError> {
        let key = self.marker_key(&Key::root());
        let root = self.inode(ROOT)?;
        let Some(marker) = self.bucket.head(&key).await? else {
            self.keep_open(ROOT, &root.state.lock());
            return Ok(());
        };
        let said = Attributes::from_metadata(&marker.metadata);
        let mut state = root.state.lock();
        state.attr = Attr::of_object(
            FileKind::Directory,
            0,
            marker.modified,
            &said,
            &self.settings.ownership,
        );
        state.metadata = marker.metadata;
        state.remote = Some(Remote {
            key,
            size: marker.size,
            version: marker.version,
            modified: Some(marker.modified),
            content: self.settings.cache.new_content(),
        });
        self.keep_open(ROOT, &state);
        Ok(())
    }

    /// A kernel connects.
    pub(crate) fn connect(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether several kernels' connections change the volume, or did: then each has to ask again.
    pub(crate) fn is_shared(&self) -> bool {
        self.connections.load(Ordering::Relaxed) > 1
    }

    /// See [`Settings::xattr`].
    pub(crate) fn xattr(&self) -> Option<bool> {
        self.settings.xattr
    }

    /// How long a kernel may believe what it is told.
    pub(crate) fn kernel_ttl(&self) -> Duration {
        if self.is_shared() {
            Duration::ZERO
        } else {
            self.settings.metadata_ttl
        }
    }

    /// The volume's clock.
    pub(crate) fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.settings.clock)
    }

    /// The kernel is told of an inode otherwise than by an entry; `false` if there is none.
    pub(crate) fn remember(&self, ino: u64) -> bool {
        self.remember_times(ino, 1)
    }

    /// The kernel was told of an inode so many times.
    pub(crate) fn remember_times(&self, ino: u64, times: u64) -> bool {
        self.tree.lock().remember_times(ino, times)
    }

    /// The bucket behind it.
    pub fn bucket(&self) -> &Arc<Bucket> {
        &self.bucket
    }

    /// Nobody uses the volume any more: nothing is sent from now on. What is not in the bucket is named in the
    /// log and stays in the journal; whoever opens the volume next goes on with it.
    pub fn close(&self) {
        self.uploader.stop();
        self.usage.stop();
        if self.has_pending() {
            let status = self.status();
            tracing::warn!(
                bucket = %self.bucket.location(),
                changes = status.pending_changes,
                bytes = status.dirty_bytes,
                "closed with changes that are not in the bucket yet: they wait in {}",
                self.settings.staging_dir.display(),
            );
            return;
        }
        self.staging.remove_retired(&self.staging.retired());
        if let Err(error) = self.journal.remove() {
            tracing::warn!(bucket = %self.bucket.location(), %error, "an empty journal stays");
        }
    }

    /// An upload failed. Whoever has the file open hears of it, once.
    pub(crate) fn note_upload_error(&self, inode: &Inode, error: &FsError) {
        let key = self.tree.lock().final_key(inode.ino);
        let key = key.unwrap_or_else(Key::root);
        self.note_error(&format!("upload of {:?}", key.as_str()), error);
        if !error.is_transient() {
            let mut state = inode.state.lock();
            let count = state.failure.as_ref().map_or(0, |failure| failure.count) + 1;
            let error = error.clone();
            state.failure = Some(Box::new(UploadFailure { count, error }));
        }
    }

    /// Keeps a failure for [`FileSystem::status`].
    pub(crate) fn note_error(&self, what: &str, error: &FsError) {
        tracing::warn!(bucket = %self.bucket.location(), "{what}: {error}");
        *self.last_error.lock() = Some(format!("{what}: {error}"));
    }

    /// The inode of this number.
    pub(crate) fn inode(&self, ino: u64) -> Result<Arc<Inode>, FsError> {
        self.tree.lock().inode(ino).ok_or(FsError::NoEntry)
    }

    /// What the name stands for, if it can be a key at all.
    pub(crate) fn parse_name(&self, name: &OsStr) -> Result<(Arc<str>, Name), FsError> {
        let text = std::str::from_utf8(name.as_bytes()).map_err(|_| NameError::NotAKey)?;
        let parsed = match Name::parse(name.as_bytes(), &LongNames::default()) {
            Err(NameError::UnknownHash) => self.tree.lock().parse(text),
            parsed => parsed,
        };
        Ok((Arc::from(text), parsed?))
    }

    /// Like [`FileSystem::parse_name`], for a name that something new is to have: the store has to take its key.
    pub(crate) fn parse_new_name(&self, parent: u64, name: &OsStr) -> Result<Arc<str>, FsError> {
        let (text, parsed) = self.parse_name(name)?;
        if parent == ROOT && &*text == super::tree::RESERVED {
            return Err(FsError::Reserved);
        }
        if parsed.beside_directory {
            return Err(NameError::NotAKey.into());
        }
        // A directory's is the longer one, and a file's name may once be a directory's.
        let key = self.tree.lock().child_key(parent, &text, true);
        if key.is_some_and(|key| !self.bucket.is_short_enough(&key)) {
            return Err(NameError::KeyTooLong.into());
        }
        Ok(text)
    }

    /// Refuses a change of a read-only volume.
    pub(crate) fn check_writable(&self) -> Result<(), FsError> {
        if self.settings.read_only {
            Err(FsError::ReadOnly)
        } else {
            Ok(())
        }
    }

    /// Intervals, for freshness.
    pub(crate) fn now(&self) -> Duration {
        self.settings.clock.monotonic()
    }

    /// The answer to the kernel about an inode whose attributes are known. The kernel is told of it once
    /// more: a forget will follow.
    pub(crate) fn entry(&self, inode: &Inode) -> Entry {
        self.tree.lock().remember(inode.ino);
        Entry {
            ino: inode.ino,
            attr: inode.state.lock().shown_attr(),
            ttl: self.kernel_ttl(),
        }
    }

    /// The object behind an inode, for reading; `None` if it was never uploaded.
    pub(crate) fn object_source(&self, remote: &Remote) -> ObjectSource {
        ObjectSource {
            bucket: Arc::clone(&self.bucket),
            key: remote.key.clone(),
            version: remote.version.clone(),
            size: remote.size,
            content: remote.content,
            place: self.settings.place,
        }
    }

    /// The key of a directory's marker.
    pub(crate) fn marker_key(&self, directory: &Key) -> Key {
        if directory.as_str().is_empty() && self.bucket.location().prefix.is_empty() {
            Key::new(ROOT_ATTRIBUTES)
        } else {
            directory.clone()
        }
    }

    /// Whether an earlier process has done what this request asks: the kernel sends it again because the answer never
    /// came.
    pub fn was_done(&self, request: RequestId) -> bool {
        self.earlier_requests.lock().contains(request)
    }

    /// How many bytes an earlier process has written for the request, if that is known.
    pub(crate) fn written_earlier(&self, request: RequestId) -> Option<u64> {
        self.earlier_requests.lock().written(request)
    }

    /// The key that an inode's name spells now.
    pub(crate) fn key_of(&self, ino: u64) -> Result<Key, FsError> {
        self.tree.lock().key_of(ino).ok_or(FsError::NoEntry)
    }

    /// Waits for the turn at the keys that `spell` names: spelled again when the turn has come, since a
    /// rename meanwhile moves names.
    pub(crate) async fn turn_at<K: PartialEq + Send>(
        &self,
        spell: impl Fn(&Tree) -> Result<K, FsError> + Send,
        footprint: impl Fn(&K) -> Footprint + Send,
    ) -> Result<(Turn, K), FsError> {
        loop {
            let keys = spell(&self.tree.lock())?;
            let turn = self.turnstile.enter(footprint(&keys)).await;
            if spell(&self.tree.lock())? == keys {
                return Ok((turn, keys));
            }
        }
    }

    /// While the guard lives, what the store has at `key` is not seen.
    pub(crate) fn hide(&self, key: &Key) -> Hidden<'_> {
        self.tree.lock().hide(key);
        Hidden {
            fs: self,
            key: key.clone(),
        }
    }

    /// Lays a store's answer under the tree. It was asked of the keys below `directory`: if the parent has
    /// another key by now, the answer is about something else ([`FsError::Stale`]).
    pub(crate) fn observe(
        &self,
        (parent, directory): (u64, &Key),
        name: &Arc<str>,
        observed: &Observed,
        asked: u64,
    ) -> Result<Option<Arc<Inode>>, FsError> {
        let now = self.now();
        let mut tree = self.tree.lock();
        if tree.key_of(parent).as_ref() != Some(directory) {
            return Err(FsError::Stale);
        }
        let found = tree.observe(parent, name, observed, asked, now, &self.settings.cache);
        self.settle_parted(&mut tree);
        Ok(found)
    }

    /// Takes note of an object we have just written.
    pub(crate) fn written(
        &self,
        key: Key,
        size: u64,
        version: crate::store::ObjectVersion,
    ) -> Remote {
        Remote {
            key,
            size,
            version,
            modified: None,
            content: self.settings.cache.new_content(),
        }
    }
}
