//! A [`FileSystem`] without a kernel, spoken to by paths.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bucketvol::clock::{Clock, ManualClock, SystemClock};
use bucketvol::config::credentials::CredentialProvider;
use bucketvol::config::options::{Durability, EndpointOptions, MinFree, Ownership, WriteOptions};
use bucketvol::config::{Location, Scheme};
use bucketvol::fs::{
    Allocation, Attr, BlockCache, Caller, DirEntry, FilePlace, FileSystem, Formats, FsError,
    IfExists, RenameMode, SetAttr, Settings, StagingBudget, XattrMode,
};
use bucketvol::store::{Bucket, FileKind, Key, ListEntry, ListRequest, Metadata, Precondition};
use bytes::Bytes;
use nix::sys::memfd::{MFdFlags, memfd_create};
use parking_lot::Mutex;
use tempfile::TempDir;

/// The root's inode number.
pub(crate) const ROOT: u64 = 1;

/// Parts as small as a store takes, so that multipart uploads are quick to make.
pub(crate) const PART: usize = 5 * 1024 * 1024;

/// Bytes that a volume of these tests may stage.
pub(crate) const STAGING_LIMIT: u64 = 256 * 1024 * 1024;

pub(crate) const TTL: Duration = Duration::from_secs(1);

/// How long a simulation waits for anything.
pub(crate) const NOBODY_GIVES_UP: Duration = Duration::from_secs(24 * 3600);

pub(crate) const CALLER: Caller = Caller {
    uid: 1000,
    gid: 100,
};

/// A directory of this host, in memory where it can be: what a simulation's disk has is decided by the test.
fn simulated_disk() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

/// A directory of this host as a bucket; it goes with the guard.
pub(crate) fn directory_bucket() -> (Bucket, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let location = Location {
        scheme: Scheme::File,
        bucket: directory.path().to_str().unwrap().to_owned(),
        prefix: String::new(),
    };
    let endpoint = EndpointOptions {
        url: None,
        region: None,
        path_style: true,
        tls_verify: true,
    };
    let credentials = Arc::new(CredentialProvider::fixed(None));
    let clock = SystemClock::shared();
    (
        Bucket::connect(&location, &endpoint, None, credentials, clock).unwrap(),
        directory,
    )
}

fn copy_dir(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&to).unwrap();
            copy_dir(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Magic and format of a journal; the boot id follows.
const BOOT_ID: usize = 8 + 4;

/// Bytes that each journal begins with.
pub(crate) const JOURNAL_HEADER: usize = BOOT_ID + 36;

/// The next process finds no place to write a journal anew, if there is one.
fn leave_no_room(left: &Path) {
    let in_the_way = left.join("staging/journal.new");
    let _ = std::fs::remove_dir(&in_the_way);
    if left.join("staging/journal").exists() {
        std::fs::create_dir(in_the_way).unwrap();
    }
}

/// The first `synced` bytes of a journal, as another boot's.
fn as_synced(journal: &[u8], synced: u64) -> Vec<u8> {
    let mut journal = journal[..usize::try_from(synced).unwrap()].to_vec();
    journal[BOOT_ID..JOURNAL_HEADER].fill(b'x');
    journal
}

/// What a host that goes down leaves of the bytes that were staged on it and that nobody has synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unsynced {
    /// Zeros.
    Lost,
    /// All of them.
    Kept,
    /// Some pages, by this seed.
    Some(u64),
}

/// A staging file as somebody was told that the disk has it.
#[derive(Debug, Clone)]
struct Synced {
    /// A file of the same name that was made since is another.
    file: u64,
    bytes: Vec<u8>,
}

/// Room for three names that nobody holds.
const LITTLE_MEMORY: u64 = 3 * 256 * 16;

/// Settings that each process of a volume has.
#[derive(Debug, Clone, Copy)]
struct Lasting {
    size: Option<u64>,
    formats: Formats,
    cache_memory: u64,
}

impl Lasting {
    fn of(settings: &Settings) -> Self {
        Self {
            size: settings.size,
            formats: settings.formats,
            cache_memory: settings.cache.memory(),
        }
    }

    fn set(self, settings: &mut Settings) {
        settings.size = self.size;
        settings.formats = self.formats;
        settings.cache = BlockCache::new(self.cache_memory);
    }
}

/// A volume, its bucket, and its clock, which stands still until it is turned.
#[derive(Debug)]
pub(crate) struct TestFs {
    fs: Arc<FileSystem>,
    pub(crate) bucket: Arc<Bucket>,
    pub(crate) clock: Arc<ManualClock>,
    write: WriteOptions,
    /// Its quota, and what the next process writes its journal in: those of the first one.
    lasting: Lasting,
    staging: TempDir,
    synced: Mutex<HashMap<u64, Synced>>,
    /// The time of a simulation, in place of `clock`.
    time: Option<Arc<dyn Clock>>,
}

impl Deref for TestFs {
    type Target = Arc<FileSystem>;

    fn deref(&self) -> &Self::Target {
        &self.fs
    }
}

impl TestFs {
    /// A volume on a memory store of its own.
    pub(crate) async fn memory() -> Self {
        Self::on(Arc::new(Bucket::memory())).await
    }

    /// A volume on `bucket` of which a closed file is in the bucket: what most tests look at.
    pub(crate) async fn on(bucket: Arc<Bucket>) -> Self {
        let write = WriteOptions {
            durability: Durability::Close,
            ..WriteOptions::default()
        };
        Self::with(bucket, write).await
    }

    /// A volume on `bucket` whose changes leave for it as `write` says.
    pub(crate) async fn with(bucket: Arc<Bucket>, write: WriteOptions) -> Self {
        Self::open_at(bucket, write, tempfile::tempdir().unwrap(), |_| {}).await
    }

    /// A volume on `bucket` with settings of its own.
    pub(crate) async fn tuned(bucket: Arc<Bucket>, tune: impl FnOnce(&mut Settings)) -> Self {
        let staging = tempfile::tempdir().unwrap();
        Self::open_at(bucket, WriteOptions::default(), staging, tune).await
    }

    /// Likewise, in so little memory that names which nobody holds are soon forgotten.
    pub(crate) async fn in_little_memory(bucket: Arc<Bucket>, write: WriteOptions) -> Self {
        Self::open_at(bucket, write, tempfile::tempdir().unwrap(), |settings| {
            settings.cache = BlockCache::new(LITTLE_MEMORY);
        })
        .await
    }

    /// A volume in a simulation's time, in which nobody gives up waiting.
    pub(crate) async fn simulated(
        bucket: Arc<Bucket>,
        write: WriteOptions,
        time: Arc<dyn Clock>,
    ) -> Self {
        Self::open_in(bucket, write, simulated_disk(), Some(time), None, |_| {}).await
    }

    /// The volume as the next process finds it when this one is killed here and now.
    pub(crate) async fn after_crash(&self) -> Self {
        let left = self.another_directory();
        copy_dir(self.staging.path(), left.path());
        let synced = self.synced_in(left.path());
        self.close();
        let next = self.open_next(left).await;
        next.has_taken_up(synced);
        next
    }

    /// This process goes on with what another, which was killed, has staged; of that the disk had `synced`.
    fn has_taken_up(&self, synced: HashMap<u64, Synced>) {
        let mut known = self.synced.lock();
        for (ino, synced) in synced {
            // What it has brought to the disk itself is more.
            known.entry(ino).or_insert(synced);
        }
    }

    /// What somebody was told that the disk has, as it is in a copy of the staging directory.
    fn synced_in(&self, left: &Path) -> HashMap<u64, Synced> {
        let inos: Vec<u64> = self.synced.lock().keys().copied().collect();
        let synced = inos.into_iter().filter_map(|ino| {
            let copy = left.join(format!("staging/files/{ino}"));
            let file = std::fs::metadata(copy).ok()?.ino();
            let bytes = self.synced_of(ino);
            Some((ino, Synced { file, bytes }))
        });
        synced.collect()
    }

    /// The volume as the process has it that takes over from this one, which is killed here and now: whoever has a
    /// file open notices nothing.
    pub(crate) async fn after_kill(&self) -> Self {
        self.after_kill_with(self.left_memory()).await
    }

    /// Likewise, with what it has last written into memory.
    pub(crate) async fn after_kill_with(&self, memory: OwnedFd) -> Self {
        let left = self.another_directory();
        copy_dir(self.staging.path(), left.path());
        let synced = self.synced_in(left.path());
        self.close();
        let (bucket, time) = (Arc::clone(&self.bucket), self.time.clone());
        let lasting = |settings: &mut Settings| self.lasting.set(settings);
        let next = Self::open_in(bucket, self.write, left, time, Some(memory), lasting).await;
        next.has_taken_up(synced);
        next
    }

    /// What the process that takes over finds in memory if this one is killed now.
    pub(crate) fn left_memory(&self) -> OwnedFd {
        let memory = File::from(self.kept().try_clone_to_owned().unwrap());
        let mut bytes = vec![0; usize::try_from(memory.metadata().unwrap().len()).unwrap()];
        memory.read_exact_at(&mut bytes, 0).unwrap();
        let left = memfd_create("left", MFdFlags::MFD_CLOEXEC).unwrap();
        File::from(left.try_clone().unwrap())
            .write_all_at(&bytes, 0)
            .unwrap();
        left
    }

    /// An open file of the process before.
    pub(crate) fn still_open(&self, file: &OpenFile) -> OpenFile {
        OpenFile {
            fs: Arc::clone(&self.fs),
            ino: file.ino,
            fh: file.fh,
        }
    }

    /// Likewise, on a disk that has no room for another journal: it goes on with the one there is.
    pub(crate) async fn after_crash_without_room(&self) -> Self {
        let left = self.another_directory();
        copy_dir(self.staging.path(), left.path());
        leave_no_room(left.path());
        self.close();
        self.open_next(left).await
    }

    /// The volume as the next process finds it when this one has brought all into the bucket and has ended.
    pub(crate) async fn remounted(&self) -> Self {
        self.drained().await;
        self.reopened().await
    }

    /// The volume as the next process finds it when this one has ended, whatever it has brought into the bucket.
    pub(crate) async fn reopened(&self) -> Self {
        self.close();
        let left = self.another_directory();
        copy_dir(self.staging.path(), left.path());
        self.open_next(left).await
    }

    /// The volume as the next process finds it when this one is killed and its journal has these bytes.
    pub(crate) async fn after_damage(&self, journal: &[u8]) -> Self {
        let left = self.another_directory();
        copy_dir(self.staging.path(), left.path());
        std::fs::write(left.path().join("staging/journal"), journal).unwrap();
        self.close();
        self.open_next(left).await
    }

    /// The volume as the next process finds it when the host goes down: of the journal the disk has what is known to
    /// be synced and no more.
    pub(crate) async fn after_host_crash(&self, unsynced: Unsynced) -> Self {
        self.after_host_crash_at(self.status().journal_synced_bytes, unsynced)
            .await
    }

    /// Likewise, when the disk has so many bytes of the journal.
    pub(crate) async fn after_host_crash_at(&self, journal_bytes: u64, unsynced: Unsynced) -> Self {
        let left = self.left_by_host_crash(journal_bytes, unsynced);
        self.after_host_crash_in(left).await
    }

    /// Likewise, on a disk that has no room for another journal.
    pub(crate) async fn after_host_crash_without_room(&self, unsynced: Unsynced) -> Self {
        let left = self.left_by_host_crash(self.status().journal_synced_bytes, unsynced);
        leave_no_room(left.path());
        self.after_host_crash_in(left).await
    }

    async fn after_host_crash_in(&self, left: TempDir) -> Self {
        let next = self.open_next(left).await;
        // What was found there is on the disk.
        next.sync_all();
        next
    }

    fn left_by_host_crash(&self, journal_bytes: u64, unsynced: Unsynced) -> TempDir {
        let left = self.another_directory();
        copy_dir(self.staging.path(), left.path());
        for file in std::fs::read_dir(self.staged_files()).unwrap() {
            let file = file.unwrap();
            let synced = file.file_name().to_str().and_then(|name| name.parse().ok());
            let synced = synced.map_or_else(Vec::new, |ino| self.synced_of(ino));
            let path = left.path().join("staging/files").join(file.file_name());
            let mut bytes = std::fs::read(&path).unwrap();
            unsynced.leave(&mut bytes, synced);
            std::fs::write(&path, bytes).unwrap();
        }
        self.close();
        let journal = left.path().join("staging/journal");
        let said = std::fs::read(&journal).unwrap();
        std::fs::write(&journal, as_synced(&said, journal_bytes)).unwrap();
        left
    }

    fn another_directory(&self) -> TempDir {
        if self.time.is_some() {
            simulated_disk()
        } else {
            tempfile::tempdir().unwrap()
        }
    }

    fn staged_files(&self) -> PathBuf {
        self.staging.path().join("staging/files")
    }

    /// Somebody was told that this host's disk has what was written to the inode.
    pub(crate) fn note_synced(&self, ino: u64) {
        let path = self.staged_files().join(ino.to_string());
        if let (Ok(bytes), Ok(about)) = (std::fs::read(&path), std::fs::metadata(&path)) {
            let file = about.ino();
            self.synced.lock().insert(ino, Synced { file, bytes });
        }
    }

    /// What somebody was told that the disk has of an inode's staging file.
    fn synced_of(&self, ino: u64) -> Vec<u8> {
        let about = std::fs::metadata(self.staged_files().join(ino.to_string()));
        let synced = self.synced.lock().get(&ino).cloned();
        synced
            .filter(|synced| about.is_ok_and(|about| about.ino() == synced.file))
            .map_or_else(Vec::new, |synced| synced.bytes)
    }

    async fn open_at(
        bucket: Arc<Bucket>,
        write: WriteOptions,
        staging: TempDir,
        tune: impl FnOnce(&mut Settings),
    ) -> Self {
        Self::open_in(bucket, write, staging, None, None, tune).await
    }

    /// The next process's.
    async fn open_next(&self, staging: TempDir) -> Self {
        let (bucket, time) = (Arc::clone(&self.bucket), self.time.clone());
        let lasting = |settings: &mut Settings| self.lasting.set(settings);
        Self::open_in(bucket, self.write, staging, time, None, lasting).await
    }

    async fn open_in(
        bucket: Arc<Bucket>,
        write: WriteOptions,
        staging: TempDir,
        time: Option<Arc<dyn Clock>>,
        memory: Option<OwnedFd>,
        tune: impl FnOnce(&mut Settings),
    ) -> Self {
        let clock = ManualClock::shared();
        let shared: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
        let mut settings = Settings {
            ownership: Ownership {
                uid: 0,
                gid: 0,
                file_mode: 0o644,
                dir_mode: 0o755,
            },
            read_only: false,
            metadata_ttl: TTL,
            size: None,
            xattr: Some(true),
            write,
            fsync_timeout: Duration::from_secs(20),
            part_size: PART as u64,
            concurrency: 16,
            staging_dir: staging.path().join("staging"),
            staging: StagingBudget::new(STAGING_LIMIT, MinFree::Bytes(0)),
            // Nothing that can be given back stays: what is still needed would be missed soon.
            staging_slack: 0,
            cache: BlockCache::new(64 * 1024 * 1024),
            place: None,
            clock: shared,
            formats: Formats::default(),
        };
        if let Some(time) = &time {
            settings.clock = Arc::clone(time);
            settings.fsync_timeout = NOBODY_GIVES_UP;
        }
        tune(&mut settings);
        let lasting = Lasting::of(&settings);
        let fs = match memory {
            Some(memory) => FileSystem::resume(Arc::clone(&bucket), settings, memory).await,
            None => FileSystem::open(Arc::clone(&bucket), settings).await,
        };
        let fs = fs.unwrap();
        let opened = Self {
            fs,
            bucket,
            clock,
            write,
            lasting,
            staging,
            synced: Mutex::default(),
            time,
        };
        // What is taken up is on the disk before the new journal is: it tells of all of it in one record.
        if write.durability == Durability::Local {
            opened.sync_all();
        }
        opened
    }

    fn sync_all(&self) {
        for file in std::fs::read_dir(self.staged_files()).unwrap() {
            let ino = file.unwrap().file_name();
            if let Some(ino) = ino.to_str().and_then(|name| name.parse().ok()) {
                self.note_synced(ino);
            }
        }
    }

    /// Another volume on the same bucket, as another host has it.
    pub(crate) async fn other_host(&self) -> Self {
        Self::on(Arc::clone(&self.bucket)).await
    }

    /// What its journal says.
    pub(crate) fn journal(&self) -> Vec<u8> {
        std::fs::read(self.staging.path().join("staging/journal")).unwrap()
    }

    /// Bytes of its journal.
    pub(crate) fn journal_bytes(&self) -> u64 {
        self.status().journal_bytes
    }

    /// Bytes that its staging files take of the disk.
    pub(crate) fn staged_bytes(&self) -> u64 {
        let files = std::fs::read_dir(self.staged_files()).unwrap();
        files
            .map(|file| file.unwrap().metadata().unwrap().blocks() * 512)
            .sum()
    }

    /// All that was changed is in the bucket.
    pub(crate) async fn drained(&self) {
        self.drain(Duration::from_secs(20)).await.unwrap();
    }

    /// Waits, within reason, until `holds`.
    pub(crate) async fn eventually(&self, holds: impl AsyncFn() -> bool) {
        for _ in 0..1000 {
            if holds().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it never came to be");
    }

    /// Lets so many seconds pass on every clock: the runtime's has to be paused.
    pub(crate) async fn pass(&self, seconds: u32) {
        for _ in 0..seconds {
            self.clock.advance(Duration::from_secs(1));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Lets time pass, within reason, until all is in the bucket with nobody's help.
    pub(crate) async fn settled(&self) {
        for _ in 0..1000 {
            if !self.has_pending() {
                return;
            }
            self.pass(1).await;
        }
        panic!("it is still pending: {:?}", self.status().pending);
    }

    /// Lets all that is believed of the bucket be doubted.
    pub(crate) fn let_ttl_pass(&self) {
        self.clock.advance(TTL * 2);
    }

    pub(crate) async fn ino(&self, path: &str) -> Result<u64, FsError> {
        let mut ino = ROOT;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            ino = self.fs.lookup(ino, OsStr::new(name)).await?.ino;
        }
        Ok(ino)
    }

    async fn parent<'a>(&self, path: &'a str) -> Result<(u64, &'a OsStr), FsError> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.ino(parent).await?, OsStr::new(name)))
    }

    pub(crate) async fn attr(&self, path: &str) -> Result<Attr, FsError> {
        let ino = self.ino(path).await?;
        Ok(self.fs.getattr(ino).await?.0)
    }

    pub(crate) async fn setattr(&self, path: &str, change: SetAttr) -> Result<Attr, FsError> {
        let ino = self.ino(path).await?;
        Ok(self.fs.setattr(ino, change).await?.0)
    }

    pub(crate) async fn setxattr(
        &self,
        path: &str,
        name: &str,
        value: &[u8],
    ) -> Result<(), FsError> {
        let ino = self.ino(path).await?;
        self.setxattr_as(ino, OsStr::new(name), value, XattrMode::Set)
            .await
    }

    pub(crate) async fn setxattr_as(
        &self,
        ino: u64,
        name: &OsStr,
        value: &[u8],
        mode: XattrMode,
    ) -> Result<(), FsError> {
        self.fs.setxattr(ino, name, value, mode).await
    }

    pub(crate) async fn removexattr(&self, path: &str, name: &str) -> Result<(), FsError> {
        let ino = self.ino(path).await?;
        self.fs.removexattr(ino, OsStr::new(name)).await
    }

    /// Every extended attribute, by its name.
    pub(crate) async fn xattrs(&self, path: &str) -> Result<BTreeMap<String, Vec<u8>>, FsError> {
        let ino = self.ino(path).await?;
        let mut xattrs = BTreeMap::new();
        for name in self.fs.listxattr(ino).await? {
            let value = self.fs.getxattr(ino, &name).await?;
            xattrs.insert(name.into_string().unwrap(), value);
        }
        Ok(xattrs)
    }

    pub(crate) async fn create(&self, path: &str) -> Result<OpenFile, FsError> {
        let (parent, name) = self.parent(path).await?;
        let (entry, fh) = self
            .fs
            .create(parent, name, 0o644, CALLER, IfExists::Open)
            .await?;
        Ok(OpenFile {
            fs: Arc::clone(self),
            ino: entry.ino,
            fh,
        })
    }

    pub(crate) async fn open(&self, path: &str) -> Result<OpenFile, FsError> {
        let ino = self.ino(path).await?;
        Ok(OpenFile {
            fs: Arc::clone(self),
            ino,
            fh: self.fs.open_file(ino, true, false).await?,
        })
    }

    pub(crate) async fn open_truncated(&self, path: &str) -> Result<OpenFile, FsError> {
        let ino = self.ino(path).await?;
        Ok(OpenFile {
            fs: Arc::clone(self),
            ino,
            fh: self.fs.open_file(ino, true, true).await?,
        })
    }

    /// Creates or truncates a file, writes it and closes it.
    pub(crate) async fn write(&self, path: &str, bytes: impl AsRef<[u8]>) -> Result<(), FsError> {
        let file = match self.open_truncated(path).await {
            Err(FsError::NoEntry) => self.create(path).await?,
            opened => opened?,
        };
        let written = file.write_at(0, bytes);
        written.and(file.close().await)
    }

    pub(crate) async fn read(&self, path: &str) -> Result<Vec<u8>, FsError> {
        let ino = self.ino(path).await?;
        let fh = self.fs.open_file(ino, false, false).await?;
        let file = OpenFile {
            fs: Arc::clone(self),
            ino,
            fh,
        };
        let bytes = file.read_all().await;
        self.fs.release(fh).await;
        bytes
    }

    pub(crate) async fn mkdir(&self, path: &str) -> Result<u64, FsError> {
        let (parent, name) = self.parent(path).await?;
        let entry = self.fs.mkdir(parent, name, 0o755, CALLER).await?;
        self.follow().await;
        Ok(entry.ino)
    }

    /// Makes a directory of any name at the root.
    pub(crate) async fn mkdir_raw(&self, name: &OsStr) -> Result<u64, FsError> {
        Ok(self.fs.mkdir(ROOT, name, 0o755, CALLER).await?.ino)
    }

    /// Writes to a handle by its number.
    pub(crate) fn write_to(&self, fh: u64, bytes: &[u8]) -> Result<(), FsError> {
        self.fs.write(fh, 0, bytes)
    }

    pub(crate) async fn symlink(&self, path: &str, target: &str) -> Result<u64, FsError> {
        let (parent, name) = self.parent(path).await?;
        let target = target.as_bytes();
        let entry = self.fs.symlink(parent, name, target, CALLER).await?;
        self.follow().await;
        Ok(entry.ino)
    }

    /// Returns the number of the inode that the new name stands for.
    pub(crate) async fn link(&self, path: &str, to: &str) -> Result<u64, FsError> {
        self.link_ino(self.ino(path).await?, to).await
    }

    pub(crate) async fn link_ino(&self, ino: u64, to: &str) -> Result<u64, FsError> {
        let (parent, name) = self.parent(to).await?;
        Ok(self.fs.link(ino, parent, name).await?.ino)
    }

    pub(crate) async fn unlink(&self, path: &str) -> Result<(), FsError> {
        let (parent, name) = self.parent(path).await?;
        self.fs.unlink(parent, name).await?;
        self.follow().await;
        Ok(())
    }

    pub(crate) async fn rmdir(&self, path: &str) -> Result<(), FsError> {
        let (parent, name) = self.parent(path).await?;
        self.fs.rmdir(parent, name).await?;
        self.follow().await;
        Ok(())
    }

    pub(crate) async fn rename(&self, from: &str, to: &str) -> Result<(), FsError> {
        self.rename_as(from, to, RenameMode::Replace).await
    }

    pub(crate) async fn rename_as(
        &self,
        from: &str,
        to: &str,
        mode: RenameMode,
    ) -> Result<(), FsError> {
        let (parent, name) = self.parent(from).await?;
        let (new_parent, new_name) = self.parent(to).await?;
        self.fs
            .rename(parent, name, new_parent, new_name, mode)
            .await?;
        self.follow().await;
        Ok(())
    }

    /// Names that were changed are in the bucket what they are here, as far as the store allows, in a volume of
    /// which a closed file is in the bucket.
    async fn follow(&self) {
        if self.write.durability == Durability::Close {
            let _ = self.drain(Duration::from_secs(20)).await;
        }
    }

    /// Every entry of a directory but the dots.
    pub(crate) async fn entries(&self, path: &str) -> Result<Vec<DirEntry>, FsError> {
        let ino = self.ino(path).await?;
        let fh = self.fs.opendir(ino).await?;
        let mut entries: Vec<DirEntry> = Vec::new();
        loop {
            let from = entries.last().map_or(0, |entry| entry.next);
            let more = self.fs.readdir(fh, from).await?;
            if more.is_empty() {
                break;
            }
            entries.extend(more);
        }
        self.fs.releasedir(fh);
        entries.retain(|entry| !matches!(&*entry.name, "." | ".."));
        Ok(entries)
    }

    /// The names of a directory, sorted; a directory's with a slash.
    pub(crate) async fn ls(&self, path: &str) -> Vec<String> {
        let entries = self.entries(path).await.unwrap();
        let mut names: Vec<String> = entries
            .iter()
            .map(|entry| match entry.attr.kind {
                FileKind::Directory => format!("{}/", entry.name),
                _ => entry.name.to_string(),
            })
            .collect();
        names.sort();
        names
    }

    /// Puts an object into the bucket past the file system.
    pub(crate) async fn put_object(&self, key: &str, bytes: &[u8]) {
        let body = Bytes::copy_from_slice(bytes);
        let key = Key::new(key);
        self.bucket
            .put(&key, body, Metadata::default(), Precondition::None)
            .await
            .unwrap();
    }

    /// An object's bytes as any other tool reads them; `None` if it is not there.
    pub(crate) async fn object(&self, key: &str) -> Option<Vec<u8>> {
        use futures_util::TryStreamExt;
        let key = Key::new(key);
        let object = self.bucket.head(&key).await.unwrap()?;
        if object.size == 0 {
            // An empty range cannot be asked for.
            return Some(Vec::new());
        }
        let body = self
            .bucket
            .get(&key, 0..object.size, &object.version)
            .await
            .unwrap();
        let pieces: Vec<Bytes> = body.try_collect().await.unwrap();
        Some(pieces.concat())
    }

    /// Every key of the bucket.
    pub(crate) async fn keys(&self) -> Vec<String> {
        let mut keys = Vec::new();
        let mut continuation = None;
        loop {
            let request = ListRequest {
                prefix: Key::root(),
                delimiter: false,
                max_keys: 1000,
                continuation,
            };
            let page = self.bucket.list(&request).await.unwrap();
            keys.extend(page.entries.iter().map(|entry| match entry {
                ListEntry::Object { key, .. } | ListEntry::Prefix(key) => key.as_str().to_owned(),
            }));
            continuation = page.continuation;
            if continuation.is_none() {
                return keys;
            }
        }
    }

    /// Requests sent for `verb` while `work` ran.
    pub(crate) async fn requests_of<T>(&self, work: impl Future<Output = T>) -> (T, u64) {
        let before = self.bucket.requests().total();
        let done = work.await;
        (done, self.bucket.requests().total() - before)
    }

    /// Where dirty bytes wait.
    pub(crate) fn staging_dir(&self) -> &Path {
        self.staging.path()
    }
}

impl Unsynced {
    /// What is left of a staging file of which the disk has `synced` for certain.
    fn leave(self, bytes: &mut [u8], mut synced: Vec<u8>) {
        const PAGE: usize = 4096;
        synced.resize(bytes.len(), 0);
        let mut random = match self {
            Self::Kept => return,
            Self::Lost => None,
            Self::Some(seed) => Some(seed | 1),
        };
        for (page, on_disk) in bytes.chunks_mut(PAGE).zip(synced.chunks(PAGE)) {
            let is_kept = random.as_mut().is_some_and(|random| {
                *random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                *random >> 63 == 1
            });
            if !is_kept {
                page.copy_from_slice(on_disk);
            }
        }
    }
}

/// An open file. Closing it says whether its bytes are in the bucket.
#[derive(Debug)]
pub(crate) struct OpenFile {
    fs: Arc<FileSystem>,
    pub(crate) ino: u64,
    pub(crate) fh: u64,
}

impl OpenFile {
    pub(crate) fn write_at(&self, offset: u64, bytes: impl AsRef<[u8]>) -> Result<(), FsError> {
        self.fs.write(self.fh, offset, bytes.as_ref())
    }

    pub(crate) async fn read_at(&self, offset: u64, len: u32) -> Result<Vec<u8>, FsError> {
        Ok(self.fs.read(self.fh, offset, len).await?.concat())
    }

    pub(crate) async fn read_all(&self) -> Result<Vec<u8>, FsError> {
        let mut bytes = Vec::new();
        loop {
            let more = self.read_at(bytes.len() as u64, 1 << 20).await?;
            if more.is_empty() {
                return Ok(bytes);
            }
            bytes.extend(more);
        }
    }

    /// What the process that has this file open calls another number.
    pub(crate) fn with_number(&self, fh: u64) -> Self {
        Self {
            fs: Arc::clone(&self.fs),
            ino: self.ino,
            fh,
        }
    }

    /// Copies up to `len` bytes from this file's `offset` to `at` in another one, as one request does.
    pub(crate) async fn copy_to(
        &self,
        offset: u64,
        to: &Self,
        at: u64,
        len: u64,
    ) -> Result<u64, FsError> {
        let from = FilePlace {
            fh: self.fh,
            offset,
        };
        let to = FilePlace {
            fh: to.fh,
            offset: at,
        };
        Ok(self.fs.copy_range(from, to, len).await?.into())
    }

    pub(crate) fn allocate(
        &self,
        offset: u64,
        len: u64,
        allocation: Allocation,
    ) -> Result<(), FsError> {
        self.fs.allocate(self.fh, offset, len, allocation)
    }

    pub(crate) async fn fsync(&self) -> Result<(), FsError> {
        self.fs.fsync(self.fh).await
    }

    pub(crate) async fn close(self) -> Result<(), FsError> {
        let flushed = self.fs.flush(self.fh).await;
        self.fs.release(self.fh).await;
        flushed
    }
}

/// Bytes that tell where they belong.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| u8::try_from((i / 251 + i) % 256).unwrap())
        .collect()
}
