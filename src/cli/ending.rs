//! The life of one mount in a process of its own: served until a signal, a request or a plain umount ends
//! it, and drained before the process goes.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use async_trait::async_trait;

use super::control::MountView;
use super::control::server::Mounts;
use super::output::TimedOut;
use super::progress;
use super::tracked::Held;
use crate::plugin::bucket::{MountError, Salvage};

/// How often the mount is asked whether the kernel still has it.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// After the unmount, how long programs that still have a file open may finish with it.
const STRAGGLERS: Duration = Duration::from_secs(2);

/// One mount that can be asked over the control socket.
pub(super) struct OneMount {
    held: Held,
}

impl OneMount {
    pub(super) fn new(held: Held) -> Arc<Self> {
        Arc::new(Self { held })
    }

    fn is_at(&self, mountpoint: &Path) -> bool {
        self.held.mount.mountpoint() == mountpoint
    }

    /// Drains and unmounts once `stop` is ready; drains when somebody else unmounted. Returns when the
    /// process can go; `hurry` ends the wait.
    pub(super) async fn run(
        &self,
        stop: impl Future<Output = ()>,
        hurry: impl Future<Output = ()>,
        limit: Duration,
    ) -> Result<()> {
        tokio::select! {
            () = stop => {}
            () = self.gone() => return self.last_drain(limit).await,
        }
        tracing::info!("draining {} before the unmount", self.held.view().source);
        let hurry = std::pin::pin!(hurry);
        let drained = tokio::select! {
            drained = self.drain(limit) => drained,
            () = hurry => {
                let bytes = self.dirty_bytes();
                tracing::warn!("told twice to stop: {bytes} bytes may not be in the bucket");
                self.held.mount.detach().await?;
                return Err(TimedOut(format!("stopped with {bytes} bytes left")).into());
            }
        };
        self.held.mount.detach().await?;
        let _ = tokio::time::timeout(STRAGGLERS, self.gone()).await;
        match drained {
            Ok(()) => self.last_drain(limit).await,
            Err(error) => Err(self.left(&error)),
        }
    }

    /// Ready when the kernel has let go of the file system.
    async fn gone(&self) {
        while self.held.mount.is_alive() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// What the last users wrote after the drain before the unmount.
    async fn last_drain(&self, limit: Duration) -> Result<()> {
        self.drain(limit).await.map_err(|error| self.left(&error))
    }

    /// With a bar on a terminal.
    async fn drain(&self, limit: Duration) -> Result<(), MountError> {
        progress::watch(self.held.mount.drain(limit), async || self.dirty_bytes()).await
    }

    fn dirty_bytes(&self) -> u64 {
        self.held.mount.status().dirty_bytes
    }

    fn left(&self, error: &MountError) -> anyhow::Error {
        let status = self.held.mount.status();
        let message = format!(
            "{}: {} bytes of {} files are not in the bucket: {error}",
            self.held.mount.mountpoint().display(),
            status.dirty_bytes,
            status.dirty_files
        );
        match error {
            MountError::TimedOut(_) => TimedOut(message).into(),
            MountError::Refused(_) | MountError::Unavailable(_) => anyhow!(message),
        }
    }
}

#[async_trait]
impl Mounts for OneMount {
    fn list(&self) -> Vec<MountView> {
        vec![self.held.view()]
    }

    async fn idle_volumes(&self) -> Vec<String> {
        Vec::new()
    }

    async fn sync(
        &self,
        mountpoint: Option<&Path>,
        limit: Duration,
    ) -> Option<Result<(), MountError>> {
        if mountpoint.is_some_and(|wanted| !self.is_at(wanted)) {
            return None;
        }
        Some(self.held.mount.drain(limit).await)
    }

    async fn salvage(
        &self,
        mountpoint: &Path,
        key: &str,
        how: &Salvage,
    ) -> Option<Result<Vec<Range<u64>>, MountError>> {
        if !self.is_at(mountpoint) {
            return None;
        }
        Some(self.held.mount.salvage(key, how).await)
    }

    async fn unmount(
        &self,
        mountpoint: &Path,
        limit: Duration,
        lazy: bool,
    ) -> Option<Result<(), MountError>> {
        if !self.is_at(mountpoint) {
            return None;
        }
        if !lazy && let Err(error) = self.held.mount.drain(limit).await {
            return Some(Err(error));
        }
        // The loop of `run` sees that it is gone, drains what came in between, and ends the process.
        Some(self.held.mount.detach().await)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use super::*;
    use crate::config::{Location, Options};
    use crate::plugin::bucket::{Mount, MountStatus};

    /// A mount without a kernel: so many bytes are dirty, and a drain takes so long.
    #[derive(Debug, Default)]
    pub(in crate::cli) struct FakeMount {
        pub(in crate::cli) dirty: AtomicU64,
        pub(in crate::cli) drain_takes: Duration,
        pub(in crate::cli) detached: AtomicBool,
        pub(in crate::cli) drains: AtomicU64,
    }

    #[derive(Debug)]
    pub(in crate::cli) struct FakeAt(
        pub(in crate::cli) Arc<FakeMount>,
        pub(in crate::cli) PathBuf,
    );

    #[async_trait]
    impl Mount for FakeAt {
        fn mountpoint(&self) -> &Path {
            &self.1
        }

        fn is_alive(&self) -> bool {
            !self.0.detached.load(Ordering::SeqCst)
        }

        async fn is_held(&self) -> bool {
            false
        }

        async fn drain(&self, limit: Duration) -> Result<(), MountError> {
            if self.0.drain_takes > limit {
                tokio::time::sleep(limit).await;
                return Err(MountError::TimedOut("the store is slow".to_owned()));
            }
            tokio::time::sleep(self.0.drain_takes).await;
            self.0.dirty.store(0, Ordering::SeqCst);
            self.0.drains.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }

        async fn detach(&self) -> Result<(), MountError> {
            self.0.detached.store(true, Ordering::SeqCst);
            Ok(())
        }

        fn status(&self) -> MountStatus {
            MountStatus {
                dirty_bytes: self.0.dirty.load(Ordering::SeqCst),
                ..MountStatus::default()
            }
        }
    }

    pub(in crate::cli) fn one_mount(fake: &Arc<FakeMount>, at: &str) -> Arc<OneMount> {
        let options = Options::at(Location::parse("memory://x").unwrap());
        let mount = Box::new(FakeAt(Arc::clone(fake), PathBuf::from(at)));
        OneMount::new(Held::new(mount, &options, None))
    }

    fn fake(drain_takes: u64) -> Arc<FakeMount> {
        Arc::new(FakeMount {
            dirty: AtomicU64::new(7),
            drain_takes: Duration::from_secs(drain_takes),
            ..FakeMount::default()
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_signal_drains_before_it_unmounts() {
        let fake = fake(3);
        let mount = one_mount(&fake, "/m");
        let done = mount.run(
            std::future::ready(()),
            std::future::pending(),
            Duration::from_secs(60),
        );
        done.await.unwrap();
        assert!(fake.detached.load(Ordering::SeqCst));
        assert_eq!(fake.dirty.load(Ordering::SeqCst), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_that_takes_too_long_says_what_is_left() {
        let fake = fake(300);
        let mount = one_mount(&fake, "/m");
        let done = mount.run(
            std::future::ready(()),
            std::future::pending(),
            Duration::from_secs(60),
        );
        let error = done.await.expect_err("bytes are left");
        assert!(error.to_string().contains("/m: 7 bytes"), "{error}");
        assert!(error.downcast_ref::<TimedOut>().is_some());
        assert!(fake.detached.load(Ordering::SeqCst));
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_signal_does_not_wait() {
        let fake = fake(30);
        let mount = one_mount(&fake, "/m");
        let start = tokio::time::Instant::now();
        let hurry = tokio::time::sleep(Duration::from_secs(1));
        let done = mount
            .run(std::future::ready(()), hurry, Duration::from_secs(60))
            .await;
        assert!(done.is_err() && fake.detached.load(Ordering::SeqCst));
        assert!(start.elapsed() < Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_plain_umount_ends_the_process_after_a_drain() {
        let fake = fake(3);
        let mount = one_mount(&fake, "/m");
        let elsewhere = Arc::clone(&fake);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(5)).await;
            elsewhere.detached.store(true, Ordering::SeqCst);
        });
        let pending = std::future::pending();
        mount
            .run(pending, std::future::pending(), Duration::from_secs(60))
            .await
            .unwrap();
        assert_eq!(fake.drains.load(Ordering::SeqCst), 1);
    }
}
