//! What the kernel knows of a volume, kept in shared memory: a process that takes over from one that was killed goes
//! on with the same inode numbers and the same open files.
//!
//! What is not in the bucket yet is the journal's, and where both have something the journal is right. A row is written
//! before the kernel is told of what it is about; an open inode is in the journal or has a row of its own.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use self::table::{Rows, Table, unreadable};
use super::attr::Attr;
use super::extents::Extent;
use super::format::{Format, Formats};
use super::inode::InodeState;
use super::journal::record::SentObject;
use super::name::split_stored;
use super::request::RequestId;
use super::tree::ROOT;
use crate::store::Metadata;

pub(crate) mod table;

/// Kinds of rows: where an inode is, what an open one is, what an open file is, which numbers are given.
const NODE: u8 = 1;
const INODE: u8 = 2;
const HANDLE: u8 = 3;
const NUMBERS: u8 = 4;

/// So many numbers are set aside at once, so that no later process gives one away again.
pub(crate) const NUMBERS_AHEAD: u64 = 4096;

/// Which numbers.
const INOS: u64 = 0;
const HANDLES: u64 = 1;

/// A node row's first byte.
const IS_DIRECTORY: u8 = 1;
const HAS_PLACE: u8 = 2;

/// The rows of one volume.
#[derive(Debug)]
pub(crate) struct Kept {
    table: Table,
    /// A row could not be written.
    is_broken: AtomicBool,
}

/// What an earlier process has kept.
#[derive(Debug, Default)]
pub(crate) struct LeftOpen {
    /// The directories that the kernel knew.
    pub(crate) directories: BTreeMap<u64, KeptNode>,
    /// The other inodes that it knew.
    pub(crate) files: Vec<(u64, KeptNode)>,
    /// Those of them that were open and that the journal may not have.
    pub(crate) inodes: FxHashMap<u64, KeptInode>,
    /// The open files and directories.
    pub(crate) handles: BTreeMap<u64, KeptHandle>,
    /// No number above this was given to an inode.
    pub(crate) last_ino: u64,
    /// And none above this to an open file.
    pub(crate) last_handle: u64,
    /// Segments that are too long to be names, but for what is shown of them.
    pub(crate) long_segments: Vec<String>,
}

/// Where an inode is in the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeptNode {
    pub(crate) is_directory: bool,
    /// `None`: it has lost its name.
    pub(crate) place: Option<(u64, Arc<str>)>,
}

/// What an open inode is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeptInode {
    pub(crate) attr: Attr,
    pub(crate) metadata: Metadata,
    pub(crate) remote: Option<SentObject>,
    pub(crate) lineage: u32,
    /// Its staging file, if it has one.
    pub(crate) staged: Option<KeptContent>,
}

/// What of an inode's content is in its staging file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeptContent {
    pub(crate) base_len: u64,
    pub(crate) extents: Vec<Extent>,
}

/// What a `fh` of the kernel means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeptHandle {
    pub(crate) ino: u64,
    /// The request that opened it: if it is sent again, this is what it is to be answered.
    pub(crate) request: Option<RequestId>,
    pub(crate) what: KeptOpen,
}

/// What is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum KeptOpen {
    File { writable: bool, lineage: u32 },
    Directory(Bookmarks),
}

/// After which names a reader of a directory may go on: where it was before the last answer, and where that ended. The
/// last one's answer may not have arrived.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bookmarks(Vec<(u64, String)>);

impl Bookmarks {
    /// An answer ended with this name, and the reader will go on at `offset`.
    pub(crate) fn push(&mut self, offset: u64, name: &str) {
        let last = self.0.pop();
        self.0 = last.into_iter().collect();
        self.0.push((offset, name.to_owned()));
    }

    /// The name before `offset`.
    pub(crate) fn at(&self, offset: u64) -> Option<&str> {
        let mark = self.0.iter().find(|(at, _)| *at == offset)?;
        Some(&mark.1)
    }
}

impl Kept {
    /// No rows.
    pub(crate) fn new(format: Format) -> io::Result<Self> {
        Ok(Self::of(Table::new(format)?))
    }

    /// Goes on with the rows of an earlier process. An error says that they cannot be read.
    pub(crate) fn reopen(memory: OwnedFd, formats: Formats) -> io::Result<(Self, LeftOpen)> {
        let (table, rows) = Table::reopen(memory, formats)?;
        Ok((Self::of(table), LeftOpen::of(&rows)?))
    }

    fn of(table: Table) -> Self {
        Self {
            table,
            is_broken: AtomicBool::new(false),
        }
    }

    /// See [`Table::set_format`].
    pub(crate) fn set_format(&self, format: Format) -> io::Result<()> {
        self.table.set_format(format)
    }

    /// The kernel knows an inode, which is here; `None`: it has no name.
    pub(crate) fn node(&self, ino: u64, is_directory: bool, place: Option<(u64, &str)>) {
        let mut flags = 0;
        if is_directory {
            flags |= IS_DIRECTORY;
        }
        if place.is_some() {
            flags |= HAS_PLACE;
        }
        let (parent, name) = place.unwrap_or((0, ""));
        let mut bytes = Vec::with_capacity(9 + name.len());
        bytes.push(flags);
        bytes.extend(parent.to_le_bytes());
        bytes.extend(name.as_bytes());
        self.note(self.table.put(NODE, ino, &bytes));
    }

    /// The kernel has forgotten an inode.
    pub(crate) fn forget(&self, ino: u64) {
        self.remove(NODE, ino);
    }

    /// An open inode is this.
    pub(crate) fn inode(&self, ino: u64, inode: &KeptInode) {
        self.note(self.table.put_as(INODE, ino, inode));
    }

    /// An inode was closed for the last time.
    pub(crate) fn closed(&self, ino: u64) {
        self.remove(INODE, ino);
    }

    /// A file or directory was opened.
    pub(crate) fn opened(&self, fh: u64, handle: &KeptHandle) {
        self.note(self.table.put_as(HANDLE, fh, handle));
    }

    /// It was closed.
    pub(crate) fn released(&self, fh: u64) {
        self.remove(HANDLE, fh);
    }

    /// Numbers up to `last` may be given to inodes.
    pub(crate) fn reserve_inos(&self, last: u64) {
        self.note(self.table.put_number(NUMBERS, INOS, last));
    }

    /// Numbers up to `last` may be given to open files.
    pub(crate) fn reserve_handles(&self, last: u64) {
        self.note(self.table.put_number(NUMBERS, HANDLES, last));
    }

    fn remove(&self, kind: u8, id: u64) {
        self.note(self.table.remove(kind, id));
    }

    /// Serving goes on without: what suffers is the next restart.
    fn note(&self, written: io::Result<()>) {
        if let Err(error) = written
            && !self.is_broken.swap(true, Ordering::Relaxed)
        {
            tracing::error!(%error, "no memory for what a restart needs: files that are open then may be lost to it");
        }
    }
}

impl AsFd for Kept {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.table.as_fd()
    }
}

impl KeptInode {
    /// An inode as it is.
    pub(crate) fn of(state: &InodeState) -> Self {
        Self {
            attr: state.attr,
            metadata: state.metadata.clone(),
            remote: state.remote.as_ref().map(super::durable::sent),
            lineage: state.lineage,
            staged: state.staged.as_ref().map(|staged| KeptContent {
                base_len: staged.map().base_len(),
                extents: staged.map().extents().copied().collect(),
            }),
        }
    }
}

impl LeftOpen {
    /// Whether the root's attributes are among it.
    pub(crate) fn has_root(&self) -> bool {
        self.inodes.contains_key(&ROOT)
    }

    fn of(rows: &Rows) -> io::Result<Self> {
        let mut left = Self::default();
        left.files.reserve(rows.count());
        for row in rows.iter() {
            let id = row.id;
            match row.kind {
                NODE => {
                    left.last_ino = left.last_ino.max(id);
                    let node = left.node_of(&row.bytes)?;
                    match node.is_directory {
                        true => drop(left.directories.insert(id, node)),
                        false => left.files.push((id, node)),
                    }
                }
                INODE => {
                    left.inodes.insert(id, row.read()?);
                }
                HANDLE => {
                    left.handles.insert(id, row.read()?);
                }
                NUMBERS if id == INOS => left.last_ino = left.last_ino.max(row.number()?),
                NUMBERS => left.last_handle = row.number()?,
                _ => return Err(unreadable()),
            }
        }
        Ok(left)
    }

    fn node_of(&mut self, bytes: &[u8]) -> io::Result<KeptNode> {
        let (flags, rest) = bytes.split_first().ok_or_else(unreadable)?;
        let (parent, name) = rest.split_first_chunk().ok_or_else(unreadable)?;
        let name = std::str::from_utf8(name).map_err(|_| unreadable())?;
        let (name, segment) = split_stored(name);
        self.long_segments.extend(segment.map(str::to_owned));
        let place = (u64::from_le_bytes(*parent), Arc::from(name));
        Ok(KeptNode {
            is_directory: flags & IS_DIRECTORY != 0,
            place: (flags & HAS_PLACE != 0).then_some(place),
        })
    }
}
