//! An S3 account to test against, and curl's view of it: a client that is not ours.

#[cfg(feature = "fuse-tests")]
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use super::process::{bounded, output, succeed};
use super::s3_server::S3Server;

/// A bucket and how to reach it.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    pub(crate) endpoint: String,
    pub(crate) region: String,
    pub(crate) bucket: String,
    pub(crate) access_key_id: String,
    pub(crate) secret_access_key: String,
}

impl Account {
    /// `-o` options that reach the bucket, credentials included.
    pub(crate) fn options(&self) -> Vec<String> {
        vec![
            format!("bucket={}", self.bucket),
            format!("endpoint={}", self.endpoint),
            format!("region={}", self.region),
            format!("access_key_id={}", self.access_key_id),
            format!("secret_access_key={}", self.secret_access_key),
        ]
    }

    /// The object's bytes, past us; `None` when the server says it is not there.
    pub(crate) fn get(&self, key: &str) -> Option<Vec<u8>> {
        let output = output(self.curl(120).arg(self.url(key)));
        match output.status.code() {
            Some(0) => Some(output.stdout),
            // --fail: the server's answer was 400 or above.
            Some(22) => None,
            _ => panic!("GET {key}: {}", super::process::describe(&output)),
        }
    }

    /// Waits until the object has these bytes, or is gone: what is closed reaches the bucket soon after.
    pub(crate) fn becomes(&self, key: &str, expected: Option<&[u8]>) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let found = self.get(key);
            if found.as_deref() == expected {
                return;
            }
            let len = found.map(|bytes| bytes.len());
            assert!(
                Instant::now() < deadline,
                "{key} is still another, of {len:?} bytes"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Writes the object's bytes to a file, for objects too large for memory.
    pub(crate) fn download(&self, key: &str, to: &Path) {
        succeed(self.curl(600).arg("--output").arg(to).arg(self.url(key)));
    }

    /// Puts an object, past us.
    pub(crate) fn put(&self, key: &str, body: &[u8]) {
        self.put_with(key, &[], body);
    }

    /// Puts an object with these user metadata, past us.
    pub(crate) fn put_with(&self, key: &str, metadata: &[(&str, &str)], body: &[u8]) {
        let file = tempfile::NamedTempFile::new().expect("a file for the body");
        std::fs::write(file.path(), body).expect("the body is written");
        let mut curl = self.curl(120);
        for (name, value) in metadata {
            curl.args(["--header", &format!("x-amz-meta-{name}: {value}")]);
        }
        succeed(
            curl.arg("--upload-file")
                .arg(file.path())
                .arg(self.url(key)),
        );
    }

    /// The object's user metadata as they are answered, past us. What is not UTF-8 is lost.
    #[cfg(feature = "fuse-tests")]
    pub(crate) fn metadata(&self, key: &str) -> BTreeMap<String, String> {
        let head = succeed(self.curl(120).arg("--head").arg(self.url(key)));
        let headers = head.lines().filter_map(|line| line.split_once(':'));
        let user = headers.filter_map(|(name, value)| {
            let name = name.to_ascii_lowercase();
            let name = name.strip_prefix("x-amz-meta-")?;
            Some((name.to_owned(), value.trim().to_owned()))
        });
        user.collect()
    }

    /// The bucket's keys, past us: a thousand at most, and none that XML would escape.
    #[cfg(feature = "fuse-tests")]
    pub(crate) fn keys(&self) -> Vec<String> {
        let page = succeed(self.curl(120).arg(self.url("?list-type=2")));
        let keys = page.split("<Key>").skip(1);
        let keys = keys.filter_map(|rest| rest.split_once("</Key>"));
        keys.map(|(key, _)| key.to_owned()).collect()
    }

    fn url(&self, key: &str) -> String {
        format!("{}/{}/{key}", self.endpoint, self.bucket)
    }

    fn curl(&self, seconds: u32) -> std::process::Command {
        let mut curl = bounded(seconds, "curl");
        curl.args(["--silent", "--show-error", "--fail", "--noproxy", "*"])
            .args(["--aws-sigv4", &format!("aws:amz:{}:s3", self.region)])
            .args([
                "--user",
                &format!("{}:{}", self.access_key_id, self.secret_access_key),
            ])
            .args(["--header", "x-amz-content-sha256: UNSIGNED-PAYLOAD"]);
        curl
    }
}

/// A server inside this process that does all that S3 does, on threads of its own: the test itself may
/// block.
#[derive(Debug)]
pub(crate) struct LocalS3 {
    account: Account,
    server: Option<S3Server>,
    runtime: Runtime,
}

impl LocalS3 {
    /// Starts a server on a free port of 127.0.0.1.
    pub(crate) fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let server = runtime.block_on(S3Server::start());
        let account = Account {
            endpoint: server.endpoint.clone(),
            region: "us-east-1".to_owned(),
            bucket: server.bucket.clone(),
            access_key_id: server.key.clone(),
            secret_access_key: server.secret.clone(),
        };
        Self {
            account,
            server: Some(server),
            runtime,
        }
    }

    /// Answers no part of an upload of this number or a later one, until it is told otherwise.
    #[cfg(feature = "fuse-tests")]
    pub(crate) fn hold_parts_from(&self, number: u32) {
        let server = self.server.as_ref().expect("it runs until drop");
        server.hold_parts_from(number);
    }

    /// Whether it answers metadata that are not ASCII as bytes from now on, or in RFC 2047's words as Amazon does.
    #[cfg(feature = "fuse-tests")]
    pub(crate) fn answer_bytes(&self, bytes: bool) {
        let server = self.server.as_ref().expect("it runs until drop");
        server.answer_bytes(bytes);
    }

    /// How to reach it.
    pub(crate) fn account(&self) -> &Account {
        &self.account
    }

    /// Puts empty objects of these keys below `prefix`, many at a time.
    #[cfg(feature = "fuse-tests")]
    pub(crate) fn put_empty(&self, prefix: &str, keys: impl Iterator<Item = String>) {
        use bucketvol::store::{Key, Metadata, Precondition};
        use futures_util::{StreamExt, TryStreamExt};

        let bucket = self
            .server
            .as_ref()
            .expect("it runs until drop")
            .bucket(prefix);
        let puts = futures_util::stream::iter(keys).map(|key| {
            let bucket = bucket.clone();
            async move {
                let body = bytes::Bytes::new();
                bucket
                    .put(
                        &Key::new(key),
                        body,
                        Metadata::default(),
                        Precondition::None,
                    )
                    .await
            }
        });
        let puts = puts.buffer_unordered(32).try_for_each(|_| async { Ok(()) });
        self.runtime.block_on(puts).expect("every object is put");
    }
}

impl Drop for LocalS3 {
    fn drop(&mut self) {
        // It aborts a task, which wants the runtime it runs on.
        let _runtime = self.runtime.enter();
        self.server = None;
    }
}

/// Where tests put what may be large: `TMPDIR`, or a directory that is never a RAM disk.
pub(crate) fn scratch() -> std::path::PathBuf {
    std::env::var_os("TMPDIR").map_or_else(|| "/var/tmp".into(), Into::into)
}
