use std::sync::Arc;
use std::time::Duration;

use bucketvol::config::options::{MinFree, WriteOptions};
use bucketvol::fs::{Change, FsError, SetAttr, StagingBudget};
use bucketvol::store::{Bucket, Key, StoreError};

use crate::common::fault_store::{Faults, faulty_bucket};
use crate::common::test_fs::{PART, TestFs, pattern};

async fn faulty() -> (TestFs, Arc<Faults>) {
    let (bucket, faults) = faulty_bucket();
    (TestFs::on(bucket).await, faults)
}

fn is_denied<T>(done: &Result<T, FsError>) -> bool {
    matches!(
        done,
        Err(FsError::Store(StoreError::Refused { denied: true, .. }))
    )
}

#[tokio::test]
async fn an_fsync_that_fails_says_so_and_the_next_one_sends_the_bytes() {
    for size in [5, PART * 2 + 5] {
        let (fs, faults) = faulty().await;
        let file = fs.create("a").await.unwrap();
        file.write_at(0, pattern(size)).unwrap();
        faults.deny_writes(1);
        assert!(is_denied(&file.fsync().await));
        assert_eq!(fs.status().dirty_files, 1);
        assert_eq!(file.read_all().await.unwrap().len(), size);
        file.fsync().await.unwrap();
        file.close().await.unwrap();
        assert!(fs.object("a").await.unwrap() == pattern(size));
        assert_eq!(fs.status().dirty_files, 0);
    }
}

#[tokio::test]
async fn a_close_that_fails_says_so_and_a_drain_sends_the_bytes() {
    let (fs, faults) = faulty().await;
    let file = fs.create("a").await.unwrap();
    file.write_at(0, b"kept").unwrap();
    faults.deny_writes(1);
    assert!(is_denied(&file.close().await));
    assert_eq!(fs.read("a").await.unwrap(), b"kept");
    fs.drain(Duration::from_secs(10)).await.unwrap();
    assert_eq!(fs.object("a").await.as_deref(), Some(&b"kept"[..]));
}

#[tokio::test]
async fn a_chmod_that_the_store_refuses_is_kept_named_and_sent_later() {
    let (fs, faults) = faulty().await;
    fs.write("a", b"x").await.unwrap();
    let change = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    faults.deny_writes(1);
    fs.setattr("a", change).await.unwrap();
    assert!(is_denied(&fs.drain(Duration::from_secs(10)).await));
    assert_eq!(fs.attr("a").await.unwrap().mode, 0o600);
    assert_eq!(fs.status().dirty_files, 1);
    fs.drained().await;
    assert_eq!(fs.other_host().await.attr("a").await.unwrap().mode, 0o600);
}

#[tokio::test]
async fn what_is_removed_while_the_store_refuses_is_gone_here_and_goes_there_later() {
    let (fs, faults) = faulty().await;
    fs.write("a", b"x").await.unwrap();
    fs.mkdir("d").await.unwrap();
    faults.deny_writes(100);
    fs.rmdir("d").await.unwrap();
    fs.unlink("a").await.unwrap();
    fs.let_ttl_pass();
    assert_eq!(fs.keys().await, ["a", "d/"]);
    assert_eq!(fs.ls("").await, [""; 0]);
    let fs = fs.after_crash().await;
    assert_eq!(fs.ls("").await, [""; 0]);
    faults.deny_writes(0);
    fs.drained().await;
    assert_eq!(fs.keys().await, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn an_open_file_that_loses_its_name_under_its_upload_keeps_its_bytes() {
    let (bucket, faults) = faulty_bucket();
    let fs = TestFs::with(bucket, WriteOptions::default()).await;
    let file = fs.create("a").await.unwrap();
    file.write_at(0, pattern(PART * 2 + 5)).unwrap();
    faults.delay(Duration::from_secs(1));
    let (synced, removed) = tokio::join!(file.fsync(), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        fs.unlink("a").await
    });
    synced.and(removed).unwrap();
    faults.end();
    fs.pass(60).await;
    assert!(file.read_all().await.unwrap() == pattern(PART * 2 + 5));
    file.close().await.unwrap();
    fs.settled().await;
    assert_eq!(fs.keys().await, [""; 0]);
}

/// Both files are gone when it is known what became of the first one's upload.
#[tokio::test(start_paused = true)]
async fn of_two_uploads_in_doubt_at_one_key_nothing_is_left() {
    let (bucket, faults) = faulty_bucket();
    let write = WriteOptions {
        upload_delay: Duration::ZERO,
        ..WriteOptions::default()
    };
    let fs = TestFs::with(bucket, write).await;
    faults.lose_an_answer_and_go(0);
    for bytes in [b"one", b"two"] {
        fs.write("a", bytes).await.unwrap();
        fs.pass(180).await;
        assert!(faults.has_gone());
        fs.unlink("a").await.unwrap();
    }
    faults.end();
    let fs = fs.after_crash().await;
    fs.settled().await;
    assert_eq!(fs.keys().await, [""; 0]);
}

#[tokio::test]
async fn a_file_whose_removal_the_store_refuses_does_not_come_back_with_the_next_process() {
    let (fs, faults) = faulty().await;
    fs.write("a", b"x").await.unwrap();
    faults.deny_writes(1000);
    fs.unlink("a").await.unwrap();
    let fs = fs.reopened().await;
    assert_eq!(fs.ls("").await, [""; 0]);
    faults.deny_writes(0);
    fs.drained().await;
    assert_eq!(fs.keys().await, [""; 0]);
}

#[tokio::test]
async fn a_directory_whose_objects_are_refused_midway_has_its_new_name_and_all_its_files() {
    let (fs, faults) = faulty().await;
    for i in 0..20 {
        fs.put_object(&format!("d/{i:02}"), b"x").await;
    }
    faults.deny_writes_after(7, 100);
    fs.rename("d", "e").await.unwrap();
    assert!(is_denied(&fs.drain(Duration::from_secs(10)).await));
    // Seven copies are there, of which nobody hears.
    assert_eq!(fs.keys().await.len(), 27);
    let fs = fs.after_crash().await.after_crash().await;
    {
        fs.let_ttl_pass();
        assert_eq!(fs.ls("").await, ["e/"]);
        assert_eq!(fs.ls("e").await.len(), 20);
        assert_eq!(fs.read("e/13").await.unwrap(), b"x");
        // What had its name meanwhile.
        fs.rename("e", "f").await.unwrap();
        fs.unlink("f/00").await.unwrap();
        fs.unlink("f/19").await.unwrap();
        assert_eq!(fs.ls("").await, ["f/"]);
        faults.deny_writes(0);
        let before = fs.bucket.requests().of("copy");
        fs.drained().await;
        // What was copied before is not copied again; then all go where the second rename has brought them.
        assert!(fs.bucket.requests().of("copy") - before <= 13 + 18);
        let expected: Vec<String> = (1..19).map(|i| format!("f/{i:02}")).collect();
        assert_eq!(fs.keys().await, expected);
        assert_eq!(fs.ls("").await, ["f/"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_is_an_error_in_time() {
    let (fs, faults) = faulty().await;
    fs.write("a", b"x").await.unwrap();
    let file = fs.open("a").await.unwrap();
    file.write_at(0, b"y").unwrap();
    faults.hang(true);
    let begun = tokio::time::Instant::now();
    assert!(matches!(file.fsync().await, Err(FsError::TimedOut(_))));
    assert!(
        begun.elapsed() < Duration::from_secs(30),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(
        file.read_at(0, 1).await.unwrap(),
        b"y",
        "what is staged needs no store"
    );
    faults.hang(false);
    file.fsync().await.unwrap();
    assert_eq!(fs.object("a").await.as_deref(), Some(&b"y"[..]));
}

#[tokio::test]
async fn more_than_may_be_staged_is_written_at_the_pace_of_the_store() {
    const LIMIT: u64 = 8 << 20;
    const STEP: u64 = 1 << 20;
    let fs = TestFs::tuned(Arc::new(Bucket::memory()), |settings| {
        settings.staging = StagingBudget::new(LIMIT, MinFree::Bytes(0));
    })
    .await;
    let bytes = pattern(40 << 20);
    let file = fs.create("a").await.unwrap();
    for (step, offset) in bytes.chunks(1 << 20).zip((0..).step_by(1 << 20)) {
        fs.room_for(STEP).await.unwrap();
        file.write_at(offset, step).unwrap();
        assert!(fs.staged_bytes() <= LIMIT, "{} staged", fs.staged_bytes());
    }
    file.close().await.unwrap();
    fs.drained().await;
    assert!(fs.object("a").await.unwrap() == bytes);
    assert_eq!(fs.staged_bytes(), 0);
}

#[tokio::test]
async fn where_the_store_takes_nothing_writing_is_an_error_in_time_and_nothing_is_lost() {
    let (bucket, faults) = faulty_bucket();
    let fs = TestFs::tuned(bucket, |settings| {
        settings.staging = StagingBudget::new(1 << 20, MinFree::Bytes(0));
        settings.fsync_timeout = Duration::from_millis(300);
    })
    .await;
    let bytes = pattern(1 << 20);
    let file = fs.create("a").await.unwrap();
    file.write_at(0, &bytes).unwrap();
    faults.deny_writes(1000);
    assert!(!fs.has_room_for(1));
    assert!(matches!(fs.room_for(1).await, Err(FsError::NoRoom(_))));
    faults.deny_writes(0);
    fs.drained().await;
    assert!(fs.object("a").await.unwrap() == bytes);
    fs.room_for(1).await.unwrap();
}

#[tokio::test]
async fn what_waits_is_listed_with_its_reason() {
    let (bucket, faults) = faulty_bucket();
    let fs = TestFs::tuned(bucket, |_| {}).await;
    for name in ["gone", "moved", "refused"] {
        fs.write(name, b"12345").await.unwrap();
    }
    fs.drained().await;
    assert_eq!(fs.status().pending, []);
    let file = fs.open("refused").await.unwrap();
    file.write_at(0, b"abc").unwrap();
    faults.deny_writes(1);
    assert!(is_denied(&file.fsync().await));
    fs.unlink("gone").await.unwrap();
    fs.rename("moved", "name").await.unwrap();
    let status = fs.status();
    assert_eq!(status.pending_changes, 3);
    let listed: Vec<_> = status
        .pending
        .iter()
        .map(|pending| (pending.key.as_str(), pending.change, pending.bytes))
        .collect();
    assert_eq!(
        listed,
        [
            ("gone", Change::Removal, 0),
            ("name", Change::Name, 0),
            ("refused", Change::Content, 3)
        ]
    );
    assert!(
        status.pending[2]
            .reason
            .as_ref()
            .is_some_and(|r| r.contains("denied"))
    );
    fs.drained().await;
    assert_eq!(fs.status().pending_changes, 0);
}

#[tokio::test]
async fn a_change_that_the_store_refuses_is_exported_whole_and_given_up() {
    let (fs, faults) = faulty().await;
    let before = pattern(3 << 20);
    fs.write("changed", &before).await.unwrap();
    fs.write("removed", b"still there").await.unwrap();
    faults.deny_writes(u32::MAX);
    let file = fs.open("changed").await.unwrap();
    file.write_at(1 << 20, b"ours").unwrap();
    fs.write("new", b"never sent").await.unwrap_err();
    fs.unlink("removed").await.unwrap();

    let to = |name: &str| fs.staging_dir().join(name);
    let (changed, new, removed) = (Key::new("changed"), Key::new("new"), Key::new("removed"));
    assert_eq!(fs.export(&changed, &to("changed")).await.unwrap(), []);
    let mut ours = before.clone();
    ours[1 << 20..(1 << 20) + 4].copy_from_slice(b"ours");
    assert!(std::fs::read(to("changed")).unwrap() == ours);
    assert_eq!(fs.export(&new, &to("new")).await.unwrap(), []);
    assert_eq!(std::fs::read(to("new")).unwrap(), b"never sent");
    assert!(
        fs.export(&new, &to("new")).await.is_err(),
        "it overwrites nothing"
    );
    let unknown = fs.export(&Key::new("unknown"), &to("unknown")).await;
    assert!(matches!(unknown, Err(FsError::NoEntry)));

    for key in [&changed, &new, &removed] {
        fs.discard(key).await.unwrap();
    }
    assert!(matches!(file.write_at(0, b"more"), Err(FsError::Stale)));
    let _ = file.close().await;
    assert_eq!(fs.status().pending, []);
    let fs = fs.after_crash().await;
    assert_eq!(fs.ls("").await, ["changed", "removed"]);
    assert!(fs.read("changed").await.unwrap() == before);
    assert_eq!(fs.read("removed").await.unwrap(), b"still there");
}
