//! The bucket in the host name, as Alibaba wants it, and a signature that somebody else computes.

use bucketvol::clock::SystemClock;
use bucketvol::config::options::EndpointOptions;
use bucketvol::store::{Bucket, Key, ListRequest, Metadata, Precondition};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::answers::location;
use crate::common::fake_http::{FakeHttp, Reply, Request};
use crate::common::s3_server::credentials;

const KEY: &str = "LTAI-test";
const SECRET: &str = "oss-secret";

fn hmac(key: &[u8], message: &str) -> Vec<u8> {
    let mut block = [0_u8; 64];
    match key.len() {
        0..=64 => block[..key.len()].copy_from_slice(key),
        _ => block[..32].copy_from_slice(&Sha256::digest(key)),
    }
    let pad = |byte: u8| block.map(|b| b ^ byte);
    let inner = Sha256::digest([&pad(0x36)[..], message.as_bytes()].concat());
    Sha256::digest([&pad(0x5c)[..], &inner[..]].concat()).to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The signature that a request should carry (AWS Signature Version 4), from what is on the wire.
fn signature(request: &Request, secret: &str) -> String {
    let authorization = request.header("authorization");
    let field = |name: &str| {
        let rest = authorization.split(name).nth(1).unwrap_or_default();
        rest.split(',').next().unwrap_or_default().trim().to_owned()
    };
    let scope = field("Credential=").split_once('/').unwrap().1.to_owned();
    let names = field("SignedHeaders=");
    let (path, query) = request
        .target
        .split_once('?')
        .unwrap_or((&request.target, ""));
    let mut pairs: Vec<String> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            if pair.contains('=') {
                pair.to_owned()
            } else {
                format!("{pair}=")
            }
        })
        .collect();
    pairs.sort_unstable();
    let headers: String = names
        .split(';')
        .map(|name| format!("{name}:{}\n", request.header(name)))
        .collect();
    let canonical = format!(
        "{}\n{path}\n{}\n{headers}\n{names}\n{}",
        request.method,
        pairs.join("&"),
        request.header("x-amz-content-sha256"),
    );
    let text = format!(
        "AWS4-HMAC-SHA256\n{}\n{scope}\n{}",
        request.header("x-amz-date"),
        hex(&Sha256::digest(canonical)),
    );
    let key = scope
        .split('/')
        .fold(format!("AWS4{secret}").into_bytes(), |key, part| {
            hmac(&key, part)
        });
    hex(&hmac(&key, &text))
}

/// Checks host and signature as the service does.
fn guard(request: &Request, port: &str) -> Result<(), Reply> {
    let host = format!("b.vpc100-oss-cn-hangzhou.aliyuncs.com{port}");
    if request.header("host") != host {
        return Err(Reply::error(
            403,
            "SecondLevelDomainForbidden",
            request.header("host"),
        ));
    }
    let sum = hex(&Sha256::digest(&request.body));
    if request.header("x-amz-content-sha256") != sum {
        return Err(Reply::error(400, "XAmzContentSHA256Mismatch", ""));
    }
    let expected = format!("Signature={}", signature(request, SECRET));
    if !request.header("authorization").ends_with(&expected) {
        return Err(Reply::error(403, "SignatureDoesNotMatch", ""));
    }
    Ok(())
}

async fn service() -> FakeHttp {
    FakeHttp::start(|_, request| {
        let port = request
            .header("host")
            .rsplit_once(':')
            .map_or("", |(_, port)| port)
            .to_owned();
        if let Err(refusal) = guard(request, &format!(":{port}")) {
            return refusal;
        }
        match request.method.as_str() {
            "GET" if request.target.contains("list-type=2") => Reply::empty_listing(),
            _ => Reply::new(200, &[("ETag", "\"v1\"")], ""),
        }
    })
    .await
}

fn connect(fake: &FakeHttp, secret: &str) -> Bucket {
    let host = "vpc100-oss-cn-hangzhou.aliyuncs.com";
    let options = EndpointOptions {
        url: Some(format!("http://{host}:{}", fake.address.port())),
        region: None,
        path_style: false,
        tls_verify: true,
    };
    let addresses = [(format!("b.{host}"), fake.address)];
    let who = credentials(KEY, secret);
    let clock = SystemClock::shared();
    Bucket::connect_resolving(&location("b"), &options, None, who, clock, &addresses).unwrap()
}

#[tokio::test]
async fn host_and_signature_are_what_the_service_computes() {
    let fake = service().await;
    let bucket = connect(&fake, SECRET);
    bucket.check().await.unwrap();
    let request = ListRequest {
        prefix: Key::new("a b+c/\u{e9}&="),
        delimiter: true,
        max_keys: 5,
        continuation: Some("to+ken/==".into()),
    };
    bucket.list(&request).await.unwrap();
    let mut metadata = Metadata::default();
    metadata
        .user
        .insert("name".into(), "two  spaces \u{e9}".into());
    metadata
        .headers
        .insert("content-type".into(), "text/plain".into());
    for name in [
        "plain",
        "dir/",
        "a b/c+d%/\u{e9}~!*'()",
        "a//b",
        "/first",
        "x\ty\u{1}",
    ] {
        let body = Bytes::from(vec![7; 100_000]);
        let put = bucket
            .put(
                &Key::new(name),
                body,
                metadata.clone(),
                Precondition::Absent,
            )
            .await;
        assert!(put.is_ok(), "{name:?}: {put:?}");
    }
    let scope = fake.requests()[0].header("authorization").to_owned();
    assert!(scope.contains("/cn-hangzhou/s3/aws4_request"), "{scope}");
}

#[tokio::test]
async fn a_wrong_secret_is_found_out() {
    let fake = service().await;
    let error = connect(&fake, "wrong")
        .check()
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("correct secret_access_key"), "{error}");
}
