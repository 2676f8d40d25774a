use std::sync::Arc;
use std::time::Duration;

use bucketvol::config::options::{Conflicts, WriteOptions};
use bucketvol::fs::{FsError, RenameMode};
use bucketvol::store::Bucket;

use crate::common::fault_store::faulty_bucket;
use crate::common::test_fs::{PART, ROOT, TestFs, pattern};

on_each_store! {
    async fn unlink_deletes_the_object(fs: TestFs) {
        fs.write("a", b"x").await.unwrap();
        fs.unlink("a").await.unwrap();
        assert_eq!(fs.keys().await, [""; 0]);
        assert!(matches!(fs.ino("a").await, Err(FsError::NoEntry)));
        assert!(matches!(fs.unlink("a").await, Err(FsError::NoEntry)));
    }
}

on_each_store! {
    async fn an_open_file_outlives_its_name(fs: TestFs) {
        fs.put_object("a", &pattern(300_000)).await;
        let file = fs.open("a").await.unwrap();
        fs.unlink("a").await.unwrap();
        assert!(matches!(fs.ino("a").await, Err(FsError::NoEntry)));
        fs.let_ttl_pass();
        assert_eq!(
            fs.ls("").await,
            [""; 0],
            "the object that is still there is not shown"
        );
        assert_eq!(file.read_all().await.unwrap(), pattern(300_000));
        file.write_at(0, b"scratch").unwrap();
        file.close().await.unwrap();
        assert_eq!(fs.keys().await, [""; 0], "the last close deletes it");
    }
}

on_each_store! {
    async fn a_name_made_anew_and_removed_does_not_show_the_object_that_waits_for_its_last_close(fs: TestFs) {
        fs.write("a", b"old").await.unwrap();
        let old = fs.open("a").await.unwrap();
        fs.unlink("a").await.unwrap();
        let new = fs.create("a").await.unwrap();
        fs.unlink("a").await.unwrap();
        fs.let_ttl_pass();
        assert!(matches!(fs.ino("a").await, Err(FsError::NoEntry)));
        assert_eq!(old.read_all().await.unwrap(), b"old");
        new.close().await.unwrap();
        old.close().await.unwrap();
        assert_eq!(fs.keys().await, [""; 0]);
    }
}

on_each_store! {
    async fn a_new_file_may_take_the_name_of_one_that_is_unlinked_and_open(fs: TestFs) {
        for size in [1000, PART * 2] {
            let old = pattern(size);
            fs.write("a", &old).await.unwrap();
            fs.let_ttl_pass();
            let file = fs.open("a").await.unwrap();
            fs.unlink("a").await.unwrap();
            fs.write("a", b"new").await.unwrap();
            assert_eq!(fs.read("a").await.unwrap(), b"new");
            assert!(file.read_all().await.unwrap() == old, "{size}");
            file.close().await.unwrap();
            assert_eq!(fs.object("a").await.as_deref(), Some(&b"new"[..]));
            assert_eq!(fs.keys().await, ["a"], "nothing is left aside");
        }
    }
}

on_each_store! {
    async fn a_file_renamed_over_an_open_one_leaves_its_readers_theirs(fs: TestFs) {
        for size in [1000, PART * 2] {
            let old = pattern(size);
            fs.write("target", &old).await.unwrap();
            let reader = fs.open("target").await.unwrap();
            fs.write("tmp", b"new").await.unwrap();
            fs.rename("tmp", "target").await.unwrap();
            assert_eq!(fs.read("target").await.unwrap(), b"new");
            assert!(reader.read_all().await.unwrap() == old, "{size}");
            reader.close().await.unwrap();
            assert_eq!(fs.keys().await, ["target"]);
        }
    }
}

on_each_store! {
    async fn a_rename_moves_the_object(fs: TestFs) {
        fs.write("a", pattern(200_000)).await.unwrap();
        fs.mkdir("d").await.unwrap();
        fs.rename("a", "d/b").await.unwrap();
        assert_eq!(fs.keys().await, ["d/", "d/b"]);
        assert_eq!(fs.object("d/b").await.unwrap(), pattern(200_000));
        assert!(matches!(fs.ino("a").await, Err(FsError::NoEntry)));
        assert_eq!(fs.read("d/b").await.unwrap(), pattern(200_000));
    }
}

#[tokio::test]
async fn a_file_renamed_before_it_is_uploaded_is_one_put_under_its_last_name() {
    let fs = TestFs::memory().await;
    fs.write("target", b"old").await.unwrap();
    let file = fs.create("tmp").await.unwrap();
    file.write_at(0, b"new").unwrap();
    let before = fs.bucket.requests();
    fs.rename("tmp", "target").await.unwrap();
    file.close().await.unwrap();
    let after = fs.bucket.requests();
    assert_eq!(after.of("put") - before.of("put"), 1);
    assert_eq!(
        after.of("copy") + after.of("delete"),
        before.of("copy") + before.of("delete")
    );
    assert_eq!(fs.keys().await, ["target"]);
    assert_eq!(fs.object("target").await.as_deref(), Some(&b"new"[..]));
}

on_each_store! {
    async fn a_file_that_is_being_written_is_renamed_and_written_on(fs: TestFs) {
        fs.write("a", b"0123456789").await.unwrap();
        let file = fs.open("a").await.unwrap();
        file.write_at(0, b"ab").unwrap();
        fs.rename("a", "b").await.unwrap();
        file.write_at(8, b"yz").unwrap();
        file.close().await.unwrap();
        assert_eq!(fs.keys().await, ["b"]);
        assert_eq!(fs.object("b").await.as_deref(), Some(&b"ab234567yz"[..]));
    }
}

on_each_store! {
    async fn a_directory_moves_with_all_below_it(fs: TestFs) {
        for key in ["d/a", "d/e/b", "d/e/f/c"] {
            fs.put_object(key, key.as_bytes()).await;
        }
        fs.mkdir("d/empty").await.unwrap();
        let open = fs.open("d/e/b").await.unwrap();
        let dirty = fs.create("d/e/new").await.unwrap();
        dirty.write_at(0, b"new").unwrap();
        fs.rename("d", "moved").await.unwrap();
        assert_eq!(
            fs.keys().await,
            [
                "moved/a",
                "moved/e/b",
                "moved/e/f/c",
                "moved/e/new",
                "moved/empty/"
            ]
        );
        assert_eq!(fs.read("moved/e/f/c").await.unwrap(), b"d/e/f/c");
        assert_eq!(open.read_all().await.unwrap(), b"d/e/b");
        dirty.close().await.unwrap();
        assert_eq!(fs.object("moved/e/new").await.as_deref(), Some(&b"new"[..]));
        assert!(matches!(fs.ino("d").await, Err(FsError::NoEntry)));
        assert_eq!(fs.ls("moved").await, ["a", "e/", "empty/"]);
    }
}

on_each_store! {
    async fn renames_that_posix_forbids_are_refused(fs: TestFs) {
        fs.mkdir("d").await.unwrap();
        fs.mkdir("e").await.unwrap();
        fs.write("e/x", b"x").await.unwrap();
        fs.write("f", b"f").await.unwrap();
        assert!(matches!(
            fs.rename("d", "f").await,
            Err(FsError::NotDirectory)
        ));
        assert!(matches!(
            fs.rename("f", "d").await,
            Err(FsError::IsDirectory)
        ));
        assert!(matches!(fs.rename("d", "e").await, Err(FsError::NotEmpty)));
        assert!(matches!(
            fs.rename("e", "e/sub").await,
            Err(FsError::Invalid(_))
        ));
        assert!(matches!(fs.rename("no", "x").await, Err(FsError::NoEntry)));
        let kept = fs.rename_as("f", "e/x", RenameMode::NoReplace).await;
        assert!(matches!(kept, Err(FsError::Exists)));
        fs.rename("f", "f").await.unwrap();
        fs.rename("e", "d").await.unwrap();
        assert_eq!(fs.keys().await, ["d/", "d/x", "f"]);
    }
}

on_each_store! {
    async fn a_directory_is_removed_only_when_it_is_empty(fs: TestFs) {
        fs.mkdir("d").await.unwrap();
        let file = fs.create("d/new").await.unwrap();
        assert!(matches!(fs.rmdir("d").await, Err(FsError::NotEmpty)));
        file.close().await.unwrap();
        assert!(matches!(fs.rmdir("d").await, Err(FsError::NotEmpty)));
        fs.unlink("d/new").await.unwrap();
        fs.rmdir("d").await.unwrap();
        assert_eq!(fs.keys().await, [""; 0]);
        fs.write("f", b"x").await.unwrap();
        assert!(matches!(fs.rmdir("f").await, Err(FsError::NotDirectory)));
    }
}

on_each_store! {
    async fn rm_minus_r_works_while_a_file_below_is_open(fs: TestFs) {
        fs.mkdir("d").await.unwrap();
        fs.write("d/a", b"bytes").await.unwrap();
        let file = fs.open("d/a").await.unwrap();
        fs.unlink("d/a").await.unwrap();
        fs.rmdir("d").await.unwrap();
        fs.let_ttl_pass();
        assert_eq!(fs.ls("").await, [""; 0]);
        assert_eq!(fs.keys().await, ["d/a"], "it waits for its last close");
        fs.fsyncdir(ROOT).await.unwrap();
        assert_eq!(fs.keys().await, [""; 0]);
        assert_eq!(file.read_all().await.unwrap(), b"bytes");
        file.close().await.unwrap();
    }
}

on_each_store! {
    async fn a_directory_outlives_its_last_file(fs: TestFs) {
        fs.put_object("implicit/only", b"x").await;
        fs.unlink("implicit/only").await.unwrap();
        assert_eq!(fs.ls("").await, ["implicit/"]);
        assert_eq!(fs.keys().await, ["implicit/"]);
        fs.put_object("other/only", b"x").await;
        fs.let_ttl_pass();
        fs.rename("other/only", "moved").await.unwrap();
        assert_eq!(fs.ls("").await, ["implicit/", "moved", "other/"]);
    }
}

on_each_store! {
    async fn making_what_is_there_fails(fs: TestFs) {
        fs.put_object("f", b"x").await;
        fs.put_object("d/x", b"x").await;
        for name in ["f", "d"] {
            assert!(
                matches!(fs.mkdir(name).await, Err(FsError::Exists)),
                "{name}"
            );
            assert!(
                matches!(fs.symlink(name, "t").await, Err(FsError::Exists)),
                "{name}"
            );
        }
    }
}

on_each_store! {
    async fn a_file_renamed_over_another_before_its_upload_finds_it_after_their_directory_moved(fs: TestFs) {
        fs.mkdir("d").await.unwrap();
        fs.write("d/target", b"old").await.unwrap();
        let file = fs.create("d/tmp").await.unwrap();
        file.write_at(0, b"new").unwrap();
        fs.rename("d/tmp", "d/target").await.unwrap();
        fs.rename("d", "e").await.unwrap();
        file.close().await.unwrap();
        assert_eq!(fs.object("e/target").await.as_deref(), Some(&b"new"[..]));
        assert_eq!(fs.keys().await, ["e/", "e/target"]);
    }
}

on_each_store! {
    async fn what_a_file_was_renamed_over_before_its_upload_never_comes_back(fs: TestFs) {
        for then_renamed in [false, true] {
            fs.write("target", b"old").await.unwrap();
            let file = fs.create("tmp").await.unwrap();
            fs.rename("tmp", "target").await.unwrap();
            if then_renamed {
                fs.rename("target", "elsewhere").await.unwrap();
                fs.unlink("elsewhere").await.unwrap();
            } else {
                fs.unlink("target").await.unwrap();
            }
            file.close().await.unwrap();
            assert_eq!(fs.keys().await, [""; 0], "{then_renamed}");
            fs.let_ttl_pass();
            assert_eq!(fs.ls("").await, [""; 0]);
        }
    }
}

#[tokio::test]
async fn a_hundred_files_written_beside_and_renamed_into_place_are_a_hundred_puts_and_nothing_else()
{
    let fs = TestFs::with(Arc::new(Bucket::memory()), WriteOptions::default()).await;
    fs.mkdir("d").await.unwrap();
    fs.drained().await;
    let (_, requests) = fs
        .requests_of(async {
            for i in 0..100 {
                fs.write("d/tmp", pattern(1000)).await.unwrap();
                fs.rename("d/tmp", &format!("d/{i:03}")).await.unwrap();
            }
            fs.drained().await;
        })
        .await;
    assert_eq!(requests, 100);
    assert_eq!(fs.keys().await.len(), 101);
}

on_each_store! {
    async fn two_files_change_places(fs: TestFs) {
        fs.write("a", b"was a").await.unwrap();
        fs.write("b", b"was b").await.unwrap();
        let fs = TestFs::with(Arc::clone(&fs.bucket), WriteOptions::default()).await;
        for (from, to) in [("a", "t"), ("b", "a"), ("t", "b")] {
            fs.rename(from, to).await.unwrap();
        }
        assert_eq!(fs.read("a").await.unwrap(), b"was b");
        assert_eq!(fs.read("b").await.unwrap(), b"was a");
        let fs = fs.after_crash().await;
        assert_eq!(fs.read("a").await.unwrap(), b"was b");
        fs.drained().await;
        assert_eq!(fs.keys().await, ["a", "b"]);
        assert_eq!(fs.object("a").await.as_deref(), Some(&b"was b"[..]));
        assert_eq!(fs.object("b").await.as_deref(), Some(&b"was a"[..]));
    }
}

on_each_store! {
    async fn an_fsync_of_a_directory_brings_its_names_into_the_bucket(fs: TestFs) {
        for name in ["d/gone", "d/moved", "d/renamed", "in"] {
            if name == "d/gone" {
                fs.mkdir("d").await.unwrap();
            }
            fs.write(name, name.as_bytes()).await.unwrap();
        }
        let fs = TestFs::with(Arc::clone(&fs.bucket), WriteOptions::default()).await;
        let directory = fs.ino("d").await.unwrap();
        fs.unlink("d/gone").await.unwrap();
        fs.rename("d/moved", "out").await.unwrap();
        fs.rename("d/renamed", "d/name").await.unwrap();
        fs.rename("in", "d/in").await.unwrap();
        fs.write("d/new", b"new").await.unwrap();
        fs.fsyncdir(directory).await.unwrap();
        assert_eq!(fs.keys().await, ["d/", "d/in", "d/name", "d/new", "out"]);
    }
}

#[tokio::test]
async fn a_name_that_is_removed_and_made_anew_costs_the_upload_alone() {
    let fs = TestFs::with(Arc::new(Bucket::memory()), WriteOptions::default()).await;
    fs.write("journal", b"first").await.unwrap();
    fs.drained().await;
    let (_, requests) = fs
        .requests_of(async {
            for _ in 0..10 {
                fs.unlink("journal").await.unwrap();
                let file = fs.create("journal").await.unwrap();
                file.write_at(0, b"again").unwrap();
                file.fsync().await.unwrap();
                file.close().await.unwrap();
            }
        })
        .await;
    assert_eq!(requests, 10, "{:?}", fs.bucket.requests());
    assert_eq!(fs.object("journal").await.as_deref(), Some(&b"again"[..]));

    fs.unlink("journal").await.unwrap();
    let file = fs.create("journal").await.unwrap();
    file.write_at(0, b"last").unwrap();
    let fs = fs.after_crash().await;
    fs.drained().await;
    assert_eq!(fs.object("journal").await.as_deref(), Some(&b"last"[..]));
    fs.unlink("journal").await.unwrap();
    fs.drained().await;
    assert_eq!(fs.keys().await, [] as [&str; 0]);
}

#[tokio::test]
async fn a_file_takes_the_name_of_one_whose_upload_goes_to_another_name() {
    let (bucket, faults) = faulty_bucket();
    let fs = TestFs::with(bucket, WriteOptions::default()).await;
    fs.put_object("a", b"of a").await;
    fs.write("x", b"of x").await.unwrap();
    fs.entries("").await.unwrap();
    faults.delay(Duration::from_millis(200));
    let draining = Arc::clone(&fs);
    let drained = tokio::spawn(async move { draining.drain(Duration::from_secs(20)).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    // The upload has begun, as "x".
    fs.rename("x", "b").await.unwrap();
    fs.rename("a", "b").await.unwrap();
    faults.end();
    drained.await.unwrap().unwrap();
    fs.drained().await;
    assert_eq!(fs.keys().await, ["b"]);
    assert_eq!(fs.read("b").await.unwrap(), b"of a");
}

/// Nobody else is at the bucket, and nothing goes there by itself: every conflict is one with ourselves.
fn without_rivals() -> WriteOptions {
    WriteOptions {
        upload_delay: Duration::from_secs(3600),
        conflicts: Conflicts::Fail,
        ..WriteOptions::default()
    }
}

/// One stands for it that had it open, and one for the file that was to overwrite it and has lost its name too.
#[tokio::test(start_paused = true)]
async fn an_object_that_two_stand_for_and_that_is_deleted_is_overwritten_by_nobody() {
    let (bucket, faults) = faulty_bucket();
    let fs = TestFs::with(bucket, without_rivals()).await;
    for name in ["d/a", "d/b"] {
        fs.put_object(name, b"old").await;
    }
    let old = fs.open("d/a").await.unwrap();
    fs.write("new", b"new").await.unwrap();
    fs.rename("new", "d/a").await.unwrap();
    // The directory has to outlive its objects: its marker goes before one of them.
    fs.unlink("d/b").await.unwrap();
    faults.delay(Duration::from_secs(1));
    let closed = tokio::spawn(old.close());
    tokio::time::sleep(Duration::from_millis(1)).await;
    fs.unlink("d/a").await.unwrap();
    faults.end();
    closed.await.unwrap().unwrap();
    assert_eq!(fs.object("d/a").await, None);

    let again = fs.create("d/a").await.unwrap();
    again.write_at(0, b"again").unwrap();
    again.fsync().await.unwrap();
    assert_eq!(fs.object("d/a").await.as_deref(), Some(&b"again"[..]));
}

/// The key that a name in it spells is only its until the directory gets another name.
#[tokio::test]
async fn what_is_renamed_over_in_a_directory_that_the_bucket_does_not_have_is_not_overwritten_elsewhere()
 {
    let fs = TestFs::with(Arc::new(Bucket::memory()), without_rivals()).await;
    fs.mkdir("e").await.unwrap();
    fs.write("e/a", b"old").await.unwrap();
    fs.drained().await;
    fs.mkdir("n").await.unwrap();
    fs.rename("e/a", "n/a").await.unwrap();
    fs.rename_as("e", "n", RenameMode::Exchange).await.unwrap();
    // Its object is where its name says, which is where the other directory's are.
    fs.write("x", b"new").await.unwrap();
    fs.rename("x", "e/a").await.unwrap();
    fs.rename("e", "f").await.unwrap();
    fs.drained().await;
    assert_eq!(fs.keys().await, ["f/", "f/a", "n/"]);
    assert_eq!(fs.object("f/a").await.as_deref(), Some(&b"new"[..]));
}
