//! Blocks of objects on this host's disk, from one process to the next (`cache_disk`).
//!
//! The file system is the index: a block is found by the name of its content, in a file of its chunk, in one of 256
//! directories. Nothing of it is in memory but how many bytes and files each directory holds. What was not read for the
//! longest goes first; where there are too many files to look at all of them, directory by directory: names are digests,
//! so that each holds a fair sample.
//!
//! Several processes may share the place. All that is written is written by a thread of the cache's own, and dropped
//! when that has too much to do: nobody waits for this disk but a reader who would else wait for the store.

use std::fs::{self, FileTimes};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use nix::sys::statvfs::statvfs;
use sha2::{Digest as _, Sha256};

use super::ObjectSource;
use super::chunk::{CHUNK_BLOCKS, Chunk, Digest};
use crate::clock::Clock;
use crate::config::options::MinFree;
use crate::fs::block::block_bytes;
use crate::fs::budget::free_of;
use crate::store::digest::{self, hex};

/// Directories that the files are spread over: one for each value of a digest's first byte.
const SHARDS: usize = 256;

/// Up to so many files are all looked at for what was not read for the longest: a look takes some 20 ms.
const FILES_LOOKED_AT: usize = 16 * 1024;

/// Blocks that may wait to be written: 8 MiB.
const QUEUE: usize = 64;

/// A file that is read is noted as read so often at most.
const NOTE_USE_EVERY: Duration = Duration::from_secs(3600);

/// The disk is looked at so often though nothing is written here: others fill it too.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// So many bytes are written before the disk is looked at again.
const LOOK_AFTER: u64 = 4 << 20;

/// Where nothing can be written, it is tried again after this.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// All that tells a bucket from others. Two who are not the same to a store have nothing in common here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockPlace(Digest);

impl BlockPlace {
    /// The place that these parts name; none of them holds a NUL.
    pub fn of(parts: &[impl AsRef<[u8]>]) -> Self {
        Self(digest::of_parts(parts))
    }
}

/// A cache of blocks in one directory.
#[derive(Debug)]
pub struct DiskCache {
    dir: PathBuf,
    clock: Arc<dyn Clock>,
    /// `None`: the thread is gone, or never was.
    writes: Option<SyncSender<Write>>,
    used: Arc<AtomicU64>,
    hits: AtomicU64,
    has_failed: AtomicBool,
}

#[derive(Debug)]
struct Write {
    digest: Digest,
    slot: u64,
    bytes: Bytes,
}

impl DiskCache {
    /// A cache of `limit` bytes below `dir`, which is made if it is not there. Of the disk it leaves half as much again
    /// free as `min_free` says: what waits for the bucket there comes first.
    pub fn open(dir: PathBuf, limit: u64, min_free: MinFree, clock: Arc<dyn Clock>) -> Arc<Self> {
        let used = Arc::default();
        let (writes, work) = mpsc::sync_channel(QUEUE);
        let keeper = Keeper {
            dir: dir.clone(),
            limit,
            min_free,
            used: Arc::clone(&used),
            shards: [Shard::default(); SHARDS],
            next_shard: 0,
            unlooked: 0,
            failed: None,
        };
        let thread = std::thread::Builder::new().name("disk-cache".to_owned());
        let writes = match thread.spawn(move || keeper.run(&work)) {
            Ok(_) => Some(writes),
            Err(error) => {
                tracing::warn!(%error, "blocks are not kept on this host's disk");
                None
            }
        };
        Arc::new(Self {
            dir,
            clock,
            writes,
            used,
            hits: AtomicU64::new(0),
            has_failed: AtomicBool::new(false),
        })
    }

    /// Bytes on the disk, as far as they have been counted.
    pub fn used_bytes(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Blocks that were read here rather than asked of a store.
    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    /// Those of these blocks that are here. Waits for the disk.
    pub(super) fn read(&self, object: &ObjectSource, indices: &[u64]) -> Vec<(u64, Bytes)> {
        let mut found = Vec::new();
        for same_chunk in indices.chunk_by(|a, b| a / CHUNK_BLOCKS == b / CHUNK_BLOCKS) {
            let Some(digest) = object.chunk(same_chunk[0]) else {
                return found;
            };
            match self.read_chunk(&digest, object.size, same_chunk) {
                Ok(blocks) => found.extend(blocks),
                Err(error) => self.note_failure(&error),
            }
        }
        self.hits.fetch_add(found.len() as u64, Ordering::Relaxed);
        found
    }

    fn read_chunk(
        &self,
        digest: &Digest,
        size: u64,
        indices: &[u64],
    ) -> io::Result<Vec<(u64, Bytes)>> {
        let mut found = Vec::new();
        let Some(chunk) = Chunk::open(&path_of(&self.dir, digest), digest)? else {
            return Ok(found);
        };
        for index in indices {
            let range = block_bytes(*index, size);
            let len = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
            if let Some(bytes) = chunk.read(*index, len)? {
                found.push((*index, bytes));
            }
        }
        let used = chunk.file().metadata()?.modified()?;
        let age = self.clock.wall().duration_since(used);
        if !found.is_empty() && age.is_ok_and(|age| age > NOTE_USE_EVERY) {
            let now = FileTimes::new().set_modified(self.clock.wall());
            chunk.file().set_times(now)?;
        }
        Ok(found)
    }

    /// Keeps a block, if the disk is not too slow.
    pub(super) fn keep(&self, object: &ObjectSource, index: u64, bytes: &Bytes) {
        if let (Some(digest), Some(writes)) = (object.chunk(index), &self.writes) {
            let bytes = bytes.clone();
            let slot = index % CHUNK_BLOCKS;
            let _ = writes.try_send(Write {
                digest,
                slot,
                bytes,
            });
        }
    }

    /// Said once: the store has what the disk does not give.
    fn note_failure(&self, error: &io::Error) {
        if !self.has_failed.swap(true, Ordering::Relaxed) {
            let dir = self.dir.display();
            tracing::warn!(%error, "the block cache in {dir} cannot be read: the store is asked instead");
        }
    }
}

impl ObjectSource {
    /// The name of the chunk that a block belongs to; `None` if it is not to be on the disk.
    fn chunk(&self, index: u64) -> Option<Digest> {
        let place = self.place.filter(|_| !self.version.is_any())?;
        let prefix = self.bucket.location().prefix.as_str();
        let mut hash = Sha256::new_with_prefix(place.0);
        for name in [prefix, self.key.as_str(), &*self.version.0] {
            // Names cannot run together, whatever a key holds.
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name);
        }
        hash.update(self.size.to_le_bytes());
        hash.update((index / CHUNK_BLOCKS).to_le_bytes());
        Some(hash.finalize().into())
    }
}

fn shard_path(dir: &Path, shard: usize) -> PathBuf {
    dir.join(format!("{shard:02x}"))
}

fn path_of(dir: &Path, digest: &Digest) -> PathBuf {
    let (first, rest) = digest.split_first().expect("it has 32 bytes");
    shard_path(dir, (*first).into()).join(hex(rest))
}

/// What writes, and makes room.
#[derive(Debug)]
struct Keeper {
    dir: PathBuf,
    limit: u64,
    min_free: MinFree,
    /// Bytes in all directories.
    used: Arc<AtomicU64>,
    shards: [Shard; SHARDS],
    /// The directory that is looked through next.
    next_shard: usize,
    /// Bytes that were written since the disk was looked at.
    unlooked: u64,
    /// When writing failed.
    failed: Option<Instant>,
}

/// What a directory holds: as it was counted last, and what was written since.
#[derive(Debug, Clone, Copy, Default)]
struct Shard {
    bytes: u64,
    files: usize,
}

/// A file of the cache: in the order in which they were used.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kept {
    used: SystemTime,
    /// Bytes that it takes.
    bytes: u64,
    shard: usize,
    path: PathBuf,
}

impl Keeper {
    fn run(mut self, work: &Receiver<Write>) {
        self.count(0..SHARDS);
        let mut open: Option<(Digest, Chunk)> = None;
        loop {
            match work.recv_timeout(LOOK_EVERY) {
                Ok(write) => {
                    let pauses = self.failed.is_some_and(|at| at.elapsed() < RETRY_AFTER);
                    if pauses {
                        continue;
                    }
                    match self.write(&mut open, &write) {
                        Ok(()) => self.failed = None,
                        Err(error) => {
                            open = None;
                            self.note_failure(&error);
                        }
                    }
                    if self.unlooked < LOOK_AFTER {
                        continue;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            open = None;
            self.unlooked = 0;
            self.make_room();
        }
    }

    fn write(&mut self, open: &mut Option<(Digest, Chunk)>, write: &Write) -> io::Result<()> {
        let mut is_new = false;
        let chunk = match open {
            Some((digest, chunk)) if *digest == write.digest => chunk,
            _ => {
                let shard = shard_path(&self.dir, write.digest[0].into());
                let mut make = fs::DirBuilder::new();
                make.recursive(true).mode(0o700).create(shard)?;
                let path = path_of(&self.dir, &write.digest);
                is_new = !path.exists();
                let chunk = Chunk::create(&path, &write.digest)?;
                &mut open.insert((write.digest, chunk)).1
            }
        };
        let before = if is_new {
            0
        } else {
            chunk.file().metadata()?.blocks()
        };
        chunk.write(write.slot, &write.bytes)?;
        let after = chunk.file().metadata()?.blocks();
        let more = after.saturating_sub(before) * 512;
        let shard = &mut self.shards[usize::from(write.digest[0])];
        shard.bytes += more;
        shard.files += usize::from(is_new);
        self.used.fetch_add(more, Ordering::Relaxed);
        self.unlooked += write.bytes.len() as u64;
        Ok(())
    }

    fn note_failure(&mut self, error: &io::Error) {
        if self.failed.is_none() {
            let dir = self.dir.display();
            tracing::warn!(%error, "blocks are not kept in {dir} for now");
        }
        self.failed = Some(Instant::now());
    }

    /// Removes what was not used for the longest until the cache keeps to its limit and leaves what it has to. Some more
    /// than that: not every block shall cost a look.
    fn make_room(&mut self) {
        if !self.is_over(1.0) {
            return;
        }
        // Another process may write at the same time: bounded.
        for _ in 0..SHARDS * 8 {
            if !self.is_over(0.95) {
                return;
            }
            let files: usize = self.shards.iter().map(|shard| shard.files).sum();
            if files <= FILES_LOOKED_AT {
                if self.thin_out(0..SHARDS) == 0 {
                    // Nothing can be removed: another look would find no more.
                    return;
                }
            } else {
                let shard = self.next_shard;
                self.next_shard = (shard + 1) % SHARDS;
                self.thin_out(shard..shard + 1);
            }
        }
    }

    fn is_over(&self, part: f64) -> bool {
        let used = self.used.load(Ordering::Relaxed);
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "about so many bytes"
        )]
        let limit = (self.limit as f64 * part) as u64;
        // A file system that does not say how full it is has room: the write itself will tell.
        let leaves_too_little = statvfs(&self.dir).is_ok_and(|disk| {
            let (free, total) = free_of(&disk);
            let floor = self.min_free.of(total);
            free < floor.saturating_add(floor / 2)
        });
        used > limit || leaves_too_little && used > 0
    }

    /// Removes an eighth of the bytes of some directories, oldest first, one file at least. Returns how many bytes went.
    fn thin_out(&mut self, shards: Range<usize>) -> u64 {
        let mut files = self.count(shards);
        files.sort();
        let all: u64 = files.iter().map(|file| file.bytes).sum();
        let mut removed = 0;
        for file in files {
            if removed > 0 && removed >= all / 8 {
                break;
            }
            // Whoever has it open reads on.
            if fs::remove_file(file.path).is_ok() {
                removed += file.bytes;
                let shard = &mut self.shards[file.shard];
                shard.bytes -= file.bytes;
                shard.files -= 1;
            }
        }
        self.note_used();
        removed
    }

    /// What some directories hold.
    fn count(&mut self, shards: Range<usize>) -> Vec<Kept> {
        let mut all = Vec::new();
        for shard in shards {
            let files = files_in(&self.dir, shard);
            self.shards[shard] = Shard {
                bytes: files.iter().map(|file| file.bytes).sum(),
                files: files.len(),
            };
            all.extend(files);
        }
        self.note_used();
        all
    }

    fn note_used(&self) {
        let bytes = self.shards.iter().map(|shard| shard.bytes).sum();
        self.used.store(bytes, Ordering::Relaxed);
    }
}

fn files_in(dir: &Path, shard: usize) -> Vec<Kept> {
    let Ok(entries) = fs::read_dir(shard_path(dir, shard)) else {
        return Vec::new();
    };
    let kept = |entry: fs::DirEntry| {
        let about = entry.metadata().ok().filter(fs::Metadata::is_file)?;
        Some(Kept {
            used: about.modified().ok()?,
            bytes: about.blocks() * 512,
            shard,
            path: entry.path(),
        })
    };
    entries.flatten().filter_map(kept).collect()
}
