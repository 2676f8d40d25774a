//! The file: two generations of entries in a redb database.
//!
//! What is new, and what is found in the earlier generation, goes into the current one. When that has reached half of
//! the limit it becomes the earlier one, and what was the earlier one goes: so the file is bounded, and what was used
//! last is there without a record of when anything was.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use redb::backends::FileBackend;
use redb::{Builder, Database, ReadableDatabase as _, ReadableTable, TableDefinition};

type Generation = TableDefinition<'static, &'static [u8], &'static [u8]>;

const CURRENT: Generation = TableDefinition::new("current");
const EARLIER: Generation = TableDefinition::new("earlier");

/// Bytes of keys and entries of the current generation, under the one key there is.
const BYTES: TableDefinition<'static, (), u64> = TableDefinition::new("bytes");

/// Memory for the database's pages: a listing's page of a thousand names is some 400 KiB of them.
const PAGES: usize = 4 << 20;

/// Why the file is of no use.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum FileError {
    /// Another process has it.
    #[error("another process has it open")]
    Taken,
    /// It is not what was written.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// The disk, or who may use it.
    #[error("{0}")]
    Failed(String),
}

impl From<redb::Error> for FileError {
    fn from(error: redb::Error) -> Self {
        use io::ErrorKind::{InvalidData, UnexpectedEof};

        match error {
            // Of another kind than a database, or cut short.
            redb::Error::Io(io) if matches!(io.kind(), InvalidData | UnexpectedEof) => {
                Self::Damaged(io.to_string())
            }
            redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => Self::Taken,
            redb::Error::Io(_) | redb::Error::PreviousIo | redb::Error::DatabaseClosed => {
                Self::Failed(error.to_string())
            }
            // Nothing here can be wrong but what is in the file.
            _ => Self::Damaged(error.to_string()),
        }
    }
}

impl From<io::Error> for FileError {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<tokio::task::JoinError> for FileError {
    fn from(panic: tokio::task::JoinError) -> Self {
        Self::Damaged(panic.to_string())
    }
}

/// What an entry is filed under, and its bytes.
pub(super) type KeyAndValue = (Vec<u8>, Vec<u8>);

/// An entry as it was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
    /// It is of the earlier generation, and has to be written again to stay.
    pub(super) is_old: bool,
}

/// The open file. Nobody else has it.
#[derive(Debug)]
pub(super) struct CacheFile {
    database: Database,
    /// Bytes that a generation may have.
    generation_max: u64,
}

impl CacheFile {
    /// Opens the file, and reads all of it once: what is damaged is found out here and not in the middle of a look.
    pub(super) fn open(path: &Path, limit: u64) -> Result<Self, FileError> {
        if let Some(directory) = path.parent() {
            let mut make = DirBuilder::new();
            make.recursive(true).mode(0o700).create(directory)?;
        }
        let file = open_private(path)?;
        let backend = FileBackend::new(file).map_err(redb::Error::from)?;
        let database = Builder::new()
            .set_cache_size(PAGES)
            .set_check_integrity_on_open(true)
            .create_with_backend(backend)
            .map_err(redb::Error::from)?;
        let opened = Self {
            database,
            generation_max: limit / 2,
        };
        opened.make_tables()?;
        Ok(opened)
    }

    /// Names the file as one that nobody reads any more; the one so named before goes.
    pub(super) fn set_aside(path: &Path) -> io::Result<PathBuf> {
        let mut aside = path.as_os_str().to_owned();
        aside.push(".damaged");
        let aside = PathBuf::from(aside);
        std::fs::rename(path, &aside)?;
        Ok(aside)
    }

    fn make_tables(&self) -> Result<(), redb::Error> {
        let write = self.database.begin_write()?;
        write.open_table(CURRENT)?;
        write.open_table(EARLIER)?;
        write.open_table(BYTES)?;
        Ok(write.commit()?)
    }

    /// What there is of each of `keys`.
    pub(super) fn read(&self, keys: Vec<Vec<u8>>) -> Result<Vec<Option<Found>>, FileError> {
        self.read_all(keys).map_err(FileError::from)
    }

    fn read_all(&self, keys: Vec<Vec<u8>>) -> Result<Vec<Option<Found>>, redb::Error> {
        let read = self.database.begin_read()?;
        let (current, earlier) = (read.open_table(CURRENT)?, read.open_table(EARLIER)?);
        let find = |key: Vec<u8>| {
            let (value, is_old) = match current.get(key.as_slice())? {
                Some(value) => (Some(value), false),
                None => (earlier.get(key.as_slice())?, true),
            };
            let value = value.map(|value| value.value().to_vec());
            Ok(value.map(|value| Found { key, value, is_old }))
        };
        keys.into_iter().map(find).collect()
    }

    /// Writes entries, durably. What is there already costs no write.
    pub(super) fn write(&self, entries: &[KeyAndValue]) -> Result<(), FileError> {
        self.write_all(entries).map_err(FileError::from)
    }

    fn write_all(&self, entries: &[KeyAndValue]) -> Result<(), redb::Error> {
        let new = self.not_there_yet(entries)?;
        if new.is_empty() {
            return Ok(());
        }
        let write = self.database.begin_write()?;
        let mut bytes = {
            let mut current = write.open_table(CURRENT)?;
            let sums = write.open_table(BYTES)?;
            let mut bytes = sums.get(())?.map_or(0, |sum| sum.value());
            for (key, value) in new {
                let before = current.insert(key.as_slice(), value.as_slice())?;
                let before = before.map_or(0, |before| key.len() + before.value().len());
                bytes = (bytes + (key.len() + value.len()) as u64).saturating_sub(before as u64);
            }
            bytes
        };
        if bytes >= self.generation_max {
            write.delete_table(EARLIER)?;
            write.rename_table(CURRENT, EARLIER)?;
            write.open_table(CURRENT)?;
            bytes = 0;
        }
        write.open_table(BYTES)?.insert((), bytes)?;
        Ok(write.commit()?)
    }

    fn not_there_yet<'a>(
        &self,
        entries: &'a [KeyAndValue],
    ) -> Result<Vec<&'a KeyAndValue>, redb::Error> {
        let current = self.database.begin_read()?.open_table(CURRENT)?;
        let mut new = Vec::new();
        for entry in entries {
            let there = current.get(entry.0.as_slice())?;
            if there.is_none_or(|there| there.value() != entry.1) {
                new.push(entry);
            }
        }
        Ok(new)
    }
}

/// What is in it is what objects are called and who owns them: nobody else on the host may read it.
fn open_private(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn entry(number: usize) -> KeyAndValue {
        let key = format!("key-{number:06}").into_bytes();
        (key, vec![u8::try_from(number % 251).unwrap(); 100])
    }

    fn has(file: &CacheFile, number: usize) -> bool {
        let (key, value) = entry(number);
        let found = file.read(vec![key]).unwrap().pop().unwrap();
        found.is_some_and(|found| found.value == value)
    }

    #[test]
    fn what_was_written_is_there_for_the_next_process_and_for_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/for it/attributes");
        let file = CacheFile::open(&path, 1 << 20).unwrap();
        file.write(&[entry(1), entry(2)]).unwrap();
        assert!(matches!(
            CacheFile::open(&path, 1 << 20),
            Err(FileError::Taken)
        ));
        drop(file);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        let file = CacheFile::open(&path, 1 << 20).unwrap();
        assert!(has(&file, 1) && has(&file, 2) && !has(&file, 3));
    }

    #[test]
    fn it_does_not_grow_beyond_its_limit_and_keeps_what_was_used_last() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("attributes");
        const LIMIT: u64 = 64 * 1024;
        let file = CacheFile::open(&path, LIMIT).unwrap();
        for round in 0..100 {
            let batch: Vec<_> = (0..40).map(|i| entry(round * 40 + i)).collect();
            file.write(&batch).unwrap();
            // One that is used again and again: whoever finds it in the earlier generation writes it anew.
            file.write(&[entry(0)]).unwrap();
        }
        assert!(has(&file, 0) && has(&file, 3999));
        assert!(!has(&file, 1));
        let kept = (0..4000).filter(|number| has(&file, *number)).count() as u64;
        let bytes = kept * 110;
        assert!((LIMIT / 2..=LIMIT + 8192).contains(&bytes), "{bytes}");
        drop(file);
        let size = std::fs::metadata(&path).unwrap().len();
        assert!(size < 1 << 20, "{size}");
    }

    #[test]
    fn what_is_not_a_cache_is_damaged_and_can_be_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("attributes");
        for garbage in [vec![0; 1 << 20], b"hello".to_vec(), vec![0xff; 70_000]] {
            std::fs::write(&path, garbage).unwrap();
            let opened = CacheFile::open(&path, 1 << 20);
            assert!(matches!(opened, Err(FileError::Damaged(_))), "{opened:?}");
            CacheFile::set_aside(&path).unwrap();
        }
        let file = CacheFile::open(&path, 1 << 20).unwrap();
        let many: Vec<_> = (0..2000).map(entry).collect();
        file.write(&many).unwrap();
        drop(file);
        let mut bytes = std::fs::read(&path).unwrap();
        // In the middle of a page of entries.
        let at = bytes.windows(10).position(|w| w == b"key-001234").unwrap();
        bytes[at + 3] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let opened = CacheFile::open(&path, 1 << 20);
        assert!(matches!(opened, Err(FileError::Damaged(_))), "{opened:?}");
    }
}
