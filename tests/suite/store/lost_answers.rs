//! What is done when an answer is late, cut or lost on the way: nothing twice, nothing by halves.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bucketvol::store::{
    Bucket, ConditionalWrites, Key, ListRequest, Metadata, ObjectVersion, PartTag, Precondition,
    StoreError,
};
use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt as _;
use parking_lot::Mutex;

use super::answers::bucket;
use crate::common::fake_http::{FakeHttp, Reply, Request};
use crate::common::s3_server::S3Server;

fn at(fake: &FakeHttp) -> Bucket {
    bucket(&format!("http://{}", fake.address))
}

fn version() -> ObjectVersion {
    ObjectVersion("\"v1\"".into())
}

async fn put(bucket: &Bucket, condition: Precondition) -> Result<ObjectVersion, StoreError> {
    let body = Bytes::from_static(b"body");
    bucket
        .put(&Key::new("key"), body, Metadata::default(), condition)
        .await
}

/// The bytes that a range names, with the header that says so.
fn ranged(request: &Request, whole: &[u8], cut: Option<usize>) -> Reply {
    let range = request.header("range").strip_prefix("bytes=").unwrap();
    let (first, last) = range.split_once('-').unwrap();
    let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
    let body = &whole[first..=last];
    let length = body.len().to_string();
    let sent = &body[..cut.unwrap_or(body.len()).min(body.len())];
    Reply::new(
        206,
        &[("ETag", "\"v1\""), ("Content-Length", &length)],
        sent,
    )
}

#[tokio::test]
async fn a_body_cut_midway_is_resumed_where_it_broke() {
    let whole: Arc<Vec<u8>> = Arc::new((0..100_000_u32).map(|n| (n % 251) as u8).collect());
    let body = Arc::clone(&whole);
    let fake = FakeHttp::start(move |before, request| {
        let cut = [Some(30_000), Some(0), Some(20_000), None];
        ranged(request, &body, cut[before.min(3)])
    })
    .await;
    let bucket = at(&fake);
    let stream = bucket
        .get(&Key::new("key"), 1000..90_000, &version())
        .await
        .unwrap();
    let read = stream.try_collect::<BytesMut>().await.unwrap();
    assert!(read == whole[1000..90_000]);
    let ranges: Vec<_> = fake
        .requests()
        .iter()
        .map(|r| r.header("range").to_owned())
        .collect();
    let expected = [
        "bytes=1000-89999",
        "bytes=31000-89999",
        "bytes=31000-89999",
        "bytes=51000-89999",
    ];
    assert_eq!(ranges, expected);
    assert!(
        fake.requests()
            .iter()
            .all(|request| request.header("if-match") == "\"v1\"")
    );
    assert_eq!(bucket.requests().of("get"), 4);
}

#[tokio::test]
async fn a_body_is_never_made_of_two_versions() {
    let whole = vec![7_u8; 10_000];
    let fake = FakeHttp::start(move |before, request| match before {
        0 => ranged(request, &whole, Some(100)),
        _ => Reply::error(412, "PreconditionFailed", ""),
    })
    .await;
    let stream = at(&fake)
        .get(&Key::new("key"), 0..10_000, &version())
        .await
        .unwrap();
    let read = stream.try_collect::<BytesMut>().await;
    assert!(
        matches!(read, Err(StoreError::Precondition { .. })),
        "{read:?}"
    );

    // Nor where the store passes over If-Match.
    let fake = FakeHttp::start(|_, _| Reply::new(206, &[("ETag", "\"v2\"")], "other bytes")).await;
    let read = at(&fake)
        .get(&Key::new("key"), 0..11, &version())
        .await
        .err();
    assert!(
        matches!(read, Some(StoreError::Precondition { .. })),
        "{read:?}"
    );
}

#[tokio::test]
async fn a_store_that_passes_over_ranges_gives_the_right_bytes() {
    let fake = FakeHttp::start(|_, _| Reply::new(200, &[("ETag", "\"v1\"")], "0123456789")).await;
    let stream = at(&fake)
        .get(&Key::new("key"), 3..6, &version())
        .await
        .unwrap();
    assert_eq!(stream.try_collect::<BytesMut>().await.unwrap(), "345");
}

/// A store that does a write and loses the answer `lost` times; `foreign`: another write came first.
async fn losing(lost: usize, foreign: bool) -> FakeHttp {
    let written = Arc::new(Mutex::new(foreign.then(|| "0".repeat(32))));
    FakeHttp::start(move |before, request| {
        let mut written = written.lock();
        match request.method.as_str() {
            "HEAD" => match &*written {
                Some(id) => Reply::new(
                    200,
                    &[("ETag", "\"v1\""), ("x-amz-meta-bucketvol-write", id)],
                    "",
                ),
                None => Reply::new(404, &[], ""),
            },
            _ if written.is_some() && before > 0 => Reply::error(412, "PreconditionFailed", ""),
            _ => {
                if !foreign {
                    let id = request.header("x-amz-meta-bucketvol-write");
                    *written = Some(id.to_owned());
                }
                if before < lost {
                    Reply::nothing()
                } else {
                    Reply::new(200, &[("ETag", "\"v1\"")], "")
                }
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_put_that_was_done_but_whose_answer_was_lost_is_our_own_success() {
    for condition in [
        Precondition::Absent,
        Precondition::Version(ObjectVersion("\"v0\"".into())),
    ] {
        let fake = losing(1, false).await;
        let bucket = at(&fake);
        assert_eq!(put(&bucket, condition).await.unwrap(), version());
        assert_eq!(
            (bucket.requests().of("put"), bucket.requests().of("head")),
            (3, 1)
        );
    }
}

#[tokio::test]
async fn another_s_write_is_not_taken_for_ours() {
    let fake = losing(1, true).await;
    let error = put(&at(&fake), Precondition::Absent).await.unwrap_err();
    assert!(matches!(error, StoreError::AlreadyExists { .. }), "{error}");
}

#[tokio::test]
async fn the_write_id_is_not_shown() {
    let fake = losing(0, false).await;
    let bucket = at(&fake);
    put(&bucket, Precondition::None).await.unwrap();
    let object = bucket.head(&Key::new("key")).await.unwrap().unwrap();
    assert!(object.metadata.user.is_empty(), "{:?}", object.metadata);
}

#[tokio::test]
async fn an_upload_completed_in_secret_is_our_own_success() {
    let (id, done) = (Mutex::new(String::new()), AtomicBool::new(false));
    let fake = FakeHttp::start(move |_, request| {
        let begins = request.target.contains("uploads");
        match request.method.as_str() {
            "POST" if begins => {
                *id.lock() = request.header("x-amz-meta-bucketvol-write").to_owned();
                Reply::new(200, &[], "<R><UploadId>u/1</UploadId></R>")
            }
            "POST" if done.swap(true, Ordering::Relaxed) => Reply::error(404, "NoSuchUpload", ""),
            "POST" => Reply::nothing(),
            _ if !done.load(Ordering::Relaxed) => Reply::new(404, &[], ""),
            _ => {
                let id = id.lock().clone();
                let headers = [("ETag", "\"v1\""), ("x-amz-meta-bucketvol-write", &id)];
                Reply::new(200, &headers, "")
            }
        }
    })
    .await;
    let bucket = at(&fake);
    let key = Key::new("key");
    let upload = bucket
        .create_multipart(&key, Metadata::default())
        .await
        .unwrap();
    let parts = [PartTag("\"p\"".into())];
    let done = bucket
        .complete_multipart(&key, &upload, &parts, Precondition::Absent)
        .await;
    assert_eq!(done.unwrap(), version());
    let completed = fake
        .requests()
        .into_iter()
        .find(|r| r.target.contains("uploadId="));
    assert!(completed.unwrap().target.ends_with("uploadId=u%2F1"));
}

#[tokio::test]
async fn a_store_that_is_overloaded_is_asked_again_and_every_attempt_counted() {
    let fake = FakeHttp::start(|before, _| match before {
        0 => Reply::error(503, "SlowDown", ""),
        1 => Reply::new(429, &[("Retry-After", "1")], ""),
        2 => Reply::error(400, "RequestTimeout", ""),
        3 => Reply::nothing(),
        _ => Reply::empty_listing(),
    })
    .await;
    let bucket = at(&fake);
    let request = ListRequest {
        prefix: Key::root(),
        delimiter: false,
        max_keys: 1,
        continuation: None,
    };
    let started = Instant::now();
    assert!(bucket.list(&request).await.unwrap().entries.is_empty());
    assert!(
        started.elapsed() > Duration::from_secs(1),
        "did not wait as it was asked to"
    );
    assert_eq!(bucket.requests().of("list"), 5);
    let json = serde_json::to_string(&bucket.requests()).unwrap();
    assert_eq!(json, r#"{"list":5}"#);
}

#[tokio::test]
async fn a_region_is_learned_from_the_refusal_and_kept() {
    let fake = FakeHttp::start(|_, request| {
        if request
            .header("authorization")
            .contains("/garage/s3/aws4_request")
        {
            return Reply::empty_listing();
        }
        Reply::error(
            400,
            "AuthorizationHeaderMalformed",
            "unexpected scope, expected scope: 20260101/garage/s3/aws4_request",
        )
    })
    .await;
    let bucket = at(&fake);
    bucket.check().await.unwrap();
    bucket.check().await.unwrap();
    assert_eq!(fake.requests().len(), 3);
}

/// A store of one key that does not check conditions: it refuses them or passes over them.
async fn unchecking(refuses: bool) -> FakeHttp {
    let objects = Arc::new(Mutex::new(BTreeSet::new()));
    FakeHttp::start_bare(move |_, request| {
        let mut objects = objects.lock();
        let key = request.target.clone();
        let conditional = request.headers.keys().any(|name| name.starts_with("if-"));
        match request.method.as_str() {
            "PUT" | "DELETE" if conditional && refuses => Reply::error(501, "NotImplemented", ""),
            "PUT" => {
                objects.insert(key);
                Reply::new(200, &[("ETag", "\"v1\"")], "")
            }
            "HEAD" if objects.contains(&key) => Reply::new(200, &[("ETag", "\"v1\"")], ""),
            "HEAD" => Reply::new(404, &[], ""),
            _ => {
                objects.remove(&key);
                Reply::new(204, &[], "")
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_store_that_does_not_check_conditions_is_looked_at_first() {
    for refuses in [true, false] {
        let fake = unchecking(refuses).await;
        let bucket = at(&fake);
        assert_eq!(bucket.conditional_writes(), None);
        put(&bucket, Precondition::Absent).await.unwrap();
        let known = bucket.conditional_writes();
        assert_eq!(known, Some(ConditionalWrites::LookedAt));
        let error = put(&bucket, Precondition::Absent).await.unwrap_err();
        assert!(matches!(error, StoreError::AlreadyExists { .. }), "{error}");
        let stale = Precondition::Version(ObjectVersion("\"v0\"".into()));
        let error = put(&bucket, stale.clone()).await.unwrap_err();
        assert!(matches!(error, StoreError::Precondition { .. }), "{error}");
        put(&bucket, Precondition::Version(version()))
            .await
            .unwrap();
        let error = bucket.delete(&Key::new("key"), stale).await.unwrap_err();
        assert!(matches!(error, StoreError::Precondition { .. }), "{error}");
        bucket
            .delete(&Key::new("key"), Precondition::Version(version()))
            .await
            .unwrap();
        bucket
            .delete(&Key::new("key"), Precondition::Version(version()))
            .await
            .unwrap();
        // What it was tried with is gone again.
        let mut probes = fake
            .requests()
            .into_iter()
            .filter(|r| r.target.contains("/probe-"));
        assert_eq!(probes.next_back().unwrap().method, "DELETE");
    }
}

#[tokio::test]
async fn trying_the_conditions_costs_one_request_and_writes_nothing() {
    let server = S3Server::start().await;
    let bucket = server.bucket("volume");
    for name in ["a", "b", "c"] {
        let body = Bytes::from_static(b"x");
        let metadata = Metadata::default();
        bucket
            .put(&Key::new(name), body, metadata, Precondition::Absent)
            .await
            .unwrap();
    }
    let request = ListRequest {
        prefix: Key::root(),
        delimiter: false,
        max_keys: 10,
        continuation: None,
    };
    assert_eq!(bucket.list(&request).await.unwrap().entries.len(), 3);
    assert_eq!(bucket.requests().of("put"), 4);
    assert_eq!(bucket.requests().of("head"), 0);
}

#[tokio::test]
async fn a_store_without_batch_deletes_gets_single_ones() {
    let fake = FakeHttp::start(|_, request| match request.method.as_str() {
        "POST" => Reply::error(501, "NotImplemented", ""),
        _ if request.target.contains("locked") => Reply::error(403, "AccessDenied", ""),
        _ => Reply::new(204, &[], ""),
    })
    .await;
    let bucket = at(&fake);
    let keys = ["a", "b", "locked"].map(Key::new);
    for _ in 0..2 {
        let left = bucket.delete_many(&keys).await.unwrap();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].0, keys[2]);
    }
    let batches = fake
        .requests()
        .iter()
        .filter(|request| request.method == "POST")
        .count();
    assert_eq!(batches, 1);
}
