//! Where dirty bytes wait for their upload: one file of the host per dirty inode.
//!
//! The files have no name: what a process leaves behind when it dies is given back by the kernel. Which
//! bytes are where belongs to `extents`.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::extents::{ExtentMap, Source};

/// The directory that staging files are made in.
#[derive(Debug)]
pub(crate) struct Staging {
    directory: PathBuf,
}

impl Staging {
    /// Makes the directory if it is not there.
    pub(crate) fn open(directory: PathBuf) -> io::Result<Self> {
        std::fs::create_dir_all(&directory)
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", directory.display())))?;
        Ok(Self { directory })
    }

    /// A new staging file for content whose first `base_len` bytes are those of an object.
    pub(crate) fn create(&self, base_len: u64) -> io::Result<StagedContent> {
        Ok(StagedContent {
            file: Arc::new(tempfile::tempfile_in(&self.directory)?),
            extents: ExtentMap::default(),
            base_len,
            lowest_size: u64::MAX,
        })
    }
}

/// The content of a dirty file: bytes written here laid over the object it is based on.
#[derive(Debug)]
pub(crate) struct StagedContent {
    file: Arc<File>,
    extents: ExtentMap,
    /// Bytes of the object that are still the file's; what lies beyond and is not dirty is zeros.
    base_len: u64,
    /// The smallest size the file had since the last freeze: what an upload that is under way sends
    /// beyond it is not the file's any more.
    lowest_size: u64,
}

impl StagedContent {
    /// Takes bytes written at `offset`.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let range = offset..offset + data.len() as u64;
        let pieces = self.extents.place(&range);
        let mut rest = data;
        for piece in &pieces {
            let (bytes, after) = rest
                .split_at(usize::try_from(piece.len).expect("a piece is no longer than the data"));
            self.file.write_all_at(bytes, piece.place)?;
            rest = after;
        }
        self.extents.record(&range, &pieces);
        Ok(())
    }

    /// Cuts the content off at `size`, or lets zeros follow up to it.
    pub(crate) fn resize(&mut self, size: u64) {
        self.extents.truncate(size);
        self.base_len = self.base_len.min(size);
        self.lowest_size = self.lowest_size.min(size);
    }

    /// Bytes that are not in the bucket.
    pub(crate) fn dirty_bytes(&self) -> u64 {
        self.extents.dirty_bytes()
    }

    /// Where the bytes of `range` are.
    pub(crate) fn sources(&self, range: Range<u64>) -> Vec<(Range<u64>, ContentSource)> {
        content_sources(&self.extents, self.base_len, range)
    }

    /// Fills `buffer` from the staging file.
    pub(crate) fn read_at(&self, buffer: &mut [u8], place: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, place)
    }

    /// What an upload reads: it stays as it is until [`StagedContent::uploaded`] or
    /// [`StagedContent::abandoned`].
    pub(crate) fn freeze(&mut self) -> FrozenContent {
        self.lowest_size = u64::MAX;
        FrozenContent {
            file: Arc::clone(&self.file),
            extents: self.extents.freeze(),
            base_len: self.base_len,
        }
    }

    /// The upload of `frozen` made an object of `size` bytes: what was written since lies over that.
    pub(crate) fn uploaded(&mut self, frozen: &FrozenContent, size: u64) {
        self.extents.forget_uploaded(&frozen.extents);
        self.base_len = size.min(self.lowest_size);
    }

    /// The upload came to nothing.
    pub(crate) fn abandoned(&mut self) {
        self.extents.thaw();
    }
}

/// The content of a file as it was when an upload began.
#[derive(Debug, Clone)]
pub(crate) struct FrozenContent {
    file: Arc<File>,
    extents: ExtentMap,
    base_len: u64,
}

impl FrozenContent {
    /// Where the bytes of `range` are.
    pub(crate) fn sources(&self, range: Range<u64>) -> Vec<(Range<u64>, ContentSource)> {
        content_sources(&self.extents, self.base_len, range)
    }

    /// The ranges written here, in order.
    pub(crate) fn dirty(&self) -> Vec<Range<u64>> {
        self.extents
            .iter()
            .map(super::extents::Extent::range)
            .collect()
    }

    /// Bytes of the object that are still the file's.
    pub(crate) fn base_len(&self) -> u64 {
        self.base_len
    }

    /// The staging file.
    pub(crate) fn file(&self) -> Arc<File> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn staged(base_len: u64) -> (tempfile::TempDir, StagedContent) {
        let dir = tempfile::tempdir().unwrap();
        let content = Staging::open(dir.path().join("staging"))
            .unwrap()
            .create(base_len)
            .unwrap();
        (dir, content)
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
        content.write(0, &[1; 100]).unwrap();
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
        content.write(0, &[1; 10]).unwrap();
        let frozen = content.freeze();
        content.write(5, &[2; 10]).unwrap();
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
}
