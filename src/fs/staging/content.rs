//! What a dirty file is: bytes written here, laid over the object that it is based on.

use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use super::file::{Dead, StagingFile, whole_blocks};
use super::in_memory;
use crate::fs::budget::StagingAccount;
use crate::fs::extents::{Chunk, Extent, ExtentMap, Source};

/// Where the bytes of a dirty file are. No I/O.
#[derive(Debug, Clone)]
pub(crate) struct ContentMap {
    extents: ExtentMap,
    /// Bytes of the object that are still the file's; what lies beyond and is not dirty is zeros.
    base_len: u64,
    /// The smallest size the file had since the last freeze: what an upload that is under way sends
    /// beyond it is not the file's any more.
    lowest_size: u64,
}

/// A [`ContentMap`] as it was when an upload began.
#[derive(Debug, Clone)]
pub(crate) struct FrozenMap {
    extents: ExtentMap,
    base_len: u64,
}

impl ContentMap {
    /// Nothing is dirty, and the first `base_len` bytes are the object's.
    pub(crate) fn new(base_len: u64) -> Self {
        Self {
            extents: ExtentMap::default(),
            base_len,
            lowest_size: u64::MAX,
        }
    }

    /// The bytes of these extents are in the staging file, and dirty.
    pub(crate) fn record(&mut self, extents: &[Extent]) {
        if let (Some(first), Some(last)) = (extents.first(), extents.last()) {
            self.extents
                .record(&(first.offset..last.range().end), extents);
        }
    }

    /// Cuts the content off at `size`, or lets zeros follow up to it.
    pub(crate) fn resize(&mut self, size: u64) {
        self.extents.truncate(size);
        self.base_len = self.base_len.min(size);
        self.lowest_size = self.lowest_size.min(size);
    }

    /// What an upload reads: it stays as it is until [`ContentMap::uploaded`] or [`ContentMap::thaw`].
    pub(crate) fn freeze(&mut self) -> FrozenMap {
        self.lowest_size = u64::MAX;
        FrozenMap {
            extents: self.extents.freeze(),
            base_len: self.base_len,
        }
    }

    /// The upload of `frozen` made an object of `size` bytes: what was written since lies over that.
    pub(crate) fn uploaded(&mut self, frozen: &FrozenMap, size: u64) {
        self.extents.forget_uploaded(&frozen.extents);
        self.base_len = size.min(self.lowest_size);
    }

    /// No upload reads it any more.
    pub(crate) fn thaw(&mut self) {
        self.extents.thaw();
    }

    /// Bytes of the object that are still the file's.
    pub(crate) fn base_len(&self) -> u64 {
        self.base_len
    }

    /// The smallest size since the last freeze, if the file was cut off since.
    pub(crate) fn lowest_size(&self) -> Option<u64> {
        (self.lowest_size < u64::MAX).then_some(self.lowest_size)
    }

    /// Whether `is_intact` says yes to all of it that an upload of `sent` has not brought into the object.
    pub(crate) fn is_intact(
        &self,
        sent: Option<&FrozenMap>,
        is_intact: impl FnMut(&Chunk) -> bool,
    ) -> bool {
        let sent = sent.map(|sent| &sent.extents);
        self.extents.is_intact(sent, is_intact)
    }

    /// The dirty extents, in order.
    pub(crate) fn extents(&self) -> impl Iterator<Item = &Extent> {
        self.extents.iter()
    }
}

impl FrozenMap {
    /// The content when the upload began.
    pub(crate) fn content(&self) -> ContentMap {
        ContentMap {
            extents: self.extents.clone(),
            base_len: self.base_len,
            lowest_size: u64::MAX,
        }
    }
}

/// The content of a dirty file: bytes written here laid over the object it is based on.
#[derive(Debug)]
pub(crate) struct StagedContent {
    file: Arc<StagingFile>,
    map: ContentMap,
    account: StagingAccount,
    /// Bytes of the file's length that the disk has back.
    given_back: u64,
    /// It is not looked for dead bytes before it takes more room than this.
    look_at: u64,
    /// An upload reads it.
    is_frozen: bool,
    /// Somebody was told that the disk has some of it.
    is_kept: bool,
}

impl StagedContent {
    /// The content in a new staging file.
    pub(super) fn new(file: StagingFile, map: ContentMap, account: StagingAccount) -> Self {
        Self {
            file: Arc::new(file),
            map,
            account,
            given_back: 0,
            look_at: 0,
            is_frozen: false,
            is_kept: false,
        }
    }

    /// The content in a staging file that an earlier process left.
    pub(super) fn reopen(
        file: StagingFile,
        mut map: ContentMap,
        account: StagingAccount,
    ) -> io::Result<Self> {
        map.thaw();
        map.extents.keep();
        let occupied = file.metadata()?.blocks().saturating_mul(512);
        let mut content = Self::new(file, map, account);
        content.is_kept = true;
        content.given_back = content.map.extents.end().saturating_sub(occupied);
        content.note_room();
        Ok(content)
    }

    /// Brings bytes written at `offset` into the staging file. They are the content's once
    /// [`StagedContent::record`] is told of the extents.
    pub(crate) fn stage(&self, offset: u64, data: &[u8]) -> io::Result<Vec<Extent>> {
        let mut extents = self
            .map
            .extents
            .place(&(offset..offset + data.len() as u64));
        let mut rest = data;
        for extent in &mut extents {
            let (bytes, after) = rest.split_at(in_memory(extent.len));
            self.file.write_all_at(bytes, extent.place)?;
            extent.seal(bytes);
            rest = after;
        }
        Ok(extents)
    }

    /// Brings zeros into the staging file, for which the disk needs no room. Like [`StagedContent::stage`], they are the
    /// content's once [`StagedContent::record`] is told of the extents.
    pub(crate) fn stage_zeros(&self, range: Range<u64>) -> io::Result<Vec<Extent>> {
        let end = self.map.extents.end();
        let mut extent = self.map.extents.append(range);
        // What is beyond the end was written and came to nothing: it is cut off first.
        self.file.set_len(end)?;
        self.file.set_len(end + extent.len)?;
        extent.chunk.checksum = checksum_of_zeros(extent.len);
        Ok(vec![extent])
    }

    /// The staged bytes of these extents are the content's from now on.
    pub(crate) fn record(&mut self, extents: &[Extent]) {
        self.map.record(extents);
        self.note_room();
    }

    /// Bytes that its file takes of the disk.
    fn room(&self) -> u64 {
        self.map.extents.end().saturating_sub(self.given_back)
    }

    fn note_room(&mut self) {
        self.account.set(self.room());
    }

    /// What the file has that nobody reads again, if that may be more than `slack` bytes and more than what it has
    /// else. The places of it are never written again.
    pub(crate) fn dead(&mut self, slack: u64) -> Option<Dead> {
        // An upload reads what may have been written over since.
        if self.is_frozen || self.room() <= self.look_at.max(slack) {
            return None;
        }
        let dead = Dead {
            file: Arc::clone(&self.file),
            ranges: whole_blocks(self.map.extents.dead(), slack),
        };
        let live = self.map.extents.end() - dead.bytes();
        self.look_at = live.saturating_mul(2).saturating_add(slack);
        (dead.bytes() > self.given_back).then_some(dead)
    }

    /// The disk has `dead` back.
    pub(crate) fn gave_back(&mut self, dead: &Dead) {
        if Arc::ptr_eq(&self.file, &dead.file) {
            self.given_back = dead.bytes();
            self.note_room();
        }
    }

    /// Cuts the content off at `size`, or lets zeros follow up to it.
    pub(crate) fn resize(&mut self, size: u64) {
        self.map.resize(size);
    }

    /// Where its bytes are.
    pub(crate) fn map(&self) -> &ContentMap {
        &self.map
    }

    /// Bytes that are not in the bucket.
    pub(crate) fn dirty_bytes(&self) -> u64 {
        self.map.extents.dirty_bytes()
    }

    /// Where the bytes of `range` are.
    pub(crate) fn sources(&self, range: Range<u64>) -> Vec<(Range<u64>, ContentSource)> {
        content_sources(&self.map.extents, self.map.base_len, range)
    }

    /// Fills `buffer` from the staging file.
    pub(crate) fn read_at(&self, buffer: &mut [u8], place: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, place)
    }

    /// What an upload reads: it stays as it is until [`StagedContent::uploaded`] or
    /// [`StagedContent::abandoned`].
    pub(crate) fn freeze(&mut self) -> FrozenContent {
        self.is_frozen = true;
        FrozenContent {
            file: Arc::clone(&self.file),
            map: self.map.freeze(),
        }
    }

    /// The upload of `frozen` made an object of `size` bytes: what was written since lies over that.
    pub(crate) fn uploaded(&mut self, frozen: &FrozenContent, size: u64) {
        self.map.uploaded(&frozen.map, size);
        self.is_frozen = false;
    }

    /// The upload came to nothing.
    pub(crate) fn abandoned(&mut self) {
        self.map.thaw();
        self.is_frozen = false;
    }

    /// What is there now is not written over any more; returns the file, to be synced.
    pub(crate) fn keep(&mut self) -> Arc<StagingFile> {
        self.map.extents.keep();
        self.is_kept = true;
        Arc::clone(&self.file)
    }

    /// Whether somebody was told that the disk has some of it.
    pub(crate) fn is_kept(&self) -> bool {
        self.is_kept
    }
}

/// The content of a file as it was when an upload began.
#[derive(Debug, Clone)]
pub(crate) struct FrozenContent {
    file: Arc<StagingFile>,
    map: FrozenMap,
}

impl FrozenContent {
    /// Where the bytes of `range` are.
    pub(crate) fn sources(&self, range: Range<u64>) -> Vec<(Range<u64>, ContentSource)> {
        content_sources(&self.map.extents, self.map.base_len, range)
    }

    /// The ranges written here, in order.
    pub(crate) fn dirty(&self) -> Vec<Range<u64>> {
        self.map.extents.iter().map(Extent::range).collect()
    }

    /// Bytes of the object that are still the file's.
    pub(crate) fn base_len(&self) -> u64 {
        self.map.base_len
    }

    /// The staging file.
    pub(crate) fn file(&self) -> Arc<StagingFile> {
        Arc::clone(&self.file)
    }
}

/// Where the bytes of a range of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContentSource {
    /// In the staging file, from this place on.
    Staged(u64),
    /// In the object the file is based on, at the same offset.
    Base,
    /// Nowhere: they are zeros.
    Zeros,
}

fn content_sources(
    extents: &ExtentMap,
    base_len: u64,
    range: Range<u64>,
) -> Vec<(Range<u64>, ContentSource)> {
    let mut parts = Vec::new();
    for (range, source) in extents.sources(range) {
        match source {
            Source::Staged(place) => parts.push((range, ContentSource::Staged(place))),
            Source::Clean => {
                let edge = base_len.clamp(range.start, range.end);
                if range.start < edge {
                    parts.push((range.start..edge, ContentSource::Base));
                }
                if edge < range.end {
                    parts.push((edge..range.end, ContentSource::Zeros));
                }
            }
        }
    }
    parts
}

/// The CRC-32C of `len` zeros, in as many steps as `len` has bits.
fn checksum_of_zeros(len: u64) -> u32 {
    let (mut checksum, mut rest) = (0, len);
    let (mut power, mut zeros) = (crc32c::crc32c(&[0]), 1);
    while rest > 0 {
        if rest & 1 == 1 {
            checksum = crc32c::crc32c_combine(checksum, power, in_memory(zeros));
        }
        rest >>= 1;
        if rest > 0 {
            power = crc32c::crc32c_combine(power, power, in_memory(zeros));
            zeros <<= 1;
        }
    }
    checksum
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::config::options::MinFree;
    use crate::fs::budget::StagingBudget;
    use crate::fs::staging::Staging;

    fn budget() -> Arc<StagingBudget> {
        StagingBudget::new(u64::MAX, MinFree::Bytes(0))
    }

    fn staged(base_len: u64) -> (tempfile::TempDir, StagedContent) {
        let dir = tempfile::tempdir().unwrap();
        let content = Staging::open(dir.path().join("staging"), budget())
            .unwrap()
            .create(7, base_len)
            .unwrap();
        (dir, content)
    }

    fn write(content: &mut StagedContent, offset: u64, bytes: &[u8]) {
        let extents = content.stage(offset, bytes).unwrap();
        content.record(&extents);
    }

    #[test]
    fn what_was_cut_off_comes_back_as_zeros_not_as_the_objects_bytes() {
        let (_dir, mut content) = staged(100);
        content.resize(40);
        content.resize(80);
        assert_eq!(
            content.sources(0..80),
            [(0..40, ContentSource::Base), (40..80, ContentSource::Zeros)]
        );
    }

    #[test]
    fn bytes_cut_off_while_an_upload_runs_do_not_come_back_with_it() {
        let (_dir, mut content) = staged(0);
        write(&mut content, 0, &[1; 100]);
        let frozen = content.freeze();
        content.resize(40);
        content.resize(100);
        content.uploaded(&frozen, 100);
        assert_eq!(
            content.sources(0..100),
            [
                (0..40, ContentSource::Base),
                (40..100, ContentSource::Zeros)
            ]
        );
    }

    #[test]
    fn bytes_written_while_an_upload_runs_are_still_dirty_after_it() {
        let (_dir, mut content) = staged(0);
        write(&mut content, 0, &[1; 10]);
        let frozen = content.freeze();
        write(&mut content, 5, &[2; 10]);
        content.uploaded(&frozen, 10);
        assert_eq!(content.dirty_bytes(), 10);
        let [
            (_, ContentSource::Base),
            (ref range, ContentSource::Staged(place)),
        ] = content.sources(0..15)[..]
        else {
            panic!("unexpected sources {:?}", content.sources(0..15));
        };
        let mut bytes = [0; 10];
        content.read_at(&mut bytes, place).unwrap();
        assert_eq!((range.clone(), bytes), (5..15, [2; 10]));
    }

    #[test]
    fn bytes_that_are_not_what_was_written_are_found_out() {
        let dir = tempfile::tempdir().unwrap();
        let staging = Staging::open(dir.path().to_path_buf(), budget()).unwrap();
        let mut content = staging.create(7, 30).unwrap();
        write(&mut content, 0, &[1; 10]);
        assert!(content.map().is_intact(None, staging.verifier(7)));
        write(&mut content, 20, &[2; 10]);
        // The second write never reached the disk.
        content.file.set_len(10).unwrap();
        content.file.set_len(20).unwrap();
        assert!(!content.map().is_intact(None, staging.verifier(7)));
    }

    #[test]
    fn zeros_have_the_checksum_of_zeros() {
        for len in [0, 1, 2, 3, 7, 4096, 100_000, 1 << 20, (1 << 20) + 5] {
            let expected = crc32c::crc32c(&vec![0; in_memory(len)]);
            assert_eq!(checksum_of_zeros(len), expected, "{len}");
        }
    }

    #[test]
    fn zeros_take_no_room_and_nothing_that_was_given_up_shows_in_them() {
        let dir = tempfile::tempdir().unwrap();
        let staging = Staging::open(dir.path().to_path_buf(), budget()).unwrap();
        let mut content = staging.create(7, 1 << 30).unwrap();
        write(&mut content, 0, &[1; 10]);
        // It came to nothing: nobody was told of the extents.
        content.stage(10, &[2; 100_000]).unwrap();
        let extents = content.stage_zeros(5..1 << 29).unwrap();
        content.record(&extents);
        let mut bytes = [3; 1000];
        content.read_at(&mut bytes, extents[0].place).unwrap();
        assert_eq!(bytes, [0; 1000]);
        assert!(content.file.metadata().unwrap().blocks() < 100);
        assert_eq!(content.map().extents().count(), 2);
        assert!(content.map().is_intact(None, staging.verifier(7)));
    }

    #[test]
    fn what_the_disk_is_known_to_have_is_not_written_over_when_an_upload_has_failed() {
        let (_dir, mut content) = staged(0);
        write(&mut content, 0, &[1; 10]);
        content.keep();
        content.freeze();
        content.abandoned();
        write(&mut content, 0, &[2; 10]);
        let mut bytes = [0; 10];
        content.read_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [1; 10]);
    }
}
