//! Rows in shared memory, which outlive a process that is killed.
//!
//! The memory is a memfd of slots of 64 bytes, written with pwrite(2): a slot lies in one page, and of what is written
//! into one page a kill leaves all or nothing. A row is a head slot, and slots that go on where its bytes do not fit.
//! They are written first, so that the head is the commit.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::sys::memfd::{MFdFlags, memfd_create};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::fs::format::{Format, Formats};
use crate::fs::sparse::SparseArray;

/// Bytes of a slot.
pub(crate) const SLOT: usize = 64;

/// What a head slot has before its bytes: the row's kind, three bytes that are 0, the next slot (4), the row's number
/// (8), the length (4).
const HEAD: usize = 20;

/// What a slot that goes on has: [`FURTHER`], three bytes that are 0, the next slot (4).
const MORE: usize = 8;

/// The kind of a slot that is not in use, and of one that goes on. No row is of these.
const UNUSED: u8 = 0;
const FURTHER: u8 = u8::MAX;

/// The first slot says what this is, and in which format. So far all formats are alike.
const MAGIC: [u8; 8] = *b"bvtable\0";

/// Rows by kind and number.
#[derive(Debug)]
pub(crate) struct Table {
    file: File,
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    /// The head slots by the rows' kinds and numbers.
    heads: FxHashMap<u8, SparseArray<u32>>,
    /// The further slots of rows that have any, by their heads.
    further: FxHashMap<u32, Vec<u32>>,
    free: Vec<u32>,
    /// Slots that the memory has.
    len: u32,
}

/// What an earlier process has written: a copy of its memory, every row of which is whole.
#[derive(Debug)]
pub(crate) struct Rows {
    memory: Vec<u8>,
    count: usize,
}

impl Rows {
    /// How many rows there are.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The rows, in the order of their places.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        let heads = self.memory.chunks_exact(SLOT).skip(1);
        heads
            .filter(|slot| is_head(slot))
            .map(|head| self.row(head))
    }

    fn row<'a>(&'a self, head: &'a [u8]) -> Row<'a> {
        let total = len_of(head);
        let mut bytes = Cow::Borrowed(&head[HEAD..][..total.min(SLOT - HEAD)]);
        let mut next = next_of(head);
        while bytes.len() < total {
            let slot = &self.memory[next as usize * SLOT..][..SLOT];
            let left = total - bytes.len();
            bytes
                .to_mut()
                .extend_from_slice(&slot[MORE..][..left.min(SLOT - MORE)]);
            next = next_of(slot);
        }
        Row {
            kind: head[0],
            id: id_of(head),
            bytes,
        }
    }
}

/// A row as an earlier process has written it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row<'a> {
    pub(crate) kind: u8,
    pub(crate) id: u64,
    pub(crate) bytes: Cow<'a, [u8]>,
}

impl Row<'_> {
    /// What was put as a number.
    pub(crate) fn number(&self) -> io::Result<u64> {
        let bytes = self.bytes.as_ref().try_into();
        Ok(u64::from_le_bytes(bytes.map_err(|_| unreadable())?))
    }

    /// What [`Table::put_as`] was given.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> io::Result<T> {
        postcard::from_bytes(&self.bytes).map_err(|_| unreadable())
    }
}

/// A row says what no release of this format has written.
pub(crate) fn unreadable() -> io::Error {
    let text = "what an earlier process has kept of its mounts cannot be read";
    io::Error::new(io::ErrorKind::InvalidData, text)
}

impl Table {
    /// An empty one.
    pub(crate) fn new(format: Format) -> io::Result<Self> {
        let file: File = memfd_create("bucketvol", MFdFlags::MFD_CLOEXEC)?.into();
        let slots = Slots {
            len: 1,
            ..Slots::default()
        };
        let table = Self {
            file,
            slots: Mutex::new(slots),
        };
        table.set_format(format)?;
        Ok(table)
    }

    /// What is written from now on is of this format, and so is what was.
    pub(crate) fn set_format(&self, format: Format) -> io::Result<()> {
        let mut first = [0; SLOT];
        first[..8].copy_from_slice(&MAGIC);
        first[8..12].copy_from_slice(&format.number().to_ne_bytes());
        self.write_slot(0, &first)
    }

    /// Goes on with the memory of an earlier process, and returns what that has written.
    pub(crate) fn reopen(memory: OwnedFd, formats: Formats) -> io::Result<(Self, Rows)> {
        let file: File = memory.into();
        check_format(file.as_fd(), formats)?;
        let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        let mut memory = vec![0; len];
        file.read_exact_at(&mut memory, 0)?;
        let slots = check(&memory)?;
        let count = slots.heads.values().map(|rows| rows.iter().count()).sum();
        let slots = Mutex::new(slots);
        Ok((Self { file, slots }, Rows { memory, count }))
    }

    /// Writes a row, in place of the one there is of this kind and number.
    pub(crate) fn put(&self, kind: u8, id: u64, bytes: &[u8]) -> io::Result<()> {
        let total = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        let (here, rest) = bytes.split_at(bytes.len().min(SLOT - HEAD));
        let mut slots = self.slots.lock();
        let further = self.write_further(&mut slots, rest)?;
        let mut head = [0; SLOT];
        head[0] = kind;
        head[4..8].copy_from_slice(&further.first().copied().unwrap_or(0).to_ne_bytes());
        head[8..16].copy_from_slice(&id.to_ne_bytes());
        head[16..HEAD].copy_from_slice(&total.to_ne_bytes());
        head[HEAD..][..here.len()].copy_from_slice(here);
        let at = slots.head(kind, id).unwrap_or_else(|| slots.take());
        self.write_slot(at, &head)?;
        slots.heads.entry(kind).or_default().insert(id, at);
        slots.set_further(at, further);
        Ok(())
    }

    /// Writes a row of anything.
    pub(crate) fn put_as(&self, kind: u8, id: u64, row: &impl Serialize) -> io::Result<()> {
        let bytes = postcard::to_stdvec(row).map_err(io::Error::other)?;
        self.put(kind, id, &bytes)
    }

    /// Writes a row of a number.
    pub(crate) fn put_number(&self, kind: u8, id: u64, number: u64) -> io::Result<()> {
        self.put(kind, id, &number.to_le_bytes())
    }

    /// Removes a row, if it is there.
    pub(crate) fn remove(&self, kind: u8, id: u64) -> io::Result<()> {
        let mut slots = self.slots.lock();
        let Some(at) = slots.head(kind, id) else {
            return Ok(());
        };
        self.write_slot(at, &[0; SLOT])?;
        slots.heads.entry(kind).or_default().remove(id);
        slots.set_further(at, Vec::new());
        slots.free.push(at);
        Ok(())
    }

    /// Bytes of shared memory.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> u64 {
        u64::from(self.slots.lock().len) * SLOT as u64
    }

    fn write_further(&self, slots: &mut Slots, bytes: &[u8]) -> io::Result<Vec<u32>> {
        let pieces: Vec<&[u8]> = bytes.chunks(SLOT - MORE).collect();
        let places: Vec<u32> = pieces.iter().map(|_| slots.take()).collect();
        for (i, piece) in pieces.iter().enumerate() {
            let mut slot = [0; SLOT];
            let next = places.get(i + 1).copied().unwrap_or(0);
            slot[0] = FURTHER;
            slot[4..MORE].copy_from_slice(&next.to_ne_bytes());
            slot[MORE..][..piece.len()].copy_from_slice(piece);
            self.write_slot(places[i], &slot)?;
        }
        Ok(places)
    }

    fn write_slot(&self, at: u32, slot: &[u8; SLOT]) -> io::Result<()> {
        self.file.write_all_at(slot, u64::from(at) * SLOT as u64)
    }
}

impl AsFd for Table {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Slots {
    fn head(&self, kind: u8, id: u64) -> Option<u32> {
        self.heads.get(&kind)?.get(id).copied()
    }

    fn take(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.len += 1;
            self.len - 1
        })
    }

    fn set_further(&mut self, head: u32, further: Vec<u32>) {
        let before = if further.is_empty() {
            self.further.remove(&head)
        } else {
            self.further.insert(head, further)
        };
        self.free.extend(before.into_iter().flatten());
    }
}

/// Fails unless the memory is a table of a format that is known.
pub fn check_format(memory: BorrowedFd<'_>, formats: Formats) -> io::Result<()> {
    let mut first = [0; 12];
    File::from(memory.try_clone_to_owned()?).read_exact_at(&mut first, 0)?;
    let (magic, number) = first.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(unreadable());
    }
    let number = u32::from_ne_bytes([number[0], number[1], number[2], number[3]]);
    let known = formats.read(number).map(drop);
    known.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Finds the rows, and that each is whole.
fn check(memory: &[u8]) -> io::Result<Slots> {
    let unreadable = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    // What a kill has cut off at the end was committed by nothing.
    let all: Vec<&[u8]> = memory.chunks_exact(SLOT).collect();
    let mut slots = Slots {
        len: u32::try_from(all.len()).map_err(io::Error::other)?,
        ..Slots::default()
    };
    let mut is_used = vec![false; all.len()];
    is_used[0] = true;
    for (at, head) in (0..slots.len).zip(&all).skip(1) {
        if !is_head(head) {
            continue;
        }
        is_used[at as usize] = true;
        let mut left = len_of(head).saturating_sub(SLOT - HEAD);
        let mut further = Vec::new();
        let mut next = next_of(head);
        while left > 0 {
            let (Some(slot), Some(used)) = (all.get(next as usize), is_used.get_mut(next as usize))
            else {
                return Err(unreadable("a row of the shared memory leads nowhere"));
            };
            if slot[0] != FURTHER || std::mem::replace(used, true) {
                return Err(unreadable("a row of the shared memory is not whole"));
            }
            left = left.saturating_sub(SLOT - MORE);
            further.push(next);
            next = next_of(slot);
        }
        let rows = slots.heads.entry(head[0]).or_default();
        rows.insert(id_of(head), at);
        slots.set_further(at, further);
    }
    let unused = (0..slots.len).zip(is_used).filter(|(_, is_used)| !is_used);
    slots.free = unused.map(|(at, _)| at).collect();
    Ok(slots)
}

fn is_head(slot: &[u8]) -> bool {
    !matches!(slot[0], UNUSED | FURTHER)
}

/// The slot that goes on where this one ends.
fn next_of(slot: &[u8]) -> u32 {
    u32::from_ne_bytes([slot[4], slot[5], slot[6], slot[7]])
}

/// The number of the row that begins here.
fn id_of(head: &[u8]) -> u64 {
    let mut id = [0; 8];
    id.copy_from_slice(&head[8..16]);
    u64::from_ne_bytes(id)
}

/// Its bytes.
fn len_of(head: &[u8]) -> usize {
    u32::from_ne_bytes([head[16], head[17], head[18], head[19]]) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// The next process, and what it finds.
    fn reopened(table: &Table) -> (Table, BTreeMap<(u8, u64), Vec<u8>>) {
        let memory = table.as_fd().try_clone_to_owned().unwrap();
        let (table, rows) = Table::reopen(memory, Formats::default()).unwrap();
        let found = rows
            .iter()
            .map(|row| ((row.kind, row.id), row.bytes.into_owned()));
        let found: BTreeMap<_, _> = found.collect();
        assert_eq!(found.len(), rows.count());
        (table, found)
    }

    proptest! {
        /// Whatever was written and removed, the next process finds what is there, and goes on with it.
        #[test]
        fn rows_are_what_was_written_last(
            steps in prop::collection::vec((1_u8..4, 0_u64..6, prop::option::of(0_usize..300), any::<bool>()), 1..60)
        ) {
            let mut table = Table::new(Format::CURRENT).unwrap();
            let mut expected = BTreeMap::new();
            for (i, (kind, id, len, reopen)) in steps.into_iter().enumerate() {
                match len {
                    Some(len) => {
                        let bytes = vec![u8::try_from(i).unwrap(); len];
                        table.put(kind, id, &bytes).unwrap();
                        expected.insert((kind, id), bytes);
                    }
                    None => {
                        table.remove(kind, id).unwrap();
                        expected.remove(&(kind, id));
                    }
                }
                if reopen {
                    table = reopened(&table).0;
                }
            }
            prop_assert_eq!(reopened(&table).1, expected);
            // 18 rows of at most 7 slots, one that is written beside, and the first.
            prop_assert!(table.bytes() <= (18 * 7 + 6 + 1) * SLOT as u64);
        }

        #[test]
        fn whatever_the_memory_holds_it_is_read_or_refused(garbage in prop::collection::vec(any::<u8>(), 0..640)) {
            let mut bytes = vec![0; SLOT];
            bytes.extend(garbage);
            if let Ok(slots) = check(&bytes) {
                let count = slots.heads.values().map(|rows| rows.iter().count()).sum();
                let rows = Rows { memory: bytes, count };
                prop_assert!(rows.iter().count() >= rows.count());
            }
        }
    }

    #[test]
    fn a_row_that_was_not_committed_is_not_there() {
        let table = Table::new(Format::CURRENT).unwrap();
        table.put(1, 7, &[1; 100]).unwrap();
        // Killed before the head was written.
        let mut slots = table.slots.lock();
        table.write_further(&mut slots, &[2; 56]).unwrap();
        drop(slots);
        let (again, rows) = reopened(&table);
        assert_eq!(rows, BTreeMap::from([((1, 7), vec![1; 100])]));
        assert_eq!(again.slots.lock().free.len(), 1);
    }

    #[test]
    fn memory_of_a_format_that_is_not_known_is_refused() {
        let table = Table::new(Format::CURRENT).unwrap();
        let memory = || table.as_fd().try_clone_to_owned().unwrap();
        let before = Formats::trusted(Format::FIRST);
        let error = Table::reopen(memory(), before).unwrap_err().to_string();
        assert!(error.contains("it has format 3"), "{error}");
        table.set_format(Format::FIRST).unwrap();
        assert!(Table::reopen(memory(), before).is_ok());
        table.file.write_all_at(b"?", 0).unwrap();
        assert!(Table::reopen(memory(), before).is_err());
    }
}
