//! `bucketvol serve`: the plugin daemon.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use clap::Args;
use tokio_util::sync::CancellationToken;

use super::compose;
use super::control::MountView;
use super::control::server::{self, Mounts};
use super::mount::time;
use super::output::TimedOut;
use super::signals::Signals;
use super::tracked::Tracked;
use super::worker::{self, KeeperArgs, Worker};
use crate::config::options::{MinFree, OptionError};
use crate::config::size::{parse_cache_disk, parse_size};
use crate::config::{Ambient, Environment};
use crate::fs::Format;
use crate::plugin::Stop;
use crate::plugin::bucket::{MountError, Salvage};

/// Run the Docker volume plugin
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:
  bucketvol serve --state-dir /var/lib/bucketvol
  docker volume create -d bucketvol -o bucket=photos -o credentials=file:prod photos

SIGTERM drains and ends. Mounts that containers hold stay; the next start heals them.")]
pub(super) struct ServeArgs {
    /// Where Docker finds the plugin
    #[arg(long, value_name = "PATH", env = "BUCKETVOL_SOCKET", default_value = super::SOCKET)]
    pub(super) socket: PathBuf,
    /// Records of volumes, and bytes on their way
    #[arg(
        long,
        value_name = "DIR",
        env = "BUCKETVOL_STATE_DIR",
        default_value = "/var/lib/bucketvol"
    )]
    pub(super) state_dir: PathBuf,
    /// What is known of objects; what is lost there is asked for again
    #[arg(
        long,
        value_name = "DIR",
        env = "BUCKETVOL_CACHE_DIR",
        default_value = "/var/cache/bucketvol"
    )]
    pub(super) cache_dir: PathBuf,
    /// Below it volumes are mounted [default: STATE_DIR/mounts]
    #[arg(long, value_name = "DIR", env = "BUCKETVOL_BASE_DIR")]
    pub(super) base_dir: Option<PathBuf>,
    /// Files that volumes name by credentials=file:NAME, as NAME.toml, mode 0600
    #[arg(
        long,
        value_name = "DIR",
        env = "BUCKETVOL_CREDENTIALS_DIR",
        default_value = "/etc/bucketvol/credentials.d"
    )]
    pub(super) credentials_dir: PathBuf,
    /// Volumes may be file:// directories below this one (can be said more than once)
    #[arg(
        long,
        value_name = "DIR",
        env = "BUCKETVOL_ALLOW_LOCAL",
        value_delimiter = ':'
    )]
    pub(super) allow_local: Vec<PathBuf>,
    /// The daemon's own credentials may be sent to this endpoint too (can be said more than once)
    #[arg(
        long,
        value_name = "URL",
        env = "BUCKETVOL_TRUST_ENDPOINT",
        value_delimiter = ','
    )]
    pub(super) trust_endpoint: Vec<String>,
    /// Memory for cached blocks of all volumes
    #[arg(
        long,
        value_name = "SIZE",
        env = "BUCKETVOL_CACHE_MEMORY",
        default_value = "256MiB",
        value_parser = size
    )]
    pub(super) cache_memory: u64,
    /// Disk for blocks of all volumes that were read, below --cache-dir; they outlive the daemon (0: none)
    #[arg(
        long,
        value_name = "SIZE",
        env = "BUCKETVOL_CACHE_DISK",
        default_value = "0",
        value_parser = cache_disk
    )]
    pub(super) cache_disk: u64,
    /// Bytes of all volumes that may wait on this host; writes wait for room then
    #[arg(
        long,
        value_name = "SIZE",
        env = "BUCKETVOL_STAGING_LIMIT",
        default_value = "20GiB",
        value_parser = size
    )]
    pub(super) staging_limit: u64,
    /// What such bytes leave free of the disk: a size, or a part of it like 10%
    #[arg(
        long,
        value_name = "SIZE",
        env = "BUCKETVOL_MIN_FREE",
        default_value = "10%",
        value_parser = min_free
    )]
    pub(super) min_free: MinFree,
    /// How long SIGTERM may drain
    #[arg(
        long,
        value_name = "TIME",
        env = "BUCKETVOL_DRAIN_TIMEOUT",
        default_value = "50s",
        value_parser = time
    )]
    pub(super) drain_timeout: Duration,
    #[command(flatten)]
    pub(super) keeper: KeeperArgs,
}

impl ServeArgs {
    /// Below it volumes are mounted.
    pub(super) fn base_dir(&self) -> PathBuf {
        self.base_dir
            .clone()
            .unwrap_or_else(|| self.state_dir.join("mounts"))
    }

    /// The daemon's surroundings, its operator's words checked.
    pub(super) fn ambient(&self) -> Result<Ambient> {
        let environment = Environment::of_this_process();
        Ok(Ambient::daemon(
            &self.credentials_dir,
            &self.trust_endpoint,
            environment,
        )?)
    }
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text)
        .filter(|bytes| *bytes >= 8 << 20)
        .ok_or_else(|| "accepted is a size of at least 8MiB".to_owned())
}

fn cache_disk(text: &str) -> Result<u64, String> {
    parse_cache_disk(text).ok_or_else(|| "accepted is a size of at least 64MiB, or 0".to_owned())
}

fn min_free(text: &str) -> Result<MinFree, OptionError> {
    text.parse()
}

pub(super) fn run(args: ServeArgs, newest: Format) -> Result<ExitCode> {
    // The process holds keys: its memory is nobody's to read, not even as a core dump.
    nix::sys::prctl::set_dumpable(false).context("prctl(PR_SET_DUMPABLE)")?;
    let keeper = args.keeper.clone();
    worker::run(&keeper, newest, |worker| {
        super::runtime()?.block_on(serve(args, worker))
    })
}

async fn serve(args: ServeArgs, worker: Arc<Worker>) -> Result<ExitCode> {
    let signals = Signals::install(&worker)?;
    worker.beat();
    // First of all: one that answers already is not disturbed, and Docker's calls queue from here on.
    let socket = compose::bind(&args, &worker)?;
    let attributes = compose::attributes_of_volumes(&args);
    let fuse = compose::mounter(&args, &worker, Arc::clone(&attributes)).await?;
    let mounter = Tracked::new(Arc::clone(&fuse) as _);
    let driver = compose::driver(&args, Arc::clone(&mounter) as _)?;
    let daemon = Daemon {
        mounter: Arc::clone(&mounter),
        driver: Arc::clone(&driver),
    };
    tokio::spawn(compose::take_up(Arc::clone(&driver)));
    let closing = CancellationToken::new();
    let socket = compose::keep(socket, &worker)?;
    worker.ready();
    let control = server::start("serve", Arc::new(daemon), &worker, closing.clone());
    tracing::info!(socket = %args.socket.display(), version = env!("CARGO_PKG_VERSION"), "serving");
    let stopped = tokio::select! {
        stopped = compose::serve_plugin(socket, Arc::clone(&driver), &signals, &worker) => stopped?,
        () = signals.second() => {
            tracing::warn!("told twice to stop: calls in hand are dropped");
            Stop::End
        }
    };
    let ended = match stopped {
        Stop::HandOver { .. } => Ok(()),
        Stop::End => tokio::select! {
            ended = compose::shut_down(&driver, &fuse, &mounter, args.drain_timeout) => ended,
            () = signals.second() => {
                tracing::warn!("told twice to stop: the drain is cut short");
                Ok(())
            }
        },
    };
    closing.cancel();
    if let Some(control) = control {
        let _ = control.await;
    }
    worker.stopping();
    if let Stop::HandOver { .. } = stopped {
        worker.leave().await;
    }
    compose::keep_attributes(&attributes).await;
    match ended {
        Err(MountError::TimedOut(left)) => Err(TimedOut(left).into()),
        ended => Ok(ended.map(|()| ExitCode::SUCCESS)?),
    }
}

/// The daemon's mounts over the control socket. Docker alone unmounts its volumes.
struct Daemon {
    mounter: Arc<Tracked>,
    driver: compose::Driver,
}

#[async_trait]
impl Mounts for Daemon {
    fn list(&self) -> Vec<MountView> {
        self.mounter
            .mounts()
            .iter()
            .map(|held| held.view())
            .collect()
    }

    async fn idle_volumes(&self) -> Vec<String> {
        let mounted: Vec<_> = self
            .list()
            .into_iter()
            .filter_map(|mount| mount.volume)
            .collect();
        let mut volumes = compose::volume_names(&self.driver).await;
        volumes.retain(|name| !mounted.contains(name));
        volumes
    }

    async fn sync(
        &self,
        mountpoint: Option<&Path>,
        limit: Duration,
    ) -> Option<Result<(), MountError>> {
        self.mounter.drain(mountpoint, limit).await
    }

    async fn salvage(
        &self,
        mountpoint: &Path,
        key: &str,
        how: &Salvage,
    ) -> Option<Result<Vec<Range<u64>>, MountError>> {
        self.mounter.salvage(mountpoint, key, how).await
    }

    async fn unmount(
        &self,
        mountpoint: &Path,
        _limit: Duration,
        _lazy: bool,
    ) -> Option<Result<(), MountError>> {
        let mounts = self.list();
        let mount = mounts.iter().find(|mount| mount.mountpoint == mountpoint)?;
        let volume = mount.volume.as_deref().unwrap_or("-");
        Some(Err(MountError::Refused(format!(
            "{} is the Docker volume {volume}: it is unmounted when its last container stops (bucketvol sync \
             drains it now)",
            mountpoint.display()
        ))))
    }
}
