//! The core's words in fuser's, and back. No decisions.

use fuser::{FileAttr, FileType, FopenFlags, INodeNo, OpenAccMode, OpenFlags, Request};

use crate::fs::attr::PERMISSIONS;
use crate::fs::block::BLOCK_SIZE;
use crate::fs::{Attr, Caller};
use crate::store::FileKind;

pub(super) fn caller(request: &Request) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
    }
}

pub(super) fn is_writable(flags: OpenFlags) -> bool {
    flags.acc_mode() != OpenAccMode::O_RDONLY
}

/// An inode has one content for its whole life, so the kernel may keep its pages from one open to the next:
/// unless another kernel's connection writes to the same volume.
pub(super) fn open_flags(writable: bool, is_shared: bool) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    flags.set(FopenFlags::FOPEN_KEEP_CACHE, !is_shared);
    flags.set(FopenFlags::FOPEN_NOFLUSH, !writable);
    flags
}

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

pub(super) fn kind_of(mode: u32) -> Option<FileKind> {
    use nix::sys::stat::SFlag;
    match SFlag::from_bits_truncate(mode) & SFlag::S_IFMT {
        SFlag::S_IFREG => Some(FileKind::File),
        SFlag::S_IFIFO => Some(FileKind::Fifo),
        SFlag::S_IFSOCK => Some(FileKind::Socket),
        SFlag::S_IFCHR => Some(FileKind::CharDevice),
        SFlag::S_IFBLK => Some(FileKind::BlockDevice),
        _ => None,
    }
}

pub(super) fn file_attr(ino: u64, attr: &Attr, nlink: u32) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size: attr.size,
        blocks: attr.size.div_ceil(512),
        atime: attr.atime,
        mtime: attr.mtime,
        ctime: attr.ctime,
        crtime: attr.ctime,
        kind: file_type(attr.kind),
        perm: u16::try_from(attr.mode & PERMISSIONS).expect("twelve bits"),
        nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: u32::try_from(BLOCK_SIZE).expect("a block is far below 4 GiB"),
        flags: 0,
    }
}
