//! A small parent process that holds file descriptors for a worker, so that the worker can be killed and
//! replaced while what it served goes on.
//!
//! The keeper is trusted with little: it runs no async runtime, store, cache, HTTP or FUSE code, it has one
//! thread, and while nothing but heartbeats happens it allocates nothing. It speaks systemd's side of the
//! notify and file-descriptor-store protocol, so that the same worker works with systemd as its keeper; the
//! worker's side of that protocol is [`Keeper`].
//!
//! - `lifecycle` decides (pure): what is done when a worker gets ready, ends, hangs, or is to be replaced.
//! - `supervisor` does it: one poll(2) loop over the signals, the notify socket and the next deadline.
//! - `message` is what a worker says (pure), `store` what it gave us, `spawn` how it is started.
//! - `handover` is how the keeper becomes a newer keeper by execve(2) without letting go of anything.

mod backoff;
mod descriptors;
mod environment;
mod executable;
mod handover;
mod inbox;
mod lifecycle;
mod message;
mod oom;
mod spawn;
mod store;
mod supervisor;
mod worker;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

pub use environment::{Inherited, KeeperError, KeptBy};
pub use worker::Keeper;

/// What systemd's unit says as FileDescriptorStoreMax=, and what our own keeper holds at most.
pub const DESCRIPTORS_MAX: usize = 4096;

/// How patient a keeper is, and how much it holds.
#[derive(Debug, Clone)]
pub struct Settings {
    /// A worker that has not said READY=1 after this long is killed. One that only replaces a worker that
    /// crashed is given more for as long as it sends heartbeats: a long journal takes what it takes.
    pub start_limit: Duration,
    /// A worker that was asked to hand over and has not ended after this long is killed.
    pub hand_over_limit: Duration,
    /// A ready worker that has sent no heartbeat for this long hangs, and is killed.
    pub watchdog: Duration,
    /// A new executable that crashes within this time of getting ready gives way to the old one; after it
    /// the keeper follows it. A worker that was ready for this long has no crashes behind it any more.
    pub trial: Duration,
    /// Descriptors that are held at most. It is less where the limit of open files does not allow it.
    pub descriptors_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            start_limit: Duration::from_secs(60),
            hand_over_limit: Duration::from_secs(30),
            watchdog: Duration::from_secs(30),
            trial: Duration::from_secs(60),
            descriptors_max: DESCRIPTORS_MAX,
        }
    }
}

/// Keeps a worker running until it ends by itself or a signal ends it; returns the worker's exit status.
///
/// `command` is the worker's path (not looked up in PATH) and arguments. The process has to have one thread:
/// all signals are blocked in it. SIGTERM, SIGINT and SIGQUIT go on to the worker, SIGHUP replaces it by what
/// lies at the path then. Standard streams and the environment are the worker's too. It has a process group
/// of its own: a terminal's Ctrl-C reaches it through the keeper, once.
///
/// If the keeper itself runs the file at that path, it execve(2)s a new executable after its trial: `main` is
/// then run again, with the same arguments, and has to come here again.
#[must_use]
pub fn run(command: Vec<OsString>, settings: &Settings) -> ExitCode {
    ExitCode::from(supervise(command, settings))
}

/// [`run`], for a caller that needs the status as a number. 126 says that no worker could be started.
#[must_use]
pub fn supervise(command: Vec<OsString>, settings: &Settings) -> u8 {
    match supervisor::Supervisor::new(command, settings) {
        Ok(supervisor) => supervisor.run(),
        Err(error) => {
            tracing::error!("keeper: {error}");
            126
        }
    }
}
