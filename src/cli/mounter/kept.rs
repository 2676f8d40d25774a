//! What outlives this process: connections, what the kernel knows on each, and what it knows of each file system.
//!
//! It is stored with the keeper once a mount is ready, by names that the next process finds again: before that, a crash
//! is a mount that failed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::filesystems::{Lease, filed_under};
use crate::cli::worker::Worker;
use crate::fs::fuse::connection::LeftConnection;
use crate::fs::fuse::{Connection, FuseDevice, Served, Session};
use crate::fs::{Formats, check_format};

/// What the names of descriptors begin with.
const DEVICE: &str = "fuse-";
const CONNECTION: &str = "connection-";
const FILES: &str = "files-";

/// What this process and those before have stored with the keeper.
#[derive(Debug)]
pub(super) struct Kept(Arc<Worker>);

/// A connection that an earlier process has served.
#[derive(Debug)]
pub(super) struct Orphaned {
    pub(super) device: FuseDevice,
    pub(super) connection: Connection,
    pub(super) left: LeftConnection,
}

impl Kept {
    pub(super) fn new(worker: Arc<Worker>) -> Self {
        Self(worker)
    }

    /// What a volume's descriptors are called: a name of its own may be longer than is allowed.
    pub(super) fn label(volume: &str) -> String {
        filed_under("volume-", &[volume.as_bytes()])
    }

    /// The labels of the connections that an earlier process has served, but for those that were taken.
    pub(super) fn labels(&self) -> Vec<String> {
        let names = self.0.names().into_iter();
        let labels = names.filter_map(|name| Some(name.strip_prefix(DEVICE)?.to_owned()));
        labels.collect()
    }

    /// Takes the connection of this label, if there is one that can be gone on with.
    pub(super) fn take(&self, label: &str) -> Option<Orphaned> {
        let device = self.take_one(DEVICE, label)?;
        let memory = self.take_one(CONNECTION, label);
        let was_killed = self.0.keeper().predecessor_was_killed();
        let formats = self.0.formats();
        let reopened = memory.map(|memory| Connection::reopen(memory, formats, was_killed))?;
        match reopened {
            Ok((connection, left)) => Some(Orphaned {
                device: device.into(),
                connection,
                left,
            }),
            Err(error) => {
                tracing::error!(label, "a mount of the process before is lost: {error}");
                self.forget(label);
                None
            }
        }
    }

    /// Takes what the kernel knows of the file system of this label.
    pub(super) fn take_files(&self, label: &str) -> Option<OwnedFd> {
        self.take_one(FILES, label)
    }

    fn take_one(&self, kind: &str, label: &str) -> Option<OwnedFd> {
        self.0.take(&format!("{kind}{label}")).pop()
    }

    /// From now on the next process can go on with a session.
    pub(super) fn keep(
        &self,
        label: &str,
        session: &Session,
        connection: &Arc<Connection>,
        lease: &Lease,
    ) -> io::Result<()> {
        connection.establish(session.attachment(), session.agreement())?;
        self.store(FILES, lease.label(), lease.filesystem().kept())?;
        self.store(CONNECTION, label, connection.as_fd())?;
        self.store(DEVICE, label, session.device())?;
        self.serve(session, connection, lease);
        Ok(())
    }

    /// This process serves the session, and will hand it over.
    pub(super) fn serve(&self, session: &Session, connection: &Arc<Connection>, lease: &Lease) {
        let served = Served::new(session, connection, lease.filesystem());
        self.0.serve(served, session.end());
    }

    /// The formats of what this process leaves.
    pub(super) fn formats(&self) -> Formats {
        self.0.formats()
    }

    /// Fails if there is anything of another release that this one cannot read: then nothing is taken, and the one that
    /// can goes on with it.
    pub(super) fn check_formats(&self) -> io::Result<()> {
        let is_table = |name: &String| name.starts_with(CONNECTION) || name.starts_with(FILES);
        let mut names = self.0.names().into_iter().filter(is_table);
        names.try_for_each(|name| {
            self.0.check(&name, |memory| {
                let checked = check_format(memory, self.formats());
                checked.map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))
            })
        })
    }

    /// The session of this label has ended.
    pub(super) fn forget(&self, label: &str) {
        for kind in [DEVICE, CONNECTION] {
            self.forget_one(kind, label);
        }
    }

    /// The file system of this label is closed.
    pub(super) fn forget_files(&self, label: &str) {
        self.forget_one(FILES, label);
    }

    fn store(&self, kind: &str, label: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        let name = format!("{kind}{label}");
        // One descriptor by each name, whoever stored one before.
        self.0.keeper().forget(&name)?;
        self.0.keeper().store(&name, &[fd])
    }

    fn forget_one(&self, kind: &str, label: &str) {
        if let Err(error) = self.0.keeper().forget(&format!("{kind}{label}")) {
            tracing::warn!(label, %error, "the keeper goes on keeping what is no more");
        }
    }
}
