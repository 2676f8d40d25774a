//! A bar on a terminal while something is drained.

use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::control::client::Process;

/// What is quick needs no bar.
const PATIENCE: Duration = Duration::from_millis(400);

/// How often it is asked how much is left.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Waits for `work`, with a bar on stderr if that is a terminal. `left` counts the bytes that are not in the bucket yet.
pub(super) async fn watch<T>(work: impl Future<Output = T>, left: impl AsyncFn() -> u64) -> T {
    if !std::io::stderr().is_terminal() {
        return work.await;
    }
    watch_on(ProgressDrawTarget::stderr(), work, left).await
}

async fn watch_on<T>(
    target: ProgressDrawTarget,
    work: impl Future<Output = T>,
    left: impl AsyncFn() -> u64,
) -> T {
    let mut work = std::pin::pin!(work);
    if let Ok(done) = tokio::time::timeout(PATIENCE, &mut work).await {
        return done;
    }
    let bar = ProgressBar::with_draw_target(Some(0), target);
    // The template is a constant; without it the bar is merely plainer.
    if let Ok(style) =
        ProgressStyle::with_template("{bar:40} {bytes} of {total_bytes} in the bucket, {elapsed}")
    {
        bar.set_style(style);
    }
    let mut largest = 0;
    let done = loop {
        let left = left().await;
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

/// The dirty bytes of one mount of these processes, or of all.
pub(super) async fn dirty_bytes(processes: &[Process], mountpoint: Option<&Path>) -> u64 {
    let mut bytes = 0;
    for process in processes {
        // One that ends just now has nothing left, or says so in its answer.
        let Ok(status) = process.status().await else {
            continue;
        };
        let mounts = status
            .mounts
            .iter()
            .filter(|m| mountpoint.is_none_or(|at| m.mountpoint == at));
        bytes += mounts.map(|m| m.status.dirty_bytes).sum::<u64>();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use indicatif::InMemoryTerm;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_bar_shows_how_much_of_the_most_there_was_is_in_the_bucket() {
        let terminal = InMemoryTerm::new(3, 100);
        let target = ProgressDrawTarget::term_like(Box::new(terminal.clone()));
        let left = Cell::new(4 << 20);
        let shown = RefCell::new(Vec::new());
        let work = async {
            for mib in [3_u64, 1, 0] {
                tokio::time::sleep(Duration::from_secs(1)).await;
                shown.borrow_mut().push(terminal.contents());
                left.set(mib << 20);
            }
        };
        watch_on(target, work, async || left.get()).await;
        let shown = shown.into_inner();
        for (shown, part) in shown.iter().zip(["0 B", "1.00 MiB", "3.00 MiB"]) {
            let text = format!("{part} of 4.00 MiB in the bucket");
            assert!(shown.contains(&text), "{shown:?}");
        }
        assert_eq!(terminal.contents(), "", "it leaves nothing behind");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_quick_has_no_bar() {
        let terminal = InMemoryTerm::new(3, 100);
        let target = ProgressDrawTarget::term_like(Box::new(terminal.clone()));
        let quick = tokio::time::sleep(PATIENCE / 2);
        watch_on(target, quick, async || panic!("nobody asks")).await;
    }
}
