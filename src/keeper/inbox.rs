//! The notify socket, read into buffers that are made once.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::PassCred;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, UnixCredentials,
    bind, getsockname, recvmsg, setsockopt, socket,
};
use nix::unistd::Pid;

use super::descriptors::{self, DATAGRAM_MAX};

/// The longest datagram that is understood, as systemd has it.
const DATAGRAM_BYTES: usize = 4096;

/// One datagram. Its descriptors are closed unless somebody takes them.
#[derive(Debug)]
pub(super) struct Datagram<'a> {
    /// The process that sent it, as the kernel says.
    pub(super) sender: Option<Pid>,
    pub(super) bytes: &'a [u8],
    pub(super) fds: Vec<OwnedFd>,
}

/// A datagram socket that says who speaks.
#[derive(Debug)]
pub(super) struct Inbox {
    socket: OwnedFd,
    bytes: Box<[u8]>,
    control: Vec<u8>,
}

impl Inbox {
    /// A socket with a name of the kernel's choice. It has no place in a file system, so that nothing is left
    /// of it; anybody on this host can send to it, and only one process is heard.
    pub(super) fn new() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        // Before it has a name: no datagram may come without its sender.
        setsockopt(&socket, PassCred, &true)?;
        bind(socket.as_raw_fd(), &UnixAddr::new_unnamed())?;
        Ok(Self::from(socket))
    }

    /// The next datagram; `None` when none waits. One that is too long is an empty one.
    pub(super) fn receive(&mut self) -> io::Result<Option<Datagram<'_>>> {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        let mut buffers = [IoSliceMut::new(&mut self.bytes)];
        let message = match recvmsg::<()>(
            self.socket.as_raw_fd(),
            &mut buffers,
            Some(&mut self.control),
            flags,
        ) {
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            message => message?,
        };
        let (mut sender, mut fds) = (None, Vec::new());
        // It fails only if control messages were cut off, and there is room for all that can come.
        for control in message.cmsgs()? {
            match control {
                ControlMessageOwned::ScmCredentials(credentials) => {
                    sender = Some(Pid::from_raw(credentials.pid()));
                }
                ControlMessageOwned::ScmRights(numbers) => {
                    fds.extend(numbers.into_iter().map(descriptors::own));
                }
                _ => {}
            }
        }
        let (length, flags) = (message.bytes, message.flags);
        let bytes = match flags.contains(MsgFlags::MSG_TRUNC) {
            true => &[],
            false => self.bytes.get(..length).unwrap_or_default(),
        };
        Ok(Some(Datagram { sender, bytes, fds }))
    }

    /// What NOTIFY_SOCKET says of it.
    pub(super) fn address(&self) -> io::Result<String> {
        let address: UnixAddr = getsockname(self.socket.as_raw_fd())?;
        let name = address
            .as_abstract()
            .and_then(|name| std::str::from_utf8(name).ok())
            .ok_or_else(|| io::Error::other("the notify socket has no abstract name"))?;
        Ok(format!("@{name}"))
    }

    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }
}

impl From<OwnedFd> for Inbox {
    fn from(socket: OwnedFd) -> Self {
        Self {
            socket,
            bytes: vec![0; DATAGRAM_BYTES].into(),
            control: nix::cmsg_space!([RawFd; DATAGRAM_MAX], UnixCredentials),
        }
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
