//! What outlives this process: connections, what the kernel knows on each, and what it knows of each file system.
//!
//! It is stored with the keeper once a mount is ready, by names that the next process finds again: before that, a crash
//! is a mount that failed.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::filesystems::{Lease, filed_under, settled};
use crate::cli::worker::Worker;
use crate::fs::FileSystem;
use crate::fs::fuse::connection::LeftConnection;
use crate::fs::fuse::{Connection, FuseDevice, Served, Session};
use crate::fs::{Formats, check_format};

/// What the names of descriptors begin with.
const DEVICE: &str = "fuse-";
const CONNECTION: &str = "connection-";
const FILES: &str = "files-";

/// What this process and those before have stored with the keeper.
#[derive(Debug)]
pub(super) struct Kept {
    worker: Arc<Worker>,
    /// The connections that an earlier process has served, by their labels, but for those that were taken.
    orphans: Mutex<BTreeMap<String, FuseDevice>>,
    /// The labels of those that have ended since.
    ended: Vec<String>,
    /// Of a daemon's volumes, which come and go; else of the one mount that the process is for.
    is_of_volumes: bool,
}

/// A connection that an earlier process has served.
#[derive(Debug)]
pub(super) struct Orphaned {
    pub(super) device: FuseDevice,
    reading: JoinHandle<io::Result<(Connection, LeftConnection)>>,
}

impl Orphaned {
    /// What the kernel knows on it.
    pub(super) async fn connection(&mut self) -> io::Result<(Connection, LeftConnection)> {
        (&mut self.reading).await.map_err(io::Error::other)?
    }
}

impl Kept {
    /// What a daemon has. Fails if there is anything of another release that this one cannot read: then nothing is
    /// taken or forgotten, and the one that can goes on with it.
    pub(super) fn of_volumes(worker: Arc<Worker>) -> io::Result<Self> {
        Self::of(worker, true)
    }

    /// Likewise, what a process has that is for one mount.
    pub(super) fn of_one_mount(worker: Arc<Worker>) -> io::Result<Self> {
        Self::of(worker, false)
    }

    fn of(worker: Arc<Worker>, is_of_volumes: bool) -> io::Result<Self> {
        check_formats(&worker)?;
        let labels = of_kind(&worker, DEVICE);
        let device = |label: String| {
            let device = worker.take(&format!("{DEVICE}{label}")).pop()?;
            Some((label, FuseDevice::from(device)))
        };
        let devices = labels.into_iter().filter_map(device);
        let (orphans, ended): (BTreeMap<_, _>, BTreeMap<_, _>) =
            devices.partition(|(_, device)| device.is_connected());
        let kept = Self {
            orphans: Mutex::new(orphans),
            ended: ended.into_keys().collect(),
            is_of_volumes,
            worker,
        };
        for label in &kept.ended {
            tracing::info!(label, "unmounted while there was no process to serve it");
        }
        if kept.orphans.lock().is_empty() {
            // The kernel knows of no file any more.
            for label in of_kind(&kept.worker, FILES) {
                drop(kept.take_files(&label));
                kept.forget_files(&label);
            }
        }
        Ok(kept)
    }

    /// What a volume's descriptors are called: a name of its own may be longer than is allowed.
    pub(super) fn label(volume: &str) -> String {
        filed_under("volume-", &[volume.as_bytes()])
    }

    /// The labels of the connections that an earlier process has served, but for those that were taken or have ended.
    pub(super) fn labels(&self) -> Vec<String> {
        self.orphans.lock().keys().cloned().collect()
    }

    /// The labels of the connections that have ended while nobody served them. They are kept until they are forgotten.
    pub(super) fn ended(&self) -> &[String] {
        &self.ended
    }

    /// Takes the connection of this label, if there is one. What is known of it is read meanwhile: of a million inodes
    /// that takes a while.
    pub(super) fn take(&self, label: &str) -> Option<Orphaned> {
        let device = self.orphans.lock().remove(label)?;
        let was_killed = self.worker.keeper().predecessor_was_killed();
        let (memory, formats) = (self.take_one(CONNECTION, label), self.formats());
        let reading = tokio::task::spawn_blocking(move || {
            let memory = memory.ok_or_else(|| io::Error::other("nothing is known of it"))?;
            Connection::reopen(memory, formats, was_killed)
        });
        Some(Orphaned { device, reading })
    }

    /// Takes what the kernel knows of the file system of this label.
    pub(super) fn take_files(&self, label: &str) -> Option<OwnedFd> {
        self.take_one(FILES, label)
    }

    fn take_one(&self, kind: &str, label: &str) -> Option<OwnedFd> {
        self.worker.take(&format!("{kind}{label}")).pop()
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
        self.worker.serve(served);
    }

    /// The formats of what this process leaves.
    pub(super) fn formats(&self) -> Formats {
        self.worker.formats()
    }

    /// Whether it is a daemon's.
    pub(super) fn is_of_volumes(&self) -> bool {
        self.is_of_volumes
    }

    /// The one mount that the process is for has ended: that is forgotten only when all of it is in the bucket. A process
    /// that has to go on with that must not mount anew.
    pub(super) async fn forget_settled(&self, label: &str, filesystem: &FileSystem) {
        settled(filesystem).await;
        self.forget(label);
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
        self.worker.keeper().forget(&name)?;
        self.worker.keeper().store(&name, &[fd])
    }

    fn forget_one(&self, kind: &str, label: &str) {
        if let Err(error) = self.worker.keeper().forget(&format!("{kind}{label}")) {
            tracing::warn!(label, %error, "the keeper goes on keeping what is no more");
        }
    }
}

fn check_formats(worker: &Worker) -> io::Result<()> {
    let is_table = |name: &String| name.starts_with(CONNECTION) || name.starts_with(FILES);
    let mut names = worker.names().into_iter().filter(is_table);
    names.try_for_each(|name| {
        worker.check(&name, |memory| {
            let checked = check_format(memory, worker.formats());
            checked.map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))
        })
    })
}

/// The labels of what an earlier process has stored of this kind, and nobody has taken.
fn of_kind(worker: &Worker, kind: &str) -> Vec<String> {
    let names = worker.names().into_iter();
    let labels = names.filter_map(|name| Some(name.strip_prefix(kind)?.to_owned()));
    labels.collect()
}
