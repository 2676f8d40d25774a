//! The composition root proper: the one file that joins driver, mounter, file system and store.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use super::memory;
use super::mount::{cache_dir, state_dir};
use super::mounter::{self, FuseMounter, Host, attributes};
use super::progress;
use super::serve::ServeArgs;
use super::signals::Signals;
use super::tracked::Tracked;
use super::worker::{Turn, Worker};
use crate::clock::SystemClock;
use crate::config::options::MinFree;
use crate::config::{Ambient, CredentialProvider, Options};
use crate::fs::{BlockCache, DiskCache, StagingBudget};
use crate::plugin::bucket::{BucketDriver, Mount, MountError, Mounter, Settings};
use crate::plugin::{Deadlines, PluginSocket, Stop, VolumeDriver, listen};
use crate::store::{AttributeCache, Bucket};

/// The names by which the plugin's socket and its file are kept for the next worker.
const SOCKET: &str = "docker.sock";
const SOCKET_FILE: &str = "docker.sock.file";

/// At a hand-over, what Docker's calls in hand may still take. A Mount may wait for its store much longer than
/// running containers should wait for the next worker.
const LAST_CALLS: Duration = Duration::from_secs(5);

/// Below a state directory: bytes on their way to the bucket, by mount.
const STAGING: &str = "staging";

/// Below a cache directory: blocks of objects.
const BLOCKS: &str = "blocks";

/// The driver of `serve`.
pub(super) type Driver = Arc<BucketDriver>;

/// What is written at an orderly end may take so long: it can be asked for again.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What earlier mounts of the same place have learnt of its objects.
pub(super) fn attributes_of(options: &Options) -> Option<Arc<AttributeCache>> {
    let dir = cache_dir_of(options)?;
    attributes::of_command(&dir, options, &*SystemClock::shared())
}

/// Where a command keeps what outlives it; `None`: nowhere.
fn cache_dir_of(options: &Options) -> Option<PathBuf> {
    options.host.cache_dir.clone().or_else(cache_dir)
}

/// What the daemon has learnt of objects.
pub(super) fn attributes_of_volumes(args: &ServeArgs) -> Arc<AttributeCache> {
    attributes::of_daemon(&args.cache_dir)
}

/// Leaves what was learnt last to the next process.
pub(super) async fn keep_attributes(attributes: &AttributeCache) {
    attributes.flush(LAST_WORDS).await;
}

/// Blocks of objects on the host's disk, if they may take any of it.
fn blocks_in(cache_dir: &Path, limit: u64, min_free: MinFree) -> Option<Arc<DiskCache>> {
    let dir = cache_dir.join(BLOCKS);
    (limit > 0).then(|| DiskCache::open(dir, limit, min_free, SystemClock::shared()))
}

/// Mounts one directory for the command line.
pub(super) async fn mount_at(
    dir: &Path,
    options: &Options,
    ambient: &Ambient,
    worker: &Arc<Worker>,
    attributes: Option<Arc<AttributeCache>>,
) -> Result<Box<dyn Mount>> {
    let state_dir = match &options.host.state_dir {
        Some(dir) => dir.clone(),
        None => state_dir()?.join(STAGING),
    };
    let disk = cache_dir_of(options)
        .and_then(|dir| blocks_in(&dir, options.host.cache_disk, options.host.min_free));
    let host = Host {
        state_dir,
        ambient: ambient.clone(),
        staging: StagingBudget::new(options.host.staging_limit, options.host.min_free),
        cache: BlockCache::with_disk(memory::budget(options.host.cache_memory), disk),
        attributes,
        clock: SystemClock::shared(),
        worker: Arc::clone(worker),
    };
    Ok(mounter::mount_at(dir, options, host).await?)
}

/// Asks the store whether the options lead to a bucket, and returns it; the error is the whole story.
pub(super) async fn check_store(options: &Options, ambient: &Ambient) -> Result<Bucket> {
    let clock = SystemClock::shared();
    let credentials = CredentialProvider::new(options, ambient, Arc::clone(&clock))?;
    let (endpoint, ca_cert) = (&options.endpoint, options.host.ca_cert.as_deref());
    let bucket = Bucket::connect(
        &options.location,
        endpoint,
        ca_cert,
        Arc::new(credentials),
        clock,
    )?;
    bucket.check().await?;
    Ok(bucket)
}

/// What mounts the daemon's volumes.
pub(super) async fn mounter(
    args: &ServeArgs,
    worker: &Arc<Worker>,
    attributes: Arc<AttributeCache>,
) -> Result<Arc<FuseMounter>> {
    let disk = blocks_in(&args.cache_dir, args.cache_disk, args.min_free);
    let host = Host {
        state_dir: args.state_dir.join(STAGING),
        ambient: args.ambient()?,
        staging: StagingBudget::new(args.staging_limit, args.min_free),
        cache: BlockCache::with_disk(memory::budget(args.cache_memory), disk),
        attributes: Some(attributes),
        clock: SystemClock::shared(),
        worker: Arc::clone(worker),
    };
    let base = args.base_dir();
    let mounter = FuseMounter::open(&base, host).await;
    Ok(Arc::new(mounter.with_context(|| {
        format!("base directory {}", base.display())
    })?))
}

/// What answers Docker.
pub(super) fn driver(args: &ServeArgs, mounter: Arc<dyn Mounter>) -> Result<Driver> {
    let settings = Settings {
        allow_local: args.allow_local.clone(),
        ..Settings::new(args.state_dir.clone())
    };
    BucketDriver::open(settings, mounter, SystemClock::shared()).context("the records of volumes")
}

/// Listens on the plugin's socket: the one of an earlier worker, in which Docker's calls wait, or a new one.
pub(super) fn bind(args: &ServeArgs, worker: &Worker) -> Result<PluginSocket> {
    match (worker.take(SOCKET).pop(), worker.take(SOCKET_FILE).pop()) {
        (Some(listener), Some(file)) => Ok(PluginSocket::taken_over(&args.socket, listener, file)),
        _ => Ok(PluginSocket::bind(&args.socket)?),
    }
}

/// Has the socket kept for the next worker, if this is the first. What comes after a worker that is not
/// ready would not find it: until then the file goes with this process.
pub(super) fn keep(socket: PluginSocket, worker: &Worker) -> Result<PluginSocket> {
    if !worker.keeper().is_some() {
        return Ok(socket);
    }
    if let (Turn::First, Some([listener, file])) = (worker.turn(), socket.descriptors()) {
        let kept = worker.keeper().store(SOCKET, &[listener]);
        kept.and_then(|()| worker.keeper().store(SOCKET_FILE, &[file]))
            .context("the plugin's socket for the next worker")?;
    }
    Ok(socket.outlive())
}

/// Answers Docker until `signals` end it, then finishes the calls in hand; says how it ended.
pub(super) async fn serve_plugin(
    socket: PluginSocket,
    driver: Driver,
    signals: &Signals,
    worker: &Worker,
) -> Result<Stop> {
    let stop = async {
        tokio::select! {
            () = signals.first() => {}
            () = signals.hand_over() => return Stop::HandOver { limit: LAST_CALLS },
        }
        for name in [SOCKET, SOCKET_FILE] {
            // Or calls would wait in it for a worker that does not come.
            if let Err(error) = worker.keeper().forget(name) {
                tracing::warn!("the keeper goes on holding {name}: {error}");
            }
        }
        Stop::End
    };
    listen::serve(socket, driver, Deadlines::SOCKET, stop)
        .await
        .context("the plugin's socket")
}

/// Mounts anew what an earlier daemon left to running containers, then goes on with what it could not bring
/// into the buckets.
pub(super) async fn take_up(driver: Driver) {
    driver.heal().await;
    driver.resume().await;
}

/// The names of all volumes.
pub(super) async fn volume_names(driver: &Driver) -> Vec<String> {
    let volumes = driver.list().await.unwrap_or_default();
    volumes.into_iter().map(|volume| volume.name).collect()
}

/// Drains everything, detaches what no container has, and gives the base directory back. Says what is
/// left, whose bytes may be lost.
pub(super) async fn shut_down(
    driver: &Driver,
    mounter: &FuseMounter,
    tracked: &Tracked,
    limit: Duration,
) -> Result<(), MountError> {
    let dirty_bytes = || -> u64 {
        let mounts = tracked.mounts();
        mounts
            .iter()
            .map(|held| held.view().status.dirty_bytes)
            .sum()
    };
    let stopped = progress::watch(driver.shutdown(limit), async || dirty_bytes()).await;
    for name in &stopped.left {
        tracing::info!(volume = %name, "left mounted: containers have it, and the next start heals it");
    }
    if !stopped.dirty.is_empty() {
        let bytes = dirty_bytes();
        let names: Vec<&str> = stopped.dirty.iter().map(|name| name.as_str()).collect();
        return Err(MountError::TimedOut(format!(
            "{bytes} bytes of {} are not in the bucket after {limit:?}",
            names.join(", ")
        )));
    }
    if stopped.left.is_empty() {
        mounter.close().await?;
    }
    Ok(())
}
