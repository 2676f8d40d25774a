//! A worker hangs, crashes again and again as it starts, or is taken by the kernel for want of memory: the keeper
//! replaces it, and a program that uses the mount sees no error.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::cgroup::Memory;
use crate::common::mounted::Mounted;
use crate::common::process::{cannot_run, wait_for};
use crate::common::s3::LocalS3;
use crate::common::test_fs::pattern;

const PATIENCE: Duration = Duration::from_secs(100);

/// Ends at the first error. It says what it has done in $LOCAL, where that can be read while nobody serves the mount.
const PROGRAM: &str = r#"
    exec 9>>open; i=0
    until test -e "$LOCAL/stop"; do
        echo $i >&9; echo $i >new; test "$(cat new)" = $i; mv new done; rm done
        i=$((i+1)); echo $i >"$LOCAL/done"
    done
    test $(wc -l <open) = $i"#;

/// Has the program use the mount while `hurt` is done to the worker, and once more after it.
fn notices_nothing(mounted: &Mounted, hurt: impl FnOnce()) {
    let goes_on = || {
        let done = || fs::read_to_string(mounted.local("done")).unwrap_or_default();
        let before = done();
        wait_for("the program goes on", PATIENCE, || done() != before);
    };
    std::thread::scope(|scope| {
        let program = scope.spawn(|| mounted.sh(PROGRAM));
        let hurt = catch_unwind(AssertUnwindSafe(|| {
            goes_on();
            hurt();
            goes_on();
        }));
        fs::write(mounted.local("stop"), "").expect("a file");
        let ended = program.join();
        hurt.unwrap_or_else(|panic| resume_unwind(panic));
        ended.expect("the program has seen no error");
    });
}

#[test]
fn a_worker_that_hangs_is_replaced_and_programs_go_on() {
    let server = LocalS3::start();
    let mut mounted = Mounted::by_root(server.account(), "");
    notices_nothing(&mounted, || {
        let worker = mounted.worker().expect("it serves");
        kill(worker, Signal::SIGSTOP).expect("a signal");
        wait_for("another worker", PATIENCE, || {
            mounted.worker().is_some_and(|next| next != worker)
        });
    });
    let log = mounted.log();
    assert!(log.contains("the worker is killed: no heartbeat"), "{log}");
    mounted.unmount();
}

/// Once more than so often is once too often for a request that is in hand each time.
const CRASHES: usize = 6;

#[test]
fn workers_that_are_killed_as_they_start_are_replaced_ever_later_and_programs_go_on() {
    let server = LocalS3::start();
    let mut mounted = Mounted::by_root(server.account(), "");
    notices_nothing(&mounted, || {
        let mut last = None;
        for _ in 0..CRASHES {
            let mut next = None;
            wait_for("another worker", PATIENCE, || {
                next = mounted.worker().filter(|next| Some(*next) != last);
                next.is_some()
            });
            last = next;
            kill(last.expect("it is there"), Signal::SIGKILL).expect("a signal");
        }
    });
    let log = mounted.log();
    let pauses: Vec<&str> = log
        .lines()
        .filter_map(|line| line.split_once("worker starts "))
        .map(|(_, pause)| pause)
        .collect();
    assert_eq!(pauses.len(), CRASHES, "{log}");
    assert_eq!(pauses[0], "at once");
    // How long each is depends on how many of them have served for a moment.
    assert!(pauses.iter().any(|pause| *pause != "at once"), "{pauses:?}");
    mounted.unmount();
}

/// Blocks that were read are kept in the worker's memory: it gets more than its group may have by now.
#[test]
fn a_worker_that_the_kernel_takes_for_want_of_memory_is_replaced_and_programs_go_on() {
    const LEN: usize = 160 << 20;
    let server = LocalS3::start();
    let bytes = pattern(LEN);
    server.account().put("large", &bytes);
    let Some(memory) = Memory::limited(64 << 20) else {
        return cannot_run("no control group limits memory here");
    };
    let mut mounted = Mounted::by_root(server.account(), "");
    let keeper = mounted.keeper();
    notices_nothing(&mounted, || {
        let worker = mounted.worker().expect("it serves");
        memory.take(Pid::from_raw(keeper.try_into().expect("a pid")));
        memory.take(worker);
        let large = mounted.path("large");
        let read = std::thread::spawn(move || fs::read(large));
        wait_for("another worker", PATIENCE, || {
            mounted.worker().is_some_and(|next| next != worker)
        });
        memory.lift();
        let read = read.join().expect("it did not panic");
        assert!(read.expect("no error") == bytes);
    });
    let log = mounted.log();
    assert!(log.contains("ended by SIGKILL"), "{log}");
    assert_eq!(mounted.keeper(), keeper);
    mounted.unmount();
}

/// A worker that starts in such a group takes no more than it may.
#[test]
fn a_worker_keeps_to_what_its_control_group_allows() {
    const LEN: usize = 400 << 20;
    let server = LocalS3::start();
    let bytes = pattern(LEN);
    server.account().put("large", &bytes);
    let Some(memory) = Memory::limited(160 << 20) else {
        return cannot_run("no control group limits memory here");
    };
    let mut mounted = Mounted::by_root(server.account(), "");
    let keeper = mounted.keeper();
    memory.take(Pid::from_raw(keeper.try_into().expect("a pid")));
    let before = mounted.worker().expect("it serves");
    kill(before, Signal::SIGKILL).expect("it is ours");
    wait_for("another worker", PATIENCE, || {
        mounted.worker().is_some_and(|next| next != before)
    });
    let worker = mounted.worker().expect("it serves");
    for _ in 0..2 {
        assert!(fs::read(mounted.path("large")).expect("read") == bytes);
    }
    assert_eq!(mounted.worker(), Some(worker), "nobody had to end it");
    let log = mounted.log();
    assert!(log.contains("the control group allows 160MiB"), "{log}");
    mounted.unmount();
}
