//! The least that a FUSE file system can do: one file of zeros, answered from memory. What it reaches, no file system
//! goes beyond; `make bench` measures how far below it bucketvol is.
//!
//! ```sh
//! cargo run --release --example fuse_ceiling -- /mnt --bytes 100000000
//! ```

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use clap::Parser;
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen,
    Request, SessionACL,
};

/// The name of the file.
const NAME: &str = "large";

const FILE: INodeNo = INodeNo(2);

/// The kernel asks once.
const TTL: Duration = Duration::from_secs(3600);

/// Serves a file of zeros.
#[derive(Parser)]
struct Arguments {
    /// Where to mount.
    mountpoint: PathBuf,
    /// Bytes of the file.
    #[arg(long)]
    bytes: usize,
    /// Threads that answer.
    #[arg(long, default_value_t = 4)]
    threads: usize,
}

#[derive(Debug)]
struct Ceiling {
    body: Vec<u8>,
}

impl Ceiling {
    fn attr(&self, ino: INodeNo) -> FileAttr {
        let (kind, perm, size) = match ino {
            FILE => (FileType::RegularFile, 0o444, self.body.len() as u64),
            _ => (FileType::Directory, 0o555, 0),
        };
        FileAttr {
            ino,
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Ceiling {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // As bucketvol asks for them.
        let _ = config.add_capabilities(InitFlags::FUSE_ASYNC_DIO);
        let _ = config.set_max_write(1 << 20);
        let _ = config.set_max_background(64);
        let _ = config.set_congestion_threshold(48);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && name == NAME {
            reply.entry(&TTL, &self.attr(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(ino));
    }

    fn open(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let start = usize::try_from(offset).map_or(self.body.len(), |at| at.min(self.body.len()));
        let end = self.body.len().min(start + size as usize);
        reply.data(&self.body[start..end]);
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    // Written, so that no page is missing.
    let body = vec![1; arguments.bytes];
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(arguments.threads);
    Ok(fuser::mount(
        Ceiling { body },
        &arguments.mountpoint,
        &config,
    )?)
}
