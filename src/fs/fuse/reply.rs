//! What the core has answered, as replies to the kernel.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileHandle, Generation, INodeNo, ReplyAttr, ReplyCreate, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
};

use super::convert::{file_attr, file_type, open_flags};
use super::dispatch::Known;
use crate::fs::{Attr, Caller, DirEntry, Entry, FileSystem, NAME_MAX, Space};
use crate::store::FileKind;

/// Block size of statfs, in bytes.
const STATFS_BLOCK: u32 = 4096;

/// What df shows where a store has no size: 16 EiB, less what would overflow a byte count.
const STATFS_BLOCKS: u64 = u64::MAX / STATFS_BLOCK as u64;

/// How many more files df shows that there may be: nobody counts them.
const FILES_FREE: u64 = u32::MAX as u64;

/// Replies that tell the kernel of inodes: what it was told of is remembered.
#[derive(Debug, Clone)]
pub(super) struct Replies {
    fs: Arc<FileSystem>,
    known: Arc<Known>,
}

impl Replies {
    pub(super) fn new(fs: Arc<FileSystem>, known: Arc<Known>) -> Self {
        Self { fs, known }
    }

    pub(super) fn entry(&self, reply: ReplyEntry, done: Result<Entry, Errno>) {
        match done {
            Ok(entry) => {
                self.known.add(entry.ino);
                let attr = file_attr(entry.ino, &entry.attr, self.fs.nlink(entry.ino));
                reply.entry(&entry.ttl, &attr, Generation(0));
            }
            Err(errno) => reply.error(errno),
        }
    }

    pub(super) fn attr(&self, reply: ReplyAttr, ino: u64, done: Result<(Attr, Duration), Errno>) {
        match done {
            Ok((attr, ttl)) => {
                if ino == INodeNo::ROOT.0 {
                    self.fs.root_told(ttl);
                }
                reply.attr(&ttl, &file_attr(ino, &attr, self.fs.nlink(ino)));
            }
            Err(errno) => reply.error(errno),
        }
    }

    /// Likewise, of a name that need not be there.
    pub(super) fn entry_or_none(&self, reply: ReplyEntry, done: Result<Entry, Errno>) {
        match done {
            // Number 0: the kernel may believe for as long that there is no such name.
            Err(errno) if errno.code() == Errno::ENOENT.code() => {
                let nobody = Caller { uid: 0, gid: 0 };
                let none = Attr::new(FileKind::File, 0, nobody, SystemTime::UNIX_EPOCH);
                reply.entry(
                    &self.fs.kernel_ttl(),
                    &file_attr(0, &none, 0),
                    Generation(0),
                );
            }
            done => self.entry(reply, done),
        }
    }

    pub(super) fn opened(
        &self,
        reply: ReplyOpen,
        ino: u64,
        writable: bool,
        done: Result<u64, Errno>,
    ) {
        match done {
            Ok(fh) => reply.opened(FileHandle(fh), open_flags(writable, self.is_new(ino))),
            Err(errno) => reply.error(errno),
        }
    }

    pub(super) fn created(&self, reply: ReplyCreate, done: Result<(Entry, u64), Errno>) {
        match done {
            Ok((entry, fh)) => {
                self.known.add(entry.ino);
                let attr = file_attr(entry.ino, &entry.attr, self.fs.nlink(entry.ino));
                let flags = open_flags(true, self.is_new(entry.ino));
                reply.created(&entry.ttl, &attr, Generation(0), FileHandle(fh), flags);
            }
            Err(errno) => reply.error(errno),
        }
    }

    /// Whether the kernel may have pages of an inode that are not its.
    fn is_new(&self, ino: u64) -> bool {
        self.fs.is_shared() || self.fs.had_unknown_pages(ino)
    }

    pub(super) fn listing(
        &self,
        mut reply: ReplyDirectory,
        fh: u64,
        done: Result<Vec<DirEntry>, Errno>,
    ) {
        let entries = match done {
            Ok(entries) => entries,
            Err(errno) => return reply.error(errno),
        };
        let full = entries.iter().position(|entry| {
            let kind = file_type(entry.attr.kind);
            reply.add(INodeNo(entry.ino), entry.next, kind, &*entry.name)
        });
        let shown = &entries[..full.unwrap_or(entries.len())];
        if let Some(last) = shown.last() {
            self.fs.keep_place(fh, last);
        }
        reply.ok();
    }

    /// Likewise, with attributes.
    pub(super) fn listing_plus(
        &self,
        mut reply: ReplyDirectoryPlus,
        fh: u64,
        done: Result<Vec<DirEntry>, Errno>,
    ) {
        let entries = match done {
            Ok(entries) => entries,
            Err(errno) => return reply.error(errno),
        };
        let ttl = self.fs.kernel_ttl();
        let mut last = None;
        for entry in &entries {
            let attr = file_attr(entry.ino, &entry.attr, self.fs.nlink(entry.ino));
            let ino = INodeNo(entry.ino);
            // The kernel takes every entry but the dots for a lookup: told before it can forget, untold if there was
            // no room.
            let is_dot = matches!(&*entry.name, "." | "..");
            let told = !is_dot && self.known.remember(entry.ino);
            if !is_dot && !told {
                continue;
            }
            let full = reply.add(ino, entry.next, &*entry.name, &ttl, &attr, Generation(0));
            if told && full {
                self.known.forget(entry.ino, 1);
            }
            if full {
                break;
            }
            last = Some(entry);
        }
        if let Some(last) = last {
            self.fs.keep_place(fh, last);
        }
        reply.ok();
    }
}

/// Bytes of which the kernel takes `room`; 0: it asks how many there are.
pub(super) fn answer_xattr(reply: ReplyXattr, room: u32, done: Result<Vec<u8>, Errno>) {
    let bytes = match done {
        Ok(bytes) => bytes,
        Err(errno) => return reply.error(errno),
    };
    match u32::try_from(bytes.len()) {
        Ok(len) if room == 0 => reply.size(len),
        Ok(len) if len <= room => reply.data(&bytes),
        _ => reply.error(Errno::ERANGE),
    }
}

/// Names as listxattr(2) has them, each with a NUL behind it.
pub(super) fn name_list(names: &[OsString]) -> Vec<u8> {
    let names = names.iter();
    names
        .flat_map(|name| name.as_bytes().iter().chain(&[0]))
        .copied()
        .collect()
}

/// So many bytes were written.
pub(super) fn answer_written(reply: ReplyWrite, done: Result<u32, Errno>) {
    match done {
        Ok(len) => reply.written(len),
        Err(errno) => reply.error(errno),
    }
}

/// What df shows. Of a volume without a quota nobody knows how much more its store takes.
pub(super) fn answer_statfs(reply: ReplyStatfs, space: &Space) {
    let name_max = u32::try_from(NAME_MAX).expect("255");
    let blocks = Blocks::of(space);
    reply.statfs(
        blocks.all,
        blocks.free,
        blocks.free,
        FILES_FREE.saturating_add(space.used_files),
        FILES_FREE,
        STATFS_BLOCK,
        name_max,
        STATFS_BLOCK,
    );
}

#[derive(Debug, PartialEq, Eq)]
struct Blocks {
    all: u64,
    free: u64,
}

impl Blocks {
    /// A block that is used in part is used.
    fn of(space: &Space) -> Self {
        let size = u64::from(STATFS_BLOCK);
        let all = space.size.map_or(STATFS_BLOCKS, |bytes| bytes / size);
        let free = all.saturating_sub(space.used_bytes.div_ceil(size));
        Self { all, free }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_free_is_what_the_quota_leaves() {
        const QUOTA: Option<u64> = Some(1 << 20);
        for (size, used_bytes, all, free) in [
            (QUOTA, 0, 256, 256),
            (QUOTA, 1, 256, 255),
            (QUOTA, 4096, 256, 255),
            (QUOTA, (1 << 20) - 1, 256, 0),
            (QUOTA, 1 << 20, 256, 0),
            (QUOTA, u64::MAX, 256, 0),
            (None, 0, STATFS_BLOCKS, STATFS_BLOCKS),
            (None, 4097, STATFS_BLOCKS, STATFS_BLOCKS - 2),
        ] {
            let space = Space {
                size,
                used_bytes,
                used_files: 1,
                is_counted: true,
            };
            let expected = Blocks { all, free };
            assert_eq!(Blocks::of(&space), expected, "{used_bytes} of {size:?}");
        }
    }
}
