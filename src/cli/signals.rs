//! What a process that serves is told by signals: to end, to hurry, to hand over.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::worker::Worker;

/// Service managers and pkill signal keeper and worker alike, and the keeper passes its own on: what comes
/// this soon after the first one is the first one.
const ECHO: Duration = Duration::from_millis(500);

/// SIGTERM and SIGINT, counted; and the keeper's SIGUSR1.
pub(super) struct Signals {
    first: CancellationToken,
    second: CancellationToken,
    hand_over: CancellationToken,
}

impl Signals {
    pub(super) fn install(worker: &Arc<Worker>) -> Result<Self> {
        let signals = Self {
            first: CancellationToken::new(),
            second: CancellationToken::new(),
            hand_over: CancellationToken::new(),
        };
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
        let mut user = signal(SignalKind::user_defined1()).context("SIGUSR1")?;
        let echo = match worker.is_kept() {
            // SIGHUP is for the keeper. What is not heard here does not end the process either.
            true => signal(SignalKind::hangup())
                .context("SIGHUP")
                .map(|_| ECHO)?,
            false => Duration::ZERO,
        };
        let (first, second) = (signals.first.clone(), signals.second.clone());
        let (hand_over, worker) = (signals.hand_over.clone(), Arc::clone(worker));
        tokio::spawn(async move {
            let mut told: Option<Instant> = None;
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                    _ = user.recv() => {
                        // One that is about to end has nothing to hand over.
                        if told.is_none() {
                            hand_over.cancel();
                        }
                        continue;
                    }
                }
                match told {
                    None => {
                        if worker.is_orphaned() {
                            tracing::error!(
                                "its keeper has died: this process drains and ends, since nobody could replace it"
                            );
                        }
                        told = Some(Instant::now());
                        first.cancel();
                    }
                    Some(at) if at.elapsed() >= echo => second.cancel(),
                    Some(_) => {}
                }
            }
        });
        Ok(signals)
    }

    /// Ready once this process is told to end.
    pub(super) fn first(&self) -> impl Future<Output = ()> + Send + 'static {
        self.first.clone().cancelled_owned()
    }

    /// Ready once it is told so again.
    pub(super) fn second(&self) -> impl Future<Output = ()> + Send + 'static {
        self.second.clone().cancelled_owned()
    }

    /// Ready once another worker is to go on with what this one has.
    pub(super) fn hand_over(&self) -> impl Future<Output = ()> + Send + 'static {
        self.hand_over.clone().cancelled_owned()
    }
}
