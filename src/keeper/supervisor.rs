//! The keeper at work: one thread, one poll(2) loop over signals, the notify socket and the next deadline.
//!
//! Order matters twice. What a worker said is heard before its end is, so that a descriptor it stored with its
//! last breath is kept; and its end is confirmed by the kernel before the next worker starts.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, getpid, getppid};

use super::Settings;
use super::descriptors;
use super::environment::{KeeperError, Told};
use super::executable::Executable;
use super::handover::{Handover, HandoverError};
use super::inbox::{Datagram, Inbox};
use super::lifecycle::{Action, End, Event, Lifecycle, Program};
use super::message::{self, Descriptors, Watchdog};
use super::oom;
use super::spawn::Template;
use super::store::{Store, StoreError};

/// Datagrams that are read before anything else gets its turn: more than the kernel lets wait at once, so
/// that all that a worker said is among them whoever else talks.
const DATAGRAMS_A_TURN: usize = 1024;

/// Why a keeper cannot begin.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error("there is no command to run")]
    NoCommand,
    #[error("{path}: {source}")]
    Executable { path: String, source: io::Error },
    #[error(transparent)]
    Environment(#[from] KeeperError),
    #[error("a descriptor passed to the keeper: {0}")]
    Store(#[from] StoreError),
    #[error(transparent)]
    Handover(#[from] HandoverError),
    #[error("{what}: {source}")]
    System {
        what: &'static str,
        source: io::Error,
    },
}

/// Names the thing that failed.
fn during<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> StartError {
    move |error| StartError::System {
        what,
        source: error.into(),
    }
}

/// A keeper, its store and its worker.
pub(super) struct Supervisor {
    lifecycle: Lifecycle,
    signals: SignalFd,
    inbox: Inbox,
    store: Store,
    template: Template,
    /// The worker, from its start until its end is confirmed.
    worker: Option<Pid>,
    /// The last worker that ended, for the one line that says so.
    ended: Option<(Pid, End)>,
    /// It is we who have killed it.
    is_killing: bool,
    proven: Executable,
    /// What the worker runs while it is on trial, or the next one will.
    candidate: Option<Executable>,
    /// Whether this process runs the same file as its workers, and becomes what they become.
    follows: bool,
    oom_score_adj: Option<i32>,
    watchdog: Duration,
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor")
            .field("lifecycle", &self.lifecycle)
            .field("worker", &self.worker)
            .finish_non_exhaustive()
    }
}

impl Supervisor {
    /// A keeper for `command`; or, if this process was one before execve(2), the same with all it held.
    pub(super) fn new(command: Vec<OsString>, settings: &Settings) -> Result<Self, StartError> {
        // All of them: one that nobody reads must not end the keeper.
        SigSet::all()
            .thread_block()
            .map_err(during("signal mask"))?;
        let heard = [
            Signal::SIGCHLD,
            Signal::SIGHUP,
            Signal::SIGINT,
            Signal::SIGQUIT,
            Signal::SIGTERM,
        ];
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&heard.into_iter().collect(), flags)
            .map_err(during("signalfd"))?;
        let room = descriptors::make_room(settings.descriptors_max)
            .map_err(during("limit of open files"))?;
        match Handover::of_this_process()? {
            Some(handover) => Self::taken_over(handover, command, settings, signals, room),
            None => Self::first(command, settings, signals, room),
        }
    }

    fn first(
        command: Vec<OsString>,
        settings: &Settings,
        signals: SignalFd,
        room: usize,
    ) -> Result<Self, StartError> {
        let mut store = Store::new(room);
        let mut told = Told::read(
            |name| std::env::var(name).ok(),
            getpid().as_raw(),
            getppid().as_raw(),
        )?;
        // What systemd listens on for us is for the worker.
        for (name, fd) in told.take()?.into_vec() {
            store.add(&name, vec![fd])?;
        }
        let path = command.first().ok_or(StartError::NoCommand)?;
        let proven = std::path::absolute(path)
            .and_then(|path| Executable::open(&path, store.lowest()))
            .map_err(|source| StartError::Executable {
                path: path.to_string_lossy().into_owned(),
                source,
            })?;
        let inbox = Inbox::new().map_err(during("notify socket"))?;
        let oom_score_adj = oom::protect();
        let template = inbox
            .address()
            .and_then(|address| Template::new(command, &address, settings.watchdog, oom_score_adj))
            .map_err(during("the worker's environment"))?;
        Ok(Self {
            lifecycle: Lifecycle::first(settings.clone(), Instant::now()),
            signals,
            inbox,
            store,
            template,
            worker: None,
            ended: None,
            is_killing: false,
            follows: proven.is_ours(),
            proven,
            candidate: None,
            oom_score_adj,
            watchdog: settings.watchdog,
        })
    }

    fn taken_over(
        handover: Handover,
        command: Vec<OsString>,
        settings: &Settings,
        signals: SignalFd,
        room: usize,
    ) -> Result<Self, StartError> {
        // Whatever this release would hold at most: nothing that was held is let go.
        let mut store = Store::new(room.max(handover.descriptors.len()));
        for (name, number) in handover.descriptors {
            let fd = descriptors::inherited(number).map_err(during("a stored descriptor"))?;
            store.add(&name, vec![fd])?;
        }
        let file = descriptors::inherited(handover.executable).map_err(during("the executable"))?;
        let proven = Executable::of(file, handover.path, store.lowest())
            .map_err(during("the executable"))?;
        let inbox = descriptors::inherited(handover.notify).map_err(during("notify socket"))?;
        let inbox = Inbox::from(inbox);
        let template = inbox
            .address()
            .and_then(|address| {
                Template::new(command, &address, settings.watchdog, handover.oom_score_adj)
            })
            .map_err(during("the worker's environment"))?;
        // The worker sends heartbeats as often as it was told to, which this release may find too seldom.
        let watchdog = settings.watchdog.max(handover.watchdog);
        let limits = Settings {
            watchdog,
            ..settings.clone()
        };
        tracing::info!("the keeper runs {} now", proven.path().display());
        Ok(Self {
            lifecycle: Lifecycle::taken_over(limits, Instant::now()),
            signals,
            inbox,
            store,
            template,
            worker: Some(Pid::from_raw(handover.worker)),
            ended: None,
            is_killing: false,
            follows: proven.is_ours(),
            proven,
            candidate: None,
            oom_score_adj: handover.oom_score_adj,
            watchdog,
        })
    }

    /// Keeps workers running; returns the exit status when there is to be none any more.
    pub(super) fn run(mut self) -> u8 {
        let mut step = match self.worker {
            None => self.act(Action::Start(Program::Proven)),
            // It may have ended while nobody was looking.
            Some(_) => self.reap(),
        };
        loop {
            step = match step {
                ControlFlow::Break(status) => return status,
                ControlFlow::Continue(()) => self.turn(),
            }
        }
    }

    fn turn(&mut self) -> ControlFlow<u8> {
        self.wait();
        self.listen()?;
        self.take_signals()?;
        self.happened(Event::Tick)
    }

    /// Sleeps until there is something to do.
    fn wait(&self) {
        let left = self.lifecycle.deadline().map(|deadline| {
            // Rounded up: a tick before the deadline would be one for nothing.
            deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1)
        });
        let timeout = left.map_or(PollTimeout::NONE, |left| {
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = [
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.inbox.as_fd(), PollFlags::POLLIN),
        ];
        // Whatever it says, all of them are looked at without waiting.
        let _ = poll(&mut fds, timeout);
    }

    /// Hears what the worker says; others are not heard.
    fn listen(&mut self) -> ControlFlow<u8> {
        for _ in 0..DATAGRAMS_A_TURN {
            let events = match self.inbox.receive() {
                Ok(None) => break,
                Ok(Some(datagram))
                    if datagram.sender.is_some() && datagram.sender == self.worker =>
                {
                    heard(datagram, &mut self.store)
                }
                Ok(Some(datagram)) => {
                    tracing::debug!(sender = ?datagram.sender, "a datagram of a stranger is ignored");
                    continue;
                }
                Err(error) => {
                    tracing::error!("keeper: notify socket: {error}");
                    continue;
                }
            };
            for event in events.into_iter().flatten() {
                self.happened(event)?;
            }
        }
        ControlFlow::Continue(())
    }

    fn take_signals(&mut self) -> ControlFlow<u8> {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let signal = i32::try_from(info.ssi_signo).map(Signal::try_from);
            match signal {
                Ok(Ok(Signal::SIGCHLD)) => self.reap()?,
                // The terminal is gone, which ends a program that has one; kill(1) means a restart.
                Ok(Ok(Signal::SIGHUP)) if info.ssi_code == libc::SI_KERNEL => {
                    self.happened(Event::Stop(Signal::SIGTERM))?;
                }
                Ok(Ok(Signal::SIGHUP)) => self.restart()?,
                Ok(Ok(signal)) => self.happened(Event::Stop(signal))?,
                _ => {}
            }
        }
        ControlFlow::Continue(())
    }

    /// Takes note of ended children. As a container's first process the keeper has some it never started.
    fn reap(&mut self) -> ControlFlow<u8> {
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        loop {
            let status = match waitid(Id::All, look) {
                Err(Errno::EINTR) => continue,
                Err(Errno::ECHILD) | Ok(WaitStatus::StillAlive) => break,
                Ok(status) => Ok(status),
                // A real-time signal, for which there is no word: some process has ended.
                Err(error) => Err(error),
            };
            // Its pid stays its own until it is reaped, and all that it said can be heard until then.
            self.listen()?;
            let pid = status.map(|status| status.pid()).ok().flatten();
            let reaped = waitpid(pid, Some(WaitPidFlag::WNOHANG));
            let end = match status {
                Ok(WaitStatus::Exited(pid, status)) if Some(pid) == self.worker => {
                    End::Exited(u8::try_from(status).unwrap_or(u8::MAX))
                }
                Ok(WaitStatus::Signaled(pid, signal, _)) if Some(pid) == self.worker => {
                    End::Killed(signal)
                }
                Err(_) if self.worker.is_some_and(is_gone) => End::Killed(Signal::SIGKILL),
                // Nobody could be waited for after all.
                Err(_) if matches!(reaped, Err(Errno::ECHILD) | Ok(WaitStatus::StillAlive)) => {
                    break;
                }
                _ => continue,
            };
            tracing::debug!(pid = self.worker.map(Pid::as_raw), "the worker ended {end}");
            self.ended = self.worker.take().map(|worker| (worker, end));
            self.happened(Event::Ended(end))?;
        }
        ControlFlow::Continue(())
    }

    /// A planned restart: with what lies at the executable's path now.
    fn restart(&mut self) -> ControlFlow<u8> {
        let path = self.proven.path();
        let candidate = match Executable::open(path, self.store.lowest()) {
            Ok(candidate) => candidate,
            Err(error) => {
                tracing::error!(
                    "no restart: {}: {error}; the worker goes on",
                    path.display()
                );
                return ControlFlow::Continue(());
            }
        };
        let action = self.lifecycle.on(Event::Restart, Instant::now());
        if !matches!(action, Action::Refuse(_)) {
            self.candidate = Some(candidate);
        }
        self.act(action)
    }

    fn happened(&mut self, event: Event) -> ControlFlow<u8> {
        let action = self.lifecycle.on(event, Instant::now());
        self.act(action)
    }

    fn act(&mut self, action: Action) -> ControlFlow<u8> {
        match action {
            Action::Nothing => {}
            Action::Signal(signal) => self.signal(signal),
            Action::Kill(why) => {
                tracing::error!(
                    pid = self.worker.map(Pid::as_raw),
                    "the worker is killed: {why}"
                );
                self.is_killing = true;
                self.signal(Signal::SIGKILL);
            }
            Action::Start(program) => {
                if let Err(error) = self.start(program) {
                    tracing::error!("the worker cannot be started: {error}");
                    // As a shell says it.
                    return self.happened(Event::Ended(End::Exited(126)));
                }
            }
            Action::Wait(delay) => {
                tracing::warn!("{}; the next worker starts {}", self.crash(), When(delay));
            }
            Action::FallBack(delay) => {
                self.candidate = None;
                tracing::error!(
                    "{}; the new executable at {} has failed; the old one starts {}",
                    self.crash(),
                    self.proven.path().display(),
                    When(delay),
                );
            }
            Action::Adopt => {
                if let Some(candidate) = self.candidate.take() {
                    self.proven = candidate;
                    self.upgrade();
                }
            }
            Action::Refuse(why) => tracing::warn!("no restart: {why}"),
            Action::End(status) => return ControlFlow::Break(status),
        }
        ControlFlow::Continue(())
    }

    /// What has become of the last worker, for people.
    fn crash(&self) -> String {
        match self.ended {
            Some((worker, end)) => format!("worker {worker} ended {end}"),
            None => "there is no worker".to_owned(),
        }
    }

    fn signal(&self, signal: Signal) {
        // Its pid is its own until it is reaped; it may have ended.
        if let Some(worker) = self.worker {
            let _ = kill(worker, signal);
        }
    }

    fn start(&mut self, program: Program) -> io::Result<()> {
        let executable = match (program, &self.candidate) {
            (Program::Candidate, Some(candidate)) => candidate,
            _ => &self.proven,
        };
        let killed = matches!(self.ended, Some((_, End::Killed(Signal::SIGKILL))));
        let was_killed = killed && !self.is_killing;
        let pid = self.template.start(executable, &self.store, was_killed)?;
        tracing::debug!(
            pid = pid.as_raw(),
            descriptors = self.store.len(),
            "the worker is started"
        );
        self.worker = Some(pid);
        self.ended = None;
        self.is_killing = false;
        Ok(())
    }

    /// Becomes the executable that the worker runs, if it was the same before.
    fn upgrade(&self) {
        let (true, Some(worker)) = (self.follows && !self.proven.is_ours(), self.worker) else {
            return;
        };
        let handover = Handover {
            keeper: getpid().as_raw(),
            worker: worker.as_raw(),
            oom_score_adj: self.oom_score_adj,
            watchdog: self.watchdog,
            notify: descriptors::number(self.inbox.socket()),
            executable: descriptors::number(self.proven.file()),
            path: self.proven.path().to_owned(),
            descriptors: self
                .store
                .iter()
                .map(|(name, fd)| (name.to_owned(), descriptors::number(fd)))
                .collect(),
        };
        let own = [self.inbox.as_fd(), self.proven.file().as_fd()];
        let kept: Vec<_> = self
            .store
            .iter()
            .map(|(_, fd)| fd.as_fd())
            .chain(own)
            .collect();
        let error = handover.exec(&self.proven, &kept);
        tracing::error!(
            "the keeper stays what it is, since it cannot become the new executable: {error}"
        );
    }
}

/// How long something waits, as a person would say it.
struct When(Duration);

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Duration::ZERO => f.write_str("at once"),
            delay => write!(f, "in {delay:?}"),
        }
    }
}

fn is_gone(process: Pid) -> bool {
    kill(process, None) == Err(Errno::ESRCH)
}

/// What one datagram of the worker's comes to. Descriptors are stored before anything else happens.
fn heard(datagram: Datagram<'_>, store: &mut Store) -> [Option<Event>; 3] {
    let message = message::parse(datagram.bytes);
    match message.descriptors {
        Descriptors::None => {}
        Descriptors::Store(name) => {
            let count = datagram.fds.len();
            if let Err(error) = store.add(name, datagram.fds) {
                tracing::error!(
                    "{count} descriptors {name:?} are not kept for the next worker: {error}"
                );
            }
        }
        Descriptors::Remove(name) => {
            let removed = store.remove(name);
            tracing::debug!("{removed} descriptors {name:?} are let go");
        }
        Descriptors::BadName => tracing::error!(
            "descriptors are not kept for the next worker: a name is 1 to 255 printable ASCII characters without colon"
        ),
    }
    if let Some(status) = message.status {
        tracing::debug!("the worker says {status:?}");
    }
    [
        message.watchdog.map(|watchdog| match watchdog {
            Watchdog::Alive => Event::Heartbeat,
            Watchdog::Trigger => Event::Hangs,
        }),
        message.ready.then_some(Event::Ready),
        message.stopping.then_some(Event::Stopping),
    ]
}
