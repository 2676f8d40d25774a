//! Directories are made, renamed and removed here; the bucket follows.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use bucketvol::config::options::WriteOptions;
use bucketvol::fs::{Change, FsError, RenameMode};
use bucketvol::store::{Bucket, FileKind};

use crate::common::test_fs::{CALLER, ROOT, TestFs};

/// Another volume on the bucket whose changes set out when somebody says so.
async fn unhurried(fs: &TestFs) -> TestFs {
    TestFs::with(Arc::clone(&fs.bucket), WriteOptions::default()).await
}

#[tokio::test]
async fn a_directory_of_ten_thousand_objects_has_its_new_name_by_one_record() {
    const OBJECTS: usize = 10_000;
    let bucket = Arc::new(Bucket::memory());
    // Nothing follows before it is told to.
    let write = WriteOptions {
        upload_delay: Duration::from_secs(3600),
        max_dirty_age: Duration::from_secs(3600),
        ..WriteOptions::default()
    };
    let fs = TestFs::with(Arc::clone(&bucket), write).await;
    for i in 0..OBJECTS {
        fs.put_object(&format!("d/{i:05}"), b"x").await;
    }
    let open = fs.open("d/00007").await.unwrap();
    let dirty = fs.open("d/00008").await.unwrap();
    dirty.write_at(0, b"y").unwrap();
    let journaled = fs.journal_bytes();
    let (renamed, requests) = fs.requests_of(fs.rename("d", "e")).await;
    renamed.unwrap();
    assert!(requests <= 3, "whether the names are there: {requests}");
    assert!(fs.journal_bytes() - journaled < 1000);
    let status = fs.status();
    assert_eq!(
        (status.pending[0].key.as_str(), status.pending[0].change),
        ("e/", Change::Name)
    );

    fs.let_ttl_pass();
    assert_eq!(fs.ls("").await, ["e/"]);
    assert_eq!(fs.ls("e").await.len(), OBJECTS);
    assert_eq!(fs.read("e/01234").await.unwrap(), b"x");
    assert_eq!(open.read_all().await.unwrap(), b"x");
    assert_eq!(fs.keys().await[0], "d/00000");

    let before = fs.bucket.requests();
    fs.drained().await;
    let after = fs.bucket.requests();
    assert_eq!(after.of("copy") - before.of("copy"), OBJECTS as u64);
    assert!(after.total() - before.total() < OBJECTS as u64 + 100);
    let keys = fs.keys().await;
    assert_eq!((keys.len(), keys[0].as_str()), (OBJECTS, "e/00000"));
    assert_eq!(fs.object("e/00008").await.as_deref(), Some(&b"y"[..]));
    assert_eq!(open.read_all().await.unwrap(), b"x");
    dirty.close().await.unwrap();
    open.close().await.unwrap();
}

on_each_store! {
    async fn what_is_made_and_removed_before_it_is_sent_is_nothing_to_the_bucket(fs: TestFs) {
        let fs = unhurried(&fs).await;
        fs.mkdir("d").await.unwrap();
        let (_, requests) = fs
            .requests_of(async {
                fs.mkdir("d/e").await.unwrap();
                fs.symlink("d/e/link", "target").await.unwrap();
                fs.write("d/e/file", b"x").await.unwrap();
                fs.rename("d/e", "d/f").await.unwrap();
                assert_eq!(fs.ls("d/f").await, ["file", "link"]);
                for name in ["d/f/file", "d/f/link"] {
                    fs.unlink(name).await.unwrap();
                }
                fs.rmdir("d/f").await.unwrap();
                fs.rmdir("d").await.unwrap();
                fs.drained().await;
            })
            .await;
        assert_eq!(requests, 0);
        assert_eq!(fs.keys().await, [""; 0]);
    }
}

on_each_store! {
    async fn directories_links_and_pipes_outlive_a_crash(fs: TestFs) {
        let fs = unhurried(&fs).await;
        fs.mkdir("d").await.unwrap();
        fs.mkdir("d/e").await.unwrap();
        fs.symlink("d/e/link", "../target").await.unwrap();
        let kind = FileKind::Fifo;
        let parent = fs.ino("d").await.unwrap();
        fs.mknod(parent, OsStr::new("pipe"), kind, 0o600, 0, CALLER).await.unwrap();
        let fs = fs.after_crash().await;
        assert_eq!(fs.ls("d").await, ["e/", "pipe"]);
        let link = fs.ino("d/e/link").await.unwrap();
        assert_eq!(&fs.readlink(link).await.unwrap()[..], b"../target");
        assert_eq!(fs.attr("d/pipe").await.unwrap().kind, kind);
        assert_eq!(fs.attr("d/e").await.unwrap().uid, CALLER.uid);
        fs.drained().await;
        assert_eq!(fs.keys().await, ["d/", "d/e/", "d/e/link", "d/pipe"]);
        let other = fs.other_host().await;
        assert_eq!(other.attr("d/pipe").await.unwrap().kind, kind);
        assert_eq!(other.attr("d/e/link").await.unwrap().kind, FileKind::Symlink);
        assert_eq!(other.attr("d/e").await.unwrap().uid, CALLER.uid);
    }
}

on_each_store! {
    async fn directories_change_places(fs: TestFs) {
        for key in ["a/1", "a/s/2", "b/3", "b/s/4"] {
            fs.put_object(key, key.as_bytes()).await;
        }
        let fs = unhurried(&fs).await;
        for (from, to) in [("a", "t"), ("b", "a"), ("t", "b")] {
            fs.rename(from, to).await.unwrap();
        }
        fs.write("a/new", b"new").await.unwrap();
        let fs = fs.after_crash().await;
        assert_eq!(fs.ls("").await, ["a/", "b/"]);
        assert_eq!(fs.ls("a").await, ["3", "new", "s/"]);
        assert_eq!(fs.read("b/s/2").await.unwrap(), b"a/s/2");
        fs.drained().await;
        assert_eq!(fs.keys().await, ["a/3", "a/new", "a/s/4", "b/1", "b/s/2"]);
        assert_eq!(fs.object("a/3").await.as_deref(), Some(&b"b/3"[..]));
    }
}

on_each_store! {
    async fn a_directory_goes_below_the_one_that_took_its_name(fs: TestFs) {
        fs.put_object("a/x", b"old").await;
        let fs = unhurried(&fs).await;
        fs.rename("a", "t").await.unwrap();
        fs.mkdir("a").await.unwrap();
        fs.rename("t", "a/old").await.unwrap();
        fs.write("a/x", b"new").await.unwrap();
        let fs = fs.after_crash().await;
        assert_eq!(fs.ls("a").await, ["old/", "x"]);
        assert_eq!(fs.read("a/x").await.unwrap(), b"new");
        assert_eq!(fs.read("a/old/x").await.unwrap(), b"old");
        fs.drained().await;
        assert_eq!(fs.keys().await, ["a/", "a/old/x", "a/x"]);
        assert_eq!(fs.object("a/old/x").await.as_deref(), Some(&b"old"[..]));
    }
}

on_each_store! {
    async fn a_directory_goes_back_below_a_new_one_of_the_old_name(fs: TestFs) {
        fs.mkdir("d").await.unwrap();
        fs.mkdir("d/s").await.unwrap();
        fs.write("d/s/file", b"kept").await.unwrap();
        fs.drained().await;
        let fs = unhurried(&fs).await;
        fs.rename("d", "e").await.unwrap();
        fs.mkdir("d").await.unwrap();
        fs.rename("e/s", "d/s").await.unwrap();
        fs.mkdir("e/s").await.unwrap();
        fs.drained().await;
        assert_eq!(fs.keys().await, ["d/", "d/s/", "d/s/file", "e/", "e/s/"]);
        assert_eq!(fs.read("d/s/file").await.unwrap(), b"kept");
        assert_eq!(fs.ls("e/s").await, [] as [&str; 0]);
    }
}

on_each_store! {
    async fn what_was_renamed_below_a_renamed_directory_ends_where_its_name_says(fs: TestFs) {
        for key in ["a/s/1", "a/s/2", "a/t/3", "a/4", "b/5", "6"] {
            fs.put_object(key, key.as_bytes()).await;
        }
        let fs = unhurried(&fs).await;
        for (from, to) in [
            ("a/s", "a/u"),
            ("a/u/1", "a/t/1"),
            ("6", "a/6"),
            ("a", "c"),
            ("c/t", "b/t"),
            ("b/5", "c/u/5"),
            ("c/4", "4"),
            ("b", "c/b"),
        ] {
            fs.rename(from, to).await.unwrap();
        }
        let fs = fs.after_crash().await;
        let expected = ["4", "c/6", "c/b/t/1", "c/b/t/3", "c/u/2", "c/u/5"];
        for (path, was) in expected.iter().zip(["a/4", "6", "a/s/1", "a/t/3", "a/s/2", "b/5"]) {
            assert_eq!(fs.read(path).await.unwrap(), was.as_bytes(), "{path}");
        }
        fs.drained().await;
        let mut keys = fs.keys().await;
        keys.retain(|key| !key.ends_with('/'));
        assert_eq!(keys, expected);
    }
}

on_each_store! {
    async fn an_fsync_waits_for_the_renames_of_the_directories_above(fs: TestFs) {
        fs.put_object("a/b/x", b"x").await;
        let fs = unhurried(&fs).await;
        let file = fs.open("a/b/x").await.unwrap();
        file.write_at(0, b"y").unwrap();
        fs.rename("a", "c").await.unwrap();
        file.fsync().await.unwrap();
        assert_eq!(fs.keys().await, ["c/b/x"]);
        assert_eq!(fs.object("c/b/x").await.as_deref(), Some(&b"y"[..]));
        file.close().await.unwrap();
    }
}

on_each_store! {
    async fn names_change_places(fs: TestFs) {
        for key in ["file", "other", "d/x", "e/y"] {
            fs.put_object(key, key.as_bytes()).await;
        }
        let fs = unhurried(&fs).await;
        let exchange = RenameMode::Exchange;
        fs.rename_as("file", "other", exchange).await.unwrap();
        fs.rename_as("d", "e", exchange).await.unwrap();
        fs.rename_as("other", "d", exchange).await.unwrap();
        assert!(matches!(
            fs.rename_as("file", "nothing", exchange).await,
            Err(FsError::NoEntry)
        ));
        assert!(matches!(
            fs.rename_as("e", "e/x", exchange).await,
            Err(FsError::Invalid(_))
        ));
        let fs = fs.after_crash().await;
        for _ in 0..2 {
            assert_eq!(fs.ls("").await, ["d", "e/", "file", "other/"]);
            assert_eq!(fs.read("file").await.unwrap(), b"other");
            assert_eq!(fs.read("d").await.unwrap(), b"file");
            assert_eq!(fs.read("e/x").await.unwrap(), b"d/x");
            assert_eq!(fs.read("other/y").await.unwrap(), b"e/y");
            fs.drained().await;
            fs.let_ttl_pass();
        }
        assert_eq!(fs.keys().await, ["d", "e/x", "file", "other/y"]);
    }
}

on_each_store! {
    async fn a_directory_that_was_removed_does_not_show_while_its_objects_wait(fs: TestFs) {
        for key in ["d/a", "d/e/b", "d/m"] {
            fs.put_object(key, b"x").await;
        }
        let fs = unhurried(&fs).await;
        for name in ["d/a", "d/e/b"] {
            fs.unlink(name).await.unwrap();
        }
        fs.rename("d/m", "m").await.unwrap();
        fs.rmdir("d/e").await.unwrap();
        fs.rmdir("d").await.unwrap();
        fs.let_ttl_pass();
        assert_eq!(fs.ls("").await, ["m"]);
        assert!(matches!(fs.ino("d").await, Err(FsError::NoEntry)));
        fs.write("d", b"a file now").await.unwrap();
        fs.fsyncdir(ROOT).await.unwrap();
        fs.let_ttl_pass();
        assert_eq!(fs.ls("").await, ["d", "m"]);
        assert_eq!(fs.keys().await, ["d", "m"]);
        assert_eq!(fs.read("d").await.unwrap(), b"a file now");
    }
}

on_each_store! {
    async fn an_object_that_another_host_has_put_where_a_directory_goes_stays(fs: TestFs) {
        fs.put_object("d/x", b"ours").await;
        fs.put_object("d/y", b"known").await;
        let fs = unhurried(&fs).await;
        let open = fs.open("d/y").await.unwrap();
        fs.rename("d", "e").await.unwrap();
        fs.put_object("e/x", b"theirs").await;
        fs.put_object("e/y", b"too").await;
        fs.drained().await;
        assert_eq!(fs.object("e/x").await.as_deref(), Some(&b"theirs"[..]));
        assert_eq!(fs.object("e/y").await.as_deref(), Some(&b"too"[..]));
        let keys = fs.keys().await;
        assert_eq!(keys.len(), 4, "{keys:?}");
        for (key, bytes) in [("e/x.conflict-", "ours"), ("e/y.conflict-", "known")] {
            let kept = keys.iter().find(|found| found.starts_with(key)).unwrap();
            assert_eq!(fs.object(kept).await.as_deref(), Some(bytes.as_bytes()));
        }
        // As any loser of a conflict.
        assert!(matches!(open.read_all().await, Err(FsError::Stale)));
        fs.release(open.fh).await;
    }
}

on_each_store! {
    async fn a_directory_that_two_hosts_make_is_one(fs: TestFs) {
        let (one, other) = (unhurried(&fs).await, unhurried(&fs).await);
        for host in [&one, &other] {
            host.mkdir("d").await.unwrap();
        }
        one.write("d/one", b"1").await.unwrap();
        other.write("d/other", b"2").await.unwrap();
        one.drained().await;
        other.drained().await;
        assert_eq!(fs.ls("d").await, ["one", "other"]);
        other.let_ttl_pass();
        assert_eq!(other.ls("d").await, ["one", "other"]);
    }
}
