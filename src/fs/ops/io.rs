//! Content: open, read, write, release, readlink.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};

use super::create::TARGET_MAX;
use crate::fs::cache::ObjectSource;
use crate::fs::error::FsError;
use crate::fs::extents::Extent;
use crate::fs::filesystem::FileSystem;
use crate::fs::handles::FileHandle;
use crate::fs::inode::{Inode, InodeState, Linked, Remote};
use crate::fs::journal::record::Record;
use crate::fs::kept::{KeptHandle, KeptOpen};
use crate::fs::request::RequestId;
use crate::fs::staging::{ContentSource, StagedContent};
use crate::fs::tree::Tree;
use crate::fs::upload::plan::SIZE_MAX;
use crate::fs::upload::schedule::Footprint;
use crate::store::{Attributes, FileKind, Key, StoreError};

/// How often a write that waits for room looks for itself.
const ROOM_POLL: Duration = Duration::from_millis(100);

/// Largest object that is read because a part of it is changed.
pub(crate) const KEPT_BASE_MAX: u64 = 16 * 1024 * 1024;

/// Our own changes can take an object from under a read so often at most.
const READ_ATTEMPTS: u32 = 4;

/// Permission bits are not checked here: the kernel does, by `default_permissions`.
impl FileSystem {
    /// Opens a file. `truncate` empties it.
    pub async fn open_file(
        self: &Arc<Self>,
        ino: u64,
        writable: bool,
        truncate: bool,
    ) -> Result<u64, FsError> {
        if writable || truncate {
            self.check_writable()?;
        }
        let inode = self.inode(ino)?;
        self.resolve(&inode).await?;
        self.revalidate(&inode).await?;
        self.open_inode(&inode, writable, truncate)
    }

    /// Asks whether the name still stands for the inode, if nobody did lately. Another object by its name
    /// means ESTALE, upon which the kernel looks the name up afresh.
    async fn revalidate(&self, inode: &Arc<Inode>) -> Result<(), FsError> {
        let Some((parent, name)) = self.tree.lock().place_of(inode.ino) else {
            return Ok(());
        };
        match self.find(parent, &name).await? {
            Some(found) if found.ino == inode.ino => Ok(()),
            _ => Err(FsError::Stale),
        }
    }

    pub(crate) fn open_inode(
        &self,
        inode: &Arc<Inode>,
        writable: bool,
        truncate: bool,
    ) -> Result<u64, FsError> {
        if let Some(fh) = self.opened_earlier() {
            return Ok(fh);
        }
        let lineage = {
            let tree = self.tree.lock();
            if writable || truncate {
                self.place_in_journal(&tree, inode.ino)?;
            }
            let mut state = inode.state.lock();
            drop(tree);
            match (state.attr.kind, state.linked) {
                (FileKind::Directory, _) => return Err(FsError::IsDirectory),
                (_, Linked::Going) => return Err(FsError::Stale),
                // Nobody keeps the bytes of a file that lost its name while nobody had it open.
                (_, Linked::No) if state.opens == 0 => return Err(FsError::Stale),
                _ => {}
            }
            if truncate {
                self.resize(inode.ino, &mut state, 0)?;
            }
            state.opens += 1;
            if state.opens == 1 && !state.journaled {
                self.keep_open(inode.ino, &state);
            }
            state.lineage
        };
        if truncate {
            self.changed(inode.ino);
        }
        let fh = self.handles.new_number(&self.kept);
        let handle = KeptHandle {
            ino: inode.ino,
            request: RequestId::current(),
            what: KeptOpen::File { writable, lineage },
        };
        self.kept.opened(fh, &handle);
        self.handles
            .add_file(fh, FileHandle::new(inode, writable, lineage));
        Ok(fh)
    }

    /// What the request, which comes again, has opened in an earlier process that did not live to say so.
    pub(super) fn opened_earlier(&self) -> Option<u64> {
        self.handles.opened_earlier(RequestId::current()?)
    }

    /// Reads up to `len` bytes; fewer only at the end. Does not wait for what is cached or staged.
    pub async fn read(&self, fh: u64, offset: u64, len: u32) -> Result<Vec<Bytes>, FsError> {
        let handle = self.handles.file(fh)?;
        for _ in 0..READ_ATTEMPTS {
            match self.read_once(&handle, offset, len).await {
                Ok(bytes) => return Ok(bytes),
                Err((
                    FsError::Store(StoreError::Precondition { .. } | StoreError::NotFound { .. }),
                    Some(asked),
                )) => {
                    if !self.has_moved(&handle.inode, &asked).await? {
                        self.tree.lock().distrust(handle.inode.ino);
                        return Err(FsError::Stale);
                    }
                }
                Err((error, _)) => return Err(error),
            }
        }
        Err(FsError::Stale)
    }

    /// Whether it was an upload or a rename of ours that took the object from under a read; waits for the
    /// one that is under way, and asks the store about one whose answer was lost. What is there afterwards has the same
    /// bytes, or newer ones of ours.
    async fn has_moved(&self, inode: &Arc<Inode>, asked: &ObjectSource) -> Result<bool, FsError> {
        let spell = |tree: &Tree| {
            let key = tree
                .key_of(inode.ino)
                .or_else(|| tree.orphan_key(inode.ino))
                .ok_or(FsError::NoEntry)?;
            let from = inode.state.lock().moved_from.clone();
            Ok((from.unwrap_or_else(|| key.clone()), key))
        };
        let both = |(from, key): &(Key, Key)| {
            Footprint::key(from.clone()).and(Footprint::key(key.clone()))
        };
        let turn = self.turn_at(spell, both).await;
        let in_doubt = {
            let state = inode.state.lock();
            let is_as_asked =
                |remote: &Remote| remote.version == asked.version && remote.key == asked.key;
            if !state.remote.as_ref().is_some_and(is_as_asked) {
                return Ok(true);
            }
            let attempt = state.attempt.clone().filter(|_| turn.is_ok());
            attempt.filter(|attempt| attempt.key == asked.key && !state.sending)
        };
        match in_doubt {
            Some(attempt) => self.adopt(inode, &attempt.key, &attempt.write).await,
            None => Ok(false),
        }
    }

    async fn read_once(
        &self,
        handle: &FileHandle,
        offset: u64,
        len: u32,
    ) -> Result<Vec<Bytes>, (FsError, Option<ObjectSource>)> {
        // What is staged is read under the lock: an upload that ends may give its place to other bytes.
        if offset == 0 && len > 0 {
            self.expect_reads(&handle.inode);
        }
        let (pieces, object) = {
            let state = handle.inode.state.lock();
            handle
                .check_lineage(&state)
                .map_err(|error| (error, None))?;
            let end = offset.saturating_add(u64::from(len)).min(state.attr.size);
            if offset >= end {
                return Ok(Vec::new());
            }
            let pieces = pieces_of(&state, offset..end).map_err(|error| (error, None))?;
            (pieces, self.source_of(&state))
        };
        let ahead = |range: &Range<u64>| {
            if let Some(object) = &object {
                self.read_ahead(handle, object, range);
            }
        };
        let read = self.read_pieces(pieces, object.as_ref(), ahead).await;
        read.map_err(|error| (error, object))
    }

    /// A file is read from its beginning: so may be the next ones of its directory.
    fn expect_reads(&self, inode: &Inode) {
        let parent = self.tree.lock().parent(inode.ino);
        let lookahead = parent.and_then(|parent| self.lookaheads.get(parent));
        if let Some(lookahead) = lookahead {
            lookahead.read();
        }
    }

    /// The object behind an inode, if it has one.
    pub(super) fn source_of(&self, state: &InodeState) -> Option<ObjectSource> {
        let remote = state.remote.as_ref()?;
        Some(self.object_source(remote))
    }

    /// The bytes of all pieces; `ahead` hears of each that the object has.
    pub(super) async fn read_pieces(
        &self,
        pieces: Vec<Piece>,
        object: Option<&ObjectSource>,
        ahead: impl Fn(&Range<u64>) + Send,
    ) -> Result<Vec<Bytes>, FsError> {
        let mut bytes = Vec::new();
        for piece in pieces {
            match (piece, object) {
                (Piece::Here(here), _) => bytes.push(here),
                (Piece::Base(range), Some(object)) => {
                    ahead(&range);
                    bytes.extend(self.settings.cache.read(object, range).await?);
                }
                (Piece::Base(_), None) => return Err(FsError::Stale),
            }
        }
        Ok(bytes)
    }

    fn read_ahead(&self, handle: &FileHandle, object: &ObjectSource, range: &Range<u64>) {
        let cache = &self.settings.cache;
        let (found, limit) = (cache.find(object, range), cache.readahead_room());
        let mut readahead = handle.readahead.lock();
        let ahead = readahead.observe(range, object.size, found, limit);
        drop(readahead);
        if let Some(fetch) = ahead.fetch {
            cache.prefetch(object, &fetch);
        }
        for given_up in ahead.given_up {
            cache.give_up(object, &given_up);
        }
    }

    /// Whether a write of `bytes` can be done at once; else [`FileSystem::room_for`] has to be waited for.
    pub fn has_room_for(&self, bytes: u64) -> bool {
        self.staging.has_room(bytes) && self.journal.check_room().is_ok()
    }

    /// Waits until `bytes` may be written: all that is staged sets out for the bucket meanwhile.
    pub async fn room_for(&self, bytes: u64) -> Result<(), FsError> {
        let limit = self.settings.fsync_timeout;
        let waited = tokio::time::timeout(limit, async {
            while !self.has_room_for(bytes) {
                self.hurry();
                // Other programs' files take and leave room too, and nobody tells of those.
                let released = tokio::time::timeout(ROOM_POLL, self.staging.released()).await;
                if released.is_err() {
                    self.staging.note_short();
                }
            }
            self.staging.note_room();
        });
        waited.await.map_err(|_| FsError::NoRoom(limit))
    }

    /// All that is staged is to go now.
    fn hurry(&self) {
        let now = self.now();
        let staged: Vec<u64> = self
            .tree
            .lock()
            .inodes_in_core()
            .filter(|inode| inode.state.lock().unsent.content)
            .map(|inode| inode.ino)
            .collect();
        self.uploader.tell(|queue| {
            for ino in staged {
                queue.urgent(ino, now);
            }
        });
    }

    /// Writes all of `data`. It is safe on this host's disk, not yet in the bucket.
    pub fn write(&self, fh: u64, offset: u64, data: &[u8]) -> Result<(), FsError> {
        let handle = self.handles.writable_file(fh)?;
        let end = offset.saturating_add(data.len() as u64);
        if end > SIZE_MAX {
            return Err(FsError::TooLarge(SIZE_MAX));
        }
        if data.is_empty() {
            return Ok(());
        }
        self.journal.check_room()?;
        let ino = handle.inode.ino;
        let mut state = handle.inode.state.lock();
        handle.check_lineage(&state)?;
        let size = state.attr.size.max(end);
        let time = self.settings.clock.wall();
        self.sized(ino, &mut state, size, |state| {
            self.keep_base(state);
            self.stage(ino, state, offset, data, (size, time))
        })?;
        let is_news = !state.unsent.content || state.sending;
        state.content_changed(size, time);
        self.keep_nameless(ino, &state);
        drop(state);
        if is_news {
            self.changed(ino);
        }
        Ok(())
    }

    /// Before a file is changed in part for the first time, its object is read: another host may replace it before
    /// ours is complete, and then ours is to be whole all the same.
    pub(super) fn keep_base(&self, state: &InodeState) {
        if let (None, Some(remote)) = (&state.staged, &state.remote)
            && (1..=KEPT_BASE_MAX).contains(&remote.size)
        {
            let _runtime = self.runtime.enter();
            let object = self.object_source(remote);
            self.settings.cache.prefetch(&object, &(0..remote.size));
        }
    }

    /// An inode was changed and sets out for the bucket when it is old.
    pub(crate) fn changed(&self, ino: u64) {
        let now = self.now();
        self.uploader.tell(|queue| queue.changed(ino, now));
    }

    /// A changed inode is complete for now, and sets out soon.
    pub(crate) fn complete(&self, ino: u64) {
        let now = self.now();
        self.uploader.tell(|queue| queue.closed(ino, now));
    }

    /// Lays bytes over the file's content: into the staging file, into the journal, then into the inode. The file
    /// has this size and time afterwards.
    pub(crate) fn stage(
        &self,
        ino: u64,
        state: &mut InodeState,
        offset: u64,
        data: &[u8],
        then: (u64, SystemTime),
    ) -> Result<(), FsError> {
        let extents = self.staged(ino, state)?.stage(offset, data)?;
        self.record_staged(ino, state, extents, then)
    }

    /// Lets extents of the staging file be the content, the journal's first.
    pub(super) fn record_staged(
        &self,
        ino: u64,
        state: &mut InodeState,
        extents: Vec<Extent>,
        (size, time): (u64, SystemTime),
    ) -> Result<(), FsError> {
        let written = Record::Written {
            ino,
            extents: extents.clone(),
            size,
            time,
        };
        self.record(ino, state, &written)?;
        self.staged(ino, state)?.record(&extents);
        Ok(())
    }

    /// The content as this host changes it, from now on at the latest.
    pub(crate) fn staged<'a>(
        &self,
        ino: u64,
        state: &'a mut InodeState,
    ) -> Result<&'a mut StagedContent, FsError> {
        if !matches!(state.attr.kind, FileKind::File | FileKind::Symlink) {
            return Err(FsError::Invalid("only a regular file has content to write"));
        }
        let staged = match state.staged.take() {
            Some(staged) => staged,
            None => {
                let len = state.remote.as_ref().map_or(0, |remote| remote.size);
                Box::new(self.staging.create(ino, len)?)
            }
        };
        Ok(state.staged.insert(staged))
    }

    /// Closes a file description. The last close of a file without a name deletes its object.
    pub async fn release(self: &Arc<Self>, fh: u64) {
        let Some(handle) = self.handles.remove_file(fh) else {
            return;
        };
        self.kept.released(fh);
        let inode = &handle.inode;
        let given_up = handle.readahead.lock().give_up();
        let object = self.source_of(&inode.state.lock());
        if let Some(object) = object {
            let cache = &self.settings.cache;
            given_up
                .iter()
                .for_each(|range| cache.give_up(&object, range));
        }
        if handle.writable && inode.state.lock().unsent.any() {
            self.complete(inode.ino);
        }
        let is_last = {
            let mut state = inode.state.lock();
            state.opens = state.opens.saturating_sub(1);
            let is_gone = state.opens == 0 && state.linked == Linked::No;
            if is_gone {
                self.give_up_staging(inode.ino, &state);
            }
            state.opens == 0
        };
        if !is_last {
            return;
        }
        self.kept.closed(inode.ino);
        self.tree.lock().closed(inode.ino);
        if let Err(error) = self.delete_orphan(inode).await {
            self.delete_later(inode, &error);
        }
    }

    /// Nobody has an inode open any more that has lost its name. A crash of the host may still give it back: then it
    /// is to be whole.
    fn give_up_staging(&self, ino: u64, state: &InodeState) {
        if state.staged.as_ref().is_some_and(|staged| staged.is_kept()) {
            self.staging.retire(ino);
            let now = self.now();
            self.uploader.tell(|queue| queue.urgent(ino, now));
        } else if !self.staging.is_retired(ino) {
            self.staging.remove(ino);
        }
    }

    /// The target of a symbolic link.
    pub async fn readlink(&self, ino: u64) -> Result<Bytes, FsError> {
        let inode = self.inode(ino)?;
        self.resolve(&inode).await?;
        let (pieces, object) = {
            let state = inode.state.lock();
            if state.attr.kind != FileKind::Symlink {
                return Err(FsError::Invalid("not a symbolic link"));
            }
            let beside = Attributes::link_target(&state.metadata);
            if let Some(target) = beside.filter(|_| state.attr.size == 0) {
                return link_target(target.into_bytes().into());
            }
            if state.attr.size == 0 || state.attr.size > TARGET_MAX as u64 {
                return Err(FsError::Invalid("the link's object is no path"));
            }
            (
                pieces_of(&state, 0..state.attr.size)?,
                self.source_of(&state),
            )
        };
        let read = self.read_pieces(pieces, object.as_ref(), |_| {}).await;
        let mut target = BytesMut::new();
        for bytes in read? {
            target.extend_from_slice(&bytes);
        }
        // s3fs ends a target with a newline.
        let trimmed = target.strip_suffix(b"\n").map_or(target.len(), <[u8]>::len);
        target.truncate(trimmed);
        link_target(target.freeze())
    }
}

/// What readlink(2) can return.
fn link_target(target: Bytes) -> Result<Bytes, FsError> {
    let fits = (1..=TARGET_MAX).contains(&target.len());
    if !fits || target.contains(&0) {
        return Err(FsError::Invalid("the link's object is no path"));
    }
    Ok(target)
}

/// A part of what a read is to return.
pub(super) enum Piece {
    Here(Bytes),
    Base(Range<u64>),
}

pub(super) fn pieces_of(state: &InodeState, range: Range<u64>) -> Result<Vec<Piece>, FsError> {
    let Some(staged) = &state.staged else {
        let object_end = state
            .remote
            .as_ref()
            .map_or(0, |remote| remote.size)
            .min(range.end);
        let mut pieces = Vec::new();
        if range.start < object_end {
            pieces.push(Piece::Base(range.start..object_end));
        }
        let zeros = range.end - range.start.max(object_end);
        if zeros > 0 {
            pieces.push(Piece::Here(Bytes::from(vec![0; in_memory(zeros)])));
        }
        return Ok(pieces);
    };
    let mut pieces = Vec::new();
    for (range, source) in staged.sources(range) {
        let len = in_memory(range.end - range.start);
        pieces.push(match source {
            ContentSource::Base => Piece::Base(range),
            ContentSource::Zeros => Piece::Here(Bytes::from(vec![0; len])),
            ContentSource::Staged(place) => {
                let mut buffer = vec![0; len];
                staged.read_at(&mut buffer, place)?;
                Piece::Here(buffer.into())
            }
        });
    }
    Ok(pieces)
}

fn in_memory(len: u64) -> usize {
    usize::try_from(len).expect("a read is at most 4 GiB")
}
