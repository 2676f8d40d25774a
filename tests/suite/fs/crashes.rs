//! Every process of the daemon is killed: what was written is there when the next one starts.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use bucketvol::config::options::{Durability, WriteOptions};
use bucketvol::fs::{FsError, RenameMode, RequestId, SetAttr, XattrMode};
use bucketvol::store::Bucket;

use crate::common::fault_store::faulty_bucket;
use crate::common::test_fs::{JOURNAL_HEADER, ROOT, TestFs, Unsynced, pattern};

on_each_store! {
    async fn what_was_written_survives_the_death_of_the_daemon(fs: TestFs) {
        fs.mkdir("d").await.unwrap();
        fs.write("d/old", pattern(300_000)).await.unwrap();
        let old = fs.open("d/old").await.unwrap();
        old.write_at(100_000, b"changed").unwrap();
        let new = fs.create("d/new").await.unwrap();
        new.write_at(10, b"new").unwrap();
        let mode = SetAttr { mode: Some(0o600), ..SetAttr::default() };
        fs.setattr("d/new", mode).await.unwrap();

        let fs = fs.after_crash().await;
        let mut expected = pattern(300_000);
        expected[100_000..100_007].copy_from_slice(b"changed");
        assert!(fs.read("d/old").await.unwrap() == expected);
        assert_eq!(fs.read("d/new").await.unwrap(), b"\0\0\0\0\0\0\0\0\0\0new");
        assert_eq!(fs.attr("d/new").await.unwrap().mode, 0o600);
        assert_eq!(fs.ls("d").await, ["new", "old"]);

        fs.drained().await;
        assert!(fs.object("d/old").await.unwrap() == expected);
        assert_eq!(fs.status().dirty_files, 0);
        let fs = fs.after_crash().await;
        assert_eq!(fs.status().dirty_files, 0, "what is in the bucket is not sent again");
    }
}

on_each_store! {
    async fn a_disk_without_room_for_another_journal_is_no_obstacle(fs: TestFs) {
        fs.mkdir("d").await.unwrap();
        fs.write("d/old", pattern(300_000)).await.unwrap();
        for name in ["gone", "replaced"] {
            fs.write(name, b"x").await.unwrap();
        }
        fs.open("d/old").await.unwrap().write_at(100_000, b"changed").unwrap();
        fs.create("new").await.unwrap().write_at(0, b"new").unwrap();
        let mut expected = pattern(300_000);
        expected[100_000..100_007].copy_from_slice(b"changed");

        let fs = fs.after_crash_without_room().await;
        fs.unlink("gone").await.unwrap();
        fs.rename("new", "replaced").await.unwrap();
        fs.open("d/old").await.unwrap().write_at(0, b"again").unwrap();
        expected[..5].copy_from_slice(b"again");
        // What is new gets no number that something else had.
        fs.create("newer").await.unwrap().write_at(0, b"newer").unwrap();

        let fs = fs.after_crash_without_room().await.after_crash().await;
        assert_eq!(fs.ls("").await, ["d/", "newer", "replaced"]);
        assert!(fs.read("d/old").await.unwrap() == expected);
        assert_eq!(fs.read("replaced").await.unwrap(), b"new");
        fs.drained().await;
        assert_eq!(fs.keys().await, ["d/", "d/old", "newer", "replaced"]);
        assert!(fs.object("d/old").await.unwrap() == expected);
    }
}

/// The first start after it finds out what is lost; the second must not take what was written since for lost.
#[tokio::test]
async fn what_a_crash_of_the_host_took_is_known_to_every_later_process() {
    let bucket = Arc::new(Bucket::memory());
    let write = WriteOptions {
        durability: Durability::Local,
        ..WriteOptions::default()
    };
    let fs = TestFs::with(bucket, write).await;
    let file = fs.create("a").await.unwrap();
    file.write_at(0, pattern(1000)).unwrap();
    file.fsync().await.unwrap();
    fs.note_synced(file.ino);
    file.write_at(0, b"nobody syncs this").unwrap();
    fs.create("b").await.unwrap().fsync().await.unwrap();
    let fs = fs.after_host_crash_without_room(Unsynced::Lost).await;
    assert!(fs.read("a").await.unwrap() == pattern(1000));
    let file = fs.open("a").await.unwrap();
    file.write_at(500, b"since").unwrap();
    let fs = fs.after_crash_without_room().await;
    let mut expected = pattern(1000);
    expected[500..505].copy_from_slice(b"since");
    assert!(fs.read("a").await.unwrap() == expected);
}

on_each_store! {
    async fn what_was_cut_off_does_not_come_back_with_a_crash(fs: TestFs) {
        fs.write("a", pattern(1000)).await.unwrap();
        let file = fs.open("a").await.unwrap();
        let to = |size| SetAttr { size: Some(size), ..SetAttr::default() };
        fs.setattr("a", to(100)).await.unwrap();
        fs.setattr("a", to(200)).await.unwrap();
        let fs2 = fs.after_crash().await;
        let mut expected = pattern(100);
        expected.resize(200, 0);
        assert_eq!(fs2.read("a").await.unwrap(), expected);
        drop(file);
    }
}

on_each_store! {
    async fn names_that_are_gone_do_not_come_back_with_a_crash(fs: TestFs) {
        let gone = fs.create("gone").await.unwrap();
        gone.write_at(0, b"x").unwrap();
        let moved = fs.create("moved").await.unwrap();
        moved.write_at(0, b"y").unwrap();
        fs.unlink("gone").await.unwrap();
        fs.rename("moved", "here").await.unwrap();
        gone.write_at(1, b"x").unwrap();
        moved.write_at(1, b"y").unwrap();
        let fs = fs.after_crash().await;
        assert_eq!(fs.ls("").await, ["here"]);
        assert_eq!(fs.read("here").await.unwrap(), b"yy");
        fs.drained().await;
        assert_eq!(fs.keys().await, ["here"]);
    }
}

#[tokio::test]
async fn a_journal_that_cannot_be_read_makes_the_volume_read_only_and_says_so() {
    let fs = TestFs::memory().await;
    fs.write("a", b"1").await.unwrap();
    let file = fs.open("a").await.unwrap();
    file.write_at(0, b"2").unwrap();
    let damaged = fs
        .after_damage(b"no journal at all, and longer than a header is by far")
        .await;
    assert_eq!(damaged.read("a").await.unwrap(), b"1");
    assert!(matches!(damaged.create("b").await, Err(FsError::ReadOnly)));
    let reason = damaged.status().last_error.unwrap();
    assert!(
        reason.contains("read-only") && reason.contains("is no journal"),
        "{reason}"
    );
}

/// The end of the upload is not on the disk when the host goes down, nor is what was staged: the object has it.
#[tokio::test]
async fn what_an_upload_has_sent_is_not_overwritten_by_zeros_when_the_host_goes_down_after_it() {
    let bucket = Arc::new(Bucket::memory());
    for changed_again in [false, true] {
        let fs = TestFs::with(Arc::clone(&bucket), WriteOptions::default()).await;
        let file = fs.create("a").await.unwrap();
        file.write_at(0, pattern(1000)).unwrap();
        file.fsync().await.unwrap();
        if changed_again {
            file.write_at(500, b"nobody syncs this").unwrap();
        }
        fs.create("b")
            .await
            .unwrap()
            .write_at(0, b"nor this")
            .unwrap();
        let fs = fs.after_host_crash(Unsynced::Lost).await;
        assert!(fs.read("a").await.unwrap() == pattern(1000));
        fs.drained().await;
        assert!(fs.object("a").await.unwrap() == pattern(1000));
        assert_eq!(fs.keys().await, ["a"]);
        fs.unlink("a").await.unwrap();
        fs.drained().await;
    }
}

#[tokio::test]
async fn with_durability_local_a_file_renamed_over_another_is_one_of_both_when_the_host_goes_down()
{
    let write = WriteOptions {
        durability: Durability::Local,
        ..WriteOptions::default()
    };
    let bucket = Arc::new(Bucket::memory());
    let fs = TestFs::with(bucket, write).await;
    for (name, len) in [("a", 1000), ("a.new", 2000)] {
        let file = fs.create(name).await.unwrap();
        file.write_at(0, pattern(len)).unwrap();
        file.fsync().await.unwrap();
        file.close().await.unwrap();
    }
    fs.rename("a.new", "a").await.unwrap();
    let fs = fs.after_host_crash(Unsynced::Kept).await;
    assert!(fs.read("a").await.unwrap() == pattern(1000));
    assert!(fs.read("a.new").await.unwrap() == pattern(2000));
    // Once more, and the disk has heard of it.
    fs.rename("a.new", "a").await.unwrap();
    let other = fs.create("b").await.unwrap();
    other.fsync().await.unwrap();
    other
        .write_at(0, b"the journal says how far it was synced")
        .unwrap();
    let fs = fs.after_host_crash(Unsynced::Kept).await;
    assert!(fs.read("a").await.unwrap() == pattern(2000));
    assert_eq!(fs.ls("").await, ["a", "b"]);
    fs.drained().await;
    assert_eq!(fs.staged_bytes(), 0);
}

/// Closed files reach the bucket with nobody's help.
#[tokio::test]
async fn a_closed_file_sets_out_after_the_delay_and_an_open_one_when_it_is_old() {
    let bucket = Arc::new(Bucket::memory());
    let fs = TestFs::with(bucket, WriteOptions::default()).await;
    fs.write("closed", b"1").await.unwrap();
    let open = fs.create("open").await.unwrap();
    open.write_at(0, b"2").unwrap();
    assert_eq!(fs.keys().await, [""; 0], "close does not wait");
    fs.clock.advance(Duration::from_millis(100));
    fs.eventually(async || fs.keys().await == ["closed"]).await;
    fs.clock.advance(Duration::from_secs(30));
    fs.eventually(async || fs.keys().await == ["closed", "open"])
        .await;
}

#[tokio::test]
async fn with_durability_local_an_fsync_waits_for_no_store() {
    let write = WriteOptions {
        durability: Durability::Local,
        ..WriteOptions::default()
    };
    let bucket = Arc::new(Bucket::memory());
    let fs = TestFs::with(bucket, write).await;
    let file = fs.create("a").await.unwrap();
    file.write_at(0, b"1").unwrap();
    file.fsync().await.unwrap();
    assert_eq!(fs.keys().await, [""; 0]);
    file.write_at(0, b"2").unwrap();
    assert_eq!(fs.after_crash().await.read("a").await.unwrap(), b"2");
}

#[tokio::test]
async fn a_journal_that_has_grown_long_over_what_is_settled_is_written_anew() {
    let bucket = Arc::new(Bucket::memory());
    let fs = TestFs::with(bucket, WriteOptions::default()).await;
    let kept = fs.create("kept").await.unwrap();
    kept.write_at(0, b"kept").unwrap();
    let busy = fs.create("busy").await.unwrap();
    while fs.journal_bytes() < 9 << 20 {
        for byte in 0..200 {
            busy.write_at(0, [byte; 8]).unwrap();
        }
    }
    busy.close().await.unwrap();
    fs.clock.advance(Duration::from_millis(100));
    fs.eventually(async || fs.journal_bytes() < 1 << 16).await;
    kept.write_at(4, b" on").unwrap();
    let fs = fs.after_crash().await;
    assert_eq!(fs.read("kept").await.unwrap(), b"kept on");
    assert_eq!(fs.read("busy").await.unwrap(), [199; 8]);
}

/// Killed between any two writes to its journal: what the kernel asks again was done or is still to be done, never half.
#[tokio::test]
async fn a_request_is_done_and_known_to_be_or_was_never_heard_of() {
    let (bucket, faults) = faulty_bucket();
    let fs = TestFs::with(bucket, WriteOptions::default()).await;
    for directory in ["full", "empty", "gone", "directory"] {
        fs.mkdir(directory).await.unwrap();
    }
    for file in ["full/file", "a", "b", "c", "cut", "clean", "file"] {
        fs.write(file, file).await.unwrap();
    }
    fs.drained().await;
    faults.deny_writes(u32::MAX);
    let fs = fs.reopened().await;
    let id = |unique| RequestId::new(7, unique);
    let cut = SetAttr {
        size: Some(1),
        ..SetAttr::default()
    };
    let exchange = RenameMode::Exchange;
    id(1).scope(fs.create("new")).await.unwrap();
    id(2).scope(fs.mkdir("made")).await.unwrap();
    id(3).scope(fs.rename("a", "b")).await.unwrap();
    id(4).scope(fs.rename("full", "empty")).await.unwrap();
    id(5).scope(fs.unlink("c")).await.unwrap();
    id(6).scope(fs.rmdir("gone")).await.unwrap();
    id(7).scope(fs.setattr("cut", cut)).await.unwrap();
    let exchanged = fs.rename_as("file", "directory", exchange);
    id(8).scope(exchanged).await.unwrap();
    let set = |ino, name, value| {
        let fs = &fs;
        async move {
            let name = OsStr::new(name);
            fs.setxattr_as(ino, name, value, XattrMode::Create).await
        }
    };
    let (cut_ino, made) = (fs.ino("cut").await.unwrap(), fs.ino("made").await.unwrap());
    let clean = fs.ino("clean").await.unwrap();
    let attribute = "user.a";
    id(10).scope(set(cut_ino, attribute, b"1")).await.unwrap();
    id(11).scope(set(made, attribute, b"2")).await.unwrap();
    id(12).scope(set(clean, attribute, b"3")).await.unwrap();
    let removed = fs.removexattr("cut", attribute);
    id(13).scope(removed).await.unwrap();
    id(14).scope(set(ROOT, attribute, b"4")).await.unwrap();
    let (from, to) = (
        fs.open("clean").await.unwrap(),
        fs.create("copy").await.unwrap(),
    );
    id(15).scope(from.copy_to(1, &to, 3, 4)).await.unwrap();
    let failed = id(9).scope(fs.unlink("c")).await;
    assert!(matches!(failed, Err(FsError::NoEntry)));

    let journal = fs.journal();
    let mut known = 0;
    let cuts = (JOURNAL_HEADER..journal.len()).step_by(7);
    for cut in cuts.chain([journal.len()]) {
        let fs = fs.after_damage(&journal[..cut]).await;
        let ls = fs.ls("").await;
        let is_there = |name: &str| ls.iter().any(|entry| entry == name);
        let done = |unique| fs.was_done(id(unique));
        assert_eq!(is_there("new"), done(1), "{cut}");
        assert_eq!(is_there("made/"), done(2), "{cut}");
        assert_eq!(is_there("a"), !done(3), "{cut}");
        let b = if done(3) { "a" } else { "b" };
        assert_eq!(fs.read("b").await.unwrap(), b.as_bytes(), "{cut}");
        assert_eq!(is_there("full/"), !done(4), "{cut}");
        assert_eq!(fs.ls("empty").await.is_empty(), !done(4), "{cut}");
        assert_eq!(is_there("c"), !done(5), "{cut}");
        assert_eq!(is_there("gone/"), !done(6), "{cut}");
        assert_eq!(fs.read("cut").await.unwrap().len() == 1, done(7), "{cut}");
        assert_eq!(is_there("file/"), done(8), "{cut}");
        assert_eq!(is_there("directory"), done(8), "{cut}");
        let has = async |path| !fs.xattrs(path).await.unwrap().is_empty();
        assert_eq!(has("cut").await, done(10) && !done(13), "{cut}");
        assert_eq!(done(2) && has("made").await, done(11), "{cut}");
        assert_eq!(has("clean").await, done(12), "{cut}");
        assert_eq!(has("").await, done(14), "{cut}");
        let copy = fs.read("copy").await.unwrap_or_default();
        assert_eq!(copy == b"\0\0\0lean", done(15), "{cut}");
        assert!(!done(9), "it did nothing");
        known = (1..=15).filter(|unique| done(*unique)).count();
    }
    assert_eq!(known, 14);
    // Whoever dies before it has answered the kernel leaves it to the next one.
    let fs = fs.after_crash().await.after_crash().await;
    assert!((1..=15).all(|unique| fs.was_done(id(unique)) || unique == 9));
}

/// Killed between any two writes to its journal at the first change of a file: the next process finds a file that is
/// perhaps as its object is, changes it, and is killed too.
#[tokio::test]
async fn what_is_written_after_a_crash_at_the_first_change_of_a_file_survives_another() {
    let (bucket, faults) = faulty_bucket();
    let fs = TestFs::with(bucket, WriteOptions::default()).await;
    fs.write("a", pattern(1000)).await.unwrap();
    fs.drained().await;
    faults.deny_writes(u32::MAX);
    let fs = fs.reopened().await;
    let file = fs.open("a").await.unwrap();
    file.write_at(1000, b"lost, or not").unwrap();
    let journal = fs.journal();
    for cut in JOURNAL_HEADER..=journal.len() {
        let fs = fs.after_damage(&journal[..cut]).await;
        let file = fs.open("a").await.unwrap();
        file.write_at(500, b"more").unwrap();
        // Staging files that are of no use go meanwhile.
        tokio::time::sleep(Duration::from_millis(5)).await;
        let fs = fs.after_crash().await;
        let read = fs.read("a").await.expect("no byte is missing");
        assert_eq!(read[500..504], *b"more", "{cut}");
        assert_eq!(read[..500], pattern(1000)[..500], "{cut}");
    }
}
