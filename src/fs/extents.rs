//! Which ranges of a file are dirty, and where in its staging file their bytes are. No I/O.
//!
//! The staging file is written in two ways only: at its end, or over exactly one whole chunk that nobody has
//! frozen. So an upload that took a copy of the map at [`ExtentMap::freeze`] reads the same bytes for as
//! long as it runs, whatever is written meanwhile; and a chunk's checksum can be verified for as long as any
//! of its bytes are in use.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Bytes of the staging file that were written together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Chunk {
    /// Where it begins in the staging file.
    pub place: u64,
    /// Bytes.
    pub len: u64,
    /// CRC-32C of its bytes.
    pub checksum: u32,
}

/// A run of dirty bytes: `offset` in the file, `place` in the staging file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Extent {
    /// Where it begins in the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Where it begins in the staging file.
    pub place: u64,
    /// What it is the whole or a part of.
    pub chunk: Chunk,
    /// An upload may be reading it: it is not written over.
    #[serde(skip)]
    pub frozen: bool,
    /// Somebody was told that the disk has it: nor is it then.
    #[serde(skip)]
    pub kept: bool,
}

impl Extent {
    /// The range of the file it holds.
    pub(crate) fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.len
    }

    /// Takes the checksum of the bytes that are its chunk's.
    pub(crate) fn seal(&mut self, bytes: &[u8]) {
        self.chunk.checksum = crc32c::crc32c(bytes);
    }

    fn is_whole(&self) -> bool {
        self.place == self.chunk.place && self.len == self.chunk.len
    }
}

/// The dirty ranges of one file: in order, not empty, not overlapping.
#[derive(Debug, Clone, Default)]
pub(crate) struct ExtentMap {
    extents: BTreeMap<u64, Extent>,
    /// Where the staging file ends: the place of the next new extent.
    end: u64,
}

/// Where the bytes of one range come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// The staging file, from this place on.
    Staged(u64),
    /// Nobody wrote here: the object the file is based on, or zeros beyond its end.
    Clean,
}

impl ExtentMap {
    /// Dirty bytes.
    pub(crate) fn dirty_bytes(&self) -> u64 {
        self.extents.values().map(|e| e.len).sum()
    }

    /// Bytes of the staging file that are of use, or were. It only grows: what was given back to the disk, perhaps
    /// at this moment, is never a place again.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// The extents, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Extent> {
        self.extents.values()
    }

    /// Where the bytes of a write of `range` go in the staging file, piece by piece and in order. They are
    /// dirty once they are sealed and [`ExtentMap::record`] was told that they are there.
    pub(crate) fn place(&self, range: &Range<u64>) -> Vec<Extent> {
        let mut pieces = Vec::new();
        let mut at = range.start;
        let mut end = self.end;
        let mut append = |range: Range<u64>, pieces: &mut Vec<Extent>| {
            if !range.is_empty() {
                let extent = unsealed(range, end);
                end += extent.len;
                pieces.push(extent);
            }
        };
        let is_inside = |e: &&Extent| range.start <= e.offset && e.range().end <= range.end;
        for reused in self.overlapping(range).filter(is_inside) {
            if reused.frozen || reused.kept || !reused.is_whole() {
                continue;
            }
            append(at..reused.offset, &mut pieces);
            at = reused.range().end;
            pieces.push(*reused);
        }
        append(at..range.end, &mut pieces);
        pieces
    }

    /// Likewise, in one piece at the end of the staging file.
    pub(crate) fn append(&self, range: Range<u64>) -> Extent {
        unsealed(range, self.end)
    }

    /// The bytes of `range` are where [`ExtentMap::place`] said.
    pub(crate) fn record(&mut self, range: &Range<u64>, pieces: &[Extent]) {
        self.remove(range);
        for piece in pieces {
            self.end = self.end.max(piece.place + piece.len);
            self.insert(*piece);
        }
    }

    /// Cuts the file off at `size`.
    pub(crate) fn truncate(&mut self, size: u64) {
        self.remove(&(size..u64::MAX));
    }

    /// Marks all that is dirty now as being read by an upload, and returns the map as it is.
    pub(crate) fn freeze(&mut self) -> Self {
        for extent in self.extents.values_mut() {
            extent.frozen = true;
        }
        self.clone()
    }

    /// Marks all that is dirty now as what the disk is known to have: it is not written over, whatever becomes of
    /// uploads.
    pub(crate) fn keep(&mut self) {
        for extent in self.extents.values_mut() {
            extent.kept = true;
        }
    }

    /// Whether `is_intact` says yes to every chunk of it that `elsewhere` does not have.
    pub(crate) fn is_intact(
        &self,
        elsewhere: Option<&Self>,
        mut is_intact: impl FnMut(&Chunk) -> bool,
    ) -> bool {
        self.extents
            .values()
            .filter(|extent| !elsewhere.is_some_and(|elsewhere| elsewhere.has(extent)))
            .all(|extent| is_intact(&extent.chunk))
    }

    /// Whether some of the bytes of `extent`, a map's that this was a copy of, are in it.
    fn has(&self, extent: &Extent) -> bool {
        self.overlapping(&extent.range()).any(|own| {
            // The same bytes: at the same distance from their place in the staging file.
            own.place.wrapping_sub(own.offset) == extent.place.wrapping_sub(extent.offset)
        })
    }

    /// No upload reads any more.
    pub(crate) fn thaw(&mut self) {
        for extent in self.extents.values_mut() {
            extent.frozen = false;
        }
    }

    /// Drops what `uploaded` (a copy that [`ExtentMap::freeze`] gave) holds, but for the bytes written
    /// since; the rest may be written over again.
    pub(crate) fn forget_uploaded(&mut self, uploaded: &Self) {
        let kept: Vec<Extent> = self
            .extents
            .values()
            .filter(|e| !uploaded.has(e))
            .copied()
            .collect();
        self.extents.clear();
        for extent in kept {
            self.extents.insert(
                extent.offset,
                Extent {
                    frozen: false,
                    ..extent
                },
            );
        }
    }

    /// The ranges of the staging file that no chunk of the map is in, in order. A chunk is of use as a whole, whatever
    /// was written over: its checksum is that of all of it.
    pub(crate) fn dead(&self) -> Vec<Range<u64>> {
        let chunks = self.extents.values().map(|extent| extent.chunk);
        let mut live: Vec<_> = chunks.map(|c| (c.place, c.place + c.len)).collect();
        live.sort_unstable();
        let mut dead = Vec::new();
        let mut at = 0;
        for (start, end) in live.into_iter().chain([(self.end, self.end)]) {
            if at < start {
                dead.push(at..start);
            }
            at = at.max(end);
        }
        dead
    }

    /// Splits `range` by where its bytes come from, in order and without gaps.
    pub(crate) fn sources(&self, range: Range<u64>) -> Vec<(Range<u64>, Source)> {
        let mut parts = Vec::new();
        let mut at = range.start;
        for extent in self.overlapping(&range) {
            let piece = cut(extent, &range);
            if at < piece.offset {
                parts.push((at..piece.offset, Source::Clean));
            }
            parts.push((piece.range(), Source::Staged(piece.place)));
            at = piece.offset + piece.len;
        }
        if at < range.end {
            parts.push((at..range.end, Source::Clean));
        }
        parts
    }

    fn overlapping<'a>(&'a self, range: &Range<u64>) -> impl Iterator<Item = &'a Extent> + use<'a> {
        let first = self
            .extents
            .range(..=range.start)
            .next_back()
            .filter(|(_, e)| e.offset + e.len > range.start)
            .map_or(range.start, |(offset, _)| *offset);
        let end = range.end.max(first);
        self.extents.range(first..end).map(|(_, e)| e)
    }

    fn remove(&mut self, range: &Range<u64>) {
        let old: Vec<Extent> = self.overlapping(range).copied().collect();
        for extent in old {
            self.extents.remove(&extent.offset);
            let end = extent.offset + extent.len;
            if extent.offset < range.start {
                let len = range.start - extent.offset;
                self.extents.insert(extent.offset, Extent { len, ..extent });
            }
            if end > range.end {
                let skipped = range.end - extent.offset;
                self.extents.insert(
                    range.end,
                    Extent {
                        offset: range.end,
                        len: extent.len - skipped,
                        place: extent.place + skipped,
                        ..extent
                    },
                );
            }
        }
    }

    /// Adds an extent where there is none, joined with its left neighbour if it goes on from there:
    /// an appender's thousand writes are one extent.
    fn insert(&mut self, extent: Extent) {
        if let Some((_, left)) = self.extents.range_mut(..extent.offset).next_back()
            && left.offset + left.len == extent.offset
            && left.place + left.len == extent.place
            && left.frozen == extent.frozen
            && left.kept == extent.kept
            && left.is_whole()
            && extent.is_whole()
        {
            let joined = usize::try_from(extent.len).expect("usize has 64 bits");
            left.chunk.checksum =
                crc32c::crc32c_combine(left.chunk.checksum, extent.chunk.checksum, joined);
            left.len += extent.len;
            left.chunk.len = left.len;
            return;
        }
        self.extents.insert(extent.offset, extent);
    }
}

/// A chunk of its own at `place`, without its checksum.
fn unsealed(range: Range<u64>, place: u64) -> Extent {
    let len = range.end - range.start;
    Extent {
        offset: range.start,
        len,
        place,
        chunk: Chunk {
            place,
            len,
            checksum: 0,
        },
        frozen: false,
        kept: false,
    }
}

/// The part of `extent` that lies in `range`.
fn cut(extent: &Extent, range: &Range<u64>) -> Extent {
    let start = extent.offset.max(range.start);
    let end = (extent.offset + extent.len).min(range.end);
    Extent {
        offset: start,
        len: end - start,
        place: extent.place + (start - extent.offset),
        ..*extent
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A file, its staging file and its map, driven together.
    #[derive(Default)]
    struct Staged {
        map: ExtentMap,
        staging: Vec<u8>,
    }

    impl Staged {
        fn write(&mut self, range: Range<u64>, byte: u8) {
            let mut pieces = self.map.place(&range);
            for piece in &mut pieces {
                piece.seal(&vec![byte; usize::try_from(piece.len).unwrap()]);
            }
            self.map.record(&range, &pieces);
            for piece in pieces {
                let place = usize::try_from(piece.place).unwrap();
                let len = usize::try_from(piece.len).unwrap();
                if self.staging.len() < place + len {
                    self.staging.resize(place + len, 0);
                }
                self.staging[place..place + len].fill(byte);
            }
        }

        fn read(&self, map: &ExtentMap, size: u64) -> Vec<Option<u8>> {
            let mut bytes = Vec::new();
            for (range, source) in map.sources(0..size) {
                for i in 0..range.end - range.start {
                    bytes.push(match source {
                        Source::Staged(place) => {
                            Some(self.staging[usize::try_from(place + i).unwrap()])
                        }
                        Source::Clean => None,
                    });
                }
            }
            bytes
        }
    }

    #[test]
    fn an_appender_keeps_one_extent() {
        let mut staged = Staged::default();
        for i in 0..100 {
            staged.write(i * 10..i * 10 + 10, 1);
        }
        assert_eq!(staged.map.iter().count(), 1);
        assert_eq!(staged.map.dirty_bytes(), 1000);
    }

    #[test]
    fn rewriting_the_same_bytes_does_not_grow_the_staging_file() {
        let mut staged = Staged::default();
        for byte in 0..100 {
            staged.write(4096..8192, byte);
        }
        assert_eq!(staged.staging.len(), 4096);
    }

    #[derive(Debug, Clone)]
    enum Op {
        Write(u64, u64, u8),
        Truncate(u64),
        Freeze,
        Finish,
        Abandon,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            6 => (0..200u64, 1..60u64, 1..=255u8).prop_map(|(o, l, b)| Op::Write(o, l, b)),
            1 => (0..260u64).prop_map(Op::Truncate),
            1 => Just(Op::Freeze),
            1 => Just(Op::Finish),
            1 => Just(Op::Abandon),
        ]
    }

    proptest! {
        /// The map says the same as an array of bytes, what an upload froze stays as it was, and after the
        /// upload exactly the bytes written since are dirty.
        #[test]
        fn it_behaves_like_an_array_of_bytes(ops in proptest::collection::vec(op(), 1..60)) {
            const SIZE: u64 = 300;
            let mut staged = Staged::default();
            let mut model = vec![None; 300];
            let mut frozen: Option<(ExtentMap, Vec<Option<u8>>)> = None;
            // Bytes written while an upload runs stay dirty after it.
            let mut since = vec![None; 300];
            for op in ops {
                match op {
                    Op::Write(offset, len, byte) => {
                        staged.write(offset..offset + len, byte);
                        for i in offset..offset + len {
                            model[usize::try_from(i).unwrap()] = Some(byte);
                            since[usize::try_from(i).unwrap()] = Some(byte);
                        }
                    }
                    Op::Truncate(size) => {
                        staged.map.truncate(size);
                        model[usize::try_from(size).unwrap()..].fill(None);
                        since[usize::try_from(size).unwrap()..].fill(None);
                    }
                    Op::Freeze if frozen.is_none() => {
                        frozen = Some((staged.map.freeze(), model.clone()));
                        since = vec![None; 300];
                    }
                    Op::Finish => {
                        if let Some((map, _)) = frozen.take() {
                            staged.map.forget_uploaded(&map);
                            model.clone_from(&since);
                        }
                    }
                    Op::Abandon => {
                        if frozen.take().is_some() {
                            staged.map.thaw();
                        }
                    }
                    Op::Freeze => {}
                }
                prop_assert_eq!(staged.read(&staged.map, SIZE), model.clone());
                let staging = &staged.staging;
                let is_intact = staged.map.is_intact(None, |chunk| {
                    let range = usize::try_from(chunk.place).unwrap()
                        ..usize::try_from(chunk.place + chunk.len).unwrap();
                    crc32c::crc32c(&staging[range]) == chunk.checksum
                });
                prop_assert!(is_intact);
                if let Some((map, bytes)) = &frozen {
                    prop_assert_eq!(&staged.read(map, SIZE), bytes);
                }
            }
        }
    }
}
