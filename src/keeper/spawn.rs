//! How a worker is started.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, getpid};

use super::descriptors::FIRST_PASSED;
use super::environment::{
    self, KEEPER, LISTEN_FDNAMES, LISTEN_FDS, NOTIFY_SOCKET, OOM_SCORE_ADJ, WAS_KILLED,
    WATCHDOG_USEC,
};
use super::executable::Executable;
use super::store::Store;

/// What all workers of a keeper have in common.
#[derive(Debug)]
pub(super) struct Template {
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Template {
    /// A worker with these arguments (the program's name first) and this process's environment.
    pub(super) fn new(
        arguments: Vec<OsString>,
        notify_socket: &str,
        watchdog: Duration,
        oom_score_adj: Option<i32>,
    ) -> io::Result<Self> {
        let mut environment = surroundings()?;
        environment.push(variable(NOTIFY_SOCKET, notify_socket)?);
        environment.push(variable(WATCHDOG_USEC, watchdog.as_micros())?);
        environment.push(variable(KEEPER, getpid())?);
        if let Some(score_adj) = oom_score_adj {
            environment.push(variable(OOM_SCORE_ADJ, score_adj)?);
        }
        Ok(Self {
            arguments: c_strings(arguments)?,
            environment,
        })
    }

    /// Starts a worker that runs `executable` and finds the store's descriptors from 3 up.
    ///
    /// It is in a process group of its own: what a terminal sends to a group comes to it through the keeper,
    /// once. It has no signal blocked, and outlives a keeper that dies. `was_killed`: somebody else has ended the one
    /// before.
    pub(super) fn start(
        &self,
        executable: &Executable,
        store: &Store,
        was_killed: bool,
    ) -> io::Result<Pid> {
        let mut actions = PosixSpawnFileActions::init()?;
        let mut names = String::new();
        for (target, (name, fd)) in (FIRST_PASSED..).zip(store.iter()) {
            // Stored numbers are above all targets, so that none is overwritten before it is passed on.
            actions.add_dup2(fd.as_raw_fd(), target)?;
            if target > FIRST_PASSED {
                names.push(':');
            }
            names.push_str(name);
        }
        let mut environment = self.environment.clone();
        environment.push(variable(LISTEN_FDS, store.len())?);
        environment.push(variable(LISTEN_FDNAMES, names)?);
        if was_killed {
            environment.push(variable(WAS_KILLED, 1)?);
        }

        let mut attributes = PosixSpawnAttr::init()?;
        attributes.set_pgroup(Pid::from_raw(0))?;
        attributes.set_sigmask(&SigSet::empty())?;
        let mut defaults = SigSet::empty();
        // The one signal that Rust's runtime has changed in us.
        defaults.add(Signal::SIGPIPE);
        attributes.set_sigdefault(&defaults)?;
        attributes.set_flags(
            PosixSpawnFlags::POSIX_SPAWN_SETPGROUP
                | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK
                | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF,
        )?;
        let path = executable.proc_path();
        let pid = posix_spawn(
            path.as_str(),
            &actions,
            &attributes,
            &self.arguments,
            &environment,
        )?;
        Ok(pid)
    }
}

/// This process's environment without what was meant for this process alone.
pub(super) fn surroundings() -> io::Result<Vec<CString>> {
    std::env::vars_os()
        .filter(|(name, _)| !environment::is_private(name))
        .map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            Ok(CString::new(name.into_vec())?)
        })
        .collect()
}

/// One variable of an environment.
pub(super) fn variable(name: &str, value: impl std::fmt::Display) -> io::Result<CString> {
    Ok(CString::new(format!("{name}={value}"))?)
}

/// Words as the kernel takes them.
pub(super) fn c_strings(words: impl IntoIterator<Item = OsString>) -> io::Result<Vec<CString>> {
    words
        .into_iter()
        .map(|word| Ok(CString::new(word.into_vec())?))
        .collect()
}
