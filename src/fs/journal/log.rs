//! The journal's file: a header, then frames, each a checksummed record.
//!
//! A frame says how far the file was known to be on the disk when it was written. So a damaged frame can be
//! told from a torn tail: after a crash of the host, whatever was written since the last fdatasync may be
//! there or not, in any order; what lies before a later frame's mark was there once.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::record::Record;
use super::reserve::Reserve;
use crate::fs::format::{Format, Formats, UnknownFormat};
use crate::fs::request::RequestId;

/// What every journal begins with; the format's number follows.
const MAGIC: &[u8; 8] = b"bvjournl";

/// What every frame begins with.
const FRAME: [u8; 4] = [0xb5, 0x4a, 0x52, 0x4e];

/// Magic, length of the record, synced position, checksum.
const FRAME_HEADER: usize = 4 + 4 + 8 + 4;

/// Longest record in bytes: names and metadata have limits of their own far below.
const RECORD_MAX: usize = 1 << 20;

/// Length of the kernel's boot id.
const BOOT_ID: usize = 36;

/// Bytes of the header: magic, format, boot id.
const HEADER: usize = MAGIC.len() + 4 + BOOT_ID;

/// Why a journal cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    #[error("{path}: {cause}")]
    Io { path: PathBuf, cause: io::Error },
    #[error("{path} is in use by another process")]
    InUse { path: PathBuf },
    #[error("{path} is no journal")]
    NotAJournal { path: PathBuf },
    #[error("{path}: {cause}")]
    Format { path: PathBuf, cause: UnknownFormat },
    #[error("{path} is damaged at byte {at}: {what}")]
    Damaged {
        path: PathBuf,
        at: usize,
        what: &'static str,
    },
}

impl LogError {
    /// Whether there is a journal of which something is not known: what it holds must not be passed over.
    pub(crate) fn is_unreadable(&self) -> bool {
        match self {
            Self::NotAJournal { .. } | Self::Format { .. } | Self::Damaged { .. } => true,
            Self::Io { .. } | Self::InUse { .. } => false,
        }
    }

    pub(super) fn io(path: &Path) -> impl Fn(io::Error) -> Self + '_ {
        |cause| Self::Io {
            path: path.to_path_buf(),
            cause,
        }
    }
}

/// A record, and the kernel's request whose last record it is.
pub(crate) type Recorded = (Option<RequestId>, Record);

/// What a journal's file said.
#[derive(Debug)]
pub(crate) struct Journaled {
    pub(crate) records: Vec<Recorded>,
    /// Where the last of them ends, in the file.
    end: u64,
    format: Format,
    /// The host has crashed or was restarted since: what was not synced may be gone.
    pub(crate) other_boot: bool,
}

/// A journal's file, open for appending.
#[derive(Debug)]
pub(crate) struct LogFile {
    file: Arc<File>,
    format: Format,
    end: u64,
    /// Known to be on the disk up to here.
    synced: u64,
    reserve: Reserve,
}

impl LogFile {
    /// A new file with nothing in it. It replaces no other until it is renamed.
    pub(crate) fn create(path: &Path, format: Format) -> Result<Self, LogError> {
        let io = LogError::io(path);
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(path)
            .map_err(&io)?;
        let mut header = Vec::with_capacity(HEADER);
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&format.number().to_le_bytes());
        header.extend_from_slice(&boot_id());
        file.write_all_at(&header, 0).map_err(&io)?;
        Ok(Self {
            file: Arc::new(file),
            format,
            end: HEADER as u64,
            synced: 0,
            reserve: Reserve::of(path),
        })
    }

    /// The file that `read` is from, to go on with. A torn tail goes; what was read is on the disk afterwards.
    pub(crate) fn reopen(path: &Path, read: &Journaled) -> Result<Self, LogError> {
        let io = LogError::io(path);
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.map_err(&io)?;
        // Whole frames in it would be taken for later records when others stand before them.
        if file.metadata().map_err(&io)?.len() > read.end {
            file.set_len(read.end).map_err(&io)?;
        }
        file.sync_all().map_err(&io)?;
        Ok(Self {
            file: Arc::new(file),
            format: read.format,
            end: read.end,
            synced: read.end,
            reserve: Reserve::of(path),
        })
    }

    /// Records are of this format from now on. Those that are there can be read as such.
    pub(crate) fn set_format(&mut self, format: Format) -> io::Result<()> {
        let number = format.number().to_le_bytes();
        self.file.write_all_at(&number, MAGIC.len() as u64)?;
        self.format = format;
        Ok(())
    }

    /// From now on a crash of the host is one after this boot.
    pub(crate) fn set_boot(&self) -> io::Result<()> {
        let at = HEADER - BOOT_ID;
        self.file.write_all_at(&boot_id(), at as u64)?;
        self.file.sync_data()
    }

    /// Takes the room on the disk that the next records need, if it has not enough.
    pub(crate) fn replenish(&mut self) -> io::Result<()> {
        self.reserve.replenish(&self.file, self.end)
    }

    /// Appends a record, and the request whose last one it is. A failure leaves the file as it was.
    pub(crate) fn append(
        &mut self,
        (request, record): (Option<RequestId>, &Record),
    ) -> io::Result<()> {
        // The format before can only say one after the other: a crash may come between them.
        if let (Record::Together(records), true) = (record, self.format < Format::CURRENT)
            && let Some((last, before)) = records.split_last()
        {
            for record in before {
                self.append((None, record))?;
            }
            return self.append((request, last));
        }
        let record = record.said_in(self.format);
        let frame = encode((request, &record), self.synced)?;
        self.file.write_all_at(&frame, self.end)?;
        self.end += frame.len() as u64;
        self.reserve.used(&self.file, self.end);
        Ok(())
    }

    /// What its records are said in.
    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// Whether there is no record in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.end == HEADER as u64
    }

    /// Where the next frame goes.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// How much of the file is known to be on the disk.
    pub(crate) fn synced_end(&self) -> u64 {
        self.synced
    }

    /// The file, for syncing it without holding up who appends.
    pub(crate) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// The file is on the disk up to `end`.
    pub(crate) fn synced(&mut self, end: u64) {
        self.synced = self.synced.max(end);
    }
}

/// Reads a journal's file; `None` if there is none.
pub(crate) fn read(path: &Path, formats: Formats) -> Result<Option<Journaled>, LogError> {
    let io = LogError::io(path);
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(mut file) => file.read_to_end(&mut bytes).map_err(&io)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let Some((header, frames)) = bytes.split_at_checked(HEADER) else {
        return Err(LogError::NotAJournal { path: path.into() });
    };
    let (magic, rest) = header.split_at(MAGIC.len());
    let (format, boot) = rest.split_at(4);
    if magic != MAGIC {
        return Err(LogError::NotAJournal { path: path.into() });
    }
    let format = formats.read(u32_at(format, 0));
    let format = format.map_err(|cause| LogError::Format {
        path: path.into(),
        cause,
    })?;
    let (records, end) = decode(frames).map_err(|(at, what)| LogError::Damaged {
        path: path.into(),
        at: at + HEADER,
        what,
    })?;
    Ok(Some(Journaled {
        records,
        end: (end + HEADER) as u64,
        format,
        other_boot: boot != boot_id(),
    }))
}

fn boot_id() -> [u8; BOOT_ID] {
    let mut id = [b'-'; BOOT_ID];
    // Where the kernel does not say, every start is taken for another boot: checksums are verified then.
    let said = std::fs::read("/proc/sys/kernel/random/boot_id");
    let said = said.unwrap_or_else(|_| uuid::Uuid::new_v4().to_string().into_bytes());
    for (into, byte) in id.iter_mut().zip(said) {
        *into = byte;
    }
    id
}

fn encode(recorded: (Option<RequestId>, &Record), synced: u64) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; FRAME_HEADER];
    frame = postcard::to_extend(&recorded, frame).map_err(io::Error::other)?;
    let len = frame.len() - FRAME_HEADER;
    if len > RECORD_MAX {
        return Err(io::Error::other("a journal record is too long"));
    }
    let len = u32::try_from(len).map_err(io::Error::other)?;
    frame[0..4].copy_from_slice(&FRAME);
    frame[4..8].copy_from_slice(&len.to_le_bytes());
    frame[8..16].copy_from_slice(&synced.to_le_bytes());
    let checksum = checksum(&frame);
    frame[16..20].copy_from_slice(&checksum.to_le_bytes());
    Ok(frame)
}

/// Over all of a frame but its magic and the checksum itself.
fn checksum(frame: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&frame[4..16]), &frame[FRAME_HEADER..])
}

/// The frame at the beginning of `bytes`: its whole length, its synced position and its record's bytes.
fn frame_at(bytes: &[u8]) -> Option<(usize, u64, &[u8])> {
    if bytes.len() < FRAME_HEADER || bytes[..4] != FRAME {
        return None;
    }
    let len = usize::try_from(u32_at(bytes, 4)).ok()?;
    if len > RECORD_MAX {
        return None;
    }
    let frame = bytes.get(..FRAME_HEADER + len)?;
    if checksum(frame) != u32_at(frame, 16) {
        return None;
    }
    let synced = u64::from_le_bytes(frame[8..16].try_into().ok()?);
    Some((frame.len(), synced, &frame[FRAME_HEADER..]))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].try_into().map_or(0, u32::from_le_bytes)
}

/// The records up to a torn tail, and where that begins; or where the damage is, and what it is.
fn decode(frames: &[u8]) -> Result<(Vec<Recorded>, usize), (usize, &'static str)> {
    let mut records = Vec::new();
    let mut at = 0;
    while let Some((len, _, record)) = frame_at(&frames[at..]) {
        let record = postcard::from_bytes(record)
            .map_err(|_| (at, "a record that this release does not know"))?;
        records.push(record);
        at += len;
    }
    // Whether the rest was on the disk once, by what any whole frame in it says.
    let mut scan = at;
    while scan + FRAME_HEADER <= frames.len() {
        match frame_at(&frames[scan..]) {
            Some((_, synced, _)) if synced > (at + HEADER) as u64 => {
                return Err((at, "a record's checksum is wrong"));
            }
            Some((len, ..)) => scan += len,
            None => scan += 1,
        }
    }
    Ok((records, at))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;
    use crate::fs::inode::Attempt;
    use crate::store::{Key, ObjectVersion, WriteId};

    fn record(ino: u64) -> Record {
        Record::Resized {
            ino,
            size: ino * 3,
            time: UNIX_EPOCH - std::time::Duration::from_nanos(ino),
        }
    }

    /// A log of ten records of which the first five were synced.
    fn log() -> (tempfile::TempDir, PathBuf, Vec<Recorded>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut log = LogFile::create(&path, Format::CURRENT).unwrap();
        let request = RequestId::new(1, 2);
        let records: Vec<Recorded> = (1..=10).map(|ino| (Some(request), record(ino))).collect();
        for (i, (request, record)) in records.iter().enumerate() {
            if i == 5 {
                log.synced(log.end());
            }
            log.append((*request, record)).unwrap();
        }
        (dir, path, records)
    }

    #[test]
    fn it_reads_what_was_written() {
        let (_dir, path, records) = log();
        let read = read(&path, Formats::default()).unwrap().unwrap();
        assert_eq!(read.records, records);
        assert!(!read.other_boot);
    }

    #[test]
    fn a_journal_of_another_format_is_named() {
        let (_dir, path, _) = log();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&9_u32.to_le_bytes(), MAGIC.len() as u64)
            .unwrap();
        let error = read(&path, Formats::default()).unwrap_err().to_string();
        assert!(
            error
                .ends_with("journal: it has format 9, and this release reads 3 and the one before"),
            "{error}"
        );
    }

    #[test]
    fn what_the_format_before_does_not_know_is_said_in_its_words() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut log = LogFile::create(&path, Format::FIRST).unwrap();
        let attempt = Attempt {
            key: Key::new("a"),
            write: WriteId::new(),
        };
        let resolved = Record::Resolved(attempt.clone());
        log.append((None, &resolved)).unwrap();
        log.set_format(Format::CURRENT).unwrap();
        log.append((None, &resolved)).unwrap();
        let records = read(&path, Formats::default()).unwrap().unwrap().records;
        let (key, version) = (attempt.key, ObjectVersion::any());
        let before = Record::Deleted { key, version };
        assert_eq!(records, [(None, before), (None, resolved)]);
        assert!(read(&path, Formats::trusted(Format::FIRST)).is_err());
    }

    #[test]
    fn room_is_kept_ahead_of_the_end_and_is_no_part_of_the_file() {
        use std::os::unix::fs::MetadataExt as _;

        let (_dir, path, records) = log();
        let read = read(&path, Formats::default()).unwrap().unwrap();
        let mut log = LogFile::reopen(&path, &read).unwrap();
        log.replenish().unwrap();
        let file = std::fs::metadata(&path).unwrap();
        assert_eq!(file.len(), log.end());
        assert!(
            file.blocks() * 512 > file.len() + (1 << 20),
            "{} blocks",
            file.blocks()
        );
        assert_eq!(read.records, records);
    }

    proptest! {
        /// What a crash of the host leaves of the file's length beyond what was written.
        #[test]
        fn zeros_at_the_end_are_the_end(zeros in 0_usize..5000) {
            let (_dir, path, records) = log();
            let mut bytes = std::fs::read(&path).unwrap();
            let end = bytes.len();
            bytes.resize(end + zeros, 0);
            std::fs::write(&path, &bytes).unwrap();
            let read = read(&path, Formats::default()).unwrap().unwrap();
            prop_assert_eq!(read.records, records);
            prop_assert_eq!(read.end, end as u64);
        }

        /// Cut off anywhere, it goes on from what was whole by then, and nothing of its tail comes back.
        #[test]
        fn it_goes_on_where_it_was_cut_off(cut in any::<prop::sample::Index>(), stale in any::<bool>()) {
            let (_dir, path, records) = log();
            let mut bytes = std::fs::read(&path).unwrap();
            let cut = HEADER + cut.index(bytes.len() - HEADER);
            if stale {
                // One byte of the frame never reached the disk, the frames after it did.
                let frames = HEADER + (bytes.len() - HEADER) / 2;
                bytes[cut.max(frames)] ^= 1;
            } else {
                bytes.truncate(cut);
            }
            std::fs::write(&path, &bytes).unwrap();
            let before = read(&path, Formats::default()).unwrap().unwrap();
            prop_assert!(records.starts_with(&before.records));
            let mut log = LogFile::reopen(&path, &before).unwrap();
            let added: Vec<Recorded> = (100..103).map(|ino| (None, record(ino))).collect();
            for (request, record) in &added {
                log.append((*request, record)).unwrap();
            }
            let after = read(&path, Formats::default()).unwrap().unwrap();
            prop_assert_eq!(after.records, [before.records, added].concat());
        }

        /// Cut off anywhere, it reads as what was whole by then.
        #[test]
        fn a_torn_tail_is_cut_off(cut in any::<prop::sample::Index>()) {
            let (_dir, path, records) = log();
            let bytes = std::fs::read(&path).unwrap();
            let cut = HEADER + cut.index(bytes.len() - HEADER);
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let read = read(&path, Formats::default()).unwrap().unwrap().records;
            prop_assert!(records.starts_with(&read));
        }

        /// A bit that flips in what was synced is found out; in what was not, it is the end.
        #[test]
        fn damage_before_the_last_sync_is_told_from_a_torn_tail(at in any::<prop::sample::Index>(), bit in 0..8) {
            let (_dir, path, records) = log();
            let mut bytes = std::fs::read(&path).unwrap();
            let frames = bytes.len() - HEADER;
            let at = HEADER + at.index(frames);
            bytes[at] ^= 1_u8 << bit;
            std::fs::write(&path, &bytes).unwrap();
            // Records as small as these are all of one length.
            let synced = HEADER + frames / 10 * 5;
            match read(&path, Formats::default()) {
                Ok(read) => {
                    prop_assert!(at >= synced, "damage at {at} of {synced} passed");
                    prop_assert!(records.starts_with(&read.unwrap().records));
                }
                Err(LogError::Damaged { .. }) => prop_assert!(at < synced),
                Err(error) => prop_assert!(false, "{}", error),
            }
        }
    }
}
