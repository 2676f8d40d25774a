//! What only a directory can get wrong: paths that lead out, files of other programs.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;

use bucketvol::clock::SystemClock;
use bucketvol::config::credentials::CredentialProvider;
use bucketvol::config::options::EndpointOptions;
use bucketvol::config::{Location, Scheme};
use bucketvol::store::{Bucket, Key, ListEntry, ListRequest, Metadata, Precondition, StoreError};
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use tempfile::TempDir;

/// The store in a directory.
pub(super) fn bucket(directory: &TempDir, prefix: &str) -> Bucket {
    connect(directory.path().to_str().unwrap(), prefix).unwrap()
}

fn connect(path: &str, prefix: &str) -> Result<Bucket, StoreError> {
    let location = Location {
        scheme: Scheme::File,
        bucket: path.to_owned(),
        prefix: prefix.to_owned(),
    };
    let options = EndpointOptions {
        url: None,
        region: None,
        path_style: true,
        tls_verify: true,
    };
    let nobody = Arc::new(CredentialProvider::fixed(None));
    Bucket::connect(&location, &options, None, nobody, SystemClock::shared())
}

async fn put(bucket: &Bucket, name: &str) -> Result<(), StoreError> {
    let body = Bytes::from_static(b"body");
    let none = Precondition::None;
    bucket
        .put(&Key::new(name), body, Metadata::default(), none)
        .await
        .map(|_| ())
}

async fn list(bucket: &Bucket, prefix: &str, delimiter: bool) -> Vec<String> {
    let request = ListRequest {
        prefix: Key::new(prefix),
        delimiter,
        max_keys: 1000,
        continuation: None,
    };
    let page = bucket.list(&request).await.unwrap();
    let names = page.entries.iter().map(|entry| match entry {
        ListEntry::Object { key, .. } | ListEntry::Prefix(key) => key.as_str().to_owned(),
    });
    names.collect()
}

#[tokio::test]
async fn no_key_leads_out_of_the_directory() {
    let outer = TempDir::new().unwrap();
    fs::write(outer.path().join("secret"), "secret").unwrap();
    fs::create_dir(outer.path().join("inner")).unwrap();
    let inner = outer.path().join("inner");
    symlink("../secret", inner.join("link")).unwrap();
    symlink("..", inner.join("up")).unwrap();
    fs::write(inner.join("file"), "x").unwrap();
    let bucket = connect(inner.to_str().unwrap(), "").unwrap();
    for name in [
        "../secret",
        "up/secret",
        "link",
        "a/../../secret",
        "./file",
        "/file",
        "",
        "up/",
    ] {
        assert!(
            bucket.head(&Key::new(name)).await.unwrap().is_none(),
            "{name:?}"
        );
        bucket
            .delete(&Key::new(name), Precondition::None)
            .await
            .unwrap();
    }
    for name in [
        "../new",
        "up/new",
        "a/../../new",
        "/new",
        "a//b",
        "./x",
        "a\0b",
    ] {
        assert!(put(&bucket, name).await.is_err(), "{name:?}");
    }
    assert_eq!(list(&bucket, "", true).await, ["file"]);
    assert!(list(&bucket, "up/", true).await.is_empty());
    assert!(list(&bucket, "../", true).await.is_empty());
    assert_eq!(fs::read(outer.path().join("secret")).unwrap(), b"secret");
    assert!(!outer.path().join("new").exists());
    // A name in the way is replaced, not followed.
    put(&bucket, "link").await.unwrap();
    assert_eq!(fs::read(outer.path().join("secret")).unwrap(), b"secret");
    assert_eq!(fs::read(inner.join("link")).unwrap(), b"body");
}

#[tokio::test]
async fn files_of_other_programs_are_objects_and_ours_are_files() {
    let directory = TempDir::new().unwrap();
    let bucket = bucket(&directory, "");
    fs::create_dir_all(directory.path().join("theirs/empty")).unwrap();
    fs::write(directory.path().join("theirs/file"), "theirs").unwrap();
    assert_eq!(
        list(&bucket, "", false).await,
        ["theirs/empty/", "theirs/file"]
    );
    let key = Key::new("theirs/file");
    let object = bucket.head(&key).await.unwrap().unwrap();
    assert_eq!(object.metadata, Metadata::default());

    // Changed in place while it is read: never a mixture.
    let body = bucket.get(&key, 0..6, &object.version).await.unwrap();
    fs::write(directory.path().join("theirs/file"), "longer now").unwrap();
    let read = body.try_collect::<Vec<_>>().await;
    assert!(
        matches!(read, Err(StoreError::Precondition { .. })),
        "{read:?}"
    );

    put(&bucket, "ours/file").await.unwrap();
    assert_eq!(
        fs::read(directory.path().join("ours/file")).unwrap(),
        b"body"
    );
    // Only what is in it made the directory.
    bucket
        .delete(&Key::new("ours/file"), Precondition::None)
        .await
        .unwrap();
    assert!(!directory.path().join("ours").exists());
    assert!(directory.path().exists());
}

#[tokio::test]
async fn half_done_work_is_never_seen() {
    let directory = TempDir::new().unwrap();
    let bucket = bucket(&directory, "");
    let key = Key::new("file");
    put(&bucket, "file").await.unwrap();
    let upload = bucket
        .create_multipart(&key, Metadata::default())
        .await
        .unwrap();
    bucket
        .put_part(&key, &upload, 1, Bytes::from_static(b"part"))
        .await
        .unwrap();
    assert!(put(&bucket, "file/below").await.is_err());
    for (prefix, delimiter) in [("", true), ("", false)] {
        assert_eq!(list(&bucket, prefix, delimiter).await, ["file"]);
    }
    assert!(
        list(&bucket, ".bucketvol/", true)
            .await
            .iter()
            .all(|name| name == ".bucketvol/")
    );
    assert!(
        bucket
            .head(&Key::new(".bucketvol/tmp/x"))
            .await
            .unwrap()
            .is_none()
    );
    assert!(put(&bucket, ".bucketvol/tmp/x").await.is_err());
    let drafts = fs::read_dir(directory.path().join(".bucketvol/tmp")).unwrap();
    assert_eq!(drafts.count(), 0, "a draft was left behind");
    // The rest of that corner belongs to the layers above.
    put(&bucket, ".bucketvol/orphans/1").await.unwrap();
    assert_eq!(list(&bucket, "", true).await, [".bucketvol/", "file"]);
    bucket.abort_multipart(&key, &upload).await.unwrap();
    bucket.abort_multipart(&key, &upload).await.unwrap();
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_named() {
    let error = connect("/nonexistent/directory", "")
        .unwrap_err()
        .to_string();
    assert!(error.contains("/nonexistent/directory"), "{error}");
}

#[tokio::test]
async fn one_of_many_creators_wins() {
    let directory = TempDir::new().unwrap();
    let bucket = bucket(&directory, "");
    let creations = (0..20).map(|n: u8| {
        let bucket = bucket.clone();
        tokio::spawn(async move {
            let body = Bytes::from(vec![n]);
            let metadata = Metadata::default();
            bucket
                .put(&Key::new("dir/one"), body, metadata, Precondition::Absent)
                .await
        })
    });
    let mut won = 0;
    for creation in creations.collect::<Vec<_>>() {
        match creation.await.unwrap() {
            Ok(_) => won += 1,
            Err(StoreError::AlreadyExists { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(won, 1);
}
