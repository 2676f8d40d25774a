//! An S3 server for trying things out, on loopback only: buckets are directories below `--root`, or one is
//! in memory.
//!
//! It prints how to reach it as `name=value` lines, the last of them `ready`, and ends at SIGTERM or SIGINT.
//! Not for data you care about. In directories nothing is fsynced, keys have to be file names, and a
//! directory's own mode and owner are forgotten; in memory there is all that S3 does, until the server ends.
//!
//! ```text
//! cargo run --example s3_server -- --root /tmp/s3 --port 9000 --bucket demo
//! cargo run --example s3_server -- --memory --port 9000 --bucket demo
//! ```

#[path = "../tests/suite/common/s3_backend.rs"]
mod s3_backend;

use std::future::Future;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use async_trait::async_trait;
use clap::Parser;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::access::S3Access;
use s3s::auth::SimpleAuth;
use s3s::dto::{CopyObjectInput, CopySource, GetObjectInput, HeadObjectInput};
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3Request, S3Result, s3_error};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use uuid::Uuid;

/// Serves a directory as S3 on 127.0.0.1.
#[derive(Parser)]
struct Arguments {
    /// The directory whose subdirectories are the buckets; made if it is missing.
    #[arg(long, required_unless_present = "memory", conflicts_with = "memory")]
    root: Option<PathBuf>,
    /// Keeps the one bucket in memory.
    #[arg(long)]
    memory: bool,
    /// What is replaced or deleted in memory is kept.
    #[arg(long, requires = "memory")]
    versions: bool,
    /// The port of 127.0.0.1; 0 takes any free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// A bucket to make; may be said more than once.
    #[arg(long)]
    bucket: Vec<String>,
    /// The account's key id.
    #[arg(long, default_value = "bucketvol")]
    access_key_id: String,
    /// The account's secret; a random one unless given.
    #[arg(long, env = "S3_SERVER_SECRET", hide_env_values = true)]
    secret_access_key: Option<String>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut service = match &arguments.root {
        Some(root) => directories(root, &arguments.bucket)?,
        None => memory(&arguments.bucket, arguments.versions)?,
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, arguments.port))
        .await
        .with_context(|| format!("127.0.0.1:{}", arguments.port))?;
    let secret = arguments
        .secret_access_key
        .unwrap_or_else(|| Uuid::new_v4().simple().to_string());
    let mut stdout = io::stdout();
    writeln!(stdout, "endpoint=http://{}", listener.local_addr()?)?;
    writeln!(stdout, "region=us-east-1")?;
    writeln!(stdout, "access_key_id={}", arguments.access_key_id)?;
    writeln!(stdout, "secret_access_key={secret}")?;
    writeln!(stdout, "ready")?;
    stdout.flush()?;

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let auth = SimpleAuth::from_single(arguments.access_key_id, secret);
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    service.set_auth(auth);
    serve(listener, service.build(), stop).await?;
    Ok(())
}

/// The directories below `root` as buckets.
fn directories(root: &Path, buckets: &[String]) -> anyhow::Result<S3ServiceBuilder> {
    for bucket in buckets {
        anyhow::ensure!(
            !bucket.is_empty() && !bucket.starts_with('.') && !bucket.contains('/'),
            "bucket {bucket:?}: not a bucket's name"
        );
        let directory = root.join(bucket);
        std::fs::create_dir_all(&directory).with_context(|| format!("{}", directory.display()))?;
    }
    std::fs::create_dir_all(root).with_context(|| format!("{}", root.display()))?;
    let files = s3s_fs::FileSystem::new(root).map_err(|e| anyhow::anyhow!("{e:?}"))?;
    let mut service = S3ServiceBuilder::new(files);
    service.set_access(WithoutMarkers);
    Ok(service)
}

/// One bucket that ends with the process.
fn memory(buckets: &[String], versions: bool) -> anyhow::Result<S3ServiceBuilder> {
    let [bucket] = buckets else {
        anyhow::bail!("--memory serves one --bucket, not {}", buckets.len());
    };
    Ok(S3ServiceBuilder::new(match versions {
        true => s3_backend::Backend::keeping_versions(bucket),
        false => s3_backend::Backend::new(bucket),
    }))
}

/// Serves until `stop` completes, then drops what is in hand.
async fn serve(
    listener: TcpListener,
    service: S3Service,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let mut connections = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let (socket, _) = tokio::select! {
            accepted = listener.accept() => accepted?,
            // Reaped here, so that a long-lived server does not collect the results of the dead.
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            () = &mut stop => return Ok(()),
        };
        // Without it a small answer on a kept connection waits 40 ms for the peer's delayed ACK.
        socket.set_nodelay(true)?;
        let service = service.clone();
        connections.spawn(async move {
            let connection = Builder::new(TokioExecutor::new());
            // A peer that goes away mid-request is its own business.
            let _ = connection
                .serve_connection(TokioIo::new(socket), service)
                .await;
        });
    }
}

/// s3s-fs keeps no object called `dir/`: it makes the directory and forgets the rest. Asked for one it
/// fails to read a directory as a file; here it says what is true, that there is no such object.
struct WithoutMarkers;

#[async_trait]
impl S3Access for WithoutMarkers {
    async fn get_object(&self, request: &mut S3Request<GetObjectInput>) -> S3Result<()> {
        refuse_marker(&request.input.key)
    }

    async fn head_object(&self, request: &mut S3Request<HeadObjectInput>) -> S3Result<()> {
        refuse_marker(&request.input.key)
    }

    async fn copy_object(&self, request: &mut S3Request<CopyObjectInput>) -> S3Result<()> {
        match &request.input.copy_source {
            CopySource::Bucket { key, .. } => refuse_marker(key),
            _ => Ok(()),
        }
    }
}

fn refuse_marker(key: &str) -> S3Result<()> {
    if key.ends_with('/') {
        return Err(s3_error!(NoSuchKey));
    }
    Ok(())
}
