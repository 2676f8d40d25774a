//! What the keeper does when something happens to its worker. Pure: it is told the time, and sends no signal.

use std::fmt;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::Settings;
use super::backoff;

/// A deadline that is noticed this late was missed because the host stood still, not because the worker did.
const LATE: Duration = Duration::from_secs(1);

/// How a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// By itself, with this status.
    Exited(u8),
    /// By this signal.
    Killed(Signal),
}

impl End {
    /// The status that tells a caller of ours about it, as a shell would.
    fn status(self) -> u8 {
        match self {
            Self::Exited(status) => status,
            Self::Killed(signal) => status_of(signal),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "with status {status}"),
            Self::Killed(signal) => write!(f, "by {signal}"),
        }
    }
}

fn status_of(signal: Signal) -> u8 {
    u8::try_from(128 + signal as i32).unwrap_or(u8::MAX)
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// The worker serves.
    Ready,
    /// The worker is about to end on purpose.
    Stopping,
    /// The worker is alive.
    Heartbeat,
    /// The worker says that it hangs.
    Hangs,
    /// The worker has ended, and the kernel has said so; or it could not be started.
    Ended(End),
    /// The keeper was told to stop.
    Stop(Signal),
    /// The keeper was told to replace the worker by a new executable, which is there.
    Restart,
    /// Time has passed.
    Tick,
}

/// Which executable a worker runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    /// The one that has been healthy for a while, or was there first.
    Proven,
    /// The one of the last planned restart.
    Candidate,
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    /// The worker gets this signal.
    Signal(Signal),
    /// The worker gets SIGKILL, for this reason.
    Kill(&'static str),
    /// A worker is started. The one before it has ended.
    Start(Program),
    /// The next worker is started after this long.
    Wait(Duration),
    /// The candidate has failed: it is dropped, and the proven executable is started after this long.
    FallBack(Duration),
    /// The candidate has been healthy: it is the proven one from here on.
    Adopt,
    /// The restart cannot be, for this reason.
    Refuse(&'static str),
    /// The keeper ends with this status.
    End(u8),
}

/// What the end of a worker that was killed leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    End,
    Crash,
    Candidate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// A worker runs that has not said READY=1. The first of all may fail for good: it was never more.
    Starting { first: bool, until: Instant },
    /// A worker serves, or has begun to end by itself.
    Ready { stopping: bool },
    /// A worker was asked to end for another one.
    HandingOver { until: Instant },
    /// A worker was told to stop; its end is ours.
    Draining,
    /// A worker was sent SIGKILL and is not gone yet.
    Killed(After),
    /// There is no worker; the next one comes.
    Waiting { until: Instant },
    /// There is no worker and there will be none.
    Ended,
}

/// The life of the workers of one keeper.
#[derive(Debug)]
pub(super) struct Lifecycle {
    limits: Settings,
    phase: Phase,
    /// The worker runs the candidate.
    on_trial: bool,
    /// When the present or last worker got ready, if it did.
    ready_since: Option<Instant>,
    /// When a sign of life was last seen, or due to be forgiven.
    alive_at: Instant,
    /// Crashes without a healthy time between them.
    crashes: u32,
    /// Those of them since a worker was ready.
    failed_starts: u32,
    /// A request to stop that a worker has to be ready for: it drains what its predecessors left.
    stop: Option<Signal>,
}

impl Lifecycle {
    /// For the first worker, which the caller starts now.
    pub(super) fn first(limits: Settings, now: Instant) -> Self {
        let until = now + limits.start_limit;
        Self::at(Phase::Starting { first: true, until }, None, limits, now)
    }

    /// For a worker that another keeper started and that is ready.
    pub(super) fn taken_over(limits: Settings, now: Instant) -> Self {
        Self::at(Phase::Ready { stopping: false }, Some(now), limits, now)
    }

    fn at(phase: Phase, ready_since: Option<Instant>, limits: Settings, now: Instant) -> Self {
        Self {
            limits,
            phase,
            on_trial: false,
            ready_since,
            alive_at: now,
            crashes: 0,
            failed_starts: 0,
            stop: None,
        }
    }

    /// When [`Event::Tick`] is due at the latest. `None`: something else has to happen first.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let silence = self.alive_at + self.limits.watchdog;
        match self.phase {
            Phase::Ready { stopping: false } if self.on_trial => {
                let proven = self.ready_since.map(|since| since + self.limits.trial);
                Some(proven.map_or(silence, |proven| proven.min(silence)))
            }
            Phase::Ready { .. } => Some(silence),
            Phase::Draining => self.ready_since.map(|_| silence),
            Phase::Starting { until, .. }
            | Phase::HandingOver { until }
            | Phase::Waiting { until } => Some(until),
            Phase::Killed(_) | Phase::Ended => None,
        }
    }

    /// Takes what happened, and says what is to be done.
    pub(super) fn on(&mut self, event: Event, now: Instant) -> Action {
        match event {
            Event::Heartbeat => {
                self.alive(now);
                Action::Nothing
            }
            Event::Ready => self.ready(now),
            Event::Stopping => {
                if let Phase::Ready { stopping } = &mut self.phase {
                    *stopping = true;
                }
                Action::Nothing
            }
            Event::Hangs => self.kill("it says that it hangs"),
            Event::Ended(end) => self.ended(end, now),
            Event::Stop(signal) => self.stop(signal),
            Event::Restart => self.restart(now),
            Event::Tick => self.tick(now),
        }
    }

    /// The next sign of life is due after the watchdog's time. It buys a start time too, unless there is an
    /// executable that is known to start.
    fn alive(&mut self, now: Instant) {
        self.alive_at = now;
        let silence = now + self.limits.watchdog;
        if let (Phase::Starting { until, .. }, false) = (&mut self.phase, self.on_trial) {
            *until = silence.max(*until);
        }
    }

    fn ready(&mut self, now: Instant) -> Action {
        self.alive_at = now;
        match self.phase {
            Phase::Starting { .. } => {
                self.ready_since = Some(now);
                self.phase = Phase::Ready { stopping: false };
                match self.stop.take() {
                    Some(signal) => self.drain(signal),
                    None => Action::Nothing,
                }
            }
            Phase::Draining if self.ready_since.is_none() => {
                self.ready_since = Some(now);
                Action::Nothing
            }
            _ => Action::Nothing,
        }
    }

    fn ended(&mut self, end: End, now: Instant) -> Action {
        match (self.phase, end) {
            (Phase::Starting { first: true, .. } | Phase::Draining, _)
            | (Phase::Ready { stopping: true }, End::Exited(_))
            | (Phase::Killed(After::End), _) => self.finish(end),
            (Phase::Starting { first: false, .. } | Phase::Ready { .. }, _)
            | (Phase::Killed(After::Crash), _) => self.crashed(end, now),
            (Phase::HandingOver { .. } | Phase::Killed(After::Candidate), _) => {
                self.start(Program::Candidate, now)
            }
            (Phase::Waiting { .. } | Phase::Ended, _) => Action::Nothing,
        }
    }

    fn crashed(&mut self, end: End, now: Instant) -> Action {
        // Asked to stop, and nobody gets ready to drain: what is left waits for the next start by hand.
        if self.stop.is_some() && self.ready_since.is_none() && !self.on_trial {
            return self.finish(end);
        }
        let healthy = |since: Instant| now.duration_since(since) >= self.limits.trial;
        if self.ready_since.is_some_and(healthy) {
            self.crashes = 0;
        }
        let delay = match self.ready_since {
            Some(_) => {
                self.failed_starts = 0;
                backoff::delay(self.crashes, true)
            }
            None => backoff::delay(self.failed_starts, false),
        };
        self.crashes = self.crashes.saturating_add(1);
        self.failed_starts = self.failed_starts.saturating_add(1);
        self.phase = Phase::Waiting { until: now + delay };
        match std::mem::take(&mut self.on_trial) {
            true => Action::FallBack(delay),
            false => Action::Wait(delay),
        }
    }

    fn stop(&mut self, signal: Signal) -> Action {
        let second = self.stop.is_some();
        match self.phase {
            Phase::Starting { first: true, .. } | Phase::Ready { .. } | Phase::Draining => {
                self.drain(signal)
            }
            Phase::Starting { .. } | Phase::HandingOver { .. } if second => self.drain(signal),
            Phase::Killed(_) if second => {
                self.phase = Phase::Killed(After::End);
                Action::Nothing
            }
            Phase::Waiting { .. } if second => {
                self.phase = Phase::Ended;
                Action::End(status_of(signal))
            }
            Phase::Killed(After::End) | Phase::Ended => Action::Nothing,
            // A worker that is not ready may not know what the signal means yet.
            Phase::Starting { .. }
            | Phase::HandingOver { .. }
            | Phase::Killed(_)
            | Phase::Waiting { .. } => {
                self.stop = Some(signal);
                Action::Nothing
            }
        }
    }

    fn restart(&mut self, now: Instant) -> Action {
        if self.stop.is_some() {
            return Action::Refuse("it was told to stop");
        }
        match self.phase {
            Phase::Starting { first: true, .. } => {
                Action::Refuse("the first worker is not ready yet")
            }
            Phase::Ready { stopping: true }
            | Phase::Draining
            | Phase::Killed(After::End)
            | Phase::Ended => Action::Refuse("the worker is about to end"),
            Phase::HandingOver { .. } | Phase::Killed(After::Candidate) => {
                Action::Refuse("another restart is under way")
            }
            Phase::Killed(After::Crash) => {
                self.phase = Phase::Killed(After::Candidate);
                Action::Nothing
            }
            Phase::Waiting { .. } => self.start(Program::Candidate, now),
            Phase::Starting { .. } | Phase::Ready { .. } => {
                let until = now + self.limits.hand_over_limit;
                self.phase = Phase::HandingOver { until };
                Action::Signal(Signal::SIGUSR1)
            }
        }
    }

    fn tick(&mut self, now: Instant) -> Action {
        let Some(late) = self
            .deadline()
            .and_then(|due| now.checked_duration_since(due))
        else {
            return Action::Nothing;
        };
        match self.phase {
            Phase::Waiting { .. } => self.start(Program::Proven, now),
            Phase::HandingOver { .. } => self.kill("it has not handed over in time"),
            Phase::Starting { .. } if self.on_trial => self.kill("it was not ready in time"),
            Phase::Ready { .. } if now < self.alive_at + self.limits.watchdog => {
                self.on_trial = false;
                self.crashes = 0;
                Action::Adopt
            }
            Phase::Starting { .. } | Phase::Ready { .. } | Phase::Draining if late > LATE => {
                self.alive(now);
                Action::Nothing
            }
            Phase::Starting { .. } => self.kill("it was not ready in time"),
            Phase::Ready { .. } | Phase::Draining => self.kill("no heartbeat"),
            Phase::Killed(_) | Phase::Ended => Action::Nothing,
        }
    }

    fn kill(&mut self, why: &'static str) -> Action {
        let after = match self.phase {
            Phase::Starting { first: true, .. } | Phase::Draining => After::End,
            Phase::Starting { .. } | Phase::Ready { .. } => After::Crash,
            Phase::HandingOver { .. } => After::Candidate,
            Phase::Killed(_) | Phase::Waiting { .. } | Phase::Ended => return Action::Nothing,
        };
        self.phase = Phase::Killed(after);
        Action::Kill(why)
    }

    fn start(&mut self, program: Program, now: Instant) -> Action {
        self.phase = Phase::Starting {
            first: false,
            until: now + self.limits.start_limit,
        };
        self.on_trial = program == Program::Candidate;
        self.ready_since = None;
        self.alive_at = now;
        Action::Start(program)
    }

    fn drain(&mut self, signal: Signal) -> Action {
        self.phase = Phase::Draining;
        Action::Signal(signal)
    }

    fn finish(&mut self, end: End) -> Action {
        self.phase = Phase::Ended;
        Action::End(end.status())
    }
}

#[cfg(test)]
mod tests;
