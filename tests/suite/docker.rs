//! Volumes as a user of Docker meets them: a real engine, our daemon, a real S3 server.
//!
//! Each test has an engine, a daemon and a server of its own. Objects are read back by curl, past us.

mod engine_restarts;
mod entrypoints;
mod restarts;

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::common::daemon::{Daemon, SOCKET};
use crate::common::dockerd::{Dockerd, IMAGE};
use crate::common::process::{bounded, output, succeed};
use crate::common::s3::{Account, LocalS3};

/// What an engine waits at most for an answer is two minutes; a refusal has to come much sooner.
const REFUSAL_LIMIT: Duration = Duration::from_secs(25);

#[test]
fn a_volume_is_created_listed_inspected_and_removed() {
    let (s3, engine) = (LocalS3::start(), Dockerd::start());
    let daemon = Daemon::start(&engine, s3.account());
    engine.create_volume("bucketvol", "photos", &s3.account().options());

    assert_eq!(engine.docker(&["volume", "ls", "--quiet"]), "photos");
    let format = "{{.Driver}} {{.Scope}} {{.Mountpoint}}";
    let inspected = engine.docker(&["volume", "inspect", "--format", format, "photos"]);
    let base = engine.namespace().directory().join("mounts");
    let below_base = format!("bucketvol local {}/", base.display());
    assert!(inspected.starts_with(&below_base), "{inspected}");
    let status = engine.docker(&[
        "volume",
        "inspect",
        "--format",
        "{{json .Status}}",
        "photos",
    ]);
    assert!(status.starts_with('{'), "{status}");
    assert_no_secret(&status, s3.account());

    engine.docker(&["volume", "rm", "photos"]);
    assert_eq!(engine.docker(&["volume", "ls", "--quiet"]), "");
    engine.docker_fails(&["volume", "inspect", "photos"]);
    assert_no_secret(&daemon.log(), s3.account());
}

#[test]
fn root_and_an_ordinary_user_write_and_the_bucket_has_both_files() {
    let (s3, engine) = (LocalS3::start(), Dockerd::start());
    let daemon = Daemon::start(&engine, s3.account());
    engine.create_volume("bucketvol", "vol", &s3.account().options());

    engine.run(
        "vol",
        "0:0",
        "echo by root >/data/root; mkdir /data/app; chown 1000:1000 /data/app",
    );
    engine.run(
        "vol",
        "1000:1000",
        "echo by user >/data/app/file; chmod 600 /data/app/file",
    );
    assert_eq!(s3.account().get("root").as_deref(), Some(&b"by root\n"[..]));
    assert_eq!(
        s3.account().get("app/file").as_deref(),
        Some(&b"by user\n"[..])
    );

    // A daemon that has seen none of it finds owner and mode in the bucket.
    drop(daemon);
    let listed = engine.run(
        "vol",
        "1000:1000",
        "stat -c '%u:%g %a' /data/root /data/app/file",
    );
    assert_eq!(listed, "0:0 644\n1000:1000 600");
    let mut denied = engine.command(&["run", "--rm", "--network=none", "--user=1000:1000"]);
    denied.args(["-v", "vol:/data", IMAGE, "sh", "-c", "echo no >/data/root"]);
    assert!(
        !denied.output().expect("docker runs").status.success(),
        "root's file was written"
    );
}

#[test]
fn an_operator_is_told_what_helps_who_is_refused_at_a_volumes_root() {
    let (s3, engine) = (LocalS3::start(), Dockerd::start());
    let daemon = Daemon::start(&engine, s3.account());
    engine.create_volume("bucketvol", "vol", &s3.account().options());
    engine.start_container("box", "vol");
    let touch = |container: &str| {
        let exec = ["exec", "--user=1000:1001", container];
        let mut touch = engine.command(&exec);
        output(touch.args(["sh", "-c", "cd /data; ls; touch file"]))
    };
    let refused = touch("box");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("Permission denied"), "{said}");
    let format = "{{.Status.last_error}}";
    let hint = engine.docker(&["volume", "inspect", "--format", format, "vol"]);
    // docker has given the volume owner and mode of the image's directory.
    assert!(hint.contains("`chown 1000:1001` on it"), "{hint}");
    touch("box");
    assert_eq!(daemon.log().matches("chown 1000:1001").count(), 1);
    engine.docker(&["exec", "box", "chown", "1000:1001", "/data"]);
    assert!(touch("box").status.success());
    engine.docker(&["rm", "-f", "box"]);
    daemon.wait_until_unmounted();
    engine.docker(&["volume", "rm", "vol"]);
    engine.create_volume("bucketvol", "vol", &s3.account().options());
    assert_eq!(
        engine.run("vol", "1000:1001", "rm /data/file; ls /data"),
        ""
    );

    let mut owned = s3.account().options();
    owned.extend(["prefix=theirs", "uid=1000", "gid=1001", "overlap=allow"].map(str::to_owned));
    engine.create_volume("bucketvol", "theirs", &owned);
    // A directory that the image has not: its owner would be given to the volume.
    let elsewhere = ["--user=1000:1001", "-v", "theirs:/elsewhere", IMAGE];
    let mut touch = engine.command(&["run", "--rm", "--network=none"]);
    succeed(touch.args(elsewhere).args(["touch", "/elsewhere/file"]));
}

#[test]
fn two_containers_share_a_volume_at_the_same_time() {
    let (s3, engine) = (LocalS3::start(), Dockerd::start());
    let daemon = Daemon::start(&engine, s3.account());
    engine.create_volume("bucketvol", "vol", &s3.account().options());
    engine.start_container("one", "vol");
    engine.start_container("two", "vol");
    assert_eq!(
        engine.namespace().fuse_mounts(),
        1,
        "containers share one mount"
    );

    engine.docker(&[
        "exec",
        "one",
        "sh",
        "-ec",
        "echo hello >/data/a; mv /data/a /data/b",
    ]);
    assert_eq!(engine.docker(&["exec", "two", "cat", "/data/b"]), "hello");
    engine.docker(&["exec", "two", "sh", "-ec", "echo more >>/data/b"]);
    assert_eq!(
        engine.docker(&["exec", "one", "cat", "/data/b"]),
        "hello\nmore"
    );

    engine.docker(&["rm", "-f", "one"]);
    assert_eq!(
        engine.docker(&["exec", "two", "cat", "/data/b"]),
        "hello\nmore"
    );
    engine.docker(&["rm", "-f", "two"]);
    daemon.wait_until_unmounted();
    assert_eq!(
        s3.account().get("b").as_deref(),
        Some(&b"hello\nmore\n"[..])
    );
    assert_eq!(s3.account().get("a"), None);
}

#[test]
fn an_image_directory_is_copied_up_into_an_empty_volume() {
    let (s3, engine) = (LocalS3::start(), Dockerd::start());
    let _daemon = Daemon::start(&engine, s3.account());
    engine.create_volume("bucketvol", "vol", &s3.account().options());

    let script = "stat -c '%u:%g %a %F' /seed/file; readlink /seed/link; cat /seed/sub/deep";
    let seen = engine.docker(&[
        "run",
        "--rm",
        "--network=none",
        "-v",
        "vol:/seed",
        IMAGE,
        "sh",
        "-ec",
        script,
    ]);
    assert_eq!(seen, "1000:1000 640 regular file\nfile\ndeeper");
    assert_eq!(
        s3.account().get("file").as_deref(),
        Some(&b"from the image\n"[..])
    );
    assert_eq!(
        s3.account().get("sub/deep").as_deref(),
        Some(&b"deeper\n"[..])
    );

    // A volume that is no longer empty is left as it is.
    engine.run("vol", "0:0", "echo mine >/data/file");
    let again = [
        "run",
        "--rm",
        "--network=none",
        "-v",
        "vol:/seed",
        IMAGE,
        "cat",
        "/seed/file",
    ];
    assert_eq!(engine.docker(&again), "mine");
}

#[test]
fn docker_cp_goes_both_ways_and_the_container_keeps_its_volume() {
    let (s3, engine) = (LocalS3::start(), Dockerd::start());
    let _daemon = Daemon::start(&engine, s3.account());
    engine.create_volume("bucketvol", "vol", &s3.account().options());
    engine.start_container("box", "vol");

    let local = engine.namespace().directory().join("local");
    std::fs::write(&local, "copied in\n").expect("a file to copy");
    let local = local.display().to_string();
    engine.docker(&["cp", &local, "box:/data/in"]);
    assert_eq!(
        engine.docker(&["exec", "box", "cat", "/data/in"]),
        "copied in"
    );

    engine.docker(&["exec", "box", "sh", "-ec", "echo copied out >/data/out"]);
    let out = format!("{local}.out");
    engine.docker(&["cp", "box:/data/out", &out]);
    assert_eq!(
        std::fs::read_to_string(out).expect("it was copied"),
        "copied out\n"
    );

    // The engine unmounts after each copy with the id of the container's own mount.
    engine.docker(&["exec", "box", "sh", "-ec", "echo still here >/data/after"]);
    s3.account().becomes("in", Some(b"copied in\n"));
    s3.account().becomes("after", Some(b"still here\n"));
    // And a stopped container can be copied from as well.
    engine.docker(&["stop", "--time", "0", "box"]);
    engine.docker(&["cp", "box:/data/after", &format!("{local}.stopped")]);
}

#[test]
fn a_volume_in_use_is_not_removed_and_removing_it_keeps_the_objects() {
    let (s3, engine) = (LocalS3::start(), Dockerd::start());
    let daemon = Daemon::start(&engine, s3.account());
    engine.create_volume("bucketvol", "vol", &s3.account().options());
    engine.start_container("box", "vol");
    engine.docker(&["exec", "box", "sh", "-ec", "echo kept >/data/file"]);

    let refusal = engine.docker_fails(&["volume", "rm", "vol"]);
    assert!(refusal.contains("volume is in use"), "{refusal}");
    assert_eq!(engine.docker(&["exec", "box", "cat", "/data/file"]), "kept");

    engine.docker(&["rm", "-f", "box"]);
    engine.docker(&["volume", "rm", "vol"]);
    daemon.wait_until_unmounted();
    assert_eq!(s3.account().get("file").as_deref(), Some(&b"kept\n"[..]));
    assert_eq!(
        daemon
            .bucketvol(&["volume", "ls", "--socket", SOCKET])
            .lines()
            .count(),
        0
    );
}

#[test]
fn records_survive_a_stop_and_a_crash_of_the_daemon() {
    let (s3, engine) = (LocalS3::start(), Dockerd::start());
    let mut daemon = Daemon::start(&engine, s3.account());
    let reference = [
        format!("bucket={}", s3.account().bucket),
        format!("endpoint={}", s3.account().endpoint),
        format!("region={}", s3.account().region),
        "credentials=file:test".to_owned(),
    ];
    engine.create_volume("bucketvol", "inline", &s3.account().options());
    let mut nested = reference.to_vec();
    nested[0] = format!("url=s3://{}/elsewhere", s3.account().bucket);
    nested.push("overlap=allow".to_owned());
    engine.create_volume("bucketvol", "by-name", &nested);
    engine.run("inline", "0:0", "echo one >/data/file");
    engine.run("by-name", "0:0", "echo two >/data/file");

    daemon.restart();
    assert_eq!(
        engine.docker(&["volume", "ls", "--quiet"]),
        "by-name\ninline"
    );
    assert_eq!(engine.run("inline", "0:0", "cat /data/file"), "one");

    daemon.crash_and_restart();
    assert_eq!(
        engine.docker(&["volume", "ls", "--quiet"]),
        "by-name\ninline"
    );
    assert_eq!(engine.run("by-name", "0:0", "cat /data/file"), "two");
    assert_eq!(
        s3.account().get("elsewhere/file").as_deref(),
        Some(&b"two\n"[..])
    );
}

#[test]
fn a_container_that_ran_through_a_crash_is_healed_by_the_next_start() {
    let (s3, engine) = (LocalS3::start(), Dockerd::start());
    let mut daemon = Daemon::start(&engine, s3.account());
    engine.create_volume("bucketvol", "vol", &s3.account().options());
    engine.start_container("box", "vol");
    engine.docker(&["exec", "box", "sh", "-ec", "echo before >/data/file"]);

    daemon.crash_and_restart();
    // The start heals in the background; until then the container gets errors, never the host's disk.
    let healed = "for i in $(seq 100); do cat /data/file && exit 0; sleep 0.1; done; exit 1";
    assert_eq!(
        engine.docker(&["exec", "box", "sh", "-c", healed]),
        "before"
    );
    engine.docker(&["exec", "box", "sh", "-ec", "echo after >/data/file"]);

    // The engine's last word for another container must not take the mount from this one.
    assert_eq!(engine.run("vol", "0:0", "cat /data/file"), "after");
    assert_eq!(
        engine.docker(&["exec", "box", "cat", "/data/file"]),
        "after"
    );
    engine.docker(&["rm", "-f", "box"]);
    engine.docker(&["volume", "rm", "vol"]);
    assert_eq!(s3.account().get("file").as_deref(), Some(&b"after\n"[..]));
    assert_eq!(engine.namespace().fuse_mounts(), 0);
}

#[test]
fn a_relay_under_another_name_is_a_plugin_of_its_own() {
    let (s3, engine) = (LocalS3::start(), Dockerd::start());
    let _daemon = Daemon::start(&engine, s3.account());
    // How operators trace the traffic: socat -v between the engine and us.
    let listen = "UNIX-LISTEN:/run/docker/plugins/traced.sock,fork,mode=600".to_owned();
    let arguments = ["-v".to_owned(), listen, format!("UNIX-CONNECT:{SOCKET}")];
    let relay = engine.namespace().spawn("socat", "socat", &arguments);

    engine.create_volume("traced", "vol", &s3.account().options());
    engine.run("vol", "0:0", "echo seen >/data/file");
    assert_eq!(s3.account().get("file").as_deref(), Some(&b"seen\n"[..]));
    for call in ["Create", "Mount", "Unmount"] {
        assert!(
            relay.log().contains(&format!("/VolumeDriver.{call}")),
            "{call} was not relayed"
        );
    }
    engine.docker(&["volume", "rm", "vol"]);
}

#[test]
fn what_cannot_work_is_refused_in_time_and_leaves_nothing_behind() {
    let (s3, engine) = (LocalS3::start(), Dockerd::start());
    let daemon = Daemon::start(&engine, s3.account());
    let good = s3.account().options();
    let with = |key: &str, value: &str| -> Vec<String> {
        let other = good
            .iter()
            .filter(|o| !o.starts_with(&format!("{key}=")))
            .cloned();
        other.chain([format!("{key}={value}")]).collect()
    };
    let spelled_wrong: Vec<String> = good
        .iter()
        .map(|option| option.replace("bucket=", "buket="))
        .collect();
    let https_where_http = s3.account().endpoint.replace("http://", "https://");

    // What is wrong, the options, and what the one line has to name.
    let refused = [
        ("an unknown option", spelled_wrong, vec!["buket", "bucket"]),
        (
            "a missing bucket",
            with("bucket", "no-such-bucket"),
            vec!["no-such-bucket"],
        ),
        (
            "a wrong secret",
            with("secret_access_key", "wr0ng-s3cret"),
            vec!["test-bucket"],
        ),
        (
            "a wrong key",
            with("access_key_id", "nobody"),
            vec!["test-bucket"],
        ),
        (
            "https where http is spoken",
            with("endpoint", &https_where_http),
            vec!["http://"],
        ),
        (
            "a bad value",
            with("read_only_maybe", "1"),
            vec!["read_only_maybe"],
        ),
        (
            "a bad mode",
            with("file_mode", "rw"),
            vec!["file_mode", "rw"],
        ),
    ];
    for (what, options, named) in refused {
        let start = Instant::now();
        let said = engine.create_volume_fails("bucketvol", "bad", &options);
        assert!(
            start.elapsed() < REFUSAL_LIMIT,
            "{what}: took {:?}",
            start.elapsed()
        );
        for word in named {
            assert!(said.contains(word), "{what}: {word:?} is not in {said}");
        }
        assert_no_secret(&said, s3.account());
        assert!(!said.contains("wr0ng-s3cret"), "{what}: {said}");
        assert_eq!(
            engine.docker(&["volume", "ls", "--quiet"]),
            "",
            "{what}: it left a volume"
        );
    }
    for name in ["..", ".hidden", &"n".repeat(300)] {
        let said = engine.create_volume_fails("bucketvol", name, &good);
        assert_no_secret(&said, s3.account());
    }

    // A store that cannot be reached may come back: the volume is accepted.
    engine.create_volume("bucketvol", "away", &with("endpoint", "http://127.0.0.1:9"));
    engine.docker(&["volume", "rm", "away"]);
    assert_eq!(engine.docker(&["volume", "ls", "--quiet"]), "");
    assert_eq!(engine.namespace().fuse_mounts(), 0);
    assert_no_secret(&daemon.log(), s3.account());
}

#[test]
fn a_bucket_that_has_gone_is_an_error_of_docker_run_not_an_empty_directory() {
    let (s3, engine) = (LocalS3::start(), Dockerd::start());
    let daemon = Daemon::start(&engine, s3.account());
    let mut options: Vec<String> = s3.account().options();
    options[0] = "bucket=not-made-yet".to_owned();
    options.push("check=false".to_owned());
    engine.create_volume("bucketvol", "vol", &options);

    let arguments = [
        "run",
        "--rm",
        "--network=none",
        "-v",
        "vol:/data",
        IMAGE,
        "true",
    ];
    let said = engine.docker_fails(&arguments);
    assert!(said.contains("not-made-yet"), "{said}");
    assert_no_secret(&said, s3.account());
    assert_eq!(engine.namespace().fuse_mounts(), 0, "{}", daemon.log());
    engine.docker(&["volume", "rm", "vol"]);
}

#[test]
fn sixty_four_mounts_in_parallel_make_one_session_and_then_none() {
    let (s3, engine) = (LocalS3::start(), Dockerd::start());
    let daemon = Daemon::start(&engine, s3.account());
    engine.create_volume("bucketvol", "vol", &s3.account().options());

    let body = |id: usize| format!(r#"{{"Name":"vol","ID":"{id:064x}"}}"#);
    let all = |method: &str| -> Vec<String> {
        std::thread::scope(|scope| {
            let calls: Vec<_> = (0..64)
                .map(|id| {
                    let daemon = &daemon;
                    scope.spawn(move || daemon.call(method, &body(id)))
                })
                .collect();
            calls
                .into_iter()
                .map(|call| call.join().expect("curl ran"))
                .collect()
        })
    };
    let mounted = all("VolumeDriver.Mount");
    assert!(
        mounted.iter().all(|answer| *answer == mounted[0]),
        "{mounted:?}"
    );
    assert!(mounted[0].contains(r#""Mountpoint":"/"#), "{}", mounted[0]);
    assert_eq!(engine.namespace().fuse_mounts(), 1);

    for answer in all("VolumeDriver.Unmount") {
        assert!(
            !answer.contains(r#""Err":""#) || answer.contains(r#""Err":"""#),
            "{answer}"
        );
    }
    daemon.wait_until_unmounted();
}

#[test]
fn sigterm_drains_and_leaves_no_socket() {
    let (s3, engine) = (LocalS3::start(), Dockerd::start());
    let daemon = Daemon::start(&engine, s3.account());
    engine.create_volume("bucketvol", "vol", &s3.account().options());
    engine.run("vol", "0:0", "echo data >/data/file");

    daemon.stop("TERM");
    assert_eq!(s3.account().get("file").as_deref(), Some(&b"data\n"[..]));
    assert_eq!(engine.namespace().fuse_mounts(), 0);
    // A socket nobody listens on would cost the engine 15 s at every look.
    let mut test = engine.namespace().command(10, "test");
    assert!(
        !test
            .args(["-e", SOCKET])
            .status()
            .expect("test(1) runs")
            .success()
    );
}

/// The whole way of the bytes, at a size that needs parts: container, volume, garage, container, curl.
#[cfg(feature = "s3-tests")]
#[test]
fn a_gibibyte_through_a_volume_on_garage_keeps_its_sha256() {
    let garage = crate::common::garage::Garage::start();
    let engine = Dockerd::start();
    let daemon = Daemon::start(&engine, garage.account());
    engine.create_volume("bucketvol", "vol", &garage.account().options());

    // Random bytes: equal blocks in the wrong place would otherwise go unseen.
    let start = Instant::now();
    let write = "dd if=/dev/urandom of=/tmp/f bs=1M count=1024 2>/dev/null
                 cp /tmp/f /data/big && sync /data/big && sha256sum </tmp/f";
    let written = engine.run("vol", "0:0", write);
    let wrote = start.elapsed();
    daemon.wait_until_unmounted();

    let start = Instant::now();
    let read = engine.run("vol", "0:0", "sha256sum </data/big");
    println!(
        "1 GiB written in {wrote:?}, read back in {:?}",
        start.elapsed()
    );
    assert_eq!(written, read);

    let local = engine.namespace().directory().join("big");
    garage.account().download("big", &local);
    let object = std::fs::File::open(&local).expect("it was downloaded");
    assert_eq!(
        succeed(bounded(120, "sha256sum").stdin(Stdio::from(object))),
        written
    );
}

fn assert_no_secret(text: &str, account: &Account) {
    assert!(
        !text.contains(&account.secret_access_key),
        "a secret is in: {text}"
    );
}
