//! Multipart uploads that were begun are never left behind: nothing shows their parts, and somebody pays for them.

use std::sync::Arc;
use std::time::Duration;

use bucketvol::config::options::WriteOptions;
use bucketvol::fs::Change;
use bucketvol::store::{Bucket, Key, Metadata, StoreError};
use bytes::Bytes;

use crate::common::fault_store::faulty_bucket;
use crate::common::s3_server::S3Server;
use crate::common::test_fs::{PART, TestFs, Unsynced, pattern};

/// Of three parts.
const LARGE: usize = 2 * PART + 5;

/// Keys of the uploads that have not ended.
async fn open_uploads(bucket: &Bucket) -> Vec<String> {
    let page = bucket.list_multipart(None).await.unwrap();
    let keys = page.uploads.into_iter().map(|open| open.key.to_string());
    keys.collect()
}

/// A large file that sets out for the bucket by itself, and does not get there whole.
async fn setting_out(fs: &TestFs, parts: u64) {
    fs.write("a", pattern(LARGE)).await.unwrap();
    fs.clock.advance(Duration::from_millis(100));
    let sent = || fs.bucket.requests().of("put_part");
    fs.eventually(async || sent() >= parts).await;
    assert_eq!(open_uploads(&fs.bucket).await, ["a"]);
}

async fn becomes_whole(fs: &TestFs) {
    fs.drained().await;
    assert!(fs.object("a").await.unwrap() == pattern(LARGE));
    assert_eq!(open_uploads(&fs.bucket).await, [""; 0]);
    assert_eq!(fs.status().pending, []);
}

#[tokio::test]
async fn of_an_upload_that_a_kill_ended_nothing_is_left_and_the_file_gets_there_whole() {
    let (bucket, faults) = faulty_bucket();
    let fs = TestFs::with(bucket, WriteOptions::default()).await;
    faults.hang_after_writes(2);
    setting_out(&fs, 3).await;
    // More than once, and the journal is another one each time.
    let fs = fs.after_crash().await.after_crash().await;
    faults.end();
    becomes_whole(&fs).await;
}

#[tokio::test]
async fn of_an_upload_to_s3_that_a_kill_ended_nothing_is_left() {
    let server = S3Server::start().await;
    let bucket = Arc::new(server.bucket("some/prefix"));
    let fs = TestFs::with(bucket, WriteOptions::default()).await;
    server.hold_parts_from(2);
    setting_out(&fs, 2).await;
    let fs = fs.after_crash().await;
    server.hold_parts_from(u32::MAX);
    becomes_whole(&fs).await;
}

/// The next start would not know of it: the record does not come with the answer.
#[tokio::test]
async fn an_upload_is_in_the_journal_on_the_disk_before_its_first_part_leaves() {
    let (bucket, faults) = faulty_bucket();
    let fs = TestFs::with(bucket, WriteOptions::default()).await;
    faults.hang_after_writes(0);
    setting_out(&fs, 1).await;
    let fs = fs.after_host_crash(Unsynced::Kept).await;
    faults.end();
    becomes_whole(&fs).await;
}

#[tokio::test(start_paused = true)]
async fn an_abort_that_the_store_refuses_is_shown_kept_and_done_later() {
    let (bucket, faults) = faulty_bucket();
    let fs = TestFs::tuned(bucket, |_| {}).await;
    fs.write("a", pattern(LARGE)).await.unwrap();
    faults.deny_aborts(true);
    faults.deny_writes_after(1, 1);
    fs.pass(2).await;
    fs.drain(Duration::from_secs(10)).await.unwrap_err();
    assert!(
        fs.object("a").await.unwrap() == pattern(LARGE),
        "another upload has made it"
    );
    assert_eq!(open_uploads(&fs.bucket).await, ["a"]);
    let shown = |fs: &TestFs| {
        let pending = fs.status().pending;
        assert_eq!(pending.len(), 1, "{pending:?}");
        assert_eq!(
            (pending[0].key.as_str(), pending[0].change),
            ("a", Change::Parts)
        );
        pending[0].reason.clone()
    };
    assert!(shown(&fs).is_some_and(|reason| reason.contains("denied")));

    // The journal is written anew meanwhile: what is settled goes, this stays.
    let busy = fs.create("busy").await.unwrap();
    while fs.journal_bytes() < 9 << 20 {
        for byte in 0..200 {
            busy.write_at(0, [byte; 8]).unwrap();
        }
    }
    busy.close().await.unwrap();
    fs.pass(2).await;
    assert!(fs.journal_bytes() < 1 << 16);

    let fs = fs.after_crash().await;
    shown(&fs);
    fs.pass(2).await;
    assert_eq!(open_uploads(&fs.bucket).await, ["a"]);
    faults.end();
    // With nobody's help.
    fs.settled().await;
    assert_eq!(open_uploads(&fs.bucket).await, [""; 0]);
    assert!(fs.read("a").await.unwrap() == pattern(LARGE));
}

#[tokio::test(start_paused = true)]
async fn parts_that_the_store_does_not_let_go_can_be_left_to_it() {
    let (bucket, faults) = faulty_bucket();
    let fs = TestFs::tuned(bucket, |_| {}).await;
    faults.deny_aborts(true);
    faults.deny_writes_after(1, 1);
    fs.write("a", pattern(LARGE)).await.unwrap();
    fs.drain(Duration::from_secs(10)).await.unwrap_err();
    fs.drain(Duration::from_secs(10)).await.unwrap_err();
    fs.discard(&Key::new("a")).await.unwrap();
    fs.drained().await;
    assert!(fs.read("a").await.unwrap() == pattern(LARGE));
    let fs = fs.after_crash().await;
    assert_eq!(fs.status().pending, []);
    assert_eq!(open_uploads(&fs.bucket).await, ["a"]);
}

/// Nobody's journal knows of an upload that another program began: it is not ours to abort.
#[tokio::test]
async fn uploads_of_others_are_left_alone() {
    let fs = TestFs::memory().await;
    let key = Key::new("a");
    let theirs = fs
        .bucket
        .create_multipart(&key, Metadata::default())
        .await
        .unwrap();
    let body = Bytes::from_static(b"theirs");
    fs.bucket.put_part(&key, &theirs, 1, body).await.unwrap();
    fs.write("a", pattern(LARGE)).await.unwrap();
    let fs = fs.after_crash().await;
    fs.drained().await;
    assert_eq!(open_uploads(&fs.bucket).await, ["a"]);
    assert!(fs.object("a").await.unwrap() == pattern(LARGE));
}

/// Some stores say of an upload that has ended that they do not know it.
#[tokio::test]
async fn an_abort_of_what_is_gone_already_is_no_error() {
    let server = S3Server::start().await;
    for bucket in [Bucket::memory(), server.bucket("")] {
        let key = Key::new("a");
        let upload = bucket
            .create_multipart(&key, Metadata::default())
            .await
            .unwrap();
        for _ in 0..2 {
            let aborted: Result<(), StoreError> = bucket.abort_multipart(&key, &upload).await;
            aborted.unwrap();
        }
    }
}
