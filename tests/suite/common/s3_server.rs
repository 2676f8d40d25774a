//! An S3 server inside the test, on loopback.
//!
//! [`S3Server::start`] does all that S3 does, in memory. [`S3Server::start_s3s_fs`] is one that others
//! wrote, over a temporary directory; it lacks markers and some conditions.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use bucketvol::clock::SystemClock;
use bucketvol::config::credentials::CredentialProvider;
use bucketvol::config::options::EndpointOptions;
use bucketvol::config::{Credentials, Location, Scheme};
use bucketvol::store::Bucket;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::S3;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

use super::s3_backend::Backend;

const BUCKET: &str = "test-bucket";
const KEY: &str = "test-key";
const SECRET: &str = "test-secret";

/// A running server with one bucket. Ends when dropped, and its data with it.
#[derive(Debug)]
pub(crate) struct S3Server {
    pub(crate) endpoint: String,
    pub(crate) bucket: String,
    pub(crate) key: String,
    pub(crate) secret: String,
    /// The number of the first part that is not answered.
    held_from: Arc<AtomicU32>,
    answers_bytes: Arc<AtomicBool>,
    _directory: Option<TempDir>,
    serving: JoinHandle<()>,
}

impl S3Server {
    /// Starts one on a free port.
    pub(crate) async fn start() -> Self {
        let backend = Backend::new(BUCKET);
        let held_from = Arc::clone(&backend.held_from);
        let answers_bytes = Arc::clone(&backend.answers_bytes);
        let mut server = Self::serve(backend, None).await;
        server.held_from = held_from;
        server.answers_bytes = answers_bytes;
        server
    }

    /// Starts one that keeps what is replaced or deleted.
    pub(crate) async fn start_keeping_versions() -> Self {
        Self::serve(Backend::keeping_versions(BUCKET), None).await
    }

    /// Answers no part of this number or a later one, until it is told otherwise.
    pub(crate) fn hold_parts_from(&self, number: u32) {
        self.held_from.store(number, Ordering::SeqCst);
    }

    /// Whether it answers metadata that are not ASCII as bytes from now on, or in RFC 2047's words as Amazon does.
    pub(crate) fn answer_bytes(&self, bytes: bool) {
        self.answers_bytes.store(bytes, Ordering::SeqCst);
    }

    /// Starts `s3s-fs` on a free port.
    pub(crate) async fn start_s3s_fs() -> Self {
        let directory = TempDir::new().unwrap();
        std::fs::create_dir(directory.path().join(BUCKET)).unwrap();
        let backend = s3s_fs::FileSystem::new(directory.path()).unwrap();
        Self::serve(backend, Some(directory)).await
    }

    async fn serve(backend: impl S3, directory: Option<TempDir>) -> Self {
        let mut service = S3ServiceBuilder::new(backend);
        service.set_auth(SimpleAuth::from_single(KEY, SECRET));
        let service = service.build();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            // Dropped with this task, and with it every connection.
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                // Without it an answer in two writes waits 40 ms for an acknowledgement.
                socket.set_nodelay(true).unwrap();
                let service = service.clone();
                connections.spawn(async move {
                    let server = Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(socket), service).await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self {
            endpoint: format!("http://{address}"),
            bucket: BUCKET.to_owned(),
            key: KEY.to_owned(),
            secret: SECRET.to_owned(),
            held_from: Arc::default(),
            answers_bytes: Arc::default(),
            _directory: directory,
            serving,
        }
    }

    /// Where a volume of this prefix is.
    pub(crate) fn location(&self, prefix: &str) -> Location {
        Location {
            scheme: Scheme::S3,
            bucket: self.bucket.clone(),
            prefix: prefix.to_owned(),
        }
    }

    /// How to reach it.
    pub(crate) fn options(&self) -> EndpointOptions {
        EndpointOptions {
            url: Some(self.endpoint.clone()),
            region: None,
            path_style: true,
            tls_verify: true,
        }
    }

    /// The right credentials.
    pub(crate) fn credentials(&self) -> Arc<CredentialProvider> {
        credentials(&self.key, &self.secret)
    }

    /// The server's bucket below `prefix`.
    pub(crate) fn bucket(&self, prefix: &str) -> Bucket {
        let clock = SystemClock::shared();
        Bucket::connect(
            &self.location(prefix),
            &self.options(),
            None,
            self.credentials(),
            clock,
        )
        .unwrap()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Always these.
pub(crate) fn credentials(key: &str, secret: &str) -> Arc<CredentialProvider> {
    Arc::new(CredentialProvider::fixed(Some(Credentials {
        access_key_id: key.to_owned(),
        secret_access_key: secret.to_owned().into(),
        session_token: None,
    })))
}
