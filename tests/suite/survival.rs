//! The worker is killed again and again while programs use a mount: none of them notices.
//!
//! Needs root, /dev/fuse and python3, and a kernel of 6.9 or later, which sends again what was not answered.

mod hurt;
mod unmounted;

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use crate::common::mounted::{Mounted, NOBODY};
use crate::common::process::{bounded, succeed};
use crate::common::s3::LocalS3;
use crate::common::test_fs::pattern;

/// `BUCKETVOL_WORKER_KILLS` asks for more: the long form is 100.
const KILLS: u32 = 10;

/// Bytes of the file that is read, and of the one that is written all over.
const LEN: usize = 3 << 20;
const BLOCK: usize = 4096;

/// A program that goes on until it is told to stop; it fails if anything is not as it should be.
type Program = fn(&Path, &AtomicBool, &mut Pauses) -> io::Result<()>;

/// How long a program's longest step took.
#[derive(Debug, Default)]
struct Pauses(Duration);

impl Pauses {
    fn step<T>(&mut self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let start = Instant::now();
        let done = work();
        self.0 = self.0.max(start.elapsed());
        done
    }
}

fn expect(is_so: bool, what: &str) -> io::Result<()> {
    match is_so {
        true => Ok(()),
        false => Err(io::Error::other(what.to_owned())),
    }
}

/// Reads one file through one descriptor, all over.
fn read(mount: &Path, stop: &AtomicBool, pauses: &mut Pauses) -> io::Result<()> {
    let (file, expected) = (File::open(mount.join("static"))?, pattern(LEN));
    let (inode, mut block) = (file.metadata()?.ino(), vec![0; BLOCK]);
    let mut random = 1_u64;
    while !stop.load(Ordering::Relaxed) {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let at = usize::try_from(random >> 33).map_err(io::Error::other)? % (LEN - BLOCK);
        pauses.step(|| file.read_exact_at(&mut block, at as u64))?;
        expect(block == expected[at..at + BLOCK], "wrong bytes were read")?;
        expect(
            fs::metadata(mount.join("static"))?.ino() == inode,
            "another inode",
        )?;
    }
    Ok(())
}

/// Makes, writes, renames, reads and removes files.
fn cycle(mount: &Path, stop: &AtomicBool, pauses: &mut Pauses) -> io::Result<()> {
    let directory = mount.join("cycle");
    fs::create_dir(&directory)?;
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        pauses.step(|| {
            let (new, done) = (directory.join("new"), directory.join(format!("{number}")));
            let mut file = OpenOptions::new()
                .create_new(true)
                .read(true)
                .write(true)
                .open(&new)?;
            for piece in 0..3_u64 {
                file.write_all(&[number, piece].map(u64::to_le_bytes).concat())?;
            }
            if number.is_multiple_of(8) {
                file.sync_all()?;
            }
            fs::rename(&new, &done)?;
            let mut bytes = Vec::new();
            file.seek(SeekFrom::Start(0))?;
            file.read_to_end(&mut bytes)?;
            expect(
                bytes.len() == 48 && bytes[..8] == number.to_le_bytes(),
                "wrong bytes",
            )?;
            fs::remove_file(&done)?;
            expect(file.metadata()?.len() == 48, "the open file is another")?;
            fs::create_dir(directory.join("d"))?;
            std::os::unix::fs::symlink("to", directory.join("d/link"))?;
            fs::remove_file(directory.join("d/link"))?;
            fs::remove_dir(directory.join("d"))
        })?;
    }
    expect(
        fs::read_dir(&directory)?.next().is_none(),
        "something was left over",
    )
}

/// Appends to a file through one descriptor: each line is there once.
fn append(mount: &Path, stop: &AtomicBool, pauses: &mut Pauses) -> io::Result<()> {
    let path = mount.join("log");
    let mut file = OpenOptions::new()
        .create_new(true)
        .append(true)
        .open(&path)?;
    let mut expected = String::new();
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let line = format!("line {number:010}\n");
        pauses.step(|| file.write_all(line.as_bytes()))?;
        expected.push_str(&line);
        std::thread::sleep(Duration::from_millis(1));
    }
    expect(
        fs::read_to_string(&path)? == expected,
        "the log has other lines",
    )
}

/// Overwrites blocks of a file that had another content before, and empties one that others read.
fn scribble(mount: &Path, stop: &AtomicBool, pauses: &mut Pauses) -> io::Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(mount.join("changed"))?;
    let (mut expected, mut block) = (pattern(LEN), vec![0; BLOCK]);
    for number in 0_usize.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let at = number * 7919 % (LEN / BLOCK) * BLOCK;
        expected[at..at + BLOCK].fill(u8::try_from(number % 251).map_err(io::Error::other)?);
        pauses.step(|| file.write_all_at(&expected[at..at + BLOCK], at as u64))?;
        let other = (number * 104_729) % (LEN - BLOCK);
        pauses.step(|| file.read_exact_at(&mut block, other as u64))?;
        expect(
            block == expected[other..other + BLOCK],
            "wrong bytes were read back",
        )?;
        pauses.step(|| fs::write(mount.join("short"), number.to_string()))?;
        expect(
            fs::read_to_string(mount.join("short"))? == number.to_string(),
            "not emptied",
        )?;
    }
    let mut all = vec![0; LEN];
    file.read_exact_at(&mut all, 0)?;
    expect(all == expected, "the file is not what was written")
}

/// Lists a directory of many files, and uses one that has lost its name.
fn list(mount: &Path, stop: &AtomicBool, pauses: &mut Pauses) -> io::Result<()> {
    let nameless = OpenOptions::new()
        .create_new(true)
        .read(true)
        .write(true)
        .open(mount.join("tmp"))?;
    fs::remove_file(mount.join("tmp"))?;
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let entries =
            pauses.step(|| fs::read_dir(mount.join("many"))?.collect::<io::Result<Vec<_>>>())?;
        expect(entries.len() == 100, "a name is missing, or twice there")?;
        pauses.step(|| nameless.write_all_at(&number.to_le_bytes(), number % 9 * 8))?;
        let mut read = [0; 8];
        nameless.read_exact_at(&mut read, number % 9 * 8)?;
        expect(
            read == number.to_le_bytes(),
            "the file without a name lost its bytes",
        )?;
    }
    Ok(())
}

/// Replaces a file in a directory where nobody else is, and looks at it.
fn dwell(mount: &Path, stop: &AtomicBool, pauses: &mut Pauses) -> io::Result<()> {
    let home = mount.join("home");
    fs::create_dir(&home)?;
    fs::write(home.join("here"), "yes")?;
    let named = |what: &'static str| move |error| io::Error::other(format!("{what}: {error}"));
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let here = pauses
            .step(|| fs::read(home.join("here")))
            .map_err(named("read"))?;
        expect(here == b"yes", "the file that stays is another")?;
        pauses
            .step(|| fs::write(home.join("new"), number.to_string()))
            .map_err(named("write"))?;
        fs::rename(home.join("new"), home.join("old")).map_err(named("rename"))?;
        fs::remove_file(home.join("old")).map_err(named("remove"))?;
        let mut names = Vec::new();
        for entry in fs::read_dir(&home).map_err(named("open"))? {
            names.push(entry.map_err(named("list"))?.file_name());
        }
        if names != ["here"] {
            return Err(io::Error::other(format!("{names:?} are there")));
        }
    }
    Ok(())
}

/// Gives a file an attribute that it must not have yet, takes it away, and copies the file: each is done once.
fn label(mount: &Path, stop: &AtomicBool, pauses: &mut Pauses) -> io::Result<()> {
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
    while !stop.load(Ordering::Relaxed) {
        let cycle = || {
            writeln!(stdin.as_mut().expect("it is piped"), "go on")?;
            lines.next().transpose()
        };
        let said = pauses.step(cycle)?;
        expect(said.as_deref() == Some("done"), "python has seen an error")?;
    }
    drop(stdin);
    expect(python.wait()?.success(), "python has failed")
}

const PROGRAMS: [(&str, Program); 7] = [
    ("reader", read),
    ("cycle", cycle),
    ("appender", append),
    ("scribbler", scribble),
    ("lister", list),
    ("dweller", dwell),
    ("labeller", label),
];

fn kills() -> u32 {
    std::env::var("BUCKETVOL_WORKER_KILLS").map_or(KILLS, |n| n.parse().expect("a number"))
}

/// Has programs use the mount while `hurt` is called again and again.
fn survive(mounted: &mut Mounted, mut hurt: impl FnMut(&mut Mounted)) {
    let mount = mounted.path("");
    fs::write(mount.join("static"), pattern(LEN)).expect("a file");
    fs::write(mount.join("changed"), pattern(LEN)).expect("a file");
    fs::create_dir(mount.join("many")).expect("a directory");
    for number in 0..100 {
        File::create(mount.join(format!("many/{number}"))).expect("a file");
    }
    let locked = File::create(mount.join("lock")).expect("a file");
    let lock = Flock::lock(locked, FlockArg::LockExclusiveNonblock).expect("nobody has it");
    let mut shell = Command::new("timeout");
    shell.args([
        "600",
        "sh",
        "-ec",
        "while read -r line; do test \"$(cat here)\" = yes; pwd -P; done",
    ]);
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
    let pauses = std::thread::scope(|scope| {
        let programs = PROGRAMS.map(|(name, program)| {
            let (mount, stop) = (mount.clone(), &stop);
            let work = move || {
                let mut pauses = Pauses::default();
                program(&mount, stop, &mut pauses).map(|()| pauses.0)
            };
            (name, scope.spawn(work))
        });
        for i in 0..kills() {
            std::thread::sleep(Duration::from_millis(u64::from(1000 + i * 137 % 900)));
            hurt(mounted);
            let stdin = shell.stdin.as_mut().expect("it is piped");
            writeln!(stdin, "go on").expect("the shell is there");
        }
        std::thread::sleep(Duration::from_millis(500));
        stop.store(true, Ordering::Relaxed);
        programs.map(|(name, program)| {
            let ended = program.join().expect("it did not panic");
            (
                name,
                ended.unwrap_or_else(|error| panic!("{name}: {error}\n{}", mounted.log())),
            )
        })
    });
    report(&format!("longest step of each: {pauses:?}"));
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
    mounted.remount();
    let log = fs::read_to_string(mount.join("log")).expect("a file");
    assert!(log.ends_with('\n') && fs::read(mount.join("static")).expect("a file") == pattern(LEN));
}

#[expect(clippy::print_stdout, reason = "the figures of a run")]
fn report(text: &str) {
    println!("{text}");
}

#[test]
fn nobody_notices_that_the_worker_of_a_mount_is_killed() {
    let server = LocalS3::start();
    let account = server.account();
    let mut mounted = Mounted::by_root(account, "");
    survive(&mut mounted, |mounted| mounted.kill_worker());
}

/// By fusermount3. Root itself may not look into it.
#[test]
fn nobody_notices_that_the_worker_of_a_users_own_mount_is_killed() {
    let server = LocalS3::start();
    let account = server.account();
    let mut mounted = Mounted::by(NOBODY, account, "");
    let script = "exec 9> open
        flock 9
        i=0
        while test $i -lt 200; do
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
        test $(wc -l < log) = 200 && test $(wc -l < open) = 200
        if flock --nonblock open true; then exit 1; fi";
    std::thread::scope(|scope| {
        let mount = &mounted;
        let program = scope.spawn(move || mount.sh(script));
        for _ in 0..KILLS {
            std::thread::sleep(Duration::from_millis(900));
            mount.kill_worker();
        }
        program.join().expect("the script has seen no error");
    });
    mounted.unmount();
}
