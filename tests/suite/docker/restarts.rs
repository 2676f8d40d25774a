//! The daemon's worker is killed and replaced while containers use a volume: none of their programs sees an error.

use std::time::Duration;

use crate::common::daemon::Daemon;
use crate::common::dockerd::{Dockerd, IMAGE};
use crate::common::process::succeed;
use crate::common::s3::LocalS3;

/// `BUCKETVOL_WORKER_KILLS` asks for more: the long form is 100.
const KILLS: u32 = 10;

/// Planned restarts, after so many kills each.
const KILLS_PER_RESTART: u32 = 5;

/// What runs in a container each, until /tmp/stop is there. The distribution's programs are at hand.
const PROGRAMS: [(&str, &str); 7] = [
    (
        "verifier",
        "until test -e /tmp/stop; do
            fio --name=verify --directory=/data --rw=randwrite --bs=4k --size=2m --ioengine=psync \
                --verify=crc32c --verify_fatal=1 --fsync=64 --output=/tmp/fio >/dev/null || { cat /tmp/fio; exit 1; }
        done",
    ),
    (
        "mapper",
        "until test -e /tmp/stop; do
            fio --name=mapped --directory=/data --rw=randwrite --bs=4k --size=1m --ioengine=mmap \
                --verify=crc32c --verify_fatal=1 --output=/tmp/fio >/dev/null || { cat /tmp/fio; exit 1; }
        done",
    ),
    (
        "reader",
        "until test -e /tmp/stop; do
            test \"$(sha256sum </data/static)\" = \"$(cat /tmp/sum 2>/dev/null || sha256sum </data/static | tee /tmp/sum)\"
        done",
    ),
    (
        "appender",
        "exec 9>>/data/log; i=0
        until test -e /tmp/stop; do echo $i >&9; i=$((i+1)); sleep 0.005; done
        seq 0 $((i-1)) | cmp - /data/log",
    ),
    (
        "locker",
        "exec 9>/data/lock; flock 9; echo locked; until test -e /tmp/stop; do sleep 0.1; done",
    ),
    (
        "rival",
        "until test -e /data/lock; do sleep 0.1; done; sleep 0.5
        until test -e /tmp/stop; do if flock -n /data/lock true; then echo 'the lock was lost'; exit 1; fi; done",
    ),
    (
        "dweller",
        "mkdir /data/home; cd /data/home; echo yes >here; i=0
        until test -e /tmp/stop; do
            cat here >/tmp/here; test \"$(cat /tmp/here)\" = yes || { echo here: $(cat /tmp/here); exit 1; }
            echo $i >old; echo new $i >new; mv new old
            cat old >/tmp/old; test \"$(cat /tmp/old)\" = \"new $i\" || { echo old: $i: $(cat /tmp/old); exit 1; }
            rm old; i=$((i+1))
            ls >/tmp/ls; test \"$(cat /tmp/ls)\" = here || { echo ls: $(cat /tmp/ls); exit 1; }
        done",
    ),
];

#[test]
fn containers_do_not_notice_that_the_worker_is_killed_and_replaced() {
    let (s3, engine) = (LocalS3::start(), Dockerd::start());
    let daemon = Daemon::start(&engine, s3.account());
    engine.create_volume("bucketvol", "vol", &s3.account().options());
    engine.run("vol", "0:0", "head -c 3000000 /dev/urandom >/data/static");
    for (name, script) in PROGRAMS {
        let mut run = engine.command(&["run", "-d", "--network=none", "--name", name]);
        run.args(["-v", "vol:/data", "-v", "/usr:/usr:ro"]);
        run.args(["-v", "/lib:/lib:ro", "-v", "/lib64:/lib64:ro"]);
        run.args(["-e", "PATH=/usr/bin:/usr/sbin:/bin", IMAGE]);
        succeed(run.args(["/bin/busybox", "sh", "-ec", script]));
    }
    let names = ["static", "log", "lock", "home", "home/here"];
    let inodes = || {
        let paths = names.map(|name| format!("/data/{name}"));
        let mut stat = engine.command(&["exec", "reader", "stat", "-c", "%n %i"]);
        succeed(stat.args(paths))
    };
    std::thread::sleep(Duration::from_secs(2));
    let before = inodes();

    let kills = std::env::var("BUCKETVOL_WORKER_KILLS");
    let kills = kills.map_or(KILLS, |n| n.parse().expect("a number"));
    for kill in 1..=kills {
        daemon.kill_worker();
        std::thread::sleep(Duration::from_millis(u64::from(700 + kill * 137 % 900)));
        if kill % KILLS_PER_RESTART == 0 {
            // Whoever asks for a restart asks the worker who its keeper is.
            engine.docker(&["volume", "inspect", "vol"]);
            let said = daemon.bucketvol(&["restart"]);
            assert!(said.contains("is replaced by"), "{said}");
        }
    }
    // The engine's own calls go through as well.
    engine.docker(&["volume", "inspect", "vol"]);
    let read = engine.run(
        "vol",
        "0:0",
        "cat /data/home/here; stat -c %s /data/home/here",
    );
    assert_eq!(read, "yes\n4");
    assert_eq!(inodes(), before);

    // The rival of the locker before that one.
    for (name, _) in PROGRAMS.into_iter().rev() {
        // It fails where the program has ended already, and that is found out below.
        let mut stop = engine.command(&["exec", name, "touch", "/tmp/stop"]);
        let _ = stop.output().expect("docker runs");
        let status = engine.docker(&["wait", name]);
        let mut logs = engine.command(&["logs", name]);
        let logs = logs.output().expect("docker runs");
        assert_eq!(
            status,
            "0",
            "{name}: {}{}\n{}",
            String::from_utf8_lossy(&logs.stdout),
            String::from_utf8_lossy(&logs.stderr),
            daemon.log()
        );
    }
    let log = engine.run("vol", "0:0", "cat /data/log");
    for (name, _) in PROGRAMS {
        engine.docker(&["rm", "-f", name]);
    }
    daemon.wait_until_unmounted();
    let stored = s3.account().get("log").expect("it is in the bucket");
    assert_eq!(String::from_utf8_lossy(&stored).trim_end(), log);
}

/// What the daemon's own mount point shows is nobody's matter but ours.
#[test]
fn a_volume_that_is_unmounted_while_there_is_no_worker_is_mounted_anew_by_the_next_container() {
    let (s3, engine) = (LocalS3::start(), Dockerd::start());
    let daemon = Daemon::start(&engine, s3.account());
    let mut options = s3.account().options();
    options.push("upload_delay=30s".to_owned());
    engine.create_volume("bucketvol", "vol", &options);
    let answer = daemon.call("VolumeDriver.Mount", r#"{"Name":"vol","ID":"1"}"#);
    assert!(answer.contains(r#""Err":"""#), "{answer}");
    let place = engine.docker(&["volume", "inspect", "--format", "{{.Mountpoint}}", "vol"]);
    let mut write = engine.namespace().command(30, "sh");
    succeed(write.args(["-ec", "echo before >$0/file", &place]));
    daemon.kill_worker_and_unmount(&place);
    // Not before somebody wants it again, and what was written is not lost meanwhile.
    s3.account().becomes("file", Some(b"before\n"));
    assert_eq!(engine.namespace().fuse_mounts(), 0, "{}", daemon.log());
    let status = ["volume", "inspect", "--format", "{{.Status.state}}", "vol"];
    assert_eq!(engine.docker(&status), "not mounted");
    assert_eq!(engine.run("vol", "0:0", "cat /data/file"), "before");
    daemon.wait_until_unmounted();
    let deaths = daemon.log().matches("by SIGKILL").count();
    assert_eq!(deaths, 1, "{}", daemon.log());
}

/// The engine has its answer, and what comes before the container's start may take long.
#[test]
fn a_mount_whose_container_has_not_started_stays_when_the_worker_is_killed() {
    let (s3, engine) = (LocalS3::start(), Dockerd::start());
    let daemon = Daemon::start(&engine, s3.account());
    engine.create_volume("bucketvol", "vol", &s3.account().options());
    let mount = r#"{"Name":"vol","ID":"1"}"#;
    let answer = daemon.call("VolumeDriver.Mount", mount);
    assert!(answer.contains(r#""Err":"""#), "{answer}");
    daemon.kill_worker();
    daemon.call("VolumeDriver.List", "{}");
    // More than one look of the sweeper's.
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(engine.namespace().fuse_mounts(), 1, "{}", daemon.log());
    daemon.call("VolumeDriver.Unmount", mount);
    engine.docker(&["volume", "rm", "vol"]);
    daemon.wait_until_unmounted();
}
