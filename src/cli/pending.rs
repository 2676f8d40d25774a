//! `bucketvol pending`: what is not in the bucket yet, and why.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

use super::control::{MountView, ProcessStatus, SalvageRequest, client};
use super::mount::time;
use super::output;
use super::status::{bytes, plain_table};
use super::sync::{self, SyncArgs};
use crate::plugin::bucket::Salvage;

/// Show what is not in the bucket yet, and try again
#[derive(Debug, Args)]
#[command(after_help = format!("Examples:
  bucketvol pending ls
  bucketvol pending retry --timeout 1m
  bucketvol pending export photos 2024/a.jpg /tmp/a.jpg
  bucketvol pending discard --yes photos 2024/a.jpg

{}", output::EXIT_STATUS))]
pub(super) struct PendingArgs {
    #[command(subcommand)]
    command: PendingCommand,
}

#[derive(Debug, Subcommand)]
enum PendingCommand {
    /// List the changes that wait: of which volume, of which key, how many bytes, and the last reason
    #[command(after_help = "Example:\n  bucketvol pending ls --json | jq '.[].change'")]
    Ls {
        /// Print JSON for programs
        #[arg(long)]
        json: bool,
    },
    /// Try all of them now, as after the credentials or the rights were mended
    #[command(after_help = "Example:\n  bucketvol pending retry --timeout 1m")]
    Retry {
        /// Give up after this time; what is left goes on by itself
        #[arg(long, value_name = "TIME", value_parser = time)]
        timeout: Option<Duration>,
    },
    /// Write a file that does not get into the bucket to a new file of this host
    #[command(after_help = "Example:\n  bucketvol pending export photos 2024/a.jpg /tmp/a.jpg")]
    Export {
        /// The volume's name or its mount point
        volume: PathBuf,
        /// The key, as `pending ls` shows it
        key: String,
        /// The file to make
        file: PathBuf,
    },
    /// Give a change up: the file is what the bucket has, and what was removed is there again
    #[command(after_help = "Example:\n  bucketvol pending discard --yes photos 2024/a.jpg")]
    Discard {
        /// The volume's name or its mount point
        volume: PathBuf,
        /// The key, as `pending ls` shows it
        key: String,
        /// Do it: what was changed is lost
        #[arg(long, required = true)]
        yes: bool,
    },
}

pub(super) async fn run(args: PendingArgs, run_dir: &Path) -> Result<ExitCode> {
    match args.command {
        PendingCommand::Ls { json } => list(json, run_dir).await,
        PendingCommand::Retry { timeout } => {
            let all = SyncArgs {
                dir: None,
                all: true,
                timeout,
            };
            sync::run(all, run_dir).await
        }
        PendingCommand::Export { volume, key, file } => {
            let file = std::path::absolute(&file)?;
            let how = Salvage::Export(file.clone());
            let missing = salvage(&volume, key, how, run_dir).await?;
            for range in &missing {
                output::say(format!(
                    "bytes {} to {} cannot be read any more: zeros stand in their place",
                    range.start, range.end
                ));
            }
            output::say(format!("{} is written", file.display()));
            Ok(if missing.is_empty() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        }
        PendingCommand::Discard { volume, key, .. } => {
            salvage(&volume, key, Salvage::Discard, run_dir).await?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn salvage(
    volume: &Path,
    key: String,
    how: Salvage,
    run_dir: &Path,
) -> Result<Vec<Range<u64>>> {
    let mountpoint = std::path::absolute(volume)?;
    let is_meant = |mount: &&MountView| {
        mount.volume.as_deref() == volume.to_str() || mount.mountpoint == mountpoint
    };
    for (process, status) in client::statuses(run_dir).await? {
        if let Some(mount) = status.mounts.iter().find(is_meant) {
            let request = SalvageRequest {
                mountpoint: mount.mountpoint.clone(),
                key,
                how,
            };
            return process.salvage(&request).await;
        }
    }
    bail!(
        "no process of this user serves {}: bucketvol status lists what is mounted",
        volume.display()
    )
}

async fn list(json: bool, run_dir: &Path) -> Result<ExitCode> {
    let statuses = client::statuses(run_dir).await?;
    let statuses: Vec<ProcessStatus> = statuses.into_iter().map(|(_, status)| status).collect();
    let mounts = statuses.iter().flat_map(|status| &status.mounts);
    if json {
        let pending: Vec<_> = mounts
            .flat_map(|mount| {
                mount.status.pending.iter().map(|change| {
                    serde_json::json!({
                        "volume": mount.volume,
                        "mountpoint": mount.mountpoint,
                        "change": change,
                    })
                })
            })
            .collect();
        output::print(serde_json::to_string_pretty(&pending)?);
    } else if mounts.clone().all(|mount| mount.status.pending.is_empty()) {
        output::say("everything is in the buckets");
    } else {
        output::print(table(&statuses));
    }
    Ok(ExitCode::SUCCESS)
}

fn table(statuses: &[ProcessStatus]) -> String {
    let mut table = plain_table(&["VOLUME", "KEY", "CHANGE", "BYTES", "REASON"]);
    for mount in statuses.iter().flat_map(|status| &status.mounts) {
        let name = match &mount.volume {
            Some(volume) => volume.clone(),
            None => mount.mountpoint.display().to_string(),
        };
        for change in &mount.status.pending {
            table.add_row([
                name.clone(),
                change.key.clone(),
                change.change.clone(),
                bytes(change.bytes),
                change.reason.clone().unwrap_or_default(),
            ]);
        }
        let shown = mount.status.pending.len() as u64;
        if let Some(more) = mount.status.pending_changes.checked_sub(shown)
            && more > 0
        {
            table.add_row([
                name,
                format!("and {more} more"),
                String::new(),
                String::new(),
                String::new(),
            ]);
        }
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::status::tests::serving;
    use crate::plugin::bucket::{MountStatus, PendingChange};

    #[test]
    fn a_row_says_what_waits_and_why() {
        let status = MountStatus {
            pending_changes: 3,
            pending: vec![PendingChange {
                key: "d/a".to_owned(),
                change: "content".to_owned(),
                bytes: 2048,
                reason: Some("access denied".to_owned()),
            }],
            ..MountStatus::default()
        };
        let text = table(&[serving(status)]);
        for word in [
            "photos",
            "d/a",
            "content",
            "2.0 KiB",
            "access denied",
            "and 2 more",
        ] {
            assert!(text.contains(word), "{word} is not in {text}");
        }
    }
}
