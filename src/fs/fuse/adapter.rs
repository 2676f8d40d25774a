//! [`FuseAdapter`]: the kernel's requests as calls of [`FileSystem`]. It converts and decides nothing.

use std::ffi::{OsStr, OsString};
use std::future::{Future, ready};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle;

use super::connection::{Connection, LeftConnection};
use super::convert::{caller, is_writable, kind_of};
use super::dispatch::{Dispatch, Known, answer_data, answer_empty, is_resent};
use super::reply::{Replies, answer_statfs, answer_written, answer_xattr, name_list};
use crate::clock::Clock;
use crate::fs::{
    Allocation, Attr, Entry, FilePlace, FileSystem, FsError, IfExists, RenameMode, SetAttr,
    XattrMode,
};

/// Bytes of the largest write, as the kernel clamps it.
const MAX_WRITE: u32 = 1024 * 1024;

/// Requests of readahead that the kernel keeps in flight.
const MAX_BACKGROUND: u16 = 64;

/// One connection of the kernel to a volume.
#[derive(Debug)]
pub struct FuseAdapter {
    fs: Arc<FileSystem>,
    dispatch: Dispatch,
    clock: Arc<dyn Clock>,
    known: Arc<Known>,
    replies: Replies,
    /// It is ours to take from a changed file what it lends to who runs it. The kernel then asks of an inode once, not
    /// before every write, whether there is an extended attribute of that kind.
    drops_privileges: bool,
}

impl FuseAdapter {
    /// Serves `fs` on a new connection; what has to wait waits on `runtime`.
    pub fn new(fs: Arc<FileSystem>, runtime: Handle, connection: Arc<Connection>) -> Self {
        Self::knowing(fs, runtime, connection, Vec::new())
    }

    /// Goes on with a connection that an earlier process has served.
    pub fn resume(
        fs: Arc<FileSystem>,
        runtime: Handle,
        connection: Arc<Connection>,
        left: LeftConnection,
    ) -> Self {
        Self::knowing(fs, runtime, connection, left.lookups)
    }

    fn knowing(
        fs: Arc<FileSystem>,
        runtime: Handle,
        connection: Arc<Connection>,
        lookups: Vec<(u64, u64)>,
    ) -> Self {
        fs.connect();
        let known = Known::new(Arc::clone(&fs), Arc::clone(&connection), lookups);
        Self {
            clock: fs.clock(),
            replies: Replies::new(Arc::clone(&fs), Arc::clone(&known)),
            known,
            dispatch: Dispatch::new(runtime, connection),
            fs,
            drops_privileges: false,
        }
    }

    fn has_xattrs(&self) -> bool {
        self.fs.xattr().unwrap_or(self.drops_privileges)
    }

    /// Whether a change that the caller asks for costs a file what it lends to who runs it. The kernel says so too
    /// (`FUSE_WRITE_KILL_SUIDGID` and its like), but fuser passes only some of that on; root is who has `CAP_FSETID`.
    fn costs_privileges(&self, request: &Request) -> bool {
        self.drops_privileges && request.uid() != 0
    }

    /// Before a file's content is changed.
    fn drop_privileges(&self, request: &Request, ino: u64) -> Result<(), Errno> {
        match self.costs_privileges(request) {
            true => self.fs.drop_privileges(ino).map_err(|e| Errno::from(&e)),
            false => Ok(()),
        }
    }

    /// Answers with an entry.
    fn answer_entry(
        &self,
    ) -> impl FnOnce(ReplyEntry, Result<Entry, Errno>) + Send + 'static + use<> {
        let replies = self.replies.clone();
        move |reply, done| replies.entry(reply, done)
    }

    /// Answers with an inode's attributes.
    fn answer_attr(
        &self,
        ino: INodeNo,
    ) -> impl FnOnce(ReplyAttr, Result<(Attr, Duration), Errno>) + Send + 'static + use<> {
        let replies = self.replies.clone();
        move |reply, done| replies.attr(reply, ino.0, done)
    }

    /// What an earlier process has made by this name.
    fn looked_up(
        &self,
        parent: INodeNo,
        name: OsString,
    ) -> impl Future<Output = Result<Entry, FsError>> + Send + 'static + use<> {
        let fs = Arc::clone(&self.fs);
        async move { fs.lookup(parent.0, &name).await }
    }

    fn time(&self, time: TimeOrNow) -> SystemTime {
        match time {
            TimeOrNow::SpecificTime(time) => time,
            TimeOrNow::Now => self.clock.wall(),
        }
    }
}

/// Left out, so that the kernel does it itself or tells the program that it cannot be done: locks (kept by
/// the kernel, for all containers of one mount), lseek, ioctl, poll.
impl Filesystem for FuseAdapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Each by itself: of several, one that the kernel lacks would cost the others. What it lacks, we
        // do without.
        for wanted in [
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_CACHE_SYMLINKS,
        ] {
            let _ = config.add_capabilities(wanted);
        }
        let privileges = config.add_capabilities(InitFlags::FUSE_HANDLE_KILLPRIV_V2);
        self.drops_privileges = privileges.is_ok();
        let _ = config.set_max_write(MAX_WRITE);
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_congestion_threshold(MAX_BACKGROUND / 4 * 3);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (fs, name) = (Arc::clone(&self.fs), name.to_owned());
        let replies = self.replies.clone();
        self.dispatch.ask(
            request,
            async move { fs.lookup(parent.0, &name).await },
            reply,
            move |reply, done| replies.entry_or_none(reply, done),
        );
    }

    fn forget(&self, request: &Request, ino: INodeNo, nlookup: u64) {
        self.dispatch.note(request);
        self.known.forget(ino.0, nlookup);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let fs = Arc::clone(&self.fs);
        if ino == INodeNo::ROOT {
            fs.root_asked(caller(request));
        }
        self.dispatch.ask(
            request,
            async move { fs.getattr(ino.0).await },
            reply,
            self.answer_attr(ino),
        );
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let fs = Arc::clone(&self.fs);
        let change = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(|time| self.time(time)),
            mtime: mtime.map(|time| self.time(time)),
            drop_privileges: self.drops_privileges && (uid.is_some() || gid.is_some())
                || size.is_some() && self.costs_privileges(request),
        };
        self.dispatch.make(
            request,
            async move { fs.setattr(ino.0, change).await },
            reply,
            self.answer_attr(ino),
        );
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        let fs = Arc::clone(&self.fs);
        let target = async move { fs.readlink(ino.0).await.map(|target| vec![target]) };
        self.dispatch.ask(request, target, reply, answer_data);
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let Some(kind) = kind_of(mode) else {
            return reply.error(Errno::EINVAL);
        };
        let (fs, name, caller) = (Arc::clone(&self.fs), name.to_owned(), caller(request));
        let made = self.looked_up(parent, name.clone());
        self.dispatch.make_once(
            &self.fs,
            request,
            async move { fs.mknod(parent.0, &name, kind, mode, rdev, caller).await },
            made,
            reply,
            self.answer_entry(),
        );
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let (fs, name, caller) = (Arc::clone(&self.fs), name.to_owned(), caller(request));
        let made = self.looked_up(parent, name.clone());
        self.dispatch.make_once(
            &self.fs,
            request,
            async move { fs.mkdir(parent.0, &name, mode, caller).await },
            made,
            reply,
            self.answer_entry(),
        );
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let (fs, name, caller) = (Arc::clone(&self.fs), link_name.to_owned(), caller(request));
        let made = self.looked_up(parent, name.clone());
        let target = target.as_os_str().as_bytes().to_vec();
        self.dispatch.make_once(
            &self.fs,
            request,
            async move { fs.symlink(parent.0, &name, &target, caller).await },
            made,
            reply,
            self.answer_entry(),
        );
    }

    fn link(
        &self,
        request: &Request,
        ino: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        let (fs, name) = (Arc::clone(&self.fs), new_name.to_owned());
        let made = self.looked_up(new_parent, name.clone());
        self.dispatch.make_once(
            &self.fs,
            request,
            async move { fs.link(ino.0, new_parent.0, &name).await },
            made,
            reply,
            self.answer_entry(),
        );
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (fs, name) = (Arc::clone(&self.fs), name.to_owned());
        self.dispatch.make_once(
            &self.fs,
            request,
            async move { fs.unlink(parent.0, &name).await },
            ready(Ok(())),
            reply,
            answer_empty,
        );
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (fs, name) = (Arc::clone(&self.fs), name.to_owned());
        self.dispatch.make_once(
            &self.fs,
            request,
            async move { fs.rmdir(parent.0, &name).await },
            ready(Ok(())),
            reply,
            answer_empty,
        );
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            f if f.is_empty() => RenameMode::Replace,
            f if f == RenameFlags::RENAME_NOREPLACE => RenameMode::NoReplace,
            f if f == RenameFlags::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return reply.error(Errno::EINVAL),
        };
        let (fs, name, newname) = (Arc::clone(&self.fs), name.to_owned(), newname.to_owned());
        self.dispatch.make_once(
            &self.fs,
            request,
            async move {
                fs.rename(parent.0, &name, newparent.0, &newname, mode)
                    .await
            },
            ready(Ok(())),
            reply,
            answer_empty,
        );
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let fs = Arc::clone(&self.fs);
        let writable = is_writable(flags);
        // A request that comes again has emptied the file already, and others may have written since.
        let is_emptied = is_resent(request) && fs.was_done(self.dispatch.id(request));
        let truncate = flags.0 & nix::libc::O_TRUNC != 0 && !is_emptied;
        let replies = self.replies.clone();
        let costs_privileges = truncate && self.costs_privileges(request);
        self.dispatch.ask(
            request,
            async move {
                if costs_privileges {
                    fs.drop_privileges(ino.0)?;
                }
                fs.open_file(ino.0, writable, truncate).await
            },
            reply,
            move |reply, done| replies.opened(reply, ino.0, writable, done),
        );
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (fs, name, caller) = (Arc::clone(&self.fs), name.to_owned(), caller(request));
        let (again, again_name) = (Arc::clone(&self.fs), name.clone());
        let replies = self.replies.clone();
        let if_exists = if flags & nix::libc::O_EXCL != 0 {
            IfExists::Fail
        } else if flags & nix::libc::O_TRUNC != 0 {
            IfExists::Truncate
        } else {
            IfExists::Open
        };
        self.dispatch.make_once(
            &self.fs,
            request,
            async move { fs.create(parent.0, &name, mode, caller, if_exists).await },
            async move { again.create_again(parent.0, &again_name).await },
            reply,
            move |reply, done| replies.created(reply, done),
        );
    }

    fn read(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let fs = Arc::clone(&self.fs);
        self.dispatch.ask(
            request,
            async move { fs.read(fh.0, offset, size).await },
            reply,
            answer_data,
        );
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // The kernel sends at most MAX_WRITE bytes.
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        if let Err(errno) = self.drop_privileges(request, ino.0) {
            return reply.error(errno);
        }
        if !is_resent(request) && self.fs.has_room_for(u64::from(len)) {
            let write = || self.fs.write(fh.0, offset, data).map(|()| len);
            return self
                .dispatch
                .make_now(request, write, reply, answer_written);
        }
        let (fs, data) = (Arc::clone(&self.fs), data.to_vec());
        let write = async move {
            fs.room_for(u64::from(len)).await?;
            fs.write(fh.0, offset, &data).map(|()| len)
        };
        self.dispatch.make(request, write, reply, answer_written);
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        if let Err(errno) = self.drop_privileges(request, ino_out.0) {
            return reply.error(errno);
        }
        let place = |fh: FileHandle, offset| FilePlace { fh: fh.0, offset };
        let (from, to) = (place(fh_in, offset_in), place(fh_out, offset_out));
        let (fs, again, id) = (
            Arc::clone(&self.fs),
            Arc::clone(&self.fs),
            self.dispatch.id(request),
        );
        self.dispatch.make_once(
            &self.fs,
            request,
            async move { fs.copy_range(from, to, len).await },
            async move { Ok(again.copied_earlier(id, len)) },
            reply,
            answer_written,
        );
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let Some(allocation) = Allocation::from_mode(mode) else {
            return reply.error(Errno::EOPNOTSUPP);
        };
        if let Err(errno) = self.drop_privileges(request, ino.0) {
            return reply.error(errno);
        }
        let fs = Arc::clone(&self.fs);
        self.dispatch.make_once(
            &self.fs,
            request,
            async move { fs.allocate(fh.0, offset, length, allocation) },
            ready(Ok(())),
            reply,
            answer_empty,
        );
    }

    fn flush(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let fs = Arc::clone(&self.fs);
        self.dispatch.make(
            request,
            async move { fs.flush(fh.0).await },
            reply,
            answer_empty,
        );
    }

    fn release(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let fs = Arc::clone(&self.fs);
        let release = async move {
            fs.release(fh.0).await;
            Ok(())
        };
        self.dispatch.make(request, release, reply, answer_empty);
    }

    fn fsync(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let fs = Arc::clone(&self.fs);
        self.dispatch.make(
            request,
            async move { fs.fsync(fh.0).await },
            reply,
            answer_empty,
        );
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let fs = Arc::clone(&self.fs);
        self.dispatch.ask(
            request,
            async move { fs.opendir(ino.0).await },
            reply,
            |reply, done| match done {
                Ok(fh) => reply.opened(FileHandle(fh), FopenFlags::empty()),
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn readdir(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let (fs, replies) = (Arc::clone(&self.fs), self.replies.clone());
        self.dispatch.ask(
            request,
            async move { fs.readdir(fh.0, offset).await },
            reply,
            move |reply, done| replies.listing(reply, fh.0, done),
        );
    }

    fn readdirplus(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let (fs, replies) = (Arc::clone(&self.fs), self.replies.clone());
        self.dispatch.ask(
            request,
            async move { fs.readdir(fh.0, offset).await },
            reply,
            move |reply, done| replies.listing_plus(reply, fh.0, done),
        );
    }

    fn releasedir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.fs.releasedir(fh.0);
        reply.ok();
        self.dispatch.answered();
    }

    fn fsyncdir(
        &self,
        request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let fs = Arc::clone(&self.fs);
        self.dispatch.make(
            request,
            async move { fs.fsyncdir(ino.0).await },
            reply,
            answer_empty,
        );
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        // Who waits for threads to come by the gate does not want to know.
        if !self.dispatch.is_ending() {
            self.fs.want_count();
        }
        answer_statfs(reply, &self.fs.space());
        self.dispatch.answered();
    }

    // ENOSYS is what the kernel takes for no, once and for all: else it asks for an attribute before every write.
    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        if !self.has_xattrs() {
            return reply.error(Errno::ENOSYS);
        }
        let mode = match flags {
            0 => XattrMode::Set,
            nix::libc::XATTR_CREATE => XattrMode::Create,
            nix::libc::XATTR_REPLACE => XattrMode::Replace,
            _ => return reply.error(Errno::EINVAL),
        };
        let (fs, name, value) = (Arc::clone(&self.fs), name.to_owned(), value.to_vec());
        self.dispatch.make_once(
            &self.fs,
            request,
            async move { fs.setxattr(ino.0, &name, &value, mode).await },
            ready(Ok(())),
            reply,
            answer_empty,
        );
    }

    fn getxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        if !self.has_xattrs() {
            return reply.error(Errno::ENOSYS);
        }
        let (fs, name) = (Arc::clone(&self.fs), name.to_owned());
        self.dispatch.ask(
            request,
            async move { fs.getxattr(ino.0, &name).await },
            reply,
            move |reply, done| answer_xattr(reply, size, done),
        );
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        if !self.has_xattrs() {
            return reply.error(Errno::ENOSYS);
        }
        let fs = Arc::clone(&self.fs);
        self.dispatch.ask(
            request,
            async move { Ok(name_list(&fs.listxattr(ino.0).await?)) },
            reply,
            move |reply, done| answer_xattr(reply, size, done),
        );
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if !self.has_xattrs() {
            return reply.error(Errno::ENOSYS);
        }
        let (fs, name) = (Arc::clone(&self.fs), name.to_owned());
        self.dispatch.make_once(
            &self.fs,
            request,
            async move { fs.removexattr(ino.0, &name).await },
            ready(Ok(())),
            reply,
            answer_empty,
        );
    }
}
