use std::sync::Arc;

use bucketvol::config::options::{Conflicts, Durability, WriteOptions};
use bucketvol::fs::{FsError, SetAttr};
use bucketvol::store::Bucket;

use crate::common::test_fs::{TestFs, pattern};

on_each_store! {
    async fn another_hosts_change_is_seen_at_the_first_lookup_after_the_ttl(fs: TestFs) {
        let other = fs.other_host().await;
        fs.write("a", b"one").await.unwrap();
        assert_eq!(other.read("a").await.unwrap(), b"one");
        fs.write("a", b"second").await.unwrap();
        fs.write("b", b"new").await.unwrap();
        other.let_ttl_pass();
        assert_eq!(other.read("a").await.unwrap(), b"second");
        assert_eq!(other.ls("").await, ["a", "b"]);
        fs.unlink("a").await.unwrap();
        other.let_ttl_pass();
        assert!(matches!(other.read("a").await, Err(FsError::NoEntry)));
        assert_eq!(other.ls("").await, ["b"]);
    }
}

on_each_store! {
    async fn an_object_replaced_from_outside_is_another_inode(fs: TestFs) {
        fs.put_object("a", b"one").await;
        let before = fs.ino("a").await.unwrap();
        fs.let_ttl_pass();
        assert_eq!(
            fs.ino("a").await.unwrap(),
            before,
            "the same object is the same inode"
        );
        fs.put_object("a", b"two").await;
        fs.let_ttl_pass();
        assert_ne!(fs.ino("a").await.unwrap(), before);
    }
}

on_each_store! {
    async fn our_own_writes_keep_the_inode(fs: TestFs) {
        fs.write("a", b"one").await.unwrap();
        let before = fs.ino("a").await.unwrap();
        fs.write("a", b"other").await.unwrap();
        let change = SetAttr {
            mode: Some(0o600),
            ..SetAttr::default()
        };
        fs.setattr("a", change).await.unwrap();
        fs.rename("a", "b").await.unwrap();
        fs.let_ttl_pass();
        fs.ls("").await;
        assert_eq!(fs.ino("b").await.unwrap(), before);
    }
}

on_each_store! {
    async fn a_reader_never_gets_a_mixture_of_two_versions(fs: TestFs) {
        fs.put_object("a", &[1; 400_000]).await;
        let file = fs.open("a").await.unwrap();
        assert_eq!(file.read_at(1, 10).await.unwrap(), [1; 10]);
        fs.put_object("a", &[2; 400_000]).await;
        // What is cached is still the old version's, the rest is refused.
        assert_eq!(file.read_at(1, 10).await.unwrap(), [1; 10]);
        assert!(matches!(
            file.read_at(390_000, 10).await,
            Err(FsError::Stale)
        ));
        // A new open sees the new bytes without waiting for the ttl: the stale read gave it away.
        assert_eq!(fs.read("a").await.unwrap(), [2; 400_000]);
    }
}

on_each_store! {
    async fn an_open_that_finds_another_object_is_stale_and_the_next_lookup_finds_it(fs: TestFs) {
        fs.put_object("a", b"one").await;
        let ino = fs.ino("a").await.unwrap();
        fs.put_object("a", b"two").await;
        fs.let_ttl_pass();
        assert!(matches!(
            fs.open_file(ino, false, false).await,
            Err(FsError::Stale)
        ));
        assert_eq!(fs.read("a").await.unwrap(), b"two");
    }
}

on_each_store! {
    async fn of_two_hosts_that_write_one_file_the_second_is_told_and_keeps_its_bytes_beside(fs: TestFs) {
        let other = fs.other_host().await;
        fs.write("a", b"base and more").await.unwrap();
        let mine = fs.open("a").await.unwrap();
        let theirs = other.open("a").await.unwrap();
        mine.write_at(0, b"mine").unwrap();
        mine.read_all().await.unwrap();
        theirs.write_at(0, b"them").unwrap();
        theirs.close().await.unwrap();
        assert!(matches!(mine.fsync().await, Err(FsError::Conflict { .. })));
        assert_eq!(fs.read("a").await.unwrap(), b"them and more", "new opens see the winner");
        assert!(matches!(mine.read_all().await, Err(FsError::Stale)), "old ones are told");
        assert!(matches!(mine.write_at(0, b"x"), Err(FsError::Stale)));
        fs.drained().await;
        let keys = fs.keys().await;
        let [winner, loser] = &keys[..] else { panic!("{keys:?}") };
        assert_eq!(winner, "a");
        assert!(loser.starts_with("a.conflict-"), "{loser}");
        assert_eq!(fs.object("a").await.as_deref(), Some(&b"them and more"[..]));
        assert_eq!(fs.object(loser).await.as_deref(), Some(&b"mine and more"[..]));
        assert_eq!(fs.read(loser).await.unwrap(), b"mine and more");
    }
}

on_each_store! {
    async fn of_two_hosts_that_make_one_file_the_second_is_told(fs: TestFs) {
        let other = fs.other_host().await;
        let mine = fs.create("a").await.unwrap();
        let theirs = other.create("a").await.unwrap();
        theirs.close().await.unwrap();
        assert!(matches!(mine.close().await, Err(FsError::Conflict { .. })));
        other.mkdir("d").await.unwrap();
        assert!(matches!(fs.mkdir("d").await, Err(FsError::Exists)));
    }
}

on_each_store! {
    async fn a_file_that_another_host_removed_while_it_was_changed_here_is_made_anew(fs: TestFs) {
        let other = fs.other_host().await;
        fs.write("a", b"base and more").await.unwrap();
        let mine = fs.open("a").await.unwrap();
        mine.write_at(0, b"mine").unwrap();
        mine.read_all().await.unwrap();
        other.unlink("a").await.unwrap();
        mine.close().await.unwrap();
        assert_eq!(fs.object("a").await.as_deref(), Some(&b"mine and more"[..]));
    }
}

async fn write_both(conflicts: Conflicts) -> (TestFs, Result<(), FsError>) {
    let write = WriteOptions {
        durability: Durability::Close,
        conflicts,
        ..WriteOptions::default()
    };
    let fs = TestFs::with(Arc::new(Bucket::memory()), write).await;
    let other = fs.other_host().await;
    fs.write("a", b"base").await.unwrap();
    let mine = fs.open("a").await.unwrap();
    let theirs = other.open("a").await.unwrap();
    mine.write_at(0, b"mine").unwrap();
    theirs.write_at(0, b"them").unwrap();
    theirs.close().await.unwrap();
    let closed = mine.close().await;
    (fs, closed)
}

#[tokio::test]
async fn with_conflicts_overwrite_the_last_one_wins() {
    let (fs, closed) = write_both(Conflicts::Overwrite).await;
    closed.unwrap();
    assert_eq!(fs.keys().await, ["a"]);
    assert_eq!(fs.object("a").await.as_deref(), Some(&b"mine"[..]));
}

#[tokio::test]
async fn with_conflicts_fail_the_loser_waits_on_its_host() {
    let (fs, closed) = write_both(Conflicts::Fail).await;
    assert!(matches!(closed, Err(FsError::Conflict { .. })));
    assert_eq!(fs.keys().await, ["a"]);
    assert_eq!(fs.object("a").await.as_deref(), Some(&b"them"[..]));
    assert_eq!(fs.status().dirty_files, 1);
}

on_each_store! {
    async fn drain_uploads_what_open_files_have_written(fs: TestFs) {
        let files = [fs.create("a").await.unwrap(), fs.create("b").await.unwrap()];
        for file in &files {
            file.write_at(0, pattern(1000)).unwrap();
        }
        assert_eq!(fs.status().dirty_files, 2);
        assert_eq!(fs.status().dirty_bytes, 2000);
        fs.drain(std::time::Duration::from_secs(10)).await.unwrap();
        assert_eq!(fs.status().dirty_files, 0);
        assert_eq!(fs.keys().await, ["a", "b"]);
    }
}
