//! The commands' end of the control socket: finds the processes of this user and asks them.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::server::is_dead;
use super::{ProcessStatus, Refusal, RefusalKind, SalvageRequest, SyncRequest, UnmountRequest};
use crate::cli::output::TimedOut;

/// A process that is alive answers a question about itself at once.
const STATUS_LIMIT: Duration = Duration::from_secs(5);

/// One process that serves mounts.
#[derive(Debug, Clone)]
pub(in crate::cli) struct Process {
    socket: PathBuf,
    http: reqwest::Client,
}

/// All processes of this user that listen in `dir`, the sockets of dead ones removed.
pub(in crate::cli) fn processes(dir: &Path) -> Result<Vec<Process>> {
    let entries = match super::check_run_dir(dir).and_then(|()| fs::read_dir(dir)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(error).with_context(|| format!("control sockets in {}", dir.display()));
        }
    };
    let mut sockets: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "sock")
        })
        .collect();
    sockets.sort();
    sockets.retain(|path| {
        let dead = is_dead(path);
        if dead {
            let _ = fs::remove_file(path);
        }
        !dead
    });
    sockets.into_iter().map(Process::at).collect()
}

/// Each process with what it says of itself; one that does not answer is named on stderr.
pub(in crate::cli) async fn statuses(dir: &Path) -> Result<Vec<(Process, ProcessStatus)>> {
    let mut answers = Vec::new();
    for process in processes(dir)? {
        match process.status().await {
            Ok(status) => answers.push((process, status)),
            Err(error) => crate::cli::output::say(crate::cli::output::one_line(&error)),
        }
    }
    Ok(answers)
}

impl Process {
    fn at(socket: PathBuf) -> Result<Self> {
        let http = local_client(&socket)?;
        Ok(Self { socket, http })
    }

    /// What the process says of itself.
    pub(in crate::cli) async fn status(&self) -> Result<ProcessStatus> {
        let request = self
            .http
            .get("http://bucketvol/status")
            .timeout(STATUS_LIMIT);
        self.send(request).await
    }

    /// Drains; returns when every byte is in the bucket.
    pub(in crate::cli) async fn sync(&self, request: &SyncRequest) -> Result<()> {
        self.post("sync", request).await
    }

    /// Unmounts.
    pub(in crate::cli) async fn unmount(&self, request: &UnmountRequest) -> Result<()> {
        self.post("unmount", request).await
    }

    /// Exports or discards a change; returns the ranges of bytes that could not be exported.
    pub(in crate::cli) async fn salvage(
        &self,
        request: &SalvageRequest,
    ) -> Result<Vec<Range<u64>>> {
        self.post("salvage", request).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        request: &(impl Serialize + Sync),
    ) -> Result<T> {
        self.send(
            self.http
                .post(format!("http://bucketvol/{path}"))
                .json(request),
        )
        .await
    }

    async fn send<T: DeserializeOwned>(&self, request: reqwest::RequestBuilder) -> Result<T> {
        let silent = || {
            format!(
                "the process behind {} does not answer",
                self.socket.display()
            )
        };
        let response = request.send().await.with_context(silent)?;
        if response.status().is_success() {
            return response.json().await.with_context(silent);
        }
        let refusal: Refusal = response.json().await.with_context(silent)?;
        match refusal.kind {
            RefusalKind::TimedOut => Err(TimedOut(refusal.message).into()),
            RefusalKind::NotMine | RefusalKind::Failed => Err(refusal.into()),
        }
    }
}

/// An HTTP client that talks to one unix socket, whatever the URL's host.
pub(in crate::cli) fn local_client(socket: &Path) -> Result<reqwest::Client> {
    crate::cli::choose_tls_provider();
    reqwest::Client::builder()
        .unix_socket(socket.to_owned())
        .no_proxy()
        // A host without a certificate store has sockets too.
        .tls_certs_only([])
        .build()
        .context("a client for a unix socket")
}
