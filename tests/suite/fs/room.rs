//! What staging files take of the disk.

use std::sync::Arc;
use std::time::Duration;

use bucketvol::config::options::{Durability, WriteOptions};
use bucketvol::store::Bucket;

use crate::common::fault_store::{Outage, faulty_bucket};
use crate::common::test_fs::{TestFs, Unsynced};

const PAGE: usize = 8192;

/// A database's file is never clean: while one of its pages is on its way the next is written.
#[tokio::test]
async fn a_file_that_is_written_without_a_pause_takes_no_more_room_than_what_is_not_sent() {
    let (bucket, faults) = faulty_bucket();
    let fs = TestFs::on(bucket).await;
    let file = fs.create("a").await.unwrap();
    faults.delay(Duration::from_millis(5));
    for round in 1..=100 {
        file.write_at(0, [round; 16 * PAGE]).unwrap();
        let written_meanwhile = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            file.write_at(16 * PAGE as u64, [round; 16 * PAGE]).unwrap();
        };
        let (sent, ()) = tokio::join!(file.fsync(), written_meanwhile);
        sent.unwrap();
        assert!(fs.status().dirty_files == 1, "it is never clean");
    }
    fs.eventually(async || fs.staged_bytes() <= 64 * PAGE as u64)
        .await;
    assert_eq!(file.read_all().await.unwrap(), [100; 32 * PAGE]);
    let fs = fs.after_crash().await;
    assert_eq!(fs.read("a").await.unwrap(), [100; 32 * PAGE]);
    fs.drained().await;
    assert_eq!(fs.object("a").await.unwrap(), [100; 32 * PAGE]);
}

/// What somebody was told that the disk has is not written over: each commit takes room of its own.
#[tokio::test]
async fn a_thousand_commits_while_the_store_is_away_take_no_more_room_than_the_file() {
    let (bucket, faults) = faulty_bucket();
    let fs = TestFs::with(bucket, local()).await;
    let file = fs.create("a").await.unwrap();
    faults.out(Outage::Away);
    for commit in 0..1000_u64 {
        let page = commit % 16 * PAGE as u64;
        file.write_at(page, [commit.to_le_bytes()[0]; PAGE])
            .unwrap();
        file.fsync().await.unwrap();
    }
    fs.note_synced(file.ino);
    let room = fs.staged_bytes();
    assert!(room <= 64 * PAGE as u64, "{room}");
    let expected = file.read_all().await.unwrap();
    // Of what is written now nobody is told that it is there.
    file.write_at(0, [0; 16 * PAGE]).unwrap();
    faults.end();
    let fs = fs.after_host_crash(Unsynced::Lost).await;
    let pages = |bytes: &[u8]| bytes.iter().step_by(PAGE).copied().collect::<Vec<_>>();
    assert_eq!(pages(&fs.read("a").await.unwrap()), pages(&expected));
    assert!(fs.read("a").await.unwrap() == expected);
    fs.drained().await;
    assert!(fs.object("a").await.unwrap() == expected);
}

/// Files that are synced by whoever writes them leave nothing for the uploads in the background.
#[tokio::test]
async fn the_journal_stays_short_where_every_file_is_synced_at_once() {
    let fs = TestFs::on(Arc::new(Bucket::memory())).await;
    let file = fs.create("a").await.unwrap();
    let mut longest = 0;
    for change in 0..24_000_u32 {
        let value = [change.to_le_bytes()[0]; 500];
        fs.setxattr("a", "user.a", &value).await.unwrap();
        if change % 100 == 0 {
            file.fsync().await.unwrap();
        }
        longest = longest.max(fs.journal_bytes());
    }
    assert!(
        longest < 10 << 20,
        "{longest} of more than {}",
        24_000 * 500
    );
}

fn local() -> WriteOptions {
    WriteOptions {
        durability: Durability::Local,
        ..WriteOptions::default()
    }
}
