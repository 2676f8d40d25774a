use std::ffi::OsStr;
use std::sync::Arc;

use bucketvol::fs::{Format, Formats, FsError, RequestId, SetAttr, Settings};
use bucketvol::store::Bucket;

use crate::common::fault_store::faulty_bucket;
use crate::common::test_fs::{CALLER, ROOT, TestFs, pattern};

/// The numbers of these names' inodes, and how many names each has.
async fn numbers(fs: &TestFs, names: &[&str]) -> Vec<(u64, u32)> {
    let mut numbers = Vec::new();
    for name in names {
        let ino = fs.ino(name).await.unwrap();
        numbers.push((ino, fs.nlink(ino)));
    }
    numbers
}

on_each_store! {
    async fn two_names_are_one_file_here_and_an_object_each_in_the_bucket(fs: TestFs) {
        fs.mkdir("d").await.unwrap();
        for size in [0, 3000] {
            let name = format!("d/{size}");
            fs.write("a", pattern(size)).await.unwrap();
            let ino = fs.link("a", &name).await.unwrap();
            assert_eq!(numbers(&fs, &["a", &name]).await, [(ino, 2), (ino, 2)]);
            fs.drained().await;
            assert_eq!(fs.object("a").await, fs.object(&name).await);

            let file = fs.open(&name).await.unwrap();
            file.write_at(2000, b"more").unwrap();
            file.close().await.unwrap();
            fs.setattr(&name, SetAttr { mode: Some(0o640), ..SetAttr::default() }).await.unwrap();
            let bytes = fs.read("a").await.unwrap();
            assert_eq!(bytes[2000..2004], *b"more");
            fs.drained().await;
            for name in ["a", &name] {
                assert_eq!(fs.object(name).await.unwrap(), bytes, "{name}");
                let other = fs.other_host().await;
                assert_eq!(other.attr(name).await.unwrap().mode & 0o777, 0o640, "{name}");
            }
            let shown: Vec<u64> = fs.entries("d").await.unwrap().iter().map(|e| e.ino).collect();
            assert!(shown.contains(&ino), "{shown:?}");
            fs.unlink("a").await.unwrap();
        }
    }
}

on_each_store! {
    async fn whichever_name_goes_the_file_stays_under_the_others(fs: TestFs) {
        for (gone, left) in [("a", ["b", "c"]), ("b", ["a", "c"]), ("c", ["a", "b"])] {
            fs.write("a", pattern(1000)).await.unwrap();
            let open = fs.open("a").await.unwrap();
            fs.drained().await;
            for name in ["b", "c"] {
                assert_eq!(fs.link("a", name).await.unwrap(), open.ino);
            }
            fs.drained().await;
            fs.unlink(gone).await.unwrap();
            assert_eq!(numbers(&fs, &left).await, [(open.ino, 2), (open.ino, 2)], "{gone}");
            open.write_at(0, b"new").unwrap();
            fs.drained().await;
            assert_eq!(fs.keys().await, left, "{gone}");
            for name in left {
                assert_eq!(fs.object(name).await.unwrap(), fs.read(name).await.unwrap());
                assert_eq!(fs.read(name).await.unwrap()[..4], *b"new\x03", "{gone}");
                fs.unlink(name).await.unwrap();
            }
            assert_eq!(fs.nlink(open.ino), 0);
            open.close().await.unwrap();
            assert_eq!(fs.keys().await, [""; 0]);
        }
    }
}

on_each_store! {
    async fn a_file_renamed_over_one_of_a_files_names_takes_that_name_alone(fs: TestFs) {
        for (over, left) in [("a", "b"), ("b", "a")] {
            fs.write("a", b"old").await.unwrap();
            let ino = fs.link("a", "b").await.unwrap();
            fs.write("new", b"new").await.unwrap();
            fs.rename("new", over).await.unwrap();
            assert_eq!(numbers(&fs, &[left]).await, [(ino, 1)]);
            assert_eq!(fs.read(left).await.unwrap(), b"old");
            assert_eq!(fs.read(over).await.unwrap(), b"new");
            fs.drained().await;
            assert_eq!(fs.object(left).await.unwrap(), b"old");
            assert_eq!(fs.object(over).await.unwrap(), b"new");
            fs.unlink("a").await.unwrap();
            fs.unlink("b").await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_link_and_an_unlink_are_a_rename() {
    let fs = TestFs::memory().await;
    let file = fs.create("tmp").await.unwrap();
    file.write_at(0, b"new").unwrap();
    let before = fs.bucket.requests();
    fs.link("tmp", "target").await.unwrap();
    fs.unlink("tmp").await.unwrap();
    file.close().await.unwrap();
    fs.drained().await;
    let after = fs.bucket.requests();
    let sent = |verb| after.of(verb) - before.of(verb);
    assert_eq!((sent("put"), sent("copy"), sent("delete")), (1, 0, 0));
    assert_eq!(fs.keys().await, ["target"]);
}

/// rename(2): "If oldpath and newpath are existing hard links referring to the same file, then rename() does nothing".
#[tokio::test]
async fn a_rename_from_one_name_of_a_file_to_another_does_nothing() {
    let fs = TestFs::memory().await;
    fs.write("a", b"bytes").await.unwrap();
    let ino = fs.link("a", "b").await.unwrap();
    fs.rename("a", "b").await.unwrap();
    fs.rename("b", "a").await.unwrap();
    assert_eq!(numbers(&fs, &["a", "b"]).await, [(ino, 2), (ino, 2)]);
}

#[tokio::test]
async fn what_has_no_further_names_is_refused_one() {
    let fs = TestFs::memory().await;
    fs.mkdir("d").await.unwrap();
    fs.write("a", b"bytes").await.unwrap();
    let to_directory = fs.link("d", "b").await;
    assert!(matches!(to_directory, Err(FsError::NotPermitted(_))));
    assert!(matches!(fs.link("a", "d").await, Err(FsError::Exists)));
    assert!(matches!(fs.link("a", "a").await, Err(FsError::Exists)));
    let file = fs.open("a").await.unwrap();
    fs.unlink("a").await.unwrap();
    let nameless = fs.link_ino(file.ino, "b").await;
    assert!(matches!(nameless, Err(FsError::NoEntry)));
}

#[tokio::test]
async fn links_and_pipes_have_further_names_too() {
    let fs = TestFs::memory().await;
    let link = fs.symlink("link", "target").await.unwrap();
    let kind = bucketvol::store::FileKind::Fifo;
    let fifo = fs.mknod(ROOT, OsStr::new("fifo"), kind, 0o600, 0, CALLER);
    let fifo = fifo.await.unwrap().ino;
    assert_eq!(fs.link("link", "link 2").await.unwrap(), link);
    assert_eq!(fs.link("fifo", "fifo 2").await.unwrap(), fifo);
    fs.drained().await;
    let other = fs.other_host().await;
    let link = other.ino("link 2").await.unwrap();
    assert_eq!(&*other.readlink(link).await.unwrap(), b"target");
    assert_eq!(other.attr("fifo 2").await.unwrap().kind, kind);
}

/// Of the one that was synced by one of its names the bucket has all.
#[tokio::test]
async fn an_fsync_is_of_every_name() {
    let fs = TestFs::memory().await;
    fs.write("a", b"old").await.unwrap();
    fs.drained().await;
    fs.link("a", "b").await.unwrap();
    let file = fs.open("a").await.unwrap();
    file.write_at(0, b"new").unwrap();
    file.fsync().await.unwrap();
    let other = fs.other_host().await;
    assert_eq!(other.read("a").await.unwrap(), b"new");
    assert_eq!(other.read("b").await.unwrap(), b"new");
}

#[tokio::test]
async fn names_of_one_file_are_that_after_a_kill_and_after_crashes_of_the_host() {
    let fs = TestFs::memory().await;
    fs.mkdir("d").await.unwrap();
    fs.write("d/a", b"old").await.unwrap();
    fs.drained().await;
    let ino = fs.link("d/a", "b").await.unwrap();
    fs.rename("d", "e").await.unwrap();
    let fs = fs.after_kill().await;
    assert_eq!(numbers(&fs, &["e/a", "b"]).await, [(ino, 2), (ino, 2)]);
    fs.drained().await;
    // All of both is in the bucket, and the journal has nothing but that they are one.
    let fs = fs.after_kill().await.after_crash().await;
    let fs = fs
        .after_host_crash(crate::common::test_fs::Unsynced::Lost)
        .await;
    let file = fs.open("b").await.unwrap();
    file.write_at(0, b"new").unwrap();
    assert_eq!(fs.read("e/a").await.unwrap(), b"new");
    file.close().await.unwrap();
    fs.drained().await;
    assert_eq!(fs.object("b").await, fs.object("e/a").await);
}

#[tokio::test]
async fn names_part_at_unmount() {
    let fs = TestFs::memory().await;
    fs.write("a", b"both").await.unwrap();
    fs.link("a", "b").await.unwrap();
    let fs = fs.remounted().await;
    let [a, b] = numbers(&fs, &["a", "b"]).await[..] else {
        unreachable!()
    };
    assert!(a.0 != b.0 && (a.1, b.1) == (1, 1));
    fs.write("b", b"alone").await.unwrap();
    assert_eq!(fs.read("a").await.unwrap(), b"both");
}

/// The others are what they were.
#[tokio::test]
async fn a_name_whose_object_another_host_replaces_is_another_file() {
    for (replaced, stays) in [("a", "b"), ("b", "a")] {
        let fs = TestFs::memory().await;
        fs.write("a", b"both").await.unwrap();
        fs.link("a", "b").await.unwrap();
        fs.drained().await;
        let reader = fs.open(stays).await.unwrap();
        assert_eq!(reader.read_all().await.unwrap(), b"both");
        fs.put_object(replaced, b"theirs").await;
        fs.let_ttl_pass();
        assert_eq!(fs.read(replaced).await.unwrap(), b"theirs");
        assert_eq!(fs.read(stays).await.unwrap(), b"both");
        let [one, other] = numbers(&fs, &["a", "b"]).await[..] else {
            unreachable!()
        };
        assert!(one.0 != other.0 && (one.1, other.1) == (1, 1));
        fs.write(stays, b"ours").await.unwrap();
        fs.drained().await;
        assert_eq!(fs.object(replaced).await.unwrap(), b"theirs");
        let fs = fs.after_crash().await;
        assert_eq!(fs.read(replaced).await.unwrap(), b"theirs");
        assert_eq!(fs.read(stays).await.unwrap(), b"ours");
    }
}

/// As is one that is listed, and one that is gone.
#[tokio::test]
async fn a_name_that_another_host_removes_leaves_the_others() {
    for (removed, stays) in [("a", "b"), ("b", "a")] {
        let fs = TestFs::memory().await;
        fs.write("a", b"both").await.unwrap();
        fs.link("a", "b").await.unwrap();
        fs.drained().await;
        fs.bucket
            .delete(
                &bucketvol::store::Key::new(removed),
                bucketvol::store::Precondition::None,
            )
            .await
            .unwrap();
        fs.let_ttl_pass();
        assert_eq!(fs.ls("").await, [stays]);
        assert_eq!(fs.read(stays).await.unwrap(), b"both");
        let ino = fs.ino(stays).await.unwrap();
        assert_eq!(fs.nlink(ino), 1);
    }
}

/// What was linked is what the file was then, if this host has still all of it.
#[tokio::test]
async fn a_file_that_another_host_replaces_before_it_is_copied_to_a_name_is_there_under_that() {
    let fs = TestFs::memory().await;
    fs.write("a", pattern(300_000)).await.unwrap();
    fs.drained().await;
    assert_eq!(fs.read("a").await.unwrap(), pattern(300_000));
    fs.link("a", "b").await.unwrap();
    fs.put_object("a", b"theirs").await;
    fs.drained().await;
    assert_eq!(fs.object("b").await.unwrap(), pattern(300_000));
    fs.let_ttl_pass();
    assert_eq!(fs.read("a").await.unwrap(), b"theirs");
    assert_eq!(fs.read("b").await.unwrap(), pattern(300_000));
    assert_eq!(fs.keys().await, ["a", "b"]);
}

/// What is given up of a file is given up of all its names.
#[tokio::test]
async fn a_change_that_is_given_up_leaves_each_name_what_the_bucket_has() {
    let fs = TestFs::memory().await;
    fs.write("a", b"old").await.unwrap();
    fs.drained().await;
    let file = fs.open("a").await.unwrap();
    file.write_at(0, b"new").unwrap();
    fs.link("a", "b").await.unwrap();
    let to = fs.staging_dir().join("exported");
    fs.export(&bucketvol::store::Key::new("b"), &to)
        .await
        .unwrap();
    assert_eq!(std::fs::read(&to).unwrap(), b"new");
    fs.discard(&bucketvol::store::Key::new("a")).await.unwrap();
    assert_eq!(fs.ls("").await, ["a"]);
    assert_eq!(fs.read("a").await.unwrap(), b"old");
    fs.drained().await;
    assert_eq!(fs.keys().await, ["a"]);
}

/// Until a release is trusted, the one before it may have to read what it has written: that knows no links, so the
/// bucket has them before they are answered.
#[tokio::test]
async fn in_the_format_before_a_name_is_in_the_bucket_before_it_is_answered() {
    let on_trial = |settings: &mut Settings| settings.formats = Formats::on_trial(Format::CURRENT);
    let fs = TestFs::tuned(Arc::new(Bucket::memory()), on_trial).await;
    let file = fs.create("a").await.unwrap();
    file.write_at(0, b"bytes").unwrap();
    let request = RequestId::new(7, 1);
    let ino = request.scope(fs.link("a", "b")).await.unwrap();
    assert_eq!(fs.object("b").await.unwrap(), b"bytes");
    assert_eq!(numbers(&fs, &["a", "b"]).await, [(ino, 2), (ino, 2)]);
    let parted = fs.after_crash().await;
    assert!(parted.was_done(request));
    assert_eq!(parted.read("b").await.unwrap(), b"bytes");
    assert_eq!(parted.read("a").await.unwrap(), b"bytes");

    let fs = TestFs::tuned(Arc::new(Bucket::memory()), on_trial).await;
    fs.write("a", b"bytes").await.unwrap();
    let ino = fs.link("a", "b").await.unwrap();
    fs.set_format(Format::CURRENT).unwrap();
    let fs = fs.after_kill().await;
    assert_eq!(numbers(&fs, &["a", "b"]).await, [(ino, 2), (ino, 2)]);
}

/// Each process begins on trial, and the one before may have died at once.
#[tokio::test]
async fn a_name_that_is_not_in_the_bucket_yet_survives_processes_that_die_young() {
    let (bucket, faults) = faulty_bucket();
    let on_trial = |settings: &mut Settings| settings.formats = Formats::on_trial(Format::CURRENT);
    let fs = TestFs::tuned(bucket, on_trial).await;
    fs.set_format(Format::CURRENT).unwrap();
    fs.write("a", b"bytes").await.unwrap();
    fs.drained().await;
    faults.deny_writes(1_000);
    let ino = fs.link("a", "b").await.unwrap();
    let fs = fs.after_kill().await.after_kill().await.after_crash().await;
    faults.end();
    fs.settled().await;
    assert_eq!(fs.object("b").await.as_deref(), Some(&b"bytes"[..]));
    assert_eq!(numbers(&fs, &["a", "b"]).await, [(ino, 2), (ino, 2)]);
    let fs = fs.after_kill().await;
    assert_eq!(numbers(&fs, &["a", "b"]).await, [(ino, 2), (ino, 2)]);
}

/// What the format before can say of a name that follows a file is not what its bytes are.
#[tokio::test]
async fn a_name_that_parts_before_it_could_follow_keeps_the_bytes_that_the_bucket_has() {
    let (bucket, faults) = faulty_bucket();
    let on_trial = |settings: &mut Settings| settings.formats = Formats::on_trial(Format::CURRENT);
    let fs = TestFs::tuned(bucket, on_trial).await;
    fs.write("a", b"old").await.unwrap();
    fs.link("a", "b").await.unwrap();
    fs.write("a", b"new bytes").await.unwrap();
    // The link waits for its copy.
    let is_pending = async || fs.status().pending.iter().any(|pending| pending.key == "b");
    let file = fs.open("a").await.unwrap();
    faults.deny_writes_after(1, 1_000);
    file.fsync().await.unwrap_err();
    fs.eventually(is_pending).await;
    fs.rename("b", "c").await.unwrap();
    let fs = fs.after_crash().await;
    faults.end();
    fs.settled().await;
    let kept = fs.object("c").await.unwrap();
    assert!([&b"old"[..], b"new bytes"].contains(&&kept[..]), "{kept:?}");
    assert_eq!(fs.read("c").await.unwrap(), kept);
    assert_eq!(fs.read("a").await.unwrap(), b"new bytes");
}
