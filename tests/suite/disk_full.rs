//! The disk that the daemon keeps its state on is full, because somebody else has filled it to the last byte.
//!
//! Needs root and /dev/fuse.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;

use crate::common::mounted::Mounted;
use crate::common::s3::LocalS3;

/// The disk holds the rest back for nobody, and a write gives up soon.
const OPTIONS: &str = "min_free=0,fsync_timeout=2s,part_size=5MiB";

/// Bytes of a file that goes up in parts.
const LARGE: usize = 12 << 20;

fn bytes(len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| u8::try_from(i % 251).expect("below 251"))
        .collect()
}

/// Fills the disk to the last byte.
fn fill(mounted: &Mounted) {
    let hog = mounted.disk("hog");
    let mut hog = OpenOptions::new()
        .create(true)
        .append(true)
        .open(hog)
        .expect("a file");
    for step in [1 << 20, 4096, 1] {
        loop {
            match hog.write_all(&vec![1; step]) {
                Ok(()) => {}
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
                    break;
                }
            }
        }
    }
}

fn is_full<T>(done: std::io::Result<T>) -> bool {
    matches!(done, Err(error) if error.kind() == ErrorKind::StorageFull)
}

/// Files of all kinds, of which the large one is on its way for as long as the store holds it up, and no room left.
fn on_a_full_disk(server: &LocalS3) -> Mounted {
    let mounted = Mounted::with_disk(server.account(), OPTIONS, 128);
    for name in ["read", "gone", "from", "cut", "mode"] {
        let mut file = File::create(mounted.path(name)).expect("create");
        file.write_all(name.as_bytes()).expect("write");
        file.sync_all().expect("fsync");
    }
    server.hold_parts_from(1);
    fs::write(mounted.path("large"), bytes(LARGE)).expect("it is staged");
    fill(&mounted);
    mounted
}

fn what_makes_room_works(mounted: &Mounted) {
    assert_eq!(fs::read(mounted.path("read")).expect("read"), b"read");
    assert!(fs::read(mounted.path("large")).expect("what is staged is read") == bytes(LARGE));

    fs::remove_file(mounted.path("gone")).expect("unlink");
    // More records than a block of the disk holds that happens to be there.
    let (from, to) = (mounted.path("from"), mounted.path("to"));
    for _ in 0..200 {
        fs::rename(&from, &to).expect("rename");
        fs::rename(&to, &from).expect("rename");
    }
    fs::rename(&from, &to).expect("rename");
    let cut = OpenOptions::new()
        .write(true)
        .open(mounted.path("cut"))
        .expect("open");
    cut.set_len(1).expect("truncate");
    cut.sync_all().expect("fsync");
    drop(cut);
    let mode = fs::Permissions::from_mode(0o600);
    fs::set_permissions(mounted.path("mode"), mode).expect("chmod");

    let file = OpenOptions::new()
        .append(true)
        .open(mounted.path("read"))
        .expect("open");
    assert!(
        is_full((&file).write_all(&[2; 100_000])),
        "there is no room for it"
    );
    file.sync_all()
        .expect("nothing of it is there, so nothing is to be sent");
    assert_eq!(fs::read(mounted.path("read")).expect("read"), b"read");
}

fn what_was_done_holds(mounted: &Mounted) {
    let mut names: Vec<_> = fs::read_dir(mounted.path(""))
        .expect("readdir")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["cut", "large", "mode", "read", "to"]);
    assert!(fs::read(mounted.path("large")).expect("read") == bytes(LARGE));
    for (name, content) in [
        ("cut", "c"),
        ("mode", "mode"),
        ("read", "read"),
        ("to", "from"),
    ] {
        assert_eq!(
            fs::read(mounted.path(name)).expect("read"),
            content.as_bytes(),
            "{name}"
        );
    }
    let mode = fs::metadata(mounted.path("mode"))
        .expect("stat")
        .permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
}

/// The store takes what it was sent: that makes room, and all ends well.
fn ends_well(server: &LocalS3, mut mounted: Mounted) {
    server.hold_parts_from(u32::MAX);
    server.account().becomes("large", Some(&bytes(LARGE)));
    what_was_done_holds(&mounted);
    let file = OpenOptions::new()
        .append(true)
        .open(mounted.path("read"))
        .expect("open");
    (&file)
        .write_all(&[2; 100_000])
        .expect("there is room again");
    drop(file);
    mounted.unmount();
    let account = server.account();
    for (key, bytes) in [
        ("cut", Some("c")),
        ("gone", None),
        ("from", None),
        ("to", Some("from")),
    ] {
        assert_eq!(
            account.get(key).as_deref(),
            bytes.map(str::as_bytes),
            "{key}"
        );
    }
    assert!(account.get("read").expect("it is there").len() == 100_004);
    assert!(account.get("large").expect("it is there") == bytes(LARGE));
}

#[test]
fn what_makes_room_works_on_a_full_disk_and_nothing_is_lost() {
    let server = LocalS3::start();
    let mounted = on_a_full_disk(&server);
    what_makes_room_works(&mounted);
    what_was_done_holds(&mounted);
    ends_well(&server, mounted);
}

#[test]
fn attributes_are_shown_on_a_full_disk_though_they_cannot_be_kept() {
    let server = LocalS3::start();
    let mut mounted = on_a_full_disk(&server);
    for name in ["a", "b", "c"] {
        server.account().put_with(name, &[("mode", "33152")], b"x");
    }
    std::thread::sleep(std::time::Duration::from_secs(4));
    for _ in 0..3 {
        let shown = mounted.sh("ls -l a b c");
        assert_eq!(shown.matches("-rw------- ").count(), 3, "{shown}");
        std::thread::sleep(std::time::Duration::from_millis(1200));
    }
    server.hold_parts_from(u32::MAX);
    mounted.unmount();
}

#[test]
fn a_daemon_that_is_killed_on_a_full_disk_starts_again() {
    let server = LocalS3::start();
    let mut mounted = on_a_full_disk(&server);
    what_makes_room_works(&mounted);
    for _ in 0..2 {
        mounted.kill();
        fill(&mounted);
        mounted.mount_after_kill();
        what_was_done_holds(&mounted);
    }
    ends_well(&server, mounted);
}

/// What is kept back is not for ever. When it is gone, what cannot be written down is not done.
#[test]
fn when_nothing_is_left_to_write_a_change_down_it_is_refused_and_nothing_is_half_done() {
    let server = LocalS3::start();
    let mounted = Mounted::with_disk(server.account(), OPTIONS, 16);
    for name in ["a", "b"] {
        fs::write(mounted.path(name), name).expect("write");
        server.account().becomes(name, Some(name.as_bytes()));
    }
    fill(&mounted);
    let (a, b) = (mounted.path("a"), mounted.path("b"));
    let mut changed = 0_u32;
    let refused = loop {
        let mode = fs::Permissions::from_mode(0o600 | (changed % 8));
        match fs::set_permissions(&b, mode) {
            Ok(()) => changed += 1,
            Err(error) => break error,
        }
        // They go to the store meanwhile, and it says so in the journal.
        assert!(changed < 1_000_000, "the journal never ends");
    };
    assert_eq!(refused.kind(), ErrorKind::StorageFull);
    let mode = fs::metadata(&b).expect("stat").permissions().mode();
    assert_eq!(
        mode & 0o777,
        0o600 | ((changed - 1) % 8),
        "it is what it was last"
    );
    assert_eq!(fs::read(&b).expect("what was sent meanwhile"), b"b");
    // Whoever wants to make something was refused long before.
    assert!(is_full(File::create(mounted.path("new"))));
    // A shorter record may have had room.
    let (mut is, mut other) = (a, mounted.path("c"));
    while let Ok(()) = fs::rename(&is, &other) {
        std::mem::swap(&mut is, &mut other);
    }
    assert_eq!(
        fs::read(&is).expect("read"),
        b"a",
        "it has the name it was given last"
    );
    assert!(!other.exists());

    fs::remove_file(mounted.disk("hog")).expect("somebody makes room");
    fs::remove_file(&is).expect("unlink");
    fs::write(mounted.path("new"), "new").expect("create");
    for name in ["a", "c"] {
        server.account().becomes(name, None);
    }
    server.account().becomes("new", Some(b"new"));
    assert_eq!(fs::read(&b).expect("read"), b"b");
}
