use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use bucketvol::config::options::WriteOptions;
use bucketvol::fs::{Format, Formats, FsError, RequestId, SetAttr, Settings, XattrMode};
use bucketvol::store::{Bucket, Key, Metadata, Precondition};
use bytes::Bytes;

use crate::common::fault_store::faulty_bucket;
use crate::common::test_fs::{ROOT, TestFs, pattern};

/// What stands in an object's metadata of its extended attributes.
async fn in_the_bucket(fs: &TestFs, key: &str) -> Option<String> {
    let object = fs.bucket.head(&Key::new(key)).await.unwrap().unwrap();
    object.metadata.user.get("xattr").cloned()
}

async fn put_with(fs: &TestFs, key: &str, user: &[(&str, &str)]) {
    let pairs = user.iter();
    let metadata = Metadata {
        user: pairs
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
        headers: BTreeMap::from([("content-type".to_owned(), "text/x-test".to_owned())]),
    };
    let (key, body) = (Key::new(key), Bytes::from_static(b"body"));
    let put = fs.bucket.put(&key, body, metadata, Precondition::None);
    put.await.unwrap();
}

fn one(name: &str, value: &[u8]) -> BTreeMap<String, Vec<u8>> {
    BTreeMap::from([(name.to_owned(), value.to_vec())])
}

const HELLO: &str = "%7B%22user.a%22%3A%22aGVsbG8%3D%22%7D";

on_each_store! {
    async fn extended_attributes_persist_in_the_object_as_s3fs_has_them(fs: TestFs) {
        fs.write("file", pattern(1000)).await.unwrap();
        fs.mkdir("dir").await.unwrap();
        fs.put_object("implicit/x", b"").await;
        fs.let_ttl_pass();
        fs.create("new").await.unwrap();
        for path in ["file", "dir", "implicit", "new", ""] {
            fs.setxattr(path, "user.a", b"hello").await.unwrap();
            assert_eq!(fs.xattrs(path).await.unwrap(), one("user.a", b"hello"));
        }
        fs.drained().await;
        let other = fs.other_host().await;
        for path in ["file", "dir", "implicit", "new", ""] {
            assert_eq!(other.xattrs(path).await.unwrap(), one("user.a", b"hello"), "{path}");
        }
        for key in ["file", "dir/", "implicit/", "new"] {
            assert_eq!(in_the_bucket(&fs, key).await.as_deref(), Some(HELLO), "{key}");
        }
        assert!(fs.object("file").await.unwrap() == pattern(1000));
        // The last one leaves nothing behind.
        for path in ["file", "dir"] {
            fs.removexattr(path, "user.a").await.unwrap();
        }
        fs.drained().await;
        assert_eq!(in_the_bucket(&fs, "file").await, None);
        assert_eq!(in_the_bucket(&fs, "dir/").await, None);
        assert_eq!(fs.other_host().await.xattrs("file").await.unwrap(), BTreeMap::new());
    }
}

#[tokio::test]
async fn a_name_that_is_there_or_is_not_is_told() {
    let fs = TestFs::memory().await;
    fs.write("a", b"").await.unwrap();
    let ino = fs.ino("a").await.unwrap();
    let set = async |value: &'static [u8], mode| {
        fs.setxattr_as(ino, OsStr::new("user.a"), value, mode).await
    };
    let replaced = set(b"1", XattrMode::Replace).await;
    assert!(matches!(replaced, Err(FsError::NoAttribute)));
    set(b"1", XattrMode::Create).await.unwrap();
    let created = set(b"2", XattrMode::Create).await;
    assert!(matches!(created, Err(FsError::Exists)));
    set(b"3", XattrMode::Replace).await.unwrap();
    fs.setxattr("a", "user.b", b"").await.unwrap();
    let both = [("user.a", &b"3"[..]), ("user.b", b"")];
    let both = both.map(|(name, value)| (name.to_owned(), value.to_vec()));
    assert_eq!(fs.xattrs("a").await.unwrap(), BTreeMap::from(both));
    fs.removexattr("a", "user.a").await.unwrap();
    for done in [
        fs.removexattr("a", "user.a").await,
        fs.getxattr(ino, OsStr::new("user.a")).await.map(drop),
    ] {
        assert!(matches!(done, Err(FsError::NoAttribute)), "{done:?}");
    }
}

/// The kernel asks for `security.capability` before every write.
#[tokio::test]
async fn other_namespaces_are_not_supported_and_asking_costs_nothing() {
    let fs = TestFs::memory().await;
    fs.put_object("a", b"x").await;
    let ino = fs.ino("a").await.unwrap();
    fs.let_ttl_pass();
    for name in [
        "security.capability",
        "security.selinux",
        "trusted.overlay.opaque",
        "system.posix_acl_access",
        "com.apple.FinderInfo",
        "users.a",
    ] {
        let name = OsStr::new(name);
        let (got, requests) = fs.requests_of(fs.getxattr(ino, name)).await;
        assert!(matches!(got, Err(FsError::Unsupported(_))), "{name:?}");
        assert_eq!(requests, 0);
        let set = fs.setxattr_as(ino, name, b"1", XattrMode::Set).await;
        assert!(matches!(set, Err(FsError::Unsupported(_))), "{name:?}");
    }
    let nameless = fs.setxattr("a", "user.", b"1").await;
    assert!(matches!(nameless, Err(FsError::Invalid(_))));
}

#[tokio::test]
async fn an_extended_attribute_that_has_the_value_sends_nothing() {
    let fs = TestFs::memory().await;
    fs.write("a", b"x").await.unwrap();
    fs.setxattr("a", "user.a", b"hello").await.unwrap();
    fs.drained().await;
    let before = (fs.attr("a").await.unwrap(), fs.journal_bytes());
    let work = async {
        fs.setxattr("a", "user.a", b"hello").await.unwrap();
        fs.drained().await;
    };
    let ((), requests) = fs.requests_of(work).await;
    assert_eq!(requests, 0);
    assert_eq!((fs.attr("a").await.unwrap(), fs.journal_bytes()), before);
    fs.clock.advance(Duration::from_secs(1));
    fs.setxattr("a", "user.a", b"bye").await.unwrap();
    let after = fs.attr("a").await.unwrap();
    assert!(after.ctime > before.0.ctime && after.mtime == before.0.mtime);
    // The bytes are not sent again.
    let puts = fs.bucket.requests().of("put");
    fs.drained().await;
    assert_eq!(fs.bucket.requests().of("put"), puts);
}

on_each_store! {
    async fn they_survive_the_death_of_the_daemon(fs: TestFs) {
        fs.write("clean", b"clean").await.unwrap();
        fs.mkdir("dir").await.unwrap();
        fs.write("changed", pattern(300_000)).await.unwrap();
        let changed = fs.open("changed").await.unwrap();
        changed.write_at(100_000, b"changed").unwrap();
        let new = fs.create("new").await.unwrap();
        new.write_at(0, b"new").unwrap();
        let paths = ["clean", "dir", "changed", "new", ""];
        for path in paths {
            fs.setxattr(path, "user.gone", b"1").await.unwrap();
            fs.setxattr(path, "user.a", path.as_bytes()).await.unwrap();
            fs.removexattr(path, "user.gone").await.unwrap();
        }
        new.write_at(3, b" too").unwrap();

        let fs = fs.after_crash().await;
        for path in paths {
            assert_eq!(fs.xattrs(path).await.unwrap(), one("user.a", path.as_bytes()), "{path}");
        }
        let mut expected = pattern(300_000);
        expected[100_000..100_007].copy_from_slice(b"changed");
        assert!(fs.read("changed").await.unwrap() == expected);
        assert_eq!(fs.read("new").await.unwrap(), b"new too");
        let fs = fs.after_crash().await;
        fs.drained().await;
        let other = fs.other_host().await;
        for path in paths {
            assert_eq!(other.xattrs(path).await.unwrap(), one("user.a", path.as_bytes()), "{path}");
        }
        assert!(fs.object("changed").await.unwrap() == expected);
    }
}

on_each_store! {
    async fn they_and_the_metadata_of_others_stay_with_a_file_whatever_is_done_to_it(fs: TestFs) {
        put_with(&fs, "a", &[("owner", "me"), ("xattr", HELLO)]).await;
        fs.rename("a", "b").await.unwrap();
        fs.mkdir("d").await.unwrap();
        fs.setxattr("d", "user.d", b"").await.unwrap();
        fs.rename("b", "d/b").await.unwrap();
        fs.setxattr("d/b", "user.b", b"1").await.unwrap();
        fs.rename("d", "e").await.unwrap();
        let file = fs.open("e/b").await.unwrap();
        file.write_at(1, b"O").unwrap();
        file.close().await.unwrap();
        let mode = SetAttr { mode: Some(0o600), ..SetAttr::default() };
        fs.setattr("e/b", mode).await.unwrap();
        fs.removexattr("e/b", "user.b").await.unwrap();
        fs.drained().await;
        let object = fs.bucket.head(&Key::new("e/b")).await.unwrap().unwrap();
        assert_eq!(object.metadata.user["owner"], "me");
        assert_eq!(object.metadata.user["xattr"], HELLO);
        assert_eq!(object.metadata.headers["content-type"], "text/x-test");
        assert_eq!(fs.object("e/b").await.unwrap(), b"bOdy");
        assert_eq!(fs.xattrs("e").await.unwrap(), one("user.d", b""));
        assert_eq!(fs.other_host().await.xattrs("e").await.unwrap(), one("user.d", b""));
    }
}

/// Attributes of other namespaces that s3fs has stored, and names that nobody can ask for, stay where they are.
#[tokio::test]
async fn what_others_have_written_there_is_kept() {
    let fs = TestFs::memory().await;
    let others =
        "{\"security.x\":\"MQ==\",\"user.\":\"\",\"user.a\":\"Mg==\",\"user.b\\u0000\":\"\"}";
    put_with(&fs, "some", &[("xattr", others)]).await;
    assert_eq!(fs.xattrs("some").await.unwrap(), one("user.a", b"2"));
    fs.removexattr("some", "user.a").await.unwrap();
    fs.drained().await;
    let left = in_the_bucket(&fs, "some").await.unwrap();
    let left: String = percent_encoding::percent_decode_str(&left)
        .decode_utf8()
        .unwrap()
        .into();
    assert_eq!(
        left,
        "{\"security.x\":\"MQ==\",\"user.\":\"\",\"user.b\\u0000\":\"\"}"
    );

    put_with(&fs, "garbled", &[("xattr", "no JSON")]).await;
    assert_eq!(fs.xattrs("garbled").await.unwrap(), BTreeMap::new());
    let set = fs.setxattr("garbled", "user.a", b"1").await;
    assert!(matches!(set, Err(FsError::Unsupported(_))));
    let removed = fs.removexattr("garbled", "user.a").await;
    assert!(matches!(removed, Err(FsError::NoAttribute)));
    let file = fs.open("garbled").await.unwrap();
    file.write_at(0, b"B").unwrap();
    file.close().await.unwrap();
    assert_eq!(fs.object("garbled").await.unwrap(), b"Body");
    let kept = in_the_bucket(&fs, "garbled").await;
    assert_eq!(kept.as_deref(), Some("no JSON"));
}

on_each_store! {
    async fn more_than_an_object_can_have_is_refused_at_once(fs: TestFs) {
        fs.write("a", b"x").await.unwrap();
        let too_much = fs.setxattr("a", "user.a", &[b'x'; 2048]).await;
        assert!(matches!(too_much, Err(FsError::MetadataFull)));
        let mut names = Vec::new();
        let refused = loop {
            let name = format!("user.{}", names.len());
            match fs.setxattr("a", &name, b"0123456789").await {
                Ok(()) => names.push(name),
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, FsError::MetadataFull), "{refused}");
        assert!(names.len() > 30, "{} fit", names.len());
        // As long as they can be.
        let change = SetAttr {
            uid: Some(u32::MAX - 1),
            gid: Some(u32::MAX - 1),
            mode: Some(0o7777),
            ..SetAttr::default()
        };
        fs.setattr("a", change).await.unwrap();
        fs.drained().await;
        assert_eq!(fs.other_host().await.xattrs("a").await.unwrap().len(), names.len());
        fs.removexattr("a", "user.0").await.unwrap();
        fs.setxattr("a", "user.0", b"0123456789").await.unwrap();
    }
}

/// What an upload under way has frozen is not what the file has when it ends.
#[tokio::test(start_paused = true)]
async fn one_that_is_set_during_an_upload_is_sent_by_the_next() {
    let (bucket, faults) = faulty_bucket();
    let fs = Arc::new(TestFs::with(bucket, WriteOptions::default()).await);
    fs.mkdir("dir").await.unwrap();
    fs.write("file", b"x").await.unwrap();
    faults.delay(Duration::from_secs(1));
    let drain = tokio::spawn({
        let fs = Arc::clone(&fs);
        async move { fs.drained().await }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    for path in ["dir", "file"] {
        fs.setxattr(path, "user.a", b"hello").await.unwrap();
    }
    drain.await.unwrap();
    faults.end();
    for (path, key) in [("dir", "dir/"), ("file", "file")] {
        assert_eq!(fs.xattrs(path).await.unwrap(), one("user.a", b"hello"));
        assert_eq!(in_the_bucket(&fs, key).await.as_deref(), Some(HELLO));
    }
}

#[tokio::test]
async fn an_open_file_without_a_name_keeps_them_through_a_kill() {
    let fs = TestFs::with(Arc::new(Bucket::memory()), WriteOptions::default()).await;
    let file = fs.create("a").await.unwrap();
    fs.unlink("a").await.unwrap();
    let name = OsStr::new("user.a");
    let request = RequestId::new(7, 2);
    let set = fs.setxattr_as(file.ino, name, b"1", XattrMode::Create);
    request.scope(set).await.unwrap();
    let fs = fs.after_kill().await;
    assert!(fs.was_done(request), "or it would be EEXIST");
    assert_eq!(fs.getxattr(file.ino, name).await.unwrap(), b"1");
    fs.still_open(&file).close().await.unwrap();
}

#[tokio::test]
async fn those_of_a_directory_that_was_removed_are_nothing_to_the_bucket() {
    let fs = TestFs::with(Arc::new(Bucket::memory()), WriteOptions::default()).await;
    let ino = fs.mkdir("d").await.unwrap();
    fs.drained().await;
    fs.rmdir("d").await.unwrap();
    let name = OsStr::new("user.a");
    let set = fs.setxattr_as(ino, name, b"1", XattrMode::Set).await;
    set.unwrap();
    assert_eq!(fs.getxattr(ino, name).await.unwrap(), b"1");
    fs.drained().await;
    assert_eq!((fs.keys().await, fs.status().pending), (vec![], vec![]));
}

/// Until a release is trusted, the one before it may have to read what it has written: that knows no record of
/// metadata alone.
#[tokio::test]
async fn in_the_format_before_they_survive_too() {
    let on_trial = |settings: &mut Settings| settings.formats = Formats::on_trial(Format::CURRENT);
    let bucket = Arc::new(Bucket::memory());
    let fs = TestFs::tuned(Arc::clone(&bucket), on_trial).await;
    fs.write("clean", b"clean").await.unwrap();
    fs.mkdir("dir").await.unwrap();
    fs.drained().await;
    let staged = fs.create("staged").await.unwrap();
    staged.write_at(0, b"staged").unwrap();
    let paths = ["clean", "dir", "staged", ""];
    let request = |at| RequestId::new(7, at);
    let name = OsStr::new("user.a");
    for (at, path) in (0..).zip(paths) {
        let ino = fs.ino(path).await.unwrap();
        let set = fs.setxattr_as(ino, name, path.as_bytes(), XattrMode::Create);
        request(at).scope(set).await.unwrap();
    }
    staged.write_at(6, b" on").unwrap();
    assert_eq!(fs.object("staged").await.unwrap(), b"staged");
    let journal = fs.journal();
    assert_eq!(journal[8..12], 2_u32.to_le_bytes());

    let fs = fs.after_crash().await;
    for (at, path) in (0..).zip(paths) {
        assert_eq!(
            fs.xattrs(path).await.unwrap(),
            one("user.a", path.as_bytes())
        );
        assert!(fs.was_done(request(at)), "{path}");
    }
    assert_eq!(fs.read("staged").await.unwrap(), b"staged on");
    fs.drained().await;
    assert_eq!(
        fs.other_host().await.xattrs("staged").await.unwrap(),
        one("user.a", b"staged")
    );
}

/// The root of a bucket used whole has no marker of its own.
#[tokio::test]
async fn those_of_the_root_are_there_through_a_kill_and_for_another_host() {
    let fs = TestFs::memory().await;
    fs.setxattr("", "user.a", b"1").await.unwrap();
    let fs = fs.after_kill().await;
    assert_eq!(fs.xattrs("").await.unwrap(), one("user.a", b"1"));
    fs.drained().await;
    let fs = fs.after_kill().await;
    assert_eq!(fs.getxattr(ROOT, OsStr::new("user.a")).await.unwrap(), b"1");
    let other = fs.other_host().await;
    assert_eq!(other.xattrs("").await.unwrap(), one("user.a", b"1"));
    assert_eq!(fs.ls("").await, [""; 0]);
}
