//! Mounting without our file system: a trivial one shows what attaching, detaching, healing and the
//! kernel's part of it do. Real mounts, made below a directory of the test's own and gone with it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bucketvol::fs::fuse::mount::{self, AttachError};
use bucketvol::fs::fuse::mountinfo::{MountEntry, MountTable};
use bucketvol::fs::fuse::{
    Agreement, Attachment, BaseDir, FuseDevice, MountRequest, Session, SessionError, Unanswered,
};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, LockOwner, OpenFlags,
    ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, Request,
};
use nix::mount::{MntFlags, MsFlags};
use parking_lot::Mutex;

use crate::common::process::cannot_run;

const LIMIT: Duration = Duration::from_secs(10);
const HELPER: &str = "BUCKETVOL_TEST_HELPER";
/// The text of a file that is never read to anybody.
const MUTE: &str = "mute";
const SOURCE: &str = "s3://bucket/a b,ro";

/// A root with one file, `hello`. It may be told to keep the kernel waiting for the root's attributes.
#[derive(Debug)]
struct Hello {
    text: &'static str,
    unanswered: Option<Arc<Mutex<Vec<ReplyAttr>>>>,
}

impl Hello {
    fn new(text: &'static str) -> Self {
        Self {
            text,
            unanswered: None,
        }
    }

    fn attr(&self, ino: INodeNo) -> FileAttr {
        let is_dir = ino == INodeNo::ROOT;
        let time = std::time::UNIX_EPOCH;
        FileAttr {
            ino,
            size: if is_dir { 0 } else { self.text.len() as u64 },
            blocks: 0,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: if is_dir {
                FileType::Directory
            } else {
                FileType::RegularFile
            },
            perm: 0o755,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Hello {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name == "hello" {
            true => reply.entry(&Duration::ZERO, &self.attr(INodeNo(2)), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match &self.unanswered {
            Some(unanswered) => unanswered.lock().push(reply),
            None => reply.attr(&Duration::ZERO, &self.attr(ino)),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        _: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if self.text == MUTE {
            // Dropping it would be an answer.
            std::mem::forget(reply);
            say("asked");
            return;
        }
        let start = usize::try_from(offset).unwrap().min(self.text.len());
        reply.data(&self.text.as_bytes()[start..]);
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if offset == 0 {
            let _ = reply.add(INodeNo(2), 1, FileType::RegularFile, "hello");
        }
        reply.ok();
    }
}

/// A line for the test that started this process: the test harness writes before ours.
#[expect(clippy::print_stdout, reason = "another process reads it")]
fn say(text: &str) {
    println!("\n{text}");
}

/// A directory of the test's own. Whatever is still mounted below it at the end is unmounted.
pub(crate) struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        fs::canonicalize(self.dir.path()).unwrap()
    }

    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// How many of the mounts a program can see or uncover. Where the root is a shared mount there are
    /// copies of some below the base directory's own mount.
    pub(crate) fn visible(&self) -> usize {
        let table = MountTable::of_self().unwrap();
        let is_visible = |entry: &&MountEntry| {
            table
                .stack_at(&entry.mount_point)
                .iter()
                .any(|other| other.id == entry.id)
        };
        self.mounts().iter().filter(is_visible).count()
    }

    pub(crate) fn mounts(&self) -> Vec<MountEntry> {
        let table = MountTable::of_self().unwrap();
        let below = |entry: &&MountEntry| entry.mount_point.starts_with(self.dir.path());
        table.entries().iter().filter(below).cloned().collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for _ in 0..100 {
            // The longest path first: what is mounted inside has to go before what holds it.
            let mounts = self.mounts();
            let Some(deepest) = mounts
                .iter()
                .max_by_key(|m| m.mount_point.as_os_str().len())
            else {
                return;
            };
            let _ = nix::mount::umount2(&deepest.mount_point, MntFlags::MNT_DETACH);
        }
    }
}

/// A process of the test's, killed at its end.
struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
}

impl Process {
    fn start(command: &mut Command) -> Self {
        Self::start_with(command, Stdio::piped())
    }

    fn start_with(command: &mut Command, stdin: Stdio) -> Self {
        let mut child = command.stdin(stdin).stdout(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take();
        let (tell, lines) = mpsc::channel();
        let stdout: BufReader<ChildStdout> = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = tell.send(line);
            }
        });
        Self {
            child,
            stdin,
            lines,
        }
    }

    /// Waits for a line that ends in `text`; the test harness of a helper writes before ours.
    fn expect(&self, text: &str) {
        let deadline = Instant::now() + LIMIT * 2;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self
                .lines
                .recv_timeout(left)
                .unwrap_or_else(|_| panic!("no {text:?} came"));
            if line.ends_with(text) {
                return;
            }
        }
    }

    fn say(&mut self, text: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{text}").unwrap();
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn request(mountpoint: PathBuf) -> MountRequest {
    MountRequest {
        mountpoint,
        source: SOURCE.into(),
        read_only: false,
    }
}

async fn hello(mountpoint: PathBuf, text: &'static str) -> Session {
    Session::mount(Hello::new(text), request(mountpoint), LIMIT)
        .await
        .unwrap()
}

/// Every access to a mount is made off the runtime and given up after a while.
pub(crate) async fn off_runtime<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::time::timeout(LIMIT, tokio::task::spawn_blocking(work))
        .await
        .unwrap()
        .unwrap()
}

async fn read(path: PathBuf) -> std::io::Result<String> {
    off_runtime(move || fs::read_to_string(path)).await
}

async fn ended(session: &Session) {
    tokio::time::timeout(LIMIT, session.end().wait())
        .await
        .expect("the session goes on");
    assert!(!session.is_alive());
}

async fn still_alive(session: &Session) {
    assert!(
        tokio::time::timeout(Duration::from_millis(300), session.end().wait())
            .await
            .is_err()
    );
    assert!(session.is_alive());
}

fn detach(path: &Path) {
    nix::mount::umount2(path, MntFlags::MNT_DETACH).unwrap();
}

/// A mount namespace with the volume at a place of its own, as a container has it.
fn container(volume: &Path, at: &Path) -> Process {
    let script = "mount --bind \"$0\" \"$1\" && echo up && while read -r line; do cat \"$1/hello\" && echo; done";
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "slave", "sh", "-c", script])
        .arg(volume)
        .arg(at);
    let process = Process::start(&mut command);
    process.expect("up");
    process
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_can_be_read_and_a_detach_leaves_nothing_behind() {
    let place = Place::new();
    let dir = place.dir("m");
    let session = hello(dir.clone(), "hi").await;
    assert_eq!(read(dir.join("hello")).await.unwrap(), "hi");
    let mounts = place.mounts();
    assert_eq!(place.visible(), 1);
    assert_eq!(mounts[0].fs_type, "fuse.bucketvol");
    assert_eq!(mounts[0].source, SOURCE);
    assert_eq!(mounts[0].device, session.attachment().device());
    let read_ahead = format!(
        "/sys/class/bdi/{}/read_ahead_kb",
        session.attachment().device()
    );
    assert_eq!(fs::read_to_string(read_ahead).unwrap().trim(), "1024");
    assert!(session.is_visible());

    session.detach().await.unwrap();
    ended(&session).await;
    assert_eq!(place.mounts(), []);
    assert!(!session.is_visible());
    session
        .detach()
        .await
        .expect("a second detach has nothing to do");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_mount_refuses_changes_in_the_kernel() {
    let place = Place::new();
    let dir = place.dir("m");
    let request = MountRequest {
        read_only: true,
        ..request(dir.clone())
    };
    let session = Session::mount(Hello::new("hi"), request, LIMIT)
        .await
        .unwrap();
    let error = off_runtime(move || fs::create_dir(dir.join("new")))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    session.detach().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_file_outlives_the_detach_and_the_session_ends_at_its_close() {
    let place = Place::new();
    let dir = place.dir("m");
    let session = hello(dir.clone(), "still here").await;
    let path = dir.join("hello");
    let mut file = off_runtime(move || File::open(path)).await.unwrap();
    session.detach().await.unwrap();
    assert_eq!(place.mounts(), []);
    still_alive(&session).await;
    let (file, text) = off_runtime(move || {
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        (file, text)
    })
    .await;
    assert_eq!(text, "still here");
    drop(file);
    ended(&session).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_put_on_top_of_ours_is_not_unmounted_by_our_detach() {
    let place = Place::new();
    let dir = place.dir("m");
    let session = hello(dir.clone(), "hi").await;
    nix::mount::mount(
        Some("theirs"),
        &dir,
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .unwrap();
    assert!(!session.is_visible());
    let error = session.detach().await.unwrap_err();
    assert!(matches!(error, AttachError::Covered { .. }), "{error}");
    assert!(error.to_string().contains("theirs"), "{error}");
    assert_eq!(place.visible(), 2);

    detach(&dir);
    session.detach().await.unwrap();
    ended(&session).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unmount_behind_our_back_ends_the_session_and_what_came_after_is_left_alone() {
    let place = Place::new();
    let dir = place.dir("m");
    let session = hello(dir.clone(), "hi").await;
    detach(&dir);
    ended(&session).await;
    nix::mount::mount(
        Some("theirs"),
        &dir,
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .unwrap();
    session.detach().await.unwrap();
    drop(session);
    assert_eq!(place.visible(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_does_not_answer_is_an_error_in_time_and_nothing_stays_mounted() {
    let place = Place::new();
    let dir = place.dir("m");
    let unanswered = Arc::default();
    let filesystem = Hello {
        text: "",
        unanswered: Some(Arc::clone(&unanswered)),
    };
    let started = Instant::now();
    let limit = Duration::from_secs(1);
    let error = Session::mount(filesystem, request(dir), limit)
        .await
        .unwrap_err();
    assert!(matches!(error, SessionError::TimedOut { .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(place.mounts(), []);
    // A reply that is dropped is an error to its caller: the thread that looked comes back.
    unanswered.lock().clear();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_empty_directory_that_is_no_mount_point_can_be_mounted_on() {
    let place = Place::new();
    let complaint = |path: &Path| mount::check_mountpoint(path).unwrap_err().to_string();
    assert!(complaint(&place.path().join("none")).contains("no such directory"));
    assert!(complaint(&place.path().join("none/deeper")).contains("No such file"));
    let full = place.dir("full");
    fs::write(full.join("f"), "").unwrap();
    assert!(complaint(&full).contains("not empty"));
    assert!(complaint(&full.join("f")).contains("Not a directory"));
    let dir = place.dir("m");
    let link = place.path().join("link");
    std::os::unix::fs::symlink(&dir, &link).unwrap();
    assert_eq!(mount::check_mountpoint(&link).unwrap(), dir);

    let session = hello(dir.clone(), "hi").await;
    assert!(complaint(&dir).contains("already mounted"));
    assert!(complaint(&link).contains("already mounted"));
    session.detach().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_without_its_file_system_shows_an_empty_directory_nobody_can_fill() {
    let place = Place::new();
    let base = Arc::new(BaseDir::open(&place.path().join("base")).unwrap());
    assert_eq!(
        fs::metadata(place.path().join("base"))
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o700
    );
    let dir = base.prepare("v").unwrap();
    let session = hello(dir.clone(), "hi").await;
    assert_eq!(read(dir.join("hello")).await.unwrap(), "hi");
    session.detach().await.unwrap();

    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    let error = fs::write(dir.join("f"), "lost").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(
        base.prepare("v").unwrap(),
        dir,
        "what is ready already stays as it is"
    );
    assert_eq!(place.visible(), 2);

    base.clear("v").unwrap();
    base.clear("v").unwrap();
    assert_eq!(place.visible(), 1);

    let dir = base.prepare("v").unwrap();
    let session = hello(dir, "hi").await;
    base.close().unwrap();
    assert_eq!(place.visible(), 3, "a base with a volume in it stays");
    session.detach().await.unwrap();
    base.close().unwrap();
    assert_eq!(place.mounts(), []);
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_directory_has_one_daemon_and_the_next_one_takes_it_as_it_is() {
    let place = Place::new();
    let path = place.path().join("base");
    let first = BaseDir::open(&path).unwrap();
    let second = path.clone();
    let error = off_runtime(move || BaseDir::open(&second).unwrap_err()).await;
    assert!(error.to_string().contains("another bucketvol"), "{error}");
    // Its daemon died: nobody closed it.
    drop(first);
    let next = BaseDir::open(&path).unwrap();
    assert_eq!(place.visible(), 1);
    next.close().unwrap();
    assert_eq!(place.mounts(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_file_system_at_a_volumes_place_is_refused_and_kept() {
    let place = Place::new();
    let base = BaseDir::open(&place.path().join("base")).unwrap();
    let dir = base.prepare("v").unwrap();
    nix::mount::mount(
        Some("theirs"),
        &dir,
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .unwrap();
    assert!(
        base.prepare("v")
            .unwrap_err()
            .to_string()
            .contains("theirs")
    );
    assert!(base.clear("v").unwrap_err().to_string().contains("theirs"));
    detach(&dir);
    base.clear("v").unwrap();
    base.close().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_whose_daemon_was_killed_is_replaced() {
    let place = Place::new();
    let path = place.path().join("base");
    let mut daemon = helper(
        "serve",
        &path,
        Command::new(std::env::current_exe().unwrap()),
    );
    daemon.expect("up");
    assert_eq!(read(path.join("v/hello")).await.unwrap(), "old");
    daemon.kill();
    let dead = read(path.join("v/hello")).await.unwrap_err();
    assert_eq!(dead.raw_os_error(), Some(nix::libc::ENOTCONN));

    let base = BaseDir::open(&path).unwrap();
    let dir = base.prepare("v").unwrap();
    let session = hello(dir.clone(), "new").await;
    assert_eq!(read(dir.join("hello")).await.unwrap(), "new");
    assert_eq!(
        place.visible(),
        3,
        "base, placeholder, volume: the dead one is gone"
    );
    session.detach().await.unwrap();
    base.clear("v").unwrap();
    base.close().unwrap();
    assert_eq!(place.mounts(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_removes_a_dead_mount_unless_a_container_uses_it() {
    let place = Place::new();
    let path = place.path().join("base");
    let inside = place.dir("inside");
    let mut daemon = helper(
        "serve",
        &path,
        Command::new(std::env::current_exe().unwrap()),
    );
    daemon.expect("up");
    let mut container = container(&path.join("v"), &inside);
    daemon.kill();
    let base = BaseDir::open(&path).unwrap();
    base.sweep().unwrap();
    assert_eq!(place.visible(), 3, "base, placeholder, dead volume");
    container.kill();
    base.sweep().unwrap();
    assert_eq!(place.visible(), 1);
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
    base.close().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_whose_daemon_was_killed_is_healed_by_the_next_one() {
    let place = Place::new();
    let path = place.path().join("base");
    let inside = place.dir("inside");
    let mut daemon = helper(
        "serve",
        &path,
        Command::new(std::env::current_exe().unwrap()),
    );
    daemon.expect("up");
    let mut container = container(&path.join("v"), &inside);
    container.say("look");
    container.expect("old");
    daemon.kill();

    let base = BaseDir::open(&path).unwrap();
    let dir = base.prepare("v").unwrap();
    let session = hello(dir.clone(), "new").await;
    container.say("look");
    container.expect("new");
    assert!(session.is_used_elsewhere(LIMIT).await);
    container.kill();
    assert!(!session.is_used_elsewhere(LIMIT).await);
    session.detach().await.unwrap();
    base.clear("v").unwrap();
    base.close().unwrap();
    assert_eq!(
        place.mounts(),
        [],
        "the dead mount is gone with its last user"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_uses_the_volume_and_a_mere_copy_of_our_namespace_does_not() {
    let place = Place::new();
    let base = BaseDir::open(&place.path().join("base")).unwrap();
    let dir = base.prepare("v").unwrap();
    let session = hello(dir.clone(), "hi").await;
    assert!(!session.is_used_elsewhere(LIMIT).await);

    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "--propagation",
        "slave",
        "sh",
        "-c",
        "echo up; read -r line",
    ]);
    let service = Process::start(&mut command);
    service.expect("up");
    assert!(!session.is_used_elsewhere(LIMIT).await);

    let inside = place.dir("inside");
    let mut container = container(&dir, &inside);
    assert!(session.is_used_elsewhere(LIMIT).await);
    // Detached under it, the container keeps what it has, and is the one the session waits for.
    session.detach().await.unwrap();
    container.say("look");
    container.expect("hi");
    still_alive(&session).await;
    container.kill();
    ended(&session).await;
    base.clear("v").unwrap();
    base.close().unwrap();
    assert_eq!(place.mounts(), []);
}

#[test]
fn where_the_root_is_a_shared_mount_nothing_is_left_either() {
    let place = Place::new();
    let exe = std::env::current_exe().unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "shared", "sh", "-c"]);
    command
        .arg("mount --make-rprivate / && mount --make-rshared / && exec \"$@\"")
        .arg("sh")
        .arg(exe);
    helper("cycle", &place.path().join("base"), command).expect("clean");
}

#[test]
fn an_ordinary_user_mounts_through_fusermount3() {
    if Command::new("fusermount3")
        .arg("-V")
        .stdout(Stdio::null())
        .status()
        .is_err()
    {
        return cannot_run("fusermount3 is not installed (package fuse3)");
    }
    let place = Place::new();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let dir = place.dir("m");
    chown(&dir, Some(65534), Some(65534)).unwrap();
    // The test binary may lie where only root can reach it.
    let exe = place.path().join("suite");
    fs::copy(std::env::current_exe().unwrap(), &exe).unwrap();
    // Where no udev runs only root may open /dev/fuse; the test's own namespace has one for everybody.
    let script =
        "mknod \"$0\" c 10 229 && chmod 666 \"$0\" && mount --bind \"$0\" /dev/fuse && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]);
    command.arg(place.path().join("fuse"));
    command
        .args([
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--",
        ])
        .arg(exe);
    helper("user", &dir, command).expect("clean");
    assert_eq!(place.mounts(), []);
}

/// Somebody keeps the connection while nobody serves it.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_whose_request_a_killed_process_had_in_hand_is_answered_by_the_next_one() {
    let place = Place::new();
    let dir = place.dir("m");
    // Dropped last: they end when nobody keeps the connection.
    let (reader, later): (Process, Process);
    let device = FuseDevice::open().unwrap();
    Attachment::mount(&device, &request(dir.clone())).unwrap();
    let serve = |work: &str| serving(work, &dir, &device);
    let mut first = serve("begin");
    // Not by this process, whose end would have to wait for an answer.
    let read = || Process::start(Command::new("cat").arg(dir.join("hello")));
    reader = read();
    first.expect("asked");
    first.kill();
    later = read();
    for _ in 0..3 {
        let mut next = serve("resume");
        next.kill();
    }
    let _last = serve("resume");
    reader.expect("back");
    later.expect("back");
    detach(&dir);
}

/// Another process that serves the connection.
fn serving(work: &str, dir: &Path, device: &FuseDevice) -> Process {
    let device = OwnedFd::from(device.try_clone().unwrap());
    let process = helper_with(work, dir, this_binary(), device.into());
    process.expect("up");
    process
}

/// It is as if the kernel was older than 6.9: `cat` begins anew what was interrupted.
#[tokio::test(flavor = "multi_thread")]
async fn where_the_kernel_cannot_send_it_again_a_request_in_hand_is_interrupted() {
    interrupted_by("resume-old").await;
}

/// Its number is far below those of the last requests: only because it was noted is it known.
#[tokio::test(flavor = "multi_thread")]
async fn there_a_request_is_interrupted_too_that_has_waited_for_long() {
    interrupted_by("resume-late").await;
}

async fn interrupted_by(resume: &str) {
    let place = Place::new();
    let dir = place.dir("m");
    let reader: Process;
    let device = FuseDevice::open().unwrap();
    Attachment::mount(&device, &request(dir.clone())).unwrap();
    let serve = |work: &str| serving(work, &dir, &device);
    let mut first = serve("begin");
    reader = Process::start(Command::new("cat").arg(dir.join("hello")));
    first.expect("asked");
    first.kill();
    let _next = serve(resume);
    reader.expect("back");
    detach(&dir);
}

/// This test binary in another process (and namespace, and user), doing what `helpers` says.
fn helper(work: &str, path: &Path, command: Command) -> Process {
    helper_with(work, path, command, Stdio::piped())
}

fn this_binary() -> Command {
    Command::new(std::env::current_exe().unwrap())
}

fn helper_with(work: &str, path: &Path, mut command: Command, stdin: Stdio) -> Process {
    command
        .args([
            "--exact",
            "session::helpers",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(HELPER, format!("{work}:{}", path.display()));
    Process::start_with(&mut command, stdin)
}

/// No test of its own: what the tests above have other processes do.
#[tokio::test(flavor = "multi_thread")]
async fn helpers() {
    let Ok(helper) = std::env::var(HELPER) else {
        return;
    };
    let (work, path) = helper.split_once(':').unwrap();
    let path = PathBuf::from(path);
    match work {
        "serve" => {
            let base = BaseDir::open(&path).unwrap();
            let _session = hello(base.prepare("v").unwrap(), "old").await;
            say("up");
            // Bounded, should the test that started us die before it kills us.
            tokio::time::sleep(LIMIT * 6).await;
        }
        // The connection is on stdin.
        "begin" | "resume" | "resume-old" | "resume-late" => {
            let device = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
            let table = MountTable::of_self().unwrap();
            let number = table.top_at(&path).unwrap().device;
            let attachment = Attachment::adopt(&path, number, false).unwrap();
            let kept = path.with_extension("agreement");
            let session = if work == "begin" {
                Session::run(Hello::new(MUTE), device.into(), attachment, LIMIT).await
            } else {
                let mut said: serde_json::Value =
                    serde_json::from_slice(&fs::read(&kept).unwrap()).unwrap();
                if work != "resume" {
                    // FUSE_HAS_RESEND, in the second flags of the kernel's INIT.
                    said["request"][40 + 16] = 0.into();
                }
                let agreement: Agreement = serde_json::from_value(said).unwrap();
                let hello = Hello::new("back");
                let unanswered = match work {
                    "resume-late" => Unanswered {
                        near: 1_000_000,
                        waiting: (0..100).step_by(2).collect(),
                    },
                    _ => Unanswered::default(),
                };
                let device = device.into();
                Session::resume(hello, device, attachment, agreement, unanswered, LIMIT).await
            };
            let session = session.unwrap();
            let agreement = serde_json::to_vec(session.agreement()).unwrap();
            fs::write(&kept, agreement).unwrap();
            say("up");
            tokio::time::sleep(LIMIT * 6).await;
        }
        "cycle" => {
            let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
            let base = BaseDir::open(&path).unwrap();
            for text in ["one", "two"] {
                let dir = base.prepare("v").unwrap();
                let session = hello(dir.clone(), text).await;
                assert_eq!(read(dir.join("hello")).await.unwrap(), text);
                assert!(!session.is_used_elsewhere(LIMIT).await);
                session.detach().await.unwrap();
                ended(&session).await;
                base.clear("v").unwrap();
            }
            base.close().unwrap();
            assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
            say("clean");
        }
        "user" => {
            assert!(!nix::unistd::geteuid().is_root());
            let (device, attachment) = Attachment::open(&request(path.clone())).unwrap();
            let session = Session::run(Hello::new("mine"), device, attachment, LIMIT)
                .await
                .unwrap();
            assert_eq!(read(path.join("hello")).await.unwrap(), "mine");
            let table = MountTable::of_self().unwrap();
            let entry = table.top_at(&path).unwrap();
            assert_eq!(
                (entry.fs_type.as_str(), entry.source.to_str()),
                ("fuse.bucketvol", Some(SOURCE))
            );
            session.detach().await.unwrap();
            ended(&session).await;
            assert!(MountTable::of_self().unwrap().top_at(&path).is_none());
            say("clean");
        }
        other => panic!("no helper {other}"),
    }
}
