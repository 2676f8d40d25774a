//! `bucketvol status`: every volume and mount of this user, from all processes that serve some.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use comfy_table::Table;
use comfy_table::presets::NOTHING;

use super::control::client;
use super::control::{MountView, ProcessStatus};
use super::output;

/// Show every volume and mount: what is not in the bucket yet, cache, requests, the last error
#[derive(Debug, Args)]
#[command(after_help = "Example:
  bucketvol status --json | jq '.[].mounts[] | select(.dirty_bytes > 0)'

Shows the processes of this user; root's are the plugin daemon and root's own mounts.")]
pub(super) struct StatusArgs {
    /// Print JSON for programs
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) async fn run(args: StatusArgs, run_dir: &Path) -> Result<ExitCode> {
    let statuses = client::statuses(run_dir).await?;
    let statuses: Vec<ProcessStatus> = statuses.into_iter().map(|(_, status)| status).collect();
    if args.json {
        output::print(serde_json::to_string_pretty(&statuses)?);
    } else if statuses.is_empty() {
        output::say("no volume and no mount of this user is served");
    } else {
        output::print(table(&statuses));
    }
    Ok(ExitCode::SUCCESS)
}

/// Columns without lines between them: cut and awk read it too.
pub(super) fn plain_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header.iter().copied());
    table
}

fn table(statuses: &[ProcessStatus]) -> String {
    let mut table = plain_table(&[
        "VOLUME",
        "MOUNTPOINT",
        "SOURCE",
        "DIRTY",
        "FILES",
        "USED",
        "CACHE",
        "HITS",
        "REQUESTS",
        "PID",
        "LAST ERROR",
    ]);
    for status in statuses {
        for mount in &status.mounts {
            table.add_row(row(mount, status.pid));
        }
        for volume in &status.idle_volumes {
            let pid = status.pid.to_string();
            table.add_row([volume, "-", "-", "-", "-", "-", "-", "-", "-", &pid, ""]);
        }
    }
    table.trim_fmt()
}

fn row(mount: &MountView, pid: u32) -> [String; 11] {
    let status = &mount.status;
    let source = if mount.read_only {
        format!("{} (ro)", mount.source)
    } else {
        mount.source.clone()
    };
    let mountpoint = mount.mountpoint.display().to_string();
    let requests: Vec<String> = status
        .requests
        .iter()
        .map(|(verb, count)| format!("{verb} {count}"))
        .collect();
    [
        mount.volume.clone().unwrap_or_else(|| "-".to_owned()),
        if mount.alive {
            mountpoint
        } else {
            format!("{mountpoint} (detached)")
        },
        source,
        bytes(status.dirty_bytes),
        status.dirty_files.to_string(),
        used(status.used_bytes, status.size),
        bytes(status.cache_bytes),
        hit_rate(status.cache_hits, status.cache_lookups),
        if requests.is_empty() {
            "-".to_owned()
        } else {
            requests.join(", ")
        },
        pid.to_string(),
        status.last_error.clone().unwrap_or_default(),
    ]
}

/// Bytes as people read them.
pub(super) fn bytes(count: u64) -> String {
    bytesize::ByteSize(count).to_string()
}

fn used(used: Option<u64>, size: Option<u64>) -> String {
    let used = used.map_or_else(|| "-".to_owned(), bytes);
    match size {
        Some(size) => format!("{used} of {}", bytes(size)),
        None => used,
    }
}

fn hit_rate(hits: u64, lookups: u64) -> String {
    match (hits * 100).checked_div(lookups) {
        Some(percent) => format!("{percent} %"),
        None => "-".to_owned(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::plugin::bucket::MountStatus;

    /// A daemon with one mount of this status, and a volume that is not mounted.
    pub(in crate::cli) fn serving(status: MountStatus) -> ProcessStatus {
        let view = MountView {
            volume: Some("photos".to_owned()),
            source: "s3://photos".to_owned(),
            mountpoint: "/mnt/photos".into(),
            read_only: true,
            credentials: "file:prod".to_owned(),
            alive: true,
            status,
        };
        ProcessStatus {
            pid: 7,
            version: "0".to_owned(),
            command: "serve".to_owned(),
            mounts: vec![view],
            idle_volumes: vec!["other".to_owned()],
            keeper: None,
        }
    }

    #[test]
    fn a_row_says_what_is_dirty_and_what_went_wrong() {
        let status = MountStatus {
            dirty_bytes: 3 << 20,
            dirty_files: 2,
            size: Some(10 << 30),
            used_bytes: Some(5 << 20),
            cache_hits: 1,
            cache_lookups: 4,
            requests: [("get".to_owned(), 5), ("put".to_owned(), 1)].into(),
            last_error: Some("bucket photos: denied".to_owned()),
            ..MountStatus::default()
        };
        let text = table(&[serving(status)]);
        for word in [
            "photos",
            "s3://photos (ro)",
            "3.0 MiB",
            "5.0 MiB of 10.0 GiB",
            "25 %",
            "get 5, put 1",
            "denied",
            "other",
        ] {
            assert!(text.contains(word), "{word} is not in {text}");
        }
    }

    #[test]
    fn no_lookups_are_no_hit_rate() {
        assert_eq!(hit_rate(0, 0), "-");
        assert_eq!(hit_rate(9, 9), "100 %");
    }

    #[test]
    fn what_nobody_counted_is_not_said_to_be_nothing() {
        assert_eq!(used(None, None), "-");
        assert_eq!(used(None, Some(1 << 30)), "- of 1.0 GiB");
        assert_eq!(used(Some(0), None), "0 B");
    }
}
