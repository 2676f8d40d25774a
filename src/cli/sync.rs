//! `bucketvol sync`: waits until every pending change is in the bucket.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use futures_util::future::join_all;

use super::control::client::{self, Process};
use super::control::{self, SyncRequest};
use super::mount::time;
use super::mountpoint::spelled;
use super::unmount::{millis, owner};
use super::{output, progress};

/// Wait until every pending change is in the bucket
#[derive(Debug, Args)]
#[command(after_help = format!("Examples:
  bucketvol sync /mnt/photos
  bucketvol sync --all --timeout 5m

{}", output::EXIT_STATUS))]
pub(super) struct SyncArgs {
    /// The mount point
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub(super) dir: Option<PathBuf>,
    /// Every mount and volume of this user
    #[arg(long)]
    pub(super) all: bool,
    /// Give up after this time; what is left goes on by itself
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(super) timeout: Option<Duration>,
}

pub(super) async fn run(args: SyncArgs, run_dir: &Path) -> Result<ExitCode> {
    let (processes, mountpoint) = match &args.dir {
        None => (client::processes(run_dir)?, None),
        Some(dir) => {
            let dir = spelled(dir)?;
            let Some((process, _)) = owner(run_dir, &dir).await? else {
                bail!(
                    "no process of this user serves {} (looked in {})",
                    dir.display(),
                    control::run_dir().display()
                );
            };
            (vec![process], Some(dir))
        }
    };
    let request = SyncRequest {
        mountpoint: mountpoint.clone(),
        timeout_ms: args.timeout.map(millis),
    };
    progress::watch(sync(&processes, &request), async || {
        progress::dirty_bytes(&processes, mountpoint.as_deref()).await
    })
    .await?;
    Ok(ExitCode::SUCCESS)
}

/// All of them at the same time; the others go on when one fails.
async fn sync(processes: &[Process], request: &SyncRequest) -> Result<()> {
    join_all(processes.iter().map(|process| process.sync(request)))
        .await
        .into_iter()
        .collect()
}
