use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::sync::Arc;

use bucketvol::config::options::WriteOptions;
use bucketvol::fs::{FsError, NameError};
use bucketvol::store::{Bucket, FileKind, Key, Metadata, Precondition};
use bytes::Bytes;

use crate::common::test_fs::{ROOT, TestFs};

on_each_store! {
    async fn keys_are_paths_and_prefixes_are_directories(fs: TestFs) {
        for key in ["a", "d/b", "d/e/c"] {
            fs.put_object(key, b"x").await;
        }
        fs.put_object("m/", b"").await;
        assert_eq!(fs.ls("").await, ["a", "d/", "m/"]);
        assert_eq!(fs.ls("d").await, ["b", "e/"]);
        assert_eq!(fs.read("d/e/c").await.unwrap(), b"x");
        assert_eq!(fs.attr("d").await.unwrap().kind, FileKind::Directory);
        assert_eq!(fs.ls("m").await, [""; 0]);
    }
}

on_each_store! {
    async fn a_file_is_found_by_name_without_listing_its_directory(fs: TestFs) {
        fs.put_object("d/e/file", b"x").await;
        assert_eq!(fs.read("d/e/file").await.unwrap(), b"x");
        assert!(matches!(fs.read("d/e/other").await, Err(FsError::NoEntry)));
        assert!(matches!(
            fs.read("d/e/file/x").await,
            Err(FsError::NotDirectory)
        ));
    }
}

#[tokio::test]
async fn one_odd_key_never_hides_its_neighbours() {
    let fs = TestFs::memory().await;
    for key in [
        "a//b",
        "/lead",
        "ok",
        "tab\there",
        "per%cent",
        "plus+",
        "caf\u{e9}",
        "x\u{1}y",
    ] {
        fs.put_object(key, b"x").await;
    }
    fs.put_object("./dot", b"x").await;
    fs.put_object("../dots", b"x").await;
    let names = fs.ls("").await;
    assert_eq!(
        names,
        [
            "%2F/",
            "a/",
            "caf\u{e9}",
            "ok",
            "per%cent",
            "plus+",
            "tab\there",
            "x\u{1}y"
        ]
    );
    assert_eq!(fs.status().unshowable_names, 2);
    assert_eq!(fs.ls("a").await, ["%2F/"]);
    // They are counted as often as they are there.
    fs.let_ttl_pass();
    fs.bucket
        .delete(&Key::new("./dot"), Precondition::None)
        .await
        .unwrap();
    fs.ls("").await;
    assert_eq!(fs.status().unshowable_names, 1);
    assert_eq!(fs.read("a/%2F/b").await.unwrap(), b"x");
    assert_eq!(fs.read("%2F/lead").await.unwrap(), b"x");
}

/// A segment that no name has room for is shown as its beginning and a hash of all of it.
#[tokio::test]
async fn a_key_whose_segments_are_longer_than_names_is_a_file_like_any() {
    let fs = TestFs::memory().await;
    let [one, other] = ["1", "2"].map(|end| "n".repeat(300) + end);
    let directory = "\u{e9}".repeat(140);
    fs.put_object(&one, b"one").await;
    fs.put_object(&other, b"other").await;
    fs.put_object(&format!("{directory}/file"), b"below").await;
    let names = fs.ls("").await;
    let [shown, _, below] = &names[..] else {
        panic!("{names:?}");
    };
    let contents = [
        fs.read(&names[0]).await.unwrap(),
        fs.read(&names[1]).await.unwrap(),
    ];
    assert!(contents.contains(&b"one".to_vec()) && contents.contains(&b"other".to_vec()));
    let below = below.trim_end_matches('/');
    assert_eq!(fs.status().unshowable_names, 0);

    // Whoever has the name can use it before anybody has listed the directory.
    let fs = fs.remounted().await;
    let file = format!("{below}/file");
    assert_eq!(fs.read(&file).await.unwrap(), b"below");
    assert!(matches!(fs.ino("n%~0123").await, Err(FsError::NoEntry)));
    let unknown = fs.write("n%~0123", b"new").await;
    assert!(matches!(unknown, Err(FsError::Name(_))));

    // It is written, moved and removed as others are, in the next process too.
    fs.write(&file, b"changed").await.unwrap();
    fs.write(shown, b"changed too").await.unwrap();
    fs.mkdir("d").await.unwrap();
    let moved = format!("d/{shown}");
    fs.rename(shown, &moved).await.unwrap();
    let open = fs.open(&moved).await.unwrap();
    open.write_at(0, b"CHANGED").unwrap();
    let fs = fs.after_kill().await;
    assert_eq!(fs.read(&moved).await.unwrap(), b"CHANGED too");
    let fs = fs.after_crash().await;
    assert_eq!(fs.read(&moved).await.unwrap(), b"CHANGED too");
    assert_eq!(fs.read(&file).await.unwrap(), b"changed");
    fs.unlink(&names[1]).await.unwrap();
    fs.drained().await;
    let keys = fs.keys().await;
    assert_eq!(keys.len(), 3, "{keys:?}");
    assert!(keys.contains(&format!("{directory}/file")), "{keys:?}");
    let long = keys.iter().find(|key| key.starts_with("d/n")).unwrap();
    assert!([one, other].contains(&long[2..].to_owned()), "{long}");
    assert_eq!(fs.ls("d").await, std::slice::from_ref(shown));
}

#[tokio::test]
async fn a_file_and_a_directory_of_one_name_are_both_there() {
    let fs = TestFs::memory().await;
    fs.put_object("foo", b"the file").await;
    fs.put_object("foo-bar", b"-").await;
    fs.put_object("foo/x", b"inside").await;
    assert_eq!(fs.ls("").await, ["foo%file", "foo-bar", "foo/"]);
    assert_eq!(fs.read("foo%file").await.unwrap(), b"the file");
    assert_eq!(fs.read("foo/x").await.unwrap(), b"inside");
    let other = fs.other_host().await;
    assert_eq!(other.read("foo%file").await.unwrap(), b"the file");
    assert!(matches!(
        other.read("nothing%file").await,
        Err(FsError::NoEntry)
    ));
}

#[tokio::test]
async fn names_that_cannot_be_keys_are_refused_when_they_are_made_and_absent_when_looked_up() {
    let fs = TestFs::memory().await;
    use std::os::unix::ffi::OsStrExt;
    let latin1 = OsStr::from_bytes(b"caf\xe9");
    assert!(matches!(
        fs.lookup(ROOT, latin1).await,
        Err(FsError::NoEntry)
    ));
    let made = fs.mkdir_raw(latin1).await;
    assert!(matches!(made, Err(FsError::Name(_))));
    let long = "n".repeat(256);
    assert!(matches!(fs.mkdir(&long).await, Err(FsError::Name(_))));
    assert!(matches!(
        fs.mkdir(".bucketvol").await,
        Err(FsError::Reserved)
    ));
}

#[tokio::test]
async fn a_path_that_no_key_can_have_is_refused_when_it_is_made() {
    let fs = TestFs::memory().await;
    let directory = "d".repeat(255);
    let mut path = String::new();
    // A directory's key ends in a slash: 4 * 256 bytes.
    for _ in 0..4 {
        path.push_str(&directory);
        fs.mkdir(&path).await.unwrap();
        path.push('/');
    }
    let too_long =
        |done: Result<(), FsError>| matches!(done, Err(FsError::Name(NameError::KeyTooLong)));
    assert!(too_long(fs.mkdir(&format!("{path}x")).await.map(drop)));
    assert!(too_long(fs.write(&format!("{path}x"), b"").await));
    fs.write("x", b"").await.unwrap();
    assert!(too_long(fs.rename("x", &format!("{path}x")).await));
    fs.drained().await;
    assert!(fs.keys().await.contains(&path));
}

on_each_store! {
    async fn our_own_objects_are_not_shown(fs: TestFs) {
        fs.put_object(".bucketvol/orphans/x", b"x").await;
        fs.put_object("a", b"x").await;
        assert_eq!(fs.ls("").await, ["a"]);
        assert!(matches!(fs.ino(".bucketvol").await, Err(FsError::NoEntry)));
    }
}

#[tokio::test]
async fn a_large_directory_is_read_page_by_page_and_whole() {
    let fs = TestFs::memory().await;
    for i in 0..2500 {
        fs.put_object(&format!("d/{i:05}"), b"").await;
    }
    let ino = fs.ino("d").await.unwrap();
    let fh = fs.opendir(ino).await.unwrap();
    let lists = fs.bucket.requests().of("list");
    let first = fs.readdir(fh, 0).await.unwrap();
    assert_eq!(
        fs.bucket.requests().of("list") - lists,
        1,
        "the first entries wait for one page"
    );
    assert_eq!((&*first[0].name, &*first[1].name), (".", ".."));
    let names = fs.ls("d").await;
    assert_eq!(names.len(), 2500);
    assert_eq!(names[1234], "01234");
}

#[tokio::test]
async fn who_reads_a_directory_on_has_the_next_attributes_asked_for_meanwhile() {
    let fs = TestFs::memory().await;
    for i in 0..1000 {
        fs.put_object(&format!("d/{i:04}"), b"12345").await;
    }
    let fh = fs.opendir(fs.ino("d").await.unwrap()).await.unwrap();
    let before = fs.bucket.requests().of("head");
    let heads = || fs.bucket.requests().of("head") - before;
    let first = fs.readdir(fh, 0).await.unwrap();
    let window = first.len() as u64 - 2;
    assert_eq!(
        heads(),
        window,
        "who looks at the beginning may not want more"
    );
    let second = fs.readdir(fh, first.last().unwrap().next).await.unwrap();
    fs.eventually(async || heads() == 3 * window).await;
    let third = fs.readdir(fh, second.last().unwrap().next).await.unwrap();
    assert_eq!(third.len() as u64, window);
    fs.eventually(async || heads() == 1000).await;
    assert!(third.iter().all(|entry| entry.attr.size == 5));
    assert_eq!(fs.ls("d").await.len(), 1000);
    assert_eq!(heads(), 1000, "each once");
}

#[tokio::test]
async fn a_directory_of_more_names_than_there_is_memory_for_is_listed_and_found_whole() {
    let bucket = Arc::new(Bucket::memory());
    let fs = TestFs::in_little_memory(bucket, WriteOptions::default()).await;
    for i in 0..1200 {
        fs.put_object(&format!("d/{i:04}"), b"12345").await;
    }
    let entries = fs.entries("d").await.unwrap();
    assert_eq!(entries.len(), 1200);
    assert!(entries.iter().all(|entry| entry.attr.size == 5));
    // What was dropped is there all the same, and what is not there is not.
    fs.ino("d/0000").await.unwrap();
    assert!(matches!(fs.ino("d/none").await, Err(FsError::NoEntry)));
    fs.put_object("d/new", b"").await;
    fs.let_ttl_pass();
    assert_eq!(fs.ls("d").await.len(), 1201);
}

#[tokio::test]
async fn a_listing_that_is_fresh_answers_lookups_that_fail() {
    let fs = TestFs::memory().await;
    fs.put_object("a", b"x").await;
    fs.ls("").await;
    let (found, requests) = fs.requests_of(fs.ino("nothing")).await;
    assert!(matches!(found, Err(FsError::NoEntry)));
    assert_eq!(requests, 0);
}

#[tokio::test]
async fn what_was_looked_up_is_believed_for_the_ttl_and_asked_again_after_it() {
    let fs = TestFs::memory().await;
    fs.put_object("a", b"x").await;
    fs.ino("a").await.unwrap();
    let (_, requests) = fs.requests_of(fs.ino("a")).await;
    assert_eq!(requests, 0);
    fs.let_ttl_pass();
    let (_, requests) = fs.requests_of(fs.ino("a")).await;
    assert_eq!(requests, 1, "one HEAD");
}

on_each_store! {
    async fn a_new_file_is_listed_before_it_is_uploaded(fs: TestFs) {
        fs.put_object("a", b"x").await;
        let file = fs.create("b").await.unwrap();
        file.write_at(0, b"12345").unwrap();
        fs.let_ttl_pass();
        assert_eq!(fs.ls("").await, ["a", "b"]);
        assert_eq!(fs.attr("b").await.unwrap().size, 5);
        assert_eq!(fs.keys().await, ["a"]);
    }
}

on_each_store! {
    async fn symbolic_links_keep_their_target(fs: TestFs) {
        let ino = fs.symlink("link", "../some/where").await.unwrap();
        assert_eq!(&fs.readlink(ino).await.unwrap()[..], b"../some/where");
        let other = fs.other_host().await;
        let entries = other.entries("").await.unwrap();
        assert_eq!(entries[0].attr.kind, FileKind::Symlink);
        assert_eq!(
            &other.readlink(entries[0].ino).await.unwrap()[..],
            b"../some/where"
        );
    }
}

on_each_store! {
    async fn a_link_of_geesefs_has_its_target_beside_an_empty_body(fs: TestFs) {
        let said = BTreeMap::from([("--symlink-target".to_owned(), "..%2Fsome%20where".to_owned())]);
        let metadata = Metadata {
            user: said,
            ..Metadata::default()
        };
        let (key, body) = (Key::new("link"), Bytes::new());
        let put = fs.bucket.put(&key, body, metadata, Precondition::None);
        put.await.unwrap();
        let entries = fs.entries("").await.unwrap();
        assert_eq!(entries[0].attr.kind, FileKind::Symlink);
        let target = fs.readlink(entries[0].ino).await.unwrap();
        assert_eq!(&target[..], b"../some where");
        for size in [entries[0].attr.size, fs.attr("link").await.unwrap().size] {
            assert_eq!(size, target.len() as u64);
        }
    }
}
