//! Child processes that cannot hang a test: each runs under timeout(1), and what it said is in the panic.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Output};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A command that is killed when it has run for `seconds`; it then exits with status 124 or 137.
pub(crate) fn bounded(seconds: u32, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after=5", &seconds.to_string()])
        .arg(program);
    command
}

/// Says that this machine cannot run a test, which is a failure where that counts.
#[expect(
    clippy::print_stderr,
    reason = "a test that did not run must not pass for one that did"
)]
pub(crate) fn cannot_run(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{why}");
    eprintln!("NOT RUN: {why}");
}

/// Runs the command to its end, whatever that is.
pub(crate) fn output(command: &mut Command) -> Output {
    command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

/// Runs the command, which has to succeed, and returns its stdout without the last newline.
pub(crate) fn succeed(command: &mut Command) -> String {
    let output = output(command);
    assert!(
        output.status.success(),
        "{command:?}\n{}",
        describe(&output)
    );
    String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned()
}

/// Runs the command, which has to fail by itself and in time, and returns what it said on both streams.
pub(crate) fn fail(command: &mut Command) -> String {
    let output = output(command);
    let ended_by_itself = !matches!(output.status.code(), None | Some(0 | 124 | 137));
    assert!(
        ended_by_itself,
        "{command:?}: no failure in time\n{}",
        describe(&output)
    );
    describe(&output)
}

/// Exit status, stdout and stderr as text.
pub(crate) fn describe(output: &Output) -> String {
    format!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Asks again every 50 ms until `done` says yes; panics with `what` after `limit`.
pub(crate) fn wait_for(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Reads lines until one equals `last`; returns those before it. Panics when `limit` is over or the
/// stream ends first.
///
/// What follows is read and dropped, so that the child never blocks on a full pipe.
pub(crate) fn read_until(stdout: ChildStdout, last: &str, limit: Duration) -> Vec<String> {
    let (sender, lines) = mpsc::sync_channel(64);
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            // Nobody listens any more once `last` was seen.
            let _ = sender.send(line);
        }
    });
    let start = Instant::now();
    let mut before = Vec::new();
    loop {
        let left = limit.saturating_sub(start.elapsed());
        match lines.recv_timeout(left) {
            Ok(line) if line == last => return before,
            Ok(line) => before.push(line),
            Err(e) => panic!("no line {last:?} within {limit:?} ({e}); it said {before:?}"),
        }
    }
}

/// Sends `signal` to a child of ours.
pub(crate) fn send(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(child.id().try_into().expect("a pid fits pid_t"));
    // It may have ended by itself; whoever cares looks at its exit status.
    let _ = kill(pid, signal);
}

/// The children of a process; a keeper has one, its worker.
pub(crate) fn children(pid: u32) -> Vec<Pid> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let pids = children.split_whitespace().flat_map(str::parse);
    pids.map(Pid::from_raw).collect()
}

/// SIGKILL for a keeper and its worker: neither has a last word.
pub(crate) fn kill_all(keeper: &mut Child) {
    // It must not start another worker, nor may the worker see it go.
    send(keeper, Signal::SIGSTOP);
    for worker in children(keeper.id()) {
        let _ = kill(worker, Signal::SIGKILL);
    }
    keeper.kill().expect("a signal");
    keeper.wait().expect("it is gone");
}

/// Ends a child of ours: SIGTERM, and SIGKILL when it has not gone after `limit`. Returns whether it
/// went by itself with status 0.
pub(crate) fn end(child: &mut Child, limit: Duration) -> bool {
    send(child, Signal::SIGTERM);
    let start = Instant::now();
    while start.elapsed() < limit {
        match child.try_wait() {
            Ok(None) => std::thread::sleep(Duration::from_millis(20)),
            Ok(Some(status)) => return status.success(),
            Err(_) => return false,
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    false
}
