//! The worker's side: how it is told what was kept for it, and how it has things kept.
//!
//! It is systemd's protocol, spoken to whoever is at NOTIFY_SOCKET: our own keeper or systemd itself.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::SendTimeout;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, setsockopt,
    socket,
};
use nix::sys::time::TimeVal;
use nix::unistd::{getpid, getppid, pipe2};

use super::descriptors::DATAGRAM_MAX;
use super::environment::{Inherited, KeeperError, Told};
use super::message::valid_name;
use super::oom;

/// What a message may wait for a keeper that does not read. One that takes longer has stopped.
const SEND_LIMIT: TimeVal = TimeVal::new(5, 0);

/// A worker's line to its keeper. Without a keeper every call does nothing, and succeeds.
///
/// All calls are short system calls that may be made on any thread. A datagram is received in the order in
/// which it was sent; that it was acted on is known after [`Keeper::barrier`] only.
#[derive(Debug, Default)]
pub struct Keeper {
    line: Option<Line>,
    watchdog: Option<Duration>,
    was_killed: bool,
}

#[derive(Debug)]
struct Line {
    socket: OwnedFd,
    address: UnixAddr,
}

impl Keeper {
    /// No keeper: nothing outlives this process.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// The keeper that this process's environment names, and what it has kept. Once in the life of a process:
    /// the descriptors are taken by number.
    ///
    /// The process gets back the oom_score_adj that its keeper had before it protected itself.
    pub fn from_environment() -> Result<(Self, Inherited), KeeperError> {
        let get = |name: &str| std::env::var(name).ok();
        let mut told = Told::read(get, getpid().as_raw(), getppid().as_raw())?;
        if let Some(Err(error)) = told.oom_score_adj.map(oom::set) {
            tracing::warn!(
                "this process stays protected from the OOM killer as its keeper is: {error}"
            );
        }
        let inherited = told.take()?;
        let line = told.notify_socket.as_deref().map(Line::to).transpose()?;
        let watchdog = told.watchdog.filter(|_| line.is_some());
        let was_killed = told.was_killed;
        let keeper = Self {
            line,
            watchdog,
            was_killed,
        };
        Ok((keeper, inherited))
    }

    /// Whether anybody keeps what is stored.
    #[must_use]
    pub fn is_some(&self) -> bool {
        self.line.is_some()
    }

    /// Whether somebody has sent the process before SIGKILL, and not because it hung. What it did then is to blame for
    /// nothing, or for too much memory.
    #[must_use]
    pub fn predecessor_was_killed(&self) -> bool {
        self.was_killed
    }

    /// How often [`Keeper::heartbeat`] is to be called: twice within the silence that is taken for a hang.
    /// `None`: nobody waits for it.
    #[must_use]
    pub fn heartbeat_interval(&self) -> Option<Duration> {
        self.watchdog.map(|watchdog| watchdog / 2)
    }

    /// Has `fds` kept by `name` for the next worker, beside others of that name. This process goes on owning
    /// its own. At most 253 at once; a name is 1 to 255 printable ASCII characters without colon.
    ///
    /// A keeper whose store is full takes none of them, and says so in its own log only.
    pub fn store(&self, name: &str, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        check_name(name)?;
        if fds.is_empty() || fds.len() > DATAGRAM_MAX {
            let what = format!(
                "{} descriptors at once: accepted are 1 to {DATAGRAM_MAX}",
                fds.len()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        // Without FDPOLL=0 systemd lets go of a descriptor that reports an error, such as a pipe nobody reads.
        self.send(&format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0"), fds)
    }

    /// Lets go of all descriptors of a name.
    pub fn forget(&self, name: &str) -> io::Result<()> {
        check_name(name)?;
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[])
    }

    /// This process serves. From here on it has to send heartbeats, and its crash is mended by another worker.
    pub fn ready(&self) -> io::Result<()> {
        self.send("READY=1", &[])
    }

    /// This process is about to end by itself: for good, or because SIGUSR1 asked it to hand over.
    pub fn stopping(&self) -> io::Result<()> {
        self.send("STOPPING=1", &[])
    }

    /// A line for people: `systemctl status` shows it.
    pub fn status(&self, line: &str) -> io::Result<()> {
        let line = line.replace('\n', " ");
        self.send(&format!("STATUS={line}"), &[])
    }

    /// This process is alive. It never waits: a keeper that has too much to read misses one heartbeat.
    pub fn heartbeat(&self) -> io::Result<()> {
        match &self.line {
            None => Ok(()),
            Some(line) => match line.send("WATCHDOG=1", &[], MsgFlags::MSG_DONTWAIT) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
                sent => sent,
            },
        }
    }

    /// Waits until the keeper has acted on all that was sent before; at most `limit`.
    pub fn barrier(&self, limit: Duration) -> io::Result<()> {
        if self.line.is_none() {
            return Ok(());
        }
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
        self.send("BARRIER=1", &[std::os::fd::AsFd::as_fd(&theirs)])?;
        drop(theirs);
        // The keeper closes its end once it is through; then nobody has one.
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(
                std::os::fd::AsFd::as_fd(&ours),
                PollFlags::empty(),
            )];
            match poll(&mut fds, timeout) {
                Ok(0) => {
                    let what = format!("the keeper has not answered within {limit:?}");
                    return Err(io::Error::new(io::ErrorKind::TimedOut, what));
                }
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn send(&self, text: &str, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        match &self.line {
            None => Ok(()),
            Some(line) => line.send(text, fds, MsgFlags::empty()),
        }
    }
}

impl Line {
    fn to(address: &str) -> Result<Self, KeeperError> {
        Self::open(address).map_err(|source| KeeperError::Socket {
            address: address.to_owned(),
            source: source.into(),
        })
    }

    fn open(text: &str) -> Result<Self, Errno> {
        let address = match text.strip_prefix('@') {
            Some(name) => UnixAddr::new_abstract(name.as_bytes())?,
            None if text.starts_with('/') => UnixAddr::new(text)?,
            None => return Err(Errno::EAFNOSUPPORT),
        };
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        setsockopt(&socket, SendTimeout, &SEND_LIMIT)?;
        Ok(Self { socket, address })
    }

    /// Not connected: systemd may make its socket anew.
    fn send(&self, text: &str, fds: &[BorrowedFd<'_>], flags: MsgFlags) -> io::Result<()> {
        let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let control = if numbers.is_empty() {
            &[]
        } else {
            rights.as_slice()
        };
        let bytes = [IoSlice::new(text.as_bytes())];
        let flags = flags | MsgFlags::MSG_NOSIGNAL;
        loop {
            match sendmsg(
                self.socket.as_raw_fd(),
                &bytes,
                control,
                flags,
                Some(&self.address),
            ) {
                Err(Errno::EINTR) => {}
                sent => return Ok(sent.map(drop)?),
            }
        }
    }
}

fn check_name(name: &str) -> io::Result<()> {
    if valid_name(name.as_bytes()).is_some() {
        return Ok(());
    }
    let what = format!(
        "descriptor name {name:?}: accepted are 1 to 255 printable ASCII characters without colon"
    );
    Err(io::Error::new(io::ErrorKind::InvalidInput, what))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn without_a_keeper_every_call_does_nothing() {
        let keeper = Keeper::none();
        keeper.store("a", &[io::stdin().as_fd()]).unwrap();
        keeper.forget("a").unwrap();
        keeper.ready().unwrap();
        keeper.stopping().unwrap();
        keeper.status("fine").unwrap();
        keeper.heartbeat().unwrap();
        keeper.barrier(Duration::ZERO).unwrap();
        assert!(!keeper.is_some());
        assert_eq!(keeper.heartbeat_interval(), None);
    }

    #[test]
    fn what_no_keeper_could_keep_is_refused_here() {
        let keeper = Keeper::none();
        assert!(keeper.store("a:b", &[io::stdin().as_fd()]).is_err());
        assert!(keeper.store("a", &[]).is_err());
        assert!(keeper.forget("").is_err());
        assert!(Line::to("nowhere").is_err());
    }
}
