//! How a session ends: drained, not held by any container, detached; or looked at again later.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::lifecycle::Volume;
use super::volume::VolumeState;
use super::{Mount, MountError};

/// A look into /proc, an unmount: local work that is done at once or not at all.
const LOCAL: Duration = Duration::from_secs(5);

impl Volume {
    /// Detaches the session if nobody is known to need it; looks again later if that cannot be yet.
    pub(super) async fn release(self: &Arc<Self>) {
        let Some(mount) = self.state.lock().candidate().map(Arc::clone) else {
            return;
        };
        if !(self.drain(&mount).await && self.detach_idle(&mount).await) {
            self.look_again();
        }
    }

    /// Starts the task that looks after the session until it can be detached, unless there is one.
    fn look_again(self: &Arc<Self>) {
        if self.sweeping.swap(true, Ordering::AcqRel) {
            return;
        }
        let first = self.context.limits.sweep;
        let weak = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut pause = first;
            loop {
                sleep(pause).await;
                pause = (pause * 2).min(first * 8);
                let Some(volume) = weak.upgrade() else { return };
                if !volume.sweep().await {
                    continue;
                }
                volume.sweeping.store(false, Ordering::Release);
                // A release that came between the sweep and the store has started no task.
                let again = volume.state.lock().candidate().is_some();
                if !again || volume.sweeping.swap(true, Ordering::AcqRel) {
                    return;
                }
            }
        });
    }

    /// Whether there is nothing left to look after.
    async fn sweep(&self) -> bool {
        let Some(mount) = self.state.lock().candidate().map(Arc::clone) else {
            return true;
        };
        !self.is_held(&mount).await
            && !self.is_awaited()
            && self.drain(&mount).await
            && self.detach_idle(&mount).await
    }

    /// Whether `mount` is nobody's matter any more: detached, or used again by a Mount that came first.
    async fn detach_idle(&self, mount: &Arc<dyn Mount>) -> bool {
        let Ok(_turn) = timeout(LOCAL, self.turn.lock()).await else {
            return false;
        };
        let idle = self
            .state
            .lock()
            .candidate()
            .is_some_and(|now| Arc::ptr_eq(now, mount));
        if !idle {
            return true;
        }
        self.is_settled(mount).await && !self.is_awaited() && self.detach(Arc::clone(mount)).await
    }

    /// Whether a container may be about to start that an earlier process has answered.
    fn is_awaited(&self) -> bool {
        let until = *self.awaited_until.lock();
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Whether no container can write any more and nothing was written since the last drain. In this
    /// order: what is not held any more cannot become dirty any more.
    pub(super) async fn is_settled(&self, mount: &Arc<dyn Mount>) -> bool {
        if self.is_held(mount).await {
            return false;
        }
        let status = mount.status();
        status.dirty_bytes == 0 && status.dirty_files == 0
    }

    /// Detaches, whoever holds it. The caller has the turn.
    pub(super) async fn detach(&self, mount: Arc<dyn Mount>) -> bool {
        let late = || {
            Err(MountError::TimedOut(format!(
                "not unmounted after {} s",
                LOCAL.as_secs()
            )))
        };
        match timeout(LOCAL, mount.detach())
            .await
            .unwrap_or_else(|_| late())
        {
            Ok(()) => {
                *self.state.lock() = VolumeState::Unmounted;
                tracing::info!(volume = %self.name, "unmounted");
                true
            }
            Err(error) => {
                let text = self.definition.scrub(&error.to_string());
                tracing::error!(volume = %self.name, error = text, "could not be unmounted");
                self.notes.lock().last_error = Some(text);
                *self.state.lock() = VolumeState::Stuck { mount, error };
                false
            }
        }
    }

    /// A look that fails or takes too long counts as held: to keep a mount costs little.
    async fn is_held(&self, mount: &Arc<dyn Mount>) -> bool {
        let is_held = timeout(LOCAL, mount.is_held()).await.unwrap_or(true);
        if is_held {
            *self.awaited_until.lock() = None;
        }
        is_held
    }

    pub(super) async fn drain(&self, mount: &Arc<dyn Mount>) -> bool {
        self.drain_within(mount, self.context.limits.drain).await
    }

    /// Whether everything is in the bucket. What is not goes on by itself.
    pub(super) async fn drain_within(&self, mount: &Arc<dyn Mount>, limit: Duration) -> bool {
        let late = || {
            Err(MountError::TimedOut(format!(
                "not everything is in the bucket after {} s",
                limit.as_secs()
            )))
        };
        // The mount keeps the limit; ours is for one that does not.
        let Err(error) = timeout(limit, mount.drain(limit))
            .await
            .unwrap_or_else(|_| late())
        else {
            return true;
        };
        let text = self.definition.scrub(&error.to_string());
        let status = mount.status();
        tracing::warn!(volume = %self.name, error = text, status.dirty_bytes, status.dirty_files,
            "changes are not in the bucket yet");
        self.notes.lock().last_error = Some(text);
        false
    }
}
