//! `serve` and `mount` as two processes: a keeper, and below it the worker that does the work.
//!
//! A process starts as whatever it was started as: by a keeper (ours, or systemd) it is a worker; by
//! anybody else it becomes the keeper of a worker that runs this same program.

use std::ffi::{CStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use clap::builder::FalseyValueParser;
use futures_util::future::join_all;
use nix::sys::prctl;
use nix::sys::signal::{Signal, raise};
use nix::unistd::getppid;
use parking_lot::Mutex;

use super::mount::time;
use crate::fs::fuse::Served;
use crate::fs::{Format, Formats};
use crate::keeper::{self, Inherited, Keeper, KeptBy};

/// What lists of processes call us.
const NAME: &CStr = c"bucketvol";

/// How the keeper behaves; for tests and debuggers.
#[derive(Debug, Clone, Args)]
pub(super) struct KeeperArgs {
    /// Run in one process: a crash ends it, and `bucketvol restart` cannot replace it
    #[arg(long, hide = true, env = "BUCKETVOL_NO_KEEPER", value_parser = FalseyValueParser::new())]
    no_keeper: bool,
    /// How long a worker has to serve until it counts as healthy [default: 1m]
    #[arg(long, hide = true, value_name = "TIME", env = "BUCKETVOL_TRIAL", value_parser = time)]
    trial: Option<Duration>,
    /// How long a worker may say nothing until it is taken for one that hangs [default: 30s]
    #[arg(long, hide = true, value_name = "TIME", env = "BUCKETVOL_WATCHDOG", value_parser = time)]
    watchdog: Option<Duration>,
}

impl KeeperArgs {
    /// The same once more, for a process to be started.
    pub(super) fn to_arguments(&self) -> Vec<String> {
        let no_keeper = self.no_keeper.then(|| "--no-keeper".to_owned());
        let times = [("trial", self.trial), ("watchdog", self.watchdog)];
        let times = times.into_iter().filter_map(|(name, time)| {
            Some(format!("--{name}={}", humantime::format_duration(time?)))
        });
        no_keeper.into_iter().chain(times).collect()
    }

    fn settings(&self) -> keeper::Settings {
        let settings = keeper::Settings::default();
        keeper::Settings {
            trial: self.trial(),
            watchdog: self.watchdog.unwrap_or(settings.watchdog),
            ..settings
        }
    }

    fn trial(&self) -> Duration {
        self.trial.unwrap_or(keeper::Settings::default().trial)
    }
}

/// Does `work` in a worker: in this process if it is one. Else this process becomes its keeper, and returns
/// what the last worker has returned. It must have one thread.
pub(super) fn run(
    args: &KeeperArgs,
    newest: Format,
    work: impl FnOnce(Arc<Worker>) -> Result<ExitCode>,
) -> Result<ExitCode> {
    // A process that was started by a descriptor's path is called by that number in lists of processes.
    prctl::set_name(NAME).context("prctl(PR_SET_NAME)")?;
    let kept_by = KeptBy::of_this_process();
    if kept_by != KeptBy::Nobody {
        return work(Worker::from_environment(kept_by, args.trial(), newest)?);
    }
    if args.no_keeper {
        return work(Worker::alone(newest));
    }
    let program = program().context("this program's own path")?;
    let mut command = vec![OsString::from(program)];
    command.extend(std::env::args_os().skip(1));
    Ok(keeper::run(command, &args.settings()))
}

/// A path that leads to this program, and to the next release once that is installed.
///
/// It is as the caller has said it: behind a link, an upgrade replaces the link.
pub(super) fn program() -> io::Result<PathBuf> {
    let ours = fs::metadata("/proc/self/exe")?;
    let is_ours = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == (ours.dev(), ours.ino()))
    };
    let said = std::env::args_os().next().map(PathBuf::from);
    let candidates: Vec<PathBuf> = match said {
        Some(said) if said.components().count() > 1 => vec![std::path::absolute(said)?],
        Some(name) => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let directories = std::env::split_paths(&path);
            directories
                .filter(|directory| directory.is_absolute())
                .map(|directory| directory.join(&name))
                .collect()
        }
        None => Vec::new(),
    };
    match candidates.into_iter().find(is_ours) {
        Some(path) => Ok(path),
        None => Ok(without_deleted(&std::env::current_exe()?)),
    }
}

/// The kernel marks the path of a file that is not there any more; another one may be by now.
fn without_deleted(path: &Path) -> PathBuf {
    match path
        .to_str()
        .and_then(|text| text.strip_suffix(" (deleted)"))
    {
        Some(replaced) if !path.exists() => PathBuf::from(replaced),
        _ => path.to_owned(),
    }
}

/// This process as the worker of a keeper: what outlives it, and what earlier workers have left.
#[derive(Debug)]
pub struct Worker {
    keeper: Keeper,
    kept_by: KeptBy,
    inherited: Mutex<Inherited>,
    turn: Turn,
    /// How long it has to serve until the release before will not have to take over again.
    trial: Duration,
    newest: Format,
    served: Mutex<Sessions>,
}

/// The sessions that a worker serves until their ends, and the next one will.
#[derive(Debug, Default)]
struct Sessions {
    served: Vec<Served>,
    /// It is not on trial any more: what they leave is of its own format.
    are_trusted: bool,
}

impl Sessions {
    fn alive(&mut self) -> impl Iterator<Item = &Served> {
        self.served.retain(Served::is_alive);
        self.served.iter()
    }
}

/// Which of a keeper's workers a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// None of them has had anything kept before.
    First,
    /// It goes on with what an earlier one has left.
    Next,
}

impl Worker {
    /// A process without a keeper: nothing outlives it.
    #[must_use]
    pub fn alone(newest: Format) -> Arc<Self> {
        let (keeper, trial) = (Keeper::none(), Duration::ZERO);
        Self::of(keeper, KeptBy::Nobody, Inherited::default(), trial, newest)
    }

    /// Once in the life of a process.
    fn from_environment(kept_by: KeptBy, trial: Duration, newest: Format) -> Result<Arc<Self>> {
        if kept_by == KeptBy::Keeper {
            // Without its keeper it cannot be replaced, and stands in the way of the next start: it drains
            // and ends. The keeper may have died before this was said.
            prctl::set_pdeathsig(Some(Signal::SIGTERM)).context("prctl(PR_SET_PDEATHSIG)")?;
            if KeptBy::of_this_process() != KeptBy::Keeper {
                raise(Signal::SIGTERM).context("SIGTERM")?;
            }
        }
        let (keeper, inherited) = Keeper::from_environment().context("the keeper")?;
        Ok(Self::of(keeper, kept_by, inherited, trial, newest))
    }

    fn of(
        keeper: Keeper,
        kept_by: KeptBy,
        inherited: Inherited,
        trial: Duration,
        newest: Format,
    ) -> Arc<Self> {
        let turn = match inherited.is_empty() {
            true => Turn::First,
            false => Turn::Next,
        };
        Arc::new(Self {
            keeper,
            kept_by,
            inherited: Mutex::new(inherited),
            turn,
            trial,
            newest,
            served: Mutex::default(),
        })
    }

    /// Whoever holds what is to outlive this process.
    pub fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    /// Which of the keeper's workers this one is.
    pub fn turn(&self) -> Turn {
        self.turn
    }

    /// Takes the descriptors that an earlier worker has stored by this name, in the order it stored them.
    pub fn take(&self, name: &str) -> Vec<OwnedFd> {
        self.inherited.lock().take(name)
    }

    /// The names of what is left to take; one that several descriptors have is there several times.
    pub fn names(&self) -> Vec<String> {
        self.inherited.lock().names().map(str::to_owned).collect()
    }

    /// What holds of the descriptors that an earlier worker has stored by this name, and that are left to take.
    pub fn check<E>(
        &self,
        name: &str,
        check: impl FnMut(BorrowedFd<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.inherited.lock().get(name).try_for_each(check)
    }

    /// The formats of what it leaves to the next worker.
    pub fn formats(&self) -> Formats {
        match self.served.lock().are_trusted {
            true => Formats::trusted(self.newest),
            false => Formats::on_trial(self.newest),
        }
    }

    /// The pid of our own keeper, if it has one.
    pub(super) fn keeper_pid(&self) -> Option<i32> {
        (self.is_kept() && !self.is_orphaned()).then(|| getppid().as_raw())
    }

    /// Whether a keeper passes signals on to this process.
    pub(super) fn is_kept(&self) -> bool {
        self.kept_by == KeptBy::Keeper
    }

    /// Whether our keeper has died, and with it what it held.
    pub(super) fn is_orphaned(&self) -> bool {
        self.is_kept() && KeptBy::of_this_process() != KeptBy::Keeper
    }

    /// Says for as long as the runtime runs that this process is alive. A runtime whose threads all hang
    /// says nothing.
    pub(super) fn beat(self: &Arc<Self>) {
        let Some(interval) = self.keeper.heartbeat_interval() else {
            return;
        };
        let worker = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                if let Err(error) = worker.keeper.heartbeat() {
                    tracing::warn!("the keeper cannot be told that this process is alive: {error}");
                    return;
                }
                tokio::time::sleep(interval).await;
            }
        });
    }

    /// Tells the keeper that this process serves. When it has done so for a while, the release before will not have to
    /// take over again, and what is left to the next worker is of this release's format.
    pub(super) fn ready(self: &Arc<Self>) {
        if let Err(error) = self.keeper.ready() {
            tracing::warn!("the keeper cannot be told that this process serves: {error}");
        }
        let worker = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(worker.trial).await;
            let mut sessions = worker.served.lock();
            sessions.are_trusted = true;
            for session in sessions.alive() {
                session.set_format(worker.newest);
            }
        });
    }

    /// Tells the keeper that this process ends on purpose: its end is not to be mended.
    pub(super) fn stopping(&self) {
        if let Err(error) = self.keeper.stopping() {
            tracing::warn!("the keeper cannot be told that this process ends: {error}");
        }
    }

    /// This process serves a session that is kept for the next worker.
    pub(super) fn serve(&self, session: Served) {
        let mut sessions = self.served.lock();
        if sessions.are_trusted {
            session.set_format(self.newest);
        }
        sessions.served.retain(Served::is_alive);
        sessions.served.push(session);
    }

    /// Leaves what is kept to the next worker, once what was asked of this one is answered. No destructor runs, since
    /// that might undo what outlives us: it is as a crash between two calls.
    pub(super) async fn leave(&self) -> ! {
        let sessions: Vec<Served> = self.served.lock().alive().cloned().collect();
        join_all(sessions.iter().map(Served::hand_over)).await;
        tracing::info!("handed over to the next worker");
        std::process::exit(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_is_found_by_a_path_that_can_be_executed() {
        let path = program().unwrap();
        assert!(path.is_absolute() && path.is_file(), "{path:?}");
    }

    #[test]
    fn a_file_that_was_replaced_is_looked_for_where_it_was() {
        let gone = Path::new("/nonexistent/bucketvol (deleted)");
        assert_eq!(without_deleted(gone), Path::new("/nonexistent/bucketvol"));
        let other = Path::new("/nonexistent/bucketvol");
        assert_eq!(without_deleted(other), other);
    }

    #[test]
    fn a_worker_that_has_no_keeper_has_nothing_and_is_the_first() {
        let worker = Worker::alone(Format::CURRENT);
        assert!(worker.names().is_empty() && worker.take("docker.sock").is_empty());
        assert_eq!((worker.turn(), worker.keeper_pid()), (Turn::First, None));
        assert!(!worker.keeper().is_some());
    }
}
