//! The options of `mount` on their way between processes: through a pipe or a memfd, never through
//! arguments, environments or disks, since they may hold secrets.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, anyhow};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::worker::Worker;

/// The name by which they are kept for the next worker.
const NAME: &str = "mount.options";

/// More than anybody says.
const MAX: u64 = 1 << 20;

/// Options as they were said.
pub(super) type Said = Vec<(String, String)>;

/// What an earlier worker has had kept. `None`: this is the first.
pub(super) fn by_an_earlier_worker(worker: &Worker) -> Result<Option<Said>> {
    let Some(memfd) = worker.take(NAME).pop() else {
        return Ok(None);
    };
    read(memfd)
        .context("options of the earlier worker")
        .map(Some)
}

/// Has them kept for the next worker.
pub(super) fn keep(said: &Said, worker: &Worker) -> Result<()> {
    if !worker.keeper().is_some() {
        return Ok(());
    }
    let memfd = memfd(said).context("options for the next worker")?;
    let kept = worker.keeper().store(NAME, &[memfd.as_fd()]);
    kept.context("options for the next worker")
}

/// What [`send`] has sent to this process's stdin.
pub(super) fn receive() -> Result<Said> {
    let mut bytes = Vec::new();
    let stdin = std::io::stdin().lock();
    stdin
        .take(MAX)
        .read_to_end(&mut bytes)
        .context("options on stdin")?;
    parse(&bytes)
}

/// Sends them to a child, by a pipe to its stdin.
pub(super) fn send(said: &[(String, String)], mut stdin: impl Write) -> Result<()> {
    let text = serde_json::to_string(said)?;
    stdin
        .write_all(text.as_bytes())
        .context("the process in the background")
}

fn memfd(said: &Said) -> Result<OwnedFd> {
    let mut file = File::from(memfd_create("options", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(serde_json::to_string(said)?.as_bytes())?;
    Ok(file.into())
}

fn read(memfd: OwnedFd) -> Result<Said> {
    let file = File::from(memfd);
    let length = usize::try_from(file.metadata()?.len().min(MAX))?;
    let mut bytes = vec![0; length];
    // Not by its offset, which the workers share.
    file.read_exact_at(&mut bytes, 0)?;
    parse(&bytes)
}

/// No word of what was said is in the error.
fn parse(bytes: &[u8]) -> Result<Said> {
    serde_json::from_slice(bytes).map_err(|_| anyhow!("the options are not what was sent"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_worker_reads_what_the_first_was_told() {
        let said = vec![("secret_access_key".to_owned(), "a \"b\"".to_owned())];
        let memfd = memfd(&said).unwrap();
        for _ in 0..2 {
            assert_eq!(read(memfd.try_clone().unwrap()).unwrap(), said);
        }
    }

    #[test]
    fn an_error_repeats_nothing_of_what_was_said() {
        let error = parse(b"[[\"secret_access_key\", hunter2]]").expect_err("no JSON");
        assert!(!format!("{error:?}").contains("hunter2"));
    }
}
