//! How a keeper becomes a newer one by execve(2): its descriptors stay open, and a memfd says what they are.
//!
//! The process stays the same, so the worker stays its child and a signal that comes meanwhile stays pending.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::execve;

use super::descriptors;
use super::environment::HANDOVER;
use super::executable::Executable;
use super::spawn;

/// The first line. A release reads what the release before it has written.
const FORMAT: &str = "bucketvol-keeper 1";

/// What one keeper leaves to the next. Descriptors are numbers: they are the same before and after.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Handover {
    /// The keeper's own pid, which stays: in any other process this is a leftover of an environment.
    pub(super) keeper: i32,
    pub(super) worker: i32,
    /// What workers have as oom_score_adj.
    pub(super) oom_score_adj: Option<i32>,
    /// The heartbeats that the worker was told to send.
    pub(super) watchdog: Duration,
    pub(super) notify: RawFd,
    pub(super) executable: RawFd,
    /// Where the executable was found.
    pub(super) path: PathBuf,
    /// The store, in its order.
    pub(super) descriptors: Vec<(String, RawFd)>,
}

/// A handover that cannot be taken. Its descriptors are there, and nobody knows what they are.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandoverError {
    #[error("what the keeper before this one left: {0}")]
    Read(#[from] io::Error),
    #[error("what the keeper before this one left cannot be understood at {0:?}")]
    Line(String),
    #[error("what the keeper before this one left has no {0}")]
    Missing(&'static str),
}

impl Handover {
    /// Lines of a word and its value; the path is the last and has no end but the text's.
    fn to_bytes(&self) -> Vec<u8> {
        let mut text = format!(
            "{FORMAT}\nkeeper {}\nworker {}\nwatchdog {}\nnotify {}\nexecutable {}\n",
            self.keeper,
            self.worker,
            self.watchdog.as_micros(),
            self.notify,
            self.executable,
        );
        if let Some(score_adj) = self.oom_score_adj {
            text.push_str(&format!("oom_score_adj {score_adj}\n"));
        }
        for (name, number) in &self.descriptors {
            text.push_str(&format!("descriptor {number} {name}\n"));
        }
        text.push_str("path ");
        let mut bytes = text.into_bytes();
        bytes.extend_from_slice(self.path.as_os_str().as_bytes());
        bytes
    }

    fn parse(mut bytes: &[u8]) -> Result<Self, HandoverError> {
        let (mut keeper, mut worker, mut oom_score_adj, mut watchdog) = (None, None, None, None);
        let (mut notify, mut executable, mut path) = (None, None, None);
        let mut descriptors = Vec::new();
        while !bytes.is_empty() {
            if let Some(rest) = bytes.strip_prefix(b"path ") {
                path = Some(Path::new(OsStr::from_bytes(rest)).to_owned());
                break;
            }
            let end = bytes
                .iter()
                .position(|byte| *byte == b'\n')
                .unwrap_or(bytes.len());
            let (line, rest) = bytes.split_at(end);
            bytes = rest.strip_prefix(b"\n").unwrap_or(rest);
            let line = String::from_utf8_lossy(line).into_owned();
            match line.split_once(' ') {
                _ if line == FORMAT => {}
                Some(("keeper", value)) => keeper = Some(number(value, &line)?),
                Some(("worker", value)) => worker = Some(number(value, &line)?),
                Some(("watchdog", value)) => watchdog = Some(number(value, &line)?),
                Some(("notify", value)) => notify = Some(number(value, &line)?),
                Some(("executable", value)) => executable = Some(number(value, &line)?),
                Some(("oom_score_adj", value)) => oom_score_adj = Some(number(value, &line)?),
                Some(("descriptor", value)) => match value.split_once(' ') {
                    Some((fd, name)) => descriptors.push((name.to_owned(), number(fd, &line)?)),
                    None => return Err(HandoverError::Line(line)),
                },
                _ => return Err(HandoverError::Line(line)),
            }
        }
        Ok(Self {
            keeper: keeper.ok_or(HandoverError::Missing("keeper"))?,
            worker: worker.ok_or(HandoverError::Missing("worker"))?,
            oom_score_adj,
            watchdog: Duration::from_micros(watchdog.ok_or(HandoverError::Missing("watchdog"))?),
            notify: notify.ok_or(HandoverError::Missing("notify"))?,
            executable: executable.ok_or(HandoverError::Missing("executable"))?,
            path: path.ok_or(HandoverError::Missing("path"))?,
            descriptors,
        })
    }

    /// What the keeper that this process was before has left, if it was one.
    pub(super) fn of_this_process() -> Result<Option<Self>, HandoverError> {
        let Ok(value) = std::env::var(HANDOVER) else {
            return Ok(None);
        };
        let memfd = descriptors::inherited(number(&value, &value)?)?;
        let mut bytes = Vec::new();
        let mut file = File::from(memfd);
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
        let handover = Self::parse(&bytes)?;
        Ok((handover.keeper == nix::unistd::getpid().as_raw()).then_some(handover))
    }

    /// Becomes `executable`, with this process's arguments; `kept` are the descriptors that are spoken of.
    /// It returns only if that failed, and then nothing has changed.
    pub(super) fn exec(&self, executable: &Executable, kept: &[BorrowedFd<'_>]) -> io::Error {
        let done = self.try_exec(executable, kept);
        for fd in kept {
            // It worked the other way round a moment ago.
            let _ = descriptors::set_inheritable(*fd, false);
        }
        match done {
            Err(error) => error,
            Ok(never) => match never {},
        }
    }

    fn try_exec(
        &self,
        executable: &Executable,
        kept: &[BorrowedFd<'_>],
    ) -> io::Result<std::convert::Infallible> {
        let memfd: OwnedFd = memfd_create("keeper", MFdFlags::MFD_CLOEXEC)?;
        let mut file = File::from(memfd);
        file.write_all(&self.to_bytes())?;
        let mut environment = spawn::surroundings()?;
        let memfd = OwnedFd::from(file);
        environment.push(spawn::variable(HANDOVER, descriptors::number(&memfd))?);
        let arguments = spawn::c_strings(std::env::args_os())?;
        let path = spawn::c_strings([executable.proc_path().into()])?;
        let path = path.first().ok_or_else(|| io::Error::other("no path"))?;
        for fd in kept.iter().chain([&memfd.as_fd()]) {
            descriptors::set_inheritable(*fd, true)?;
        }
        Ok(execve(path, &arguments, &environment)?)
    }
}

fn number<T: FromStr>(value: &str, line: &str) -> Result<T, HandoverError> {
    value
        .parse()
        .map_err(|_| HandoverError::Line(line.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handover() -> Handover {
        Handover {
            keeper: 10,
            worker: 11,
            oom_score_adj: Some(-5),
            watchdog: Duration::from_millis(1500),
            notify: 4,
            executable: 1030,
            path: PathBuf::from(OsStr::from_bytes(b"/opt/a b\n\xff")),
            descriptors: vec![("fuse a".to_owned(), 1031), ("fuse a".to_owned(), 1032)],
        }
    }

    #[test]
    fn a_handover_is_understood_as_it_was_meant() {
        let all = handover();
        assert_eq!(Handover::parse(&all.to_bytes()).unwrap(), all);
        let least = Handover {
            oom_score_adj: None,
            descriptors: Vec::new(),
            ..handover()
        };
        assert_eq!(Handover::parse(&least.to_bytes()).unwrap(), least);
    }

    #[test]
    fn a_handover_that_is_cut_off_or_strange_is_an_error() {
        let bytes = handover().to_bytes();
        let end = bytes
            .windows(5)
            .position(|window| window == b"path ")
            .unwrap();
        for length in 0..end {
            assert!(Handover::parse(&bytes[..length]).is_err(), "{length}");
        }
        for (from, to) in [
            ("worker 11", "worker eleven"),
            ("1031 ", "1031"),
            ("keeper 1\n", "keeper 2\n"),
        ] {
            let text = String::from_utf8_lossy(&bytes).replace(from, to);
            assert!(Handover::parse(text.as_bytes()).is_err(), "{to}");
        }
    }
}
