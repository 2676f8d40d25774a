use super::*;
use crate::store::ObjectVersion;

const NOW: u64 = 1_767_225_600;

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| ((*name).parse().unwrap(), value.parse().unwrap()))
        .collect()
}

fn failure(status: u16, code: &str, message: &str) -> Failure {
    let body = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    );
    Failure::read(
        StatusCode::from_u16(status).unwrap(),
        &HeaderMap::new(),
        body.as_bytes(),
    )
}

fn explain(failure: &Failure, key: Option<&Key>, condition: &Precondition) -> StoreError {
    failure.explain(&Asked {
        place: "bucket `photos` at http://s3.test",
        bucket: "photos",
        endpoint: "http://s3.test",
        key,
        condition,
        verb: WRITE,
        now: now(),
    })
}

#[test]
fn every_code_has_its_kind_and_its_words() {
    // Status, code, transient, denied, words that have to be in it.
    let table: &[(u16, &str, bool, bool, &str)] = &[
        (
            404,
            "NoSuchBucket",
            false,
            false,
            "no bucket `photos` at http://s3.test",
        ),
        (
            403,
            "InvalidAccessKeyId",
            false,
            true,
            "access key id is not known",
        ),
        (
            403,
            "SignatureDoesNotMatch",
            false,
            true,
            "correct secret_access_key",
        ),
        (403, "AccessDenied", false, true, "not allowed"),
        (403, "", false, true, "403"),
        (400, "ExpiredToken", false, false, "expired"),
        (403, "RequestTimeTooSkewed", false, true, "clock"),
        (400, "InvalidArgument", false, false, "InvalidArgument"),
        (507, "QuotaExceeded", true, false, "QuotaExceeded"),
        (403, "QuotaExceeded", false, true, "full"),
        (503, "SlowDown", true, false, "SlowDown"),
        (500, "InternalError", true, false, "InternalError"),
        (502, "", true, false, "502"),
        (429, "", true, false, "429"),
        (408, "", true, false, "408"),
        (400, "RequestTimeout", true, false, "RequestTimeout"),
        (409, "OperationAborted", true, false, "OperationAborted"),
        (
            409,
            "ConditionalRequestConflict",
            true,
            false,
            "ConditionalRequestConflict",
        ),
        (409, "BucketNotEmpty", false, false, "BucketNotEmpty"),
    ];
    for (status, code, transient, denied, words) in table {
        let error = explain(
            &failure(*status, code, "the store's words"),
            None,
            &Precondition::None,
        );
        assert_eq!(error.is_transient(), *transient, "{status} {code}: {error}");
        assert!(
            error.to_string().contains(words),
            "{status} {code}: {error}"
        );
        if let StoreError::Refused { denied: was, .. } = &error {
            assert_eq!(was, denied, "{status} {code}");
        }
    }
    let unsupported = explain(
        &failure(501, "NotImplemented", ""),
        None,
        &Precondition::None,
    );
    assert!(matches!(unsupported, StoreError::Unsupported { .. }));
}

#[test]
fn a_broken_condition_says_which() {
    let key = Key::new("k");
    let version = Precondition::Version(ObjectVersion("\"x\"".into()));
    let broken = failure(412, "PreconditionFailed", "");
    let explained = |condition| explain(&broken, Some(&key), condition);
    assert!(matches!(
        explained(&Precondition::Absent),
        StoreError::AlreadyExists { .. }
    ));
    assert!(matches!(
        explained(&version),
        StoreError::Precondition { .. }
    ));
    // A replaced version that is gone altogether is another's change as well.
    let gone = failure(404, "NoSuchKey", "");
    assert!(matches!(
        explain(&gone, Some(&key), &version),
        StoreError::Precondition { .. }
    ));
    let none = Precondition::None;
    assert!(matches!(
        explain(&gone, Some(&key), &none),
        StoreError::NotFound { .. }
    ));
    let short = failure(416, "InvalidRange", "");
    assert!(matches!(
        explain(&short, Some(&key), &none),
        StoreError::Precondition { .. }
    ));
    let bucket = failure(404, "NoSuchBucket", "");
    assert!(matches!(
        explain(&bucket, Some(&key), &none),
        StoreError::Refused { .. }
    ));
}

#[test]
fn a_wrong_region_names_the_right_one() {
    let malformed = "AuthorizationHeaderMalformed";
    let amazon = failure(
        400,
        malformed,
        "the region 'us-east-1' is wrong; expecting 'eu-west-1'",
    );
    assert_eq!(amazon.other_region("us-east-1"), Some("eu-west-1"));
    assert_eq!(amazon.other_region("eu-west-1"), None);
    let scope = "unexpected scope, expected scope: 20260101/garage/s3/aws4_request";
    assert_eq!(
        failure(400, malformed, scope).other_region("us-east-1"),
        Some("garage")
    );
    let both =
        "unexpected scope: '1/us-east-1/s3/aws4_request', expected: '1/garage/s3/aws4_request'";
    assert_eq!(
        failure(400, malformed, both).other_region("us-east-1"),
        Some("garage")
    );
    let tagged = b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>x-1</Region></Error>";
    let tagged = Failure::read(StatusCode::BAD_REQUEST, &HeaderMap::new(), tagged);
    assert_eq!(tagged.other_region("us-east-1"), Some("x-1"));
    let moved = headers(&[("x-amz-bucket-region", "ap-south-1")]);
    let moved = Failure::read(StatusCode::MOVED_PERMANENTLY, &moved, b"");
    assert_eq!(moved.other_region("us-east-1"), Some("ap-south-1"));
    // Some put their region into every error; that alone says nothing.
    let other = b"<Error><Code>AccessDenied</Code><Region>garage</Region></Error>";
    let other = Failure::read(StatusCode::FORBIDDEN, &HeaderMap::new(), other);
    assert_eq!(other.other_region("us-east-1"), None);
    let evil =
        b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>evil.test/x</Region></Error>";
    let evil = Failure::read(StatusCode::BAD_REQUEST, &HeaderMap::new(), evil);
    assert_eq!(evil.other_region("us-east-1"), None);
}

#[test]
fn a_skewed_clock_says_by_how_much() {
    let body = b"<Error><Code>RequestTimeTooSkewed</Code></Error>";
    let date = httpdate::fmt_http_date(now() + Duration::from_secs(3600));
    let skewed = Failure::read(StatusCode::FORBIDDEN, &headers(&[("date", &date)]), body);
    let error = explain(&skewed, None, &Precondition::None).to_string();
    assert!(error.contains("1h behind the store's"), "{error}");
}

#[test]
fn http_to_an_https_port_says_so() {
    for body in [
        "Client sent an HTTP request to an HTTPS server.\n",
        "<html><h1>400 Bad Request</h1>The plain HTTP request was sent to HTTPS port</html>",
    ] {
        let failure = Failure::read(StatusCode::BAD_REQUEST, &HeaderMap::new(), body.as_bytes());
        let error = explain(&failure, None, &Precondition::None).to_string();
        assert!(error.contains("write https://"), "{error}");
    }
    let to = headers(&[("location", "https://s3.test/photos")]);
    let redirect = Failure::read(StatusCode::MOVED_PERMANENTLY, &to, b"");
    let error = explain(&redirect, None, &Precondition::None).to_string();
    assert!(error.contains("write https://"), "{error}");
}

#[test]
fn a_wait_the_store_asks_for_is_kept() {
    let busy = Failure::read(
        StatusCode::SERVICE_UNAVAILABLE,
        &headers(&[("retry-after", "7")]),
        b"<Error><Code>SlowDown</Code></Error>",
    );
    let StoreError::Unavailable { retry_after, .. } = explain(&busy, None, &Precondition::None)
    else {
        panic!("not transient");
    };
    assert_eq!(retry_after, Some(Duration::from_secs(7)));
}

#[test]
fn a_message_that_repeats_the_signature_is_not_repeated() {
    let message = "bad: AWS4-HMAC-SHA256 Credential=AK/x, SignedHeaders=host, Signature=abcdef";
    let error = explain(&failure(400, "Odd", message), None, &Precondition::None).to_string();
    assert!(
        !error.contains("abcdef") && !error.contains("AK/x"),
        "{error}"
    );
    let long = explain(
        &failure(400, "Odd", &"x".repeat(9999)),
        None,
        &Precondition::None,
    );
    assert!(long.to_string().len() < 500);
}

#[test]
fn an_error_inside_a_success_is_one() {
    let none = HeaderMap::new();
    let body = b"\n\n<Error><Code>InternalError</Code></Error>";
    let failure = Failure::inside_success(&none, body).unwrap();
    assert!(explain(&failure, None, &Precondition::None).is_transient());
    let broken = b"<Error><Code>PreconditionFailed</Code></Error>";
    let failure = Failure::inside_success(&none, broken).unwrap();
    assert_eq!(failure.status, StatusCode::PRECONDITION_FAILED);
    assert_eq!(Failure::inside_success(&none, b"<CopyObjectResult/>"), None);
}
