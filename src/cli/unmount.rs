//! `bucketvol unmount`: brings everything into the bucket and takes the mount away.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use super::control::client::{self, Process};
use super::control::{self, ProcessStatus, UnmountRequest};
use super::mount::time;
use super::mountpoint::{Mounted, mounted, spelled};
use super::{output, progress};

/// How long a mount may take to vanish from the mount table after its process said it is gone.
const SETTLE: Duration = Duration::from_secs(5);

/// Bring every change into the bucket and unmount
#[derive(Debug, Args)]
#[command(after_help = format!("Example:
  bucketvol unmount /mnt/photos --timeout 5m

{}", output::EXIT_STATUS))]
pub(super) struct UnmountArgs {
    /// The mount point
    pub(super) dir: PathBuf,
    /// Give up after this time; the mount stays, and so do the bytes that are left
    #[arg(long, value_name = "TIME", value_parser = time, conflicts_with = "lazy")]
    pub(super) timeout: Option<Duration>,
    /// Take it off at once; open files go on, the drain goes on behind. Also for a mount whose process died
    #[arg(long)]
    pub(super) lazy: bool,
}

pub(super) async fn run(args: UnmountArgs, run_dir: &Path) -> Result<ExitCode> {
    let dir = spelled(&args.dir)?;
    let Some((process, status)) = owner(run_dir, &dir).await? else {
        return orphan(&dir, args.lazy);
    };
    let request = UnmountRequest {
        mountpoint: dir.clone(),
        timeout_ms: args.timeout.map(millis),
        lazy: args.lazy,
    };
    progress::watch(process.unmount(&request), async || {
        progress::dirty_bytes(std::slice::from_ref(&process), Some(&dir)).await
    })
    .await?;
    if status.command == "mount" && !args.lazy {
        // Whoever goes on to use the directory must find it bare.
        let start = std::time::Instant::now();
        while mounted(&dir)? == Mounted::Ours {
            if start.elapsed() > SETTLE {
                bail!(
                    "{} is still mounted: another mount lies below it",
                    dir.display()
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The process that serves the mount at `dir`.
pub(super) async fn owner(run_dir: &Path, dir: &Path) -> Result<Option<(Process, ProcessStatus)>> {
    let statuses = client::statuses(run_dir).await?;
    Ok(statuses
        .into_iter()
        .find(|(_, status)| status.mounts.iter().any(|m| m.mountpoint == dir)))
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A mount that no process of ours serves: nothing can be drained, only the dead mount be taken off.
fn orphan(dir: &Path, lazy: bool) -> Result<ExitCode> {
    let shown = dir.display();
    match mounted(dir)? {
        Mounted::Nothing => bail!("{shown} is not mounted"),
        Mounted::Other(kind) => {
            bail!("{shown} is a mount of {kind}, not of bucketvol: umount {shown} takes it off")
        }
        Mounted::Ours => {}
    }
    if !lazy {
        bail!(
            "no process of this user serves {shown} (looked in {}): if it died, bucketvol unmount --lazy \
             {shown} takes the mount off",
            control::run_dir().display()
        );
    }
    if nix::unistd::geteuid().is_root() {
        nix::mount::umount2(dir, nix::mount::MntFlags::MNT_DETACH)
            .with_context(|| format!("umount {shown}"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let done = Command::new("fusermount3")
        .args(["-u", "-z", "--"])
        .arg(dir)
        .stdin(Stdio::null())
        .output()
        .context("fusermount3")?;
    if !done.status.success() {
        bail!("{}", String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(ExitCode::SUCCESS)
}
