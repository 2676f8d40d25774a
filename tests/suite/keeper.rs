//! The keeper and its worker as real processes: this test binary, run once more as the one and the other.
//!
//! A worker does what a file says (`Rig::behave`) and says on stderr what it found. Every worker ends by
//! itself when its keeper is gone, and every wait has a limit.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, IoSlice, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bucketvol::keeper::{self, Keeper, Settings};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socket,
};
use nix::unistd::{Pid, getpid, getppid};
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

use crate::common::counting;

const LIMIT: Duration = Duration::from_secs(20);
const HELPER: &str = "BUCKETVOL_TEST_KEEPER";

/// A directory with what the keeper and its workers are to do.
struct Rig {
    dir: TempDir,
    program: PathBuf,
}

impl Rig {
    fn new(behaviour: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = std::env::current_exe().unwrap();
        let rig = Self { dir, program };
        rig.behave(behaviour);
        rig
    }

    /// One whose program is a file of its own, so that it can be replaced.
    fn with_own_program(behaviour: &str) -> Self {
        let mut rig = Self::new(behaviour);
        let own = rig.dir.path().join("program");
        copy(&rig.program, &own);
        rig.program = own;
        rig
    }

    /// What workers do that start from here on.
    fn behave(&self, behaviour: &str) {
        self.write("behaviour", behaviour);
    }

    /// Puts another file at the program's path; workers that run it do `behaviour`. Returns its inode.
    fn replace_program(&self, behaviour: &str) -> u64 {
        let new = self.dir.path().join("new");
        copy(&self.program, &new);
        let inode = fs::metadata(&new).unwrap().ino();
        self.write(&format!("behaviour-{inode}"), behaviour);
        fs::rename(&new, &self.program).unwrap();
        inode
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.dir.path().join(name);
        let next = path.with_extension("next");
        fs::write(&next, text).unwrap();
        fs::rename(&next, &path).unwrap();
    }

    /// Starts a keeper. `settings` overrides those of the tests.
    fn start(&self, settings: &str) -> Running {
        self.write("settings", settings);
        let mut command = Command::new(&self.program);
        command
            .args(arguments())
            .env(HELPER, self.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        // A keeper is the only thread of its process, but here it has the test harness beside it: no thread
        // may be hit by a signal that is the keeper's to read.
        let before = SigSet::all()
            .thread_swap_mask(SigmaskHow::SIG_BLOCK)
            .unwrap();
        let mut child = command.spawn().unwrap();
        before.thread_set_mask().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = mpsc::sync_channel(4096);
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                // Nobody listens any more once the test is over.
                let _ = sender.send(line);
            }
        });
        Running {
            stdin: child.stdin.take().unwrap(),
            child,
            lines,
            seen: Vec::new(),
        }
    }
}

/// By cp(1): a file that this process had open for writing could not be executed while another thread forks.
fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

/// How this binary is told to run only `helpers`.
fn arguments() -> [&'static str; 4] {
    [
        "--exact",
        "keeper::helpers",
        "--nocapture",
        "--test-threads=1",
    ]
}

/// A keeper. Dropped, it is killed, and its worker ends by itself.
struct Running {
    child: Child,
    stdin: ChildStdin,
    lines: mpsc::Receiver<String>,
    seen: Vec<String>,
}

impl Running {
    /// The next line with `words` in it.
    #[track_caller]
    fn expect(&mut self, words: &str) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(words) {
                        return line;
                    }
                }
                Err(error) => panic!("no {words:?} ({error}) after\n{}", self.seen.join("\n")),
            }
        }
    }

    /// The next worker that is ready.
    #[track_caller]
    fn worker(&mut self) -> Worker {
        let line = self.expect("ready: ");
        let words = line.split_once("ready: ").unwrap().1;
        let mut words = words.split(' ');
        let mut next = || words.next().unwrap().to_owned();
        Worker {
            pid: Pid::from_raw(next().parse().unwrap()),
            number: next().parse().unwrap(),
            inode: next().parse().unwrap(),
            socket: next(),
            holds: next(),
        }
    }

    fn send(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    /// Allocations of the keeper's thread so far.
    fn allocations(&mut self) -> u64 {
        self.stdin.write_all(b"count\n").unwrap();
        let line = self.expect("allocations ");
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    }

    /// The exit status, once the keeper has ended.
    #[track_caller]
    fn status(mut self) -> Option<i32> {
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the keeper does not end after\n{}", self.seen.join("\n"));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a worker says of itself once it is ready.
#[derive(Debug)]
struct Worker {
    pid: Pid,
    /// How many workers there were, by the descriptor they all share.
    number: u32,
    /// The executable's.
    inode: u64,
    socket: String,
    holds: String,
}

impl Worker {
    fn kill(&self) {
        kill(self.pid, Signal::SIGKILL).unwrap();
    }
}

#[test]
fn a_successor_of_a_killed_worker_finds_the_same_descriptors_and_their_content() {
    let rig = Rig::new("serve");
    let mut keeper = rig.start("trial 0");
    for number in 1..=30 {
        let worker = keeper.worker();
        assert_eq!(worker.number, number);
        match number {
            1 => assert_eq!(worker.holds, "nothing"),
            _ => assert_eq!(worker.holds, "counter,pipe,pipe"),
        }
        worker.kill();
    }
    keeper.worker();
    keeper.send(Signal::SIGTERM);
    keeper.expect("the pipe has \"written by the first\"");
    assert_eq!(keeper.status(), Some(0));
}

#[test]
fn what_a_worker_stores_with_its_last_breath_is_kept() {
    let rig = Rig::new("last-breath");
    let mut keeper = rig.start("trial 0");
    for number in 1..=20_usize {
        let worker = keeper.worker();
        let breaths = worker.holds.matches("breath").count();
        assert_eq!(breaths, number - 1, "{worker:?}");
    }
}

#[test]
fn a_worker_that_hangs_is_killed_and_replaced() {
    let rig = Rig::new("hang");
    let mut keeper = rig.start("watchdog 1000");
    let first = keeper.worker();
    rig.behave("serve");
    keeper.expect("the worker is killed: no heartbeat");
    let second = keeper.worker();
    assert_eq!((first.number, second.number), (1, 2));
    // It sends heartbeats: three times the limit go by and it is still the same one.
    std::thread::sleep(Duration::from_secs(3));
    keeper.send(Signal::SIGTERM);
    keeper.expect(&format!("drained {}", second.pid));
}

#[test]
fn a_crash_loop_backs_off() {
    let rig = Rig::new("crash");
    let mut keeper = rig.start("");
    for delay in ["at once", "in 100ms", "in 200ms", "in 400ms", "in 500ms"] {
        keeper.expect(&format!("the next worker starts {delay}"));
    }
    rig.behave("serve");
    keeper.worker();
}

#[test]
fn a_worker_killed_by_a_real_time_signal_is_replaced_too() {
    let rig = Rig::new("serve");
    let mut keeper = rig.start("");
    let first = keeper.worker();
    let status = Command::new("kill")
        .args(["-40", &first.pid.to_string()])
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(keeper.worker().number, 2);
}

#[test]
fn a_first_worker_that_fails_ends_the_keeper_with_its_status() {
    assert_eq!(Rig::new("fail").start("").status(), Some(3));
    assert_eq!(Rig::new("silent").start("start 1000").status(), Some(137));
}

#[test]
fn a_worker_that_ends_by_itself_ends_the_keeper() {
    for (behaviour, status) in [("unmounted 0", 0), ("unmounted 3", 3)] {
        assert_eq!(Rig::new(behaviour).start("").status(), Some(status));
    }
}

#[test]
fn every_signal_goes_on_to_the_worker_and_its_status_is_the_keepers() {
    let rig = Rig::new("slow");
    let mut keeper = rig.start("");
    keeper.worker();
    keeper.send(Signal::SIGTERM);
    keeper.expect("told 1 times");
    keeper.send(Signal::SIGINT);
    keeper.expect("told 2 times");
    assert_eq!(keeper.status(), Some(7));
}

#[test]
fn a_stop_between_two_workers_is_for_the_one_that_drains() {
    let rig = Rig::new("serve");
    let mut keeper = rig.start("");
    keeper.worker().kill();
    keeper.expect("the next worker starts");
    keeper.send(Signal::SIGTERM);
    keeper.expect("drained");
    assert_eq!(keeper.status(), Some(0));
}

#[test]
fn a_planned_restart_hands_over_to_the_new_executable_and_the_keeper_becomes_it_too() {
    let rig = Rig::with_own_program("serve");
    let mut keeper = rig.start("trial 500");
    let first = keeper.worker();
    let inode = rig.replace_program("serve");
    keeper.send(Signal::SIGHUP);
    keeper.expect(&format!("handed over {}", first.pid));
    let second = keeper.worker();
    assert_eq!((second.number, second.inode), (2, inode));
    keeper.expect("the keeper runs");
    let exe = fs::metadata(format!("/proc/{}/exe", keeper.pid())).unwrap();
    assert_eq!(exe.ino(), inode);
    // It is the same worker, the same store, and still this keeper's child.
    second.kill();
    let third = keeper.worker();
    assert_eq!((third.number, third.inode), (3, inode));
    assert_eq!(
        (third.holds.as_str(), &third.socket),
        ("counter,pipe,pipe", &second.socket)
    );
    // And it can become yet another one.
    let inode = rig.replace_program("serve");
    keeper.send(Signal::SIGHUP);
    assert_eq!(keeper.worker().inode, inode);
    keeper.expect("the keeper runs");
    keeper.send(Signal::SIGTERM);
    keeper.expect("the pipe has \"written by the first\"");
    assert_eq!(keeper.status(), Some(0));
}

#[test]
fn a_new_executable_that_fails_gives_way_to_the_old_one() {
    for behaviour in ["silent", "fail", "crash"] {
        let rig = Rig::with_own_program("serve");
        let mut keeper = rig.start("start 2000");
        let first = keeper.worker();
        rig.replace_program(behaviour);
        keeper.send(Signal::SIGHUP);
        keeper.expect("has failed; the old one starts");
        let after = keeper.worker();
        assert_eq!(after.inode, first.inode, "{behaviour}");
        assert_eq!(after.holds, "counter,pipe,pipe", "{behaviour}");
    }
}

#[test]
fn a_restart_for_an_executable_that_is_not_there_leaves_the_worker_alone() {
    let rig = Rig::with_own_program("serve");
    let mut keeper = rig.start("");
    let first = keeper.worker();
    fs::remove_file(&rig.program).unwrap();
    keeper.send(Signal::SIGHUP);
    keeper.expect("no restart");
    keeper.send(Signal::SIGTERM);
    keeper.expect(&format!("drained {}", first.pid));
    assert_eq!(keeper.status(), Some(0));
}

#[test]
fn a_worker_that_does_not_hand_over_is_killed_for_the_next_one() {
    let rig = Rig::new("hang");
    let mut keeper = rig.start("hand_over 1000 watchdog 20000");
    keeper.worker();
    rig.behave("serve");
    keeper.send(Signal::SIGHUP);
    keeper.expect("it has not handed over in time");
    assert_eq!(keeper.worker().number, 2);
}

#[test]
fn a_full_store_refuses_what_does_not_fit_and_says_so() {
    let rig = Rig::new("greedy");
    let mut keeper = rig.start("max 5");
    let first = keeper.worker();
    keeper.expect("1 descriptors \"extra\" are not kept for the next worker: all 5 places");
    keeper.expect("has stored");
    rig.behave("serve");
    first.kill();
    assert_eq!(keeper.worker().holds, "counter,pipe,pipe,extra,extra");
}

#[test]
fn descriptors_are_let_go_by_name() {
    let rig = Rig::new("forgetful");
    let mut keeper = rig.start("");
    let first = keeper.worker();
    keeper.expect("has forgotten");
    rig.behave("serve");
    first.kill();
    assert_eq!(keeper.worker().holds, "counter");
}

#[test]
fn what_strangers_say_is_ignored() {
    let rig = Rig::new("serve");
    let mut keeper = rig.start("");
    let first = keeper.worker();
    let address = UnixAddr::new_abstract(first.socket.trim_start_matches('@').as_bytes()).unwrap();
    let socket = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    let null = File::open("/dev/null").unwrap();
    let fds = [null.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    let long = [b'x'; 8000];
    for text in [
        b"FDSTORE=1\nFDNAME=strange".as_slice(),
        b"FDSTOREREMOVE=1\nFDNAME=counter",
        b"WATCHDOG=trigger",
        b"STOPPING=1",
        b"",
        &long,
    ] {
        let bytes = [IoSlice::new(text)];
        sendmsg(
            socket.as_raw_fd(),
            &bytes,
            &rights,
            MsgFlags::empty(),
            Some(&address),
        )
        .unwrap();
    }
    first.kill();
    let second = keeper.worker();
    assert_eq!(
        (second.number, second.holds.as_str()),
        (2, "counter,pipe,pipe")
    );
    assert!(
        !keeper.seen.iter().any(|line| line.contains("is killed")),
        "{:?}",
        keeper.seen
    );
}

#[test]
fn heartbeats_make_the_keeper_allocate_nothing() {
    let rig = Rig::new("flood");
    let mut keeper = rig.start("");
    keeper.worker();
    keeper.expect("about to flood");
    let before = keeper.allocations();
    rig.write("go", "");
    keeper.expect("has flooded");
    assert_eq!(keeper.allocations(), before);
    // The count counts: a worker's end and another's start are no steady state.
    keeper.send(Signal::SIGHUP);
    keeper.worker();
    assert!(keeper.allocations() > before);
}

#[test]
fn the_keeper_is_protected_from_the_oom_killer_and_its_worker_is_not() {
    let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    let rig = Rig::new("serve");
    let mut keeper = rig.start("");
    let worker = keeper.worker();
    let of = |pid: Pid| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    assert_eq!(of(worker.pid), own);
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let capabilities = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .unwrap();
    let capabilities = u64::from_str_radix(capabilities.trim(), 16).unwrap();
    // CAP_SYS_RESOURCE: without it nobody can protect himself.
    if capabilities & (1 << 24) != 0 {
        assert_eq!(of(keeper.pid()), "-999\n");
    }
}

#[test]
fn a_worker_goes_on_when_its_keeper_is_killed() {
    let rig = Rig::new("survivor");
    let mut keeper = rig.start("");
    let worker = keeper.worker();
    keeper.send(Signal::SIGKILL);
    keeper.expect(&format!("{} has no keeper any more", worker.pid));
}

/// No test of its own: what the tests above have other processes do.
#[test]
fn helpers() {
    let Some(dir) = std::env::var_os(HELPER).map(PathBuf::from) else {
        return;
    };
    match std::env::var("BUCKETVOL_KEEPER") {
        Ok(_) => worker(&dir),
        Err(_) => run_keeper(&dir),
    }
}

fn run_keeper(dir: &Path) {
    bucketvol::telemetry::start(Some("info"), "info").unwrap();
    let mut settings = Settings::default();
    let text = fs::read_to_string(dir.join("settings")).unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    for pair in words.chunks(2) {
        let number: u64 = pair[1].parse().unwrap();
        let time = Duration::from_millis(number);
        match pair[0] {
            "start" => settings.start_limit = time,
            "hand_over" => settings.hand_over_limit = time,
            "watchdog" => settings.watchdog = time,
            "trial" => settings.trial = time,
            "max" => settings.descriptors_max = number.try_into().unwrap(),
            other => panic!("no setting {other}"),
        }
    }
    std::thread::spawn(|| {
        for _ in std::io::stdin().lines().map_while(Result::ok) {
            say(&format!("allocations {}", counting::allocations()));
        }
    });
    let program = std::env::current_exe().unwrap().into_os_string();
    let arguments = arguments().into_iter().map(Into::into);
    counting::count_this_thread();
    let status = keeper::supervise(
        std::iter::once(program).chain(arguments).collect(),
        &settings,
    );
    std::process::exit(status.into());
}

/// One write, so that lines of two processes do not mix.
fn say(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Waits for the test to kill us; without a keeper there is nobody left to.
fn linger() {
    let keeper: i32 = std::env::var("BUCKETVOL_KEEPER").unwrap().parse().unwrap();
    let deadline = Instant::now() + LIMIT * 3;
    while getppid().as_raw() == keeper && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn worker(dir: &Path) {
    let (keeper, mut inherited) = Keeper::from_environment().unwrap();
    assert!(keeper.is_some());
    let inode = fs::metadata("/proc/self/exe").unwrap().ino();
    let behaviour = fs::read_to_string(dir.join(format!("behaviour-{inode}")))
        .unwrap_or_else(|_| fs::read_to_string(dir.join("behaviour")).unwrap());
    if behaviour != "survivor" {
        std::thread::spawn(|| {
            linger();
            std::process::exit(1);
        });
    }
    match behaviour.as_str() {
        "fail" => std::process::exit(3),
        "silent" => {
            linger();
            return;
        }
        _ => {}
    }
    let holds: Vec<String> = inherited.names().map(str::to_owned).collect();
    let mut counter = match inherited.take("counter").pop() {
        Some(fd) => File::from(fd),
        None => {
            let fd = memfd_create("counter", MFdFlags::MFD_CLOEXEC).unwrap();
            keeper.store("counter", &[fd.as_fd()]).unwrap();
            File::from(fd)
        }
    };
    let mut pipe = inherited.take("pipe");
    if pipe.is_empty() {
        let (read, write) = nix::unistd::pipe().unwrap();
        File::from(write.try_clone().unwrap())
            .write_all(b"written by the first")
            .unwrap();
        keeper
            .store("pipe", &[read.as_fd(), write.as_fd()])
            .unwrap();
        pipe = vec![read, write];
    }
    let mut text = String::new();
    counter.rewind().unwrap();
    counter.read_to_string(&mut text).unwrap();
    let number = text.parse().unwrap_or(0) + 1;
    counter.rewind().unwrap();
    write!(counter, "{number}").unwrap();
    let holds = match holds.is_empty() {
        true => "nothing".to_owned(),
        false => holds.join(","),
    };
    let socket = std::env::var("NOTIFY_SOCKET").unwrap();

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut signals = runtime.block_on(async { Signals::install() });
    keeper.ready().unwrap();
    keeper.barrier(LIMIT).unwrap();
    say(&format!(
        "ready: {} {number} {inode} {socket} {holds}",
        getpid()
    ));
    match behaviour.split_once(' ').unwrap_or((&behaviour, "")) {
        ("serve", _) => runtime.block_on(serve(&keeper, &mut signals, pipe)),
        ("slow", _) => runtime.block_on(async {
            for number in 1..=2 {
                signals.stop().await;
                say(&format!("told {number} times"));
            }
            std::process::exit(7);
        }),
        ("survivor", _) => {
            linger();
            say(&format!("{} has no keeper any more", getpid()));
        }
        ("unmounted", status) => {
            keeper.stopping().unwrap();
            std::process::exit(status.parse().unwrap());
        }
        ("crash", _) => std::process::exit(9),
        ("hang", _) => linger(),
        ("last-breath", _) => {
            keeper.store("breath", &[counter.as_fd()]).unwrap();
            kill(getpid(), Signal::SIGKILL).unwrap();
        }
        ("greedy", _) => {
            for _ in 0..3 {
                keeper.store("extra", &[counter.as_fd()]).unwrap();
            }
            keeper.barrier(LIMIT).unwrap();
            say("has stored");
            linger();
        }
        ("forgetful", _) => {
            keeper.forget("pipe").unwrap();
            keeper.barrier(LIMIT).unwrap();
            say("has forgotten");
            linger();
        }
        ("flood", _) => {
            say("about to flood");
            let deadline = Instant::now() + LIMIT;
            while !dir.join("go").exists() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(20));
            }
            let name = socket.trim_start_matches('@');
            let address = SocketAddr::from_abstract_name(name).unwrap();
            let sender = UnixDatagram::unbound().unwrap();
            for _ in 0..100_000 {
                sender.send_to_addr(b"WATCHDOG=1", &address).unwrap();
            }
            say("has flooded");
            runtime.block_on(serve(&keeper, &mut signals, pipe));
        }
        other => panic!("no behaviour {other:?}"),
    }
}

/// What a worker is told by signals. Installed before it says that it is ready.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hand_over: tokio::signal::unix::Signal,
}

impl Signals {
    fn install() -> Self {
        Self {
            terminate: signal(SignalKind::terminate()).unwrap(),
            interrupt: signal(SignalKind::interrupt()).unwrap(),
            hand_over: signal(SignalKind::user_defined1()).unwrap(),
        }
    }

    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// An ordinary worker's life.
async fn serve(keeper: &Keeper, signals: &mut Signals, pipe: Vec<OwnedFd>) {
    let interval = keeper
        .heartbeat_interval()
        .unwrap()
        .min(Duration::from_millis(100));
    loop {
        tokio::select! {
            () = tokio::time::sleep(interval) => keeper.heartbeat().unwrap(),
            _ = signals.terminate.recv() => {
                keeper.stopping().unwrap();
                let [read, write] = <[OwnedFd; 2]>::try_from(pipe).unwrap();
                // Ours is not the only end that can be written to: just what is there is read.
                drop(write);
                let mut text = [0; 64];
                let length = File::from(read).read(&mut text).unwrap();
                say(&format!("the pipe has {:?}", String::from_utf8_lossy(&text[..length])));
                say(&format!("drained {}", getpid()));
                std::process::exit(0);
            }
            _ = signals.hand_over.recv() => {
                keeper.stopping().unwrap();
                say(&format!("handed over {}", getpid()));
                std::process::exit(0);
            }
        }
    }
}
