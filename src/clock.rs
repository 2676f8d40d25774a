//! The clocks, as something one is given.
//!
//! Everything that decides by time takes a [`Clock`], so that a test turns it by hand and a seeded
//! simulation owns it.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use tokio::sync::watch;

/// Wall time and monotonic time.
#[async_trait]
pub trait Clock: Debug + Send + Sync {
    /// The time of day, for timestamps that people and other programs read.
    fn wall(&self) -> SystemTime;

    /// Time since an arbitrary start, for intervals. Never goes backwards.
    fn monotonic(&self) -> Duration;

    /// Waits until [`Clock::monotonic`] says `at`.
    async fn sleep_until(&self, at: Duration);
}

/// The machine's own clocks.
#[derive(Debug)]
pub struct SystemClock {
    started: Instant,
}

impl SystemClock {
    /// A shared handle on the machine's clocks.
    pub fn shared() -> Arc<dyn Clock> {
        Arc::new(Self {
            started: Instant::now(),
        })
    }
}

#[async_trait]
impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place where the wall clock is read"
    )]
    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }

    async fn sleep_until(&self, at: Duration) {
        tokio::time::sleep_until((self.started + at).into()).await;
    }
}

/// A clock that only moves when told to.
#[derive(Debug)]
pub struct ManualClock {
    now: watch::Sender<Duration>,
}

impl ManualClock {
    /// A clock that stands at 1 January 2026.
    pub fn shared() -> Arc<Self> {
        Arc::new(Self {
            now: watch::Sender::new(Duration::ZERO),
        })
    }

    /// Turns both clocks forward.
    pub fn advance(&self, by: Duration) {
        self.now.send_modify(|now| *now += by);
    }
}

#[async_trait]
impl Clock for ManualClock {
    fn wall(&self) -> SystemTime {
        const NEW_YEAR_2026: Duration = Duration::from_secs(1_767_225_600);
        SystemTime::UNIX_EPOCH + NEW_YEAR_2026 + *self.now.borrow()
    }

    fn monotonic(&self) -> Duration {
        *self.now.borrow()
    }

    async fn sleep_until(&self, at: Duration) {
        let mut turned = self.now.subscribe();
        // The sender is this clock itself: it does not go away meanwhile.
        let _ = turned.wait_for(|now| *now >= at).await;
    }
}
