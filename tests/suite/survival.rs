//! The worker is killed or replaced again and again while programs use a mount: none of them notices.
//!
//! Needs root, /dev/fuse and (on 6.9 and later) python3. A kernel before 6.9 cannot send again what a killed worker has left unanswered: there, and
//! for kills alone, the programs put up with EINTR, and with nothing else.

mod hurt;
mod unmounted;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg, OFlag, open};
use nix::sys::stat::Mode;
use parking_lot::Mutex;

use crate::common::mounted::{Mounted, NOBODY};
use crate::common::process::{bounded, succeed, wait_for};
use crate::common::s3::LocalS3;
use crate::common::test_fs::pattern;

/// `BUCKETVOL_WORKER_KILLS` asks for more: the long form is 100.
const KILLS: u32 = 10;

/// Bytes of the file that is read, and of the one that is written all over.
const LEN: usize = 3 << 20;
const BLOCK: usize = 4096;

/// Names in the directory that is listed: one answer has no room for them.
const NAMES: usize = 40;

/// How long a program may take to go on after the worker's end, by an unoptimised build on an emulated machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// A program that goes on until it is told to stop; it fails if anything is not as it should be.
type Program = fn(&Path, &mut Steps<'_>) -> io::Result<()>;

/// What is done to the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hurt {
    /// `kill -9`.
    Kill,
    /// `bucketvol restart`.
    Replace,
}

impl Hurt {
    fn hurt(self, mounted: &Mounted) {
        match self {
            Self::Kill => mounted.kill_worker(),
            Self::Replace => mounted.replace_worker(),
        }
    }

    /// Whether what the worker had in hand may fail with EINTR.
    fn interrupts(self) -> bool {
        self == Self::Kill && !kernel_resends()
    }
}

/// Whether the kernel can send again what has no answer: since 6.9.
fn kernel_resends() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("it is mounted");
    let mut numbers = release
        .split(['.', '-'])
        .map(|n| n.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6), Some(9))
}

/// What a program does of which it is said how long it took. A step may be taken again if it was interrupted; whether it
/// had been done before, nobody can say.
///
/// Only of calls that std does not begin again by itself, as it does with `open` and `read_exact`.
#[derive(Debug)]
struct Steps<'a> {
    stop: &'a AtomicBool,
    rounds: &'a AtomicU32,
    may_be_interrupted: bool,
    interrupted: u32,
    longest: Duration,
}

impl<'a> Steps<'a> {
    fn new(hurt: Hurt, stop: &'a AtomicBool, rounds: &'a AtomicU32) -> Self {
        Self {
            stop,
            rounds,
            may_be_interrupted: hurt.interrupts(),
            interrupted: 0,
            longest: Duration::ZERO,
        }
    }

    /// Whether there is to be another round.
    fn go_on(&self) -> bool {
        self.rounds.fetch_add(1, Ordering::Relaxed);
        !self.stop.load(Ordering::Relaxed)
    }

    /// What comes to the same if it is done twice.
    fn step<T>(&mut self, mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        loop {
            let start = Instant::now();
            let done = work();
            self.longest = self.longest.max(start.elapsed());
            match done {
                Err(error) if self.may_be_interrupted && error.kind() == ErrorKind::Interrupted => {
                    self.interrupted += 1;
                }
                done => return done,
            }
        }
    }

    /// What cannot be done twice: `already` is the error of a second time.
    fn change(
        &mut self,
        already: ErrorKind,
        mut work: impl FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        let mut was_begun = false;
        self.step(|| match work() {
            Err(error) if was_begun && error.kind() == already => Ok(()),
            done => {
                was_begun = true;
                done
            }
        })
    }

    /// Opens a file for reading and writing.
    fn open(&mut self, path: &Path, flags: OFlag) -> io::Result<File> {
        self.step(|| open_file(path, OFlag::O_RDWR | flags))
    }

    /// Makes a file that is not there.
    fn create(&mut self, path: &Path, flags: OFlag) -> io::Result<File> {
        let mut flags = flags | OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
        self.step(|| {
            let opened = open_file(path, flags);
            flags.remove(OFlag::O_EXCL);
            opened
        })
    }

    fn read_at(&mut self, file: &File, len: usize, at: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let read = self.step(|| file.read_at(&mut bytes, at as u64))?;
        bytes.truncate(read);
        Ok(bytes)
    }

    fn write_at(&mut self, file: &File, bytes: &[u8], at: usize) -> io::Result<()> {
        let written = self.step(|| file.write_at(bytes, at as u64))?;
        expect(written == bytes.len(), "it was written in part")
    }

    /// The whole content of a small file.
    fn read(&mut self, path: &Path) -> io::Result<Vec<u8>> {
        let file = self.open(path, OFlag::empty())?;
        self.read_at(&file, BLOCK, 0)
    }

    /// Makes a file have this content, whether it is there or not.
    fn write(&mut self, path: &Path, content: &str) -> io::Result<()> {
        let file = self.open(path, OFlag::O_CREAT | OFlag::O_TRUNC)?;
        self.write_at(&file, content.as_bytes(), 0)
    }

    fn make_directory(&mut self, path: &Path) -> io::Result<()> {
        self.change(ErrorKind::AlreadyExists, || fs::create_dir(path))
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.change(ErrorKind::NotFound, || fs::remove_file(path))
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(ErrorKind::NotFound, || fs::rename(from, to))
    }

    fn names(&mut self, directory: &Path) -> io::Result<Vec<OsString>> {
        self.step(|| {
            fs::read_dir(directory)?
                .map(|entry| Ok(entry?.file_name()))
                .collect()
        })
    }
}

fn open_file(path: &Path, flags: OFlag) -> io::Result<File> {
    let mode = Mode::from_bits_truncate(0o644);
    Ok(open(path, flags | OFlag::O_CLOEXEC, mode)?.into())
}

fn expect(is_so: bool, what: &str) -> io::Result<()> {
    match is_so {
        true => Ok(()),
        false => Err(io::Error::other(what.to_owned())),
    }
}

/// Reads one file through one descriptor, all over.
fn read(mount: &Path, steps: &mut Steps<'_>) -> io::Result<()> {
    let (path, expected) = (mount.join("static"), pattern(LEN));
    let file = steps.step(|| open_file(&path, OFlag::O_RDONLY))?;
    let inode = steps.step(|| file.metadata())?.ino();
    let mut random = 1_u64;
    while steps.go_on() {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let at = usize::try_from(random >> 33).map_err(io::Error::other)? % (LEN - BLOCK);
        let block = steps.read_at(&file, BLOCK, at)?;
        expect(block == expected[at..at + BLOCK], "wrong bytes were read")?;
        expect(
            steps.step(|| fs::metadata(&path))?.ino() == inode,
            "another inode",
        )?;
    }
    Ok(())
}

/// Makes, writes, renames, reads and removes files.
fn cycle(mount: &Path, steps: &mut Steps<'_>) -> io::Result<()> {
    let directory = mount.join("cycle");
    steps.make_directory(&directory)?;
    let [new, inner] = ["new", "d"].map(|name| directory.join(name));
    let link = inner.join("link");
    for number in 0_u64.. {
        if !steps.go_on() {
            break;
        }
        let done = directory.join(number.to_string());
        let file = steps.create(&new, OFlag::empty())?;
        let mut expected = Vec::new();
        for piece in 0..3_u64 {
            let bytes = [number, piece].map(u64::to_le_bytes).concat();
            steps.write_at(&file, &bytes, expected.len())?;
            expected.extend(bytes);
        }
        if number.is_multiple_of(8) {
            steps.step(|| file.sync_all())?;
        }
        steps.rename(&new, &done)?;
        let read = steps.read_at(&file, BLOCK, 0)?;
        expect(read == expected, "wrong bytes")?;
        steps.remove(&done)?;
        let len = steps.step(|| file.metadata())?.len();
        expect(len == 48, "the open file is another")?;
        steps.make_directory(&inner)?;
        steps.change(ErrorKind::AlreadyExists, || symlink("to", &link))?;
        steps.remove(&link)?;
        steps.change(ErrorKind::NotFound, || fs::remove_dir(&inner))?;
    }
    let left = steps.names(&directory)?;
    expect(left.is_empty(), "something was left over")
}

/// Appends to a file through one descriptor: each line is there once.
fn append(mount: &Path, steps: &mut Steps<'_>) -> io::Result<()> {
    let mut file = steps.create(&mount.join("log"), OFlag::O_APPEND)?;
    let mut expected = String::new();
    for number in 0_u64.. {
        if !steps.go_on() {
            break;
        }
        let line = format!("line {number:010}\n");
        let written = steps.step(|| file.write(line.as_bytes()))?;
        expect(written == line.len(), "it was written in part")?;
        expected.push_str(&line);
        std::thread::sleep(Duration::from_millis(1));
    }
    // One more than there are, to see those that are too many.
    let read = steps.read_at(&file, expected.len() + 1, 0)?;
    expect(read == expected.as_bytes(), "the log has other lines")
}

/// Overwrites blocks of a file that had another content before, and empties one that others read.
fn scribble(mount: &Path, steps: &mut Steps<'_>) -> io::Result<()> {
    let file = steps.open(&mount.join("changed"), OFlag::empty())?;
    let (mut expected, short) = (pattern(LEN), mount.join("short"));
    for number in 0_usize.. {
        if !steps.go_on() {
            break;
        }
        let at = number * 7919 % (LEN / BLOCK) * BLOCK;
        expected[at..at + BLOCK].fill(u8::try_from(number % 251).map_err(io::Error::other)?);
        steps.write_at(&file, &expected[at..at + BLOCK], at)?;
        let other = (number * 104_729) % (LEN - BLOCK);
        let block = steps.read_at(&file, BLOCK, other)?;
        expect(
            block == expected[other..other + BLOCK],
            "wrong bytes were read back",
        )?;
        steps.write(&short, &number.to_string())?;
        let read = steps.read(&short)?;
        expect(read == number.to_string().as_bytes(), "not emptied")?;
    }
    let all = steps.read_at(&file, LEN, 0)?;
    expect(all == expected, "the file is not what was written")
}

/// Lists a directory of many files, and uses one that has lost its name.
fn list(mount: &Path, steps: &mut Steps<'_>) -> io::Result<()> {
    let nameless = steps.create(&mount.join("tmp"), OFlag::empty())?;
    steps.remove(&mount.join("tmp"))?;
    for number in 0_usize.. {
        if !steps.go_on() {
            break;
        }
        let names = steps.names(&mount.join("many"))?;
        expect(names.len() == NAMES, "a name is missing, or twice there")?;
        let (bytes, at) = (number.to_le_bytes(), number % 9 * 8);
        steps.write_at(&nameless, &bytes, at)?;
        let read = steps.read_at(&nameless, bytes.len(), at)?;
        expect(read == bytes, "the file without a name lost its bytes")?;
    }
    Ok(())
}

/// Replaces a file in a directory where nobody else is, and looks at it.
fn dwell(mount: &Path, steps: &mut Steps<'_>) -> io::Result<()> {
    let home = mount.join("home");
    let [here, new, old] = ["here", "new", "old"].map(|name| home.join(name));
    steps.make_directory(&home)?;
    steps.write(&here, "yes")?;
    let named = |what: &'static str| move |error| io::Error::other(format!("{what}: {error}"));
    for number in 0_u64.. {
        if !steps.go_on() {
            break;
        }
        let read = steps.read(&here).map_err(named("read"))?;
        expect(read == b"yes", "the file that stays is another")?;
        steps
            .write(&new, &number.to_string())
            .map_err(named("write"))?;
        steps.rename(&new, &old).map_err(named("rename"))?;
        steps.remove(&old).map_err(named("remove"))?;
        let names = steps.names(&home).map_err(named("list"))?;
        if names != ["here"] {
            return Err(io::Error::other(format!("{names:?} are there")));
        }
    }
    Ok(())
}

/// Gives a file an attribute that it must not have yet, takes it away, and copies the file: each is done once.
fn label(mount: &Path, steps: &mut Steps<'_>) -> io::Result<()> {
    const SCRIPT: &str = "
import os, sys
os.mkdir('labels')
os.chdir('labels')
with open('file', 'wb') as file: file.write(os.urandom(300000))
source = os.open('file', os.O_RDONLY)
bytes = os.pread(source, 300000, 0)
for number, line in enumerate(sys.stdin):
    value = str(number).encode()
    for path in 'file', '.':
        os.setxattr(path, 'user.new', value, os.XATTR_CREATE)
        assert os.getxattr(path, 'user.new') == value
        assert os.listxattr(path) == ['user.new']
        os.removexattr(path, 'user.new')
    with open('copy', 'w+b') as copy:
        while os.copy_file_range(source, copy.fileno(), 300000, copy.tell(), copy.tell()):
            copy.seek(0, os.SEEK_END)
        assert os.pread(copy.fileno(), 400000, 0) == bytes
    os.remove('copy')
    print('done', flush=True)
";
    let mut python = Command::new("timeout");
    python.args(["600", "python3", "-c", SCRIPT]);
    python.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut python = python.current_dir(mount).spawn()?;
    let stdout = python.stdout.take().expect("it is piped");
    let (mut stdin, mut lines) = (python.stdin.take(), BufReader::new(stdout).lines());
    while steps.go_on() {
        let said = steps.step(|| {
            writeln!(stdin.as_mut().expect("it is piped"), "go on")?;
            lines.next().transpose()
        })?;
        expect(said.as_deref() == Some("done"), "python has seen an error")?;
    }
    drop(stdin);
    expect(python.wait()?.success(), "python has failed")
}

/// Programs that run while a test fails would hold it up.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn programs() -> Vec<(&'static str, Program)> {
    let mut programs: Vec<(_, Program)> = vec![
        ("reader", read),
        ("cycle", cycle),
        ("appender", append),
        ("scribbler", scribble),
        ("lister", list),
        ("dweller", dwell),
    ];
    // Python is not in the emulated machine, and would have to be told of EINTR.
    if kernel_resends() {
        programs.push(("labeler", label));
    }
    programs
}

fn kills() -> u32 {
    std::env::var("BUCKETVOL_WORKER_KILLS").map_or(KILLS, |n| n.parse().expect("a number"))
}

/// Has programs use a mount of root while it is hurt again and again.
fn survive(hurt: Hurt) {
    let server = LocalS3::start();
    let account = server.account();
    let mut mounted = Mounted::with(account, "xattr");
    let mount = mounted.path("");
    fs::write(mount.join("static"), pattern(LEN)).expect("a file");
    fs::write(mount.join("changed"), pattern(LEN)).expect("a file");
    fs::create_dir(mount.join("many")).expect("a directory");
    for number in 0..NAMES {
        File::create(mount.join(format!("many/{number}"))).expect("a file");
    }
    let locked = File::create(mount.join("lock")).expect("a file");
    let lock = Flock::lock(locked, FlockArg::LockExclusiveNonblock).expect("nobody has it");
    let read = match hurt.interrupts() {
        true => "cat here || cat here",
        false => "cat here",
    };
    let script = format!("while read -r line; do test \"$({read})\" = yes; pwd -P; done");
    let mut shell = Command::new("timeout");
    shell.args(["1200", "sh", "-ec", &script]);
    fs::create_dir(mount.join("cwd")).expect("a directory");
    fs::write(mount.join("cwd/here"), "yes").expect("a file");
    shell
        .current_dir(mount.join("cwd"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    let mut shell = shell.spawn().expect("a shell");
    let inodes = |names: &[&str]| -> Vec<u64> {
        let inode = |name: &&str| fs::metadata(mount.join(name)).expect(name).ino();
        names.iter().map(inode).collect()
    };
    let names = ["static", "changed", "many", "many/7", "cwd/here", "lock"];
    let before = inodes(&names);

    let stop = AtomicBool::new(false);
    let rounds: Vec<AtomicU32> = programs().iter().map(|_| AtomicU32::new(0)).collect();
    let failed = Mutex::new(Vec::new());
    let has_gone_on = || {
        let begun = || -> Vec<u32> {
            let rounds = rounds.iter();
            rounds
                .map(|rounds| rounds.load(Ordering::Relaxed))
                .collect()
        };
        let before = begun();
        // The round that runs, and a whole one.
        wait_for("every program goes on", PATIENCE, || {
            let failed = failed.lock();
            assert!(
                failed.is_empty(),
                "{}\n{}",
                failed.join("\n"),
                mounted.log()
            );
            begun()
                .iter()
                .zip(&before)
                .all(|(now, before)| *now >= before + 2)
        });
    };
    let steps = std::thread::scope(|scope| {
        let _stopped = StopAtEnd(&stop);
        let programs = programs().into_iter().zip(&rounds);
        let programs = programs.map(|((name, program), rounds)| {
            let (mount, stop, failed) = (mount.clone(), &stop, &failed);
            let work = move || {
                let mut steps = Steps::new(hurt, stop, rounds);
                let done = program(&mount, &mut steps).map(|()| steps);
                done.inspect_err(|error| failed.lock().push(format!("{name}: {error}")))
            };
            (name, scope.spawn(work))
        });
        let programs: Vec<_> = programs.collect();
        for i in 0..kills() {
            std::thread::sleep(Duration::from_millis(u64::from(1000 + i * 137 % 900)));
            has_gone_on();
            hurt.hurt(&mounted);
            let stdin = shell.stdin.as_mut().expect("it is piped");
            writeln!(stdin, "go on").expect("the shell is there");
        }
        has_gone_on();
        stop.store(true, Ordering::Relaxed);
        let ended = programs.into_iter().map(|(name, program)| {
            let ended = program.join().expect("it did not panic");
            let steps = ended.unwrap_or_else(|error| panic!("{name}: {error}\n{}", mounted.log()));
            (name, steps)
        });
        ended.collect::<Vec<_>>()
    });
    for (name, steps) in &steps {
        report(&format!(
            "{name}: the longest step took {:?}, {} were interrupted",
            steps.longest, steps.interrupted
        ));
    }
    assert_eq!(inodes(&names), before);
    let mut flock = bounded(10, "flock");
    flock
        .args(["--nonblock", "--exclusive"])
        .arg(mount.join("lock"))
        .arg("true");
    assert!(
        !flock.status().expect("flock runs").success(),
        "the lock is lost"
    );
    drop(lock);
    succeed(
        bounded(10, "flock")
            .arg("--nonblock")
            .arg(mount.join("lock"))
            .arg("true"),
    );
    drop(shell.stdin.take());
    assert!(
        shell.wait().expect("it ends").success(),
        "the shell in the mount saw an error"
    );
    let files = ["static", "changed", "short", "log"].map(|name| mount.join(name));
    let contents = || files.each_ref().map(|file| fs::read(file).expect("a file"));
    let written = contents();
    mounted.remount();
    assert!(contents() == written, "the bucket has something else");
    assert!(account.get("log").as_ref() == Some(&written[3]));
}

#[expect(clippy::print_stdout, reason = "the figures of a run")]
fn report(text: &str) {
    println!("{text}");
}

#[test]
fn nobody_notices_that_the_worker_of_a_mount_is_killed() {
    survive(Hurt::Kill);
}

#[test]
fn nobody_notices_that_the_worker_of_a_mount_is_replaced() {
    survive(Hurt::Replace);
}

/// Has a script use a user's own mount, by fusermount3, while it is hurt. Root itself may not look into it.
fn survive_as_a_user(hurt: Hurt) {
    let server = LocalS3::start();
    let account = server.account();
    let mut mounted = Mounted::by(NOBODY, account, "");
    let script = "exec 9> open
        flock 9
        i=0
        until test -e \"$LOCAL/stop\"; do
            echo $i > new
            test \"$(cat new)\" = $i
            mv new done
            echo $i >> log
            echo $i >&9
            test -e done && rm done
            mkdir d && rmdir d
            sleep 0.02
            i=$((i + 1))
        done
        test $(wc -l < log) = $i
        test $(wc -l < open) = $i
        if flock --nonblock open true; then exit 1; fi";
    std::thread::scope(|scope| {
        let mount = &mounted;
        let program = scope.spawn(move || mount.sh(script));
        for _ in 0..KILLS {
            std::thread::sleep(Duration::from_millis(900));
            hurt.hurt(mount);
        }
        File::create(mount.local("stop")).expect("a file");
        program.join().expect("the script has seen no error");
    });
    mounted.unmount();
}

#[test]
fn nobody_notices_that_the_worker_of_a_users_own_mount_is_killed() {
    if kernel_resends() {
        survive_as_a_user(Hurt::Kill);
    }
}

#[test]
fn nobody_notices_that_the_worker_of_a_users_own_mount_is_replaced() {
    survive_as_a_user(Hurt::Replace);
}
