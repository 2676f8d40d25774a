//! Mounts as an ordinary user, through the set-user-id helper `fusermount3`.
//!
//! The helper opens the device, mounts it and hands the descriptor back over the socket that
//! `_FUSE_COMMFD` names. It checks for itself what the user may do.

use std::io::{self, IoSliceMut, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use super::mount::{AttachError, FuseDevice, MAX_READ, MountRequest};

const HELPER: &str = "fusermount3";

/// The helper only makes system calls; longer than this it hangs on a dead file system on its way.
const DEADLINE: Duration = Duration::from_secs(10);

/// Has the helper mount a new connection on the request's directory.
pub(super) fn mount(request: &MountRequest) -> Result<FuseDevice, AttachError> {
    let fail = |reason: String| AttachError::Helper {
        path: request.mountpoint.clone(),
        reason,
    };
    let (ours, theirs) = UnixStream::pair().map_err(|error| fail(error.to_string()))?;
    ours.set_read_timeout(Some(DEADLINE))
        .map_err(|error| fail(error.to_string()))?;
    let mut command = Command::new(HELPER);
    command
        .arg("-o")
        .arg(mount_options(request, user_allow_other()))
        .arg("--")
        .arg(&request.mountpoint)
        // As the child's standard input the socket needs no inheritable descriptor in this process,
        // which a child of another thread could catch.
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .env("_FUSE_COMMFD", "0");
    let mut child = spawn(&mut command).map_err(fail)?;
    // The parent's copy of the helper's end goes with the command, or a helper that dies would leave
    // us waiting for the timeout.
    drop(command);
    let received = receive_descriptor(&ours);
    drop(ours);
    let outcome = wait(&mut child);
    match (received, outcome) {
        (Ok(fd), Ok(())) => Ok(fd.into()),
        (_, Err(reason)) => Err(fail(reason)),
        (Err(error), Ok(())) => Err(fail(format!("no descriptor came back: {error}"))),
    }
}

/// Has the helper take the user's mount off `path`, lazily.
pub(super) fn unmount(path: &Path) -> Result<(), AttachError> {
    let mut command = Command::new(HELPER);
    command
        .args(["-u", "-z", "--"])
        .arg(path)
        .stdin(Stdio::null());
    spawn(&mut command)
        .and_then(|mut child| wait(&mut child))
        .map_err(|reason| AttachError::Helper {
            path: path.to_path_buf(),
            reason,
        })
}

/// The helper's `-o`. It splits at commas and takes a backslash as an escape.
fn mount_options(request: &MountRequest, allow_other: bool) -> String {
    let source = request.source.replace('\\', "\\\\").replace(',', "\\,");
    format!(
        "{},nosuid,nodev,fsname={source},subtype=bucketvol,default_permissions,max_read={MAX_READ}{}",
        if request.read_only { "ro" } else { "rw" },
        if allow_other { ",allow_other" } else { "" },
    )
}

/// Whether this host lets users open their mounts to others; the helper refuses the option otherwise.
fn user_allow_other() -> bool {
    std::fs::read_to_string("/etc/fuse.conf").is_ok_and(|text| allows_other(&text))
}

fn allows_other(fuse_conf: &str) -> bool {
    fuse_conf
        .lines()
        .any(|line| line.trim() == "user_allow_other")
}

fn spawn(command: &mut Command) -> Result<Child, String> {
    command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                "it is not installed (mounting as a user needs it; install the package fuse3)"
                    .into()
            }
            _ => error.to_string(),
        })
}

/// Waits for the helper's end; `Err` is what it said on standard error.
fn wait(child: &mut Child) -> Result<(), String> {
    let deadline = Instant::now() + DEADLINE;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
            Ok(None) => {
                // It runs as root and cannot be killed by us; it is left to finish by itself.
                return Err(format!("no answer within {} s", DEADLINE.as_secs()));
            }
            Err(error) => return Err(error.to_string()),
        }
    };
    if status.success() {
        return Ok(());
    }
    let mut text = String::new();
    if let Some(stderr) = child.stderr.take() {
        // It has ended and its few lines fit the pipe: this cannot wait, and a bound costs nothing.
        let _ = stderr.take(4096).read_to_string(&mut text);
    }
    let text = text.trim();
    let text = text.strip_prefix("fusermount3: ").unwrap_or(text);
    Err(if text.is_empty() {
        status.to_string()
    } else {
        text.replace('\n', "; ")
    })
}

fn receive_descriptor(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0_u8; 1];
    let mut buffers = [IoSliceMut::new(&mut byte)];
    let mut control = nix::cmsg_space!(RawFd);
    let message = loop {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut control), flags) {
            Err(nix::errno::Errno::EINTR) => {}
            other => break other?,
        }
    };
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control {
            #[expect(unsafe_code, reason = "the kernel hands descriptors over as numbers")]
            // SAFETY: the kernel has just made these descriptors for us; nothing else in the process
            // knows them, and each is owned once.
            let owned = descriptors
                .into_iter()
                .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
            // All are taken, so that none leaks; the helper sends one.
            if let Some(fd) = owned.collect::<Vec<_>>().into_iter().next() {
                return Ok(fd);
            }
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_cannot_smuggle_options_to_the_helper() {
        let request = MountRequest {
            mountpoint: "/m".into(),
            source: "s3://b/a,allow_other\\".into(),
            read_only: true,
        };
        assert_eq!(
            mount_options(&request, false),
            "ro,nosuid,nodev,fsname=s3://b/a\\,allow_other\\\\,subtype=bucketvol,default_permissions,max_read=1048576"
        );
    }

    #[test]
    fn other_users_are_let_in_only_where_the_host_says_so() {
        for (text, expected) in [
            ("", false),
            ("#user_allow_other\n", false),
            ("# user_allow_other\nmount_max = 3\n", false),
            ("mount_max=3\n  user_allow_other  \n", true),
            ("user_allow_other", true),
            ("user_allow_others", false),
        ] {
            assert_eq!(allows_other(text), expected, "{text:?}");
        }
    }
}
