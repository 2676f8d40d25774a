//! What every store has to do alike.

use std::collections::BTreeMap;
use std::sync::Arc;

use bucketvol::clock::SystemClock;
use bucketvol::store::{
    Bucket, CopyOptions, Key, ListEntry, ListRequest, MemoryStore, Metadata, MetadataDirective,
    ObjectVersion, Precondition, StoreError,
};
use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt as _;

use crate::common::s3_server::S3Server;

/// What a kind of store cannot do, and why that is so.
#[derive(Debug, Clone, Copy, Default)]
struct Limits {
    /// A file and a directory of one name cannot both be there.
    one_kind_per_name: bool,
    /// `a//b` and `/a` have no place in a file system.
    no_empty_segments: bool,
    /// A marker is a directory: it has no bytes.
    empty_markers: bool,
    /// `s3s-fs` neither lists empty directories nor answers a HEAD of one.
    no_markers: bool,
    /// The test's server copies whole objects' metadata only.
    no_metadata_replace: bool,
    /// Completing an upload checks nothing.
    unchecked_complete: bool,
    /// The test's server does not say which uploads have not ended.
    unlisted_uploads: bool,
    /// The test's server repeats `encoding-type` and does not encode.
    plain_listing: bool,
    /// Directories are seen in full listings, marked or not.
    every_directory_is_marked: bool,
}

fn key(text: &str) -> Key {
    Key::new(text)
}

fn user(pairs: &[(&str, &str)]) -> Metadata {
    let user = pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    Metadata {
        user,
        headers: BTreeMap::new(),
    }
}

async fn put(bucket: &Bucket, name: &str, body: impl Into<Bytes>) -> ObjectVersion {
    bucket
        .put(
            &key(name),
            body.into(),
            Metadata::default(),
            Precondition::None,
        )
        .await
        .unwrap()
}

async fn read(bucket: &Bucket, name: &str) -> Bytes {
    let object = bucket.head(&key(name)).await.unwrap().unwrap();
    range(bucket, name, 0..object.size, &object.version)
        .await
        .unwrap()
}

async fn range(
    bucket: &Bucket,
    name: &str,
    range: std::ops::Range<u64>,
    version: &ObjectVersion,
) -> Result<Bytes, StoreError> {
    let body = bucket.get(&key(name), range, version).await?;
    Ok(body.try_collect::<BytesMut>().await?.freeze())
}

/// All entries below a prefix, `/` at the end of folded ones, in pages of `max_keys`.
async fn list(bucket: &Bucket, prefix: &str, delimiter: bool, max_keys: usize) -> Vec<String> {
    let mut request = ListRequest {
        prefix: key(prefix),
        delimiter,
        max_keys,
        continuation: None,
    };
    let mut names = Vec::new();
    for _ in 0..1000 {
        let page = bucket.list(&request).await.unwrap();
        assert!(page.entries.len() <= max_keys);
        names.extend(page.entries.iter().map(|entry| match entry {
            ListEntry::Object { key, .. } | ListEntry::Prefix(key) => key.as_str().to_owned(),
        }));
        match page.continuation {
            Some(continuation) => request.continuation = Some(continuation),
            None => return names,
        }
    }
    panic!("the listing does not end");
}

async fn conforms(bucket: Bucket, limits: Limits) {
    bucket.check().await.unwrap();
    bytes_come_back(&bucket).await;
    conditions_hold(&bucket).await;
    metadata_travel(&bucket, limits).await;
    listings_are_ordered_and_paged(&bucket, limits).await;
    markers_are_objects(&bucket, limits).await;
    odd_keys_hide_nothing(&bucket, limits).await;
    copies_carry_what_they_should(&bucket, limits).await;
    parts_make_an_object(&bucket, limits).await;
    deletes_are_quiet(&bucket).await;
}

async fn bytes_come_back(bucket: &Bucket) {
    assert!(bucket.head(&key("nothing")).await.unwrap().is_none());
    let large: Vec<u8> = (0..700_000_u32).map(|n| (n % 251) as u8).collect();
    for body in [&b""[..], b"x", &large] {
        let version = put(bucket, "file", body.to_vec()).await;
        let object = bucket.head(&key("file")).await.unwrap().unwrap();
        assert_eq!(
            (object.size, &object.version),
            (body.len() as u64, &version)
        );
        assert_eq!(read(bucket, "file").await, body);
    }
    let object = bucket.head(&key("file")).await.unwrap().unwrap();
    let middle = range(bucket, "file", 1000..500_000, &object.version)
        .await
        .unwrap();
    assert_eq!(middle, &large[1000..500_000]);
    // Another version's bytes are never mixed in.
    put(bucket, "file", "new").await;
    let stale = range(bucket, "file", 0..1, &object.version).await;
    assert!(
        matches!(stale, Err(StoreError::Precondition { .. })),
        "{stale:?}"
    );
    let gone = range(bucket, "nothing", 0..1, &object.version).await;
    assert!(matches!(gone, Err(StoreError::NotFound { .. })), "{gone:?}");
}

async fn conditions_hold(bucket: &Bucket) {
    let name = key("conditions");
    let put = async |body: &'static str, condition: Precondition| {
        bucket
            .put(
                &name,
                Bytes::from_static(body.as_bytes()),
                Metadata::default(),
                condition,
            )
            .await
    };
    let first = put("first", Precondition::Absent).await.unwrap();
    let error = put("other", Precondition::Absent).await.unwrap_err();
    assert!(matches!(error, StoreError::AlreadyExists { .. }), "{error}");
    let second = put("second!", Precondition::Version(first.clone()))
        .await
        .unwrap();
    assert_ne!(first, second);
    let error = put("third", Precondition::Version(first.clone()))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, StoreError::Precondition { key } if *key == name),
        "{error}"
    );
    assert_eq!(read(bucket, "conditions").await, "second!");
    let error = bucket
        .delete(&name, Precondition::Version(first.clone()))
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Precondition { .. }), "{error}");
    bucket
        .delete(&name, Precondition::Version(second))
        .await
        .unwrap();
    assert!(bucket.head(&name).await.unwrap().is_none());
    let error = put("late", Precondition::Version(first)).await.unwrap_err();
    assert!(matches!(error, StoreError::Precondition { .. }), "{error}");
}

async fn metadata_travel(bucket: &Bucket, limits: Limits) {
    let mut metadata = user(&[
        ("mode", "33188"),
        ("name", "caf\u{e9} \u{4e16}"),
        ("plain", "a  b"),
    ]);
    metadata
        .headers
        .insert("content-type".into(), "text/x-test".into());
    metadata
        .headers
        .insert("cache-control".into(), "no-cache".into());
    let name = key("metadata");
    let body = Bytes::from_static(b"body");
    let version = bucket
        .put(&name, body, metadata.clone(), Precondition::None)
        .await
        .unwrap();
    assert_eq!(
        bucket.head(&name).await.unwrap().unwrap().metadata,
        metadata
    );
    if limits.no_metadata_replace {
        return;
    }
    metadata.user.insert("mode".into(), "33261".into());
    metadata.user.remove("plain");
    let version = bucket
        .replace_metadata(&name, 4, &version, metadata.clone())
        .await
        .unwrap();
    let object = bucket.head(&name).await.unwrap().unwrap();
    assert_eq!(
        (object.metadata, &object.version),
        (metadata.clone(), &version)
    );
    assert_eq!(read(bucket, "metadata").await, "body");
    let stale = ObjectVersion("\"0123\"".into());
    let error = bucket
        .replace_metadata(&name, 4, &stale, metadata)
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Precondition { .. }), "{error}");
}

async fn listings_are_ordered_and_paged(bucket: &Bucket, limits: Limits) {
    for name in [
        "list/a",
        "list/b/1",
        "list/b/2",
        "list/b.txt",
        "list/b0",
        "list/c/d/e",
        "list/z",
    ] {
        put(bucket, name, "x").await;
    }
    let folded = [
        "list/a",
        "list/b.txt",
        "list/b/",
        "list/b0",
        "list/c/",
        "list/z",
    ];
    let mut whole = vec![
        "list/a",
        "list/b.txt",
        "list/b/1",
        "list/b/2",
        "list/b0",
        "list/c/d/e",
        "list/z",
    ];
    if limits.every_directory_is_marked {
        whole.extend(["list/", "list/b/", "list/c/", "list/c/d/"]);
        whole.sort_unstable();
    }
    for max_keys in [1, 2, 3, 1000] {
        let mut names = list(bucket, "list/", true, max_keys).await;
        names.retain(|name| name != "list/");
        assert_eq!(names, folded, "{max_keys} a page");
        assert_eq!(
            list(bucket, "list/", false, max_keys).await,
            whole,
            "{max_keys} a page"
        );
    }
    assert_eq!(
        list(bucket, "list/b", true, 2).await,
        ["list/b.txt", "list/b/", "list/b0"]
    );
    assert!(list(bucket, "list/nothing", true, 10).await.is_empty());
    let request = ListRequest {
        prefix: key("list/a"),
        delimiter: true,
        max_keys: 9,
        continuation: None,
    };
    let page = bucket.list(&request).await.unwrap();
    let object = bucket.head(&key("list/a")).await.unwrap().unwrap();
    let ListEntry::Object {
        size,
        version,
        modified,
        ..
    } = &page.entries[0]
    else {
        panic!("{page:?}");
    };
    assert_eq!(*size, 1);
    // Some listings of the test's server have no ETag; one that is there is the same as HEAD's.
    assert!(version.0.is_empty() || *version == object.version);
    let apart = modified.duration_since(object.modified).unwrap_or_default();
    assert!(apart.as_secs() < 2, "{modified:?} {:?}", object.modified);
}

async fn markers_are_objects(bucket: &Bucket, limits: Limits) {
    if limits.no_markers {
        return;
    }
    let marker = key("marks/dir/");
    let metadata = user(&[("mode", "16877")]);
    bucket
        .put(&marker, Bytes::new(), metadata.clone(), Precondition::None)
        .await
        .unwrap();
    let object = bucket.head(&marker).await.unwrap().unwrap();
    assert_eq!((object.size, object.metadata), (0, metadata));
    assert!(bucket.head(&key("marks/dir")).await.unwrap().is_none());
    assert!(
        list(bucket, "marks/", true, 10)
            .await
            .contains(&"marks/dir/".to_owned())
    );
    assert!(
        list(bucket, "marks/dir/", true, 10)
            .await
            .iter()
            .all(|name| name == "marks/dir/")
    );
    put(bucket, "marks/dir/child", "x").await;
    bucket
        .delete(&key("marks/dir/child"), Precondition::None)
        .await
        .unwrap();
    bucket.delete(&marker, Precondition::None).await.unwrap();
    assert!(
        !list(bucket, "marks/", true, 10)
            .await
            .contains(&"marks/dir/".to_owned())
    );
    if !limits.empty_markers {
        put(bucket, "marks/full/", "a body").await;
        assert_eq!(read(bucket, "marks/full/").await, "a body");
    }
}

async fn odd_keys_hide_nothing(bucket: &Bucket, limits: Limits) {
    let mut names = vec![
        "odd/space in it",
        "odd/\u{e9}\u{4e16}",
        "odd/#hash?query&amp",
        "odd/~{}[]^|\\",
        "odd/semi;colon:at@",
        "odd/...",
        "odd/<xml>\"'",
    ];
    if !limits.plain_listing {
        names.extend([
            "odd/100%",
            "odd/%2Fpercent",
            "odd/plus+plus",
            "odd/tab\tnewline\n",
            "odd/\u{1}",
        ]);
    }
    if !limits.no_empty_segments {
        names.extend(["odd//double", "odd/a///b"]);
    }
    if !limits.one_kind_per_name {
        names.extend(["odd/both", "odd/both/inside"]);
    }
    for name in &names {
        put(bucket, name, *name).await;
    }
    for name in &names {
        assert_eq!(read(bucket, name).await, *name);
    }
    let mut listed = list(bucket, "odd/", false, 1000).await;
    listed.retain(|name| !name.ends_with('/'));
    names.sort_unstable();
    assert_eq!(listed, names);
    assert!(list(bucket, "odd/", true, 1000).await.len() >= 7);
    let keys: Vec<Key> = names.iter().map(|name| key(name)).collect();
    let left = bucket.delete_many(&keys).await.unwrap();
    assert!(left.is_empty(), "{left:?}");
    let mut listed = list(bucket, "odd/", false, 1000).await;
    listed.retain(|name| !name.ends_with('/'));
    assert!(listed.is_empty(), "{listed:?}");
}

async fn copies_carry_what_they_should(bucket: &Bucket, limits: Limits) {
    let metadata = user(&[("mode", "33188"), ("mtime", "1700000000.5")]);
    let from = key("copy/from +%\u{e9}");
    let body = Bytes::from_static(b"copied");
    let version = bucket
        .put(&from, body.clone(), metadata.clone(), Precondition::None)
        .await
        .unwrap();
    let mut options = CopyOptions {
        source_version: Some(version.clone()),
        metadata: MetadataDirective::Copy,
    };
    let to = key("copy/to");
    let copied = bucket.copy(&from, &to, &options, 6).await.unwrap();
    let object = bucket.head(&to).await.unwrap().unwrap();
    assert_eq!((object.metadata, object.version), (metadata, copied));
    assert_eq!(read(bucket, "copy/to").await, "copied");
    if !limits.no_metadata_replace {
        let other = user(&[("mode", "33261")]);
        options.metadata = MetadataDirective::Replace(other.clone());
        bucket.copy(&from, &to, &options, 6).await.unwrap();
        assert_eq!(bucket.head(&to).await.unwrap().unwrap().metadata, other);
        put(bucket, from.as_str(), "changed").await;
        let error = bucket.copy(&from, &to, &options, 6).await.unwrap_err();
        assert!(matches!(error, StoreError::Precondition { .. }), "{error}");
    }
    options.source_version = None;
    options.metadata = MetadataDirective::Copy;
    let error = bucket
        .copy(&key("copy/nothing"), &to, &options, 6)
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
}

async fn parts_make_an_object(bucket: &Bucket, limits: Limits) {
    const PART: usize = 5 << 20;
    let name = key("parts/whole");
    let metadata = user(&[("mode", "33188")]);
    let first = Bytes::from(vec![1_u8; PART]);
    let source_body: Vec<u8> = (0..=252).cycle().take(PART + 100).collect();
    let source = put(bucket, "parts/source", source_body.clone()).await;
    let upload = bucket
        .create_multipart(&name, metadata.clone())
        .await
        .unwrap();
    let last = bucket
        .put_part(&name, &upload, 3, Bytes::from_static(b"end"))
        .await
        .unwrap();
    let one = bucket
        .put_part(&name, &upload, 1, first.clone())
        .await
        .unwrap();
    let two = bucket
        .copy_part(
            &name,
            &upload,
            2,
            &key("parts/source"),
            100..PART as u64 + 100,
            &source,
        )
        .await
        .unwrap();
    assert!(bucket.head(&name).await.unwrap().is_none());
    let parts = [one, two, last];
    let version = bucket
        .complete_multipart(&name, &upload, &parts, Precondition::Absent)
        .await
        .unwrap();
    let object = bucket.head(&name).await.unwrap().unwrap();
    assert_eq!(
        (object.version, object.metadata),
        (version.clone(), metadata)
    );
    let mut whole = first.to_vec();
    whole.extend_from_slice(&source_body[100..]);
    whole.extend_from_slice(b"end");
    assert_eq!(read(bucket, "parts/whole").await, whole);

    let upload = bucket
        .create_multipart(&name, Metadata::default())
        .await
        .unwrap();
    let part = bucket
        .put_part(&name, &upload, 1, Bytes::from_static(b"new"))
        .await
        .unwrap();
    if !limits.unchecked_complete {
        let stale = Precondition::Version(ObjectVersion("\"0123\"".into()));
        let parts = std::slice::from_ref(&part);
        let error = bucket
            .complete_multipart(&name, &upload, parts, stale)
            .await
            .unwrap_err();
        assert!(matches!(error, StoreError::Precondition { .. }), "{error}");
    }
    let condition = Precondition::Version(version);
    bucket
        .complete_multipart(&name, &upload, &[part], condition)
        .await
        .unwrap();
    assert_eq!(read(bucket, "parts/whole").await, "new");

    let upload = bucket
        .create_multipart(&name, Metadata::default())
        .await
        .unwrap();
    bucket
        .put_part(&name, &upload, 1, Bytes::from_static(b"dropped"))
        .await
        .unwrap();
    if !limits.unlisted_uploads {
        let open = bucket.list_multipart(None).await.unwrap().uploads;
        assert_eq!(open.len(), 1, "{open:?}");
        assert_eq!(open[0].key, name);
        let now = SystemClock::shared().wall();
        let hour = std::time::Duration::from_secs(3600);
        assert!((now - hour..now + hour).contains(&open[0].begun));
        // Whoever has its name from there can give it up.
        bucket
            .abort_multipart(&name, &open[0].upload)
            .await
            .unwrap();
        let open = bucket.list_multipart(None).await.unwrap().uploads;
        assert_eq!(open, []);
    }
    bucket.abort_multipart(&name, &upload).await.unwrap();
    assert_eq!(read(bucket, "parts/whole").await, "new");
}

async fn deletes_are_quiet(bucket: &Bucket) {
    bucket
        .delete(&key("nothing/here"), Precondition::None)
        .await
        .unwrap();
    let mut keys = Vec::new();
    for n in 0..30 {
        let name = format!("many/{n}");
        put(bucket, &name, "x").await;
        keys.push(key(&name));
    }
    keys.push(key("many/never was"));
    assert!(bucket.delete_many(&keys).await.unwrap().is_empty());
    let mut left = list(bucket, "many/", false, 1000).await;
    left.retain(|name| name != "many/");
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn memory_conforms() {
    conforms(Bucket::memory(), Limits::default()).await;
}

#[tokio::test]
async fn a_prefix_of_memory_conforms_and_leaves_the_rest_alone() {
    let store = Arc::new(MemoryStore::new(SystemClock::shared()));
    let at = |prefix: &str| {
        let mut location = Bucket::memory().location().clone();
        location.prefix = prefix.to_owned();
        let store: Arc<MemoryStore> = Arc::clone(&store);
        Bucket::new(store, location)
    };
    put(&at(""), "volum", "x").await;
    put(&at(""), "volume2/file", "x").await;
    conforms(at("volume"), Limits::default()).await;
    assert_eq!(
        list(&at(""), "volum", true, 10).await,
        ["volum", "volume/", "volume2/"]
    );
    assert!(list(&at("volume2"), "", false, 10).await == ["file"]);
}

#[tokio::test]
async fn s3_conforms() {
    let server = S3Server::start().await;
    conforms(server.bucket("some/volume"), Limits::default()).await;
    conforms(server.bucket(""), Limits::default()).await;
}

#[tokio::test]
async fn metadata_that_s3_answers_as_bytes_are_the_text_they_were() {
    let server = S3Server::start().await;
    let bucket = server.bucket("");
    let latin1 = ("latin1".to_owned(), "caf\u{e9}".to_owned());
    let utf8 = (
        "utf8".to_owned(),
        "\u{41c}\u{43e}\u{441}\u{43a}\u{432}\u{430}".to_owned(),
    );
    let metadata = Metadata {
        user: BTreeMap::from([latin1, utf8]),
        ..Metadata::default()
    };
    let key = Key::new("file");
    let put = bucket.put(&key, Bytes::new(), metadata.clone(), Precondition::None);
    put.await.unwrap();
    for bytes in [false, true] {
        server.answer_bytes(bytes);
        let object = bucket.head(&key).await.unwrap().unwrap();
        for (name, value) in &metadata.user {
            assert_eq!(
                object.metadata.user.get(name),
                Some(value),
                "bytes: {bytes}"
            );
        }
    }
}

#[tokio::test]
async fn an_s3_server_of_others_conforms_as_far_as_it_goes() {
    let server = S3Server::start_s3s_fs().await;
    let limits = Limits {
        one_kind_per_name: true,
        no_empty_segments: true,
        empty_markers: true,
        no_markers: true,
        no_metadata_replace: false,
        unchecked_complete: true,
        unlisted_uploads: true,
        plain_listing: true,
        every_directory_is_marked: false,
    };
    conforms(server.bucket("some/volume"), limits).await;
}

#[tokio::test]
async fn a_directory_conforms() {
    let directory = tempfile::TempDir::new().unwrap();
    let limits = Limits {
        one_kind_per_name: true,
        no_empty_segments: true,
        empty_markers: true,
        ..Limits::default()
    };
    conforms(super::local::bucket(&directory, "some/volume"), limits).await;
}

#[cfg(feature = "s3-tests")]
#[tokio::test]
async fn garage_conforms_its_region_found_out() {
    let garage = crate::common::garage::Garage::start();
    let account = garage.account();
    let (name, key, secret) = (
        &account.bucket,
        &account.access_key_id,
        &account.secret_access_key,
    );
    let options = super::answers::options(&account.endpoint);
    let who = crate::common::s3_server::credentials(key, secret);
    let mut location = super::answers::location(name);
    location.prefix = format!("conformance-{}", uuid::Uuid::new_v4());
    let bucket = Bucket::connect(&location, &options, None, who, SystemClock::shared()).unwrap();
    conforms(bucket, Limits::default()).await;

    let wrong = |name: &str, key: &str, secret: &str| {
        let who = crate::common::s3_server::credentials(key, secret);
        let location = super::answers::location(name);
        Bucket::connect(&location, &options, None, who, SystemClock::shared()).unwrap()
    };
    for (bucket, word) in [
        (
            wrong("no-such-bucket-here", key, secret),
            "no-such-bucket-here",
        ),
        (wrong(name, key, "wrong"), "secret_access_key"),
        (
            wrong(name, "GK0123456789abcdef01234567", secret),
            "access_key_id",
        ),
    ] {
        let error = bucket.check().await.unwrap_err();
        assert!(
            !error.is_transient() && error.to_string().contains(word),
            "{error}"
        );
    }
}
