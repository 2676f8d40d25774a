//! `bucketvol restart`: asks keepers for new workers, and waits until they serve.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use futures_util::future::join_all;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::control::client;
use super::control::{FileId, KeeperView, ProcessStatus};
use super::mount::time;
use super::mountpoint::spelled;
use super::output;
use super::unmount::owner;

/// How often it is looked whether the next worker answers.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Replace running workers by new ones, of the release that is installed now
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  bucketvol restart
  bucketvol restart /mnt/photos
  bucketvol restart --serve --timeout 30s

Calls of Docker wait for the new worker. One that does not start, or crashes in its first minute, gives way to
the release before it.

Exit status: 0 all are replaced; 1 one is not, or is the old release again; 2 wrong usage.")]
pub(super) struct RestartArgs {
    /// Only the process that serves this mount point
    pub(super) dir: Option<PathBuf>,
    /// Only the plugin daemon
    #[arg(long, conflicts_with = "dir")]
    pub(super) serve: bool,
    /// Wait no longer than this; the restart goes on by itself
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = time)]
    pub(super) timeout: Duration,
}

pub(super) async fn run(args: RestartArgs, run_dir: &Path) -> Result<ExitCode> {
    let chosen = chosen(&args, run_dir).await?;
    let restarts = chosen.iter().map(async |status| {
        let restarted = restart(status, run_dir, args.timeout).await;
        let restarted = restarted.with_context(|| name(status));
        match &restarted {
            Ok(done) => output::print(format!("{}: {done}", name(status))),
            Err(error) => output::say(output::one_line(error)),
        }
        restarted.is_ok()
    });
    let done = join_all(restarts).await;
    match done.iter().all(|done| *done) {
        true => Ok(ExitCode::SUCCESS),
        false => Ok(ExitCode::FAILURE),
    }
}

async fn chosen(args: &RestartArgs, run_dir: &Path) -> Result<Vec<ProcessStatus>> {
    if let Some(dir) = &args.dir {
        let dir = spelled(dir)?;
        return match owner(run_dir, &dir).await? {
            Some((_, status)) => Ok(vec![status]),
            None => bail!("no process of this user serves {}", dir.display()),
        };
    }
    let statuses = client::statuses(run_dir).await?.into_iter();
    let chosen: Vec<_> = statuses
        .map(|(_, status)| status)
        .filter(|status| !args.serve || status.command == "serve")
        .collect();
    if chosen.is_empty() {
        let what = if args.serve {
            "plugin daemon"
        } else {
            "process"
        };
        bail!(
            "no {what} of this user serves anything (looked in {})",
            run_dir.display()
        );
    }
    Ok(chosen)
}

/// Has one worker replaced; says by which.
async fn restart(status: &ProcessStatus, run_dir: &Path, limit: Duration) -> Result<String> {
    let old = status.pid;
    let Some(keeper) = &status.keeper else {
        bail!("process {old} has no keeper of ours: restart its service, or stop and start it");
    };
    // The keeper does not say what it thinks of the file but in its log.
    let program = keeper.program.display();
    let installed = FileId::at(&keeper.program).with_context(|| format!("{program}"))?;
    kill(Pid::from_raw(keeper.pid), Signal::SIGHUP)
        .with_context(|| format!("its keeper, process {}", keeper.pid))?;
    let Ok(next) = tokio::time::timeout(limit, successor(keeper, old, run_dir)).await else {
        bail!("no new worker serves after {limit:?}; the log says why");
    };
    let next = next?;
    let runs = next.keeper.map(|keeper| keeper.executable);
    let (new, version) = (next.pid, next.version);
    if runs != Some(installed) {
        bail!(
            "{program} has failed to start (the log says why): worker {new} runs the old executable, {version}"
        );
    }
    Ok(format!("worker {old} is replaced by {new}, {version}"))
}

/// The next worker of a keeper, once it answers: by then it serves.
async fn successor(keeper: &KeeperView, old: u32, run_dir: &Path) -> Result<ProcessStatus> {
    loop {
        for process in client::processes(run_dir)? {
            // One that is about to end may hang up on us.
            if let Ok(status) = process.status().await
                && status.pid != old
                && status.keeper.as_ref().map(|other| other.pid) == Some(keeper.pid)
            {
                return Ok(status);
            }
        }
        if kill(Pid::from_raw(keeper.pid), None) == Err(Errno::ESRCH) {
            bail!("its keeper has ended; the log says why");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What people know a process by.
fn name(status: &ProcessStatus) -> String {
    match status.mounts.first() {
        Some(mount) if status.command == "mount" => mount.mountpoint.display().to_string(),
        _ => status.command.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::status::tests::serving;
    use crate::plugin::bucket::MountStatus;

    #[tokio::test]
    async fn a_process_without_a_keeper_is_said_to_have_none() {
        let status = serving(MountStatus::default());
        let dir = tempfile::tempdir().unwrap();
        let done = restart(&status, dir.path(), Duration::from_secs(1)).await;
        let error = done.expect_err("there is nobody to ask").to_string();
        assert!(error.contains("process 7 has no keeper"), "{error}");
    }

    #[test]
    fn a_mount_is_known_by_its_directory_and_the_daemon_by_its_command() {
        let mut status = serving(MountStatus::default());
        assert_eq!(name(&status), "serve");
        status.command = "mount".to_owned();
        assert_eq!(name(&status), "/mnt/photos");
    }
}
