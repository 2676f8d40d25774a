//! INIT, the first request of a connection: the kernel asks it once, and every later process that serves the connection
//! has to know what was agreed.
//!
//! fuser cannot be told: it insists on an INIT of its own. So it always shakes hands with a socket pair, on which we
//! play the kernel, and the connection takes the socket's number afterwards.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use fuser::{Config, Filesystem, Session};
use nix::fcntl::OFlag;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use serde::{Deserialize, Serialize};

use super::mount::FuseDevice;

/// Bytes of a buffer that takes any request: the kernel refuses to write into one that might not.
const REQUEST_MAX: usize = (1 << 20) + 4096;

/// Bytes of a buffer that takes fuser's reply to INIT: a header of 16 and 64 of `fuse_init_out`.
const REPLY_MAX: usize = 256;

/// Bytes before the body of a request (`fuse_in_header`) and of a reply (`fuse_out_header`).
const REQUEST_HEADER: usize = 40;
const REPLY_HEADER: usize = 16;

/// Where the flags are: `flags` and `flags2` of `fuse_init_in` and of `fuse_init_out`.
const REQUEST_FLAGS: [usize; 2] = [REQUEST_HEADER + 12, REQUEST_HEADER + 16];
const REPLY_FLAGS: [usize; 2] = [REPLY_HEADER + 12, REPLY_HEADER + 32];

/// Code of the notification that lets the kernel send again what it has no reply to (`FUSE_NOTIFY_RESEND`, since 6.9).
const NOTIFY_RESEND: i32 = 7;

/// In `flags2` of INIT the kernel says so that it has that notification (`FUSE_HAS_RESEND`).
const HAS_RESEND: u8 = 1 << 7;

/// Where a kernel without it may have requests that the process before has read and did not wait for: around the last
/// that was noted. It numbers them by twos, and no more are in hand at once.
const SWEPT_BEFORE: u64 = 20_000;
const SWEPT_AFTER: u64 = 4096;

/// Which requests a process before this one may have read and not answered.
#[derive(Debug, Clone, Default)]
pub struct Unanswered {
    /// Those whose numbers are around this one.
    pub near: u64,
    /// Those that waited for something, however long ago they came.
    pub waiting: Vec<u64>,
}

impl Unanswered {
    fn numbers(&self) -> impl Iterator<Item = u64> {
        let first = self.near.saturating_sub(SWEPT_BEFORE) & !1;
        let near = (first..self.near + SWEPT_AFTER).step_by(2);
        near.chain(self.waiting.iter().copied())
    }
}

/// What the kernel and we have agreed on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreement {
    /// The kernel's INIT request, header included.
    request: Vec<u8>,
    /// Our reply, likewise.
    reply: Vec<u8>,
}

impl Agreement {
    /// Whether the kernel can send again what it has no reply to: since 6.9.
    pub fn resends(&self) -> bool {
        let flags = self.request.get(REQUEST_FLAGS[1]);
        flags.is_some_and(|flags| flags & HAS_RESEND != 0)
    }

    #[cfg(test)]
    pub(super) fn that_resends() -> Self {
        let mut request = vec![0; REQUEST_HEADER + 64];
        request[REQUEST_FLAGS[1]] = HAS_RESEND;
        Self {
            request,
            reply: Vec::new(),
        }
    }

    /// The INIT to replay: it offers no more than was agreed, so that a later release does not take for granted what the
    /// kernel was never told.
    fn narrowed(&self) -> Vec<u8> {
        let mut request = self.request.clone();
        for (asked, agreed) in REQUEST_FLAGS.into_iter().zip(REPLY_FLAGS) {
            let (Some(asked), Some(agreed)) = (
                request.get_mut(asked..asked + 4),
                self.reply.get(agreed..agreed + 4),
            ) else {
                continue;
            };
            for (asked, agreed) in asked.iter_mut().zip(agreed) {
                *asked &= agreed;
            }
        }
        request
    }
}

/// Answers the INIT of a new connection, and says what was agreed. Waits for the kernel, which asks as soon as the
/// device is mounted.
pub(super) fn begin<F: Filesystem>(
    filesystem: F,
    device: &FuseDevice,
    config: Config,
) -> io::Result<(Session<F>, Agreement)> {
    let request = receive(device.as_fd(), REQUEST_MAX)?;
    let (session, reply) = shake_hands(filesystem, &request, config)?;
    take_place(device, &session)?;
    nix::unistd::write(device.as_fd(), &reply)?;
    Ok((session, Agreement { request, reply }))
}

/// Takes over a connection whose INIT an earlier process has answered. What that one left unanswered comes again, or
/// fails with EINTR if the kernel cannot do that: else its callers would wait for ever.
pub(super) fn resume<F: Filesystem>(
    filesystem: F,
    device: &FuseDevice,
    agreement: &Agreement,
    unanswered: &Unanswered,
    config: Config,
) -> io::Result<Session<F>> {
    let (session, _) = shake_hands(filesystem, &agreement.narrowed(), config)?;
    if !agreement.resends() {
        // Before anything is read: what is read from now on is answered.
        interrupt(device, unanswered)?;
    }
    take_place(device, &session)?;
    if agreement.resends() {
        nix::unistd::write(device.as_fd(), &header(NOTIFY_RESEND, 0))?;
    }
    Ok(session)
}

/// Answers EINTR to every request that may have been read and not answered.
fn interrupt(device: &FuseDevice, unanswered: &Unanswered) -> io::Result<()> {
    for unique in unanswered.numbers() {
        match nix::unistd::write(device.as_fd(), &header(-nix::libc::EINTR, unique)) {
            // No request of this number waits for a reply.
            Ok(_) | Err(nix::errno::Errno::ENOENT | nix::errno::Errno::EINVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A reply, or a notification, without a body.
fn header(error: i32, unique: u64) -> [u8; REPLY_HEADER] {
    let mut header = [0; REPLY_HEADER];
    header[..4].copy_from_slice(&16_u32.to_ne_bytes());
    header[4..8].copy_from_slice(&error.to_ne_bytes());
    header[8..].copy_from_slice(&unique.to_ne_bytes());
    header
}

fn shake_hands<F: Filesystem>(
    filesystem: F,
    request: &[u8],
    config: Config,
) -> io::Result<(Session<F>, Vec<u8>)> {
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    nix::unistd::write(ours.as_fd(), request)?;
    let session = Session::from_fd(filesystem, theirs, config.acl, config)?;
    let reply = receive(ours.as_fd(), REPLY_MAX)?;
    Ok((session, reply))
}

fn receive(from: impl AsFd, max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; max];
    let len = loop {
        match nix::unistd::read(from.as_fd(), &mut bytes) {
            Err(nix::errno::Errno::EINTR) => {}
            other => break other?,
        }
    };
    bytes.truncate(len);
    Ok(bytes)
}

/// Puts the connection where fuser has its end of the socket pair.
fn take_place<F: Filesystem>(device: &FuseDevice, session: &Session<F>) -> io::Result<()> {
    #[expect(unsafe_code, reason = "the number is fuser's, and stays so")]
    // SAFETY: the descriptor is open, and what is not dropped closes nothing: it goes on belonging to the session.
    let mut place = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(session.as_fd().as_raw_fd()) });
    nix::unistd::dup3(device.as_fd(), &mut place, OFlag::O_CLOEXEC)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_release_is_offered_what_was_agreed_and_no_more() {
        let mut request = vec![0; REQUEST_HEADER + 64];
        request[REQUEST_FLAGS[0]..][..4].copy_from_slice(&0b1111_u32.to_ne_bytes());
        request[REQUEST_FLAGS[1]..][..4].copy_from_slice(&0b0110_u32.to_ne_bytes());
        let mut reply = vec![0; REPLY_HEADER + 64];
        reply[REPLY_FLAGS[0]..][..4].copy_from_slice(&0b0101_u32.to_ne_bytes());
        reply[REPLY_FLAGS[1]..][..4].copy_from_slice(&0b0010_u32.to_ne_bytes());
        let narrowed = Agreement {
            request: request.clone(),
            reply,
        }
        .narrowed();
        assert_eq!(narrowed[REQUEST_FLAGS[0]..][..4], 0b0101_u32.to_ne_bytes());
        assert_eq!(narrowed[REQUEST_FLAGS[1]..][..4], 0b0010_u32.to_ne_bytes());
        assert_eq!(narrowed[..REQUEST_FLAGS[0]], request[..REQUEST_FLAGS[0]]);
    }

    #[test]
    fn a_reply_that_was_cut_short_takes_nothing_away() {
        let agreement = Agreement {
            request: vec![255; REQUEST_HEADER + 16],
            reply: vec![0; 8],
        };
        assert_eq!(agreement.narrowed(), agreement.request);
    }
}
