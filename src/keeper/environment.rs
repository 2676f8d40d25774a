//! What a process is told by who started it: systemd's LISTEN_FDS protocol, and the little our keeper adds.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::unistd::{getpid, getppid};

use super::descriptors::{self, FIRST_PASSED};

/// The socket that takes notify datagrams: a path, or `@` and an abstract name.
pub(super) const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
/// How many descriptors are passed on, from 3 up.
pub(super) const LISTEN_FDS: &str = "LISTEN_FDS";
/// Their names, with colons between them.
pub(super) const LISTEN_FDNAMES: &str = "LISTEN_FDNAMES";
/// Whose descriptors they are. Only systemd says it: our keeper does not know its child's pid before execve.
const LISTEN_PID: &str = "LISTEN_PID";
/// The silence that is taken for a hang, in microseconds.
pub(super) const WATCHDOG_USEC: &str = "WATCHDOG_USEC";
/// Whose heartbeats are meant, if not those of any process of the service.
const WATCHDOG_PID: &str = "WATCHDOG_PID";
/// Our keeper's pid, instead of LISTEN_PID: its children alone are meant by the rest.
pub(super) const KEEPER: &str = "BUCKETVOL_KEEPER";
/// What a worker sets as its oom_score_adj.
pub(super) const OOM_SCORE_ADJ: &str = "BUCKETVOL_OOM_SCORE_ADJ";
/// Set if somebody else has sent the worker before SIGKILL: what it did then did not bring it down.
pub(super) const WAS_KILLED: &str = "BUCKETVOL_WAS_KILLED";
/// The descriptor of what a keeper leaves to the one that it becomes.
pub(super) const HANDOVER: &str = "BUCKETVOL_KEEPER_HANDOVER";

/// How many descriptors systemd keeps for a service, if any.
const FDSTORE: &str = "FDSTORE";
/// Which process systemd has started; others of its service have the same environment.
const SYSTEMD_EXEC_PID: &str = "SYSTEMD_EXEC_PID";

/// More than anybody passes on; a number above it is a mistake.
const PASSED_MAX: RawFd = 1 << 16;

/// Whether a variable is for one process only, and not for its children.
pub(super) fn is_private(name: &OsStr) -> bool {
    [
        NOTIFY_SOCKET,
        LISTEN_FDS,
        LISTEN_FDNAMES,
        LISTEN_PID,
        WATCHDOG_USEC,
        WATCHDOG_PID,
        KEEPER,
        OOM_SCORE_ADJ,
        WAS_KILLED,
        HANDOVER,
    ]
    .iter()
    .any(|private| name == *private)
}

/// Who keeps what a process gives away to outlive it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeptBy {
    /// Nobody.
    Nobody,
    /// Our own keeper, its parent.
    Keeper,
    /// systemd, by its file descriptor store.
    Systemd,
}

impl KeptBy {
    /// Whoever has started this process.
    #[must_use]
    pub fn of_this_process() -> Self {
        let get = |name: &str| std::env::var(name).ok();
        Self::read(get, getpid().as_raw(), getppid().as_raw())
    }

    /// Reads the variables by `get`. One that makes no sense says nothing about this process.
    fn read(get: impl Fn(&str) -> Option<String>, pid: i32, parent: i32) -> Self {
        let number = |name: &str| get(name).and_then(|value| value.parse::<i32>().ok());
        if number(KEEPER) == Some(parent) {
            return Self::Keeper;
        }
        let keeps = number(FDSTORE).is_some_and(|places| places > 0);
        match get(NOTIFY_SOCKET) {
            Some(_) if keeps && number(SYSTEMD_EXEC_PID) == Some(pid) => Self::Systemd,
            _ => Self::Nobody,
        }
    }
}

/// Why a worker could not take what was kept for it.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// A variable says what it cannot mean.
    #[error(
        "environment variable {name}={value:?} cannot be understood: it is set by systemd or the keeper only"
    )]
    Variable {
        /// Its name.
        name: &'static str,
        /// What it says.
        value: String,
    },
    /// There are not as many names as descriptors.
    #[error("{LISTEN_FDNAMES} has {names} names for {descriptors} descriptors")]
    Names {
        /// How many names there are.
        names: usize,
        /// How many descriptors there are.
        descriptors: usize,
    },
    /// A descriptor that is said to be there is not.
    #[error("descriptor {number} that was kept for this process: {source}")]
    Descriptor {
        /// Its number.
        number: RawFd,
        /// What the kernel says.
        source: io::Error,
    },
    /// The environment was read before: its descriptors have owners.
    #[error("the descriptors that were kept for this process were taken already")]
    Taken,
    /// There is no way to reach the keeper.
    #[error("notify socket {address}: {source}")]
    Socket {
        /// Its address as the environment says it.
        address: String,
        /// What the kernel says.
        source: io::Error,
    },
}

/// The descriptors that were kept for this process, in the order in which they were stored. Those that are
/// not taken are closed when it is dropped; their keeper goes on holding them.
#[derive(Debug, Default)]
pub struct Inherited {
    descriptors: Vec<(String, OwnedFd)>,
}

impl Inherited {
    /// Takes the descriptors of a name.
    pub fn take(&mut self, name: &str) -> Vec<OwnedFd> {
        let (taken, left) = std::mem::take(&mut self.descriptors)
            .into_iter()
            .partition(|(held, _)| held == name);
        self.descriptors = left;
        let taken: Vec<(String, OwnedFd)> = taken;
        taken.into_iter().map(|(_, fd)| fd).collect()
    }

    /// The descriptors of a name, which stay.
    pub fn get(&self, name: &str) -> impl Iterator<Item = BorrowedFd<'_>> {
        let held = self
            .descriptors
            .iter()
            .filter(move |(held, _)| held == name);
        held.map(|(_, fd)| fd.as_fd())
    }

    /// The names of what is left to take; one that several descriptors have is there several times.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.descriptors.iter().map(|(name, _)| name.as_str())
    }

    /// Whether nothing is left to take.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.descriptors.is_empty()
    }

    /// All that is left, with names.
    #[must_use]
    pub fn into_vec(self) -> Vec<(String, OwnedFd)> {
        self.descriptors
    }
}

/// What the environment says, as far as it is meant for this process.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// The names of the descriptors from 3 up.
    pub(super) names: Vec<String>,
    pub(super) notify_socket: Option<String>,
    pub(super) watchdog: Option<Duration>,
    pub(super) oom_score_adj: Option<i32>,
    pub(super) was_killed: bool,
}

impl Told {
    /// Reads the variables by `get`, for a process of this pid and parent. Pure.
    pub(super) fn read(
        get: impl Fn(&str) -> Option<String>,
        pid: i32,
        parent: i32,
    ) -> Result<Self, KeeperError> {
        let keeper: Option<i32> = number(&get, KEEPER)?;
        if keeper.is_some_and(|keeper| keeper != parent) {
            // A child of the worker's, or one whose keeper has died: nothing of it is meant for us.
            return Ok(Self::default());
        }
        let is_ours = |owner: Option<i32>| keeper.is_some() || owner == Some(pid);
        let names = match number::<usize>(&get, LISTEN_FDS)? {
            Some(count) if is_ours(number(&get, LISTEN_PID)?) => names(&get, count)?,
            _ => Vec::new(),
        };
        let heartbeats =
            keeper.is_some() || number(&get, WATCHDOG_PID)?.is_none_or(|of: i32| of == pid);
        let watchdog = number(&get, WATCHDOG_USEC)?.filter(|_| heartbeats);
        Ok(Self {
            names,
            notify_socket: get(NOTIFY_SOCKET),
            watchdog: watchdog.filter(|usec| *usec > 0).map(Duration::from_micros),
            oom_score_adj: number(&get, OOM_SCORE_ADJ)?,
            was_killed: get(WAS_KILLED).is_some(),
        })
    }

    /// Takes the descriptors. A process can do so once.
    pub(super) fn take(&mut self) -> Result<Inherited, KeeperError> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        if self.names.is_empty() {
            return Ok(Inherited::default());
        }
        if TAKEN.swap(true, Ordering::Relaxed) {
            return Err(KeeperError::Taken);
        }
        let names = std::mem::take(&mut self.names).into_iter();
        let descriptors = (FIRST_PASSED..PASSED_MAX).zip(names).map(|(number, name)| {
            let fd = descriptors::inherited(number)
                .map_err(|source| KeeperError::Descriptor { number, source })?;
            Ok((name, fd))
        });
        Ok(Inherited {
            descriptors: descriptors.collect::<Result<_, KeeperError>>()?,
        })
    }
}

fn names(get: impl Fn(&str) -> Option<String>, count: usize) -> Result<Vec<String>, KeeperError> {
    let names: Vec<String> = match get(LISTEN_FDNAMES) {
        None => vec!["unknown".to_owned(); count.min(PASSED_MAX.unsigned_abs() as usize)],
        Some(_) if count == 0 => Vec::new(),
        Some(names) => names.split(':').map(str::to_owned).collect(),
    };
    match names.len() == count {
        true => Ok(names),
        false => Err(KeeperError::Names {
            names: names.len(),
            descriptors: count,
        }),
    }
}

fn number<T: std::str::FromStr>(
    get: impl Fn(&str) -> Option<String>,
    name: &'static str,
) -> Result<Option<T>, KeeperError> {
    let Some(value) = get(name) else {
        return Ok(None);
    };
    match value.parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(KeeperError::Variable { name, value }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Read as process 7, child of 6.
    fn read(variables: &[(&str, &str)]) -> Result<Told, KeeperError> {
        let get = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Told::read(get, 7, 6)
    }

    #[test]
    fn our_keeper_and_systemd_are_understood_alike() {
        let said = [
            ("NOTIFY_SOCKET", "@x"),
            ("LISTEN_FDS", "2"),
            ("LISTEN_FDNAMES", "a:b"),
            ("WATCHDOG_USEC", "3000000"),
        ];
        let told = Told {
            names: vec!["a".to_owned(), "b".to_owned()],
            notify_socket: Some("@x".to_owned()),
            watchdog: Some(Duration::from_secs(3)),
            oom_score_adj: None,
            was_killed: false,
        };
        for more in [
            [("BUCKETVOL_KEEPER", "6"), ("WATCHDOG_PID", "1")],
            [("LISTEN_PID", "7"), ("WATCHDOG_PID", "7")],
        ] {
            let said = [said.as_slice(), &more].concat();
            assert_eq!(read(&said).unwrap(), told, "{more:?}");
        }
    }

    #[test]
    fn what_is_meant_for_another_process_is_not_taken() {
        let said = [
            ("LISTEN_FDS", "2"),
            ("LISTEN_FDNAMES", "a:b"),
            ("WATCHDOG_USEC", "5"),
        ];
        for more in [
            [("LISTEN_PID", "8"), ("WATCHDOG_PID", "8")],
            [("BUCKETVOL_KEEPER", "5"), ("NOTIFY_SOCKET", "@x")],
        ] {
            let said = [said.as_slice(), &more].concat();
            assert_eq!(read(&said).unwrap(), Told::default(), "{more:?}");
        }
        assert_eq!(read(&[]).unwrap(), Told::default());
    }

    #[test]
    fn descriptors_without_names_are_unknown_and_too_few_names_an_error() {
        let keeper = ("BUCKETVOL_KEEPER", "6");
        let told = read(&[keeper, ("LISTEN_FDS", "2")]).unwrap();
        assert_eq!(told.names, ["unknown", "unknown"]);
        let none = read(&[keeper, ("LISTEN_FDS", "0"), ("LISTEN_FDNAMES", "")]).unwrap();
        assert_eq!(none.names, [""; 0]);
        let error = read(&[keeper, ("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "a")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "LISTEN_FDNAMES has 1 names for 2 descriptors"
        );
        let error = read(&[keeper, ("LISTEN_FDS", "two")]).unwrap_err();
        assert!(error.to_string().contains("LISTEN_FDS=\"two\""), "{error}");
    }

    #[test]
    fn a_process_is_kept_by_whoever_has_started_it() {
        let of = |variables: &[(&str, &str)]| {
            let get = |name: &str| {
                let found = variables.iter().find(|(key, _)| *key == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            KeptBy::read(get, 7, 6)
        };
        let systemd = [("NOTIFY_SOCKET", "/run/s"), ("FDSTORE", "4096")];
        assert_eq!(of(&[("BUCKETVOL_KEEPER", "6")]), KeptBy::Keeper);
        // Its keeper has died, or it was started by a worker.
        assert_eq!(of(&[("BUCKETVOL_KEEPER", "5")]), KeptBy::Nobody);
        let of_service = |pid| of(&[systemd[0], systemd[1], ("SYSTEMD_EXEC_PID", pid)]);
        assert_eq!(of_service("7"), KeptBy::Systemd);
        assert_eq!(of_service("8"), KeptBy::Nobody);
        let no_store = [systemd[0], ("FDSTORE", "0"), ("SYSTEMD_EXEC_PID", "7")];
        assert_eq!(of(&no_store), KeptBy::Nobody);
        assert_eq!(of(&[]), KeptBy::Nobody);
    }

    #[test]
    fn a_childs_environment_has_nothing_that_was_for_its_parent() {
        assert!(is_private(OsStr::new("LISTEN_PID")));
        assert!(!is_private(OsStr::new("PATH")));
    }
}
