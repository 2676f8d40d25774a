//! Somebody unmounts while there is no worker: the next one brings what is left into the bucket, and ends for good.

use std::fs;

use nix::mount::{MntFlags, umount2};

use crate::common::mounted::{Mounted, NOBODY};
use crate::common::process::{bounded, succeed};
use crate::common::s3::LocalS3;

#[test]
fn a_mount_that_is_unmounted_while_there_is_no_worker_drains_and_ends() {
    let server = LocalS3::start();
    let mut mounted = Mounted::with(server.account(), "upload_delay=30s");
    fs::write(mounted.path("file"), "written before").expect("a file");
    assert_eq!(server.account().get("file"), None);
    mounted.without_worker(|mount| umount2(mount, MntFlags::UMOUNT_NOFOLLOW).expect("unmounted"));
    assert!(mounted.ended_by_itself(), "{}", mounted.log());
    assert!(!mounted.is_mounted());
    let stored = server.account().get("file");
    assert_eq!(stored.as_deref(), Some(&b"written before"[..]));
}

#[test]
fn a_users_own_mount_that_is_unmounted_while_there_is_no_worker_drains_and_ends() {
    let server = LocalS3::start();
    let mut mounted = Mounted::by(NOBODY, server.account(), "");
    mounted.sh("echo written before >file");
    mounted.without_worker(|mount| {
        let mut unmount = bounded(10, "fusermount3");
        succeed(unmount.arg("-u").arg(mount));
    });
    assert!(mounted.ended_by_itself(), "{}", mounted.log());
    let stored = server.account().get("file");
    assert_eq!(stored.as_deref(), Some(&b"written before\n"[..]));
}

/// The worker that drains after it is killed too: the one after it does not mount anew.
#[test]
fn a_mount_that_has_ended_stays_so_though_the_worker_that_drains_is_killed() {
    let server = LocalS3::start();
    let mut mounted = Mounted::with(server.account(), "upload_delay=30s,part_size=5MiB");
    server.hold_parts_from(1);
    fs::write(mounted.path("file"), vec![7; 12 << 20]).expect("a file");
    umount2(&mounted.path(""), MntFlags::UMOUNT_NOFOLLOW).expect("unmounted");
    for _ in 0..2 {
        mounted.kill_worker();
    }
    server.hold_parts_from(u32::MAX);
    assert!(mounted.ended_by_itself(), "{}", mounted.log());
    assert!(!mounted.is_mounted());
    assert!(server.account().get("file") == Some(vec![7; 12 << 20]));
}
