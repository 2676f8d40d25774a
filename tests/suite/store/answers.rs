//! What a person is told when the store says no: one line, the mend, never a secret.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bucketvol::clock::{Clock as _, ManualClock, SystemClock};
use bucketvol::config::credentials::CredentialProvider;
use bucketvol::config::options::EndpointOptions;
use bucketvol::config::{Location, Scheme};
use bucketvol::store::{Bucket, Key, Metadata, Precondition, StoreError};
use bytes::Bytes;

use crate::common::fake_http::{FakeHttp, Reply};
use crate::common::s3_server::{S3Server, credentials};

const SECRET: &str = "very-secret-indeed";

pub(super) fn location(bucket: &str) -> Location {
    Location {
        scheme: Scheme::S3,
        bucket: bucket.to_owned(),
        prefix: String::new(),
    }
}

pub(super) fn options(url: &str) -> EndpointOptions {
    EndpointOptions {
        url: Some(url.to_owned()),
        region: None,
        path_style: true,
        tls_verify: true,
    }
}

pub(super) fn bucket(url: &str) -> Bucket {
    let clock = SystemClock::shared();
    let who = credentials("AKTEST", SECRET);
    Bucket::connect(&location("photos"), &options(url), None, who, clock).unwrap()
}

/// What `check` says, in time and in one line.
async fn refusal(bucket: &Bucket) -> StoreError {
    let started = Instant::now();
    let error = bucket.check().await.unwrap_err();
    assert!(
        started.elapsed() < Duration::from_secs(12),
        "{:?}",
        started.elapsed()
    );
    let text = format!("{error} {error:?}");
    assert!(
        !text.contains(SECRET) && !text.contains("test-secret"),
        "{text}"
    );
    assert!(
        !text.contains("Signature=") && !error.to_string().contains('\n'),
        "{text}"
    );
    error
}

async fn refused_with(bucket: &Bucket, words: &[&str]) {
    let error = refusal(bucket).await;
    assert!(!error.is_transient(), "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "{word:?} in: {error}");
    }
}

#[tokio::test]
async fn wrong_credentials_and_a_missing_bucket_are_told_apart() {
    let server = S3Server::start().await;
    let connect = |name: &str, key: &str, secret: &str| {
        let who = credentials(key, secret);
        let clock = SystemClock::shared();
        Bucket::connect(&location(name), &server.options(), None, who, clock).unwrap()
    };
    let wrong_secret = connect(&server.bucket, &server.key, SECRET);
    refused_with(&wrong_secret, &["test-bucket", "correct secret_access_key"]).await;
    let wrong_key = connect(&server.bucket, "AKNOBODY", SECRET);
    refused_with(&wrong_key, &["access key id"]).await;
    let wrong_bucket = connect("elsewhere", &server.key, &server.secret);
    refused_with(&wrong_bucket, &["no bucket `elsewhere`", &server.endpoint]).await;
    let nobody = Arc::new(CredentialProvider::fixed(None));
    let clock = SystemClock::shared();
    let unsigned =
        Bucket::connect(&location("photos"), &server.options(), None, nobody, clock).unwrap();
    let StoreError::Refused { denied, .. } = refusal(&unsigned).await else {
        panic!("not refused")
    };
    assert!(denied);
    // HEAD has no body to say why; the reason is found all the same.
    let error = wrong_secret
        .head(&Key::new("x"))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("correct secret_access_key"), "{error}");
}

#[tokio::test]
async fn odd_credentials_are_refused_and_not_repeated() {
    let server = S3Server::start().await;
    for key in ["AK\n", "sch\u{fc}ssel", ""] {
        let who = credentials(key, SECRET);
        let clock = SystemClock::shared();
        let bucket =
            Bucket::connect(&server.location(""), &server.options(), None, who, clock).unwrap();
        refused_with(&bucket, &["access_key_id"]).await;
    }
}

#[tokio::test]
async fn a_closed_port_is_said_within_ten_seconds() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = refusal(&bucket(&url)).await;
    assert!(
        error.is_transient() && error.to_string().contains("refused"),
        "{error}"
    );
    assert!(error.to_string().contains(&url), "{error}");
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up_within_ten_seconds() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let error = refusal(&bucket(&url)).await;
    assert!(
        error.is_transient() && error.to_string().contains("no answer"),
        "{error}"
    );
}

#[tokio::test]
async fn a_host_name_that_does_not_resolve_is_said() {
    let error = refusal(&bucket("http://no-such-host.invalid")).await;
    assert!(
        error.is_transient() && error.to_string().contains("resolve"),
        "{error}"
    );
}

#[tokio::test]
async fn https_to_a_port_of_http_names_the_mend() {
    let server = S3Server::start().await;
    let url = server.endpoint.replace("http://", "https://");
    refused_with(&bucket(&url), &["write http://"]).await;
}

#[tokio::test]
async fn http_to_a_port_of_https_names_the_mend() {
    // An alert, which is what TLS servers answer to bytes that are no TLS.
    let alert = FakeHttp::start(|_, _| Reply::raw(b"\x15\x03\x01\x00\x02\x02\x46")).await;
    // Words, which is what those in Go and nginx answer.
    let words = FakeHttp::start(|_, _| {
        Reply::new(
            400,
            &[],
            "Client sent an HTTP request to an HTTPS server.\n",
        )
    })
    .await;
    let redirect =
        FakeHttp::start(|_, _| Reply::new(301, &[("Location", "https://s3.test/photos")], ""))
            .await;
    for fake in [alert, words, redirect] {
        refused_with(
            &bucket(&format!("http://{}", fake.address)),
            &["write https://"],
        )
        .await;
    }
}

#[tokio::test]
async fn a_clock_that_is_off_says_by_how_much() {
    let clock = ManualClock::shared();
    clock.advance(Duration::from_secs(3600));
    let theirs = httpdate::fmt_http_date(clock.wall() - Duration::from_secs(3600));
    let fake = FakeHttp::start(move |_, _| {
        let body = "<Error><Code>RequestTimeTooSkewed</Code></Error>";
        Reply::new(403, &[("Date", &theirs)], body)
    })
    .await;
    let url = format!("http://{}", fake.address);
    let who = credentials("AKTEST", SECRET);
    let bucket = Bucket::connect(&location("photos"), &options(&url), None, who, clock).unwrap();
    refused_with(&bucket, &["1h ahead of", "set the clock"]).await;
}

#[tokio::test]
async fn what_is_no_s3_server_is_named_as_such() {
    let fake = FakeHttp::start(|_, _| Reply::new(200, &[], "<html>Console</html>")).await;
    refused_with(
        &bucket(&format!("http://{}", fake.address)),
        &["none of S3's"],
    )
    .await;
}

#[tokio::test]
async fn keys_that_http_would_bend_are_refused_before_they_are_sent() {
    let fake = FakeHttp::start(|_, _| Reply::new(200, &[], "")).await;
    let bucket = bucket(&format!("http://{}", fake.address));
    for name in ["a/../b", "./a", "..", "a/."] {
        let key = Key::new(name);
        let body = Bytes::from_static(b"x");
        let put = bucket
            .put(&key, body, Metadata::default(), Precondition::None)
            .await;
        assert!(matches!(put, Err(StoreError::Refused { .. })), "{put:?}");
    }
    assert!(fake.requests().is_empty());
}

#[tokio::test]
async fn an_error_inside_an_answer_of_success_is_an_error() {
    let fake = FakeHttp::start(|_, request| match request.header("x-amz-copy-source") {
        "" => Reply::error(404, "NoSuchKey", ""),
        _ => Reply::error(200, "AccessDenied", "no"),
    })
    .await;
    let bucket = bucket(&format!("http://{}", fake.address));
    let options = bucketvol::store::CopyOptions {
        source_version: None,
        metadata: bucketvol::store::MetadataDirective::Copy,
    };
    let copy = bucket
        .copy(&Key::new("a"), &Key::new("b"), &options, 1)
        .await;
    assert!(
        matches!(copy, Err(StoreError::Refused { denied: true, .. })),
        "{copy:?}"
    );
}
