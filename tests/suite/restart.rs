//! `serve` and `mount` as people run them: a keeper and its worker, killed, replaced, upgraded and ended.
//!
//! Needs root and /dev/fuse.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::common::process::{bounded, children, describe, end, output, send, wait_for};
use crate::common::s3::LocalS3;

mod formats;

const KILLS: u32 = 100;

const PATIENCE: Duration = Duration::from_secs(30);

/// The most that a call may wait for the next worker: what a keeper waits at first, and a start on a busy machine.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// A place for one test, with a copy of the program that can be replaced.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("bucketvol-test-restart-")
            .tempdir()
            .unwrap();
        let place = Self { dir };
        for name in ["run", "mnt"] {
            fs::create_dir(place.path(name)).unwrap();
        }
        fs::set_permissions(place.path("run"), fs::Permissions::from_mode(0o700)).unwrap();
        copy(Path::new(env!("CARGO_BIN_EXE_bucketvol")), &place.program());
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn program(&self) -> PathBuf {
        self.path("bucketvol")
    }

    /// Installs what `make` puts at a path, as a package would: by a rename.
    fn upgrade(&self, make: impl FnOnce(&Path)) {
        make(&self.path("new"));
        fs::rename(self.path("new"), self.program()).unwrap();
    }

    fn environment(&self, command: &mut Command) {
        command
            .env_remove("BUCKETVOL_NO_KEEPER")
            .env("BUCKETVOL_RUN_DIR", self.path("run"))
            .env("XDG_STATE_HOME", self.path("home"))
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("BUCKETVOL_CACHE_DIR", self.path("cache"))
            .stdin(Stdio::null());
    }

    fn bucketvol(&self, arguments: &[&str]) -> Output {
        let mut command = bounded(120, self.program());
        self.environment(&mut command);
        output(command.args(arguments))
    }

    /// Starts the daemon; a worker that has served for a millisecond is healthy, so that its crash is its
    /// first.
    fn serve(&self) -> Daemon<'_> {
        let log = fs::File::create(self.path("log")).unwrap();
        let mut command = Command::new(self.program());
        self.environment(&mut command);
        let keeper = command
            .args(["serve", "--trial=1ms", "--log-level=info"])
            .arg("--socket")
            .arg(self.path("docker.sock"))
            .arg("--state-dir")
            .arg(self.path("state"))
            .arg("--credentials-dir")
            .arg(self.path("credentials"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let daemon = Daemon {
            place: self,
            keeper,
        };
        wait_for("the daemon answers", PATIENCE, || daemon.list().is_ok());
        // It says so to its keeper before it answers anybody.
        daemon
    }
}

/// By cp(1): a file that this process had open for writing could not be executed while another thread forks.
fn copy(from: &Path, to: &Path) {
    assert!(output(bounded(30, "cp").arg(from).arg(to)).status.success());
}

/// A keeper and its worker.
struct Daemon<'a> {
    place: &'a Place,
    keeper: Child,
}

impl Daemon<'_> {
    fn worker(&self) -> Option<Pid> {
        children(self.keeper.id()).first().copied()
    }

    fn socket(&self) -> PathBuf {
        self.place.path("docker.sock")
    }

    fn list(&self) -> io::Result<()> {
        call(&self.socket(), "VolumeDriver.List", "{}").map_err(|broken| match broken {
            Broken::Refused(error) | Broken::InHand(error) => error,
        })
    }

    fn log(&self) -> String {
        fs::read_to_string(self.place.path("log")).unwrap_or_default()
    }

    fn clients(&self) -> Vec<Client> {
        let calls = [
            ("VolumeDriver.List", "{}"),
            ("VolumeDriver.Get", r#"{"Name":"none"}"#),
            ("VolumeDriver.List", "{}"),
            ("Plugin.Activate", ""),
        ];
        let start = |(method, body)| Client::start(self.socket(), method, body);
        calls.into_iter().map(start).collect()
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        end(&mut self.keeper, Duration::from_secs(20));
        let base = self.place.path("state/mounts");
        let _ = bounded(10, "umount").arg("--lazy").arg(base).output();
    }
}

/// Why a call has no answer.
enum Broken {
    /// Nobody would take it.
    Refused(io::Error),
    /// A process had it and has gone.
    InHand(io::Error),
}

/// One call on a connection of its own, as the engine makes it.
fn call(socket: &Path, method: &str, body: &str) -> Result<(), Broken> {
    let mut stream = UnixStream::connect(socket).map_err(Broken::Refused)?;
    let mut talk = || -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let length = body.len();
        let request = format!(
            "POST /{method} HTTP/1.1\r\nHost: plugin\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        match answer.starts_with("HTTP/1.1 200") && answer.ends_with('}') {
            true => Ok(()),
            false => Err(io::Error::other(format!("half an answer: {answer:?}"))),
        }
    };
    talk().map_err(Broken::InHand)
}

/// Somebody who calls all the time.
struct Client {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: JoinHandle<Calls>,
}

/// What has become of a client's calls.
#[derive(Debug, Default)]
struct Calls {
    answered: u64,
    refused: Vec<String>,
    broken: Vec<String>,
    longest: Duration,
}

impl Client {
    fn start(socket: PathBuf, method: &'static str, body: &'static str) -> Self {
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&answered));
        let thread = std::thread::spawn(move || {
            let mut calls = Calls::default();
            while !stopped.load(SeqCst) {
                let start = Instant::now();
                match call(&socket, method, body) {
                    Ok(()) => {
                        calls.answered += 1;
                        count.fetch_add(1, SeqCst);
                    }
                    Err(Broken::Refused(error)) => calls.refused.push(error.to_string()),
                    Err(Broken::InHand(error)) => calls.broken.push(error.to_string()),
                }
                calls.longest = calls.longest.max(start.elapsed());
                // Calls meet a kill anywhere, and leave the machine room for a start.
                sleep(Duration::from_micros(500));
            }
            calls
        });
        Self {
            stop,
            answered,
            thread,
        }
    }

    fn answered(&self) -> u64 {
        self.answered.load(SeqCst)
    }

    fn stop(self) -> Calls {
        self.stop.store(true, SeqCst);
        self.thread.join().unwrap()
    }
}

#[test]
fn no_call_is_refused_while_workers_are_killed_and_each_new_one_is_answered() {
    let place = Place::new();
    let daemon = place.serve();
    let clients = daemon.clients();
    for _ in 0..KILLS {
        let before: Vec<u64> = clients.iter().map(Client::answered).collect();
        wait_for("every client is answered", LONGEST_WAIT, || {
            let pairs = clients.iter().zip(&before);
            pairs
                .into_iter()
                .all(|(client, before)| client.answered() > *before)
        });
        let worker = daemon.worker().expect("somebody has answered");
        kill(worker, Signal::SIGKILL).unwrap();
        wait_for("it is gone", PATIENCE, || daemon.worker() != Some(worker));
    }
    wait_for("the last worker", PATIENCE, || daemon.list().is_ok());
    let calls: Vec<Calls> = clients.into_iter().map(Client::stop).collect();
    let sum = |count: fn(&Calls) -> usize| calls.iter().map(count).sum::<usize>();
    let longest = calls.iter().map(|calls| calls.longest).max().unwrap();
    report(&format!(
        "{KILLS} kills: {} calls answered, {} broken off in hand, the longest took {longest:?}",
        calls.iter().map(|calls| calls.answered).sum::<u64>(),
        sum(|calls| calls.broken.len()),
    ));
    assert_eq!(sum(|calls| calls.refused.len()), 0, "{calls:?}");
    // Each kill finds at most one call of each client.
    assert!(sum(|calls| calls.broken.len()) <= KILLS as usize * calls.len());
    assert!(longest < LONGEST_WAIT, "{longest:?}");
    let log = daemon.log();
    let crashes: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("SIGKILL"))
        .collect();
    assert_eq!(crashes.len(), KILLS as usize, "one line for each:\n{log}");
    assert!(
        crashes[0].contains("the next worker starts at once"),
        "{}",
        crashes[0]
    );
}

#[test]
fn a_planned_restart_breaks_no_call() {
    let place = Place::new();
    let daemon = place.serve();
    let clients = daemon.clients();
    for arguments in [&["restart"][..], &["restart", "--serve"], &["restart"]] {
        let old = daemon.worker().unwrap();
        let restarted = place.bucketvol(arguments);
        assert!(
            restarted.status.success(),
            "{}\n{}",
            describe(&restarted),
            daemon.log()
        );
        let new = daemon.worker().unwrap();
        assert_ne!(new, old);
        let name = fs::read_to_string(format!("/proc/{new}/comm")).unwrap();
        assert_eq!(name.trim_end(), "bucketvol");
        let said = String::from_utf8_lossy(&restarted.stdout).into_owned();
        let expected = format!("serve: worker {old} is replaced by {new}, ");
        assert!(said.starts_with(&expected), "{said}");
    }
    sleep(Duration::from_millis(200));
    let calls: Vec<Calls> = clients.into_iter().map(Client::stop).collect();
    let longest = calls.iter().map(|calls| calls.longest).max().unwrap();
    report(&format!("3 restarts: the longest call took {longest:?}"));
    for calls in calls {
        assert!(
            calls.refused.is_empty() && calls.broken.is_empty(),
            "{calls:?}"
        );
    }
}

#[test]
fn a_daemon_of_a_host_without_certificates_can_be_restarted() {
    let place = Place::new();
    let daemon = place.serve();
    let mut restart = bounded(120, place.program());
    place.environment(&mut restart);
    for store in ["SSL_CERT_FILE", "SSL_CERT_DIR"] {
        restart.env(store, place.path("none"));
    }
    let restarted = output(restart.arg("restart"));
    assert!(
        restarted.status.success(),
        "{}\n{}",
        describe(&restarted),
        daemon.log()
    );
}

#[test]
fn a_restart_runs_the_release_that_is_installed_and_a_broken_one_gives_way() {
    let place = Place::new();
    let daemon = place.serve();
    place.upgrade(|path| {
        fs::write(path, "#!/bin/sh\nexit 1\n").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    });
    let mut restart = bounded(120, env!("CARGO_BIN_EXE_bucketvol"));
    place.environment(&mut restart);
    let failed = output(restart.arg("restart"));
    assert_eq!(failed.status.code(), Some(1), "{}", describe(&failed));
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(said.contains("runs the old executable"), "{said}");
    assert!(daemon.list().is_ok(), "{}", daemon.log());

    place.upgrade(|path| copy(Path::new(env!("CARGO_BIN_EXE_bucketvol")), path));
    let restarted = place.bucketvol(&["restart"]);
    assert!(
        restarted.status.success(),
        "{}\n{}",
        describe(&restarted),
        daemon.log()
    );
    wait_for("the keeper becomes it too", PATIENCE, || {
        let keeper = daemon.keeper.id();
        let of = |path: PathBuf| {
            fs::metadata(path).map(|file| std::os::unix::fs::MetadataExt::ino(&file))
        };
        of(format!("/proc/{keeper}/exe").into()).ok() == of(place.program()).ok()
    });
    assert!(daemon.list().is_ok(), "{}", daemon.log());
    // It can be replaced and ended as before.
    let again = place.bucketvol(&["restart"]);
    assert!(
        again.status.success(),
        "{}\n{}",
        describe(&again),
        daemon.log()
    );
}

#[test]
fn a_stop_ends_keeper_and_worker_and_takes_the_socket_away() {
    for both in [false, true] {
        let place = Place::new();
        let mut daemon = place.serve();
        let worker = daemon.worker().unwrap();
        send(&daemon.keeper, Signal::SIGTERM);
        if both {
            // As a service manager does it, which knows no keepers.
            kill(worker, Signal::SIGTERM).unwrap();
        }
        wait_for("the end", PATIENCE, || {
            daemon.keeper.try_wait().unwrap().is_some()
        });
        assert!(daemon.keeper.wait().unwrap().success(), "{}", daemon.log());
        assert!(!is_running(worker));
        assert!(!daemon.socket().exists());
        assert!(!daemon.log().contains("told twice"), "{}", daemon.log());
        assert_eq!(fs::read_dir(place.path("run")).unwrap().count(), 0);
    }
}

#[test]
fn a_worker_without_its_keeper_drains_and_ends() {
    let place = Place::new();
    let mut daemon = place.serve();
    let worker = daemon.worker().unwrap();
    daemon.keeper.kill().unwrap();
    daemon.keeper.wait().unwrap();
    wait_for("the worker ends", PATIENCE, || !is_running(worker));
    assert!(!daemon.socket().exists());
    assert!(
        daemon.log().contains("its keeper has died"),
        "{}",
        daemon.log()
    );
    drop(daemon);
    assert!(place.serve().list().is_ok());
}

#[test]
fn the_options_of_a_mount_are_kept_for_the_next_worker_and_nowhere_else() {
    let place = Place::new();
    let server = LocalS3::start();
    let account = server.account();
    let secret = account.secret_access_key.as_str();
    let options = format!(
        "endpoint={},region={},access_key_id={},secret_access_key={secret}",
        account.endpoint, account.region, account.access_key_id
    );
    let url = format!("s3://{}", account.bucket);
    let mount = place.path("mnt").display().to_string();
    let mounted = place.bucketvol(&["mount", &url, &mount, "--background", "-o", &options]);
    assert!(mounted.status.success(), "{}", describe(&mounted));
    let status = place.bucketvol(&["status", "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    let pid = |value: &serde_json::Value| u32::try_from(value.as_u64().unwrap()).unwrap();
    let (keeper, worker) = (pid(&status[0]["keeper"]["pid"]), pid(&status[0]["pid"]));
    assert_eq!(
        children(keeper),
        [Pid::from_raw(worker.try_into().unwrap())]
    );
    let kept: Vec<String> = fs::read_dir(format!("/proc/{keeper}/fd"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            fs::read_link(path)
                .is_ok_and(|target| target.to_string_lossy().contains("memfd:options"))
        })
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    assert_eq!(kept.len(), 1);
    assert!(kept[0].contains(secret));
    for process in [keeper, worker] {
        for file in ["cmdline", "environ"] {
            let text = fs::read(format!("/proc/{process}/{file}")).unwrap();
            assert!(!String::from_utf8_lossy(&text).contains(secret), "{file}");
        }
    }
    let unmounted = place.bucketvol(&["unmount", &mount]);
    assert!(unmounted.status.success(), "{}", describe(&unmounted));
    wait_for("keeper and worker end", PATIENCE, || {
        [keeper, worker]
            .into_iter()
            .all(|pid| !is_running(Pid::from_raw(pid.try_into().unwrap())))
    });
}

/// Whether a process runs; a zombie does not.
fn is_running(process: Pid) -> bool {
    fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(|stat| {
        stat.rsplit_once(") ")
            .is_some_and(|(_, after)| !after.starts_with(['Z', 'X']))
    })
}

#[expect(
    clippy::print_stdout,
    reason = "figures for whoever runs it with --nocapture"
)]
fn report(text: &str) {
    println!("{text}");
}
