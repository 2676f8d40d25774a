//! A bar on a terminal while something is drained.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

use super::control::client::Process;

/// What is quick needs no bar.
const PATIENCE: Duration = Duration::from_millis(400);

/// How often the process is asked.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Waits for `work`, with a bar on stderr if that is a terminal. The bar counts the dirty bytes of these
/// mounts; `None`: of all mounts of the processes.
pub(super) async fn watch<T>(
    processes: &[Process],
    mountpoint: Option<PathBuf>,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let mut work = std::pin::pin!(work);
    if !std::io::stderr().is_terminal() {
        return work.await;
    }
    if let Ok(done) = tokio::time::timeout(PATIENCE, &mut work).await {
        return done;
    }
    let bar = ProgressBar::new(0);
    // The template is a constant; without it the bar is merely plainer.
    if let Ok(style) =
        ProgressStyle::with_template("{bar:40} {bytes} of {total_bytes} in the bucket, {elapsed}")
    {
        bar.set_style(style);
    }
    let mut largest = 0;
    let done = loop {
        let left = dirty(processes, mountpoint.as_ref()).await;
        // More may be written while we wait.
        largest = left.max(largest);
        bar.set_length(largest);
        bar.set_position(largest - left);
        if let Ok(done) = tokio::time::timeout(LOOK_EVERY, &mut work).await {
            break done;
        }
    };
    bar.finish_and_clear();
    done
}

async fn dirty(processes: &[Process], mountpoint: Option<&PathBuf>) -> u64 {
    let mut bytes = 0;
    for process in processes {
        // One that ends just now has nothing left, or says so in its answer.
        let Ok(status) = process.status().await else {
            continue;
        };
        let mounts = status
            .mounts
            .iter()
            .filter(|m| mountpoint.is_none_or(|at| m.mountpoint == *at));
        bytes += mounts.map(|m| m.status.dirty_bytes).sum::<u64>();
    }
    bytes
}
