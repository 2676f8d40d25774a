//! One file of the disk cache: the blocks of 4 MiB of one version of one object, as far as they were read.
//!
//! ```text
//! 0      magic (8 bytes), name of the content (32 bytes)
//! 64     an entry of 8 bytes for each of 32 blocks: length and CRC-32C, both little-endian; 0: not there
//! 4096   the blocks, each at its own place
//! ```
//!
//! A block is written before its entry, and nothing is synced: what a crash of the host has left half written does
//! not have the checksum that its entry says, and counts as not there. A file is only ever about one content: it is
//! removed and made anew, not written over.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use bytes::Bytes;

use crate::fs::block::BLOCK_SIZE;

/// Blocks of a chunk: as many as one GET brings.
pub(super) const CHUNK_BLOCKS: u64 = SLOTS as u64;

const SLOTS: usize = 32;

const MAGIC: [u8; 8] = *b"bvblock1";
const ENTRIES_AT: usize = 64;
const ENTRY_LEN: usize = 8;
const HEADER_LEN: usize = ENTRIES_AT + ENTRY_LEN * SLOTS;
const BLOCKS_AT: u64 = 4096;

/// The name of one chunk of one version of one object: no other has it.
pub(super) type Digest = [u8; 32];

/// A chunk's file, open.
#[derive(Debug)]
pub(super) struct Chunk {
    file: File,
    header: [u8; HEADER_LEN],
}

impl Chunk {
    /// Opens the chunk for reading; `None` if there is none, or what is there is none.
    pub(super) fn open(path: &Path, digest: &Digest) -> io::Result<Option<Self>> {
        match File::open(path) {
            Ok(file) => Self::check(file, digest),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens the chunk for writing, or makes it.
    pub(super) fn create(path: &Path, digest: &Digest) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.mode(0o600).open(path)?;
        if file.metadata()?.len() > 0
            && let Some(chunk) = Self::check(file.try_clone()?, digest)?
        {
            return Ok(chunk);
        }
        file.set_len(0)?;
        let mut header = [0; HEADER_LEN];
        header[..8].copy_from_slice(&MAGIC);
        header[8..40].copy_from_slice(digest);
        file.write_all_at(&header, 0)?;
        Ok(Self { file, header })
    }

    fn check(file: File, digest: &Digest) -> io::Result<Option<Self>> {
        let mut header = [0; HEADER_LEN];
        match file.read_exact_at(&mut header, 0) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let is_ours = header[..8] == MAGIC && header[8..40] == *digest;
        Ok(is_ours.then_some(Self { file, header }))
    }

    /// The bytes of the block at `slot` if they are there, whole and unchanged.
    pub(super) fn read(&self, slot: u64, len: usize) -> io::Result<Option<Bytes>> {
        let (stored, checksum) = self.entry(slot);
        if stored as usize != len || len == 0 {
            return Ok(None);
        }
        let mut bytes = vec![0; len];
        match self.file.read_exact_at(&mut bytes, block_at(slot)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        Ok((crc32c::crc32c(&bytes) == checksum).then(|| Bytes::from(bytes)))
    }

    /// Puts a block at its place.
    pub(super) fn write(&mut self, slot: u64, bytes: &[u8]) -> io::Result<()> {
        let len = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        self.file.write_all_at(bytes, block_at(slot))?;
        let mut entry = [0; ENTRY_LEN];
        entry[..4].copy_from_slice(&len.to_le_bytes());
        entry[4..].copy_from_slice(&crc32c::crc32c(bytes).to_le_bytes());
        let at = entry_at(slot);
        self.file.write_all_at(&entry, at as u64)?;
        self.header[at..at + ENTRY_LEN].copy_from_slice(&entry);
        Ok(())
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    fn entry(&self, slot: u64) -> (u32, u32) {
        let at = entry_at(slot);
        let number = |at: usize| {
            let bytes = self.header[at..at + 4].try_into();
            u32::from_le_bytes(bytes.expect("four bytes"))
        };
        (number(at), number(at + 4))
    }
}

fn entry_at(slot: u64) -> usize {
    let slot = usize::try_from(slot % CHUNK_BLOCKS).expect("a small number");
    ENTRIES_AT + slot * ENTRY_LEN
}

fn block_at(slot: u64) -> u64 {
    BLOCKS_AT + slot % CHUNK_BLOCKS * BLOCK_SIZE
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: Digest = [7; 32];
    const BLOCK: usize = 128 * 1024;

    fn with_blocks(path: &Path) {
        let mut chunk = Chunk::create(path, &DIGEST).unwrap();
        chunk.write(0, &[1; 100]).unwrap();
        chunk.write(31, &[2; BLOCK]).unwrap();
    }

    fn read(path: &Path, slot: u64, len: usize) -> Option<Bytes> {
        let chunk = Chunk::open(path, &DIGEST).unwrap()?;
        chunk.read(slot, len).unwrap()
    }

    #[test]
    fn blocks_come_back_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chunk");
        assert!(Chunk::open(&path, &DIGEST).unwrap().is_none());
        with_blocks(&path);
        assert_eq!(read(&path, 0, 100).as_deref(), Some(&[1; 100][..]));
        let last = read(&path, 31, BLOCK).unwrap();
        assert!(last.iter().all(|byte| *byte == 2));
        assert_eq!(read(&path, 1, 100), None, "nobody has written it");
        assert_eq!(
            read(&path, 0, 99),
            None,
            "another length is another content"
        );
        let mut again = Chunk::create(&path, &DIGEST).unwrap();
        again.write(1, &[3; 5]).unwrap();
        assert_eq!(read(&path, 0, 100).as_deref(), Some(&[1; 100][..]));
    }

    #[test]
    fn nothing_that_was_damaged_is_given_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chunk");
        with_blocks(&path);
        let whole = std::fs::read(&path).unwrap();
        for at in [0, 20, 64, 68, 4096, 4195] {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(read(&path, 0, 100), None, "byte {at}");
        }
        for len in [0, 63, 100, 4096, 4100] {
            std::fs::write(&path, &whole[..len]).unwrap();
            assert_eq!(read(&path, 0, 100), None, "cut at {len}");
        }
        // A crash of the host has taken the block and left its entry.
        let mut hole = whole.clone();
        hole[4096..4196].fill(0);
        std::fs::write(&path, hole).unwrap();
        assert_eq!(read(&path, 0, 100), None);
        std::fs::write(&path, &whole).unwrap();
        assert!(
            Chunk::open(&path, &[8; 32]).unwrap().is_none(),
            "another content"
        );
        Chunk::create(&path, &[8; 32]).unwrap();
        assert_eq!(read(&path, 0, 100), None, "it was made anew");
    }
}
