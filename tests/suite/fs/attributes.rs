use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::time::{Duration, SystemTime};

use bucketvol::fs::{FsError, RenameMode, SetAttr};
use bucketvol::store::{FileKind, Key, Metadata, Precondition};
use bytes::Bytes;

use crate::common::test_fs::{CALLER, PART, ROOT, TestFs, pattern};

const THEN: SystemTime = SystemTime::UNIX_EPOCH;

fn mode(mode: u32) -> SetAttr {
    SetAttr {
        mode: Some(mode),
        ..SetAttr::default()
    }
}

on_each_store! {
    async fn modes_owners_and_times_persist_in_the_object(fs: TestFs) {
        fs.write("a", b"content").await.unwrap();
        let change = SetAttr {
            mode: Some(0o4751),
            uid: Some(12),
            gid: Some(34),
            mtime: Some(THEN + Duration::new(1_000_000_000, 123_456_789)),
            ..SetAttr::default()
        };
        fs.setattr("a", change).await.unwrap();
        fs.drained().await;
        let attr = fs.other_host().await.attr("a").await.unwrap();
        assert_eq!((attr.mode, attr.uid, attr.gid), (0o4751, 12, 34));
        assert_eq!(attr.mtime, THEN + Duration::new(1_000_000_000, 123_456_789));
        assert_eq!(fs.object("a").await.unwrap(), b"content");
    }
}

#[tokio::test]
async fn a_change_to_the_same_value_sends_nothing() {
    let fs = TestFs::memory().await;
    fs.write("a", b"x").await.unwrap();
    let now = fs.attr("a").await.unwrap();
    let same = SetAttr {
        mode: Some(now.mode),
        uid: Some(now.uid),
        gid: Some(now.gid),
        mtime: Some(now.mtime),
        size: Some(now.size),
        ..SetAttr::default()
    };
    let (set, requests) = fs.requests_of(fs.setattr("a", same)).await;
    set.unwrap();
    assert_eq!(requests, 0);
}

on_each_store! {
    async fn a_new_file_belongs_to_whoever_made_it(fs: TestFs) {
        fs.write("a", b"x").await.unwrap();
        let attr = fs.other_host().await.attr("a").await.unwrap();
        assert_eq!(
            (attr.uid, attr.gid, attr.mode),
            (CALLER.uid, CALLER.gid, 0o644)
        );
    }
}

#[tokio::test]
async fn attributes_set_while_a_file_is_written_go_up_with_its_content() {
    let fs = TestFs::memory().await;
    let file = fs.create("a").await.unwrap();
    file.write_at(0, b"x").unwrap();
    let (set, requests) = fs.requests_of(fs.setattr("a", mode(0o600))).await;
    set.unwrap();
    assert_eq!(requests, 0);
    file.close().await.unwrap();
    assert_eq!(fs.other_host().await.attr("a").await.unwrap().mode, 0o600);
}

#[tokio::test]
async fn a_chmod_of_a_large_file_does_not_send_its_bytes() {
    let fs = TestFs::memory().await;
    let bytes = pattern(PART + 1);
    fs.write("a", &bytes).await.unwrap();
    let before = fs.bucket.requests();
    fs.setattr("a", mode(0o600)).await.unwrap();
    fs.drained().await;
    let after = fs.bucket.requests();
    assert_eq!(
        after.of("put") + after.of("put_part"),
        before.of("put") + before.of("put_part")
    );
    assert_eq!(after.of("copy") - before.of("copy"), 1);
    assert!(fs.read("a").await.unwrap() == bytes);
}

#[tokio::test]
async fn cached_blocks_survive_a_chmod_and_a_rename_of_ours() {
    let fs = TestFs::memory().await;
    fs.put_object("a", &pattern(200_000)).await;
    fs.read("a").await.unwrap();
    fs.setattr("a", mode(0o600)).await.unwrap();
    fs.rename("a", "b").await.unwrap();
    let before = fs.bucket.requests().of("get");
    assert_eq!(fs.read("b").await.unwrap(), pattern(200_000));
    assert_eq!(fs.bucket.requests().of("get"), before);
}

on_each_store! {
    async fn directories_keep_their_attributes_in_their_markers(fs: TestFs) {
        fs.mkdir("d").await.unwrap();
        fs.put_object("implicit/x", b"x").await;
        for path in ["d", "implicit"] {
            fs.setattr(path, mode(0o1700)).await.unwrap();
            fs.drained().await;
            assert_eq!(
                fs.other_host().await.attr(path).await.unwrap().mode,
                0o1700,
                "{path}"
            );
        }
        assert_eq!(fs.keys().await, ["d/", "implicit/", "implicit/x"]);
    }
}

on_each_store! {
    async fn the_roots_owner_persists(fs: TestFs) {
        let change = SetAttr {
            uid: Some(999),
            mode: Some(0o700),
            ..SetAttr::default()
        };
        fs.setattr("", change).await.unwrap();
        fs.drained().await;
        let (attr, _) = fs.other_host().await.getattr(ROOT).await.unwrap();
        assert_eq!((attr.uid, attr.mode), (999, 0o700));
        assert_eq!(fs.ls("").await, [""; 0]);
    }
}

on_each_store! {
    async fn a_setgid_directory_gives_its_group_to_what_is_made_in_it(fs: TestFs) {
        fs.mkdir("d").await.unwrap();
        let change = SetAttr {
            gid: Some(55),
            mode: Some(0o2775),
            ..SetAttr::default()
        };
        fs.setattr("d", change).await.unwrap();
        fs.write("d/f", b"x").await.unwrap();
        fs.mkdir("d/e").await.unwrap();
        assert_eq!(fs.attr("d/f").await.unwrap().gid, 55);
        let below = fs.attr("d/e").await.unwrap();
        assert_eq!((below.gid, below.mode & 0o2000), (55, 0o2000));
    }
}

on_each_store! {
    async fn pipes_sockets_and_devices_are_what_they_were_made_as(fs: TestFs) {
        for (name, kind) in [
            ("pipe", FileKind::Fifo),
            ("socket", FileKind::Socket),
            ("null", FileKind::CharDevice),
            ("file", FileKind::File),
        ] {
            fs.mknod(ROOT, OsStr::new(name), kind, 0o640, 0x103, CALLER)
                .await
                .unwrap();
            fs.drained().await;
            let attr = fs.other_host().await.attr(name).await.unwrap();
            assert_eq!((attr.kind, attr.mode), (kind, 0o640), "{name}");
            if kind == FileKind::CharDevice {
                assert_eq!(attr.rdev, 0x103);
            }
        }
    }
}

on_each_store! {
    async fn only_regular_files_have_a_size_to_set(fs: TestFs) {
        fs.mkdir("d").await.unwrap();
        fs.symlink("l", "t").await.unwrap();
        let size = SetAttr {
            size: Some(1),
            ..SetAttr::default()
        };
        assert!(matches!(
            fs.setattr("d", size).await,
            Err(FsError::IsDirectory)
        ));
        assert!(matches!(
            fs.setattr("l", size).await,
            Err(FsError::Invalid(_))
        ));
        let size = SetAttr {
            size: Some(u64::MAX),
            ..SetAttr::default()
        };
        fs.write("f", b"x").await.unwrap();
        assert!(matches!(
            fs.setattr("f", size).await,
            Err(FsError::TooLarge(_))
        ));
    }
}

#[tokio::test]
async fn names_are_counted() {
    let fs = TestFs::memory().await;
    let nlink = async |path: &str| fs.nlink(fs.ino(path).await.unwrap());
    fs.mkdir("d").await.unwrap();
    assert_eq!(nlink("d").await, 2);
    for name in ["d/a", "d/b", "d/b/c"] {
        fs.mkdir(name).await.unwrap();
    }
    fs.write("d/file", b"").await.unwrap();
    assert_eq!((nlink("d").await, nlink("d/file").await), (4, 1));
    fs.rename("d/a", "a").await.unwrap();
    assert_eq!((nlink("d").await, nlink("").await), (3, 4));
    fs.rename("a", "d/b/c").await.unwrap();
    assert_eq!((nlink("d/b").await, nlink("").await), (3, 3));
    fs.rename_as("d/b", "d/file", RenameMode::Exchange)
        .await
        .unwrap();
    assert_eq!(nlink("d").await, 3);
    fs.write("outside", b"").await.unwrap();
    fs.rename_as("d/file", "outside", RenameMode::Exchange)
        .await
        .unwrap();
    assert_eq!((nlink("d").await, nlink("").await), (2, 4));
    let file = fs.open("d/b").await.unwrap();
    fs.unlink("d/b").await.unwrap();
    assert_eq!(fs.nlink(file.ino), 0);
    // What was there before the process is counted as it comes to be known.
    fs.put_object("e/f/g/h", b"").await;
    fs.let_ttl_pass();
    fs.ls("e/f").await;
    assert_eq!((nlink("e").await, nlink("e/f").await), (3, 3));
}

on_each_store! {
    async fn a_new_object_has_the_content_type_that_its_name_says(fs: TestFs) {
        let content_type = async |path: &str| {
            let found = fs.bucket.head(&Key::new(path)).await.unwrap();
            found.unwrap().metadata.headers.get("content-type").cloned()
        };
        for (path, expected) in [
            ("index.html", Some("text/html")),
            ("photo.JPG", Some("image/jpeg")),
            ("a.directory.css/unknown", None),
        ] {
            fs.mkdir("a.directory.css").await.ok();
            fs.write(path, b"bytes").await.unwrap();
            let found = content_type(path).await.filter(|found| !found.ends_with("octet-stream"));
            assert_eq!(found.as_deref(), expected, "{path}");
        }
        // What somebody has said stays.
        let headers = BTreeMap::from([("content-type".to_owned(), "text/x-test".to_owned())]);
        let metadata = Metadata { headers, ..Metadata::default() };
        let other = Key::new("other.html");
        let put = fs.bucket.put(&other, Bytes::new(), metadata, Precondition::None);
        put.await.unwrap();
        fs.let_ttl_pass();
        fs.write("other.html", b"new").await.unwrap();
        assert_eq!(content_type("other.html").await.as_deref(), Some("text/x-test"));
        // A name that was only a step on the way says nothing.
        fs.write("page.html.tmp", b"bytes").await.unwrap();
        fs.rename("page.html.tmp", "page.html").await.unwrap();
        fs.write("page.html", b"more").await.unwrap();
        assert_eq!(content_type("page.html").await.as_deref(), Some("text/html"));
    }
}
